"""The trace: what it refuses, and what its operations keep."""

from __future__ import annotations

import json

import numpy as np
import pytest

from splitwiser.traces import PrefixBlocks, Trace


def trace(**changes: object) -> Trace:
    columns: dict[str, object] = {
        "arrival": [0.0, 1.0, 1.0, 4.0],
        "prompt_tokens": [10, 20, 30, 1025],
        "output_tokens": [1, 2, 3, 4],
    }
    return Trace(**(columns | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arrival": [0.0, 1.0, float("nan"), 4.0]}, ["arrival[2]", "nan"]),
        ({"arrival": [-1.0, 1.0, 1.0, 4.0]}, ["arrival[0]", "-1.0"]),
        ({"arrival": [0.0, 2.0, 1.0, 4.0]}, ["arrival[2]", "1.0", "2.0"]),
        ({"arrival": [0.0, 1.0, 2.0, 1e12]}, ["arrival[3]", "1000000000000"]),
        ({"prompt_tokens": [10, 0, 30, 1]}, ["prompt_tokens[1]", "0"]),
        ({"prompt_tokens": [10, 1, 30, 10_000_001]}, ["prompt_tokens[3]", "10000001"]),
        ({"output_tokens": [1, 2, 2.5, 4]}, ["output_tokens[2]", "2.5"]),
        ({"output_tokens": [1, 2, float("nan"), 4]}, ["output_tokens[2]", "nan"]),
        ({"output_tokens": [1, 2, 3]}, ["output_tokens", "3", "4"]),
        ({"session": [1]}, ["session", "1", "4"]),
        ({"max_concurrency": 0}, ["max_concurrency", "0"]),
        ({"arrival": [], "prompt_tokens": [], "output_tokens": []}, ["at least one request"]),
    ],
)
def test_refuses(changes: dict[str, object], words: list[str]) -> None:
    """A bad column is refused in one line that names the row and the value."""
    with pytest.raises(ValueError) as caught:
        trace(**changes)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_immutable() -> None:
    """A trace's arrays cannot be written, and do not follow the array that they were made from."""
    source = np.array([0.0, 1.0, 2.0, 3.0])
    made = trace(arrival=source)
    source[0] = 9.0
    assert made.arrival[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        made.arrival[0] = 1.0


def test_scale() -> None:
    """Twice the rate is half of every arrival time, and nothing else changes."""
    made = trace()
    scaled = made.scale(2.0)
    assert scaled.arrival.tolist() == [0.0, 0.5, 0.5, 2.0]
    assert scaled.rate == 2 * made.rate
    assert scaled.prompt_tokens is made.prompt_tokens


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_refuses(factor: float) -> None:
    """A rate factor is a positive number."""
    with pytest.raises(ValueError, match="rate_factor"):
        trace().scale(factor)


def test_slice() -> None:
    """A slice holds the arrivals in [start, stop), and counts time from start."""
    part = trace(session=[7, 8, 8, 9]).slice(0.5, 4.0)
    assert part.arrival.tolist() == [0.5, 0.5]
    assert part.prompt_tokens.tolist() == [20, 30]
    assert part.session is not None and part.session.tolist() == [8, 8]


def test_slices_partition() -> None:
    """Two slices that meet hold every request once."""
    made = trace()
    parts = [made.slice(0.0, 1.0), made.slice(1.0)]
    assert np.concatenate([part.prompt_tokens for part in parts]).tolist() == [10, 20, 30, 1025]


@pytest.mark.parametrize(("start", "stop"), [(5.0, 9.0), (2.0, 1.0), (-1.0, 1.0)])
def test_slice_refuses(start: float, stop: float) -> None:
    """A slice without requests, or whose bounds are not in order, is refused."""
    with pytest.raises(ValueError):
        trace().slice(start, stop)


def test_head() -> None:
    """The head is the first requests; a trace shorter than that is returned whole."""
    made = trace()
    assert made.head(2).prompt_tokens.tolist() == [10, 20]
    assert made.head(99) is made
    with pytest.raises(ValueError, match="head"):
        made.head(0)


def test_rate_all_at_once() -> None:
    """Requests that all arrive at 0 have an infinite rate, written "inf" in a description."""
    made = trace(arrival=[0.0] * 4)
    assert made.rate == float("inf")
    assert made.describe()["request_rate"] == "inf"
    assert made.describe()["gap_cv"] is None


def test_describe_is_plain() -> None:
    """A description is JSON, and its statistics are those of the columns."""
    described = trace(session=[0, 0, -1, 3]).describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["output_tokens"] == pytest.approx(
        {"mean": 2.5, "p50": 2.5, "p90": 3.7, "p99": 3.97, "max": 4}
    )
    assert described["sessions"] == 2


def test_prefix_hits() -> None:
    """Hits are leading blocks that an earlier request had, whole ones, never the last token."""
    prefix = PrefixBlocks(
        np.array([0, 2, 4, 6, 8]), np.array([5, 6, 5, 6, 9, 6, 5, 9]), block_tokens=10
    )
    prompts = np.array([20, 21, 20, 20])
    # request 1: both blocks; 2: its first block is new; 3: block 1 holds the last token
    assert prefix.hit_tokens(prompts).tolist() == [0, 20, 0, 10]
    made = trace(prompt_tokens=prompts, prefix=prefix)
    assert made.prefix_hit_share == pytest.approx(30 / 81)


@pytest.mark.parametrize("spread", [1, 10**15])
def test_prefix_hits_brute_force(spread: int) -> None:
    """The hits are those of a dictionary that remembers every block, for dense and sparse ids."""
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 6, rng.integers(0, 5)) * spread for _ in range(200)]
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    prefix = PrefixBlocks(offsets, np.concatenate(rows), block_tokens=4)
    prompts = rng.integers(1, 20, 200)
    seen: set[int] = set()
    expected = []
    for row, tokens in zip(rows, prompts, strict=True):
        hits = 0
        while hits < min(len(row), (tokens - 1) // 4) and int(row[hits]) in seen:
            hits += 1
        expected.append(4 * hits)
        seen.update(row.tolist())
    assert prefix.hit_tokens(prompts).tolist() == expected


def test_prefix_take() -> None:
    """Rows taken from prefix blocks are the rows, in the order asked for."""
    prefix = PrefixBlocks(np.array([0, 2, 2, 5]), np.arange(5), 16)
    taken = prefix.take(np.array([2, 1, 0]))
    assert [taken.row(request).tolist() for request in range(3)] == [[2, 3, 4], [], [0, 1]]


def test_prefix_refuses() -> None:
    """Offsets that do not partition the ids are refused."""
    with pytest.raises(ValueError, match="offsets"):
        PrefixBlocks(np.array([0, 3, 2]), np.arange(2), 16)
