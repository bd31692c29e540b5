"""Reading co-location tables, predicting their rows, fitting them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models.catalogue import llm
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import profile_for
from splitwiser.validate.corun import (
    CORUN_COLUMNS,
    CorunRow,
    GenerateRow,
    predict_corun,
    predict_generate,
    read_corun,
    read_generate,
)
from splitwiser.validate.corun_fit import Rig, fit_corun, fit_stage

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "measured"
RIG = Rig(llm("meta-llama/Meta-Llama-3-8B"), llm("facebook/opt-125m"), gpu("h200"))
HEADER = ",".join(CORUN_COLUMNS)
measured = pytest.mark.skipif(not DATA.is_dir(), reason="no measurements in ../shared/data")


def synthetic_rows() -> list[CorunRow]:
    """Return rows whose rates are the built-in profile's own predictions."""
    profile = profile_for("h200")
    phases: list[tuple[int | None, int | None, int | None]] = [
        *((n, None, None) for n in (128, 512, 2048, 8192)),
        *((None, *d) for d in ((1, 1024), (16, 1024), (64, 1024), (64, 4096))),
        *((n, *d) for n in (128, 512, 2048) for d in ((1, 1024), (64, 1024), (64, 4096))),
    ]
    rows = []
    for sharing, shares in (("time_slice", (1, 1)), ("mps", (1, 1)), ("mps", (0.75, 0.25))):
        for n, batch, context in phases:
            row = CorunRow(sharing, *shares, n, batch, context, None, None)
            rates = predict_corun(row, RIG.llm, RIG.gpu, profile)
            measured = replace(
                row, prefill_rate=rates.get("prefill"), decode_rate=rates.get("decode")
            )
            rows.append(measured)
    return rows


def generate_row(sharing: str, processes: int, rate: float = 1.0) -> GenerateRow:
    """Return the paper's batches: 20 prompts of 512 tokens, 20 tokens each."""
    return GenerateRow(sharing, 1.0, processes, 20, 512, 20, rate)


def test_a_fit_recovers_the_parameters_behind_its_rows() -> None:
    """Rates made by known parameters give those parameters back, and no residual."""
    truth = profile_for("h200")
    batches = []
    for n in (1, 2, 4, 8):
        row = generate_row("time_slice", n)
        batches.append(replace(row, rate=predict_generate(row, RIG.generate_llm, RIG.gpu, truth)))
    start = truth.with_values(gemm_efficiency=0.4, kernel_gap=1e-6, generate_overhead=1e-3)
    fit = fit_corun(synthetic_rows(), batches, RIG, start)
    for name in ("gemm_efficiency", "kernel_gap", "launch_host", "generate_overhead"):
        assert fit.profile.value(name) == pytest.approx(truth.value(name), rel=1e-3)
    for name in ("wait_memory", "wait_compute", "contention_memory", "slice_hold"):
        assert fit.profile.value(name) == pytest.approx(truth.value(name), rel=1e-2)
    assert max(fit.errors().values()) < 1e-3
    assert max(fit.errors(held_out=True).values()) < 1e-3


def test_more_parameters_than_rates_are_refused() -> None:
    """A stage says which rows cannot decide its parameters."""
    rows = synthetic_rows()[:3]
    with pytest.raises(ValueError, match="3 rates cannot decide 6 parameters"):
        fit_corun(rows, [generate_row("mps", 1)], RIG, profile_for("h200"))
    assert fit_stage.__doc__


def test_generate_needs_one_process_alone() -> None:
    """Without a row of one process the overhead of `generate` cannot be known."""
    with pytest.raises(ValueError, match="one process"):
        fit_corun(synthetic_rows(), [generate_row("mps", 2)], RIG, profile_for("h200"))


def test_more_processes_of_generate_do_more_work_but_less_each() -> None:
    """Host-bound processes fill the device: the sum grows, the share of each does not."""
    rates = [
        predict_generate(generate_row("mps", n), RIG.generate_llm, RIG.gpu, profile_for("h200"))
        for n in (1, 2, 4, 8)
    ]
    assert rates == sorted(rates)
    each = [rate / n for rate, n in zip(rates, (1, 2, 4, 8), strict=True)]
    assert each == sorted(each, reverse=True)


@measured
def test_the_built_in_profile_predicts_the_measured_pairs() -> None:
    """Pairs are within 10 % on average in each regime, phases alone within 5 %."""
    errors: dict[str, list[float]] = {}
    for row in read_corun(DATA / "h200_llama3_8b_corun.csv"):
        rates = predict_corun(row, RIG.llm, RIG.gpu, profile_for("h200"))
        for phase, rate in (("prefill", row.prefill_rate), ("decode", row.decode_rate)):
            if rate is not None:
                name = "alone" if row.alone else row.regime
                errors.setdefault(name, []).append(abs(rates[phase] / rate - 1.0))
    assert set(errors) == {"alone", "time_slice", "mps", "mps 75%/25%"}
    for regime, values in errors.items():
        assert sum(values) / len(values) < (0.05 if regime == "alone" else 0.10)


@measured
def test_generate_table_is_read_whole() -> None:
    """All eight rows of the paper's experiment are there."""
    rows = read_generate(DATA / "h200_hf_generate_multiprocess.csv")
    assert [row.processes for row in rows] == [1, 2, 4, 8, 2, 4, 8, 4]
    assert rows[-1].regime == "mps 25%"


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
        assert all(row.prefill_rate or row.decode_rate for row in rows)


def test_the_fit_command_without_data_says_so(tmp_path: Path) -> None:
    """Exit 2 and one line where the tables are absent."""
    command = [sys.executable, str(ROOT / "benchmarks" / "h200_fit.py"), "--data", str(tmp_path)]
    path = {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no measurements at" in done.stderr
