"""The search for the values that explain rows best, and which of them the rows decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from splitwiser.validate.calibration.coordinates import Array, Search

Residuals = Callable[[Array], Array]
ErrorsOf = Callable[[Mapping[str, float]], Array]

GAIN = 1e-5  # of the loss, that moves parameters by less than 1 % of their standard errors
MOVE = 1e-6  # of coordinates, as a part: where rows are exact, every step gains much
SMOOTH = 1e-3  # step of the differences up to which residuals are taken to be smooth
PRESS = 0.05  # step from a bound that shows whether rows move with the parameter
FLOOR = 1e-3  # scatter below which rows are called exact: measurements repeat no better
TIED = 0.3  # part of the largest contribution from which a parameter takes part in a combination


class Decision(NamedTuple):
    """Where a search ended.

    `stderr` holds the parameters that the rows decide, `correlation` the matrix over them. `kept`
    are those that stay at their start because the rows do not decide them; `tied` names, for those
    known only in combination, the others of it.
    """

    values: dict[str, float]
    stderr: dict[str, float]
    correlation: Array
    at_bound: set[str]
    kept: set[str]
    tied: dict[str, tuple[str, ...]]
    scatter: float


def decide(search: Search, errors: ErrorsOf, noise: float) -> Decision:
    """Return the values with the least soft-L1 loss of *errors*, and what the rows say of each.

    A parameter is undecided if the rows narrow it less than its bounds do. Where a combination of
    several is, the least narrowed one is kept at its start, and the rest is decided given it.
    Residuals must change smoothly: what acts in steps, such as a tile size, cannot be searched so.
    """
    kept: dict[str, float] = {}
    tied: dict[str, tuple[str, ...]] = {}
    first = dict(zip(search.names, search.first.tolist(), strict=True))
    while True:
        free = search.without(set(kept))
        residuals = _on(free, errors, kept)
        at, at_bound, undecided = _settle(free, residuals, noise)
        if not undecided:
            break
        for name, others in undecided.items():
            kept[name] = first[name]
            if others:
                _tie(tied, (name, *others))
    scatter, stderr, correlation = _spread(free, residuals, at, at_bound, noise)
    decided = [i for i, name in enumerate(stderr) if name not in tied]
    return Decision(
        values={**kept, **free.values(at)},
        stderr={name: error for name, error in stderr.items() if name not in tied},
        correlation=correlation[np.ix_(decided, decided)],
        at_bound=at_bound,
        kept=set(kept),
        tied=tied,
        scatter=scatter,
    )


def nearest(
    search: Search, errors: ErrorsOf, noise: float, tries: int | None = None
) -> dict[str, float]:
    """Return the values with the least soft-L1 loss of *errors* in the basin of their start, or the
    best of so many *tries*.
    """
    return search.values(_solve(search, _on(search, errors, {}), search.start, noise, tries))


def _spread(
    free: Search, residuals: Residuals, at: Array, at_bound: set[str], noise: float
) -> tuple[float, dict[str, float], Array]:
    """Return the scatter of the rows, and standard errors and correlations inside the bounds."""
    inside = free.without(at_bound)
    places = [free.names.index(name) for name in inside.names]
    scatter = scatter_of(residuals(at), len(places), noise)
    slopes = _jacobian(free, residuals, at)[:, places]
    covariance = scatter**2 * np.linalg.pinv(slopes.T @ slopes)
    deviation = np.sqrt(np.diag(covariance))
    stderr = inside.spread(at[places], deviation).tolist()
    safe = np.where(deviation > 0.0, deviation, 1.0)
    same = np.eye(len(places), dtype=bool)
    correlation = np.where(same, 1.0, covariance / np.outer(safe, safe))
    return scatter, dict(zip(inside.names, stderr, strict=True)), correlation


def scatter_of(residuals: Array, parameters: int, noise: float) -> float:
    """Return the standard deviation of *residuals* that a soft-L1 fit's covariance takes.

    Huber, Robust Statistics (1981), section 7.6: K^2 sum(psi^2)/(n - p) over mean(psi')^2, where
    psi(r) = r/sqrt(1 + (r/noise)^2) is the derivative of the loss.
    """
    n = len(residuals)
    weight = 1.0 / np.sqrt(1.0 + (residuals / noise) ** 2)
    slope = weight**3
    mean = float(slope.mean())
    correction = 1.0 + parameters / n * float(slope.var()) / mean**2
    psi = residuals * weight
    return correction * float(np.sqrt(psi @ psi / (n - parameters))) / mean


def _on(free: Search, errors: ErrorsOf, kept: Mapping[str, float]) -> Residuals:
    """Return the residuals as a function of the coordinates, the *kept* values held.

    Those of the last coordinates are kept too: a search asks for them, and then for slopes there.
    """
    held = dict(kept)
    last: tuple[bytes, Array] | None = None

    def residuals(at: Array) -> Array:
        nonlocal last
        if last is None or last[0] != at.tobytes():
            last = at.tobytes(), errors({**held, **free.values(at)})
        return last[1]

    return residuals


def _settle(
    free: Search, residuals: Residuals, noise: float
) -> tuple[Array, set[str], dict[str, tuple[str, ...]]]:
    """Return the best coordinates, what lies at a bound there, and what the rows do not decide.

    A step takes the longer of host and device time, so that rows may not move at all with one of
    them near the start, and yet be explained far from it: such parameters are tried over their
    whole range before they are called undecided.
    """
    at, tried = _solve(free, residuals, free.start, noise), set[str]()
    while True:
        at, at_bound = _to_bounds(free, residuals, at, noise)
        undecided = _undecided(free, residuals, at, at_bound, noise)
        flat = [name for name, others in undecided.items() if not others and name not in tried]
        if not flat:
            return at, at_bound, undecided
        tried.update(flat)
        for name in flat:
            better = _elsewhere(free, residuals, at, name, noise)
            if better is not None:
                at = _solve(free, residuals, better, noise)


def _elsewhere(
    free: Search, residuals: Residuals, at: Array, name: str, noise: float
) -> Array | None:
    """Return coordinates with less loss that differ from *at* in *name* only, or None."""
    place = free.names.index(name)
    least, best = soft_l1(residuals(at), noise) * (1.0 - 1e-3) - 1e-12, None
    for coordinate in free.ladder(place):
        trial = at.copy()
        trial[place] = coordinate
        loss = soft_l1(residuals(trial), noise)
        if loss < least:
            least, best = loss, trial
    return best


def soft_l1(residuals: Array, noise: float) -> float:
    """Return the soft-L1 loss in units of *noise* squared."""
    return float(np.sum(np.sqrt(1.0 + (residuals / noise) ** 2) - 1.0))


def _solve(
    free: Search, residuals: Residuals, start: Array, noise: float, tries: int | None = None
) -> Array:
    """Return the coordinates with the least loss in the basin of *start*, or the best of *tries*."""
    from scipy.optimize import least_squares

    if not free.names:
        return start

    def slopes(at: Array) -> Array:
        return _jacobian(free, residuals, at)

    solution = least_squares(
        residuals,
        start,
        jac=slopes,
        bounds=(free.lower, free.upper),
        loss="soft_l1",
        f_scale=noise,
        x_scale="jac",
        ftol=GAIN,
        xtol=MOVE,
        gtol=MOVE,
        max_nfev=tries,
    )
    return np.asarray(solution.x, dtype=float)


def _jacobian(free: Search, residuals: Residuals, at: Array) -> Array:
    """Return d residual / d coordinate by differences of `Search.step`.

    Of residuals that are smooth one side tells the slope, in half the time: with both, a device's
    parameters move by thousandths of their standard errors. Those that jump need both, which they
    disturb less.
    """
    here, columns = residuals(at), []
    for i in range(len(free.names)):
        least = 1.0 if np.isnan(free.scale[i]) else max(abs(at[i]), 10 * free.step)
        size = free.step * least
        low, high = at.copy(), at.copy()
        high[i] = min(at[i] + size, free.upper[i])
        if free.step > SMOOTH or high[i] == at[i]:
            low[i] = max(at[i] - size, free.lower[i])
        below = residuals(low) if low[i] < at[i] else here
        above = residuals(high) if high[i] > at[i] else here
        columns.append((above - below) / (high[i] - low[i]))
    return np.stack(columns, axis=1) if columns else np.empty((len(here), 0))


def _undecided(
    free: Search, residuals: Residuals, at: Array, at_bound: set[str], noise: float
) -> dict[str, tuple[str, ...]]:
    """Return the parameters to keep, with the others of the combination that hides each.

    Between its bounds a value would be spread evenly if nothing were measured: a standard deviation
    of the range over sqrt(12). Rows decide a direction if they narrow it below that. What they
    press against a bound is decided.
    """
    inside = free.without(at_bound)
    places = [free.names.index(name) for name in inside.names]
    if not places:
        return {}
    scatter = max(scatter_of(residuals(at), len(places), noise), FLOOR)
    ranges = (inside.upper - inside.lower) / np.sqrt(12.0)
    weighed = _jacobian(free, residuals, at)[:, places] * ranges / scatter
    strength = np.linalg.norm(weighed, axis=0)
    unmoved: dict[str, tuple[str, ...]] = {
        name: () for name, moved in zip(inside.names, strength, strict=True) if not moved >= 1.0
    }
    if unmoved:
        return unmoved
    _, singular, directions = np.linalg.svd(weighed, full_matrices=False)
    if singular[-1] >= 1.0:
        return {}
    parts = np.abs(directions[-1])
    worst = int(parts.argmax())
    share = parts * strength
    partners = tuple(
        name
        for i, name in enumerate(inside.names)
        if i != worst and share[i] >= TIED * float(share.max())
    )
    return {inside.names[worst]: partners}


def _tie(tied: dict[str, tuple[str, ...]], names: tuple[str, ...]) -> None:
    """Note in *tied* that the rows know *names* only together."""
    for name in names:
        others = dict.fromkeys([*tied.get(name, ()), *names])
        tied[name] = tuple(other for other in others if other != name)


def _to_bounds(
    free: Search, residuals: Residuals, at: Array, noise: float
) -> tuple[Array, set[str]]:
    """Return the coordinates with those at a bound that the rows press against it.

    The search stays inside the bounds, and only comes close to one. Rows press if they are
    explained as well at the bound, and move with the parameter beyond *noise*.
    """
    least, reached = soft_l1(residuals(at), noise), set()
    for i, name in enumerate(free.names):
        width = free.upper[i] - free.lower[i]
        for bound, inward in ((free.lower[i], PRESS), (free.upper[i], -PRESS)):
            there, inside = at.copy(), at.copy()
            there[i], inside[i] = bound, bound + inward
            left = residuals(there)
            found = soft_l1(left, noise)
            if found > least * (1.0 + 1e-9) + 1e-12:
                continue
            moved = residuals(inside) - left
            strength = np.linalg.norm(moved) / PRESS * width / np.sqrt(12.0) / noise
            if strength >= 1.0:
                at, least = there, min(found, least)
                reached.add(name)
                break
    return at, reached
