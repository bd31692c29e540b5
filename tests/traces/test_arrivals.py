"""Arrival processes: their laws, and vLLM's rule."""

from __future__ import annotations

import numpy as np
import pytest

from splitwiser.traces import arrivals, random_trace
from splitwiser.traces.streams import Purpose, stream

N = 20_000


def cv(times: np.ndarray) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_is_vllms_rule(burstiness: float) -> None:
    """Gaps are gamma of shape b and scale 1/(rate·b), cumulated; the last arrival is n/rate."""
    times = arrivals.gamma(N, 5.0, burstiness, seed=3)
    gaps = stream(3, Purpose.ARRIVALS).gamma(burstiness, 1 / (5.0 * burstiness), N)
    drawn = np.cumsum(gaps)
    np.testing.assert_allclose(times, drawn * (N / 5.0 / drawn[-1]), rtol=1e-12)
    assert times[-1] == pytest.approx(N / 5.0)
    assert cv(times) == pytest.approx(burstiness**-0.5, rel=0.05)


def test_infinite_rate() -> None:
    """A rate of inf sends all at once."""
    assert not arrivals.gamma(5, float("inf")).any()
    assert not arrivals.all_at_once(5).any()


def test_constant() -> None:
    """A constant rate has equal gaps and ends at n/rate."""
    assert arrivals.constant(4, 2.0).tolist() == [0.5, 1.0, 1.5, 2.0]


def test_poisson_counts() -> None:
    """Counts of a Poisson process in equal windows have a variance equal to their mean."""
    times = arrivals.poisson(N, 10.0, seed=1)
    counts = np.bincount((times // 5).astype(int))[:-1]
    assert counts.mean() == pytest.approx(50, rel=0.03)
    assert counts.var() == pytest.approx(counts.mean(), rel=0.2)


def test_time_varying_counts() -> None:
    """Each step of a schedule gets arrivals at its own rate, and a rate of 0 gets none."""
    times = arrivals.time_varying(
        N, [(0.0, 0.0), (100.0, 20.0), (300.0, 0.0), (400.0, 50.0)], seed=2
    )
    assert times[0] > 100
    first = ((times >= 100) & (times < 300)).sum()
    assert abs(first - 4000) < 4 * 4000**0.5
    assert not ((times >= 300) & (times < 400)).any()
    later = (times >= 400).sum() / (times[-1] - 400)
    assert later == pytest.approx(50, rel=0.04)


def test_time_varying_of_one_rate() -> None:
    """A schedule of one rate is the Poisson process of that rate, draw by draw."""
    drawn = np.cumsum(stream(4, Purpose.ARRIVALS).gamma(1.0, 1.0, 100)) / 8.0
    np.testing.assert_allclose(arrivals.time_varying(100, [(0.0, 8.0)], seed=4), drawn)


def test_bursts() -> None:
    """Bursts have the given size, gaps of the given mean, and the given rate overall."""
    times = arrivals.bursts(200_000, 2.5, 200, 0.1, seed=0)
    gaps = np.diff(times)
    assert len(times) / times[-1] == pytest.approx(2.5)
    assert np.median(gaps) == pytest.approx(0.1 * np.log(2), rel=0.1)
    silences = (gaps > 2.0).sum()  # hardly any gap within a burst is so long
    assert len(times) / silences == pytest.approx(200, rel=0.15)


@pytest.mark.parametrize(
    "make",
    [
        lambda: arrivals.gamma(0, 1.0),
        lambda: arrivals.gamma(5, 0.0),
        lambda: arrivals.gamma(5, float("nan")),
        lambda: arrivals.gamma(5, 1.0, 0.0),
        lambda: arrivals.poisson(5, float("inf")),
        lambda: arrivals.poisson(5, 1.0, seed=-1),
        lambda: arrivals.bursts(5, 10.0, 100, 1.0),
        lambda: arrivals.bursts(5, 10.0, 1.0, 0.01),
        lambda: arrivals.time_varying(5, [(1.0, 1.0)]),
        lambda: arrivals.time_varying(5, [(0.0, 1.0), (1.0, 0.0)]),
        lambda: arrivals.time_varying(5, [(0.0, -1.0)]),
        lambda: arrivals.time_varying(5, []),
    ],
)
def test_refuses(make) -> None:  # type: ignore[no-untyped-def]
    """Parameters that describe no process are refused in one line."""
    with pytest.raises(ValueError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_one_seed_one_result() -> None:
    """The same seed gives the same bytes; another one does not."""
    made = [random_trace(100, 3.0, random_range_ratio=0.5, seed=seed) for seed in (1, 1, 2)]
    assert made[0].arrival.tobytes() == made[1].arrival.tobytes()
    assert made[0].prompt_tokens.tobytes() == made[1].prompt_tokens.tobytes()
    assert made[0].arrival.tobytes() != made[2].arrival.tobytes()
    assert made[0].prompt_tokens.tobytes() != made[2].prompt_tokens.tobytes()


def test_streams_are_apart() -> None:
    """More requests, or another burstiness, leave the lengths of the first ones as they were."""
    few = random_trace(50, 3.0, random_range_ratio=0.5)
    many = random_trace(80, 3.0, burstiness=0.5, random_range_ratio=0.5)
    assert few.prompt_tokens.tolist() == many.prompt_tokens[:50].tolist()
    assert few.output_tokens.tolist() == many.output_tokens[:50].tolist()


def test_random_trace_is_vllms_flags() -> None:
    """vLLM's flags give its load; a concurrency with all at once is a closed loop."""
    made = random_trace(10, max_concurrency=4)
    assert made.max_concurrency == 4
    assert not made.arrival.any()
    assert set(made.prompt_tokens) == {1024} and set(made.output_tokens) == {128}
