"""How well the profiles predict what they were not fitted to.

    python benchmarks/accuracy.py [--only PART ...] [--ablation] [--json]

Parts: `alone` (an H200's phases, of models and at sizes never measured in its calibration), `corun`
(pairs, triples and quadruples on it, at prompt lengths and SM splits that no fit saw, with the
noise of repetitions and four baselines beside), `other_implementation` (pairs of other code on an
H200, from its own phases alone), `kernels` (GEMMs and attention of model shapes left out of the fit,
A100 and L40S), `public_engines` (vLLM on RTX PRO 6000, H100 and A10, from a part of each). The last
three read public data from ../shared/data and are skipped without it.

`--ablation` fits the law of sharing anew without each of its effects, and judges it by the same rows.
Every number comes from committed raw measurements or public ones; splits are stated in each table.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from splitwiser.models.gpu import gpu
from splitwiser.models.profile import Profile, sheet_profile
from splitwiser.validate.calibration.accuracy import Score, score, scores
from splitwiser.validate.calibration.accuracy_h200 import H200, ablation, alone, corun

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "measured"
RAW = Path(__file__).parent / "h200"


def part_alone() -> tuple[list[Score], list[str]]:
    """Phases alone on the H200."""
    return alone(H200.read(RAW)), [
        "Fitted on Llama-3.1-8B and OPT-125m; judged on OPT-1.3B, Llama-3.2-3B, Qwen2.5-7B and on",
        "sizes of Llama-3.1-8B between those fitted. Bound by launches: a launch took the host 90 % of",
        "the step or more. Hosts differ from one second to the next, so the prediction is told what it",
        "took; `modelled`: it is not. Another card: never calibrated.",
        "`measured again`: the same phases on both cards.",
    ]


def part_corun() -> tuple[list[Score], list[str]]:
    """Steps beside each other on the H200."""
    return corun(H200.read(RAW)), [
        "Rows: drawn at random, with prompt lengths and (where SMs are divided) splits that no fit saw.",
        "Pairs are of a prefill and a decode. Every row tells what its launches took the host, and the",
        "prediction is told. Noise: one of three repetitions against the mean of the other two. Baselines",
        "are told the same, and fitted to the same rows as the profile, where they have parameters.",
        "Equals: no kernels have priority. The law of sharing was settled, on rows of other cards, before",
        "any of these was measured. Another card: it was never calibrated.",
        "`by its power limit`: one parameter, `sustained`, is fitted to its phases alone.",
    ]


def part_other_implementation() -> tuple[list[Score], list[str]]:
    """Pairs of another implementation."""
    from splitwiser.validate.calibration.other_implementation import other_implementation

    def times(profile: Profile) -> list[tuple[str, float]]:
        return [(row.case, row.error) for row in other_implementation(DATA, profile)]

    profile = H200.read(RAW).profile
    learnt, lawful = times(profile), times(replace(profile, neighbours=None))

    def pairs(rows: list[tuple[str, float]]) -> list[float]:
        return [error for case, error in rows if case != "generate"]

    return [
        score("all", [error for _, error in learnt]),
        score("pairs", pairs(learnt)),
        *scores(learnt),
        score("pairs, without what ours say beyond the law", pairs(lawful)),
    ], [
        "Pairs: each phase's time alone, under the same regime and limits, is the table's; the law of",
        "sharing, and what pairs say beyond it, is the H200 profile's, which never saw these rows. None",
        "of their kernels has priority. generate: from one process, and 8 under MPS.",
    ]


def part_kernels() -> tuple[list[Score], list[str]]:
    """Single kernels of left-out model shapes."""
    from splitwiser.validate.calibration.kernel_accuracy import held_out
    from splitwiser.validate.calibration.kernel_readers import read_kernels

    found: dict[str, list[float]] = {}
    for name, folder in (("a100-80gb", "a100_sxm"), ("l40s", "l40s")):
        table = read_kernels(DATA / "op_tables" / folder, dtype="bfloat16")
        rows = held_out(table, gpu(name), sheet_profile(name))
        warm = {row.kind for row in rows if row.scope == "served by DRAM"}
        for row in rows:
            group = f"{name}, {row.kind.replace('_', ' ')}, {row.scope}"
            found[group] = row.errors.tolist()
            if row.scope == ("served by DRAM" if row.kind in warm else "all rows"):
                found.setdefault("all, served by DRAM", []).extend(row.errors.tolist())
    order = sorted(found, key=lambda group: not group.startswith("all, "))
    return [score(group, found[group]) for group in order], [
        "Three folds, each with a fit of its own that saw no GEMM with n or k among {2560, 5120, 10240},",
        "{3584, 7168}, {4096, 16384}, and no attention of 40, 64, 32 heads. Errors are sizes, so the bias",
        "is their mean. Rows that the L40S's cache of 96 MB served beat its data sheet's DRAM: no",
        "prediction that keeps to that limit can match them, and a model's steps do not find them there.",
    ]


def part_public_engines() -> tuple[list[Score], list[str]]:
    """Engines end to end."""
    from splitwiser.validate.calibration.engine_accuracy import public_engines

    judged: list[tuple[str, float]] = []
    others: list[tuple[str, float]] = []
    splits: list[str] = []
    for case in public_engines(DATA):
        splits.append(f"{case.title}: {case.split}.")
        stages = (
            re.findall(r"\d", case.split.split("the others")[0]) if "stages" in case.split else []
        )
        fitted = f", stages {stages[0]}-{stages[-1]} fitted" if stages else ""
        for row in case.rows:
            kind = next(k for k in ("ttft", "tpot", "e2el", "throughput") if k in row.quantity)
            aside = row.case in ("first requests", "all requests, no host time")
            note = f", {row.case}" if aside else ", means" * row.quantity.endswith(" mean")
            named = (f"{case.title}{fitted}: {kind}{note}", row.error)
            (others if aside else judged).append(named)
    everything = score("all judged", [error for _, error in judged])
    return [everything, *scores(judged), *scores(others)], splits


PARTS: dict[str, Callable[[], tuple[list[Score], list[str]]]] = {
    "alone": part_alone,
    "corun": part_corun,
    "other_implementation": part_other_implementation,
    "kernels": part_kernels,
    "public_engines": part_public_engines,
}
PUBLIC = ("other_implementation", "kernels", "public_engines")


def show(console: Console, part: str, rows: Sequence[Score], notes: Sequence[str]) -> None:
    """Print one part's table."""
    table = Table(part.replace("_", " "), title_justify="left")
    for heading in ("n", "MAPE", "p95", "bias"):
        table.add_column(heading, justify="right")
    for s in rows:
        table.add_row(s.group, str(s.n), f"{s.mape:.1%}", f"{s.p95:.1%}", f"{s.bias:+.1%}")
    console.print(table)
    for line in notes:
        console.print(line, highlight=False)
    console.print()


PAGE = """# How accurate the predictions are

Printed by `python benchmarks/accuracy.py --ablation --write docs/accuracy.md`, from raw measurements that are
committed (`benchmarks/h200/`) and public ones (not shipped). Errors are predicted/measured - 1; of latencies and
step times, also where a rate was measured. [calibration.md](calibration.md) says what was measured and how.

```
{}```
"""


def main() -> int:
    """Print what is asked for, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*PARTS], help="these parts only")
    parser.add_argument("--ablation", action="store_true", help="the law without each effect")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--write", type=Path, help="a page of all that is printed (docs/accuracy.md)"
    )
    options = parser.parse_args()
    console = Console(width=100, stderr=options.json, record=True)
    found: dict[str, Any] = {}
    for part in options.only or PARTS:
        if part in PUBLIC and not DATA.is_dir():
            print(f"accuracy: {part} is skipped: no public measurements at {DATA}", file=sys.stderr)
            continue
        rows, notes = PARTS[part]()
        show(console, part, rows, notes)
        found[part] = _document(rows)
    if options.ablation:
        scores = ablation(H200.read(RAW))
        show(
            console,
            "ablation",
            scores,
            ["Pairs, triples and quadruples of MPS, streams, green contexts; then those in turns."],
        )
        found["ablation"] = {s.group: s._asdict() for s in scores}
    if options.write:
        options.write.write_text(PAGE.format(console.export_text()), encoding="utf-8")
    if options.json:
        print(json.dumps(found, indent=2))
    return 0


def _document(rows: Sequence[Score]) -> dict[str, Any]:
    first, *rest = rows
    return {
        "mape": first.mape,
        "p95": first.p95,
        "n": first.n,
        "of": first.group,
        "groups": {s.group: {"mape": s.mape, "p95": s.p95, "n": s.n, "bias": s.bias} for s in rest},
    }


if __name__ == "__main__":
    sys.exit(main())
