"""`Calibration`: a profile made from measurements, and all that is known of how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from splitwiser.models.profile import Profile
from splitwiser.validate.calibration.fitting import Fit, FittedParameter
from splitwiser.validate.calibration.observations import Errors, Residual


@dataclass(frozen=True, eq=False)
class Calibration:
    """A profile, the fits that made it in their order, and what none of them can know.

    `kernels` holds the errors of single kernels by kind, after their corrections; `held_out` the
    errors, by group, of rows that were predicted without their fold. `notes`
    say what these measurements cannot tell. `measuring` are the seconds that measuring took, 0 where
    raw measurements or a table were read, and `fitting` those of all fits, reading a table and
    held-out fits among them; `raw` is the folder of the raw measurements, if there is one.
    """

    profile: Profile
    fits: tuple[Fit, ...]
    kernels: Mapping[str, Errors] = field(default_factory=dict)
    held_out: Mapping[str, Errors] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    measuring: float = 0.0
    fitting: float = 0.0
    raw: Path | None = None

    @property
    def parameters(self) -> dict[str, tuple[FittedParameter, Fit]]:
        """What was said of each fitted parameter, and by which fit: the last that had it."""
        return {p.name: (p, fit) for fit in self.fits for p in fit.parameters}

    @property
    def residuals(self) -> list[Residual]:
        """The rows of all fits; a group that a later fit has again is the later fit's."""
        by_group: dict[str, list[Residual]] = {}
        for fit in self.fits:
            own = {residual.group: list[Residual]() for residual in fit.residuals}
            for residual in fit.residuals:
                own[residual.group].append(residual)
            by_group |= own
        return [residual for rows in by_group.values() for residual in rows]

    @property
    def errors(self) -> dict[str, Errors]:
        """The errors of kernels, then of the fitted rows by group (the last fit that had it)."""
        steps = {group: e for fit in self.fits for group, e in fit.errors_by_group().items()}
        return {**self.kernels, **steps}
