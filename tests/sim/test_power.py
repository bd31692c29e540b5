"""The power limit over time: prompts after a pause."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from math import exp
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simpy import Environment, Event

from splitwiser.models.catalogue import llm
from splitwiser.models.cost import CostModel, Demand
from splitwiser.models.gpu import gpu
from splitwiser.models.power import Power
from splitwiser.models.profile import profile_for
from splitwiser.models.work import prompt_pairs
from splitwiser.sim.device import ExclusiveDevice, SharedDevice, Task
from splitwiser.sim.log import Log
from splitwiser.sim.power import MEMORY_S, RecentPower

HOT = Demand(0.02, 0.02, 0.0, 0.0, 300.0, 1.0, compute=0.01, gain=0.1)
LIMIT = Power(0.5, 1.0)  # HOT draws all that it sustains


@given(st.floats(1e-4, 10.0), st.floats(1e-4, 10.0))
def test_the_longer_the_pause_the_faster_a_prompt(pause: float, more: float) -> None:
    """After no pause a prompt is as slow as one of many that follow each other, and the longer the
    pause the faster it is, up to the pace of its kernels in a burst.
    """

    def rise(idle: float) -> float:
        recent = RecentPower(LIMIT)
        recent.draw(0.0, [HOT], [1.0])
        recent.draw(100.0, [], [])
        recent.draw(100.0 + idle, [HOT], [1.0])
        return recent.rise(HOT, 1e-9)

    assert rise(0.0) == pytest.approx(1.0)
    assert rise(0.0) <= rise(pause) <= rise(pause + more) <= 1.0 + HOT.gain
    assert rise(1e3) == pytest.approx(1.0 + HOT.gain)


@given(st.floats(1e-3, 10.0))
def test_what_a_prompt_draws_itself_counts(seconds: float) -> None:
    """Over a long prompt the gain fades as fast as the device forgets the pause before it."""
    recent = RecentPower(LIMIT)
    recent.draw(50.0, [HOT], [1.0])
    age = seconds / MEMORY_S
    assert recent.rise(HOT, seconds) == pytest.approx(1.0 + HOT.gain * (1.0 - exp(-age)) / age)


@given(st.floats(0.0, 1.0), st.floats(0.0, 16.0))
def test_who_draws_nothing_gains_nothing(part: float, relief: float) -> None:
    """A step that power holds back by nothing is as fast as ever, whatever was drawn before it."""
    recent = RecentPower(Power(0.5, relief))
    cool = HOT._replace(gain=0.0)
    recent.draw(0.0, [HOT], [part])
    recent.draw(1.0, [cool], [1.0])
    assert recent.rise(cool, 0.1) == 1.0


@pytest.mark.parametrize("tokens", [64, 400, 1500, 4096])
def test_the_gain_leads_to_the_time_of_kernels_in_bursts(tokens: int) -> None:
    """With its gain a step takes what it would if power sustained the whole peak, and short prompts,
    whose kernels are no faster in bursts, gain nothing.
    """
    shape, device, profile = llm("meta-llama/Llama-3.1-8B"), gpu("h200"), profile_for("h200")
    kept_up, burst = (
        CostModel(shape, device, each).step(tokens, 1, *prompt_pairs(tokens, 0)).demand(0.0)
        for each in (profile, profile.with_values(sustained=1.0))
    )
    assert burst.gain == 0.0
    assert kept_up.seconds / (1.0 + kept_up.gain) == pytest.approx(burst.seconds)
    assert (kept_up.gain > 0.01) == (tokens > 1000)


def test_a_host_that_is_late_leaves_no_gain() -> None:
    """A step whose launches take longer than its kernels is as late after a pause as without one."""
    profile = profile_for("h200")
    cost = CostModel(llm("meta-llama/Llama-3.1-8B"), gpu("h200"), profile)
    step = cost.step(4096, 1, *prompt_pairs(4096, 0))
    gains = [
        step._replace(host=part * step.gpu).demand(0.0).gain for part in (0.0, 0.9, 0.97, 1.0, 2.0)
    ]
    assert gains[0] == gains[1] > gains[2] > gains[3] == gains[4] == 0.0


class Alone:
    """What the device gives one task."""

    def rates(self, demands: Sequence[Demand]) -> Sequence[float]:
        return [1.0] * len(demands)


@pytest.mark.parametrize("shared", [False, True])
def test_a_device_remembers_what_it_drew(shared: bool) -> None:
    """The first prompt and one after a long pause are as fast as nothing before them lets them be;
    one right behind another is slower, by what that one drew, and still faster than steady ones.
    """
    env, took = Environment(), list[float]()
    device = SharedDevice(env, Alone(), Log(0), LIMIT)
    if not shared:
        device = ExclusiveDevice(env, Log(0), LIMIT)  # type: ignore[assignment]

    def prompts() -> Generator[Event, Any, None]:
        for pause in (0.0, 0.0, 100.0):
            yield env.timeout(pause)
            began = env.now
            task = Task(0)
            task.first, task.demand = HOT.seconds, HOT
            yield device.start(task, env.now)
            took.append(env.now - began)

    env.process(prompts())
    env.run()
    first, behind, rested = took
    fading = MEMORY_S / HOT.seconds * (1.0 - exp(-HOT.seconds / MEMORY_S))
    assert first == pytest.approx(HOT.seconds / (1.0 + HOT.gain * fading))
    assert rested == pytest.approx(first)
    left = exp(-first / MEMORY_S)
    assert behind == pytest.approx(HOT.seconds / (1.0 + HOT.gain * left * fading))
