"""The balance of tasks that slow one another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models import balance
from splitwiser.models.balance import LEAST, Side, balanced, crowd
from splitwiser.models.profile import PARAMETERS


@st.composite
def coupled(draw: st.DrawFn) -> tuple[Side, Side]:
    """Draw use, cost and slow-down of two tasks, as far as profiles and steps allow.

    Of two tasks one has the longer kernels: what it waits less, the other waits more.
    """
    longer = 10.0 ** draw(st.floats(-3.0, 3.0))

    def side(ratio: float) -> Side:
        idle = draw(st.just(0.0) | st.floats(0.0, 10.0))
        use = draw(st.just(1.0) | st.floats(1e-3, 1.0)) / (1.0 + idle)
        cost = 1.0 + idle + draw(st.just(0.0) | st.floats(0.0, 4.0))
        return use, cost, draw(st.floats(0.0, PARAMETERS["wait_compute"].upper)) * (1.0 + ratio)

    return side(longer), side(1.0 / longer)


@given(coupled())
@settings(max_examples=500, deadline=None)
def test_two_tasks_are_in_balance(sides: tuple[Side, Side]) -> None:
    """Each of two tasks runs as fast as the other lets it, or as its own host and overhead do."""
    one, two = sides
    x, w = balanced(one, two)
    for (use, cost, slower), own, other in ((one, x, w), (two, w, x)):
        assert 0.0 < own <= use
        assert own == pytest.approx(min(1.0 / (cost + slower * other), use), rel=1e-6)


@given(coupled(), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
@settings(max_examples=200, deadline=None)
def test_two_tasks_balance_as_several_do(
    sides: tuple[Side, Side], met: float, other: float
) -> None:
    """The closed form for two tasks is what the iteration for any number ends at."""
    (use, cost, slow), (uses, costs, slows) = sides
    most, least = balanced((1.0, cost, slow), (1.0, costs, slows))
    found = crowd(
        (use, uses),
        (cost, costs),
        ((0.0, slow), (slows, 0.0)),
        ((0.0, least), (most, 0.0)),
        ((0.0, met), (other, 0.0)),
    )
    assert found == pytest.approx(balanced(*sides), rel=1e-6)


@given(st.integers(3, 8), st.integers(0, 10_000), st.sampled_from([0.3, 1.0, 4.0, 30.0]))
@settings(max_examples=100, deadline=None)
def test_a_crowd_is_in_balance(n: int, seed: int, wait: float) -> None:
    """Each of several tasks runs as fast as the others let it, or as its host does."""
    balances(n, seed, wait)


def test_a_crowd_settles_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tasks there are, and whatever they cost each other, 60 rounds balance them."""
    monkeypatch.setattr(balance, "ROUNDS", 60)
    for n in range(3, 9):
        for seed in range(20):
            for wait in (0.3, 1.0, 4.0, 30.0):
                balances(n, seed, wait)


def balances(n: int, seed: int, wait: float) -> None:
    """Assert that a crowd drawn with *seed* is in balance."""
    draw = np.random.default_rng(seed)
    apart = np.ones((n, n)) - np.eye(n)
    use, cost = draw.uniform(0.01, 1.0, n), 1.0 + draw.exponential(0.1, n)
    slower, meet = draw.exponential(wait, (n, n)) * apart, draw.uniform(0.0, 1.0, (n, n)) * apart
    most = draw.uniform(0.01, 1.0, (n, n)) * apart
    x = np.array(crowd(*(each.tolist() for each in (use, cost, slower, most, meet))))
    left = 1.0 - (meet @ x)[:, None] + meet * x[None, :]
    lost = (slower * np.minimum(x[None, :] / np.maximum(left, LEAST), most)).sum(axis=1)
    assert x == pytest.approx(np.minimum(use, 1.0 / (cost + lost)), rel=1e-6)
