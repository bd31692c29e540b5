"""Replications of a trace, and the confidence limits that they give."""

from __future__ import annotations

import numpy as np
import pytest

from splitwiser.sim.replications import limits, resampled
from splitwiser.sim.trial import PARTS
from splitwiser.traces.prefix import PrefixBlocks
from splitwiser.traces.trace import Trace


def made(requests: int, prefix: bool = False) -> Trace:
    rng = np.random.default_rng(5)
    blocks = PrefixBlocks(np.arange(requests + 1), np.arange(requests), 64) if prefix else None
    return Trace(
        np.cumsum(rng.exponential(1.0, requests)),
        np.arange(requests) + 100,  # a request is known by its prompt
        rng.integers(1, 50, requests),
        prefix=blocks,
    )


@pytest.mark.parametrize("number", range(5))
def test_parts_stay_whole(number: int) -> None:
    """A replication consists of whole parts of the trace, with their requests and gaps in order."""
    trace = made(200)
    other = resampled(trace, number)
    assert len(other) == len(trace)
    rows = other.prompt_tokens - 100
    assert np.array_equal(other.output_tokens, trace.output_tokens[rows])
    size = len(trace) // PARTS
    for part in rows.reshape(PARTS, size):
        assert part[0] % size == 0
        assert np.array_equal(part, part[0] + np.arange(size))
    gaps = np.diff(trace.arrival, prepend=0.0)[rows]
    assert np.allclose(np.diff(other.arrival, prepend=0.0), gaps)


def test_numbers_name_replications() -> None:
    """One number is one trace, and two numbers are two."""
    trace = made(200)
    assert np.array_equal(resampled(trace, 3).arrival, resampled(trace, 3).arrival)
    assert not np.array_equal(resampled(trace, 3).arrival, resampled(trace, 4).arrival)


def test_a_part_drawn_again_brings_its_own_prefixes() -> None:
    """Where the trace shares no prefix, none of its replications does."""
    other = resampled(made(200, prefix=True), 0)
    assert len(np.unique(other.prompt_tokens)) < len(other), "no part was drawn twice"
    assert other.prefix_hit_share == 0
    assert len(np.unique(other.prefix.ids)) == len(other)  # type: ignore[union-attr]


def test_limits_cover_as_often_as_they_say() -> None:
    """Limits at 90 % hold the true mean in 90 % of cases, for normal estimates."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        estimate, *replications = rng.normal(10.0, 1.0, 9)
        # A bootstrap's replications lie around the estimate as that lies around the truth.
        low, high = limits(estimate, [estimate + r - 10.0 for r in replications], 0.9)
        held += low <= 10.0 <= high
    assert 0.87 < held / 2000 < 0.93


def test_limits_stay_at_no_traffic() -> None:
    """No confidence limit is below zero requests a second."""
    assert limits(0.1, [0.01, 0.5, 0.02], 0.99)[0] == 0.0
