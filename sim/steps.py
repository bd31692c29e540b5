"""The arithmetic of a run: steps whose durations form an arithmetic progression.

Between two changes of its batch a decode worker makes `steps` steps; step j (from 1) takes
`first + growth * (j - 1)` seconds alone, because the attention of a decode step reads a context that
grows by the same number of tokens every step. Their sum has a closed form, and so has its inverse:
that is why the cost of a simulation does not grow with the tokens generated.
"""

from __future__ import annotations

from math import ceil, sqrt


def work_of(steps: int, first: float, growth: float) -> float:
    """Seconds alone of the first `steps` steps of a run."""
    return steps * (first + growth * (steps - 1) * 0.5)


def steps_within(work: float, first: float, growth: float) -> float:
    """How many steps, as a real number, `work` seconds alone are worth (the root of `work_of`)."""
    linear = first - growth * 0.5
    # The form without cancellation; it also holds for growth 0.
    return 2.0 * work / (linear + sqrt(linear * linear + 2.0 * growth * work))


def steps_for(work: float, first: float, growth: float) -> int:
    """The least whole number of steps, at least 1, that takes `work` seconds alone or more."""
    steps = max(1, ceil(steps_within(work, first, growth)))
    # The root is right to rounding only; the sum decides.
    while work_of(steps, first, growth) < work:
        steps += 1
    while steps > 1 and work_of(steps - 1, first, growth) >= work:
        steps -= 1
    return steps
