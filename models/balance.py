"""The balance of tasks that slow one another: how much of the time the kernels of each run.

The part x_i of the time in which the kernels of task i run is

    x_i = min(use_i, 1 / (cost_i + sum_j slower_ij * y_ij))

where y_ij is the part in which j runs of the time that further tasks leave to i and j: x_j itself,
where there are but two. `models/spatial.py` says what the coefficients are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

Side = tuple[float, float, float]
"""The most that x can be, the cost, 1 or more, and the slow-down by the other, above -1."""
Matrix = Sequence[Sequence[float]]
"""Of each task a row, in it of each task a value; those of a task with itself are 0."""

LEAST = 0.05  # part of the time that further tasks leave to two, at least
ROUNDS = 300  # at most, for three tasks and more; 20 are the rule
PRECISE = 1e-9  # relative
STEP = 0.7  # of the way, by logarithms: what others then lose less, or more, is part of the rest
SHORTER = 0.7  # where a round led no closer


def balanced(one: Side, two: Side) -> tuple[float, float]:
    """Return the x of two tasks.

    w of the second put into x*(c + a*w) = 1 gives a quadratic with one positive root. A task that
    cannot be as fast as there, because its host or its overhead hold it back, runs as fast as it
    can, and the other beside it.
    """
    (use, c, a), (other_use, d, b) = one, two
    square, linear = c * b, c * d + a - b
    root = sqrt(max(linear * linear + 4.0 * square * d, 0.0))
    # Of the two ways to write the root, the one in which nothing cancels.
    x = 2.0 * d / (linear + root) if linear > 0.0 else (root - linear) / (2.0 * square)
    w = 1.0 / (d + b * x)
    if x > use:
        return use, min(1.0 / (d + b * use), other_use)
    if w > other_use:
        return min(1.0 / (c + a * other_use), use), other_use
    return x, w


def crowd(
    use: Sequence[float], cost: Sequence[float], slower: Matrix, most: Matrix, meet: Matrix
) -> list[float]:
    """Return the x of several tasks.

    Of its time *meet*_ij * x_j is j's, and not left to i and others. y_ij is at most *most*_ij,
    what j runs beside i alone where no host holds either back: more turns it does not get.
    """
    places = range(len(use))
    x = [each / len(use) for each in use]
    step, closest = STEP, inf
    for _ in range(ROUNDS):
        ours = [[part * each for part, each in zip(row, x, strict=True)] for row in meet]
        target = []
        for i in places:
            left = 1.0 - sum(ours[i])
            lost = 0.0
            for j in places:
                if j != i:
                    lost += slower[i][j] * min(x[j] / max(left + ours[i][j], LEAST), most[i][j])
            target.append(min(1.0 / max(cost[i] + lost, 1.0), use[i]))
        ratios = [wanted / each for wanted, each in zip(target, x, strict=True)]
        far = max(abs(ratio - 1.0) for ratio in ratios)
        if far < PRECISE:
            break
        if far > closest:
            step *= SHORTER
        closest = far
        x = [each * ratio**step for each, ratio in zip(x, ratios, strict=True)]
    return x
