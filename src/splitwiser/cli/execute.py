"""`splitwiser run`: one deployment, one trace, on a real device; vLLM's result block."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from splitwiser.cli.console import complain, note
from splitwiser.cli.options import Engine, Traffic
from splitwiser.cli.progress import INTERRUPTED, Progress, Stop
from splitwiser.cli.serving import Output, check_until, with_traffic

if TYPE_CHECKING:
    from splitwiser.models.llm import Llm
    from splitwiser.sim.deployment import Deployment
    from splitwiser.sim.result import Result
    from splitwiser.traces.trace import Trace

app = App(name="run")

FAILED = 1  # exit status: a process of the run died
GIB = 2**30


@app.default
def run(
    deployment: str,
    /,
    *,
    model: str,
    device: str,
    weights: Path | None = None,
    traffic: Traffic = Traffic(),  # noqa: B008 - frozen
    engine: Engine = Engine(),  # noqa: B008 - frozen
    warmup: int = 4,
    until: float | None = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> int:
    """Serve traffic for real, with one deployment on this machine's device.

    Arrivals are replayed in real time. Ctrl-C ends the run and prints what finished.

    Parameters
    ----------
    deployment
        A preset (sequential, continuous, chunked, split, replicas, pipeline) or a TOML file.
    model
        A model of the catalogue (`splitwiser llms`) or the path of a config.json.
    device
        Where to run: cuda:0, another cuda:N, or cpu.
    weights
        A folder with the model's *.safetensors; without it weights are random, by the seed.
    warmup
        Requests served before the clock starts; they are in no number.
    until
        End the run at this time, in seconds after its start.
    """
    from splitwiser.models.catalogue import llm
    from splitwiser.sim.deployment_file import deployment as deployment_of

    shape, chosen = llm(model), deployment_of(deployment).override(**engine.changes)
    report = output.report(chosen.name, shape.name)
    check_until(until)
    if warmup < 0:
        raise ValueError(f"--warmup is {warmup}; accepted: a whole number from 0 on")
    if weights is not None and not weights.is_dir():
        raise ValueError(f"--weights is {str(weights)!r}; accepted: a folder with *.safetensors")
    _check(chosen, device)
    options = {"weights": weights, "warmup": warmup, "until": until, "seed": traffic.seed}
    trace = traffic.load()
    with Stop() as stop:
        result, failure = _execute(trace, chosen, shape, device, stop, options)
    if stop.asked:
        note("interrupted: what follows is the part that ran")
    try:
        if result is not None:
            result = with_traffic(result, traffic)
            report.publish(result, _facts(chosen, result.meta))
    finally:  # why the run failed is told even where its result cannot be
        if failure is not None:
            complain(failure)
    if failure is not None:
        return FAILED
    return INTERRUPTED if stop.asked else 0


def _check(deployment: Deployment, device: str) -> None:
    """Raise ValueError, before long work, for what this machine cannot run."""
    from splitwiser.validate.runtime.device import check, device_named

    try:
        check(deployment, device_named(device))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"splitwiser run needs {error.name}: pip install 'splitwiser[validate]'"
        ) from None


def _execute(
    trace: Trace,
    deployment: Deployment,
    llm: Llm,
    device: str,
    stop: Stop,
    options: dict[str, Any],
) -> tuple[Result | None, str | None]:
    """The result of the run, or of what finished of it; and why it failed, if it did."""
    from splitwiser.validate import RunFailed, execute

    with Progress("running", "requests finished") as shown:

        def progress(finished: int, requests: int) -> bool:
            shown(finished, requests)
            return not stop.asked

        try:
            result: Result = execute(
                trace, deployment, llm, device, progress=progress, say=note, **options
            )
        except RunFailed as error:
            return error.result, str(error)
    return result, None


def _facts(deployment: Deployment, meta: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """What stands below vLLM's block: on what the numbers were measured."""
    warmup, granted = meta["warmup"], meta["granted_sms"]
    before = f"{warmup} requests before the clock started, not in these numbers"
    label = "threads" if meta["device"] == "cpu" else "SMs"
    return [
        ("device", [_device(meta["provenance"])]),
        *([(label, [_granted(granted)])] if any(granted) else []),
        ("telemetry", [_telemetry(meta["telemetry"])]),
        ("memory", [f"{deployment.name} on {meta['device']}", *meta["memory"]]),
        ("warm-up", [before if warmup else "none: the first requests are in these numbers"]),
    ]


def _device(provenance: dict[str, Any]) -> str:
    """The device and its software, in one line; what is not known is left out."""
    parts = [provenance.get("name") or provenance["device"]]
    if "cores" in provenance:
        parts.append(f"{provenance['cores']} cores")
    for key, label in (("driver", "driver"), ("cuda", "CUDA"), ("torch", "torch")):
        if provenance.get(key) is not None:
            parts.append(f"{label} {provenance[key]}")
    return ", ".join(parts)


def _granted(counts: list[int | None]) -> str:
    told = ", ".join("unknown" if count is None else str(count) for count in counts)
    return f"{told}, worker by worker"


def _telemetry(summary: dict[str, Any]) -> str:
    """Power, clock and memory in one line; what the device did not tell is left out."""
    if not summary.get("samples"):
        return summary.get("note") or "no samples"
    parts = []
    if summary["power_w_mean"] is not None:
        parts.append(f"{summary['power_w_mean']:.0f} W (max {summary['power_w_max']:.0f})")
    if summary["sm_clock_mhz_mean"] is not None:
        clock = f"{summary['sm_clock_mhz_mean']:.0f} MHz (min {summary['sm_clock_mhz_min']:.0f})"
        parts.append(f"SM clock {clock}")
    if summary["memory_bytes_peak"] is not None:
        parts.append(f"{summary['memory_bytes_peak'] / GIB:.1f} GiB at most")
    return ", ".join([*parts, f"{summary['samples']} samples"])
