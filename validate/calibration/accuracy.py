"""Errors of predictions, summed up for a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """Errors of a group of rows as fractions: mean and 95th percentile of the size, rows, mean."""

    group: str
    mape: float
    p95: float
    n: int
    bias: float


def score(group: str, errors: Iterable[float]) -> Score:
    """Sum up predicted/measured - 1 of some rows. ValueError where there are none."""
    all_errors = np.array(list(errors), dtype=float)
    if not len(all_errors):
        raise ValueError(f"{group}: no rows")
    size = np.abs(all_errors)
    return Score(
        group,
        float(size.mean()),
        float(np.quantile(size, 0.95)),
        len(size),
        float(all_errors.mean()),
    )


def scores(named: Sequence[tuple[str, float]]) -> list[Score]:
    """Sum up (group, error) by group, in the order of their first rows."""
    groups: dict[str, list[float]] = {}
    for group, error in named:
        groups.setdefault(group, []).append(error)
    return [score(group, errors) for group, errors in groups.items()]
