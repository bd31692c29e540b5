"""Fitting kernels: known parameters come back, corrections hold what is left, held-out errors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from splitwiser.models.catalogue import llm
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import Profile, load_profile, profile_for
from splitwiser.validate.calibration.kernel_accuracy import held_out
from splitwiser.validate.calibration.kernel_fit import (
    DECODES,
    GEMM,
    PROMPTS,
    TILE_STEPS,
    fit_kernels,
)
from splitwiser.validate.calibration.kernel_predict import cached, predict_kernels
from splitwiser.validate.calibration.kernel_readers import read_kernels
from splitwiser.validate.calibration.kernel_table import KernelTable

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data" / "measured"
measured = pytest.mark.skipif(not DATA.is_dir(), reason="no measurements in ../shared/data")
A100 = gpu("a100-80gb")
PLAIN = profile_for("l4").with_values(compute_knee=0.8)
HEADS = {"heads": 32, "kv_heads": 8, "head_dim": 128}


def table_of(truth: Profile, factor: float = 1.0) -> KernelTable:
    """Return the times that *truth* predicts for a grid of kernels, all GEMMs *factor* longer."""
    shapes = product((1, 16, 64, 256, 1024, 4096), (512, 1024, 4096, 8192), (1024, 4096, 8192))
    contexts = product((1, 8, 64, 256), (64, 512, 1024, 4096, 16_384))
    chunks = product((1, 4), (64, 512, 2048, 8192), (0, 2048))
    frames = {
        "gemm": pd.DataFrame(shapes, columns=["m", "n", "k"], dtype=float),
        "decode_attention": pd.DataFrame(contexts, columns=["batch", "context"]).assign(**HEADS),
        "prompt_attention": pd.DataFrame(chunks, columns=["batch", "new", "cached"]).assign(
            **HEADS
        ),
    }
    table = KernelTable(
        {kind: frame.assign(seconds=1.0) for kind, frame in frames.items()}, "bfloat16"
    )
    times = predict_kernels(table, A100, truth)
    times["gemm"] = times["gemm"] * factor
    return KernelTable(
        {kind: table[kind].assign(seconds=seconds) for kind, seconds in times.items()}, "bfloat16"
    )


def test_power_is_in_no_kernel_timed_by_itself() -> None:
    """How fast power lets GEMMs go on neither moves the fit of single kernels, nor is lost by it."""
    table = table_of(PLAIN)
    cool, hot = (fit_kernels(table, A100, PLAIN.with_values(sustained=s)) for s in (1.0, 0.5))
    assert hot.profile.value("sustained") == 0.5
    for name in GEMM:
        assert hot.profile.value(name) == cool.profile.value(name)
    assert hot.profile.corrections == cool.profile.corrections


def test_a_fit_recovers_the_parameters_behind_its_rows() -> None:
    """Times made by known parameters give back those that the rows determine, and no residual."""
    truth = PLAIN.with_values(
        gemm_efficiency=0.7, memory_efficiency=0.8, gemm_start=3e-6, kv_efficiency=0.7
    )
    fit = fit_kernels(table_of(truth), A100, PLAIN)
    for name in ("gemm_efficiency", "memory_efficiency", "gemm_start", "kv_efficiency"):
        assert fit.profile.value(name) == pytest.approx(truth.value(name), rel=0.03), name
    assert {*GEMM, *PROMPTS, *DECODES} <= set(fit.profile.parameters)
    for kind, residuals in fit.residuals.items():
        assert np.abs(residuals).mean() < 1e-3, kind


@pytest.mark.parametrize("step", TILE_STEPS)
def test_the_heights_of_tiles_are_told_by_the_rows(step: float) -> None:
    """Times of a library with few heights of tiles, or with many, say which it was."""
    truth = PLAIN.with_values(tile_step=step)
    rows = pd.DataFrame(
        product((65, 130, 161, 200, 270, 300, 420, 520, 700), (4096, 6144), (2048, 4096)),
        columns=["m", "n", "k"],
        dtype=float,
    )
    table = KernelTable({"gemm": rows.assign(seconds=1.0)}, "bfloat16")
    seconds = predict_kernels(table, A100, truth)["gemm"]
    fitted = fit_kernels(
        KernelTable({"gemm": rows.assign(seconds=seconds)}, "bfloat16"), A100, PLAIN
    )
    assert fitted.profile.value("tile_step") == step


def test_a_parameter_that_no_row_decides_says_so() -> None:
    """One GEMM size bound by traffic says nothing of arithmetic: no standard error is given."""
    table = table_of(PLAIN)
    small = table.where(
        lambda kind, frame: (
            (frame["m"] == 1)
            if kind == "gemm"
            else frame["new"] < 0
            if kind == "prompt_attention"
            else frame["context"] < 0
        )
    )
    fit = fit_kernels(small, A100, PLAIN)
    assert fit.profile.parameters["gemm_efficiency"].stderr is None
    assert fit.profile.parameters["memory_efficiency"].stderr is not None


def test_too_few_rows_are_refused() -> None:
    """A stage says how many rows cannot decide how many parameters."""
    few = table_of(PLAIN).where(lambda kind, frame: frame.index < 8)
    with pytest.raises(ValueError, match="GEMMs: 8 rows cannot decide 8 parameters"):
        fit_kernels(few, A100, PLAIN)


def test_rows_faster_than_the_memory_are_served_by_the_cache() -> None:
    """A GEMM faster than its bytes over the bandwidth is no row of the DRAM's."""
    table = table_of(PLAIN)
    frame = table["gemm"]
    assert not cached("gemm", frame, A100, "bfloat16").any()
    quick = frame.assign(seconds=np.where(frame["n"] == 512, 1e-9, frame["seconds"]))
    assert (cached("gemm", quick, A100, "bfloat16") == (frame["n"] == 512)).all()


def test_shapes_left_out_are_predicted_by_the_others() -> None:
    """Held-out errors count the rows of left-out widths and heads, and the fit never sees them."""
    table = table_of(PLAIN)
    odd = table["gemm"]
    odd = odd.assign(seconds=np.where(odd["n"] == 4096, 3.0, 1.0) * odd["seconds"])
    table = KernelTable({"gemm": odd}, "bfloat16")
    errors = held_out(table, A100, PLAIN, widths=[frozenset({4096})], head_counts=[frozenset({32})])
    everything = errors[0]
    assert everything.kind == "gemm"
    assert everything.rows == int(((odd["n"] == 4096) | (odd["k"] == 4096)).sum())
    assert everything.p95 > 0.5  # a factor of three that only the left-out rows have


@measured
@pytest.mark.parametrize("name", ["a100-80gb", "l40s"])
def test_left_out_model_shapes_are_within_eight_percent(name: str) -> None:
    """Rows that the DRAM served, of whole model shapes left out, have a MAPE of at most 8 %."""
    folder = {"a100-80gb": "a100_sxm", "l40s": "l40s"}[name]
    table = read_kernels(DATA / "op_tables" / folder)
    start = replace(profile_for("l4"), name=name)
    scopes = {(row.kind, row.scope): row.mape for row in held_out(table, gpu(name), start)}
    for kind in ("gemm", "prompt_attention", "decode_attention"):
        served = scopes.get((kind, "served by DRAM"), scopes[kind, "all rows"])
        assert served <= 0.08, kind


@measured
def test_the_built_in_fits_predict_their_tables_within_the_data_sheet() -> None:
    """No prediction for a row of the tables is faster than FLOP over peak or weights over DRAM."""
    for name, folder in (("a100-80gb", "a100_sxm"), ("l40s", "l40s")):
        sheet, table = gpu(name), read_kernels(DATA / "op_tables" / folder)
        frame = table["gemm"]
        seconds = predict_kernels(table, sheet, profile_for(name))["gemm"]
        flops = 2.0 * frame["m"] * frame["n"] * frame["k"]
        assert (seconds >= flops / sheet.peak("bfloat16") * (1 - 1e-9)).all()
        assert (seconds >= 2.0 * frame["n"] * frame["k"] / sheet.bandwidth * (1 - 1e-9)).all()


@measured
def test_a_profile_of_one_model_is_reproduced() -> None:
    """The dense layers of the RTX PRO 6000 profile come back within 1 %, prompts within 2 %."""
    table = read_kernels(
        DATA / "llmservingsim_profile_RTXPRO6000_Llama-3.1-8B", llm=llm("meta-llama/Llama-3.1-8B")
    )
    predicted = predict_kernels(table, gpu("rtx-pro-6000"), profile_for("rtx-pro-6000"))
    errors = {
        kind: np.abs(seconds / table[kind]["seconds"].to_numpy() - 1.0).mean()
        for kind, seconds in predicted.items()
    }
    assert errors["gemm"] < 0.01
    assert errors["prompt_attention"] < 0.02
    assert errors["decode_attention"] < 0.06


def test_a_fit_survives_its_file(tmp_path: Path) -> None:
    """Corrections are written and read back to the digit."""
    fit = fit_kernels(table_of(PLAIN, factor=1.3), A100, PLAIN)
    fit.profile.save(tmp_path / "fit.json")
    assert load_profile(tmp_path / "fit.json") == fit.profile


def test_the_fit_command_without_data_says_so(tmp_path: Path) -> None:
    """Exit 2 and one line where the tables are absent."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kernel_tables.py")]
    path = {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*command, "--data", str(tmp_path)], capture_output=True, text=True, env=path, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no kernel times at" in done.stderr
