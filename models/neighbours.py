"""What measured pairs say of how a neighbour slows a step, beyond the law of `models/spatial.py`.

Which kernels a library picks, and how their blocks fall on the SMs, decides waits that no formula
of a few parameters follows, and yet similar pairs wait alike. So a factor on the slow-down of one
step beside another is interpolated between measured pairs: the mean of a Gaussian process (with
a Matern kernel of smoothness 3/2, Rasmussen and Williams 2006, eq. 4.17) over coordinates of both.
Far from all that was measured it is 1, and the law stands alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import log, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COORDINATES = (
    *("log of the mean seconds of a kernel", "the same of the neighbour"),
    *("log odds of arithmetic in the time at the limits", "the same of the neighbour"),
    *("whether it computes prompts", "the same of the neighbour"),
    *("share of the SMs", "the same of the neighbour", "share that both may use"),
    "whether the SMs are divided for good (green contexts)",
)
LEAST_MIX = 1e-4  # parts of arithmetic nearer to 0 and to 1 are not told apart


class Kind(NamedTuple):
    """What kernels a step has: the log of their mean seconds, the log odds of arithmetic, and
    whether (1.0) they compute prompts.
    """

    tau: float
    odds: float
    prompts: float

    @classmethod
    def of(cls, tau: float, mix: float, prompts: bool) -> Kind:
        """Return the kind of kernels of *tau* seconds that are arithmetic to the part *mix*."""
        inside = min(max(mix, LEAST_MIX), 1.0 - LEAST_MIX)
        return cls(log(tau), log(inside / (1.0 - inside)), float(prompts))


def coordinates(
    own: Kind, other: Kind, shares: tuple[float, float, float], parts: bool
) -> tuple[float, ...]:
    """Return where a step beside a neighbour stands, as `COORDINATES` names it.

    *shares* are those of both and the part of the SMs that both may use.
    """
    kinds = (own.tau, other.tau, own.odds, other.odds, own.prompts, other.prompts)
    return (*kinds, *shares, float(parts))


@dataclass(frozen=True)
class Neighbours:
    """Measured pairs: where each stands, the scale of each coordinate, and the weight of each pair."""

    scales: tuple[float, ...]
    points: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def log_factor(self, place: tuple[float, ...]) -> float:
        """Return the log of the factor on one's slow-down at *place* (`coordinates`)."""
        near = matern(squared_distances(np.array([place]) / self._scales, self._places))
        return float(near[0] @ self._weights)

    @cached_property
    def _scales(self) -> Floats:
        return np.array(self.scales)

    @cached_property
    def _places(self) -> Floats:
        return np.array(self.points) / self._scales

    @cached_property
    def _weights(self) -> Floats:
        return np.array(self.weights)


def squared_distances(first: Floats, second: Floats) -> Floats:
    """Return the squared distances between rows, shape (rows of *first*, rows of *second*)."""
    apart = first[:, None, :] - second[None, :, :]
    return np.asarray(np.einsum("ijk,ijk->ij", apart, apart))


def matern(squared: Floats) -> Floats:
    """Return the Matern kernel of smoothness 3/2 at *squared* distances, 1 at none."""
    r = sqrt(3.0) * np.sqrt(squared)
    return np.asarray((1.0 + r) * np.exp(-r))
