"""Predicting what other code measured, from its phases alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from splitwiser.models.gpu import gpu
from splitwiser.models.profile import profile_for
from splitwiser.validate.calibration.corun_table import LLM, GenerateRow
from splitwiser.validate.calibration.other_implementation import (
    generate,
    generate_rate,
    other_implementation,
    pairs,
)
from splitwiser.validate.calibration.points import Load
from splitwiser.validate.calibration.steps import StepRow

DATA = Path(__file__).parents[4] / "shared" / "data" / "measured"
H200, PROFILE = gpu("h200"), profile_for("h200")
PREFILL, DECODE = Load(LLM, prompts=1, tokens=2048), Load(LLM, batch=16, context=1024)
measured = pytest.mark.skipif(not DATA.is_dir(), reason="no measurements in ../shared/data")


def table(sharing: str, prefill: float, decode: float) -> list[StepRow]:
    """Return the two phases alone at these rates, and a pair of them."""
    return [
        StepRow(sharing, (PREFILL,), (1.0,), (prefill,)),
        StepRow(sharing, (DECODE,), (1.0,), (decode,)),
        StepRow(sharing, (PREFILL, DECODE), (1.0, 1.0), (10.0, 80.0)),
    ]


def batch(sharing: str, processes: int, rate: float = 1.0) -> GenerateRow:
    """Return the paper's batches: 20 prompts of 512 tokens, 20 tokens each."""
    return GenerateRow(sharing, 1.0, processes, 20, 512, 20, rate)


@pytest.mark.parametrize("sharing", ["time_slice", "mps"])
def test_pairs_are_slower_than_their_phases_alone(sharing: str) -> None:
    """Each phase of a pair is predicted to take longer than it was measured to take alone."""
    rows = pairs(table(sharing, 18.0, 175.0), H200, PROFILE)
    assert [row.measured for row in rows] == [1 / 10.0, 1 / 80.0]
    assert rows[0].predicted > 1 / 18.0
    assert rows[1].predicted > 1 / 175.0


def test_rates_of_a_pair_decide_nothing() -> None:
    """Predictions come from the phases alone: a pair's own rates do not move them."""
    rows = table("mps", 18.0, 175.0)
    other = [*rows[:2], replace(rows[2], rates=(1.0, 1.0))]
    predicted = [row.predicted for row in pairs(rows, H200, PROFILE)]
    assert [row.predicted for row in pairs(other, H200, PROFILE)] == predicted


def test_a_phase_that_was_not_measured_alone_is_named() -> None:
    """A pair without one of its phases alone is refused."""
    rows = table("mps", 18.0, 175.0)
    with pytest.raises(ValueError, match="D 16x1024 on 100% under mps was not measured alone"):
        pairs([rows[0], rows[2]], H200, PROFILE)


def test_host_time_of_one_process_and_of_many_predicts_those_between() -> None:
    """Rates made by a known host time, growing with the processes, are given back."""
    truth = PROFILE.with_values(step_overhead=3e-3)
    rows: list[GenerateRow] = []
    for n in (1, 2, 4, 8):
        row = batch("mps", n)
        rows.append(replace(row, rate=generate_rate(row, H200, truth, 1.0 + 0.05 * (n - 1))))
    found = generate(rows, H200, PROFILE)
    assert [row.quantity for row in found] == ["mps, 2 processes", "mps, 4 processes"]
    assert [row.predicted for row in found] == pytest.approx([row.measured for row in found])


def test_generate_needs_one_process_and_several() -> None:
    """Without the two rows that tell the host's time nothing is predicted."""
    with pytest.raises(ValueError, match="one process and one of several under mps"):
        generate([batch("mps", 1), batch("time_slice", 2)], H200, PROFILE)


@measured
def test_every_row_but_those_fitted_is_judged() -> None:
    """Both phases of 45 pairs and six rows of `generate` are predicted; pairs within 12 %."""
    rows = other_implementation(DATA, PROFILE)
    together = [abs(row.error) for row in rows if row.case != "generate"]
    assert [len(rows), len(together)] == [96, 90]
    assert sum(together) / len(together) < 0.12
