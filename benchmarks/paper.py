"""Every experiment of the Splitwiser paper (arXiv 2505.03763): reported, simulated, and the error.

    python benchmarks/paper.py [--data FILE] [--json]

First come the parameters, and which numbers they were fitted to; then one table. `owed` marks the
numbers for which the project promises a tolerance (Fig. 15 to the printed 0.01, Fig. 5 to 0.3
points, Figs 8 and 9 to 3 %, Fig. 10's two ratios to 5 %): ok or MISS. FILE is the table of the
authors' logs of Llama-2-7B (default: beside the repository).
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paper_reported as reported
from paper_fit import A10, A100, Stacks, fit, stated
from paper_runs import (
    decode_kv_use,
    engine_batch,
    engines,
    generate,
    llama,
    prompt_kv_use,
    shares_of_peak,
    token_seconds,
)

from splitwiser.models.profile import Profile, sheet_profile

LOGS = (
    Path(__file__).resolve().parents[2] / "shared/data/measured/splitwiser_a10_llama2_7b_vllm.csv"
)
FITTED = "fitted"


@dataclass(frozen=True, slots=True)
class Row:
    """A number of the paper and the simulator's; `within` is the tolerance owed, as a fraction, or
    in points for %.
    """

    figure: str
    case: str
    unit: str
    reported: float
    simulated: float
    within: float | None = None
    use: str = ""  # FITTED where a parameter was fitted to it

    @property
    def error(self) -> float:
        """Points for a percentage, a fraction of the reported number otherwise."""
        difference = self.simulated - self.reported
        return difference if self.unit == "%" else difference / self.reported

    @property
    def owed(self) -> str:
        """Whether the tolerance is kept; empty where none is owed."""
        if self.within is None:
            return ""
        return "ok" if abs(self.error) <= self.within + 1e-9 else "MISS"

    def as_dict(self) -> dict[str, Any]:
        """The row for `--json`."""
        return {
            "figure": self.figure,
            "case": self.case,
            "unit": self.unit,
            "reported": self.reported,
            "simulated": self.simulated,
            "error": self.error,
            "error_unit": "points" if self.unit == "%" else "fraction",
            "owed": self.owed or None,
            "fitted": self.use == FITTED,
        }

    def line(self) -> str:
        """The row of the table."""
        digits = 2 if self.unit in ("%", "1", "batches/s") else 1
        error = f"{self.error:+.2f} pt" if self.unit == "%" else f"{self.error:+.1%}"
        return (
            f"{self.figure:<8} {self.case:<34} {self.unit:<10} {self.reported:>10.{digits}f}"
            f" {self.simulated:>10.{digits}f} {error:>10}  {self.owed:<5} {self.use}"
        ).rstrip()


def hugging_face(stacks: Stacks) -> Iterator[Row]:
    """Figures 6 to 9: tokenise, then batches of `generate`, in one process or N staggered ones."""
    totals = {}
    for processes, times in reported.FIGURE_8.items():
        run = generate(stacks.generate_a100, processes)
        totals[processes] = run.total
        name = "sequential" if processes == 1 else f"{processes} processes"
        for part, paper, simulated in zip(
            ("prompt", "token"), times[:2], (run.prompt, run.token), strict=True
        ):
            yield Row("Fig. 8", f"A100, {name}, {part}", "s", paper, simulated)
        use = FITTED if processes <= 2 else ""
        yield Row("Fig. 8", f"A100, {name}, total", "s", times[2], run.total, 0.03, use)
    saving = 100 * (totals[8] / totals[1] - 1)
    yield Row("Fig. 8", "A100, 8 against sequential", "%", reported.SAVING_A100, saving)

    a10 = {
        "sequential": generate(stacks.generate_a10, 1).total,
        "time_slice": generate(stacks.generate_a10, 4, "time_slice").total,
        "mps": generate(stacks.generate_a10, 4, "mps").total,
    }
    names = {"sequential": "sequential", "time_slice": "4 processes", "mps": "4 processes, MPS"}
    for name, total in a10.items():
        use = FITTED if name == "sequential" else ""
        paper = reported.FIGURE_9[name]
        yield Row("Fig. 9", f"A10, {names[name]}, total", "s", paper, total, 0.03, use)
    saving = 100 * (a10["mps"] / a10["sequential"] - 1)
    yield Row("Fig. 9", "A10, MPS against sequential", "%", reported.SAVING_A10_MPS, saving)
    yield from steady_state(stacks)


def steady_state(stacks: Stacks) -> Iterator[Row]:
    """Figures 6 and 7, taken for the A100 and four processes; their runs are 15 % faster than
    Figure 8's.
    """
    one = generate(stacks.generate_a100, 1, documents=16_000)
    four = generate(stacks.generate_a100, 4, documents=16_000)
    for name, run in (("sequential", one), ("split", four)):
        yield Row("Fig. 6", f"16,000 inputs, {name}", "s", reported.FIGURE_6[name], run.total)
    for name, run in (("sequential", one), ("split", four)):
        paper = reported.FIGURE_7[name]
        yield Row("Fig. 7", f"steady state, {name}", "batches/s", paper, run.steady)
    ratio = four.steady / one.steady
    yield Row("Fig. 7", "steady state, split/sequential", "1", reported.SPEED_UP_STEADY, ratio)


def vllm_engines(stacks: Stacks) -> Iterator[Row]:
    """Figures 10 and 11: one engine, two that take turns, two under MPS."""
    cases = (
        ("one engine", 1, "exclusive"),
        ("two", 2, "time_slice"),
        ("two, MPS", 2, "mps"),
    )
    for count, totals in reported.FIGURE_10.items():
        for (name, processes, sharing), paper in zip(cases, totals, strict=True):
            took = engines(stacks.engine, count, processes, sharing)
            yield Row("Fig. 10", f"{count} requests, {name}", "s", paper, took)
    one, two, mps = (engines(stacks.engine, 160, p, sharing) for _, p, sharing in cases)
    yield Row("Fig. 10", "160 requests, one/two", "1", reported.RATIO_TWO, one / two, 0.05)
    yield Row("Fig. 10", "160 requests, one/two MPS", "1", reported.RATIO_MPS, one / mps, 0.05)
    for count, times in reported.FIGURE_11.items():
        for (name, processes, sharing), paper in zip(cases, times, strict=True):
            took = engine_batch(stacks.engine, count, processes, sharing)
            yield Row("Fig. 11", f"{count} per engine, {name}", "s", paper, took, None, FITTED)


def llama_batches(profile: Profile) -> Iterator[Row]:
    """Figures 5, 12 and 13: Llama-2-7B, 1024 tokens in and out, at most 12 admitted."""
    runs = {count: llama(profile, count, 1023, 1024) for count in reported.BATCHES}
    for count, (use, _, _) in reported.BATCHES.items():
        simulated = 100 * prompt_kv_use(profile, count)
        yield Row("Fig. 5", f"batch {count}, KV of prompts", "%", use, simulated, 0.3)
    for count, (_, tpot, _) in reported.BATCHES.items():
        simulated = 1e3 * token_seconds(runs[count])
        yield Row("Fig. 12", f"batch {count}, TPOT", "ms", tpot, simulated)
    for count, (_, _, e2el) in reported.BATCHES.items():
        yield Row("Fig. 13", f"batch {count}, E2E", "s", e2el, float(runs[count].e2el.mean()))


def llama_alone(profile: Profile) -> Iterator[Row]:
    """Figure 15: one request's KV use."""
    for prompt, uses in reported.FIGURE_15.items():
        for output, use in zip(reported.OUTPUTS, uses, strict=True):
            simulated = 100 * decode_kv_use(profile, prompt, output)
            yield Row("Fig. 15", f"{prompt} in, {output} out", "%", use, simulated, 0.005)


def llama_logs(profile: Profile, file: Path) -> Iterator[Row]:
    """TTFT and TPOT of one request, against the logs, or their summary where the table is absent."""
    ttft: dict[int, list[float]] = defaultdict(list)
    tpot: dict[tuple[int, int], list[float]] = defaultdict(list)
    if file.is_file():
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                prompt, output = int(row["prompt_tokens"]), int(row["output_tokens"])
                ttft[prompt].append(float(row["ttft_s"]))
                tpot[prompt, output].append(float(row["mean_tpot_s"]))
    else:
        print(f"no table of the authors' logs at {file}: their summary instead", file=sys.stderr)
        for prompt, seconds in reported.TTFT.items():
            ttft[prompt].append(seconds)
            tpot[prompt, 1024].append(reported.TPOT[prompt])
    for prompt, values in ttft.items():
        simulated = float(llama(profile, 1, prompt, 1).ttft[0])
        paper = 1e3 * sum(values) / len(values)
        yield Row("logs", f"Llama-2-7B, {prompt} in, TTFT", "ms", paper, 1e3 * simulated)
    for (prompt, output), values in tpot.items():
        simulated = float(llama(profile, 1, prompt, output).tpot[0])
        paper = 1e3 * sum(values) / len(values)
        case = f"Llama-2-7B, {prompt} in, {output} out, TPOT"
        yield Row("logs", case, "ms", paper, 1e3 * simulated)


def counters(profile: Profile) -> Iterator[Row]:
    """Figures 2 to 4, against FLOP over peak and bytes over bandwidth: cousins of Nsight's
    counters, not the same.
    """
    prefill, decode = shares_of_peak(profile)
    simulated = (prefill.compute, prefill.memory, decode.compute, decode.memory)
    seconds = (prefill.seconds, prefill.seconds, decode.seconds, decode.seconds)
    for (case, paper), part, whole in zip(reported.SHARES.items(), simulated, seconds, strict=True):
        yield Row("Fig. 2-4", case, "%", paper, 100 * part / whole)


def everything(stacks: Stacks, file: Path) -> list[Row]:
    """All rows of the table, in the order of the figures; the logs last."""
    sheet = sheet_profile(A10)
    rows = [
        *counters(sheet),
        *llama_batches(sheet),
        *hugging_face(stacks),
        *vllm_engines(stacks),
        *llama_alone(sheet),
        *llama_logs(sheet, file),
    ]
    return sorted(rows, key=lambda row: int(row.figure[5:].split("-")[0] or 99))


def conditions(stacks: Stacks, seconds: float) -> dict[str, str]:
    """What the table rests on."""
    sheet, hf = sheet_profile(A10), stacks.generate_a10.value
    return {
        "hardware": "simulated A10 and A100 (the paper does not say which; 40 GB taken)",
        "profiles": f"{sheet.name}, {sheet_profile(A100).name}, with the parameters below",
        "not fitted": f"quantum {hf('quantum'):.3g} s, wait_memory {hf('wait_memory'):.3g}, wait_compute "
        f"{hf('wait_compute'):.3g} (HF under MPS), switch on the A100 "
        f"{stacks.generate_a100.value('switch'):.3g} s: as the data-sheet profiles have them",
        "judged": "rows not marked fitted. Weak tests among them: Fig. 10 at 160 requests is Fig. 11 at 80 "
        "an engine with the start added; that the A10's switch serves both stacks was chosen with "
        "Fig. 9 in sight (4 processes: -3.1 % with the data sheet's switch)",
        "Figs 2-4": "Llama-2-7B taken; FLOP over peak and bytes over bandwidth, which Nsight's counters are not",
        "spread": "none of the simulator's (no randomness); the paper gives none, and plots read to 1-2 %",
        "run": f"Python {platform.python_version()}, {seconds:.1f} s in all, fits included",
    }


def main() -> None:
    """Fit, simulate, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=LOGS, help="table of the authors' logs")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()

    start = time.perf_counter()
    stacks = fit()
    rows = everything(stacks, arguments.data)
    setting = conditions(stacks, time.perf_counter() - start)
    owed = [row.owed for row in rows if row.owed]
    kept = {"ok": owed.count("ok"), "miss": owed.count("MISS")}
    if arguments.json:
        document = {
            "conditions": setting,
            "parameters": [parameter._asdict() for parameter in stated(stacks)],
            "rows": [row.as_dict() for row in rows],
            "owed": kept,
        }
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    for name, text in setting.items():
        print(f"{name + ':':<12} {text}")
    print("\nParameters")
    for parameter in stated(stacks):
        print(
            f"  {parameter.name:<37} {parameter.value:>9.3g} {parameter.unit:<2} {parameter.origin}"
        )
    print(
        f"\n{'figure':<8} {'case':<34} {'unit':<10} {'reported':>10} {'simulated':>10} {'error':>10}  owed"
    )
    for row in rows:
        print(row.line())
    print(f"\nowed: {kept['ok']} ok, {kept['miss']} MISS")


if __name__ == "__main__":
    main()
