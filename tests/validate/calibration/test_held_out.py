"""The rows that judge the H200 profile were never fitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitwiser.validate.calibration.held_out import split
from splitwiser.validate.calibration.steps import StepRow, read_steps

RAW = Path(__file__).resolve().parents[3] / "benchmarks" / "h200"


@pytest.fixture(scope="module")
def rows() -> list[StepRow]:
    """The randomly drawn rows of the first card."""
    return read_steps(RAW / "heldout-0.jsonl", 132)


def lengths(row: StepRow) -> set[int]:
    """The prompt lengths of a row."""
    return {load.tokens for load in row.loads if load.prompts}


def test_every_row_is_on_one_side(rows: list[StepRow]) -> None:
    """No row is fitted and judges, few do neither; repetitions are on one side."""
    fitted, judged = split(rows)
    assert len(rows) - 40 <= len(fitted) + len(judged) <= len(rows)
    sides: dict[tuple[object, ...], set[bool]] = {}
    for side, some in ((True, fitted), (False, judged)):
        for row in some:
            sides.setdefault((row.sharing, row.loads, row.shares), set()).add(side)
    assert all(len(side) == 1 for side in sides.values())
    assert all(not row.alone for row in fitted)


def test_no_judged_pair_has_a_prompt_length_that_was_fitted(rows: list[StepRow]) -> None:
    """The lengths of prompts beside others differ between the two sides, and from the calibration's."""
    fitted, judged = split(rows)
    calibrated = read_steps(RAW / "calibration.jsonl", 132)
    seen = set().union(*(lengths(row) for row in [*fitted, *calibrated] if not row.alone))
    assert not seen & set().union(*(lengths(row) for row in judged if not row.alone))


@pytest.mark.parametrize("regime", ["mps, limited", "green_contexts"])
def test_no_judged_pair_has_a_split_that_was_fitted(rows: list[StepRow], regime: str) -> None:
    """Where SMs are divided, the divisions of the two sides differ."""
    fitted, judged = split(rows)
    calibrated = read_steps(RAW / "calibration.jsonl", 132)
    seen = {row.shares for row in [*fitted, *calibrated] if row.regime == regime}
    judging = [row.shares for row in judged if row.regime == regime and not row.alone]
    assert judging
    assert not seen & set(judging)
