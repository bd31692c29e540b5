"""The power limit: what GEMMs gain where it is not met.

Steps whose GEMMs never stop meet the limit, and go at the pace that it lets them keep up
(`sustained`). It acts on the mean of some tenth of a second, in which other steps and pauses draw
less: the further that mean lies below what a step draws itself, the nearer the step comes to the
pace of its kernels in a burst (`Demand.gain`), by `clock_relief` for each part of what power
sustains. Fitted to phases that take turns.
"""

from __future__ import annotations

from typing import NamedTuple

from splitwiser.models.cost import Demand
from splitwiser.models.profile import Profile


class Power(NamedTuple):
    """The power limit of a GPU: `sustained` and `clock_relief` of its profile."""

    sustained: float
    relief: float

    @classmethod
    def of(cls, profile: Profile) -> Power:
        """Return the limit that a profile states."""
        return cls(profile.value("sustained"), profile.value("clock_relief"))

    @property
    def known(self) -> bool:
        """Whether it was seen to hold GEMMs back at all."""
        return self.sustained < 1.0 and self.relief > 0.0

    def drawn(self, demand: Demand) -> float:
        """Return the part of what power sustains that a step draws while its kernels run."""
        return min(1.0, demand.compute / (self.sustained * demand.busy))

    def rise(self, gain: float, left: float) -> float:
        """Return how much faster a step with this *gain* is, where so much is *left* to it."""
        return 1.0 + gain * min(1.0, self.relief * max(0.0, left))
