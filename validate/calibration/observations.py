"""Measured rows, how a profile predicts them, and the errors of its predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.profile import Profile

Array = NDArray[np.float64]

CONTRADICTION = 2.0  # repeated rows that differ by more than this factor measured two things


@dataclass(frozen=True, eq=False)
class Observations:
    """Measured rows and how a profile predicts them.

    `measured` and what `predict` returns are positive and in `units` ("s" for every row, if left
    out). Errors are summed up by `groups`. A row is known by group and title together: rows that
    share both are repetitions of one measurement.
    """

    measured: Array
    groups: Sequence[str]
    titles: Sequence[str]
    predict: Callable[[Profile], Array]
    units: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the lengths. ValueError where they differ."""
        rows = len(self.measured)
        object.__setattr__(self, "measured", np.asarray(self.measured, dtype=float))
        object.__setattr__(self, "units", tuple(self.units) or ("s",) * rows)
        for name in ("groups", "titles", "units"):
            if len(getattr(self, name)) != rows:
                raise ValueError(f"{len(getattr(self, name))} {name} for {rows} measured rows")

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.measured)

    @classmethod
    def concat(cls, *parts: Observations) -> Observations:
        """Return the rows of all *parts*, in their order."""
        return cls(
            np.concatenate([np.empty(0), *(part.measured for part in parts)]),
            [group for part in parts for group in part.groups],
            [title for part in parts for title in part.titles],
            lambda profile: np.concatenate(
                [np.empty(0), *(np.asarray(part.predict(profile)) for part in parts)]
            ),
            [unit for part in parts for unit in part.units],
        )

    def select(self, mask: Sequence[bool] | NDArray[np.bool_]) -> Observations:
        """Return the rows where *mask* is true."""
        rows: list[int] = np.flatnonzero(np.asarray(mask, dtype=bool)).tolist()
        return Observations(
            self.measured[rows],
            [self.groups[row] for row in rows],
            [self.titles[row] for row in rows],
            lambda profile: np.asarray(self.predict(profile))[rows],
            [self.units[row] for row in rows],
        )


class Errors(NamedTuple):
    """Of predicted/measured - 1: mean and 95th percentile of its size, rows, and its mean."""

    mape: float
    p95: float
    n: int
    bias: float


class Residual(NamedTuple):
    """A measured row and its prediction, both in `unit`."""

    group: str
    title: str
    unit: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Return predicted/measured - 1."""
        return self.predicted / self.measured - 1.0


def check_rows(observations: Observations, parameters: int, place: str = "") -> None:
    """Raise ValueError unless the rows are sound and more than the *parameters* they decide.

    *place* begins the message.
    """
    n = len(observations)
    if n <= parameters:
        rows = f"{n} row{'s' if n != 1 else ''}"
        raise ValueError(
            f"{place}{rows} cannot decide {parameters} parameters; at least {parameters + 1} needed"
        )
    seen: dict[tuple[str, str], tuple[float, float]] = {}
    for group, title, value in zip(
        observations.groups, observations.titles, observations.measured.tolist(), strict=True
    ):
        if not (np.isfinite(value) and value > 0.0):
            raise ValueError(
                f"{place}row {title!r} of {group!r} measured {value:g}; accepted: a positive number"
            )
        low, high = seen.get((group, title), (value, value))
        low, high = min(low, value), max(high, value)
        if high > CONTRADICTION * low:
            raise ValueError(
                f"{place}row {title!r} of {group!r} was measured as {low:g} and as {high:g};"
                f" repetitions may differ by a factor of {CONTRADICTION:g}"
            )
        seen[group, title] = low, high


def predictions(profile: Profile, observations: Observations, place: str) -> Array:
    """Return the predictions, each a positive number, or raise ValueError."""
    predicted = np.asarray(observations.predict(profile), dtype=float)
    if predicted.shape != observations.measured.shape:
        raise ValueError(f"{place}{predicted.size} predictions for {len(observations)} rows")
    wrong = np.flatnonzero(~(np.isfinite(predicted) & (predicted > 0.0)))
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(
            f"{place}row {observations.titles[row]!r} of {observations.groups[row]!r} is predicted"
            f" as {predicted[row]:g}; a positive number is needed"
        )
    return predicted


def errors_by_group(groups: Sequence[str], measured: Array, predicted: Array) -> dict[str, Errors]:
    """Return the errors of *predicted* by group, in the order in which groups first appear."""
    errors = np.asarray(predicted) / np.asarray(measured) - 1.0
    labels = np.array(groups)
    summary = {}
    for group in dict.fromkeys(groups):
        own = errors[labels == group]
        sizes = np.abs(own)
        summary[group] = Errors(
            mape=float(sizes.mean()),
            p95=float(np.percentile(sizes, 95)),
            n=len(own),
            bias=float(own.mean()),
        )
    return summary


def cross_validate(
    fit_rows: Callable[[Observations], Profile],
    observations: Observations,
    folds: Sequence[str],
) -> Array:
    """Return a prediction of every row by a profile that was fitted without its fold.

    *folds* labels each row, by its prefill size, split or model: rows of one label are left out
    together, and *fit_rows* fits the others. Raises ValueError for fewer than two labels, and with
    the label where the other rows cannot be fitted.
    """
    if len(folds) != len(observations):
        raise ValueError(f"{len(folds)} folds for {len(observations)} rows")
    labels = np.array(folds)
    if len(set(folds)) < 2:
        raise ValueError("cross-validation needs rows of two labels or more")
    predicted = np.empty(len(observations))
    for label in dict.fromkeys(folds):
        out = labels == label
        try:
            profile = fit_rows(observations.select(~out))
        except ValueError as error:
            raise ValueError(f"without {label!r}: {error}") from None
        predicted[out] = predictions(profile, observations.select(out), f"without {label!r}: ")
    return predicted
