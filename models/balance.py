"""The balance of tasks that slow one another: how much of the time the kernels of each run.

The part of the time x_i in which the kernels of task i run solves, for all i at once,

    x_i * (cost_i + sum_j slower_ij * x_j) = 1 - sum_j yields_ij * x_j,   x_i <= use_i

with cost_i >= 1 and yields_ij < 1. `models/sharing.py` says what the coefficients are. Where there
are more than two, the kernels of j that i waits for last longer while those of a third k run:
slower_ij stands for slower_ij * (1 + sum_k slower_jk * x_k).
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAST = 0.02  # part of its time that is left to a task, however much it yields to many others
ROUNDS = 200  # at most, for three tasks and more; ten are the rule
PRECISE = 1e-11  # relative


def pair(
    one: tuple[float, float, float, float], two: tuple[float, float, float, float]
) -> tuple[float, float]:
    """Return the x of two tasks, each given by the most it can be, cost, slow-down and yield.

    x*(c + a*w) = 1 - y*w and w*(d + b*x) = 1 - z*x: w put into the first gives a quadratic with
    one root in (0, 1/z), since y < d and z < c. A task that cannot be as fast as there, because
    its host or its overhead hold it back, runs as fast as it can, and the other beside it.
    """
    (use, c, a, y), (other_use, d, b, z) = one, two
    square, linear, constant = c * b - a * z, c * d + a - b - y * z, y - d
    root = sqrt(max(linear * linear - 4.0 * square * constant, 0.0))
    # Of the two ways to write the root, the one in which nothing cancels.
    x = -2.0 * constant / (linear + root) if linear > 0.0 else (root - linear) / (2.0 * square)
    w = (1.0 - z * x) / (d + b * x)
    if x > use:
        x = use
        w = (1.0 - z * x) / (d + b * x)
        return x, min(w, other_use)
    if w > other_use:
        w = other_use
        x = min((1.0 - y * w) / (c + a * w), use)
    return x, w


def crowd(use: Array, cost: Array, slower: Array, yields: Array) -> Array:
    """Return the x of several tasks, by Newton's method on those that nothing else holds back.

    Far from the balance it may step the wrong way. There each task moves as if all others moved
    with it, and the less so the closer x is.
    """
    x = use / len(use)
    waits = np.maximum(slower, 0.0)
    for _ in range(ROUNDS):
        longer = waits * x
        thirds = longer.sum(axis=1) - longer.T
        full = slower + waits * thirds
        left = np.maximum(1.0 - yields @ x, LEAST)
        below = np.maximum(cost + full @ x, 1.0)
        target = np.minimum(left / below, use)
        far = np.abs(target / x - 1.0).max()
        if far < PRECISE:
            break
        free = left < below * use
        steep = full + longer @ waits
        np.fill_diagonal(steep, 0.0)
        slopes = np.where(free[:, None], (yields + x[:, None] * steep) / below[:, None], 0.0)
        steady = 1.0 + min(far, 1.0) * (np.abs(slopes) @ free)
        x = x + np.linalg.solve(slopes + np.diag(steady), target - x)
        x = np.clip(x, LEAST * target, use)
    return x
