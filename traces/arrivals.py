"""Arrival processes: seconds, one per request, never falling.

Each function takes the number of requests, and a seed (or a generator of the caller's). A closed
loop needs no process of its own: :func:`all_at_once`, and `max_concurrency` on the trace.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitwiser.traces.streams import Purpose, stream

Floats = NDArray[np.float64]
Seed = int | np.random.Generator


def all_at_once(count: int) -> Floats:
    """All requests at time 0: vLLM's `--request-rate inf`, and a closed loop's start."""
    return np.zeros(_count(count))


def constant(count: int, rate: float) -> Floats:
    """Equal gaps of 1/*rate* seconds, the first before the first request: the last is at n/rate."""
    return np.arange(1, _count(count) + 1) / _rate(rate)


def poisson(count: int, rate: float, *, seed: Seed = 0) -> Floats:
    """A Poisson process: exponential gaps of mean 1/*rate* seconds, as drawn.

    Unlike :func:`gamma` with burstiness 1, nothing is rescaled: the last arrival is random.
    """
    gaps = stream(seed, Purpose.ARRIVALS).exponential(1 / _rate(rate), _count(count))
    return np.cumsum(gaps)


def gamma(count: int, rate: float, burstiness: float = 1.0, *, seed: Seed = 0) -> Floats:
    """vLLM's rule: gamma gaps, cumulated, then rescaled so that the last arrival is n/*rate*.

    The gaps have shape *burstiness* and scale 1/(rate·burstiness) seconds, so that their
    coefficient of variation is 1/√burstiness: 1 is Poisson, below 1 burstier, above 1 more even.
    A rate of inf puts all at 0. Source: `get_request` in vLLM's `benchmarks/serve.py`.
    """
    if rate == float("inf"):
        return all_at_once(count)
    _positive(burstiness, "burstiness")
    scale = 1 / (_rate(rate) * burstiness)
    gaps = stream(seed, Purpose.ARRIVALS).gamma(burstiness, scale, _count(count))
    return _rescaled(np.cumsum(gaps), rate)


def bursts(
    count: int, rate: float, burst_requests: float, burst_gap_s: float, *, seed: Seed = 0
) -> Floats:
    """Bursts and silences: hyperexponential gaps, rescaled so that the last arrival is n/*rate*.

    A burst holds *burst_requests* requests on average, with exponential gaps of mean *burst_gap_s*
    seconds; the silences between bursts are exponential too, as long as the rate asks.
    """
    _rate(rate)
    _positive(burst_gap_s, "burst_gap_s")
    if not 1 < burst_requests < float("inf"):
        raise ValueError(f"burst_requests must be a number above 1, not {burst_requests}")
    silent = 1 / burst_requests
    silence = (1 / rate - (1 - silent) * burst_gap_s) / silent
    if silence <= 0:
        raise ValueError(
            f"a burst_gap_s of {burst_gap_s} leaves no silence at {rate} requests/s; "
            f"accepted is less than {1 / rate / (1 - silent):.6g}"
        )
    rng = stream(seed, Purpose.ARRIVALS)
    means = np.where(rng.random(_count(count)) < silent, silence, burst_gap_s)
    return _rescaled(np.cumsum(rng.exponential(means)), rate)


def time_varying(
    count: int,
    schedule: Sequence[tuple[float, float]],
    *,
    burstiness: float = 1.0,
    seed: Seed = 0,
) -> Floats:
    """A rate that changes: *schedule* holds (start in seconds, requests/s) steps, from 0 s on.

    Each rate holds until the next step, the last one for ever (so it must be above 0). Gamma gaps
    of mean 1 (Poisson for *burstiness* 1) are taken through the inverse of the cumulated rate: the
    time-change theorem for an inhomogeneous Poisson process (Çinlar 1975), exact and not thinned.
    """
    starts, rates = _schedule(schedule)
    _positive(burstiness, "burstiness")
    gaps = stream(seed, Purpose.ARRIVALS).gamma(burstiness, 1 / burstiness, _count(count))
    due = np.cumsum(gaps)  # in expected requests
    expected = np.concatenate(([0.0], np.cumsum(np.diff(starts) * rates[:-1])))
    step = np.searchsorted(expected, due, side="right") - 1  # skips steps of rate 0
    times: Floats = starts[step] + (due - expected[step]) / rates[step]
    return np.maximum.accumulate(times)  # rounding where steps meet


def _schedule(schedule: Sequence[tuple[float, float]]) -> tuple[Floats, Floats]:
    table = np.array(schedule, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != 2:
        raise ValueError(f"a schedule holds (start, rate) pairs, not {schedule!r}")
    starts, rates = table[:, 0], table[:, 1]
    if starts[0] != 0 or not (np.diff(starts) > 0).all() or not np.isfinite(starts).all():
        raise ValueError(f"schedule starts must rise from 0 s, not {starts.tolist()}")
    if not (np.isfinite(rates) & (rates >= 0)).all() or rates[-1] == 0:
        raise ValueError(
            f"schedule rates must be 0 or more, the last above 0, not {rates.tolist()}"
        )
    return starts, rates


def _rescaled(times: Floats, rate: float) -> Floats:
    last = times[-1]
    if last > 0:  # as vLLM: gaps that all vanished stay so
        times = times * (len(times) / rate / last)
    return times


def _count(count: int) -> int:
    if count < 1:
        raise ValueError(f"the number of requests must be 1 or more, not {count}")
    return count


def _positive(value: float, name: str) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a number above 0, not {value}")


def _rate(rate: float) -> float:
    _positive(rate, "request rate")
    return rate
