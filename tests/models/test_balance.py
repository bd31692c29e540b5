"""The balance of tasks that slow one another."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models import balance
from splitwiser.models.balance import LEAST, crowd, pair
from splitwiser.models.profile import PARAMETERS

Side = tuple[float, float, float, float]


@st.composite
def coupled(draw: st.DrawFn) -> tuple[Side, Side]:
    """Draw use, cost, slow-down and yield of two tasks, as far as profiles and steps allow.

    Of two tasks one has the longer kernels: what it waits less, the other waits more.
    """
    longer = 10.0 ** draw(st.floats(-3.0, 3.0))

    def side(ratio: float) -> Side:
        idle = draw(st.just(0.0) | st.floats(0.0, 10.0))
        use = draw(st.just(1.0) | st.floats(1e-3, 1.0)) / (1.0 + idle)
        cost = 1.0 + idle + draw(st.just(0.0) | st.floats(0.0, 4.0))
        wait = draw(st.floats(0.0, PARAMETERS["wait_compute"].upper)) * ratio
        yields = draw(st.just(0.0) | st.floats(0.0, PARAMETERS["yielded"].upper))
        return use, cost, wait - idle * yields, yields

    return side(longer), side(1.0 / longer)


@given(coupled())
@settings(max_examples=500, deadline=None)
def test_two_tasks_are_in_balance(sides: tuple[Side, Side]) -> None:
    """Each of two tasks runs as fast as the other lets it, or as its own host and overhead do."""
    one, two = sides
    x, w = pair(one, two)
    for (use, cost, slower, yields), own, other in ((one, x, w), (two, w, x)):
        asked = (1.0 - yields * other) / (cost + slower * other)
        assert 0.0 < own <= use
        assert own == pytest.approx(min(asked, use), rel=1e-6)


@given(coupled())
@settings(max_examples=500, deadline=None)
def test_two_tasks_balance_as_several_do(sides: tuple[Side, Side]) -> None:
    """The closed form for two tasks is what the iteration for any number ends at."""
    tasks = np.array(sides)
    slower, yields = (np.array([[0.0, tasks[0, k]], [tasks[1, k], 0.0]]) for k in (2, 3))
    found = crowd(tasks[:, 0], tasks[:, 1], slower, yields)
    assert found == pytest.approx(pair(*sides), rel=1e-6)


@given(st.integers(3, 6), st.integers(0, 10_000), st.sampled_from([0.3, 1.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_a_crowd_is_balanced_in_few_rounds(n: int, seed: int, wait: float) -> None:
    """Fifteen rounds find a balance to which any number of further ones adds nothing."""
    draw = np.random.default_rng(seed)
    apart = np.ones((n, n)) - np.eye(n)
    slower, yields = draw.exponential(wait, (n, n)) * apart, draw.uniform(0.0, 0.4, (n, n)) * apart
    use, cost = draw.uniform(0.2, 1.0, n), 1.0 + draw.exponential(0.1, n)
    with patch.object(balance, "ROUNDS", 15):
        soon = crowd(use, cost, slower, yields)
    assert soon == pytest.approx(crowd(use, cost, slower, yields), rel=1e-9)


@given(st.integers(2, 12), st.floats(0.0, 2.0), st.floats(0.0, 0.95), st.floats(0.01, 1.0))
@settings(max_examples=100, deadline=None)
def test_equal_tasks_balance_at_the_root_of_their_equation(
    n: int, wait: float, yields: float, use: float
) -> None:
    """n equal tasks run for x of the time, x (1 + (n-1) A x) = 1 - (n-1) y x, or what is left, with
    A = a (1 + (n-2) a x): who is waited for waits for the others.
    """
    others = np.ones((n, n)) - np.eye(n)
    x = crowd(np.full(n, use), np.ones(n), wait * others, yields * others)
    assert x == pytest.approx(np.full(n, x[0]), rel=1e-9)
    left = max(1.0 - (n - 1) * yields * x[0], LEAST)
    waits = wait * (1.0 + (n - 2) * wait * x[0])
    assert x[0] == pytest.approx(min(left / (1.0 + (n - 1) * waits * x[0]), use), rel=1e-6)
