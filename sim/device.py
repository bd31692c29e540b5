"""The GPU as a resource: it does the work of the processes that share it, each at its rate.

Work is counted in seconds alone. Between two changes of the set of running tasks every task has a constant rate
(a fluid, processor-sharing model), so the device has to act only when a task starts or ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Protocol

from simpy import Environment, Event

from splitwiser.models.cost import Demand
from splitwiser.sim.log import Log
from splitwiser.sim.steps import steps_for, work_of

NOTHING = Demand(*[0.0] * len(Demand._fields))


class Task:
    """The run that a worker has on the device: up to `steps` steps, see `splitwiser.sim.steps`.

    The first step boundary at or after `break_at` ends the run, because then the scheduler has something new to
    decide. A worker has one task and uses it for one run after another.
    """

    __slots__ = (
        "batch",
        "blocks",
        "break_at",
        "demand",
        "done",
        "event",
        "first",
        "goal",
        "growth",
        "joined",
        "rate",
        "since",
        "steps",
        "tokens",
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
        self.event: Event | None = None
        self.done = 0.0  # seconds alone
        self.goal = 0.0  # seconds alone at which the run ends
        self.rate = 1.0
        self.since = 0.0  # when `rate` and `done` held


class Device(Protocol):
    """What a worker asks of the device."""

    needs_demand: bool

    def start(self, task: Task) -> Event:
        """Begin a run; the event comes when it ends, with `task.steps` the number of steps made."""
        ...

    def break_at(self, task: Task, time: float) -> None:
        """End a task's run, if it has one, at its first step boundary at or after `time`."""
        ...


class ExclusiveDevice:
    """A GPU with one process: work is done at rate 1, and the end of a run is known when it starts."""

    needs_demand = False

    def __init__(self, env: Environment, log: Log) -> None:
        self._env = env
        self._timeout = env.timeout
        self._write = log.stretches.extend

    def start(self, task: Task) -> Event:
        now = self._env.now
        steps, first, growth = task.steps, task.first, task.growth
        seconds = steps * (first + growth * (steps - 1) * 0.5)
        if now + seconds > task.break_at:
            steps = steps_for(task.break_at - now, first, growth)
            if steps < task.steps:
                task.steps = steps
                seconds = work_of(steps, first, growth)
        self._write(
            (
                task.worker,
                now,
                now + seconds,
                1.0,
                0.0,
                first,
                growth,
                task.steps,
                task.batch,
                task.joined,
                task.tokens,
                task.blocks,
            )
        )
        return self._timeout(seconds)

    def break_at(self, task: Task, time: float) -> None:
        """Nothing: whoever could ask is the one process itself, between two runs."""


class Rates(Protocol):
    """How the running tasks share the GPU (`splitwiser.models.sharing`)."""

    def rates(self, demands: Sequence[Demand]) -> Sequence[float]:
        """Seconds alone of work that each task does per second."""
        ...


class SharedDevice:
    """A GPU that several processes share at the rates of a sharing model."""

    needs_demand = True

    def __init__(self, env: Environment, sharing: Rates, log: Log) -> None:
        self._env = env
        self._sharing = sharing
        self._write = log.stretches.extend
        self._active: list[Task] = []
        self._version = 0
        self._settling = False

    def start(self, task: Task) -> Event:
        task.done = 0.0
        task.goal = work_of(task.steps, task.first, task.growth)
        task.rate = 0.0
        task.since = self._env.now
        task.event = self._env.event()
        self._active.append(task)
        self._settle_soon()
        return task.event

    def break_at(self, task: Task, time: float) -> None:
        if task.event is None or time >= task.break_at:
            return
        task.break_at = time
        if time <= self._env.now:
            self._cut(task)
        self._settle_soon()

    def _cut(self, task: Task) -> None:
        """The break is past: end the run at the first step boundary at or after it."""
        progress = task.done + (task.break_at - task.since) * task.rate
        task.break_at = inf
        steps = steps_for(progress, task.first, task.growth)
        if steps < task.steps:
            task.steps = steps
            task.goal = work_of(steps, task.first, task.growth)

    def _settle_soon(self) -> None:
        """Find the new rates once all that happens at this instant has happened."""
        if not self._settling:
            self._settling = True
            settle = self._env.event()
            settle.callbacks.append(self._settle)
            settle.succeed()

    def _settle(self, _: Event) -> None:
        """Give every task its rate, and wake when the first of them ends."""
        self._settling = False
        self._version += 1
        active = self._active
        if not active:
            return
        now = self._env.now
        rates: Sequence[float] = (1.0,)
        if len(active) > 1:
            rates = self._sharing.rates([task.demand for task in active])
        soonest, ending = inf, active[0]
        for task, rate in zip(active, rates, strict=True):
            if task.break_at <= now:
                self._cut(task)
            if rate != task.rate:
                self._write_stretch(task, now, steps=-1)
                task.done += (now - task.since) * task.rate
                task.since = now
                task.rate = rate
            end = self._end(task)
            if end < soonest:
                soonest, ending = end, task
        wake = self._env.timeout(max(0.0, soonest - now))
        version = self._version
        wake.callbacks.append(lambda _: self._wake(version, ending))

    def _end(self, task: Task) -> float:
        """When a run ends, if the rates stay as they are."""
        end = task.since + (task.goal - task.done) / task.rate
        if end > task.break_at:
            progress = task.done + (task.break_at - task.since) * task.rate
            steps = min(task.steps, steps_for(progress, task.first, task.growth))
            goal = work_of(steps, task.first, task.growth)
            end = task.since + (goal - task.done) / task.rate
        return end

    def _wake(self, version: int, task: Task) -> None:
        if version != self._version:
            return  # the rates have changed since
        now = self._env.now
        if task.break_at <= now:
            self._cut(task)
        self._write_stretch(task, now, task.steps)
        self._active.remove(task)
        if task.event is not None:
            task.event.succeed()
        task.event = None
        self._settle_soon()

    def _write_stretch(self, task: Task, now: float, steps: int) -> None:
        if now == task.since and steps < 0:
            return
        self._write(
            (
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
