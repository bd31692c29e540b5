"""How many kernels each step runs where three and four run at once under MPS without limits.

    python benchmarks/turns.py

Of the committed rows (benchmarks/h200) it takes those in which the GPU bound every step, and prints
for each the kernels that its prompts and its decodes ran in a second, over those of the prompts in
the mean.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

from splitwiser.models.gpu import gpu
from splitwiser.models.profile import profile_for
from splitwiser.validate.calibration.steps import Predictor, StepRow, read_steps

RAW = Path(__file__).parent / "h200"
FILES = ("calibration", "heldout-14", "heldout-15")
HELD_BACK = 0.9  # of what its host allows: whose rate is above waits for its launches at times


def judged(row: StepRow) -> bool:
    """Whether a row tells turns: prompts and decodes, none of them held back by its host."""
    if len(row.loads) < 3 or row.regime != "mps" or row.repeat or row.hosts is None:
        return False
    held = any(host * rate > HELD_BACK for host, rate in zip(row.hosts, row.rates, strict=True))
    return not held and 0 < sum(load.prompts > 0 for load in row.loads) < len(row.loads)


def main() -> int:
    """Print the table, and return the exit status."""
    sheet = gpu("h200")
    model = Predictor(sheet, profile_for("h200"))
    print(f"{'row':<70}{'us of prompts':>14}  kernels: prompts, decodes")
    apart, passing = [], dict[int, list[tuple[float, float]]]()
    for name in FILES:
        for row in filter(judged, read_steps(RAW / f"{name}.jsonl", sheet.sms)):
            demands = model.demands(row)
            kernels = [
                rate * demand.kernels for rate, demand in zip(row.rates, demands, strict=True)
            ]
            prompts = [i for i, load in enumerate(row.loads) if load.prompts]
            decodes = [i for i, load in enumerate(row.loads) if not load.prompts]
            turns = fmean(kernels[i] for i in prompts)
            each = [count / turns for count in kernels]
            long = sum(demands[i].busy / demands[i].kernels for i in prompts)
            cells = (" ".join(f"{each[i]:.2f}" for i in these) for these in (prompts, decodes))
            print(f"{row.title:<70}{long * 1e6:>14.0f}  {', '.join(cells)}")
            apart += [abs(each[i] - 1.0) for i in prompts if len(prompts) > 1]
            passing.setdefault(len(decodes), []).append((long, fmean(each[i] for i in decodes)))
    print(
        f"\nprompts' kernels from their mean: {fmean(apart):.0%} in the mean, at most {max(apart):.0%}"
    )
    for decodes_there, found in sorted(passing.items()):
        least, most = (min(found)[1], max(found)[1])
        print(
            f"kernels of a decode for each of a prompt, {decodes_there} there: {least:.1f} beside the"
            f" shortest kernels of prompts, {most:.1f} beside the longest ({len(found)} rows)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
