"""How fast running tasks progress beside each other on one GPU, by sharing regime.

A rate is seconds-alone of work done per second of wall time. The device is a fluid: rates hold
until the set of running tasks changes. Two laws bound every regime: DRAM traffic over all tasks
never exceeds the bandwidth, nor FLOP/s the peak.

In the spatial regimes (`mps`, `streams`, `green_contexts`) kernels of all tasks run at once. With
x_j the part of the time in which j's kernels run (its seconds alone on its SMs, per second),

    1/x_i = h_i + (1 + P_i + sum_j (C_i*(1 - o_ij) + W_i*o_ij^q*(tau_j/tau_i)^e) * x_j)
                  / (1 - Y*sum_j n_ij^r*x_j)

and no more than its launches from the host allow. h_i is the overhead after i's step over the time
of its kernels, P_i what its clock loses to the power of the others, C_i their contention on other
SMs, W_i the wait of its kernels behind theirs on shared SMs (tau: mean time of a kernel, o_ij: part
of i's SMs that j may use too), Y what it yields to kernels that run on the SMs which j needs of i's
(n_ij). `time_slice` divides the device's time instead. docs/model.md states every symbol.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from splitwiser.models.balance import crowd, pair
from splitwiser.models.cost import Demand
from splitwiser.models.kernels import saturation
from splitwiser.models.names import unknown_name
from splitwiser.models.profile import Profile

REGIMES = ("exclusive", "time_slice", "mps", "streams", "green_contexts")


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

    A turn lasts *quantum* seconds, or until the step ends: the host launches the next one only
    then. A step that holds the device for b seconds thus takes b/quantum + 1/2 turns on average,
    one at least, and each turn costs *switch* more. Processes alternate, so that time is dealt by
    their mean turns, by water-filling: who needs less than its part yields the rest. *hold* is the
    part of its launch gaps through which a process keeps its turn.
    """

    regime = "time_slice"

    def __init__(self, quantum: float, switch: float, hold: float) -> None:
        self.quantum = quantum
        self.switch = switch
        self.hold = hold

    def _shared(self, demands: Sequence[Demand]) -> list[float]:
        wanted, turns = [], []
        for seconds, busy, _, _, _, _, overhead, _, _, _ in demands:
            held = busy + self.hold * max(0.0, seconds - overhead - busy)
            wanted.append(held / seconds)
            turns.append(held / max(1.0, held / self.quantum + 0.5))
        useful = sum(turns)
        given = water_fill(wanted, turns, useful / (useful + self.switch * len(demands)))
        # Who is satisfied takes fewer turns, and nobody switches but from another's turn.
        often = [got / turn for got, turn in zip(given, turns, strict=True)]
        switches = sum(min(own, sum(often) - own) for own in often)
        given = water_fill(wanted, turns, 1.0 - self.switch * switches)
        return [got / want if want > 0.0 else 1.0 for got, want in zip(given, wanted, strict=True)]


class Beside(NamedTuple):
    """The parameters of `Spatial`; each pair is for steps bound by memory, and by arithmetic."""

    wait: tuple[float, float]
    wait_exponent: float
    wait_overlap: float
    yielded: float
    yield_overlap: float
    memory_spread: float
    contention: float
    power: tuple[float, float]
    knee: float
    bend: float
    crowding: float


class Running(NamedTuple):
    """What the law of `Spatial` knows of a step.

    `use` is the part of its time alone in which its kernels run, `idle` its overhead over the time
    of its kernels, `tau` the mean time of a kernel in seconds, `mix` the part of it that is
    arithmetic; `share` and `need` are the parts of the SMs that it may use, and that it needs.
    """

    use: float
    idle: float
    tau: float
    mix: float
    share: float
    need: float


class Spatial(Sharing):
    """Kernels of several tasks run at once: MPS, streams and green contexts.

    A step is bound by arithmetic to the part that its FLOP take of its FLOP and its traffic, both at
    the data sheet's limits; parameters between their two values go with that part.
    """

    def __init__(self, regime: str, beside: Beside) -> None:
        self.regime = regime
        self._beside = beside
        # Shares are few, and the powers of them costly.
        self._meeting = cache(self._find_meeting)
        self._speed = cache(self._find_speed)

    def _shared(self, demands: Sequence[Demand]) -> list[float]:
        if len(demands) == 2:  # nearly all that a simulation asks for
            one, two = self._running(demands[0]), self._running(demands[1])
            shares = one[4] + two[4]
            a, y, hotter = self._coupling(one, two, shares)
            b, z, warmer = self._coupling(two, one, shares)
            x, w = pair(
                (one[0], self._cost(one, hotter), a, y), (two[0], self._cost(two, warmer), b, z)
            )
            return [x / one[0], w / two[0]]
        tasks = [self._running(demand) for demand in demands]
        shares = sum(task.share for task in tasks)
        couplings = np.array(
            [
                [(0.0, 0.0, 0.0) if i is j else self._coupling(i, j, shares) for j in tasks]
                for i in tasks
            ]
        )
        heat = couplings[:, :, 2].sum(axis=1).tolist()
        cost = np.array([self._cost(*each) for each in zip(tasks, heat, strict=True)])
        cost *= [self._crowding(task, tasks, shares) for task in tasks]
        use = np.array([task[0] for task in tasks])
        running = crowd(use, cost, couplings[:, :, 0], couplings[:, :, 1])
        return [float(rate) for rate in running / use]

    def _running(self, demand: Demand) -> Running:
        seconds, busy, _, _, kernels, share, overhead, compute, memory, _ = demand
        mix = compute / (compute + memory) if compute > 0.0 else 0.0
        spread = self._beside.memory_spread
        need = spread + (1.0 - spread) * mix / COMPUTE_BOUND if mix < COMPUTE_BOUND else 1.0
        return Running(
            busy / seconds,
            overhead / busy,
            busy / kernels if kernels > 0.0 else busy,
            mix,
            share,
            min(need, share),
        )

    def _coupling(self, one: Running, two: Running, shares: float) -> tuple[float, float, float]:
        """Return what slows *one* and what it yields, per x of *two*, and the SMs that *two* heats.

        The overhead that follows one's kernels is no longer for what they yield: a term of the
        slow-down takes it out.
        """
        _, idle, tau, mix, own, _ = one
        use, _, other_tau, _, other, need = two
        b = self._beside
        apart, met, hotter = self._meeting(own, other, shares)
        slow = b.contention * (1.0 - mix) * apart
        if met > 0.0:
            wait, most = b.wait
            slow += (wait + (most - wait) * mix) * met * (other_tau / tau) ** b.wait_exponent
        needed = (own + need - 1.0) / own
        give = b.yielded * needed**b.yield_overlap if needed > 0.0 else 0.0
        return slow - idle * give, give, use * hotter

    def _find_meeting(self, own: float, other: float, shares: float) -> tuple[float, float, float]:
        """Return what depends on shares alone.

        The part of a neighbour's kernels on other SMs, the weight of the wait for those on the
        same, and the SMs that a task may not use and its neighbour may.
        """
        shared = overlap(own, other, shares)
        met = shared**self._beside.wait_overlap if shared > 0.0 else 0.0
        return 1.0 - shared, met, min(other, 1.0 - own)

    def _crowding(self, task: Running, tasks: Sequence[Running], shares: float) -> float:
        """Return how much longer kernels bound by arithmetic take that meet more than one neighbour."""
        met = sum(
            other.use * (1.0 - self._meeting(task.share, other.share, shares)[0])
            for other in tasks
            if other is not task
        )
        return 1.0 + self._beside.crowding * task.mix * max(0.0, met - 1.0)

    def _cost(self, task: Running, heat: float) -> float:
        """Return 1 + P_i + h_i: what a second of kernels takes beside others that only heat."""
        cost = 1.0 + task[1]
        if heat > 0.0:
            own = task[4]
            power, most = self._beside.power
            cooler = self._speed(own) / self._find_speed(own + heat) - 1.0
            cost += (power + (most - power) * task[3]) * cooler
        return cost

    def _find_speed(self, share: float) -> float:
        """The speed of one SM where *share* of them work, over that where all do: power limits it."""
        if share >= 1.0:
            return 1.0
        return saturation(share, self._beside.knee, self._beside.bend) / share


COMPUTE_BOUND = 0.6  # of a step's time at the data sheet's limits: its kernels want every SM


def overlap(own: float, other: float, shares: float) -> float:
    """Return the part of a neighbour's kernels that meet a task's on the same SMs, in [0, 1].

    SM shares are limits, not places: of two tasks at least (own + other - 1)/own of the task's SMs
    are shared; of many tasks that together may use *shares* > 1 times the device, a task meets on
    average (shares - 1) others, by their sizes.
    """
    if shares <= 1.0:
        return 0.0
    pair = (own + other - 1.0) / own
    crowd = (shares - 1.0) * other / (shares - own)
    return min(max(pair, crowd), 1.0)  # rounding may lift a whole overlap above 1


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


def sharing_for(regime: str, profile: Profile) -> Sharing:
    """Return the regime called *regime* with the parameters of *profile*."""
    value = profile.value
    if regime == "exclusive":
        return Exclusive()
    if regime == "time_slice":
        return TimeSlice(value("quantum"), value("switch"), value("slice_hold"))
    if regime in ("mps", "streams", "green_contexts"):
        return Spatial(
            regime,
            Beside(
                (value("wait_memory"), value("wait_compute")),
                value("wait_exponent"),
                value("wait_overlap"),
                value("yielded"),
                value("yield_overlap"),
                value("memory_spread"),
                value("contention"),
                (value("power_memory"), value("power_compute")),
                value("compute_knee"),
                value("compute_bend"),
                value("crowding"),
            ),
        )
    raise unknown_name("sharing", regime, REGIMES)
