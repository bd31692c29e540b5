"""Kernels of several tasks at once on one GPU: MPS, streams and green contexts.

While two tasks want the device, the parts x of that time in which their kernels run are

    1/x_i = 1 + P_i + S_ij * x_j,   1 + S_ij = (1 + C_ij*(1 - o_ij) + w_ij) * G_ij
    1/w_ij^2 = 1/(W_j*(1 + q_ij)*o_ij)^2 + 1/f_ij^2
    1/q_ij = Y_ij + tau_i/tau_j * N^(a_j - a_i)

P_i is what i's clock loses to the power of the other, C_ij the contention of j on other SMs, w_ij
the wait of its kernels for those of j on shared SMs (tau: mean time of a kernel, a: how far
arithmetic binds it, o_ij: part of j's kernels that meet i's), Y_ij the part of j's kernels that
yields to i's, f_ij what i loses by running on those SMs only where it does not meet j, and G_ij what
measured pairs like these say beyond the law (`models/neighbours.py`). While a task waits for its
host's launches, and in the overhead behind its steps, the others do not wait for it
(`models/balance.py`).

Kernels on the same SMs take turns. With W = 1 tasks of one kind run one kernel each by turns and
none at once; of two kinds N light ones pass for each that arithmetic binds. GEMMs and prompt
attention hold their SMs to the end; the element-wise kernels of prompts are thousands of short
blocks, between which those with priority come at once. Of several tasks each waits for every other
as in their pair; but all prompts get a kernel by turns before any gets its next, and decodes pass in
what all of these yield and, at a part of the turns, between them: the oftener, the more decodes there
are, for when one of them has nothing to run, another has. docs/model.md states every symbol.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import exp, hypot, inf, log, prod
from typing import NamedTuple

from splitwiser.models.balance import Matrix, Need, balanced, free, pair, slow_down
from splitwiser.models.cost import Demand
from splitwiser.models.neighbours import Kind, Neighbours, coordinates
from splitwiser.models.regimes import Sharing
from splitwiser.models.shares import Growth, Meeting, Shares


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
    crowding_prompts: float
    neighbours: Neighbours | None = None


Cell = tuple[int, int, bool]
"""A `Kind` in steps of 1/CELLS, so that few pairs need an interpolation."""


class Running(NamedTuple):
    """What the law of `Spatial` knows of a step.

    `use` is the part of its time alone in which its kernels run, `idle` its overhead over the time
    of its kernels, `tau` the mean time of a kernel in seconds, `mix` the part of it that is
    arithmetic; `share` the part of the SMs that it may use; `prompts` whether it computes prompts;
    `cell` is where pairs with it are looked up.
    """

    use: float
    idle: float
    tau: float
    mix: float
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
        shares = sum(task.share for task in tasks)
        if len(tasks) == 2:
            one, two = tasks
            side, other = self._sides(one, two, shares)
            found: Sequence[float] = pair(
                Need(*one[:2], side[0]), side[1], Need(*two[:2], other[0]), other[1]
            )
        else:
            found = self._crowded(tasks, shares)
        return [min(x / task.use, 1.0) for x, task in zip(found, tasks, strict=True)]

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
        """Return the x of three tasks and more."""
        places = range(len(tasks))
        slower, beside, heat, meet = ([[0.0] * len(tasks) for _ in places] for _ in range(4))
        for i in places:
            for j in places[:i]:
                one, two = tasks[i], tasks[j]
                side, other = self._sides(one, two, shares)
                slower[i][j], slower[j][i] = side[1], other[1]
                heat[i][j], heat[j][i] = side[2], other[2]
                beside[j][i], beside[i][j] = free(*side[:2], *other[:2])
                meet[i][j] = self._meeting(one, two, shares).met
                meet[j][i] = self._meeting(two, one, shares).met
        needs = [
            Need(*task[:2], self._cost(task, sum(row)))
            for task, row in zip(tasks, heat, strict=True)
        ]
        x = balanced(needs, self._waits(tasks, slower, beside, meet))
        if all(task.share >= 1.0 for task in tasks):
            return x  # there are no SMs on which two do not meet
        slower = self._slowed(tasks, shares, x, meet)
        return balanced(needs, self._waits(tasks, slower, beside, meet))

    def _slowed(
        self, tasks: Sequence[Running], shares: float, x: Sequence[float], meet: Matrix
    ) -> list[list[float]]:
        """Return what slows each task per x of each other.

        Of the SMs on which it does not meet that one, further tasks that it meets take their part.
        """
        slower = []
        for i, one in enumerate(tasks):
            row = [0.0] * len(tasks)
            for j, two in enumerate(tasks):
                if j != i:
                    left = prod(
                        1.0 - meet[i][k] * each for k, each in enumerate(x) if k not in (i, j)
                    )
                    row[j], _ = self._coupling(one, two, shares, left)
            slower.append(row)
        return slower

    def _waits(
        self, tasks: Sequence[Running], slower: Matrix, beside: Matrix, meet: Matrix
    ) -> list[list[float]]:
        """Return what each task waits for each other, over the time of its own kernels.

        As in their pair, where the other's x is *beside*. But prompts take turns, so that a decode
        passes in what the kernels of all of these yield, and between some, before each gets its
        next; and the oftener, the more decodes there are.
        """
        waits = [
            [each * x for each, x in zip(row, there, strict=True)]
            for row, there in zip(slower, beside, strict=True)
        ]
        for i, one in enumerate(tasks):
            if one.prompts:
                continue
            meets = [part * task.use for part, task in zip(meet[i], tasks, strict=True)]
            for j, two in enumerate(tasks):
                if two.prompts and waits[i][j] > 0.0:
                    oftener = self._oftener(waits[i][j], tasks, j, meets, meet[j])
                    waits[i][j] /= oftener
                    waits[j][i] *= oftener
        return waits

    def _oftener(
        self,
        wait: float,
        tasks: Sequence[Running],
        j: int,
        meets: Sequence[float],
        others: Sequence[float],
    ) -> float:
        """Return how much oftener a decode comes before kernels of the prompt *j* than in their pair,
        where it waits *wait* for them.

        *meets* are the parts of the time in which it meets each task, *others* those of the SMs on
        which the prompt does.
        """
        b, tau = self._beside, tasks[j].tau
        comes, decodes = 1.0 / wait, 0.0
        at_turns = max(comes - b.yielded * meets[j], 0.0)
        for k, (part, task) in enumerate(zip(meets, tasks, strict=True)):
            if not task.prompts:
                decodes += part * others[k]
            elif k != j:
                comes += part * b.yielded * task.tau / tau
                comes += part * b.crowding_prompts * others[k] * at_turns
        return comes * (1.0 + b.crowding * decodes) * wait

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
            (cost, slow, _), (other_cost, slows, _) = self._sides(one, two, shares)
            pace = 1.0 / (1.0 / x - one.idle)
            part = 1.0 - two.idle * w
            if _held_back(two, rates[j]):  # it wants the device for less, as far as the law tells
                part = min(part, w / free(cost, slow, other_cost, slows)[1])
            measured = slow_down(pace, cost, w, part)
            own, other = (Kind.of(task.tau, task.mix, task.prompts) for task in (one, two))
            met = one.share * self._meeting(one, two, shares).met
            place = coordinates(own, other, (one.share, two.share, met), self._parts)
            log_factor = log(max(1.0 + measured, LEAST) / (1.0 + slow))
            found.append(Implied(place, log_factor, w, _held_back(one, rates[i])))
        return found

    def _running(self, demand: Demand) -> Running:
        seconds, busy, _, _, kernels, share, overhead, compute, memory, prompt, _ = demand
        mix = compute / (compute + memory) if compute > 0.0 else 0.0
        tau = busy / kernels if kernels > 0.0 else busy
        prompts, cell = prompt > 0.0, (0, 0, False)
        if self._beside.neighbours is not None:
            kind = Kind.of(tau, mix, prompts)
            cell = (round(CELLS * kind[0]), round(CELLS * kind[1]), prompts)
        return Running(busy / seconds, overhead / busy, tau, mix, share, prompts, cell)

    def _meeting(self, one: Running, two: Running, shares: float) -> Meeting:
        both = one.prompts and two.prompts
        return self._shares.meeting(one.share, two.share, shares, both)

    def _coupling(
        self, one: Running, two: Running, shares: float, left: float = 1.0
    ) -> tuple[float, float]:
        """Return what slows *one* per x of *two*, and the SMs that *two* heats.

        *left* is the part that others leave of the SMs on which the two do not meet.
        """
        _, _, tau, mix, own, prompts, cell = one
        use, _, other_tau, other_mix, other, other_prompts, other_cell = two
        b = self._beside
        apart, met, hotter, escape, costly = self._meeting(one, two, shares)
        contention, least = b.contention
        slow = (contention + (least - contention) * other_mix) * (1.0 - mix) * apart
        if met > 0.0:
            wait, most = b.wait
            turn = other_tau / tau * b.passed ** (mix - other_mix)
            if other_prompts and not prompts:
                turn /= 1.0 + b.yielded * turn
            elif prompts and not other_prompts:
                turn += b.yielded
            waits = (wait + (most - wait) * other_mix) * met * (1.0 + turn)
            if left < 1.0:
                escape, costly = self._shares.escape(own, own * apart * left)
            if waits > 0.0 and escape < inf:
                elsewhere = escape + (costly - escape) * mix
                waits *= elsewhere / hypot(waits, elsewhere)
            slow += waits
        if b.neighbours is not None:
            known = self._known(cell, other_cell, own, other, own * met)
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
        """Return 1 + P_i: what a second of kernels takes beside others that only heat."""
        cost = 1.0
        if heat > 0.0:
            own = task.share
            power, most = self._beside.power
            cooler = self._shares.speed(own) / self._shares.speed(own + heat) - 1.0
            cost += (power + (most - power) * task.mix) * cooler
        return cost


def _held_back(task: Running, rate: float) -> bool:
    """Return whether a task of this *rate*, alone being 1, is as fast as its host lets it be."""
    return task.use < HELD_BACK and rate > HELD_BACK


CELLS = 20.0  # for each factor of e: a cell is 5 % wide, and tells its pairs within 2 %
HELD_BACK = 0.9  # of the rate that host and overhead allow: who is as fast waits for them at times
LEAST = 0.3  # slow-downs below this, times the kernels' own time, are noise
