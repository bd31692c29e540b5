"""Corrections from what the formulas leave over: compact tables for a profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from splitwiser.models.corrections import HEADS, Correction
from splitwiser.models.profile_file import LEAST
from splitwiser.validate.calibration.kernel_predict import Array
from splitwiser.validate.calibration.kernel_table import groups

if TYPE_CHECKING:
    import pandas as pd

MOST_POINTS = 160  # of an axis; more rows of a GEMM tell nothing that a file should hold
LEAST_SIDE = 128  # of a matrix; the formulas alone answer for smaller ones
# The times bend where the grid fills and where caches end. A line has to choose: rows of contexts
# in this range, where requests mostly are, count so many times as much as others.
USUAL, WEIGHT = (128.0, 4096.0), 2.0
NOISE = 0.05  # relative errors of a line beyond it count linearly

Line = tuple[float, float]  # seconds, seconds per attended token
Key = tuple[float, int, int, int]  # batch, heads, kv_heads, head_dim


def gemm_correction(left: pd.DataFrame) -> Correction:
    """Return the factors of every (n, k) over the rows m that were measured."""
    axis = _thinned(np.unique(left["m"]))
    left = left[left[["n", "k"]].min(axis=1) >= LEAST_SIDE]
    shapes, factors = [], []
    for shape, chosen in groups(left, ("n", "k")):
        rows = left.iloc[chosen].sort_values("m")
        shapes.append(shape)
        factors.append(_interpolated(axis, rows["m"], rows["factor"]))
    return _correction(shapes, [axis], factors)


def prompt_correction(left: pd.DataFrame) -> Correction:
    """Return the factors of every head shape over new tokens and spread.

    Where a chunk size was not measured at a spread, it has the factor of the nearest that was. A
    size measured at one spread only (whole prompts) says nothing of others: it takes theirs from
    the sizes around it, and a shape without any takes how the factors change from the other shapes.
    """
    left = left.assign(spread=left["batch"] * (left["new"] + left["cached"]) / left["new"])
    news = _thinned(np.unique(left["new"]))
    most = int(np.ceil(np.log2(left["spread"].max())))
    spreads = np.asarray(2.0 ** np.arange(most + 1), dtype=float)
    grids = {
        shape: _prompt_grid(left.iloc[chosen], news, spreads)
        for shape, chosen in groups(left, HEADS)
    }
    known = [grid - grid[:, :1] for grid, several in grids.values() if several]
    change = np.mean(known, axis=0) if known else np.zeros((len(news), len(spreads)))
    factors = [
        np.exp(grid if several else grid[:, :1] + change).ravel()
        for grid, several in grids.values()
    ]
    return _correction(list(grids), [news, spreads], factors)


def _prompt_grid(rows: pd.DataFrame, news: Array, spreads: Array) -> tuple[Array, bool]:
    """Return log-factors over sizes and spreads, and whether any size has several spreads."""
    sizes = np.unique(rows["new"])
    by_size, several = [], []
    for size in sizes:
        same = rows[rows["new"] == size].groupby("spread")["factor"].median()
        by_size.append(np.log(_interpolated(spreads, same.index, same)))
        several.append(len(same) > 1)
    grid, whole = np.array(by_size), np.ones(len(sizes), dtype=bool)
    columns = []
    for place, spread in enumerate(spreads):
        used = np.array(several) if spread > 1.0 and any(several) else whole
        columns.append(np.interp(np.log(news), np.log(sizes[used]), grid[used, place]))
    return np.array(columns).T, any(several)


def decode_lines(frame: pd.DataFrame) -> dict[Key, Line]:
    """Return the line through the times of each batch and head shape, over attended tokens.

    Least squares of relative errors, errors beyond `NOISE` counting linearly and rows of `USUAL`
    contexts more than others. A column `prompts`
    holds seconds that are not the decoding sequences'.
    """
    lines: dict[Key, Line] = {}
    for (batch, *shape), chosen in groups(frame, ("batch", *HEADS)):
        rows = frame.iloc[chosen]
        seconds = rows["seconds"].to_numpy(float)
        attended = batch * rows["context"].to_numpy(float)
        if len(np.unique(attended)) < 3:
            continue
        others = rows["prompts"].to_numpy(float) if "prompts" in rows else np.zeros(len(rows))
        columns = np.c_[np.ones(len(rows)), attended] / seconds[:, None]
        target = 1.0 - others / seconds
        usual = np.where(rows["context"].between(*USUAL), WEIGHT**0.5, 1.0)
        weights = usual
        for _ in range(8):
            line = _not_negative(columns * weights[:, None], target * weights)
            errors = columns @ line - target
            weights = usual * (1.0 + (errors / NOISE) ** 2) ** -0.25
        heads, kv_heads, head_dim = map(int, shape)
        lines[batch, heads, kv_heads, head_dim] = (float(line[0]), float(line[1]))
    return lines


def _not_negative(columns: Array, target: Array) -> Array:
    from scipy.optimize import nnls

    scale = np.abs(columns).max(axis=0)
    return np.asarray(nnls(columns / scale, target)[0] / scale)


def line_corrections(
    lines: Mapping[Key, Line], modelled: Callable[..., Line]
) -> tuple[Correction, Correction]:
    """Return the factors on the fixed times and on the slopes of all lines, over the batch."""
    axis = np.unique([key[0] for key in lines])
    by_shape: dict[tuple[int, ...], list[tuple[float, float, float]]] = {}
    for key, line in lines.items():
        fixed, slope = (
            np.clip(measured / model, LEAST, 1.0 / LEAST)
            for measured, model in zip(line, modelled(*key), strict=True)
        )
        by_shape.setdefault(key[1:], []).append((key[0], fixed, slope))
    shapes = [tuple(map(float, shape)) for shape in by_shape]
    columns = [np.array(rows).T for rows in by_shape.values()]
    fixed = [_interpolated(axis, batch, factor) for batch, factor, _ in columns]
    slope = [_interpolated(axis, batch, factor) for batch, _, factor in columns]
    return _correction(shapes, [axis], fixed), _correction(shapes, [axis], slope)


def elementwise_correction(left: pd.DataFrame) -> Correction:
    """Return the factors over the bytes of a kernel, by powers of two: means of what is near."""
    logs = np.log2(left["bytes"].to_numpy(float))
    axis = np.arange(np.floor(logs.min()), np.ceil(logs.max()) + 1.0)
    weights = np.maximum(0.0, 1.0 - np.abs(axis[:, None] - logs))
    near = weights.sum(axis=1) > 0
    factors = np.log(left["factor"].to_numpy(float))
    means = weights[near] @ factors / weights[near].sum(axis=1)
    return _correction([()], [2.0 ** axis[near]], [np.exp(means)])


def _interpolated(axis: Array, points: object, factors: object) -> Array:
    """Return factors at the points of an axis, linear in the logarithms, constant beyond."""
    logs = np.interp(
        np.log(axis), np.log(np.asarray(points, float)), np.log(np.asarray(factors, float))
    )
    return np.asarray(np.exp(logs))


def _thinned(axis: Array) -> Array:
    """Return at most `MOST_POINTS` of an axis, its ends among them."""
    if len(axis) <= MOST_POINTS:
        return np.asarray(axis, dtype=float)
    chosen = np.unique(np.linspace(0, len(axis) - 1, MOST_POINTS).round().astype(int))
    return np.asarray(axis[chosen], dtype=float)


def _correction(
    shapes: Sequence[tuple[float, ...]], axes: Sequence[Array], factors: Sequence[Array]
) -> Correction:
    """Return a correction whose factors have the four digits that a file holds."""
    return Correction(
        tuple(shapes),
        tuple(tuple(map(float, axis)) for axis in axes),
        tuple(
            tuple(float(f"{factor:.4g}") for factor in np.clip(row, LEAST, 1.0 / LEAST))
            for row in factors
        ),
    )
