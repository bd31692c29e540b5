"""Engines that decide on a step before the one under way has ended."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from splitwiser.models.catalogue import llm
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import profile_for
from splitwiser.sim.deployment import Deployment, chunked, continuous
from splitwiser.sim.result import Result
from splitwiser.sim.simulate import simulate
from splitwiser.traces.trace import Trace

MODEL, A100 = llm("facebook/opt-1.3b"), gpu("a100-80gb")
ENGINES = (continuous, chunked)


def served(engine: Callable[[], Deployment], lead: float, *arrivals: float) -> Result:
    """Requests of 50 tokens that want 80 each, through an engine that decides ahead by *lead*."""
    count = len(arrivals)
    trace = Trace(np.array(arrivals), np.full(count, 50), np.full(count, 80))
    profile = profile_for("a100-80gb").with_values(decided_ahead=lead)
    return simulate(trace, engine(), MODEL, A100, profile)


def ends(engine: Callable[[], Deployment]) -> np.ndarray:
    """When the steps of a request alone end."""
    alone = served(engine, 0.0, 0.0)
    return alone.timeline.token_times(np.arange(1), alone.first_token, alone.finished).of(0)


@pytest.mark.parametrize("engine", ENGINES)
@given(lead=st.sampled_from((0.0, 0.15, 0.7, 1.0)), place=st.floats(0.02, 0.9))
def test_who_comes_after_the_decision_waits_for_the_step_behind_it(
    engine: Callable[[], Deployment], lead: float, place: float
) -> None:
    """A request begins with the first step that was decided on after it came."""
    steps = ends(engine)
    arrival = float(steps[0] + place * (steps[-1] - steps[0]))
    decided = steps[1:] - lead * np.diff(steps)
    assume(np.abs(decided - arrival).min() > 1e-3 * np.diff(steps).max())
    expected = steps[1:][np.argmax(decided >= arrival)]
    found = served(engine, lead, 0.0, arrival)
    assert found.scheduled[1] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_idle_engine_decides_at_once(engine: Callable[[], Deployment]) -> None:
    """Who comes while nothing runs begins at once, however far ahead the engine decides."""
    late = float(ends(engine)[-1]) + 1.0
    found = served(engine, 0.5, 0.0, late)
    assert found.scheduled.tolist() == [0.0, late]


@pytest.mark.parametrize("engine", ENGINES)
def test_who_comes_as_the_last_sequence_ends_begins_when_it_has(
    engine: Callable[[], Deployment],
) -> None:
    """With nothing decided on, an arrival within the lead of the last step waits for its end only."""
    steps = ends(engine)
    arrival = float(steps[-1] - 0.2 * (steps[-1] - steps[-2]))
    found = served(engine, 0.5, 0.0, arrival)
    assert found.scheduled[1] == pytest.approx(steps[-1], rel=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
@given(lead=st.sampled_from((0.0, 0.3, 0.8)), place=st.floats(0.05, 0.95))
def test_prompts_are_decided_on_ahead_too(
    engine: Callable[[], Deployment], lead: float, place: float
) -> None:
    """Who comes while a prompt is computed begins with the next step, or with the one behind it."""
    steps = ends(engine)
    assume(abs(place - (1.0 - lead)) > 1e-3)
    found = served(engine, lead, 0.0, float(place * steps[0]))
    expected = steps[0] if place < 1.0 - lead else steps[1]
    assert found.scheduled[1] == pytest.approx(expected, rel=1e-9)
