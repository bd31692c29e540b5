"""The balance of tasks that slow one another: how much of the time the kernels of each run.

The part x_i of the time in which the kernels of task i run is

    x_i = min(use_i, 1 / (cost_i + sum_j slower_ij * y_ij))

where y_ij is the part in which j runs of the time that further tasks leave to i and j: x_j itself,
where there are but two. `models/spatial.py` says what the coefficients are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log, sqrt

Side = tuple[float, float, float]
"""The most that x can be, the cost, 1 or more, and the slow-down by the other, above -1."""
Other = tuple[int, float, float, float]
"""The place of a task beside another, with what it slows that one, its most, and how they meet."""
Matrix = Sequence[Sequence[float]]
"""Of each task a row, in it of each task a value; those of a task with itself are 0."""

LEAST = 0.05  # part of the time that further tasks leave to two, at least
ROUNDS = 300  # at most, for three tasks and more; 10 are the rule
PRECISE = 1e-9  # relative
SHORTER = 0.7  # of a round's way, where the last one led no closer


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

    Each round goes, by logarithms, to what the last x allow, less what that way has in common with
    the change of ways since the round before: Anderson's acceleration of depth 1 (Walker and Ni,
    SIAM J. Numer. Anal. 49, 1715, 2011).
    """
    others: list[list[Other]] = [
        [(j, slower[i][j], most[i][j], part) for j, part in enumerate(row) if j != i]
        for i, row in enumerate(meet)
    ]
    at, before = [log(each / len(use)) for each in use], None
    step, closest = 1.0, inf
    for _ in range(ROUNDS):
        x = [exp(each) for each in at]
        ways = [
            log(_allowed(row, x, most_used, least_cost) / each)
            for row, each, most_used, least_cost in zip(others, x, use, cost, strict=True)
        ]
        far = max(map(abs, ways))
        if far < PRECISE:
            break
        if far > closest:
            step *= SHORTER
        closest = far
        moves = [step * way for way in ways]
        if before is not None:
            was, went = before
            turns = [way - last for way, last in zip(ways, went, strict=True)]
            back = _part(ways, turns)
            moves = [
                move - back * (here - there + step * turn)
                for move, here, there, turn in zip(moves, at, was, turns, strict=True)
            ]
        before = at, ways
        at = [here + move for here, move in zip(at, moves, strict=True)]
    return x


def _allowed(others: Sequence[Other], x: Sequence[float], use: float, cost: float) -> float:
    """Return the x of a task, where those of the *others* are known."""
    left = 1.0
    for j, _, _, meet in others:
        left -= meet * x[j]
    for j, slower, most, meet in others:
        cost += slower * min(x[j] / max(left + meet * x[j], LEAST), most)
    return min(1.0 / max(cost, 1.0), use)


def _part(way: Sequence[float], turn: Sequence[float]) -> float:
    """Return the part of *turn* that *way* contains, by least squares, within [-1, 1]."""
    length = sum(each * each for each in turn)
    along = sum(one * two for one, two in zip(way, turn, strict=True))
    return min(max(along / length, -1.0), 1.0) if length > 0.0 else 0.0
