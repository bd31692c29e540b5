"""The file of raw measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.validate.calibration.raw import RawFile, read_raw

CONDITIONS = {"name": "a GPU", "driver": "580", "torch": "2.11", "plan": "gpu"}


def test_a_later_run_goes_on_with_what_there_is(tmp_path: Path) -> None:
    """What was measured is kept, what failed is measured again."""
    path = tmp_path / "raw.jsonl"
    with RawFile(path, CONDITIONS) as raw:
        raw.add("good", {"seconds": 1.0})
        raw.add("bad", {"error": "out of memory"})
    with RawFile(path, CONDITIONS) as raw:
        assert "good" in raw
        assert "bad" not in raw
        raw.add("bad", {"rates": [2.0]})
    assert set(read_raw(path)[1]) == {"good", "bad"}


def test_fresh_forgets(tmp_path: Path) -> None:
    """A fresh run begins with nothing."""
    path = tmp_path / "raw.jsonl"
    with RawFile(path, CONDITIONS) as raw:
        raw.add("good", {"seconds": 1.0})
    with RawFile(path, CONDITIONS, fresh=True) as raw:
        assert not raw.records


@pytest.mark.parametrize("name", ["name", "uuid", "driver", "torch", "plan"])
def test_measurements_of_another_device_are_refused(tmp_path: Path, name: str) -> None:
    """Measurements under other conditions never stand in one file."""
    path = tmp_path / "raw.jsonl"
    RawFile(path, CONDITIONS).__exit__()
    with pytest.raises(ValueError, match=f"was measured with {name} = .*--fresh") as refusal:
        RawFile(path, {**CONDITIONS, name: "other"})
    assert "\n" not in str(refusal.value)


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    """All that was written before a kill is still there."""
    path = tmp_path / "raw.jsonl"
    with RawFile(path, CONDITIONS) as raw:
        raw.add("good", {"seconds": 1.0})
        raw.add("cut", {"seconds": 2.0})
    text = path.read_text()
    path.write_text(text[: len(text) - 9])
    assert set(read_raw(path)[1]) == {"good"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 2: not JSON"),
        ("[]", "line 2: a measurement is an object with a key"),
        ('{"key": "a", "seconds": 0}', "line 2: seconds is .* expected positive"),
        ('{"key": "a", "seconds": NaN}', "line 2: seconds is .* expected positive"),
        ('{"key": "a", "rates": [1, -1]}', "line 2: rates is .* expected positive"),
        ('{"key": "a"}', "line 2: seconds is .* expected positive"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    """File and line of a fault are in the message, and a failure is never a zero."""
    path = tmp_path / "raw.jsonl"
    good = '{"key": "b", "seconds": 1.0}'
    path.write_text(f'{{"version": 2}}\n{line}\n{good}\n')
    with pytest.raises(ValueError, match=message) as refusal:
        read_raw(path)
    assert "raw.jsonl" in str(refusal.value)


def test_another_version_is_refused(tmp_path: Path) -> None:
    """The version comes first."""
    path = tmp_path / "raw.jsonl"
    path.write_text('{"version": 9}\n')
    with pytest.raises(ValueError, match="version 9 is not supported; expected 2"):
        read_raw(path)


@given(content=st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_measurements_or_one_line(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever follows the conditions, there are measurements or a ValueError of one line."""
    path = tmp_path_factory.mktemp("raw") / "raw.jsonl"
    path.write_bytes(json.dumps({"version": 1}).encode() + b"\n" + content)
    try:
        read_raw(path)
    except ValueError as error:
        assert "\n" not in str(error)
