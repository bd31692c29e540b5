"""What the paper does not state and the simulator needs: six parameters of the profile.

Hugging Face's three are fitted to a number each (two sequential totals, and two processes on the
A100), vLLM's two and the A10's one to Figure 11, a line each. All other numbers of the paper judge
them, and everything else is the GPUs' data-sheet profiles as they ship.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import exp, log
from typing import NamedTuple

from paper_reported import FIGURE_8, FIGURE_9, FIGURE_11
from paper_runs import (
    BATCH,
    DOCUMENTS,
    SHARD_S,
    STARTUP_S,
    TOKENIZE_S,
    batch_seconds,
    engine_batch,
    generate,
)

from splitwiser.models.profile import Profile, sheet_profile

A100, A10 = "a100-40gb", "a10"  # the paper does not say which A100
FIT_PROCESSES = 2  # of Figure 8: more processes are for the simulator to foresee


class Line(NamedTuple):
    """A line of Figure 11, the parameter that it settles, and the values that are tried."""

    parameter: str
    lower: float
    upper: float
    processes: int
    sharing: str


LINES = (
    Line("kv_efficiency", 0.01, 1.0, 1, "exclusive"),
    Line("switch", 1e-6, 1e-3, 2, "time_slice"),
    Line("wait_memory", 1e-3, 4.0, 2, "mps"),
)


class Stated(NamedTuple):
    """A parameter of the reproduction: its value, unit, and where it is from."""

    name: str
    value: float
    unit: str
    origin: str


@dataclass(frozen=True, slots=True)
class Stacks:
    """The profiles of the paper's software: Hugging Face on both GPUs, vLLM 0.3 with OPT-125m on
    the A10.
    """

    generate_a100: Profile
    generate_a10: Profile
    engine: Profile


def solve(excess: Callable[[float], float], lower: float, upper: float) -> float:
    """Where `excess`, which rises or falls throughout, is 0; the nearer end where that is not in
    between.
    """
    from scipy.optimize import brentq

    at_lower, at_upper = excess(lower), excess(upper)
    if at_lower * at_upper > 0:
        return lower if abs(at_lower) < abs(at_upper) else upper
    return float(brentq(excess, lower, upper, rtol=1e-5))


def line_error(profile: Profile, column: int) -> float:
    """The sum of squares, in seconds, by which a line of Figure 11 is missed (a plot is read to so
    many seconds).
    """
    line = LINES[column]
    misses = (
        engine_batch(profile, count, line.processes, line.sharing) - times[column]
        for count, times in FIGURE_11.items()
    )
    return float(sum(miss**2 for miss in misses))


def fit_engine() -> Profile:
    """vLLM 0.3 with OPT-125m on the A10: each line of Figure 11 settles a parameter, in their
    order.
    """
    from scipy.optimize import minimize_scalar

    profile = sheet_profile(A10)
    for column, line in enumerate(LINES):
        trial = partial(_trial_error, profile, column)
        best = minimize_scalar(trial, bounds=(log(line.lower), log(line.upper)))
        profile = profile.with_values(**{line.parameter: exp(best.x)})
    return profile


def _trial_error(profile: Profile, column: int, log_value: float) -> float:
    return line_error(profile.with_values(**{LINES[column].parameter: exp(log_value)}), column)


def fit_generate(switch: float) -> tuple[Profile, Profile]:
    """The Hugging Face stack on the A100 and the A10: the same three parameters on both, and the
    A10's `switch` (s).

    The A100's batch is mostly bound by the host and the A10's by the GPU, so that each settles its
    own parameter; three rounds settle both.
    """
    batches, tokenizing = DOCUMENTS / BATCH, DOCUMENTS * TOKENIZE_S
    on_a100 = (FIGURE_8[1][2] - tokenizing) / batches
    on_a10 = (FIGURE_9["sequential"] - tokenizing) / batches
    values = {"launch_host": 50e-6, "memory_efficiency": 0.05}

    def profile(gpu: str, **changes: float) -> Profile:
        return sheet_profile(gpu).with_values(**{**values, **changes})

    for _ in range(3):
        values["memory_efficiency"] = solve(
            lambda v: batch_seconds(profile(A10, memory_efficiency=v)) - on_a10, 0.01, 1.0
        )
        values["launch_host"] = solve(
            lambda v: batch_seconds(profile(A100, launch_host=v)) - on_a100, 1e-6, 1e-3
        )
    total = FIGURE_8[FIT_PROCESSES][2]
    values["slice_hold"] = solve(
        lambda v: generate(profile(A100, slice_hold=v), FIT_PROCESSES).total - total, 0.0, 1.0
    )
    return profile(A100), profile(A10, switch=switch)


def fit() -> Stacks:
    """Fit both stacks; the time to switch between contexts is the GPU's, so that vLLM's fit serves
    both on the A10.
    """
    engine = fit_engine()
    return Stacks(*fit_generate(engine.value("switch")), engine)


def stated(stacks: Stacks) -> list[Stated]:
    """Every parameter that is not the data-sheet profile's: the paper's first, then the fitted
    ones.
    """
    hf, engine = stacks.generate_a100.value, stacks.engine.value
    both = "HF, both GPUs"
    return [
        Stated("tokenize_s (HF, one process)", TOKENIZE_S, "s", "paper: 14.3 s for ~30,000 inputs"),
        Stated("tokenize_s (HF, N processes)", SHARD_S, "s", "paper: prompt time 27 + 5.4 N s"),
        Stated("startup_s (HF; N vLLM engines: N x)", STARTUP_S, "s", "paper: the same line"),
        Stated(f"launch_host ({both})", hf("launch_host"), "s", "fitted: Fig. 8, sequential"),
        Stated(
            f"memory_efficiency ({both})",
            hf("memory_efficiency"),
            "1",
            "fitted: Fig. 9, sequential; eager kernels move far more bytes than the model counts",
        ),
        Stated(
            f"slice_hold ({both})",
            hf("slice_hold"),
            "1",
            f"fitted: Fig. 8, {FIT_PROCESSES} processes",
        ),
        Stated(
            "kv_efficiency (vLLM, A10)",
            engine("kv_efficiency"),
            "1",
            "fitted: Fig. 11, alone; stands for all of a step that grows with its batch",
        ),
        Stated("switch (A10, both stacks)", engine("switch"), "s", "fitted: Fig. 11, beside"),
        Stated("wait_memory (vLLM, A10)", engine("wait_memory"), "1", "fitted: Fig. 11, MPS"),
    ]
