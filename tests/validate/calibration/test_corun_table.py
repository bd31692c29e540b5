"""Reading the tables that other code measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.validate.calibration.corun_table import (
    CORUN_COLUMNS,
    LLM,
    read_corun,
    read_generate,
)
from splitwiser.validate.calibration.points import Load
from splitwiser.validate.calibration.steps import StepRow

DATA = Path(__file__).parents[4] / "shared" / "data" / "measured"
HEADER = ",".join(CORUN_COLUMNS)
measured = pytest.mark.skipif(not DATA.is_dir(), reason="no measurements in ../shared/data")


def test_a_pair_is_read_as_two_lanes(tmp_path: Path) -> None:
    """A row has the prefill first, then the decode step, with limits as fractions of the SMs and
    without priorities.
    """
    path = tmp_path / "table.csv"
    path.write_text(f"{HEADER}\nmps,75,25,512,16,1024,50.5,100.25\nmps,75,25,,1,1024,,157.5\n")
    decode = Load(LLM, batch=16, context=1024)
    loads = Load(LLM, prompts=1, tokens=512), decode
    pair = StepRow("mps", loads, (0.75, 0.25), (50.5, 100.25), decode_first=False)
    single = (Load(LLM, batch=1, context=1024),)
    alone = StepRow("mps", single, (0.25,), (157.5,), decode_first=False)
    assert read_corun(path) == [pair, alone]


@measured
def test_both_tables_are_read_whole() -> None:
    """All 72 rows of pairs and of phases alone are there, and all eight of `generate`."""
    rows = read_corun(DATA / "h200_llama3_8b_corun.csv")
    assert [len(rows), sum(row.alone for row in rows)] == [72, 27]
    batches = read_generate(DATA / "h200_hf_generate_multiprocess.csv")
    assert [row.processes for row in batches] == [1, 2, 4, 8, 2, 4, 8, 4]
    assert batches[-1].regime == "mps 25%"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mps,,,128,,,,", "line 2: prefill_tokens and prefill_per_s belong together"),
        ("mps,,,,16,1024,,", "line 2: decode_batch, decode_context"),
        ("mps,,,,,,,", "line 2: neither"),
        (",,,128,,,1.0,", "line 2: sharing is empty"),
        ("mps,120,,128,,,1.0,", "prefill_sm_pct is 120; expected at most 100"),
        ("mps,,,128.5,,,1.0,", "prefill_tokens is 128.5; expected a whole number"),
        ("mps,,,128,,,fast,", "prefill_per_s is 'fast'; expected a positive number"),
        ("mps,,,128,,,nan,", "prefill_per_s is 'nan'"),
        ("mps,,,128,,,-1,", "prefill_per_s is '-1'"),
    ],
)
def test_a_faulty_row_is_named(line: str, message: str, tmp_path: Path) -> None:
    """File, line and column of the fault are in the message."""
    path = tmp_path / "table.csv"
    path.write_text(f"{HEADER}\n{line}\n")
    with pytest.raises(ValueError, match=message) as refusal:
        read_corun(path)
    assert "table.csv" in str(refusal.value)


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    """A table that is absent or lacks a column is refused."""
    with pytest.raises(FileNotFoundError, match="no measurements at"):
        read_corun(tmp_path / "absent.csv")
    path = tmp_path / "table.csv"
    path.write_text("sharing,model\n")
    with pytest.raises(ValueError, match="no column 'prefill_sm_pct'"):
        read_corun(path)


@given(content=st.binary(max_size=80))
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_rows_or_one_line(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever follows the header, the reader returns rows or a ValueError."""
    path = tmp_path_factory.mktemp("corun") / "table.csv"
    path.write_bytes(HEADER.encode() + b"\n" + content)
    try:
        rows = read_corun(path)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all(rate > 0.0 for row in rows for rate in row.rates)
