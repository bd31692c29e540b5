"""Kernels of several tasks at once on one GPU: MPS, streams and green contexts.

With x_j the part of the time in which j's kernels run (its seconds alone on its SMs, per second),

    1/x_i = h_i + (1 + P_i + sum_j S_ij * x_j) / (1 - Y*sum_j n_ij^r*x_j)
    1 + S_ij = (1 + C_i*(1 - o_ij) + w_ij) * G_ij
    1/w_ij^2 = 1/(W_i*o_ij*O_i^(q-1)*(tau_j/tau_i)^e)^2 + 1/f_ij^2

and no more than its launches from the host allow. Where more than two run, S_ij stands for
S_ij * (1 + sum_k S_jk * x_k) over the others: the kernels that i waits for wait themselves. h_i is
the overhead after i's step over the time of its kernels, P_i what its clock loses to the power of
the others, C_i their contention on other SMs, W_i the wait of its kernels behind theirs on shared
SMs (tau: mean time of a kernel, o_ij: part of i's SMs that j may use too, O_i: that anybody may),
f_ij what i loses by running on those SMs only that j may not use, Y what it yields to kernels that
run on the SMs which j needs of i's (n_ij), and G_ij what measured pairs like these say beyond the
law (`models/neighbours.py`). docs/model.md states every symbol.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import exp, hypot, inf, log
from typing import NamedTuple

import numpy as np

from splitwiser.models.balance import crowd, pair
from splitwiser.models.cost import Demand
from splitwiser.models.kernels import saturation
from splitwiser.models.neighbours import Kind, Neighbours, coordinates
from splitwiser.models.regimes import Sharing


class Beside(NamedTuple):
    """The parameters of `Spatial`; *wait* and *power* are for steps bound by memory, by arithmetic.

    *knee* and *bend* say how arithmetic grows with the SMs, *reach* (both) how traffic does.
    """

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
    reach: tuple[float, float]
    crowding: float
    neighbours: Neighbours | None = None


Cell = tuple[int, int, bool]
"""A `Kind` in steps of 1/CELLS, so that few pairs need an interpolation."""


class Running(NamedTuple):
    """What the law of `Spatial` knows of a step.

    `use` is the part of its time alone in which its kernels run, `idle` its overhead over the time
    of its kernels, `tau` the mean time of a kernel in seconds, `mix` the part of it that is
    arithmetic; `share` and `need` are the parts of the SMs that it may use, and that it needs;
    `cell` is where pairs with it are looked up.
    """

    use: float
    idle: float
    tau: float
    mix: float
    share: float
    need: float
    cell: Cell


class Implied(NamedTuple):
    """How much more a step was slowed than the law says: where the pair stands (`coordinates`), the
    log of the factor on its slow-down, and the part of the time in which the neighbour ran.

    `at_most`: the step was as fast as its host let it be, and the factor may be smaller.
    """

    place: tuple[float, ...]
    log_factor: float
    beside: float
    at_most: bool


class Spatial(Sharing):
    """Kernels of several tasks run at once: MPS, streams and green contexts.

    A step is bound by arithmetic to the part that its FLOP take of its FLOP and its traffic, both at
    the data sheet's limits; parameters between their two values go with that part.
    """

    def __init__(self, regime: str, beside: Beside) -> None:
        self.regime = regime
        self._parts = regime == "green_contexts"
        self._beside = beside
        # Shares are few, and the powers of them costly.
        self._meeting = cache(self._find_meeting)
        self._speed = cache(self._find_speed)
        self._known = cache(self._find_known)

    def _shared(self, demands: Sequence[Demand]) -> list[float]:
        if len(demands) == 2:  # nearly all that a simulation asks for
            one, two = self._running(demands[0]), self._running(demands[1])
            shares = one[4] + two[4]
            a, y, hotter = self._coupling(one, two, shares, one[4] + two[5])
            b, z, warmer = self._coupling(two, one, shares, two[4] + one[5])
            x, w = pair(
                (one[0], self._cost(one, hotter), a, y), (two[0], self._cost(two, warmer), b, z)
            )
            return [x / one[0], w / two[0]]
        tasks = [self._running(demand) for demand in demands]
        shares = sum(task.share for task in tasks)
        needs = sum(task.need for task in tasks)
        couplings = np.array(
            [
                [
                    (0.0, 0.0, 0.0)
                    if i is j
                    else self._coupling(i, j, shares, i.share - i.need + needs)
                    for j in tasks
                ]
                for i in tasks
            ]
        )
        heat = couplings[:, :, 2].sum(axis=1).tolist()
        cost = np.array([self._cost(*each) for each in zip(tasks, heat, strict=True)])
        cost *= [self._crowding(task, tasks, shares) for task in tasks]
        use = np.array([task[0] for task in tasks])
        running = crowd(use, cost, couplings[:, :, 0], couplings[:, :, 1])
        return [float(rate) for rate in running / use]

    def implied(self, demands: Sequence[Demand], rates: Sequence[float]) -> list[Implied]:
        """Return what two tasks' measured *rates* say of how each is slowed by the other.

        A task that its host or its overhead holds back says no more than how much its neighbour
        slows it at most.
        """
        tasks = [self._running(demand) for demand in demands]
        shares = sum(task.share for task in tasks)
        found = []
        for i, j in ((0, 1), (1, 0)):
            one, two = tasks[i], tasks[j]
            x, w = rates[i] * one.use, rates[j] * two.use
            slow, give, heat = self._coupling(one, two, shares, one.share + two.need)
            measured = ((1.0 - give * w) / x - self._cost(one, heat)) / w
            own = Kind.of(one.tau, one.mix, demands[i].prompt > 0.0)
            other = Kind.of(two.tau, two.mix, demands[j].prompt > 0.0)
            met = one.share * overlap(one.share, two.share, shares)
            place = coordinates(own, other, (one.share, two.share, met), self._parts)
            log_factor = log(max(1.0 + measured, LEAST) / (1.0 + slow))
            held_back = one.use < HELD_BACK and rates[i] > HELD_BACK
            found.append(Implied(place, log_factor, w, held_back))
        return found

    def _running(self, demand: Demand) -> Running:
        seconds, busy, _, _, kernels, share, overhead, compute, memory, prompt = demand
        mix = compute / (compute + memory) if compute > 0.0 else 0.0
        spread = self._beside.memory_spread
        need = spread + (1.0 - spread) * mix / COMPUTE_BOUND if mix < COMPUTE_BOUND else 1.0
        tau = busy / kernels if kernels > 0.0 else busy
        cell = (0, 0, False)
        if self._beside.neighbours is not None:
            kind = Kind.of(tau, mix, prompt > 0.0)
            cell = (round(CELLS * kind[0]), round(CELLS * kind[1]), prompt > 0.0)
        return Running(busy / seconds, overhead / busy, tau, mix, share, min(need, share), cell)

    def _coupling(
        self, one: Running, two: Running, shares: float, needs: float
    ) -> tuple[float, float, float]:
        """Return what slows *one* and what it yields, per x of *two*, and the SMs that *two* heats.

        The overhead that follows one's kernels is no longer for what they yield: a term of the
        slow-down takes it out.
        """
        _, idle, tau, mix, own, _, _ = one
        use, _, other_tau, _, other, need, _ = two
        b = self._beside
        apart, met, hotter, escape, costly = self._meeting(own, other, shares)
        slow = b.contention * (1.0 - mix) * apart
        if met > 0.0:
            wait, most = b.wait
            waits = (wait + (most - wait) * mix) * met * (other_tau / tau) ** b.wait_exponent
            if waits > 0.0 and escape < inf:
                elsewhere = escape + (costly - escape) * mix
                waits *= elsewhere / hypot(waits, elsewhere)
            slow += waits
        if b.neighbours is not None:
            known = self._known(one[6], two[6], own, other, own * (1.0 - apart))
            slow = (1.0 + slow) * known - 1.0
        needed = overlap(own, need, needs)
        give = b.yielded * needed**b.yield_overlap if needed > 0.0 else 0.0
        return slow - idle * give, give, use * hotter

    def _find_meeting(
        self, own: float, other: float, shares: float
    ) -> tuple[float, float, float, float, float]:
        """Return what depends on shares alone.

        The part of a neighbour's kernels on other SMs, the weight of the wait for those on the
        same, the SMs that a task may not use and its neighbour may; and how much longer, as a part,
        a task bound by memory takes on those SMs only that its neighbour may not use, and one bound
        by arithmetic.
        """
        b = self._beside
        shared = overlap(own, other, shares)
        # Of many small overlaps each counts as part of the whole one.
        whole = min(max(shared, shares - 1.0), 1.0)
        met = shared * whole ** (b.wait_overlap - 1.0) if shared > 0.0 else 0.0
        escape = costly = inf
        if other < 1.0 - NO_SM:
            free = min(own, 1.0 - other)
            escape = saturation(own, *b.reach) / saturation(free, *b.reach) - 1.0
            costly = saturation(own, b.knee, b.bend) / saturation(free, b.knee, b.bend) - 1.0
        return 1.0 - shared, met, min(other, 1.0 - own), escape, costly

    def _find_known(self, one: Cell, two: Cell, own: float, other: float, met: float) -> float:
        """Return the factor that measured pairs give, in the middle of cells."""
        assert self._beside.neighbours is not None
        first, second = (
            Kind(tau / CELLS, odds / CELLS, float(prompts)) for tau, odds, prompts in (one, two)
        )
        place = coordinates(first, second, (own, other, met), self._parts)
        return exp(self._beside.neighbours.log_factor(place))

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


CELLS = 20.0  # for each factor of e: a cell is 5 % wide, and tells its pairs within 2 %
NO_SM = 0.005  # of the device: less than one SM of any
HELD_BACK = 0.9  # of the rate that host and overhead allow: who is as fast waits for them at times
LEAST = 0.3  # slow-downs below this, times the kernels' own time, are noise
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
