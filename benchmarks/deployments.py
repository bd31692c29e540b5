"""One trace on one model under every deployment, measured on a real GPU.

    python benchmarks/deployments.py TRACE [--only NAME...] [--repeats N] [--out FOLDER]
    python benchmarks/deployments.py                       # the table of what was measured
    python benchmarks/deployments.py TRACE --predict       # the same, simulated, and how far off it is

TRACE is the Azure conversation trace of 2023: its first five minutes, speeded up to --rate, which is
near 0.7 of what one H200 carries of it with Llama-3.1-8B (`splitwiser plan`: 14 requests/s). Each
run leaves its summary and a row per request in benchmarks/h200_deployments/, and the table is made
of those files alone.

Sequential serving cannot keep up with that rate: its runs are ended at --until seconds, and its
latencies grow with the time that one gives it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitwiser.sim.deployment import (
    Deployment,
    Workers,
    chunked,
    continuous,
    replicas,
    sequential,
    split,
)

if TYPE_CHECKING:
    from splitwiser.traces.trace import Trace

MODEL = "meta-llama/Llama-3.1-8B"
GPU = "h200"
MINUTES = 5
MEASURED = Path(__file__).with_name("h200_deployments")
METRICS = ("ttft", "tpot", "itl")
TITLES = ("req/s", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "ITL p50")
KEYS = ("throughput", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms", "itl_p50_ms")
# What is kept of every request.
COLUMNS = ("arrival", "prompt_tokens", "output_tokens", "scheduled", "first_token", "finished")


def _split(sharing: str, prefill: float | None = None, decode: float | None = None) -> Deployment:
    workers = (Workers("prefill", sm_percent=prefill), Workers("decode", sm_percent=decode))
    return replace(split(), workers=workers, sharing=sharing)


DEPLOYMENTS: dict[str, Callable[[], Deployment]] = {
    "sequential": sequential,
    "continuous": continuous,
    "chunked": chunked,
    "split-time-slice": lambda: _split("time_slice"),
    "split-mps": lambda: _split("mps"),
    "split-mps-75-25": lambda: _split("mps", 75, 25),
    "split-streams": lambda: _split("streams"),
    "split-green-75-25": lambda: _split("green_contexts", 75, 25),
    "replicas-2-time-slice": lambda: replace(replicas(), sharing="time_slice"),
    "replicas-2-mps": replicas,
}


def main() -> int:
    """Measure what is asked for, then print the table of all that has been measured."""
    options = _options()
    if options.predict:
        return _predict(options)
    if options.trace is not None:
        for repeat in range(options.repeats):
            for name in options.only or DEPLOYMENTS:
                _measure(name, repeat + options.first, options)
    rows = _rows(options.out)
    if options.json:
        print(json.dumps(rows, indent=1))
    elif not rows:
        print(f"nothing is in {options.out}: give a trace to measure", file=sys.stderr)
        return 2
    else:
        _print(rows)
    return 0


def _measure(name: str, repeat: int, options: argparse.Namespace) -> None:
    from splitwiser.models.catalogue import llm
    from splitwiser.sim.result import plain
    from splitwiser.validate import execute

    trace = _traffic(options, options.rate)
    print(f"{name} {repeat}: {len(trace)} requests in {trace.arrival[-1]:.0f} s", file=sys.stderr)
    result = execute(
        trace,
        DEPLOYMENTS[name](),
        llm(options.model),
        options.device,
        warmup=8,
        until=options.until,
        say=lambda line: print(f"  {line}", file=sys.stderr),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    rows = result.requests[list(COLUMNS)]
    narrow = {name: "float32" if rows[name].dtype == "float64" else "int32" for name in COLUMNS}
    rows = rows.astype(narrow)
    rows.to_parquet(options.out / f"{name}-{repeat}.parquet", index=False, compression="zstd")
    found = {
        "deployment": name,
        "repeat": repeat,
        "rate": options.rate,
        "until": options.until,
        "summary": result.summary(percentiles=(50, 90, 99)),
        "meta": result.meta,
    }
    text = json.dumps(plain(found), indent=1)
    (options.out / f"{name}-{repeat}.json").write_text(text + "\n")


def _traffic(options: argparse.Namespace, rate: float) -> Trace:
    from splitwiser.traces.readers import read_trace

    trace = read_trace(options.trace).slice(0, 60 * options.minutes)
    return trace.scale(rate / trace.rate)


# Predicted beside measured ----------------------------------------------------------------------


def _predict(options: argparse.Namespace) -> int:
    """Simulate what was measured, print how far off that is, and return the exit status."""
    from splitwiser.models.catalogue import llm
    from splitwiser.models.gpu import gpu
    from splitwiser.sim.simulate import simulate

    measured = _rows(options.out)
    if options.trace is None or not measured:
        print("--predict needs the trace, and results of runs with it", file=sys.stderr)
        return 2
    print(f"{'deployment':<23}" + "".join(f"{title:>20}" for title in TITLES))
    errors: list[list[float]] = []
    for row in measured:
        if row["deployment"] not in (options.only or DEPLOYMENTS):
            continue
        trace = _traffic(options, row["rate"])
        deployment = DEPLOYMENTS[row["deployment"]]()
        result = simulate(trace, deployment, llm(options.model), gpu(GPU), until=row["until"])
        predicted = _figures([result.summary(percentiles=(50, 99))])
        off = [predicted[key][0] / row[key][0] - 1.0 for key in KEYS]
        if row["until"] is None:
            errors.append(off)
        cells = (
            f"{f'{predicted[key][0]:.4g} ({error:+.1%})':>20}"
            for key, error in zip(KEYS, off, strict=True)
        )
        print(f"{row['deployment']:<23}" + "".join(cells))
    mean = (statistics.fmean(map(abs, column)) for column in zip(*errors, strict=True))
    print(f"{'mean of whole runs':<23}" + "".join(f"{size:>20.1%}" for size in mean))
    return 0


# The table --------------------------------------------------------------------------------------


def _rows(folder: Path) -> list[dict[str, Any]]:
    """A row for each deployment: the median of its runs, with the spread where there are several."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        runs.setdefault(found["deployment"], []).append(found)
    return [_row(name, runs[name]) for name in DEPLOYMENTS if name in runs]


def _figures(summaries: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The median, least and most of each figure of several runs' summaries."""

    def spread(key: str) -> list[float]:
        values = [float(summary[key]) for summary in summaries]
        return [statistics.median(values), min(values), max(values)]

    return {
        "completed": spread("completed"),
        "throughput": spread("request_throughput"),
        **{f"{m}_p{p}_ms": spread(f"p{p}_{m}_ms") for m in METRICS for p in (50, 99)},
    }


def _row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    meta = runs[0]["meta"]
    return {
        "deployment": name,
        "runs": len(runs),
        **_figures([run["summary"] for run in runs]),
        "handover_p99_ms": _worst(run["meta"]["overheads"].get("handover_ms", {}) for run in runs),
        "granted_sms": meta["granted_sms"],
        "power_w": meta["telemetry"]["power_w_mean"],
        "provenance": meta["provenance"],
        "rate": runs[0]["rate"],
        "until": runs[0]["until"],
        "traffic": meta["traffic"],
    }


def _worst(handovers: Iterable[dict[str, float]]) -> float | None:
    """The largest 99th percentile of several runs, in ms; None where nothing was handed over."""
    return max((found["p99"] for found in handovers if found), default=None)


def _print(rows: list[dict[str, Any]]) -> None:
    about = rows[0]["provenance"]
    dates = sorted({row["provenance"]["date"][:10] for row in rows})
    print(
        f"{MODEL} on {about['name']}, driver {about.get('driver')}, torch {about['torch']}, "
        f"{' and '.join(dates)}\n{rows[0]['traffic']} at {rows[0]['rate']:g} requests/s; "
        "several runs: median (least-most)"
    )
    head = f"{'deployment':<23}{'SMs':>8}{'done':>6}"
    print(head + "".join(f"{title:>21}" for title in TITLES) + "  hand-over p99    W")
    for row in rows:
        cells = "".join(f"{_cell(row[key], row['runs']):>21}" for key in KEYS)
        sms = "+".join(str(count) for count in row["granted_sms"])
        done, handed = row["completed"][0], row["handover_p99_ms"]
        waited = "" if handed is None else f"{handed:.2f}"
        print(
            f"{row['deployment']:<23}{sms:>8}{done:>6.0f}{cells}{waited:>15}{row['power_w'] or 0:>5.0f}"
        )


def _cell(values: list[float], runs: int) -> str:
    median, least, most = (f"{value:.4g}" for value in values)
    return median if runs == 1 else f"{median} ({least}-{most})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("trace", nargs="?", type=Path, help="the trace file; none: only the table")
    parser.add_argument("--predict", action="store_true", help="simulate what was measured")
    parser.add_argument("--only", nargs="+", choices=list(DEPLOYMENTS), help="these deployments")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each (default 1)")
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--rate", type=float, default=10.0, help="requests/s (default 10)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of the trace (default 5)")
    parser.add_argument("--until", type=float, default=None, help="end a run after so many seconds")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, default=MEASURED, help="where the results go")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
