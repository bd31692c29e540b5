"""`Correction`: measured over modelled time of a kind of kernel, over shapes and sizes.

The formulas of `models/kernels.py` give a kernel's time from the device; what is left is how the
library's kernels for some shapes differ from them. A correction keeps that as factors on a grid,
for a set of measured shapes. Between sizes it is linear in the logarithms; between shapes it is the
mean weighted by the inverse fourth power of the distance; far from every shape it fades to 1.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# At this distance (in logarithms: shapes e times apart in one size) a correction counts by half.
REACH = 1.0
NEAREST = 1e-3  # distances below it are the same shape


class Kind(NamedTuple):
    """What a correction's shapes and axes are."""

    coordinates: tuple[str, ...]
    axes: tuple[str, ...]


HEADS = ("heads", "kv_heads", "head_dim")
# `new` are the tokens of one prompt chunk; `spread` the KV tokens that all chunks of the step read
# over `new`: the number of chunks where nothing was cached. `bytes` are those of one kernel.
KINDS = {
    "gemm": Kind(("n", "k"), ("rows",)),
    "prompt_attention": Kind(HEADS, ("new", "spread")),
    "decode_fixed": Kind(HEADS, ("batch",)),
    "decode_slope": Kind(HEADS, ("batch",)),
    "mixed_fixed": Kind(HEADS, ("batch",)),
    "mixed_slope": Kind(HEADS, ("batch",)),
    "elementwise": Kind((), ("bytes",)),
}


def position(kind: str, shape: Sequence[float]) -> list[float]:
    """Return where a shape lies among those of its kind; distances there weigh corrections.

    GEMMs by log n and log k. Attention by the heads that make its blocks (the query heads in prompt
    attention, the KV heads in decoding), half of log (heads per KV head), log head_dim, and apart
    where every head has its own keys: libraries run other kernels for those.
    """
    if not shape:
        return [0.0]
    if kind == "gemm":
        return [math.log(size) for size in shape]
    heads, kv_heads, head_dim = shape
    group = heads / kv_heads
    blocks = heads if kind == "prompt_attention" else kv_heads
    return [math.log(blocks), 0.5 * math.log(group), math.log(head_dim), 2.0 * (group == 1.0)]


class Surface:
    """The logarithm of the factor of one shape, over the axes of its correction."""

    def __init__(self, axes: Sequence[Sequence[float]], logs: NDArray[np.float64]) -> None:
        self._axes = [[math.log(point) for point in axis] for axis in axes]
        self._logs = logs.reshape([len(axis) for axis in axes])
        self._rows: list[list[float]] = np.atleast_2d(self._logs).tolist()
        self._first = np.array(self._axes[0])  # interp would make one of the list each time

    def along(self, sizes: ArrayLike) -> NDArray[np.float64]:
        """Return the factors at *sizes* of the only axis, constant beyond its ends."""
        return np.exp(np.interp(np.log(np.maximum(sizes, 1e-300)), self._first, self._logs))

    def at(self, first: float, second: float) -> float:
        """Return the factor at a point of two axes, constant beyond their ends."""
        i, a = _bracket(self._axes[0], math.log(first))
        j, b = _bracket(self._axes[1], math.log(second))
        low, high = self._rows[i], self._rows[min(i + 1, len(self._rows) - 1)]
        k = min(j + 1, len(low) - 1)
        below = low[j] + b * (low[k] - low[j])
        above = high[j] + b * (high[k] - high[j])
        return math.exp(below + a * (above - below))


def _bracket(axis: list[float], x: float) -> tuple[int, float]:
    """Return the axis point before *x* and the fraction of the way to the next one."""
    i = min(max(bisect_right(axis, x) - 1, 0), max(len(axis) - 2, 0))
    if len(axis) == 1:
        return 0, 0.0
    return i, min(max((x - axis[i]) / (axis[i + 1] - axis[i]), 0.0), 1.0)


@dataclass(frozen=True)
class Correction:
    """Factors by shape (`KINDS` says of what) and, row by row, by the points of its axes.

    `factors[i]` belongs to `shapes[i]` and holds one factor for each combination of axis points,
    the last axis running fastest.
    """

    shapes: tuple[tuple[float, ...], ...]
    axes: tuple[tuple[float, ...], ...]
    factors: tuple[tuple[float, ...], ...]

    def surface(self, kind: str, shape: Sequence[float]) -> Surface:
        """Return the factors of a shape of *kind*: those of the shapes around it.

        Whatever else a profile says, they stay the same: fits and searches ask for few shapes often.
        """
        key = (kind, tuple(shape))
        if key not in self._surfaces:
            known = np.array([position(kind, other) for other in self.shapes])
            squared = ((known - position(kind, shape)) ** 2).sum(axis=1)
            weights = 1.0 / np.maximum(squared, NEAREST**2) ** 2
            logs = weights @ self._logs / (weights.sum() + REACH**-4)
            self._surfaces[key] = Surface(self.axes, logs)
        return self._surfaces[key]

    @cached_property
    def _surfaces(self) -> dict[tuple[str, tuple[float, ...]], Surface]:
        return {}

    @cached_property
    def _logs(self) -> NDArray[np.float64]:
        logs: NDArray[np.float64] = np.log(np.array(self.factors, dtype=float))
        return logs
