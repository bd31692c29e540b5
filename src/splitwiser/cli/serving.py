"""What `simulate` and `run` share: how a result is reported, and what is checked beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from splitwiser.cli.console import check_writable, note, print_json
from splitwiser.cli.options import Flag, Several, Traffic

if TYPE_CHECKING:
    from splitwiser.sim.result import Result

LABEL = 12  # columns of the label of a line below vLLM's block
VERDICTS = {
    "steady": "steady: the backlog does not grow",
    "overload": "overload: requests come faster than they are served; latencies grow with the trace's length",
    "short": "too short to tell steady state from overload; use more requests",
}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Output:
    """What is said of a result, and where it is saved."""

    goodput: Annotated[tuple[str, ...], Several] = ()
    """Objectives in milliseconds, such as ttft:500 tpot:50."""
    percentile_metrics: str = "ttft,tpot,itl,e2el"
    """The metrics to print, separated by commas."""
    metric_percentiles: str = "99"
    """The percentiles to print, separated by commas."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object."""
    save_result: Annotated[bool, Flag] = False
    """Write vLLM's JSON keys, and a parquet row per request."""
    result_filename: Path | None = None
    """Where to write them: FILE.json, FILE.parquet and FILE.timeline.parquet."""
    save_detailed: Annotated[bool, Flag] = False
    """Write the latencies of every request and token into the JSON file too."""

    def report(self, deployment: str, model: str) -> Report:
        """The report that these options ask for, of a *model* in a *deployment* (their names).

        Raises ValueError for options that cannot be met, among them files that cannot be written:
        to be told before long work.
        """
        from splitwiser.sim.objectives import parse_goodput

        if self.result_filename is not None and not self.save_result:
            raise ValueError("--result-filename needs --save-result")
        return Report(
            objectives=parse_goodput(self.goodput) if self.goodput else None,
            metrics=_metrics(self.percentile_metrics),
            percentiles=_percentiles(self.metric_percentiles),
            json=self.json,
            stem=_stem(self.result_filename, deployment, model) if self.save_result else None,
            detailed=self.save_detailed,
        )


@dataclass(frozen=True)
class Report:
    """How a result is told: objectives in seconds, and the files' *stem* where it is saved."""

    objectives: dict[str, float] | None
    metrics: list[str]
    percentiles: list[float]
    json: bool
    stem: Path | None
    detailed: bool

    def publish(self, result: Result, facts: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Say the result's notes, print it, and save it if that was asked.

        *facts* are labels with their lines, and stand below vLLM's block.
        """
        for text in result.meta["notes"]:
            note(text)
        try:  # the files first: who reads stdout may be gone; and where they fail, it tells what ran
            if self.stem is not None:
                paths = result.save(
                    self.stem,
                    goodput=self.objectives,
                    percentiles=self.percentiles,
                    detailed=self.detailed,
                )
                note("wrote " + ", ".join(map(str, paths)))
        finally:
            if self.json:
                print_json(self._content(result))
            else:
                self._print(result, facts)

    def _print(self, result: Result, facts: Sequence[tuple[str, Sequence[str]]]) -> None:
        from splitwiser.sim.report import serving_block
        from splitwiser.sim.stats import steady

        summary = result.summary(self.objectives, self.percentiles)
        print(serving_block(summary, self.metrics, self.percentiles))
        if self.objectives:
            limits = " ".join(f"{k}:{limit * 1e3:g}" for k, limit in self.objectives.items())
            met = f"met by {summary['slo_attainment']:.1%} of the requests"
            print(f"{'objectives':<{LABEL}}{limits} (ms): {met}")
        for label, lines in [("verdict", [VERDICTS[steady(result)]]), *facts]:
            for place, line in enumerate(lines):
                print(f"{'' if place else label:<{LABEL}}{line}")

    def _content(self, result: Result) -> dict[str, Any]:
        from splitwiser.sim.stats import steady

        goodput = self.objectives and {f"{k}_ms": v * 1e3 for k, v in self.objectives.items()}
        return {
            **result.summary(self.objectives, self.percentiles),
            "goodput": goodput,
            "verdict": steady(result),
            "meta": result.meta,
        }


def with_traffic(result: Result, traffic: Traffic) -> Result:
    """The result with what its traffic was asked to be, under vLLM's keys."""
    asked = {**traffic.given, "burstiness": traffic.burstiness}
    if traffic.request_rate == inf:
        asked["request_rate"] = "inf"  # as vLLM writes it: JSON has no infinity
    if traffic.trace is None and traffic.preset is None:
        asked["burstiness"] = 1.0 if traffic.burstiness is None else traffic.burstiness
    keys = ("request_rate", "burstiness", "seed", "preset")
    return replace(
        result, meta={**result.meta, **{key: asked[key] for key in keys if key in asked}}
    )


def check_until(until: float | None) -> None:
    """Raise ValueError unless --until is left out or a time above 0, in seconds."""
    if until is not None and not until > 0:
        raise ValueError(f"--until is {until:g}; accepted: seconds above 0")


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
