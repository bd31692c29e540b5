"""What pairs say beyond the law of sharing (`models/neighbours.py`), from measured rates.

A Gaussian process: scales, size and noises are those of the greatest marginal likelihood (Rasmussen
and Williams 2006, chapter 5), with a weak prior on the scales. A step that its host held back tells
an upper bound; one that the process keeps without it tells nothing.
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
NEAR = np.array([2.7, 2.7, 2.7, 2.7, 1.8, 1.8, 0.9, 0.9, 1.4, 1.8])
SURE = 0.1  # weight of that prior on the log of a scale
SCALES = (0.1, 12.0)  # bounds, in NEAR
SPREADS = ((0.02, 1.0), (0.002, 0.4), (0.002, 0.4))  # bounds of the standard deviations
GUESSES = (0.1, 0.05, 0.05)
OUTLIER = 0.7  # a factor of two is the most that one pair may tell
ROUNDS = 40
BOUNDS = 10  # rounds in which bounds come and go
FEWEST = 40  # pairs, both ways, from which something is learnt
DIGITS = 6


class Pair(NamedTuple):
    """Two tasks that ran beside each other: the regime, whether decode had priority, their demands
    and their measured rates.
    """

    sharing: str
    decode_first: bool
    demands: Sequence[Demand]
    rates: Sequence[float]


class Process(NamedTuple):
    """Scales of the coordinates, and standard deviations: of the process, of a measured rate, and
    of what jumps from a pair to those next to it.
    """

    scales: Floats
    size: float
    noise: float
    jumps: float

    def covariance(self, places: Floats) -> Floats:
        """Return the covariance of the pairs at *places*, without their noise and jumps."""
        scaled = places / self.scales
        return self.size**2 * matern(squared_distances(scaled, scaled))


def with_neighbours(
    profile: Profile, pairs: Sequence[Pair], process: Process | None = None
) -> tuple[Profile, Process | None]:
    """Return *profile* with what *pairs* say beyond its law, and the process that told it.

    A *process* that is given is taken as it is. Nothing is learnt from too few pairs.
    """
    lawful = replace(profile, neighbours=None)
    laws: dict[tuple[str, bool], Spatial] = {}
    told: list[Implied] = []
    for pair in pairs:
        law = laws.setdefault(pair[:2], _law(*pair[:2], lawful))
        told += law.implied(pair.demands, pair.rates)
    if sum(not each.at_most for each in told) < FEWEST:
        return lawful, process
    places = np.array([each.place for each in told])
    factors = np.clip([each.log_factor for each in told], -OUTLIER, OUTLIER)
    # The less a neighbour ran, the less a step's rate says of what it costs to run beside it.
    squares = np.array([each.beside for each in told]) ** -2.0
    bounds = np.array([each.at_most for each in told])
    sure = ~bounds
    found = process or _likeliest(places[sure], factors[sure], squares[sure])
    counted, weights = _weighed(found, places, factors, squares, bounds)
    known = Neighbours(
        tuple(np.round(found.scales, DIGITS).tolist()),
        tuple(map(tuple, np.round(places[counted], DIGITS).tolist())),
        tuple(np.round(weights, DIGITS).tolist()),
    )
    return replace(profile, neighbours=known), found


def _weighed(
    process: Process, places: Floats, factors: Floats, squares: Floats, bounds: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], Floats]:
    """Return which pairs count, and their weights: of the *bounds* those that would be exceeded."""
    covariance = process.covariance(places)
    variances = process.jumps**2 + process.noise**2 * squares
    counted = ~bounds
    for _ in range(BOUNDS):
        among = covariance[np.ix_(counted, counted)] + np.diag(variances[counted])
        solved = cho_solve(cho_factor(among), factors[counted])
        exceeded = covariance[:, counted] @ solved > factors
        before, counted = counted, ~bounds | exceeded
        if np.array_equal(before, counted):
            break
    return before, process.size**2 * solved


def _law(sharing: str, decode_first: bool, profile: Profile) -> Spatial:
    law = sharing_for(sharing, profile, decode_first=decode_first)
    if not isinstance(law, Spatial):
        raise ValueError(f"{sharing!r} has no neighbours: its processes take turns")  # noqa: TRY004
    return law


def _likeliest(places: Floats, factors: Floats, squares: Floats) -> Process:
    """The process under which *factors* at *places* are the likeliest."""
    apart = ((places[:, None, :] - places[None, :, :]) / NEAR) ** 2
    start = np.append(np.zeros(len(NEAR)), np.log(GUESSES))
    low, high = np.log([SCALES] * len(NEAR) + [*SPREADS]).T
    done = minimize(
        unlikely,
        start,
        (apart, factors, squares),
        "L-BFGS-B",
        jac=True,
        bounds=Bounds(low, high),
        options={"maxiter": ROUNDS},
    )
    spreads = len(GUESSES)
    return Process(NEAR * np.exp(done.x[:-spreads]), *np.exp(done.x[-spreads:]).tolist())


def unlikely(logs: Floats, apart: Floats, factors: Floats, squares: Floats) -> tuple[float, Floats]:
    """Return minus the log likelihood and prior of a process, up to a constant, and its slope.

    *logs* are of the scales (in `NEAR`), the size, the noise and the jumps; *apart* the squared
    distances of all pairs along each coordinate (in `NEAR`), *factors* what they told, *squares* the
    variance of each in that of the noise.
    """
    scales = logs[: -len(GUESSES)]
    inverse = np.exp(-2.0 * scales)
    size, noise, jumps = np.exp(2.0 * logs[-len(GUESSES) :])
    r = np.sqrt(3.0 * (apart @ inverse))
    fading = np.exp(-r)
    smooth = size * (1.0 + r) * fading
    factor = cho_factor(smooth + np.diag(noise * squares + jumps))
    solved = cho_solve(factor, factors)
    # Half the trace of `inner` times a change of the covariance is the change of the likelihood.
    inner = np.outer(solved, solved) - cho_solve(factor, np.eye(len(factors)))
    along = 3.0 * size * np.einsum("ij,ijk->k", inner * fading, apart) * inverse
    alone = inner.diagonal()
    spreads = [(inner * smooth).sum(), noise * (alone * squares).sum(), jumps * alone.sum()]
    slope = -np.append(0.5 * along, spreads)
    slope[: len(scales)] += 2.0 * SURE * scales
    log_det = float(np.log(factor[0].diagonal()).sum())
    value = 0.5 * float(factors @ solved) + log_det + SURE * float((scales**2).sum())
    return value, slope
