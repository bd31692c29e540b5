"""The coordinates in which parameters are searched.

A step of 1 is a large change of the value: a coordinate is the value's logarithm, or, where the
value may be 0, its multiple of the first guess.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.profile import Meaning

Array = NDArray[np.float64]

RUNGS = 24  # values tried of a parameter over its range: at most a factor of 2 to 3 apart


@dataclass(frozen=True, eq=False)
class Search:
    """The coordinates of some parameters, from their start values and what is possible for each.

    `scale` is nan where the coordinate is a logarithm, and else the value at coordinate 1. `step`
    is that of the finite differences.
    """

    names: tuple[str, ...]
    meanings: tuple[Meaning, ...]
    first: Array
    scale: Array
    step: float

    @classmethod
    def of(cls, start: Mapping[str, float], meanings: Mapping[str, Meaning], step: float) -> Search:
        """Return the coordinates of the parameters *start*, within the bounds of *meanings*."""
        scale = [
            np.nan if meanings[name].lower > 0.0 else value or 1e-3 * meanings[name].upper
            for name, value in start.items()
        ]
        return cls(
            tuple(start),
            tuple(meanings[name] for name in start),
            np.array(list(start.values()), dtype=float),
            np.array(scale, dtype=float),
            step,
        )

    @property
    def start(self) -> Array:
        """The coordinates of the start values."""
        return self._coordinates(self.first)

    @property
    def lower(self) -> Array:
        """The coordinates of the smallest possible values."""
        return self._coordinates(self._least)

    @property
    def upper(self) -> Array:
        """The coordinates of the largest possible values."""
        return self._coordinates(self._most)

    def values(self, at: Array) -> dict[str, float]:
        """Return the parameters' values at these coordinates."""
        linear = np.isfinite(self.scale)
        values = np.where(linear, at * self.scale, np.exp(np.where(linear, 0.0, at)))
        inside = np.clip(values, self._least, self._most)  # rounding may leave the bounds
        return dict(zip(self.names, inside.tolist(), strict=True))

    def ladder(self, place: int) -> Array:
        """Return coordinates of parameter number *place* that cover its range by `RUNGS` factors."""
        meaning, scale = self.meanings[place], self.scale[place]
        low = meaning.lower if np.isnan(scale) else min(1e-3 * scale, 1e-3 * meaning.upper)
        values = np.geomspace(low, meaning.upper, RUNGS)
        return np.asarray(np.log(values) if np.isnan(scale) else values / scale)

    def spread(self, at: Array, deviation: Array) -> Array:
        """Return the standard deviations of the values from those of the coordinates."""
        linear = np.isfinite(self.scale)
        return deviation * np.where(linear, self.scale, np.exp(np.where(linear, 0.0, at)))

    def without(self, names: Collection[str]) -> Search:
        """Return the coordinates of the other parameters."""
        rest = [i for i, name in enumerate(self.names) if name not in names]
        return Search(
            tuple(self.names[i] for i in rest),
            tuple(self.meanings[i] for i in rest),
            self.first[rest],
            self.scale[rest],
            self.step,
        )

    @property
    def _least(self) -> Array:
        return np.array([meaning.lower for meaning in self.meanings])

    @property
    def _most(self) -> Array:
        return np.array([meaning.upper for meaning in self.meanings])

    def _coordinates(self, values: Array) -> Array:
        linear = np.isfinite(self.scale)
        logs = np.log(np.where(linear, 1.0, values))
        return np.where(linear, values / np.where(linear, self.scale, 1.0), logs)
