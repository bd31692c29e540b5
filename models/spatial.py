"""Kernels of several tasks at once on one GPU: MPS, streams and green contexts.

With x_j the part of the time in which j's kernels run (its seconds alone on its SMs, per second),

    1/x_i = h_i + 1 + P_i + S_ij * x_j,   1 + S_ij = (1 + C_ij*(1 - o_ij) + w_ij) * G_ij
    1/w_ij^2 = 1/(W_j*(1 + q_ij)*o_ij)^2 + 1/f_ij^2
    1/q_ij = Y_ij + tau_i/tau_j * N^(a_j - a_i)

and no more than its launches from the host allow. h_i is the overhead after i's step over the time
of its kernels, P_i what its clock loses to the power of the others, C_ij the contention of j on
other SMs, w_ij the wait of its kernels for those of j on shared SMs (tau: mean time of a kernel, a:
how far arithmetic binds it, o_ij: part of j's kernels that meet i's), Y_ij the part of j's kernels
that yields to i's, f_ij what i loses by running on those SMs only where it does not meet j, and G_ij
what measured pairs like these say beyond the law (`models/neighbours.py`).

Kernels on the same SMs take turns. With W = 1 tasks of one kind run one kernel each by turns and
none at once; of two kinds N light ones pass for each that arithmetic binds. GEMMs and prompt
attention hold their SMs to the end; the element-wise kernels of prompts are thousands of short
blocks, between which those with priority come at once. So a task loses to each of several neighbours
what it loses to that one in a pair (`models/balance.py`), and the more light tasks there are, the
oftener they come before the others. docs/model.md states every symbol.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import exp, hypot, inf, log, prod
from typing import NamedTuple

from splitwiser.models.balance import Matrix, balanced, crowd
from splitwiser.models.cost import Demand
from splitwiser.models.neighbours import Kind, Neighbours, coordinates
from splitwiser.models.regimes import Sharing
from splitwiser.models.shares import Growth, Shares, overlap


class Beside(NamedTuple):
    """The parameters of `Spatial`; *power* is for steps bound by memory, by arithmetic, *wait* and
    *contention* for those beside such steps.

    *yielded* is 0 where decode has no priority. *growth* says what SMs are worth to a step.
    """

    wait: tuple[float, float]
    passed: float
    yielded: float
    contention: tuple[float, float]
    growth: Growth
    power: tuple[float, float]
    crowding: float
    neighbours: Neighbours | None = None


Cell = tuple[int, int, bool]
"""A `Kind` in steps of 1/CELLS, so that few pairs need an interpolation."""


class Running(NamedTuple):
    """What the law of `Spatial` knows of a step.

    `use` is the part of its time alone in which its kernels run, `idle` its overhead over the time
    of its kernels, `tau` the mean time of a kernel in seconds, `mix` the part of it that is
    arithmetic; `light`, in [0, 1], how far it is from wanting every SM; `share` the part of the SMs
    that it may use; `prompts` whether it computes prompts; `cell` is where pairs with it are looked
    up.
    """

    use: float
    idle: float
    tau: float
    mix: float
    light: float
    share: float
    prompts: bool
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
        self._shares = Shares(beside.growth)
        self._known = cache(self._find_known)

    def _shared(self, demands: Sequence[Demand]) -> list[float]:
        tasks = [self._running(demand) for demand in demands]
        shares = sum(task[5] for task in tasks)
        if len(tasks) == 2:  # nearly all that a simulation asks for
            one, two = tasks
            side, other = self._sides(one, two, shares)
            x, w = balanced((one[0], *side[:2]), (two[0], *other[:2]))
            return [x / one[0], w / two[0]]
        return self._crowded(tasks, shares)

    def _sides(
        self, one: Running, two: Running, shares: float
    ) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return of each of two tasks its cost, what slows it, and the SMs that the other heats."""
        slow, hotter = self._coupling(one, two, shares)
        slows, warmer = self._coupling(two, one, shares)
        return (
            (self._cost(one, hotter), slow, hotter),
            (self._cost(two, warmer), slows, warmer),
        )

    def _crowded(self, tasks: Sequence[Running], shares: float) -> list[float]:
        """Return the rates of three tasks and more."""
        places = range(len(tasks))
        most, heat, meet, light = ([[0.0] * len(tasks) for _ in places] for _ in range(4))
        for i in places:
            for j in places[:i]:
                one, two = tasks[i], tasks[j]
                side, other = self._sides(one, two, shares)
                heat[i][j], heat[j][i] = side[2], other[2]
                most[j][i], most[i][j] = balanced((1.0, *side[:2]), (1.0, *other[:2]))
                meet[i][j] = overlap(one.share, two.share, shares)
                meet[j][i] = overlap(two.share, one.share, shares)
                both = self._beside.crowding * one.light * two.light
                light[i][j] = both * meet[i][j] * two.use
                light[j][i] = both * meet[j][i] * one.use
        slower = self._slowed(tasks, shares, most, meet)
        # The more light tasks there are beside one, the oftener all of these come before others.
        often = [1.0 + sum(row) for row in light]
        for i in places:
            for j in places:
                slower[i][j] *= (often[j] - light[j][i]) / (often[i] - light[i][j])
        use = [task.use for task in tasks]
        cost = [self._cost(task, sum(row)) for task, row in zip(tasks, heat, strict=True)]
        running = crowd(use, cost, slower, most, meet)
        return [min(x / each, 1.0) for x, each in zip(running, use, strict=True)]

    def _slowed(
        self, tasks: Sequence[Running], shares: float, most: Matrix, meet: Matrix
    ) -> list[list[float]]:
        """Return what slows each task per x of each other.

        Of the SMs on which it does not meet that one, further tasks that it meets take their part.
        """
        slower = []
        for i, one in enumerate(tasks):
            taken = [
                part * min(x, task.use)
                for part, x, task in zip(meet[i], most[i], tasks, strict=True)
            ]
            row = [0.0] * len(tasks)
            for j, two in enumerate(tasks):
                if j != i:
                    left = prod(1.0 - part for k, part in enumerate(taken) if k != j)
                    row[j], _ = self._coupling(one, two, shares, left)
            slower.append(row)
        return slower

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
            slow, heat = self._coupling(one, two, shares)
            measured = (1.0 / x - self._cost(one, heat)) / w
            own, other = (Kind.of(task.tau, task.mix, task.prompts) for task in (one, two))
            met = one.share * overlap(one.share, two.share, shares)
            place = coordinates(own, other, (one.share, two.share, met), self._parts)
            log_factor = log(max(1.0 + measured, LEAST) / (1.0 + slow))
            held_back = one.use < HELD_BACK and rates[i] > HELD_BACK
            found.append(Implied(place, log_factor, w, held_back))
        return found

    def _running(self, demand: Demand) -> Running:
        seconds, busy, _, _, kernels, share, overhead, compute, memory, prompt = demand
        mix = compute / (compute + memory) if compute > 0.0 else 0.0
        tau = busy / kernels if kernels > 0.0 else busy
        prompts, cell = prompt > 0.0, (0, 0, False)
        if self._beside.neighbours is not None:
            kind = Kind.of(tau, mix, prompts)
            cell = (round(CELLS * kind[0]), round(CELLS * kind[1]), prompts)
        light = max(0.0, 1.0 - mix / COMPUTE_BOUND)
        return Running(busy / seconds, overhead / busy, tau, mix, light, share, prompts, cell)

    def _coupling(
        self, one: Running, two: Running, shares: float, left: float = 1.0
    ) -> tuple[float, float]:
        """Return what slows *one* per x of *two*, and the SMs that *two* heats.

        *left* is the part that others leave of the SMs on which the two do not meet.
        """
        _, _, tau, mix, _, own, prompts, cell = one
        use, _, other_tau, other_mix, _, other, other_prompts, other_cell = two
        b = self._beside
        apart, met, hotter, escape, costly = self._shares.meeting(own, other, shares)
        contention, least = b.contention
        slow = (contention + (least - contention) * other_mix) * (1.0 - mix) * apart
        if met > 0.0:
            wait, most = b.wait
            turn = other_tau / tau * b.passed ** (mix - other_mix)
            if other_prompts and not prompts:
                turn /= 1.0 + b.yielded * turn
            waits = (wait + (most - wait) * other_mix) * met * (1.0 + turn)
            if left < 1.0:
                escape, costly = self._shares.escape(own, own * apart * left)
            if waits > 0.0 and escape < inf:
                elsewhere = escape + (costly - escape) * mix
                waits *= elsewhere / hypot(waits, elsewhere)
            slow += waits
        if b.neighbours is not None:
            known = self._known(cell, other_cell, own, other, own * (1.0 - apart))
            slow = (1.0 + slow) * known - 1.0
        return slow, use * hotter

    def _find_known(self, one: Cell, two: Cell, own: float, other: float, met: float) -> float:
        """Return the factor that measured pairs give, in the middle of cells."""
        assert self._beside.neighbours is not None
        first, second = (
            Kind(tau / CELLS, odds / CELLS, float(prompts)) for tau, odds, prompts in (one, two)
        )
        place = coordinates(first, second, (own, other, met), self._parts)
        return exp(self._beside.neighbours.log_factor(place))

    def _cost(self, task: Running, heat: float) -> float:
        """Return 1 + P_i + h_i: what a second of kernels takes beside others that only heat."""
        cost = 1.0 + task[1]
        if heat > 0.0:
            own = task[5]
            power, most = self._beside.power
            cooler = self._shares.speed(own) / self._shares.speed(own + heat) - 1.0
            cost += (power + (most - power) * task[3]) * cooler
        return cost


CELLS = 20.0  # for each factor of e: a cell is 5 % wide, and tells its pairs within 2 %
HELD_BACK = 0.9  # of the rate that host and overhead allow: who is as fast waits for them at times
LEAST = 0.3  # slow-downs below this, times the kernels' own time, are noise
COMPUTE_BOUND = 0.6  # of a step's time at the data sheet's limits: its kernels want every SM
