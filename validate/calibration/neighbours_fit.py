"""What pairs say beyond the law of sharing (`models/neighbours.py`), from measured rates.

A Gaussian process: scales, size and noise are those of the greatest marginal likelihood (Rasmussen
and Williams 2006, chapter 5), with a weak prior on the scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import Bounds, minimize

from splitwiser.models.cost import Demand
from splitwiser.models.neighbours import Neighbours, matern, squared_distances
from splitwiser.models.profile import Profile
from splitwiser.models.sharing import sharing_for
from splitwiser.models.spatial import Implied, Spatial

Floats = NDArray[np.float64]

# What counts as near in each of `COORDINATES`, before the pairs are asked.
NEAR = np.array([2.7, 2.7, 2.7, 2.7, 0.9, 0.9, 1.4, 1.8])
SURE = 0.1  # weight of that prior on the log of a scale
SCALES = (0.1, 12.0)  # bounds, in NEAR
SIZE, NOISE = (0.02, 1.0), (0.02, 0.4)  # bounds of the standard deviations
SIZE_GUESS, NOISE_GUESS = 0.1, 0.05
OUTLIER = 0.7  # a factor of two is the most that one pair may tell
ROUNDS = 40
FEWEST = 40  # pairs, both ways, from which something is learnt
DIGITS = 6


class Pair(NamedTuple):
    """Two tasks that ran beside each other: the regime, their demands and their measured rates."""

    sharing: str
    demands: Sequence[Demand]
    rates: Sequence[float]


class Process(NamedTuple):
    """Scales of the coordinates, standard deviations of the process and of a measurement."""

    scales: Floats
    size: float
    noise: float


def with_neighbours(
    profile: Profile, pairs: Sequence[Pair], process: Process | None = None
) -> tuple[Profile, Process | None]:
    """Return *profile* with what *pairs* say beyond its law, and the process that told it.

    A *process* that is given is taken as it is. Nothing is learnt from too few pairs.
    """
    lawful = replace(profile, neighbours=None)
    laws: dict[str, Spatial] = {}
    told: list[Implied] = []
    for pair in pairs:
        law = laws.setdefault(pair.sharing, _law(pair.sharing, lawful))
        told += law.implied(pair.demands, pair.rates)
    if len(told) < FEWEST:
        return lawful, process
    places = np.array([each.place for each in told])
    factors = np.clip([each.log_factor for each in told], -OUTLIER, OUTLIER)
    # The less a neighbour ran, the less a step's rate says of what it costs to run beside it.
    noises = 1.0 / np.array([each.beside for each in told])
    found = process or _likeliest(places, factors, noises)
    squared = squared_distances(places / found.scales, places / found.scales)
    covariance = found.size**2 * matern(squared) + np.diag((found.noise * noises) ** 2)
    weights = found.size**2 * cho_solve(cho_factor(covariance), factors)
    known = Neighbours(
        tuple(np.round(found.scales, DIGITS).tolist()),
        tuple(map(tuple, np.round(places, DIGITS).tolist())),
        tuple(np.round(weights, DIGITS).tolist()),
    )
    return replace(profile, neighbours=known), found


def _law(sharing: str, profile: Profile) -> Spatial:
    law = sharing_for(sharing, profile)
    if not isinstance(law, Spatial):
        raise ValueError(f"{sharing!r} has no neighbours: its processes take turns")  # noqa: TRY004
    return law


def _likeliest(places: Floats, factors: Floats, noises: Floats) -> Process:
    """The process under which *factors* at *places* are the likeliest."""
    apart = ((places[:, None, :] - places[None, :, :]) / NEAR) ** 2
    start = np.append(np.zeros(len(NEAR)), np.log([SIZE_GUESS, NOISE_GUESS]))
    low, high = np.log([SCALES] * len(NEAR) + [SIZE, NOISE]).T
    done = minimize(
        unlikely,
        start,
        (apart, factors, noises**2),
        "L-BFGS-B",
        jac=True,
        bounds=Bounds(low, high),
        options={"maxiter": ROUNDS},
    )
    return Process(NEAR * np.exp(done.x[:-2]), *np.exp(done.x[-2:]).tolist())


def unlikely(logs: Floats, apart: Floats, factors: Floats, squares: Floats) -> tuple[float, Floats]:
    """Return minus the log likelihood and prior of a process, up to a constant, and its slope.

    *logs* are of the scales (in `NEAR`), the size and the noise; *apart* the squared distances of
    all pairs along each coordinate (in `NEAR`), *factors* what they told, *squares* the variance of
    each in that of the noise.
    """
    inverse = np.exp(-2.0 * logs[:-2])
    size, noise = np.exp(2.0 * logs[-2:])
    r = np.sqrt(3.0 * (apart @ inverse))
    fading = np.exp(-r)
    smooth = size * (1.0 + r) * fading
    factor = cho_factor(smooth + np.diag(noise * squares))
    solved = cho_solve(factor, factors)
    # Half the trace of `inner` times a change of the covariance is the change of the likelihood.
    inner = np.outer(solved, solved) - cho_solve(factor, np.eye(len(factors)))
    along = 3.0 * size * np.einsum("ij,ijk->k", inner * fading, apart) * inverse
    sure = [(inner * smooth).sum(), noise * (inner.diagonal() * squares).sum()]
    slope = -np.append(0.5 * along, sure)
    slope[:-2] += 2.0 * SURE * logs[:-2]
    log_det = float(np.log(factor[0].diagonal()).sum())
    value = 0.5 * float(factors @ solved) + log_det + SURE * float((logs[:-2] ** 2).sum())
    return value, slope
