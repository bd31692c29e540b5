"""How fast running tasks progress beside each other on one GPU, by sharing regime.

A rate is seconds-alone of work done per second of wall time. The device is a fluid: rates hold
until the set of running tasks changes. Two laws bound every regime: DRAM traffic over all tasks
never exceeds the bandwidth, nor FLOP/s the peak.

In the spatial regimes (`mps`, `streams`, `green_contexts`) kernels of all tasks run at once. With
x_j the part of the time in which j's kernels run (its seconds alone on its SMs, per second),

    x_i * (1 + P_i + sum_j (C_i*(1 - o_ij) + W_i*o_ij^q*(tau_j/tau_i)^e) * x_j) = 1 - Y*sum_j n_ij^r*x_j

and no more than its launches from the host allow. P_i is what i's clock loses to the power of the
others, C_i their contention on other SMs, W_i the wait of its kernels behind theirs on shared SMs
(tau: mean time of a kernel, o_ij: part of i's SMs that j may use too), Y what it yields to kernels
that run on the SMs which j needs of i's (n_ij). `time_slice` divides the device's time instead.
docs/model.md says what each was measured by.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import sqrt
from operator import mul
from typing import NamedTuple

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


class Spatial(Sharing):
    """Kernels of several tasks run at once: MPS, streams and green contexts.

    A step is bound by arithmetic to the part that its FLOP take of its FLOP and its traffic, both at
    the data sheet's limits; parameters between their two values go with that part.
    """

    def __init__(self, regime: str, beside: Beside) -> None:
        self.regime = regime
        self._beside = beside

    def _shared(self, demands: Sequence[Demand]) -> list[float]:
        use = [demand.busy / (demand.seconds - demand.overhead) for demand in demands]
        cost, slower, yields = self._couplings(demands, use)
        running = (_pair if len(demands) == 2 else _crowd)(use, cost, slower, yields)
        rates = []
        for demand, x in zip(demands, running, strict=True):
            alone = demand.seconds - demand.overhead
            rates.append(demand.seconds / (max(alone, demand.busy / x) + demand.overhead))
        return rates

    def _couplings(
        self, demands: Sequence[Demand], use: Sequence[float]
    ) -> tuple[list[float], list[list[float]], list[list[float]]]:
        """Return 1 + P_i, and by i and j what slows i's own progress and what it yields, per x_j."""
        b = self._beside
        tasks = []
        shares = 0.0
        for _, busy, _, _, kernels, share, _, compute, memory, _ in demands:
            mix = compute / (compute + memory) if compute > 0.0 else 0.0
            need = b.memory_spread + (1.0 - b.memory_spread) * min(1.0, mix / COMPUTE_BOUND)
            tasks.append((mix, min(share, need), share, busy / kernels if kernels > 0 else busy))
            shares += share
        cost, slower, yields = [], [], []
        for i, (mix, _, own, tau) in enumerate(tasks):
            wait = b.wait[0] + (b.wait[1] - b.wait[0]) * mix
            contention = b.contention * (1.0 - mix)
            hot = own
            slows, gives = [], []
            for j, (_, need, other, other_tau) in enumerate(tasks):
                if j == i:
                    slows.append(0.0)
                    gives.append(0.0)
                    continue
                shared = overlap(own, other, shares)
                needed = (own + need - 1.0) / own
                slow = contention * (1.0 - shared)
                if shared > 0.0:
                    ratio = (other_tau / tau) ** b.wait_exponent
                    slow += wait * shared**b.wait_overlap * ratio
                slows.append(slow)
                gives.append(b.yielded * needed**b.yield_overlap if needed > 0.0 else 0.0)
                hot += use[j] * min(other, 1.0 - own)
            power = b.power[0] + (b.power[1] - b.power[0]) * mix
            cooler = self._speed(own) / self._speed(hot) - 1.0 if own < hot else 0.0
            cost.append(1.0 + power * cooler)
            slower.append(slows)
            yields.append(gives)
        return cost, slower, yields

    def _speed(self, share: float) -> float:
        """The speed of one SM where *share* of them work, over that where all do: power limits it."""
        if share >= 1.0:
            return 1.0
        return saturation(share, self._beside.knee, self._beside.bend) / share


COMPUTE_BOUND = 0.6  # of a step's time at the data sheet's limits: its kernels want every SM
LEAST = 0.02  # part of the time that a task's kernels run, however many are beside it
ROUNDS = 40  # of the iteration for three tasks and more, which halves its error in each


def _pair(
    use: Sequence[float],
    cost: Sequence[float],
    slower: Sequence[Sequence[float]],
    yields: Sequence[Sequence[float]],
) -> tuple[float, float]:
    """Return the x of two tasks: the root of a quadratic, unless the host holds one of them back."""
    (c, d), (a, b), (y, z) = cost, (slower[0][1], slower[1][0]), (yields[0][1], yields[1][0])
    # x*(c + a*w) = 1 - y*w and w*(d + b*x) = 1 - z*x, w put into the first.
    square, linear, constant = c * b - a * z, c * d + a - b - y * z, y - d
    root = sqrt(max(linear * linear - 4.0 * square * constant, 0.0))
    x = -2.0 * constant / (linear + root) if linear + root > 0.0 else use[0]
    x = min(max(x, LEAST), use[0])
    w = min(max((1.0 - z * x) / (d + b * x), LEAST), use[1])
    return min(max((1.0 - y * w) / (c + a * w), LEAST), use[0]), w


def _crowd(
    use: Sequence[float],
    cost: Sequence[float],
    slower: Sequence[Sequence[float]],
    yields: Sequence[Sequence[float]],
) -> list[float]:
    """Return the x of several tasks, by damped iteration."""
    x = [min(1.0 / len(use), most) for most in use]
    for _ in range(ROUNDS):
        x = [
            0.5 * own
            + 0.5
            * min(max((1.0 - sum(map(mul, gives, x))) / (c + sum(map(mul, slows, x))), LEAST), most)
            for own, most, c, slows, gives in zip(x, use, cost, slower, yields, strict=True)
        ]
    return x


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
            ),
        )
    raise unknown_name("sharing", regime, REGIMES)
