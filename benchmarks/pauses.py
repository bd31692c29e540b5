"""How much faster prompts are after pauses, in the measured runs of one engine.

    python benchmarks/pauses.py

Of each committed run of `continuous` (benchmarks/h200_deployments) it takes the steps of one prompt
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

RUNS = sorted((Path(__file__).parent / "h200_deployments").glob("continuous-*.parquet"))
# Tokens; of shorter prompts launches bind the steps.
LENGTHS = ((700, 1000), (1000, 1400), (1400, 3900), (3900, 4300))
BEFORE = (0.03, 0.1, 0.3, 1.0, 3.0)  # s in which prompts count
WINDOW = 0.1  # s, of the shares that are printed
SHARES = (0.0, 0.1, 0.3, 0.5, 1.01)
FEWEST = 5  # steps, of which a median is printed
PLAUSIBLE = 0.3  # relative: steps further off had company that their rows do not tell


def prompt_steps(requests: pd.DataFrame) -> pd.DataFrame:
    """An engine's steps with prompts: begin and end, tokens, and how many prompts they computed."""
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
    """Print a table for each run, and return the exit status."""
    cost = CostModel(llm("meta-llama/Llama-3.1-8B"), gpu("h200"), profile_for("h200"))
    for run in RUNS:
        print(run.stem)
        _print(prompt_steps(pd.read_parquet(run)), cost)
    print(
        "medians of measured/predicted without a pause - 1; correlation of it with the part of the"
    )
    print("seconds before that went to prompts")
    return 0


def _print(steps: pd.DataFrame, cost: CostModel) -> None:
    alone = [cost.step(n, 1, *prompt_pairs(int(n), 0)).demand(0.0) for n in steps.tokens]
    gain = np.array([each.gain for each in alone])
    off = (steps.end - steps.begin).to_numpy() / [each.seconds for each in alone] - 1.0
    single = (steps.prompts == 1).to_numpy() & (np.abs(off) < PLAUSIBLE)
    share = computed(steps, WINDOW)
    between = list(pairwise(SHARES))
    print(
        f"{'prompt':>10}{'steps':>7}{'in a burst':>12}  of {WINDOW:g} s before, with prompts",
        end="",
    )
    print(" " * 13 + "correlation")
    print(" " * 30 + "".join(f"{f'{a:.0%}-{min(b, 1):.0%}':>10}" for a, b in between), end="  ")
    print("".join(f"{f'{seconds:g} s':>8}" for seconds in BEFORE))
    for least, most in LENGTHS:
        chosen = single & steps.tokens.between(least, most, inclusive="left").to_numpy()
        burst = np.median(1.0 / (1.0 + gain[chosen]) - 1.0)
        print(f"{least:>5}-{most:<4}{chosen.sum():>7}{burst:>+12.1%} ", end="")
        for low, high in between:
            here = off[chosen & (share >= low) & (share < high)]
            print(f"{np.median(here):>+10.1%}" if len(here) >= FEWEST else f"{'':>10}", end="")
        found = (np.corrcoef(off[chosen], computed(steps, s)[chosen])[0, 1] for s in BEFORE)
        print("  " + "".join(f"{each:>8.2f}" for each in found))
    print()


if __name__ == "__main__":
    sys.exit(main())
