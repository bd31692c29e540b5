"""Warm-up, intervals, and steady state against overload, held to what theory says of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.sim.result import Result
from splitwiser.sim.stats import (
    bca_interval,
    mser5,
    percentile_interval,
    replication_interval,
    steady,
)
from splitwiser.sim.timeline import Timeline

NO_ROWS = Timeline(np.empty((0, 12)), np.empty((0, 5)), np.empty(0))


def single_server(load: float, count: int, seed: int, until: float | None = None) -> Result:
    """An M/M/1 queue with service rate 1, by Lindley's recursion; cut off at *until*."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / load, count))
    service = rng.exponential(1, count)
    finished = np.empty(count)
    free = 0.0
    for i in range(count):
        free = finished[i] = max(free, arrival[i]) + service[i]
    return served(arrival, finished, service, until)


def served(arrival, finished, service, until=None) -> Result:
    """A result with these times."""
    if until is not None:
        kept = arrival <= until
        arrival, finished, service = arrival[kept], finished[kept], service[kept]
        finished = np.where(finished <= until, finished, np.nan)
    ones = np.ones(len(arrival), dtype=np.int64)
    outcome = np.where(np.isnan(finished), 3, 0).astype(np.int8)
    begun = finished - service
    return Result(arrival, ones, ones, begun, begun, finished, 0 * ones, 0 * ones, outcome, NO_ROWS)


@pytest.mark.parametrize("seed", range(5))
def test_mser_cuts_a_known_transient(seed: int) -> None:
    """Of a series that settles within some 300 values, about that many are cut."""
    rng = np.random.default_rng(seed)
    series = 10 * np.exp(-np.arange(4000) / 100) + rng.normal(0, 1, 4000)
    assert 150 <= mser5(series) <= 900


@given(st.lists(st.floats(-1e6, 1e6), max_size=60))
def test_mser_keeps_half(series: list[float]) -> None:
    """Whatever the series, whole batches are cut and at least half of it stays."""
    cut = mser5(series)
    assert cut % 5 == 0
    assert 0 <= cut <= len(series) / 2


def test_mser_is_the_least_standard_error() -> None:
    """The cut is where the definition, computed one by one, is least."""
    series = np.random.default_rng(2).normal(0, 1, 203) + np.linspace(3, 0, 203) ** 2
    batches = series[:200].reshape(40, 5).mean(axis=1)
    errors = [batches[d:].var() / (40 - d) for d in range(21)]
    assert mser5(series) == 5 * int(np.argmin(errors))


def test_a_constant_series_has_no_warm_up() -> None:
    """Nothing is cut from a constant or a very short series."""
    assert mser5(np.full(1000, 3.7)) == mser5([1.0, 2.0]) == mser5([]) == 0


def coverage(interval, draw, truth: float, rounds: int) -> float:
    """The share of intervals that hold the truth."""
    hits = 0
    for seed in range(rounds):
        found = interval(draw(np.random.default_rng(seed)))
        hits += found.low <= truth <= found.high
    return hits / rounds


def test_replications_cover_the_mean() -> None:
    """A 90 % t interval of 5 normal replications holds the mean 90 times in 100."""
    share = coverage(
        lambda x: replication_interval(x, 0.9), lambda rng: rng.normal(3, 2, 5), 3.0, 2000
    )
    assert 0.87 < share < 0.93


def test_percentile_intervals_cover_for_any_distribution() -> None:
    """A distribution-free interval holds the true percentile as often as stated, not always."""
    share = coverage(
        lambda x: percentile_interval(x, 90),
        lambda rng: rng.pareto(1.5, 200),
        10 ** (1 / 1.5) - 1,
        2000,
    )
    assert 0.94 < share < 0.985


def test_bca_covers_a_skewed_mean() -> None:
    """A BCa interval of a skewed sample's mean holds the true mean nearly as often as stated."""
    share = coverage(
        lambda x: bca_interval(x, confidence=0.9, resamples=300),
        lambda rng: rng.exponential(1, 40),
        1.0,
        150,
    )
    assert 0.82 < share < 0.96


@pytest.mark.parametrize(
    ("q", "size", "enough"), [(99, 367, False), (99, 368, True), (1, 368, True)]
)
def test_a_small_sample_is_said_to_be_small(q: float, size: int, enough: bool) -> None:
    """A 95 % interval for the 99th percentile needs 368 values: ln 0.025 / ln 0.99."""
    found = percentile_interval(np.arange(size), q)
    assert np.isfinite([found.low, found.high]).all() == enough
    assert (found.note == "") == enough
    assert enough or "368 or more" in found.note


def test_a_sample_that_does_not_vary_has_a_point() -> None:
    """A degenerate sample gives its value, not NaN."""
    found = bca_interval([4.0, 4.0, 4.0])
    assert (found.estimate, found.low, found.high) == (4.0, 4.0, 4.0)
    assert "does not vary" in found.note


def test_where_bca_is_not_defined_the_note_says_so() -> None:
    """A statistic without spread over the resamples still gives an interval, and says which."""
    found = bca_interval([0.0] * 30 + [1.0], np.median, resamples=200)
    assert found.low <= found.estimate <= found.high
    assert "percentile bootstrap" in found.note


def test_bootstrap_is_repeatable() -> None:
    """The same seed gives the same interval."""
    sample = np.random.default_rng(0).exponential(1, 30)
    assert bca_interval(sample, np.median, seed=5) == bca_interval(sample, np.median, seed=5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: replication_interval([1.0]),
        lambda: replication_interval([1.0, float("nan")]),
        lambda: replication_interval([1.0, 2.0], 95),
        lambda: bca_interval([]),
        lambda: percentile_interval([], 50),
        lambda: percentile_interval([1.0], 100),
        lambda: mser5([1.0, float("nan")]),
    ],
)
def test_intervals_of_nothing_are_refused(call) -> None:
    """Too few values, NaN, or a confidence in per cent raise, and yield no interval."""
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        call()


@pytest.mark.parametrize("seed", range(4))
def test_a_loaded_queue_is_steady(seed: int) -> None:
    """An M/M/1 queue at load 0.7 is steady, also when it is cut off in mid-run."""
    assert steady(single_server(0.7, 5000, seed)) == "steady"
    assert steady(single_server(0.7, 5000, seed, until=5000.0)) == "steady"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1000, 10_000])
def test_an_overloaded_queue_is_told(seed: int, count: int) -> None:
    """An M/M/1 queue at load 1.2 is overloaded, whether its backlog drains in the end or not."""
    assert steady(single_server(1.2, count, seed)) == "overload"
    assert steady(single_server(1.2, count, seed, until=count / 1.5)) == "overload"


def test_errors_of_the_verdict_are_rare() -> None:
    """Over many queues at loads 0.8 and 1.1 the verdict is wrong at most once in twenty."""
    rounds = 25
    wrong = sum(steady(single_server(0.8, 3000, s)) != "steady" for s in range(rounds))
    wrong += sum(steady(single_server(1.1, 5000, s)) != "overload" for s in range(rounds))
    assert wrong <= 2 * rounds / 20


@settings(max_examples=20)
@given(st.integers(0, 199))
def test_few_requests_are_too_short(count: int) -> None:
    """Fewer than 200 requests tell nothing."""
    times = np.arange(count, dtype=float)
    assert steady(served(times, times + 0.5, 0 * times + 0.5)) == "short"


def test_a_system_that_is_still_filling_is_too_short() -> None:
    """Arrivals that span less than ten times what one request takes, or come at once, tell nothing."""
    times = np.linspace(0, 9, 1000)
    assert steady(served(times, times + 1, 0 * times + 1)) == "short"
    assert steady(served(0 * times, times + 1, 0 * times + 1)) == "short"
    assert steady(served(times, times + 0.5, 0 * times + 0.5)) == "steady"


def test_one_stall_is_no_overload() -> None:
    """A backlog that came once, late, and went again leaves a steady system."""
    times = np.arange(2000.0)
    finished = times + 0.5
    finished[1200:1600] = 1600.5
    assert steady(served(times, finished, 0 * times)) == "steady"


def test_one_verdict_for_any_unit_of_time() -> None:
    """Scaling all times changes nothing in the verdict."""
    for load in (0.7, 1.2):
        result = single_server(load, 3000, 1)
        scaled = served(result.arrival * 1e-3, result.finished * 1e-3, 0 * result.arrival)
        assert steady(scaled) == steady(result)
