"""Queueing theory: with degenerate costs the simulator is a queue whose means are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from worlds import queue

REQUESTS = 80_000
MEAN = 1.0  # s of service


def assert_mean(sample: NDArray[np.float64], expected: float) -> None:
    """The mean of a correlated series agrees with theory: 99.9 % interval over 20 batch means.

    The first tenth is left out as warm-up.
    """
    batches = [part.mean() for part in np.array_split(sample[len(sample) // 10 :], 20)]
    half = stats.t.ppf(0.9995, 19) * np.std(batches, ddof=1) / np.sqrt(20)
    mean = float(np.mean(batches))
    assert abs(mean - expected) < half, f"{mean:.4f} +- {half:.4f}, theory says {expected:.4f}"
    assert half < 0.2 * expected, "too wide to say anything"


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_one_engine_with_exponential_prompts_is_an_mm1_queue(load: float) -> None:
    """M/M/1: the mean wait is rho/(mu - lambda), the mean response 1/(mu - lambda)."""
    services = np.random.default_rng(1).exponential(MEAN, REQUESTS)
    result = queue(2, load / MEAN, services)
    assert_mean(result.scheduled - result.arrival, load * MEAN / (1 - load))
    assert_mean(result.e2el, MEAN / (1 - load))


def test_one_engine_with_equal_prompts_is_an_md1_queue() -> None:
    """M/D/1: the mean wait is half that of M/M/1 (Pollaczek and Khinchine)."""
    load = 0.7
    result = queue(3, load / MEAN, np.full(REQUESTS, MEAN))
    assert_mean(result.scheduled - result.arrival, load * MEAN / (2 * (1 - load)))
    assert_mean(result.e2el, MEAN + load * MEAN / (2 * (1 - load)))


@pytest.mark.parametrize("shape", ["constant", "exponential", "two-point"])
def test_equal_shares_make_processor_sharing_that_only_sees_the_mean(shape: str) -> None:
    """M/G/1 processor sharing: the mean response is 1/(mu - lambda), whatever the distribution."""
    count, load = 30_000, 0.5
    rng = np.random.default_rng(4)
    services = {
        "constant": np.full(count, MEAN),
        "exponential": rng.exponential(MEAN, count),
        "two-point": rng.choice([0.5 * MEAN, 5.5 * MEAN], count, p=[0.9, 0.1]),
    }[shape]
    result = queue(5, load / MEAN, services, servers=20)
    assert_mean(result.e2el, MEAN / (1 - load))


def test_little() -> None:
    """Over a finished run the time-average number in the system is the rate times the mean
    response.
    """
    result = queue(6, 0.8 / MEAN, np.random.default_rng(7).exponential(MEAN, 4_000))
    times = np.concatenate((result.arrival, result.finished))
    change = np.concatenate((np.ones(len(result)), -np.ones(len(result))))
    order = np.argsort(times, kind="stable")
    number = np.cumsum(change[order])
    area = float((number[:-1] * np.diff(times[order])).sum())
    duration = float(result.finished.max() - result.arrival[0])
    rate = len(result) / duration
    assert number.min() >= 0
    assert area / duration == pytest.approx(rate * float(result.e2el.mean()), rel=1e-9)
