"""The fit of a profile's parameters to measurements: values, standard errors, what stays unknown.

A fit minimises log(predicted/measured) under a soft-L1 loss. It says of every parameter whether the
rows decide it; one that they do not keeps its start value and has no standard error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from splitwiser.models.profile import PARAMETERS, Parameter, Profile, check_parameter
from splitwiser.validate.calibration.coordinates import Array, Search
from splitwiser.validate.calibration.needs import NEEDS
from splitwiser.validate.calibration.observations import (
    Errors,
    Observations,
    Residual,
    check_rows,
    errors_by_group,
    predictions,
)
from splitwiser.validate.calibration.search import Decision, ErrorsOf, decide, nearest

STEP = 1e-3  # of the finite differences: far above the predictions' rounding
STRONG = 0.9  # correlation from which two parameters should be read together


class FittedParameter(NamedTuple):
    """What a fit says of one parameter, in SI units.

    `stderr` is None at a bound, and where the rows do not decide the value: then `identified` is
    false and `missing` says what to measure. Rows that know parameters only in combination name
    the others in `tied_to`; one of them is kept, the rest holds given its value.
    """

    name: str
    value: float
    stderr: float | None
    start: float
    at_bound: bool
    identified: bool
    kept: bool
    tied_to: tuple[str, ...]
    missing: str


class Correlation(NamedTuple):
    """The correlation of the errors of two fitted parameters, in [-1, 1]."""

    first: str
    second: str
    value: float


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted profile and what is known of it.

    `correlation` is the matrix over `decided`, the parameters with a standard error. `scatter` is
    the robust standard deviation of log(predicted/measured).
    """

    title: str
    profile: Profile
    parameters: tuple[FittedParameter, ...]
    decided: tuple[str, ...]
    correlation: Array
    residuals: tuple[Residual, ...]
    scatter: float

    @property
    def strong_correlations(self) -> tuple[Correlation, ...]:
        """The pairs whose correlation is above `STRONG`, either way; the strongest first."""
        pairs = [
            Correlation(first, second, float(self.correlation[i, j]))
            for j, second in enumerate(self.decided)
            for i, first in enumerate(self.decided[:j])
            if abs(self.correlation[i, j]) > STRONG
        ]
        return tuple(sorted(pairs, key=lambda pair: -abs(pair.value)))

    def errors_by_group(self) -> dict[str, Errors]:
        """Return the errors of the rows that were fitted, by group."""
        return errors_by_group(
            [row.group for row in self.residuals],
            np.array([row.measured for row in self.residuals]),
            np.array([row.predicted for row in self.residuals]),
        )


def fit(
    profile: Profile,
    start: Mapping[str, float],
    observations: Observations,
    *,
    noise: float = 0.05,
    step: float = STEP,
    title: str = "",
    needs: Mapping[str, str] = NEEDS,
) -> Fit:
    """Return the fit of *profile*'s parameters *start* (first guesses, SI units) to the rows.

    *noise* is the relative error beyond which a row counts linearly and no more by its square.
    *step* is the relative step of the finite differences: predictions that jump with the order of
    events, as those of whole traces do, need one that is larger than their jumps.
    *needs* says of a parameter which measurement identifies it. Raises ValueError, in one line,
    for fewer rows than would decide the parameters, a measurement or prediction that is not a
    positive number, and repeated rows that contradict each other.
    """
    for name, value in start.items():
        check_parameter(name, value)
    place = f"{title}: " if title else ""
    check_rows(observations, len(start), place)
    decision = decide(_search(start, step), _errors_of(profile, observations, place), noise)
    records = tuple(_record(name, start[name], decision, needs) for name in start)
    fitted = _with_records(profile, records, len(observations), title)
    rows = zip(
        observations.groups,
        observations.titles,
        observations.units,
        observations.measured.tolist(),
        predictions(fitted, observations, place).tolist(),
        strict=True,
    )
    return Fit(
        title=title,
        profile=fitted,
        parameters=records,
        decided=tuple(decision.stderr),
        correlation=decision.correlation,
        residuals=tuple(Residual(*row) for row in rows),
        scatter=decision.scatter,
    )


def refitted(
    profile: Profile,
    start: Mapping[str, float],
    observations: Observations,
    *,
    noise: float,
    tries: int | None = None,
) -> Profile:
    """Return *profile* with the parameters *start* fitted to fewer rows than decided them.

    What the rows decide was asked of all of them; here only the values move, from those found, and
    no further than *tries* bring them.
    """
    errors = _errors_of(profile, observations, "")
    return profile.with_values(**nearest(_search(start, STEP), errors, noise, tries))


def _search(start: Mapping[str, float], step: float) -> Search:
    return Search.of(start, {name: PARAMETERS[name] for name in start}, step)


def _errors_of(profile: Profile, observations: Observations, place: str) -> ErrorsOf:
    """Return log(predicted/measured) as a function of parameters' values."""
    logs = np.log(observations.measured)

    def errors(values: Mapping[str, float]) -> Array:
        predicted = predictions(profile.with_values(**values), observations, place)
        return np.asarray(np.log(predicted) - logs)

    return errors


def _record(
    name: str, start: float, decision: Decision, needs: Mapping[str, str]
) -> FittedParameter:
    """Return what *decision* says of the parameter *name*."""
    kept, tied_to = name in decision.kept, decision.tied.get(name, ())
    identified = not kept and not tied_to
    missing = "" if identified else needs.get(name, f"what moves the {PARAMETERS[name].text}")
    return FittedParameter(
        name=name,
        value=decision.values[name],
        stderr=decision.stderr.get(name),
        start=start,
        at_bound=name in decision.at_bound,
        identified=identified,
        kept=kept,
        tied_to=tied_to,
        missing=missing,
    )


def _with_records(
    profile: Profile, records: Sequence[FittedParameter], rows: int, title: str
) -> Profile:
    """Return *profile* with the values of *records*, each with its standard error and source."""
    parameters = dict(profile.parameters)
    what = f"{rows} rows: {title}" if title else f"{rows} rows"
    for record in records:
        if record.kept:
            before = parameters[record.name]
            known = before.source if before.value == record.value else "start value of a fit"
            unknown = "; not identified by "
            source = f"{known.partition(unknown)[0]}{unknown}{what}"
        else:
            source = f"fitted to {what}" + ", at its bound" * record.at_bound
            if record.tied_to:
                source += f", given {', '.join(record.tied_to)}"
        parameters[record.name] = Parameter(record.value, record.stderr, source)
    return replace(profile, parameters=parameters)
