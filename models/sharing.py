"""How fast running tasks progress beside each other on one GPU, by sharing regime.

A rate is seconds-alone of work done per second of wall time. The device is a fluid: rates hold
until the set of running tasks changes. Two laws bound every regime: DRAM traffic over all tasks
never exceeds the bandwidth, nor FLOP/s the peak.

In the spatial regimes (`mps`, `streams`, `green_contexts`) a step grows by the contention of busy
neighbours on other SMs (bandwidth, L2, power), and by the wait of each of its kernels behind a
neighbour's kernels on the same SMs (after `T_dec = t_dec + n_k*omega*tau` of the co-location
notes):

    t' = t * (1 + contention_i * sum (1-o_ij)*u_j) + kernels * wait_i * sum o_ij * u_j * tau_j

with u_j = busy_j/seconds_j, tau_j = busy_j/kernels_j, and o_ij the part of the SMs that both may
use. `time_slice` divides the device's time instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import sqrt

from splitwiser.models.cost import Demand
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

    A turn lasts *quantum* seconds and ends with the kernel then in flight, so that long kernels
    win longer turns; each turn costs *switch* more. Turns are dealt by water-filling: a process
    that needs less than its part yields the rest. It holds its turn through *hold* of the gaps in
    which it waits for its host's launches, and yields between two steps.
    """

    regime = "time_slice"

    def __init__(self, quantum: float, switch: float, hold: float) -> None:
        self.quantum = quantum
        self.switch = switch
        self.hold = hold

    def _shared(self, demands: Sequence[Demand]) -> list[float]:
        wanted, turns = [], []
        for seconds, busy, _, _, kernels, _, overhead, _, _, _ in demands:
            waiting = seconds - overhead - busy
            held = self.hold * waiting if waiting > 0.0 else 0.0
            wanted.append((busy + held) / seconds)
            turns.append(self.quantum + (busy / kernels if kernels > 0.0 else 0.0))
        useful = sum(turns)
        capacity = useful / (useful + self.switch * len(demands))
        given = water_fill(wanted, turns, capacity)
        return [got / want if want > 0.0 else 1.0 for got, want in zip(given, wanted, strict=True)]


class Spatial(Sharing):
    """Kernels of several tasks run at once: MPS, streams and green contexts.

    *contention* is the slow-down per busy neighbour on other SMs, *wait* the number of a
    neighbour's kernels that a kernel waits for on shared SMs; each is a pair, for steps bound by
    memory and by arithmetic. In between both go with the square root of the step's share of
    arithmetic. (A grid that needs every SM waits for all of them, a small one slips in.)
    *priority* is the factor on the wait of a pure decode step, whose stream has the higher
    priority, for steps that compute prompts. These wait for it by the inverse; equals wait as they
    would without.
    """

    def __init__(
        self,
        regime: str,
        contention: tuple[float, float],
        wait: tuple[float, float],
        priority: float = 1.0,
    ) -> None:
        self.regime = regime
        self._contention, self._contention_slope = contention[0], contention[1] - contention[0]
        self._wait, self._wait_slope = wait[0], wait[1] - wait[0]
        self._priority = priority

    def _shared(self, demands: Sequence[Demand]) -> list[float]:
        uses, queues = [], []
        shares = 0.0
        # Unpacked, for this is the inner loop of a simulation and fields of a NamedTuple are slow
        # to read.
        for seconds, busy, _, _, kernels, share, _, _, _, _ in demands:
            use = busy / seconds
            uses.append(use)
            queues.append(use * busy / kernels if kernels > 0.0 else 0.0)
            shares += share
        load, queue = sum(uses), sum(queues)
        crowded, apart = shares >= len(demands), shares <= 1.0
        rates = []
        for i, demand in enumerate(demands):
            seconds, _, _, _, kernels, _, overhead, compute, memory, prompt = demand
            if crowded:  # nobody is limited: every kernel meets every other
                beside, ahead = 0.0, queue - queues[i]
                if self._priority != 1.0:
                    ahead = self._with_priority(prompt, ahead, demands, queues)
            elif apart:
                beside, ahead = load - uses[i], 0.0
            else:
                beside, ahead = neighbours(i, demands, shares, uses, queues)
            total = compute + memory
            mix = sqrt(compute / total) if total > 0.0 else 0.0
            slower = 1.0 + (self._contention + self._contention_slope * mix) * beside
            wait = (self._wait + self._wait_slope * mix) * ahead * kernels
            rates.append(seconds / ((seconds - overhead) * slower + wait + overhead))
        return rates

    def _with_priority(
        self,
        prompt: float,
        ahead: float,
        demands: Sequence[Demand],
        queues: Sequence[float],
    ) -> float:
        """Return what runs *ahead* of a step, with the kernels of the other phase weighed."""
        others = sum(
            queues[i] for i, demand in enumerate(demands) if (demand.prompt > 0) != (prompt > 0)
        )
        factor = 1.0 / self._priority if prompt > 0 else self._priority
        return ahead + (factor - 1.0) * others


def neighbours(
    task: int,
    demands: Sequence[Demand],
    shares: float,
    uses: Sequence[float],
    queues: Sequence[float],
) -> tuple[float, float]:
    """Return how much of task number *task*'s neighbours runs beside it and ahead of it.

    The first is the sum of their uses on other SMs, the second of their queues on shared ones.
    """
    beside = ahead = 0.0
    own = demands[task].sm_share
    for i, other in enumerate(demands):
        if i != task:
            shared = overlap(own, other.sm_share, shares)
            beside += (1.0 - shared) * uses[i]
            ahead += shared * queues[i]
    return beside, ahead


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
            (value("contention_memory"), value("contention_compute")),
            (value("wait_memory"), value("wait_compute")),
            value("stream_priority") if regime == "streams" else 1.0,
        )
    raise unknown_name("sharing", regime, REGIMES)
