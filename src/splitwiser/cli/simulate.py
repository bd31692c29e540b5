"""`splitwiser simulate`: one deployment, one trace, vLLM's result block."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App

from splitwiser.cli.console import check_writable, note, print_json
from splitwiser.cli.options import Engine, Flag, Several, Traffic, profile_option
from splitwiser.cli.progress import INTERRUPTED, Progress, Stop

if TYPE_CHECKING:
    from splitwiser.sim.result import Result

app = App(name="simulate")

VERDICTS = {
    "steady": "steady: the backlog does not grow",
    "overload": "overload: requests come faster than they are served; latencies grow with the trace's length",
    "short": "too short to tell steady state from overload; use more requests",
}


@app.default
def simulate(
    deployment: str,
    /,
    *,
    model: str,
    gpu: str,
    traffic: Traffic = Traffic(),  # noqa: B008 - frozen
    engine: Engine = Engine(),  # noqa: B008 - frozen
    goodput: Annotated[tuple[str, ...], Several] = (),
    profile: Path | None = None,
    until: float | None = None,
    percentile_metrics: str = "ttft,tpot,itl,e2el",
    metric_percentiles: str = "99",
    json: Annotated[bool, Flag] = False,
    save_result: Annotated[bool, Flag] = False,
    result_filename: Path | None = None,
    save_detailed: Annotated[bool, Flag] = False,
) -> int:
    """Serve traffic with one deployment and print vLLM's benchmark block.

    Parameters
    ----------
    deployment
        A preset (sequential, continuous, chunked, split, replicas, pipeline) or a TOML file.
    model
        A model of the catalogue (`splitwiser llms`) or the path of a config.json.
    gpu
        A GPU (`splitwiser gpus`).
    goodput
        Objectives in milliseconds, such as ttft:500 tpot:50.
    profile
        A cost profile's JSON file, instead of the GPU's built-in one.
    until
        End the simulation at this time, in seconds.
    percentile_metrics
        The metrics to print, separated by commas.
    metric_percentiles
        The percentiles to print, separated by commas.
    json
        Print one JSON object.
    save_result
        Write vLLM's JSON keys, and a parquet row per request.
    result_filename
        Where to write them: FILE.json, FILE.parquet and FILE.timeline.parquet.
    save_detailed
        Write the latencies of every request and token into the JSON file too.
    """
    from splitwiser.models.catalogue import llm
    from splitwiser.models.gpu import gpu as data_sheet
    from splitwiser.sim.deployment_file import deployment as deployment_of
    from splitwiser.sim.objectives import parse_goodput
    from splitwiser.sim.simulate import simulate as serve

    metrics = _metrics(percentile_metrics)
    percentiles = _percentiles(metric_percentiles)
    objectives = parse_goodput(goodput) if goodput else None
    sheet, shape = data_sheet(gpu), llm(model)
    costs = profile_option(profile, sheet)
    chosen = deployment_of(deployment).override(**engine.changes)
    stem = _stem(result_filename, chosen.name, shape.name) if save_result else None
    if result_filename is not None and not save_result:
        raise ValueError("--result-filename needs --save-result")
    if until is not None and not until > 0:
        raise ValueError(f"--until is {until:g}; accepted: seconds above 0")
    trace = traffic.load()
    with Progress("simulating", "% of the requests arrived") as shown, Stop() as stop:

        def progress(share: float) -> bool:
            shown(round(100 * share), 100)
            return not stop.asked

        result = serve(trace, chosen, shape, sheet, costs, until=until, progress=progress)
    result = _with_traffic(result, traffic)
    if stop.asked:
        note("interrupted: what follows is the part that was simulated")
    for text in result.meta["notes"]:
        note(text)
    if json:
        print_json(_content(result, objectives, percentiles))
    else:
        _print(result, objectives, metrics, percentiles)
    if stem is not None:
        paths = result.save(
            stem, goodput=objectives, percentiles=percentiles, detailed=save_detailed
        )
        note("wrote " + ", ".join(map(str, paths)))
    return INTERRUPTED if stop.asked else 0


def _print(
    result: Result,
    objectives: dict[str, float] | None,
    metrics: list[str],
    percentiles: list[float],
) -> None:
    from splitwiser.sim.report import serving_block
    from splitwiser.sim.stats import steady

    summary = result.summary(objectives, percentiles)
    print(serving_block(summary, metrics, percentiles))
    if objectives:
        limits = " ".join(f"{name}:{limit * 1e3:g}" for name, limit in objectives.items())
        print(f"objectives  {limits} (ms): met by {summary['slo_attainment']:.1%} of the requests")
    meta = result.meta
    print(f"verdict     {VERDICTS[steady(result)]}")
    print(f"profile     {meta['profile']} ({meta['profile_kind']})")
    print(f"memory      {meta['deployment']['name']} on {meta['gpu']}")
    for line in meta["memory"]:
        print(f"            {line}")


def _content(
    result: Result, objectives: dict[str, float] | None, percentiles: list[float]
) -> dict[str, Any]:
    from splitwiser.sim.stats import steady

    return {
        **result.summary(objectives, percentiles),
        "goodput": objectives and {f"{k}_ms": limit * 1e3 for k, limit in objectives.items()},
        "verdict": steady(result),
        "meta": result.meta,
    }


def _with_traffic(result: Result, traffic: Traffic) -> Result:
    """The result with what its traffic was asked to be, under vLLM's keys."""
    from dataclasses import replace

    asked = {**traffic.given, "burstiness": traffic.burstiness}
    if traffic.trace is None and traffic.preset is None:
        asked["burstiness"] = 1.0 if traffic.burstiness is None else traffic.burstiness
    keys = ("request_rate", "burstiness", "seed", "preset")
    return replace(
        result, meta={**result.meta, **{key: asked[key] for key in keys if key in asked}}
    )


def _stem(given: Path | None, deployment: str, model: str) -> Path:
    """Where the files go; told now if that cannot be written."""
    path = given or Path(f"{deployment}-{model.rpartition('/')[2]}".replace("/", "-"))
    stem = path.with_suffix("") if path.suffix == ".json" else path
    for suffix in (".json", ".parquet", ".timeline.parquet"):
        check_writable(stem.with_name(stem.name + suffix))
    return stem


def _metrics(text: str) -> list[str]:
    from splitwiser.models.names import unknown_name
    from splitwiser.sim.report import SECTIONS

    metrics = [name.strip() for name in text.split(",")]
    for name in metrics:
        if name not in SECTIONS:
            raise unknown_name("metric in --percentile-metrics", name, SECTIONS)
    return metrics


def _percentiles(text: str) -> list[float]:
    try:
        percentiles = [float(part) for part in text.split(",")]
    except ValueError:
        percentiles = [-1.0]
    if not all(0 <= percentile <= 100 for percentile in percentiles):
        raise ValueError(
            f"--metric-percentiles is {text!r}; accepted: numbers from 0 to 100, separated by commas"
        )
    return percentiles
