"""The GPU as a resource: it does the work of the processes that share it, each at its rate.

Work is counted in seconds alone. Between two changes of the set of running tasks every task has a
constant rate (a fluid, processor-sharing model), so the device has to act only when a task starts
or ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol

from simpy import Environment, Event, Timeout

from splitwiser.models.cost import Demand
from splitwiser.models.power import Power
from splitwiser.sim.log import Log, pack_stretch
from splitwiser.sim.power import RecentPower
from splitwiser.sim.steps import steps_for, work_of

NOTHING = Demand(*[0.0] * len(Demand._fields))


ONE = (1.0,)


class Task:
    """The run that a worker has on the device: up to `steps` steps, see `splitwiser.sim.steps`.

    The first step boundary at or after `break_at` ends the run, because then the scheduler has
    something new to decide. A worker has one task and uses it for one run after another.
    """

    __slots__ = (
        "batch",
        "blocks",
        "break_at",
        "demand",
        "done",
        "first",
        "goal",
        "growth",
        "joined",
        "rate",
        "running",
        "since",
        "steps",
        "tokens",
        "waiters",
        "worker",
    )

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.steps = 1
        self.first = 0.0
        self.growth = 0.0
        self.demand = NOTHING
        self.break_at = inf
        self.batch = 0
        self.joined = 0
        self.tokens = 0
        self.blocks = 0
        self.running = False
        self.waiters: list[
            Callable[[Event], None]
        ] = []  # who goes on when the run ends: its worker
        self.done = 0.0  # seconds alone
        self.goal = 0.0  # seconds alone at which the run ends
        self.rate = 1.0
        self.since = 0.0  # when `rate` and `done` held


class Device(Protocol):
    """What a worker asks of the device."""

    needs_demand: bool  # whether `task.demand` matters

    def clip(self, task: Task, now: float) -> None:
        """Cut `task.steps` at its break as far as that is settled before the run starts."""
        ...

    def start(self, task: Task, now: float) -> Event:
        """Begin a run; the event brings the time of its end, and `task.steps` the steps made."""
        ...

    def break_at(self, task: Task, time: float) -> None:
        """End a task's run, if it has one, at its first step boundary at or after `time`."""
        ...

    def write_open_stretches(self) -> None:
        """The simulation stops here: write down what runs, up to now."""
        ...


class ExclusiveDevice:
    """A GPU with one process: the end of a run is known when it starts.

    Work is done at rate 1, and faster after a pause, where the *power* limit is known.
    """

    def __init__(self, env: Environment, log: Log, power: Power | None = None) -> None:
        self._env = env
        self._write = log.stretches.extend
        self._recent = None if power is None else RecentPower(power)
        self.needs_demand = power is not None

    def clip(self, task: Task, now: float) -> None:
        room = task.break_at - now
        steps, first, growth = task.steps, task.first, task.growth
        if steps * (first + growth * (steps - 1) * 0.5) > room:
            task.steps = min(steps, steps_for(room, first, growth))

    def start(self, task: Task, now: float) -> Event:
        steps, first, growth = task.steps, task.first, task.growth
        seconds = steps * (first + growth * (steps - 1) * 0.5)
        rate, recent = 1.0, self._recent
        if recent is not None:
            recent.draw(now, (task.demand,), ONE)
            rate = recent.rise(task.demand, seconds)
            seconds /= rate
            recent.draw(now + seconds, (), ())
        end = now + seconds
        self._write(
            pack_stretch(
                task.worker,
                now,
                end,
                rate,
                0.0,
                first,
                growth,
                steps,
                task.batch,
                task.joined,
                task.tokens,
                task.blocks,
            )
        )
        return Timeout(self._env, seconds, end)

    def write_open_stretches(self) -> None:
        """Nothing: each was written when it began, with its end."""

    def break_at(self, task: Task, time: float) -> None:
        """Nothing: whoever could ask is the one process itself, between two runs."""


class Rates(Protocol):
    """How the running tasks share the GPU (`splitwiser.models.sharing`)."""

    def rates(self, demands: Sequence[Demand]) -> Sequence[float]:
        """Seconds alone of work that each task does per second."""
        ...


class SharedDevice:
    """A GPU that several processes share at the rates of a sharing model.

    Whenever a task starts, ends or is to break, it finds the rates anew, and waits for the task
    that then ends first. That event carries three callbacks: the task ends; its worker goes on, and
    may start another; the rates are found anew. So a run costs one event, and one more for each
    time that another task changed its rate.
    """

    needs_demand = True

    def __init__(
        self, env: Environment, sharing: Rates, log: Log, power: Power | None = None
    ) -> None:
        self._env = env
        self._sharing = sharing
        self._recent = None if power is None else RecentPower(power)
        self._write = log.stretches.extend
        self._active: list[Task] = []
        self._next_end: Event | None = None
        self._settling = False  # whether it will settle at this instant
        self._changed = False  # whether tasks have started or ended since the rates were found

    def clip(self, task: Task, now: float) -> None:
        """Nothing: at which rate the run will go is not known yet."""

    def start(self, task: Task, now: float) -> Event:
        task.done = 0.0
        task.goal = work_of(task.steps, task.first, task.growth)
        task.rate = 0.0
        task.since = now
        event = Event(self._env)
        task.waiters = event.callbacks
        task.running = True
        self._active.append(task)
        self._changed = True
        if not self._settling:
            self._settle_soon()
        return event

    def break_at(self, task: Task, time: float) -> None:
        if not task.running or time >= task.break_at:
            return
        task.break_at = time
        if time <= self._env.now:
            self._cut(task)
        if not self._settling:
            self._settle(None)  # the rates stay: only the order of the ends may change

    def _cut(self, task: Task) -> None:
        """The break is past: end the run at the first step boundary at or after it."""
        progress = task.done + (task.break_at - task.since) * task.rate
        task.break_at = inf
        steps = steps_for(progress, task.first, task.growth)
        if steps < task.steps:
            task.steps = steps
            task.goal = work_of(steps, task.first, task.growth)

    def _settle_soon(self) -> None:
        """Settle once all that happens at this instant has happened."""
        self._settling = True
        settle = Event(self._env)
        settle.callbacks.append(self._settle)
        settle.succeed()

    def _settle(self, _: Event | None) -> None:
        """Give every task its rate, and wait for the first of them to end."""
        self._settling = False
        if self._next_end is not None:
            self._next_end.callbacks.clear()  # things have changed: it will pass unheard
            self._next_end = None
        active, now = self._active, self._env.now
        if not active:
            if self._recent is not None:
                self._recent.draw(now, (), ())
            return
        if self._changed:
            self._changed = False
            self._find_rates(now)
        soonest, ending = inf, active[0]
        for task in active:
            if task.break_at <= now:
                self._cut(task)
            end = task.since + (task.goal - task.done) / task.rate
            if end > task.break_at:
                end = self._end_after_break(task)
            if end < soonest:
                soonest, ending = end, task
        delay = max(0.0, soonest - now)  # rounding may put it before now
        wake = Timeout(self._env, delay, now + delay)
        wake.callbacks.append(self._end)
        wake.callbacks.extend(ending.waiters)
        wake.callbacks.append(self._settle)
        self._next_end, self._ending = wake, ending

    def _find_rates(self, now: float) -> None:
        active = self._active
        if len(active) == 1:
            rates: Sequence[float] = ONE
        else:
            rates = self._sharing.rates([task.demand for task in active])
        recent = self._recent
        if recent is not None:
            recent.draw(now, [task.demand for task in active], rates)
        for number, task in enumerate(active):
            rate = rates[number]
            if recent is not None:
                rate *= recent.rise(task.demand, (task.goal - task.done) / rate)
            if rate != task.rate:
                if task.break_at <= now:
                    self._cut(task)
                if now > task.since:
                    self._write_stretch(task, now, steps=-1)
                    task.done += (now - task.since) * task.rate
                    task.since = now
                task.rate = rate

    def _end_after_break(self, task: Task) -> float:
        """When the step ends that is under way at the task's break, if the rates stay as they are."""
        progress = task.done + (task.break_at - task.since) * task.rate
        steps = min(task.steps, steps_for(progress, task.first, task.growth))
        goal = work_of(steps, task.first, task.growth)
        return task.since + (goal - task.done) / task.rate

    def _end(self, _: Event) -> None:
        """The task that was to end first has ended."""
        self._next_end = None
        self._settling = True
        task, now = self._ending, self._env.now
        if task.break_at <= now:
            self._cut(task)
        self._write_stretch(task, now, task.steps)
        self._active.remove(task)
        self._changed = True
        task.running = False

    def write_open_stretches(self) -> None:
        for task in self._active:
            self._write_stretch(task, self._env.now, steps=-1)

    def _write_stretch(self, task: Task, now: float, steps: int) -> None:
        self._write(
            pack_stretch(
                task.worker,
                task.since,
                now,
                task.rate,
                task.done,
                task.first,
                task.growth,
                steps,
                task.batch,
                task.joined,
                task.tokens,
                task.blocks,
            )
        )
