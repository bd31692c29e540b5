"""Steps of chat traffic on 75 and 25 % of the SMs, measured and predicted.

    python benchmarks/limited.py [--device cuda:0 --out benchmarks/h200/limited.jsonl]

With `--out` measures prompts and decode steps of the sizes that `deployments.py` meets, alone and
beside each other, under MPS and in green contexts (about a minute); prints how long each step took,
how far off the shipped profile is, and how often as long as alone it took beside the other.
Interrupted, it goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from measured import h200_rows

from splitwiser.models.gpu import gpu
from splitwiser.models.profile import profile_for
from splitwiser.validate.calibration.plans import LARGE
from splitwiser.validate.calibration.points import Lane, Plan, Point, Stage
from splitwiser.validate.calibration.step_plans import alone, decode, prefill
from splitwiser.validate.calibration.steps import Predictor, StepRow

RAW = Path(__file__).parent / "h200" / "limited.jsonl"
PREFILL, DECODE = 75.0, 25.0  # per cent of the SMs
TOKENS = (330, 612, 1046, 1057, 1099, 1893, 2980, 4041)
DECODES = ((16, 1250), (26, 1180), (34, 1210), (48, 1300))  # sequences at a context


def plan() -> Plan:
    """Both regimes; under MPS also pairs without limits."""
    limited = (Lane("prefill", PREFILL), Lane("decode", DECODE))
    mps = (
        *alone(0, [prefill(LARGE, tokens) for tokens in TOKENS]),
        *alone(1, [decode(LARGE, *step) for step in DECODES]),
        *_pairs(0, DECODES),
        *_pairs(2, DECODES[1:2]),
    )
    green = (
        *alone(0, [prefill(LARGE, tokens) for tokens in TOKENS[::2]]),
        *alone(1, [decode(LARGE, *step) for step in DECODES[1:3]]),
        *_pairs(0, DECODES[1:3]),
    )
    parts = (Lane("prefill", PREFILL, 0), Lane("decode", DECODE, 0))
    stages = (
        Stage("mps", (*limited, Lane("prefill"), Lane("decode")), mps),
        Stage("green_contexts", parts, green),
    )
    return Plan("limited", "bfloat16", (), stages)


def _pairs(place: int, decodes: Sequence[tuple[int, int]]) -> Iterator[Point]:
    """Every prompt in the lane at *place*, beside every decode step in the next one."""
    for tokens, step in product(TOKENS, decodes):
        yield Point(((place, prefill(LARGE, tokens)), (place + 1, decode(LARGE, *step))))


def table(rows: Sequence[StepRow], model: Predictor) -> Iterator[str]:
    """A line for each row: its regime, SMs, and of each step its size, seconds, error and slow-down."""
    calm = {
        (row.sharing, row.shares[0], row.loads[0].title): 1.0 / row.rates[0]
        for row in rows
        if row.alone
    }
    yield f"{'':<20}" + f"{'step':>12}{'ms':>8}{'predicted':>11}{'alone x':>9}" * 2
    for row in rows:
        cells = ""
        for load, share, rate, told in zip(
            row.loads, row.shares, row.rates, model.rates(row, row.hosts), strict=True
        ):
            before = calm.get((row.sharing, share, load.title))
            slower = "" if before is None or row.alone else f"{1.0 / rate / before:.2f}"
            cells += f"{load.title:>12}{1e3 / rate:>8.1f}{rate / told - 1.0:>+11.1%}{slower:>9}"
        sms = "+".join(f"{share * gpu('h200').sms:.0f}" for share in row.shares)
        yield f"{row.sharing.split('_')[0]:<10}{sms:<10}{cells}"


def main() -> int:
    """Measure if asked to, print, and return the exit status."""
    rows = h200_rows(__doc__, plan(), RAW)
    print(*table(rows, Predictor(gpu("h200"), profile_for("h200"))), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
