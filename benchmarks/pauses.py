"""How much faster prompts are after pauses, in the measured runs of one engine.

    python benchmarks/pauses.py

Of the committed run of `continuous` (benchmarks/h200_deployments) it takes the steps of one prompt
alone, and compares each with what the H200 profile says of such steps that follow each other without
a pause, and of their kernels in a burst (`Demand.gain`); by how much of the time before it the engine
computed prompts.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from splitwiser.models.catalogue import llm
from splitwiser.models.cost import CostModel
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import profile_for
from splitwiser.models.work import prompt_pairs

RUN = Path(__file__).parent / "h200_deployments" / "continuous-0.parquet"
LENGTHS = (
    (700, 1000),
    (1000, 1400),
    (1400, 3900),
    (3900, 4300),
)  # tokens: above, launches bind none
BEFORE = (0.03, 0.1, 0.3, 1.0, 3.0)  # s in which prompts count
WINDOW = 0.1  # s, of the shares that are printed
SHARES = (0.0, 0.1, 0.3, 0.5, 1.01)
PLAUSIBLE = 0.3  # relative: steps further off had company that their rows do not tell


def prompt_steps() -> pd.DataFrame:
    """The engine's steps with prompts: begin and end, tokens, and how many prompts they computed."""
    requests = pd.read_parquet(RUN)
    steps = requests.groupby("first_token").agg(
        begin=("scheduled", "max"), tokens=("prompt_tokens", "sum"), prompts=("scheduled", "size")
    )
    return steps.reset_index(names="end").sort_values("begin", ignore_index=True)


def computed(steps: pd.DataFrame, seconds: float) -> NDArray[np.float64]:
    """The part of the *seconds* before each step in which prompts were computed."""
    begin, end = steps.begin.to_numpy(), steps.end.to_numpy()
    inside = np.minimum(end[None, :], begin[:, None]) - np.maximum(
        begin[None, :], begin[:, None] - seconds
    )
    return np.asarray(np.clip(np.tril(inside, -1), 0.0, None).sum(axis=1) / seconds)


def main() -> int:
    """Print the table, and return the exit status."""
    cost = CostModel(llm("meta-llama/Llama-3.1-8B"), gpu("h200"), profile_for("h200"))
    steps = prompt_steps()
    alone = [cost.step(n, 1, *prompt_pairs(int(n), 0)).demand(0.0) for n in steps.tokens]
    steady = np.array([each.seconds for each in alone])
    gain = np.array([each.gain for each in alone])
    off = (steps.end - steps.begin).to_numpy() / steady - 1.0
    single = (steps.prompts == 1).to_numpy() & (np.abs(off) < PLAUSIBLE)
    share = computed(steps, WINDOW)
    print(
        f"{'prompt':>10}{'steps':>7}{'in a burst':>12}  prompts computed in the {WINDOW:g} s before"
    )
    print(" " * 31 + "".join(f"{f'{a:.0%}-{min(b, 1):.0%}':>10}" for a, b in _between(SHARES)))
    for least, most in LENGTHS:
        chosen = single & steps.tokens.between(least, most, inclusive="left").to_numpy()
        cells = []
        for low, high in _between(SHARES):
            here = off[chosen & (share >= low) & (share < high)]
            cells.append(f"{np.median(here):>+10.1%}" if len(here) >= 5 else f"{'':>10}")
        burst = np.median(1.0 / (1.0 + gain[chosen]) - 1.0)
        print(f"{least:>5}-{most:<4}{chosen.sum():>7}{burst:>+12.1%}  " + "".join(cells))
    print(
        "\ncorrelation of a step's time with the part of the time before it with prompts, for windows"
    )
    print(" " * 17 + "".join(f"{f'{seconds:g} s':>9}" for seconds in BEFORE))
    for least, most in (LENGTHS[1], LENGTHS[3]):
        chosen = single & steps.tokens.between(least, most, inclusive="left").to_numpy()
        found = (np.corrcoef(off[chosen], computed(steps, s)[chosen])[0, 1] for s in BEFORE)
        print(f"{least:>10}-{most:<6}" + "".join(f"{each:>9.2f}" for each in found))
    print("\nmedians of measured/predicted without a pause - 1")
    return 0


def _between(edges: tuple[float, ...]) -> list[tuple[float, float]]:
    return list(pairwise(edges))


if __name__ == "__main__":
    sys.exit(main())
