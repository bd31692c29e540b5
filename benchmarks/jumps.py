"""How far pairs of neighbouring sizes differ: what no formula that is smooth in sizes can predict.

    python benchmarks/jumps.py [--device cuda:0 --out benchmarks/h200/jumps.jsonl]

With `--out` measures decode beside prompts whose lengths differ by one per cent each, under MPS
without limits (about a minute and a half); prints how far the rates scatter about a straight line
through their logarithms, and how far the shipped profile is from each. Interrupted, it goes on.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import numpy as np
from measured import h200_rows
from numpy.typing import NDArray

from splitwiser.models.gpu import gpu
from splitwiser.models.profile import profile_for
from splitwiser.validate.calibration.plans import LARGE
from splitwiser.validate.calibration.points import Plan, Point, Stage
from splitwiser.validate.calibration.step_plans import D, P, decode, prefill
from splitwiser.validate.calibration.steps import Predictor, StepRow

RAW = Path(__file__).parent / "h200" / "jumps.jsonl"
CENTRES, DECODES = (520, 1400, 2700), ((4, 800), (48, 1000))  # tokens; sequences at a context
EACH_WAY = 8  # lengths, one per cent of the centre apart
HEAD = f"{'prompts':>13}  {'decode':>8}  {'phase':<8}{'scatter':>9}{'at most':>9}{'MAPE':>8}{'host':>8}"


def plan() -> Plan:
    """Every decode beside every length around every centre."""
    lengths = (centre + place * centre // 100 for centre in CENTRES for place in _places())
    points = tuple(
        Point(((0, prefill(LARGE, tokens)), (1, decode(LARGE, *step))))
        for tokens, step in product(lengths, DECODES)
    )
    return Plan("jumps", "bfloat16", (), (Stage("mps", (P, D), points),))


def _places() -> range:
    return range(-EACH_WAY, EACH_WAY + 1)


def table(rows: list[StepRow], errors: NDArray[np.float64]) -> list[str]:
    """A line for each centre, decode step and phase; *errors* are of predicted rates, as *rows*.

    Every row has its hosts.
    """
    tokens = np.array([row.loads[0].tokens for row in rows])
    steps = [(row.loads[1].batch, row.loads[1].context) for row in rows]
    rates = np.array([row.rates for row in rows])
    launching = np.array([row.hosts for row in rows], dtype=float) * rates
    lines = [HEAD]
    for centre, step in product(CENTRES, DECODES):
        near = np.abs(tokens / centre - 1.0) < (EACH_WAY + 0.5) / 100.0
        chosen = near & np.array([each == step for each in steps])
        along = np.log(tokens[chosen])
        for lane, phase in enumerate(("prefill", "decode")):
            logs = np.log(rates[chosen, lane])
            off = np.abs(np.expm1(logs - np.polyval(np.polyfit(along, logs, 1), along)))
            size = np.abs(errors[chosen, lane]).mean()
            prompts = f"{tokens[chosen].min()}-{tokens[chosen].max()}"
            lines.append(
                f"{prompts:>13}  {step[0]:>3}x{step[1]:<4}  {phase:<8}{off.mean():>9.1%}"
                f"{off.max():>9.1%}{size:>8.1%}{np.median(launching[chosen, lane]):>8.0%}"
            )
    return lines


def main() -> int:
    """Measure if asked to, print, and return the exit status."""
    rows = h200_rows(__doc__, plan(), RAW)
    model = Predictor(gpu("h200"), profile_for("h200"))
    predicted = np.array([model.rates(row, row.hosts) for row in rows])
    errors = np.array([row.rates for row in rows]) / predicted - 1.0
    print(*table(rows, errors), sep="\n")
    print(
        "scatter: mean distance of a rate from the line through its neighbours' (log-log), and the"
        "\nlargest; MAPE: of the profile's predictions; host: median part of a step that its launches"
        "\ntake. Each prompt is 1 % longer than the last; where launches take most of one, a part of the"
        "\nscatter is the host's."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
