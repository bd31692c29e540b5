"""How fast the simulator is, against the numbers it owes.

    python benchmarks/speed.py [--repeats N] [--quick] [--json]

Every case runs in a fresh process on one core; the time starts after the import and covers the
simulation and the summary: TTFT, TPOT and E2EL of every request, and the distribution of all
inter-token latencies. The first column after the case is the median of the repeats, with the least
and the most beside it. Raw SimPy (a process that waits for timeouts, measured in the same process)
bounds what a simulation on it can reach; `of SimPy` is the share of that bound, at the events that
the case needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MODEL, GPU = "meta-llama/Meta-Llama-3-8B", "a100-80gb"
AZURE = Path(__file__).resolve().parents[2] / "shared/data/traces/AzureLLMInferenceTrace_conv.csv"


@dataclass(frozen=True)
class Case:
    """A simulation to time: its traffic, and the requests per second owed."""

    name: str
    deployment: str
    requests: int
    rate: float | None  # requests/s; None: 0.7 of the capacity on the preset
    output: int
    owed: float | None = None
    owed_seconds: float | None = None
    owed_gib: float | None = None


CASES = (
    Case("continuous", "continuous", 100_000, 4.0, 128, owed=80_000),
    Case("chunked", "chunked", 100_000, 4.0, 128, owed=20_000),
    Case("split, MPS 75/25", "split", 100_000, 4.0, 128, owed=20_000),
    Case("continuous, 2048 out, 4/s", "continuous", 100_000, 4.0, 2048),
    Case("continuous, 2048 out, 0.25/s", "continuous", 100_000, 0.25, 2048),
    Case(
        "Azure preset at 0.7 of capacity",
        "continuous",
        1_000_000,
        None,
        0,
        owed_seconds=40.0,
        owed_gib=2.0,
    ),
)


def traffic(case: Case, requests: int) -> Any:
    """The trace of a case, made before the clock starts."""
    from splitwiser import preset, random_trace

    if case.rate is None:
        trace = preset("azure-conv", num_prompts=requests)
        return trace.scale(0.7 * closed_rate(requests=5_000) / trace.rate)
    return random_trace(
        num_prompts=requests,
        request_rate=case.rate,
        random_input_len=1024,
        random_output_len=case.output,
    )


def closed_rate(requests: int) -> float:
    """Requests per second that the GPU serves when the preset's requests are all there at once."""
    from splitwiser import deployment, gpu, llm, preset, simulate

    trace = preset("azure-conv", num_prompts=requests)
    burst = trace.retimed(trace.arrival * 0)
    summary = simulate(burst, deployment("continuous"), llm(MODEL), gpu(GPU)).summary()
    return float(summary["request_throughput"])


def simpy_rate(events: int = 200_000) -> float:
    """Timeouts per second of a bare SimPy process."""
    from simpy import Environment

    env = Environment()

    def waits() -> Any:
        for _ in range(events):
            yield env.timeout(1.0)

    env.process(waits())
    start = time.perf_counter()
    env.run()
    return events / (time.perf_counter() - start)


def measure(case: Case, requests: int) -> dict[str, float]:
    """Run a case in this process."""
    from splitwiser import deployment, gpu, llm, simulate

    trace, model, device = traffic(case, requests), llm(MODEL), gpu(GPU)
    chosen = deployment(case.deployment)
    simulate(trace.head(200), chosen, model, device).summary()  # imports and first calls
    simpy = max(simpy_rate() for _ in range(3))
    start = time.perf_counter()
    result = simulate(trace, chosen, model, device)
    middle = time.perf_counter()
    summary = result.summary()
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "summary_seconds": end - middle,
        "requests_per_s": requests / (end - start),
        "tokens_per_s": summary["total_output_tokens"] / (end - start),
        "runs_per_request": len(result.timeline.stretches) / requests,
        "simpy_per_s": simpy,
        "rate": trace.rate,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def in_child(number: int, requests: int) -> dict[str, float]:
    """Run a case in a fresh process, pinned to one core where the system can."""
    command = [sys.executable, __file__, "--case", str(number), "--requests", str(requests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def start_up() -> dict[str, float]:
    """Seconds of `splitwiser --help`, and of a plan on the Azure trace, as a user has them."""
    program = shutil.which("splitwiser", path=str(Path(sys.executable).parent))
    command = [program] if program else [sys.executable, "-m", "splitwiser"]
    timed = {}
    start = time.perf_counter()
    subprocess.run([*command, "--help"], capture_output=True, check=True)
    timed["--help"] = min(time.perf_counter() - start, _again([*command, "--help"]))
    if AZURE.exists():
        plan = [*command, "plan", "meta-llama/Llama-3.1-8B", "--gpu", "h200", "--json"]
        plan += ["--trace", str(AZURE), "--goodput", "ttft:500", "tpot:50"]
        start = time.perf_counter()
        done = subprocess.run(plan, capture_output=True, check=True)
        timed["plan, Azure trace"] = time.perf_counter() - start
        answer = json.loads(done.stdout)
        timed["plan, deployments"] = len(answer["rows"]) + len(answer["skipped"])
    return timed


def _again(command: list[str], times: int = 4) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def verdict(case: Case, runs: list[dict[str, float]]) -> str:
    """Whether the median meets what is owed."""
    middle = statistics.median(run["requests_per_s"] for run in runs)
    if case.owed is not None:
        return "ok" if middle >= case.owed else "MISS"
    if case.owed_seconds is not None and case.owed_gib is not None:
        seconds = statistics.median(run["seconds"] for run in runs)
        memory = max(run["peak_gib"] for run in runs)
        return "ok" if seconds <= case.owed_seconds and memory <= case.owed_gib else "MISS"
    return ""


def owed(case: Case) -> str:
    """What is owed, in words."""
    if case.owed is not None:
        return f">= {case.owed:,.0f}/s"
    if case.owed_seconds is not None:
        return f"<= {case.owed_seconds:g} s, {case.owed_gib:g} GiB"
    return ""


def table(found: list[tuple[Case, int, list[dict[str, float]]]]) -> Table:
    """The measurements, a row per case."""
    out = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("case", "requests", "requests/s (min-max)", "s", "peak GiB", "of SimPy", "owed"):
        out.add_column(name, justify="left" if name == "case" else "right", no_wrap=True)
    out.add_column("")
    for case, requests, runs in found:
        rates = sorted(run["requests_per_s"] for run in runs)
        share = [
            run["requests_per_s"] * run["runs_per_request"] / run["simpy_per_s"] for run in runs
        ]
        out.add_row(
            case.name,
            f"{requests:,}",
            f"{statistics.median(rates):,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f})",
            f"{statistics.median(run['seconds'] for run in runs):.2f}",
            f"{max(run['peak_gib'] for run in runs):.2f}",
            f"{statistics.median(share):.0%}",
            owed(case),
            verdict(case, runs),
        )
    return out


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Time the simulator.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(json.dumps(measure(CASES[args.case], args.requests)))
        return
    found = []
    for number, case in enumerate(CASES):
        requests = case.requests // 10 if args.quick else case.requests
        runs = []
        for repeat in range(args.repeats):
            print(f"{case.name}: {repeat + 1} of {args.repeats}", file=sys.stderr)
            runs.append(in_child(number, requests))
        found.append((case, requests, runs))
    timed = start_up()
    if args.json:
        rows = {case.name: {"requests": requests, "runs": runs} for case, requests, runs in found}
        print(json.dumps({"cases": rows, "start_up": timed}))
        return
    console = Console(width=120)
    console.print(
        f"{MODEL} on {GPU}, 1024 prompt tokens, Poisson; Python {platform.python_version()}, "
        f"one core of {platform.processor() or platform.machine()}, after import"
    )
    console.print(table(found))
    long = found[4][2], found[0][2]
    ratio = statistics.median(r["seconds"] for r in long[0]) / statistics.median(
        r["seconds"] for r in long[1]
    )
    overload = statistics.median(r["seconds"] for r in found[3][2]) / statistics.median(
        r["seconds"] for r in found[0][2]
    )
    console.print(
        f"\n2,048 instead of 128 output tokens: {ratio:.2f} times the time at 0.25/s, {overload:.2f} times in overload "
        "at 4/s (owed: within 1.5)"
    )
    for name, value in timed.items():
        console.print(f"splitwiser {name}: {value:.2f}" + (" s" if "deploy" not in name else ""))


if __name__ == "__main__":
    main()
