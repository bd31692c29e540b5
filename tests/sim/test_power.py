"""The power limit over time: prompts after a pause."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.models.catalogue import llm
from splitwiser.models.cost import CostModel, Demand
from splitwiser.models.gpu import gpu
from splitwiser.models.power import Power
from splitwiser.models.profile import profile_for
from splitwiser.models.work import prompt_pairs
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
