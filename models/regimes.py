"""A sharing regime, its physical limits, and the two regimes in which one process runs at a time.

A rate is seconds-alone of work done per second of wall time. The device is a fluid: rates hold
until the set of running tasks changes. Two laws bound every regime: DRAM traffic over all tasks
never exceeds the bandwidth, nor FLOP/s the peak.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from splitwiser.models.cost import Demand
from splitwiser.models.power import Power


class Sharing(ABC):
    """A sharing regime with its parameters; `rates` is a pure function of the running demands."""

    regime = ""

    def rates(self, demands: Sequence[Demand]) -> list[float]:
        """Return each task's rate, in (0, 1]; a task alone has exactly 1.0."""
        if len(demands) < 2:
            return [1.0] * len(demands)
        return within_limits(demands, self._shared(demands))

    @abstractmethod
    def _shared(self, demands: Sequence[Demand]) -> list[float]:
        """Return the rates of two tasks or more, before the physical limits."""


class Exclusive(Sharing):
    """One process has the whole device."""

    regime = "exclusive"

    def _shared(self, demands: Sequence[Demand]) -> list[float]:
        raise ValueError(f"'exclusive' runs one process, not {len(demands)} at once")


class TimeSlice(Sharing):
    """Processes without MPS take turns: one context is resident at a time.

    A turn lasts *quantum* seconds, or until nothing is launched any more. A step that holds the
    device for b seconds takes b/quantum + 1/2 turns on average: the last one is left half-way, and
    where hosts launch a step ahead, short steps share a turn by twos. A step with an overhead
    behind it was not launched ahead, and takes one turn at least. Each turn costs *switch* more.
    Processes alternate, so that time is dealt by their mean turns, by water-filling: who needs less
    than its part yields the rest. *hold* is the part of its launch gaps through which a process
    keeps its turn.

    The power limit acts on many turns together (`models/power.py`): what a step draws itself, less
    the sum over all of what they draw in their parts of the time, is left to it, and it is as much
    faster, at most as it is alone.
    """

    regime = "time_slice"

    def __init__(self, quantum: float, switch: float, hold: float, power: Power) -> None:
        self.quantum = quantum
        self.switch = switch
        self.hold = hold
        self.power = power

    def _shared(self, demands: Sequence[Demand]) -> list[float]:
        rates = self._dealt(demands)
        drawn = [self.power.drawn(each) for each in demands]
        mean = sum(
            rate * each.busy / each.seconds * own
            for rate, each, own in zip(rates, demands, drawn, strict=True)
        )
        return [
            min(1.0, rate * self.power.rise(each.gain, own - mean))
            for rate, each, own in zip(rates, demands, drawn, strict=True)
        ]

    def _dealt(self, demands: Sequence[Demand]) -> list[float]:
        """Return the rates at the clock that each step has alone."""
        wanted, turns = [], []
        for seconds, busy, _, _, _, _, overhead, *_ in demands:
            held = busy + self.hold * max(0.0, seconds - overhead - busy)
            wanted.append(held / seconds)
            least = 1.0 if overhead > 0.0 else 0.5
            turns.append(held / max(least, held / self.quantum + 0.5))
        useful = sum(turns)
        given = water_fill(wanted, turns, useful / (useful + self.switch * len(demands)))
        # Who is satisfied takes fewer turns, and nobody switches but from another's turn.
        often = [got / turn for got, turn in zip(given, turns, strict=True)]
        switching = self.switch * sum(min(own, sum(often) - own) for own in often)
        # Where that leaves less than was dealt, there are fewer turns too: in proportion, at least.
        capacity = max(1.0 - switching, sum(given) / (sum(given) + switching))
        given = water_fill(wanted, turns, capacity)
        return [got / want if want > 0.0 else 1.0 for got, want in zip(given, wanted, strict=True)]


def water_fill(wanted: Sequence[float], weights: Sequence[float], capacity: float) -> list[float]:
    """Return the weighted max-min fair parts of *capacity*: nobody gets more than wanted."""
    if sum(wanted) <= capacity:
        return list(wanted)
    given = [0.0] * len(wanted)
    left, weight = capacity, sum(weights)
    for i in sorted(range(len(wanted)), key=lambda i: wanted[i] / weights[i]):
        given[i] = min(wanted[i], left * weights[i] / weight)
        left -= given[i]
        weight -= weights[i]
    return given


def within_limits(demands: Sequence[Demand], rates: list[float]) -> list[float]:
    """Return *rates*, lowered together where all tasks would exceed the peak or the bandwidth."""
    compute = memory = 0.0
    for i, demand in enumerate(demands):
        progress = rates[i] / demand[0]
        compute += progress * demand[7]
        memory += progress * demand[8]
    most = max(compute, memory)
    return [rate / most for rate in rates] if most > 1.0 else rates
