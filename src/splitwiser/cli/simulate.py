"""`splitwiser simulate`: one deployment, one trace, vLLM's result block."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from splitwiser.cli.console import note
from splitwiser.cli.options import Engine, Traffic, profile_option
from splitwiser.cli.progress import INTERRUPTED, Progress, Stop
from splitwiser.cli.serving import Output, check_until, with_traffic

app = App(name="simulate")


@app.default
def simulate(
    deployment: str,
    /,
    *,
    model: str,
    gpu: str,
    traffic: Traffic = Traffic(),  # noqa: B008 - frozen
    engine: Engine = Engine(),  # noqa: B008 - frozen
    profile: Path | None = None,
    until: float | None = None,
    output: Output = Output(),  # noqa: B008 - frozen
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
    profile
        A cost profile's JSON file, instead of the GPU's built-in one.
    until
        End the simulation at this time, in seconds.
    """
    from splitwiser.models.catalogue import llm
    from splitwiser.models.gpu import gpu as data_sheet
    from splitwiser.sim.deployment_file import deployment as deployment_of
    from splitwiser.sim.simulate import simulate as serve

    sheet, shape = data_sheet(gpu), llm(model)
    costs = profile_option(profile, sheet)
    chosen = deployment_of(deployment).override(**engine.changes)
    report = output.report(chosen.name, shape.name)
    check_until(until)
    trace = traffic.load()
    with Progress("simulating", "% of the requests arrived") as shown, Stop() as stop:

        def progress(share: float) -> bool:
            shown(round(100 * share), 100)
            return not stop.asked

        result = serve(trace, chosen, shape, sheet, costs, until=until, progress=progress)
    if stop.asked:
        note("interrupted: what follows is the part that was simulated")
    result = with_traffic(result, traffic)
    meta = result.meta
    report.publish(
        result,
        [
            ("profile", [f"{meta['profile']} ({meta['profile_kind']})"]),
            ("memory", [f"{chosen.name} on {meta['gpu']}", *meta["memory"]]),
        ],
    )
    return INTERRUPTED if stop.asked else 0
