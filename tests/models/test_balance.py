"""The balance of tasks that slow one another."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models.balance import Need, balanced, free, pair, slow_down
from splitwiser.models.profile import PARAMETERS

Side = tuple[Need, float]
"""What a task has of the device at most, and how the other slows it."""


@st.composite
def coupled(draw: st.DrawFn) -> tuple[Side, Side]:
    """Draw needs and slow-downs of two tasks, as far as profiles and steps allow.

    Of two tasks one has the longer kernels: what it waits less, the other waits more.
    """
    longer = 10.0 ** draw(st.floats(-3.0, 3.0))

    def side(ratio: float) -> Side:
        idle = draw(st.just(0.0) | st.floats(0.0, 10.0))
        use = draw(st.just(1.0) | st.floats(1e-3, 1.0)) / (1.0 + idle)
        cost = 1.0 + draw(st.just(0.0) | st.floats(0.0, 4.0))
        slower = draw(st.floats(0.0, PARAMETERS["wait_compute"].upper)) * (1.0 + ratio)
        return Need(use, idle, cost), slower

    return side(longer), side(1.0 / longer)


@given(coupled())
@settings(max_examples=500, deadline=None)
def test_two_tasks_that_always_want_the_device_are_in_balance(sides: tuple[Side, Side]) -> None:
    """Each of two tasks runs as fast as the other lets it."""
    (one, slower), (two, slows) = sides
    x, w = free(one.cost, slower, two.cost, slows)
    assert x == pytest.approx(1.0 / (one.cost + slower * w), rel=1e-6)
    assert w == pytest.approx(1.0 / (two.cost + slows * x), rel=1e-6)


@given(coupled(), st.floats(1e-3, 1.0), st.booleans())
@settings(max_examples=500, deadline=None)
def test_while_a_neighbour_does_not_want_the_device_a_task_is_alone(
    sides: tuple[Side, Side], part: float, late: bool
) -> None:
    """Beside one that wants the device for a part of the time, since its host is late or for its
    overhead, a task runs as beside one that always does for this part, and as alone in the rest.
    """
    (one, slower), (two, slows) = sides
    x, w = free(one.cost, slower, two.cost, slows)
    idle = 0.0 if late else (1.0 / part - 1.0) / x
    held = Need(part * x if late else 1.0 / (1.0 + idle), idle, one.cost)
    always = Need(1.0, 0.0, two.cost)
    found = pair(held, slower, always, slows)
    assert found == pytest.approx((part * x, part * w + (1.0 - part) / two.cost), rel=1e-6)


@given(coupled(), st.floats(0.1, 1.0))
@settings(max_examples=300, deadline=None)
def test_what_a_host_holds_back_its_neighbour_gains(sides: tuple[Side, Side], less: float) -> None:
    """Nobody runs more than host and overhead allow; the later its host, the slower a task and the
    faster its neighbour, though never faster than alone.
    """
    (one, slower), (two, slows) = sides
    x, w = pair(one, slower, two, slows)
    assert x <= one.use * (1.0 + 1e-9)
    assert w <= min(two.use, 1.0 / (two.cost + two.idle)) * (1.0 + 1e-9)
    later, faster = pair(one._replace(use=less * one.use), slower, two, slows)
    assert later <= x * (1.0 + 1e-6)
    assert faster >= w * (1.0 - 1e-6)


@given(coupled(), st.floats(1e-3, 1.0))
@settings(max_examples=500, deadline=None)
def test_the_slow_down_is_read_off_the_balance(sides: tuple[Side, Side], part: float) -> None:
    """What a task runs of the time, beside one that wants the device for a part of it, tells how that
    one slows it.
    """
    (one, slower), (two, slows) = sides
    x, _ = free(one.cost, slower, two.cost, slows)
    use = part * x
    _, pace = pair(Need(use, 0.0, one.cost), slower, Need(1.0, 0.0, two.cost), slows)
    assert slow_down(pace, two.cost, use, part) == pytest.approx(slows, rel=1e-3, abs=1e-6)


@given(coupled())
@settings(max_examples=300, deadline=None)
def test_two_tasks_balance_as_several_do(sides: tuple[Side, Side]) -> None:
    """What is found for two tasks is what is found for any number, but for the error of an integral."""
    (one, slower), (two, slows) = sides
    x, w = free(one.cost, slower, two.cost, slows)
    found = balanced((one, two), ((0.0, slower * w), (slows * x, 0.0)))
    assert found == pytest.approx(pair(one, slower, two, slows), rel=1e-3)


@given(st.integers(3, 6), st.integers(0, 10_000), st.sampled_from([0.3, 1.0, 4.0]))
@settings(max_examples=100, deadline=None)
def test_several_tasks_run_at_the_mean_of_all_ways(n: int, seed: int, wait: float) -> None:
    """Each of several tasks runs as its host lets it, or else at the mean over all ways in which the
    others want the device or do not.
    """
    draw = np.random.default_rng(seed)
    use, cost = draw.uniform(0.01, 1.0, n), 1.0 + draw.exponential(0.1, n)
    waits = draw.exponential(wait, (n, n)) * (1.0 - np.eye(n))
    needs = [Need(*each) for each in zip(use, [0.0] * n, cost, strict=True)]
    ways = np.array(list(product((0.0, 1.0), repeat=n)))
    paces = ways / (cost + ways @ waits.T)
    wanting = np.ones(n)
    for _ in range(200):
        likely = np.where(ways == 1.0, wanting, 1.0 - wanting).prod(axis=1)
        pace = likely @ paces / wanting
        wanting = np.minimum(1.0, use / pace)
    assert balanced(needs, waits.tolist()) == pytest.approx(wanting * pace, rel=1e-4)


def test_tasks_that_always_want_the_device_wait_for_all_others() -> None:
    """Where nothing holds a task back, its waits add up, however many they are."""
    for n in range(2, 9):
        waits = [[0.0 if i == j else 0.1 * (i + 2 * j) for j in range(n)] for i in range(n)]
        found = balanced([Need(1.0, 0.0, 1.0)] * n, waits)
        assert found == pytest.approx([1.0 / (1.0 + sum(row)) for row in waits])
