"""The balance of tasks that slow one another: how much of the time the kernels of each run.

Two tasks that want the device all the time run the parts x and w of it, with

    1/x = cost_x + slower_x * w,   1/w = cost_w + slower_w * x

A task wants it for a part of the time only where its host is late with launches, and in the overhead
behind each of its steps. While it does, both run as above; in the rest the other has the device to
itself. Of several tasks each waits for every other as in their pair, for as long as that one wants
the device. `models/spatial.py` says what the coefficients are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

Matrix = Sequence[Sequence[float]]
"""Of each task a row, in it of each task a value; those of a task with itself are 0."""

ROUNDS = 300  # at most; 1 where all want the device all the time, else some 5
PRECISE = 1e-9
LEAST = 1e-6  # of the time: no task that wants the device runs less

# 1/(c + w) is the integral of t**(w/c)/c over t in [0, 1]; so the mean over waits that are there or not,
# each by itself, is that of a product. By Gauss-Legendre, in a variable u that resolves both ends:
# within 1e-5 for waits of up to a thousand costs.
_nodes, _weights = np.polynomial.legendre.leggauss(32)
_u = 0.5 + 0.5 * _nodes
_root = 1.0 - (1.0 - _u) ** 3
LATER = _root**2
WEIGHTS = _weights * 3.0 * _root * (1.0 - _u) ** 2  # dt = 6 root (1 - u)**2 du, du = half a node's


class Need(NamedTuple):
    """What a task has of the device at most.

    `use` is the most that its x can be, `idle` the overhead after a step and `cost` the step, both
    over the time of its kernels.
    """

    use: float
    idle: float
    cost: float

    def wants(self, pace: float) -> float:
        """Return the part of the time in which it wants the device, of which it then has *pace*."""
        return min(1.0 / (1.0 + self.idle * pace), self.use / pace)


def free(cost: float, slower: float, other_cost: float, slows: float) -> tuple[float, float]:
    """Return the x of two tasks that want the device all the time.

    w of the second put into x*(c + a*w) = 1 gives a quadratic with one positive root.
    """
    square, linear = cost * slows, cost * other_cost + slower - slows
    root = sqrt(max(linear * linear + 4.0 * square * other_cost, 0.0))
    # Of the two ways to write the root, the one in which nothing cancels.
    x = 2.0 * other_cost / (linear + root) if linear > 0.0 else (root - linear) / (2.0 * square)
    return x, 1.0 / (other_cost + slows * x)


def pair(one: Need, slower: float, two: Need, slows: float) -> tuple[float, float]:
    """Return the x of two tasks, *one* slowed by *slower* per x of *two*, and that one by *slows*.

    As `balanced`, in a fraction of its time: nearly all that a simulation asks for is pairs.
    """
    x, w = free(one.cost, slower, two.cost, slows)
    alone, other_alone = 1.0 / one.cost, 1.0 / two.cost
    part = other_part = 1.0
    for _ in range(ROUNDS):
        pace = alone + other_part * (x - alone)
        other_pace = other_alone + part * (w - other_alone)
        before, other_before = part, other_part
        part, other_part = one.wants(pace), two.wants(other_pace)
        if abs(part - before) < PRECISE and abs(other_part - other_before) < PRECISE:
            break
    return part * pace, other_part * other_pace


def balanced(needs: Sequence[Need], waits: Matrix) -> list[float]:
    """Return the x of several tasks.

    *waits*_ij is what task i waits for j over the time of its own kernels, while both want the
    device: what slows it per x of j, times the x of j beside it (`free`).
    """
    paces = [1.0 / max(need.cost + sum(row), 1.0) for need, row in zip(needs, waits, strict=True)]
    wanting = [need.wants(pace) for need, pace in zip(needs, paces, strict=True)]
    if min(wanting) < 1.0:
        own, all_waits = np.array([need.cost for need in needs]), np.array(waits)
        for _ in range(ROUNDS):
            parts = np.array(wanting)
            always = parts >= 1.0
            costs = np.maximum(own + all_waits[:, always].sum(axis=1), 1.0)
            late = LATER ** (all_waits[:, ~always] / costs[:, None])[:, :, None]
            at_times = parts[~always, None]
            # Of each task the mean over all ways in which the others want the device or do not.
            ways = (1.0 - at_times + at_times * late).prod(axis=1)
            paces = np.minimum(ways @ WEIGHTS / costs, 1.0).tolist()
            before = wanting
            wanting = [need.wants(pace) for need, pace in zip(needs, paces, strict=True)]
            if max(abs(now - then) for now, then in zip(wanting, before, strict=True)) < PRECISE:
                break
    return [part * pace for part, pace in zip(wanting, paces, strict=True)]


def slow_down(pace: float, cost: float, x: float, part: float) -> float:
    """Return what slows a task of this *pace* per x of a neighbour that runs *x* of the time, and
    wants the device a *part* of it.
    """
    beside = max((pace - (1.0 - part) / cost) / part, LEAST)
    return (1.0 / beside - cost) * part / x
