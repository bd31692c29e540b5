"""Export as Mooncake JSON lines: a round trip, all or nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitwiser.traces import PrefixBlocks, Trace, preset, random_trace, read_trace, write_mooncake


def same(read: Trace, made: Trace) -> None:
    np.testing.assert_allclose(read.arrival, made.arrival - made.arrival[0], rtol=1e-9, atol=1e-9)
    assert read.prompt_tokens.tolist() == made.prompt_tokens.tolist()
    assert read.output_tokens.tolist() == made.output_tokens.tolist()
    for name in ("session", "adapter"):
        ours, theirs = getattr(read, name), getattr(made, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or ours.tolist() == theirs.tolist()
    if made.prefix is not None:
        assert read.prefix is not None
        assert read.prefix.offsets.tolist() == made.prefix.offsets.tolist()
        assert read.prefix.ids.tolist() == made.prefix.ids.tolist()


@pytest.mark.parametrize("name", ["azure-conv", "azure-code", "mooncake-conversation"])
def test_round_trip_of_presets(tmp_path: Path, name: str) -> None:
    """A preset written and read is the same, from its first arrival on."""
    made = preset(name, num_prompts=400)
    write_mooncake(made, tmp_path / "out.jsonl")
    same(read_trace(tmp_path / "out.jsonl"), made)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(
            st.floats(0, 1e6),
            st.integers(1, 4000),
            st.integers(1, 10**7),
            st.integers(-1, 2**62),
            st.integers(-1, 9),
            st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_round_trip(
    tmp_path: Path, rows: list[tuple[float, int, int, int, int, list[int]]]
) -> None:
    """Every column of any trace comes back (a column in which no row has a value is none)."""
    times, prompts, outputs, sessions, adapters, ids = zip(*sorted(rows), strict=True)
    blocks = [row[: -(-prompt // 512)] for row, prompt in zip(ids, prompts, strict=True)]
    flat = [block for row in blocks for block in row]
    ends = np.concatenate(([0], np.cumsum([len(row) for row in blocks])))
    made = Trace(
        np.array(times),
        np.array(prompts),
        np.array(outputs),
        session=np.array(sessions) if max(sessions) >= 0 else None,
        adapter=np.array(adapters) if max(adapters) >= 0 else None,
        prefix=PrefixBlocks(ends, np.array(flat, dtype=np.int64), 512) if flat else None,
    )
    write_mooncake(made, tmp_path / "out")
    same(read_trace(tmp_path / "out", spread=False), made)


def test_all_at_once_is_not_spread(tmp_path: Path) -> None:
    """A closed loop's requests come back at 0, not spread over a bin."""
    write_mooncake(random_trace(20), tmp_path / "out")
    assert not read_trace(tmp_path / "out").arrival.any()


def test_smaller_blocks_are_joined(tmp_path: Path) -> None:
    """Blocks of 16 tokens become blocks of 512, the same where all tokens before are the same."""
    shared = list(range(32))
    rows = np.array([[*shared, 100], [*shared, 101], [*range(50, 82), 100]])
    made = Trace(
        np.arange(3.0),
        np.array([528, 528, 528]),
        np.ones(3, dtype=int),
        prefix=PrefixBlocks(np.array([0, 33, 66, 99]), rows.ravel(), 16),
    )
    write_mooncake(made, tmp_path / "out")
    first, second, third = (
        json.loads(line)["hash_ids"] for line in (tmp_path / "out").read_text().splitlines()
    )
    assert first[0] == second[0] != third[0]
    assert len({first[1], second[1], third[1]}) == 3
    assert made.prefix_hit_share == read_trace(tmp_path / "out").prefix_hit_share


def test_odd_blocks_are_refused(tmp_path: Path) -> None:
    """Blocks that do not divide 512 tokens are refused, and nothing is written."""
    prefix = PrefixBlocks(np.array([0, 1]), np.array([3]), 48)
    made = Trace(np.zeros(1), np.array([9]), np.array([1]), prefix=prefix)
    with pytest.raises(ValueError, match="48"):
        write_mooncake(made, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_unwritable(tmp_path: Path) -> None:
    """A path that cannot be written is refused in one line."""
    for path in (tmp_path, tmp_path / "none" / "out", Path("/dev/null")):
        with pytest.raises(ValueError, match="cannot be written") as caught:
            write_mooncake(random_trace(3), path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails midway leaves the old file, and no other."""
    out = tmp_path / "out"
    out.write_text("old")

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("splitwiser.traces.writers.json.dumps", full)
    with pytest.raises(ValueError, match="No space left"):
        write_mooncake(random_trace(3), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.read_text() == "old"


def test_replaces_at_once(tmp_path: Path) -> None:
    """An old file is replaced and not written over: who has it open still reads all of it."""
    out = tmp_path / "out"
    out.write_text("old")
    with out.open() as held:
        write_mooncake(random_trace(3), out)
        assert held.read() == "old"
    assert len(read_trace(out)) == 3


def test_concurrency_is_not_written(tmp_path: Path) -> None:
    """A concurrency has no place in the format: the file is the same with and without."""
    made = random_trace(5, 2.0)
    write_mooncake(made, tmp_path / "a")
    write_mooncake(replace(made, max_concurrency=2), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
