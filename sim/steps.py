"""The arithmetic of a run: steps whose durations form an arithmetic progression.

Between two changes of its batch a decode worker makes `steps` steps; step j (from 1) takes `first +
growth * (j - 1)` seconds alone, because the attention of a decode step reads a context that grows
by the same number of tokens every step. Their sum has a closed form, and so has its inverse: that
is why the cost of a simulation does not grow with the tokens generated.
"""

from __future__ import annotations

from math import ceil, sqrt


def work_of(steps: int, first: float, growth: float) -> float:
    """Seconds alone of the first `steps` steps of a run."""
    return steps * (first + growth * (steps - 1) * 0.5)


def steps_for(work: float, first: float, growth: float) -> int:
    """The least whole number of steps, at least 1, that takes `work` seconds alone or more."""
    linear = first - growth * 0.5
    # The root of `work_of`, in the form without cancellation; it also holds for growth 0.
    root = 2.0 * work / (linear + sqrt(linear * linear + 2.0 * growth * work))
    steps = ceil(root) or 1
    # The root is right to rounding only; the sum decides.
    while steps * (first + growth * (steps - 1) * 0.5) < work:
        steps += 1
    while steps > 1 and (steps - 1) * (first + growth * (steps - 2) * 0.5) >= work:
        steps -= 1
    return steps
