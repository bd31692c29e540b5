"""The device as a fluid: rates, breaks, and the end of runs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from math import inf
from typing import Any

import pytest
from simpy import Environment, Event

from splitwiser.models.cost import Demand
from splitwiser.sim.device import ExclusiveDevice, SharedDevice, Task
from splitwiser.sim.log import STRETCH, Log


class EqualShares:
    """Everybody gets the same part."""

    def rates(self, demands: Sequence[Demand]) -> Sequence[float]:
        return [1 / len(demands)] * len(demands)


def task(worker: int, steps: int, first: float, growth: float = 0.0) -> Task:
    made = Task(worker)
    made.steps, made.first, made.growth = steps, first, growth
    return made


Life = Generator[Event, Any, None]


def start_at(
    env: Environment, device: SharedDevice, run: Task, time: float, ends: dict[int, float]
) -> Life:
    yield env.timeout(time)
    yield device.start(run, env.now)
    ends[run.worker] = env.now


def test_two_runs_share_the_device_while_both_are_there() -> None:
    """3 s of work from 0 and 1 s from 1 at equal shares: the short one ends at 3, the long one at
    4.
    """
    env, log, ends = Environment(), Log(0), dict[int, float]()
    device = SharedDevice(env, EqualShares(), log)
    env.process(start_at(env, device, task(0, 3, 1.0), 0.0, ends))
    env.process(start_at(env, device, task(1, 1, 1.0), 1.0, ends))
    env.run()
    assert ends == pytest.approx({1: 3.0, 0: 4.0})
    rows = log.stretch_rows()
    rate, steps = STRETCH.index("rate"), STRETCH.index("steps")
    assert [row[rate] for row in rows if row[0] == 0] == [1.0, 0.5, 1.0]
    assert [row[steps] for row in rows if row[0] == 0] == [-1, -1, 3]


@pytest.mark.parametrize(("at", "steps", "end"), [(0.5, 1, 1.0), (3.0, 2, 3.0), (3.1, 3, 6.0)])
def test_a_break_ends_a_run_at_the_next_step_boundary(at: float, steps: int, end: float) -> None:
    """Steps of 1, 2, 3 and 4 s end at 1, 3, 6 and 10 s; a break at a boundary ends the run there."""
    env, ends = Environment(), dict[int, float]()
    device = SharedDevice(env, EqualShares(), Log(0))
    run = task(0, 4, 1.0, 1.0)
    env.process(start_at(env, device, run, 0.0, ends))
    env.run(1e-9)
    device.break_at(run, at)
    env.run()
    assert run.steps == steps
    assert ends[0] == pytest.approx(end)
    exclusive, alone = ExclusiveDevice(env, Log(0)), task(0, 4, 1.0, 1.0)
    alone.break_at = at
    exclusive.clip(alone, 0.0)
    assert alone.steps == steps


def test_a_break_that_is_past_ends_the_step_under_way() -> None:
    """A break at this moment lets the step that runs be the last one."""
    env, ends = Environment(), dict[int, float]()
    device = SharedDevice(env, EqualShares(), Log(0))
    run = task(0, 10, 1.0)
    env.process(start_at(env, device, run, 0.0, ends))
    env.run(4.5)
    device.break_at(run, env.now)
    assert run.steps == 5
    env.run()
    assert ends == {0: pytest.approx(5.0)}
    device.break_at(run, inf)  # nothing runs: no effect
