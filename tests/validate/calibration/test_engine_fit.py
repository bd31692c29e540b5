"""The fit of a profile to runs of an engine: what comes back, and what such runs cannot tell."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from splitwiser.models.catalogue import llm
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import Profile, load_profile, sheet_profile
from splitwiser.sim.deployment import chunked, continuous
from splitwiser.validate.calibration.engine_fit import (
    Engine,
    engine_observations,
    engine_profile,
    fit_engine,
    predict_row,
)
from splitwiser.validate.calibration.engine_table import EngineRow, Load
from splitwiser.validate.calibration.from_tables import calibrate_tables
from splitwiser.validate.calibration.observations import errors_by_group

SINGLE = Engine(continuous(), llm("meta-llama/Llama-2-7b-hf"), gpu("a10"))
LOADED = Engine(
    chunked().override(max_num_seqs=64, max_num_batched_tokens=2048),
    llm("meta-llama/Llama-3.1-8B"),
    gpu("h100-sxm"),
)


def rows_of(
    loads: list[Load], engine: Engine, profile: Profile, names: tuple[str, ...]
) -> list[EngineRow]:
    """Rows as an engine with exactly this profile would have measured them."""
    rows = []
    for load in loads:
        place = str(load)
        row = EngineRow(place, place, load.trace(place), dict.fromkeys(names, 1.0))
        rows.append(replace(row, measured=predict_row(row, engine, profile)))
    return rows


def test_one_request_takes_its_prompt_and_then_a_step_for_each_token() -> None:
    """Alone, TTFT is the time before scheduling and the prompt's step; TPOT the mean decode step."""
    from splitwiser.models.cost import CostModel

    profile = sheet_profile("a10").with_values(request_overhead=0.004)
    load = Load(127, 33)
    row = EngineRow("r", "r", load.trace("r"), {"mean_ttft": 1.0, "mean_tpot": 1.0})
    found = predict_row(row, SINGLE, profile)
    cost = CostModel(SINGLE.llm, SINGLE.gpu, profile)
    pairs = 127 * 128 / 2
    assert found["mean_ttft"] == pytest.approx(0.004 + cost.step(127, 1, pairs, 127).seconds(0))
    assert found["mean_tpot"] == pytest.approx(cost.decode(1).seconds(128 + 31 / 2))


def test_single_requests_give_back_what_they_can_tell() -> None:
    """Rows made with a known profile give its parameters back; the weights' traffic is not fitted,
    for it adds up with the step's overhead.
    """
    known = sheet_profile("a10").with_values(
        step_overhead=0.003, gemm_efficiency=0.5, kv_efficiency=0.8, request_overhead=0.004
    )
    loads = [Load(p, o) for p in (127, 511, 2047) for o in (64, 1024)]
    fit = fit_engine(
        rows_of(loads, SINGLE, known, ("mean_ttft", "mean_tpot")), SINGLE, sheet_profile("a10")
    )
    found = {parameter.name: parameter.value for parameter in fit.parameters}
    assert set(found) == {"step_overhead", "gemm_efficiency", "kv_efficiency", "request_overhead"}
    for name, value in found.items():
        assert value == pytest.approx(known.value(name), rel=0.02), name


def test_a_sweep_under_load_predicts_loads_that_were_not_fitted() -> None:
    """Loads that a known engine keeps up with predict its time per token and its throughput at
    saturation, if one of them is heavy enough for its GEMMs to count.
    """
    known = replace(sheet_profile("h100-sxm"), graphed_prefill=True).with_values(
        step_overhead=0.002, gemm_efficiency=0.7, request_overhead=0.012, sequence_overhead=2e-5
    )
    names = ("median_ttft", "median_tpot", "request_throughput")
    light = [Load(300, 40, rate=rate, requests=200) for rate in (2.0, 15.0, 40.0)]
    heavy = [Load(300, 40, concurrency=96, rate=inf, requests=400)]
    start = replace(sheet_profile("h100-sxm"), graphed_prefill=True)
    fit = fit_engine(rows_of(light, LOADED, known, names), LOADED, start)
    assert "memory_efficiency" not in {parameter.name for parameter in fit.parameters}
    judged = engine_observations(rows_of(heavy, LOADED, known, names[1:]), LOADED)
    errors = errors_by_group(judged.groups, judged.measured, judged.predict(fit.profile))
    assert all(error.mape < 0.05 for error in errors.values()), errors


def test_what_others_imply_is_not_fitted() -> None:
    """An end-to-end latency beside TTFT and TPOT, and the throughput of an engine that keeps up."""
    load = Load(64, 8, rate=5.0, requests=50)
    measured = {"mean_ttft": 0.1, "mean_tpot": 0.01, "mean_e2el": 0.17, "request_throughput": 4.9}
    row = EngineRow("r", "r", load.trace("r"), measured)
    assert engine_observations([row], LOADED).groups == ["mean_ttft", "mean_tpot"]
    slow = replace(row, measured=measured | {"request_throughput": 3.0})
    assert "request_throughput" in engine_observations([slow], LOADED).groups


def test_few_rows_decide_few_parameters() -> None:
    """One measurement decides none; three decide two."""
    start = sheet_profile("a10")
    rows = rows_of([Load(127, 64), Load(511, 64)], SINGLE, start, ("mean_ttft", "mean_tpot"))
    assert len(fit_engine(rows, SINGLE, start).parameters) == 3
    alone = [replace(rows[0], measured={"mean_tpot": 0.03})]
    with pytest.raises(ValueError, match="1 row cannot decide 1 parameters"):
        fit_engine(alone, SINGLE, start)


def test_a_run_that_the_deployment_cannot_serve_is_refused() -> None:
    """A prompt longer than the context is named with its row."""
    row = EngineRow("t.csv, line 2", "r", Load(5000, 8).trace("r"), {"mean_ttft": 1.0})
    with pytest.raises(ValueError, match=r"t\.csv, line 2: 1 of 1 requests cannot be served"):
        predict_row(row, SINGLE, sheet_profile("a10"))


def test_tables_become_a_profile_that_says_what_it_cannot_know(tmp_path: Path) -> None:
    """The profile can be saved and read, names its tables, and its notes what stays assumed."""
    known = sheet_profile("a10").with_values(step_overhead=0.003, request_overhead=0.004)
    rows = rows_of([Load(127, 64), Load(1000, 64)], SINGLE, known, ("mean_ttft", "mean_tpot"))
    lines = ["isl,osl,ttft_s,tpot_s"]
    for row in rows:
        sizes = f"{row.trace.prompt_tokens[0]},{row.trace.output_tokens[0]}"
        lines.append(f"{sizes},{row.measured['mean_ttft']},{row.measured['mean_tpot']}")
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(lines))
    done = calibrate_tables([table], SINGLE.llm, SINGLE.gpu, "mine", SINGLE.deployment)
    done.profile.save(tmp_path / "mine.json")
    read = load_profile(tmp_path / "mine.json")
    assert (read.name, read.gpu, read.kind) == ("mine", "a10", "fitted")
    assert read.provenance["tables"] == "runs.csv"
    assert any("share the GPU" in note for note in done.notes)
    assert any("sequence_overhead" in note for note in done.notes)
    assert done.errors["mean_tpot"].mape < 0.01


def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    """Whatever kind of table it would have been."""
    with pytest.raises(FileNotFoundError, match=r"no table at .*none\.csv"):
        calibrate_tables([tmp_path / "none.csv"], SINGLE.llm, SINGLE.gpu, "x")


def test_a_profile_keeps_the_errors_of_its_fit() -> None:
    """Residuals are the mean absolute errors by quantity, after those of earlier fits."""
    start = sheet_profile("a10")
    rows = rows_of([Load(127, 64), Load(511, 64)], SINGLE, start, ("mean_ttft", "mean_tpot"))
    fit = fit_engine(rows, SINGLE, start)
    made = engine_profile(fit, SINGLE, "x", {"device": "d"}, {"mape: gemm": 0.02})
    assert list(made.residuals) == ["mape: gemm", "mape: mean_ttft", "mape: mean_tpot"]
    assert made.provenance == {"device": "d"}
