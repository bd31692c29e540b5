"""How well the profiles predict what they were not fitted to.

    python benchmarks/accuracy.py [--only PART ...] [--ablation] [--rows] [--json]

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
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from splitwiser.models.gpu import gpu
from splitwiser.models.profile import profile_for, sheet_profile
from splitwiser.validate.calibration.accuracy import Score, score
from splitwiser.validate.calibration.accuracy_h200 import H200, ablation, alone, corun

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "measured"
RAW = Path(__file__).parent / "h200"


def part_alone() -> tuple[list[Score], list[str]]:
    """Phases alone on the H200."""
    return alone(H200.read(RAW)), [
        "Fitted on Llama-3.1-8B and OPT-125m; judged on OPT-1.3B, Llama-3.2-3B, Qwen2.5-7B and on",
        "sizes of Llama-3.1-8B between those fitted. Launches on this host take 9 to 20 ms for one and",
        "the same prefill, second by second: rows that wait for them are a line of their own. Another",
        "card (other machine, same kind) is slower by up to 12 % in long prefills.",
    ]


def part_corun() -> tuple[list[Score], list[str]]:
    """Steps beside each other on the H200."""
    return corun(H200.read(RAW)), [
        "Rows: drawn at random, with prompt lengths and (where SMs are divided) splits that no fit saw.",
        "`host aside`: both steps of the pair last longer than any launch was seen to take the host.",
        "Noise: one of three repetitions against the mean of the other two. Baselines are fitted to the",
        "same rows as the profile, where they have parameters.",
    ]


def part_other_implementation() -> tuple[list[Score], list[str]]:
    """Pairs of another implementation."""
    from splitwiser.validate.calibration.other_implementation import other_implementation

    rows = other_implementation(DATA, profile_for("h200"))
    return _by_case(rows), [
        "From the table's rows alone (and one MPS row of generate); H200 profile."
    ]


def part_kernels() -> tuple[list[Score], list[str]]:
    """Single kernels of left-out model shapes."""
    from splitwiser.validate.calibration.kernel_accuracy import held_out
    from splitwiser.validate.calibration.kernel_readers import read_kernels

    scores = []
    for name, folder in (("a100-80gb", "a100_sxm"), ("l40s", "l40s")):
        table = read_kernels(DATA / "op_tables" / folder, dtype="bfloat16")
        for row in held_out(table, gpu(name), sheet_profile(name)):
            kind, scope, rows, mape, p95 = row
            scores.append(Score(f"{name}, {kind.replace('_', ' ')}, {scope}", mape, p95, rows, 0.0))
    whole = [s for s in scores if "all rows" in s.group]
    return [_pooled(whole), *scores], [
        "Left out: every GEMM with n or k of three model widths, ..."
    ]


def part_public_engines() -> tuple[list[Score], list[str]]:
    """Engines end to end."""
    from splitwiser.validate.calibration.engine_accuracy import public_engines

    cases = public_engines(DATA)
    return _by_case([row for case in cases for row in case.rows]), []


def _by_case(rows: Sequence[Any]) -> list[Score]:
    groups: dict[str, list[float]] = {"all": []}
    for row in rows:
        groups["all"].append(row.error)
        groups.setdefault(row.case, []).append(row.error)
    return [score(group, errors) for group, errors in groups.items()]


def _pooled(scores: Sequence[Score]) -> Score:
    n = sum(s.n for s in scores)
    return Score("all", sum(s.mape * s.n for s in scores) / n, max(s.p95 for s in scores), n, 0.0)


PARTS: dict[str, Callable[[], tuple[list[Score], list[str]]]] = {
    "alone": part_alone,
    "corun": part_corun,
    "other_implementation": part_other_implementation,
    "kernels": part_kernels,
    "public_engines": part_public_engines,
}
PUBLIC = ("other_implementation", "kernels", "public_engines")


def show(console: Console, part: str, scores: Sequence[Score], notes: Sequence[str]) -> None:
    """Print one part's table."""
    table = Table(part.replace("_", " "), title_justify="left")
    for heading in ("n", "MAPE", "p95", "bias"):
        table.add_column(heading, justify="right")
    for s in scores:
        table.add_row(s.group, str(s.n), f"{s.mape:.1%}", f"{s.p95:.1%}", f"{s.bias:+.1%}")
    console.print(table)
    for line in notes:
        console.print(line, highlight=False)
    console.print()


def main() -> int:
    """Print what is asked for, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*PARTS], help="these parts only")
    parser.add_argument("--ablation", action="store_true", help="the law without each effect")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    console = Console(width=100, stderr=options.json)
    found: dict[str, Any] = {}
    for part in options.only or PARTS:
        if part in PUBLIC and not DATA.is_dir():
            print(f"accuracy: {part} is skipped: no public measurements at {DATA}", file=sys.stderr)
            continue
        scores, notes = PARTS[part]()
        show(console, part, scores, notes)
        found[part] = _document(scores)
    if options.ablation:
        scores = ablation(H200.read(RAW))
        show(
            console,
            "ablation",
            scores,
            ["Pairs, triples and quadruples of MPS, streams, green contexts."],
        )
        found["ablation"] = {s.group: s._asdict() for s in scores}
    if options.json:
        print(json.dumps(found, indent=2))
    return 0


def _document(scores: Sequence[Score]) -> dict[str, Any]:
    first, *rest = scores
    return {
        "mape": first.mape,
        "p95": first.p95,
        "n": first.n,
        "of": first.group,
        "groups": {s.group: {"mape": s.mape, "p95": s.p95, "n": s.n, "bias": s.bias} for s in rest},
    }


if __name__ == "__main__":
    sys.exit(main())
