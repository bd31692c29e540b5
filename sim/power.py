"""The power that a simulated GPU drew of late, and how much faster prompts are after a pause."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from splitwiser.models.cost import Demand
from splitwiser.models.power import Power

# How long the limit remembers: of steps of one prompt each of a measured engine, the time goes most
# closely with what was drawn in the 0.1 to 0.3 s before them (docs/runtime.md).
MEMORY_S = 0.1


class RecentPower:
    """The mean power of late, each moment weighted by exp(-age/MEMORY_S), in parts of what GEMMs
    draw that never stop.

    The rates of tasks are those of tasks that always go on as they do. Where less was drawn before
    they began, prompts are faster, by what that leaves to them (`models/power.py`).
    """

    def __init__(self, power: Power) -> None:
        self._power = power
        self._mean = 0.0
        self._drawn = 0.0  # since
        self._since = 0.0

    def draw(self, now: float, demands: Sequence[Demand], rates: Sequence[float]) -> None:
        """From *now* on tasks run at these *rates*; none, where the GPU idles."""
        self._mean = self._drawn + (self._mean - self._drawn) * exp((self._since - now) / MEMORY_S)
        self._since = now
        self._drawn = sum(
            rate * demand.busy / demand.seconds * self._power.drawn(demand)
            for demand, rate in zip(demands, rates, strict=True)
        )

    def rise(self, demand: Demand, seconds: float) -> float:
        """How much faster a running task is in the mean of the next *seconds*."""
        if demand.gain <= 0.0 or self._mean >= self._drawn or seconds <= 0.0:
            return 1.0
        fading = MEMORY_S / seconds * (1.0 - exp(-seconds / MEMORY_S))
        return self._power.rise(demand.gain, (self._drawn - self._mean) * fading)
