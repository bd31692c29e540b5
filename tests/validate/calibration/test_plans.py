"""What is measured: the calibration's plan, and the rows that it never sees."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from splitwiser.models.gpu import Gpu, gpu, gpus
from splitwiser.validate.calibration.plans import cpu_plan, gpu_plan
from splitwiser.validate.calibration.points import Plan, kernel_key, point_key
from splitwiser.validate.calibration.raw import read_raw
from splitwiser.validate.calibration.step_plans import BATCHES, TOKENS, spread
from splitwiser.validate.calibration.steps import StepRow, read_steps

H200_BYTES = 150e9


def benchmark(name: str) -> ModuleType:
    """A script of `benchmarks/` as a module."""
    path = Path(__file__).resolve().parents[3] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys(plan: Plan) -> list[str]:
    """The name of every measurement."""
    points = [point_key(stage, point) for stage in plan.stages for point in stage.points]
    return [*map(kernel_key, plan.kernels), *points]


@pytest.mark.parametrize(
    "plan", [gpu_plan(H200_BYTES), cpu_plan(), benchmark("heldout").plan(0, H200_BYTES)]
)
def test_every_measurement_has_a_name_of_its_own(plan: Plan) -> None:
    """No two measurements of a plan share a name, so that none takes another's place."""
    assert len(set(keys(plan))) == len(plan) == len(keys(plan))


@pytest.mark.parametrize("plan", [gpu_plan(H200_BYTES), benchmark("heldout").plan(0, H200_BYTES)])
def test_every_load_runs_in_a_lane_of_its_phase(plan: Plan) -> None:
    """No decode step has a prefill's priority, nor the other way round."""
    for stage in plan.stages:
        for point in stage.points:
            assert all(stage.lanes[place].phase == load.phase for place, load in point.loads)


def test_the_h200_was_measured_by_its_plan() -> None:
    """The committed measurements are those that the plan names for that device, and no others."""
    raw = Path(__file__).resolve().parents[3] / "benchmarks" / "h200" / "calibration.jsonl"
    conditions, records = read_raw(raw)
    assert set(keys(gpu_plan(float(conditions["memory_bytes"])))) == set(records)


def test_the_limited_steps_are_all_of_their_plan() -> None:
    """The committed rows of limits are those that their plan names; each line tells its error, and
    beside another how often as long as alone a step took.
    """
    limited = benchmark("limited")
    assert read_raw(limited.RAW)[1].keys() == set(keys(limited.plan()))
    rows = read_steps(limited.RAW, gpu("h200").sms)

    class Twice:
        """Predicts half of every rate."""

        def rates(self, row: StepRow, hosts: object) -> list[float]:
            return [rate / 2.0 for rate in row.rates]

    lines = list(limited.table(rows, Twice()))[1:]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line.count("+100.0%") == len(row.loads)
    found = next(line for line in lines if "98+32" in line and "P 4041" in line).split()
    spent = {
        (row.alone, load.title): 1.0 / rate
        for row in rows
        if row.sharing == "mps" and row.shares[0] < 1.0
        for load, rate in zip(row.loads[:1], row.rates[:1], strict=True)
    }
    assert float(found[6]) == pytest.approx(
        spent[False, "P 4041"] / spent[True, "P 4041"], abs=0.02
    )


def test_only_jumps_scatter_about_a_line_through_neighbours() -> None:
    """Rates that are a power of the prompt's length lie on that line, whatever their errors; where one
    length alone jumps, its distance is the largest; each centre has a line of its own. The committed
    rows are all of the plan.
    """
    jumps = benchmark("jumps")
    assert read_raw(jumps.RAW)[1].keys() == set(keys(jumps.plan()))
    rows = read_steps(jumps.RAW, gpu("h200").sms)

    def scatter(jump: float) -> list[list[str]]:
        """The columns behind the phase, where the middle lengths' decode jumps."""
        made = [
            replace(
                row,
                rates=(
                    tokens**-0.9,
                    (tokens // 1000 + 1) * (jump if tokens in jumps.CENTRES else 1.0),
                ),
            )
            for row, tokens in ((row, row.loads[0].tokens) for row in rows)
        ]
        lines = jumps.table(made, np.full((len(rows), 2), -0.25))
        assert len(lines) == 1 + 2 * len(jumps.CENTRES) * len(jumps.DECODES)
        return [line.split()[3:6] for line in lines[1:]]

    assert all(columns == ["0.0%", "0.0%", "25.0%"] for columns in scatter(1.0))
    even, odd = scatter(1.1)[:2]
    assert even == ["0.0%", "0.0%", "25.0%"]
    assert odd[:2] == ["1.1%", "9.4%"]  # one of 17 lengths, most of its jump


@pytest.mark.parametrize("seed", [14, 15])
def test_the_h200_is_judged_by_a_plan_drawn_at_random(seed: int) -> None:
    """The committed rows that judge are all of one seed, none chosen by hand and none added; the
    first of the card that was calibrated, the others of another.
    """
    raw = Path(__file__).resolve().parents[3] / "benchmarks" / "h200" / f"heldout-{seed}.jsonl"
    conditions, records = read_raw(raw)
    assert list(records) == keys(benchmark("heldout").plan(seed, float(conditions["memory_bytes"])))
    fitted, _ = read_raw(raw.with_name("calibration.jsonl"))
    assert (conditions["uuid"] == fitted["uuid"]) == (seed == 14)  # 15: another card


@pytest.mark.parametrize("sheet", [g for g in gpus() if g.name != "cpu"], ids=lambda g: g.name)
def test_every_gpu_has_a_plan(sheet: Gpu) -> None:
    """Every GPU with a data sheet can be calibrated: phases alone, and pairs in each regime."""
    plan = gpu_plan(sheet.memory)
    assert {stage.sharing for stage in plan.stages} == {
        "time_slice",
        "mps",
        "streams",
        "green_contexts",
    }
    sizes: dict[str, set[int]] = {}
    for stage in plan.stages:
        sizes.setdefault(stage.sharing, set()).update(len(point.loads) for point in stage.points)
    assert all({1, 2} <= lanes for lanes in sizes.values())


@pytest.mark.parametrize("seed", range(1, 8))
@pytest.mark.parametrize("count", [20, 52, 120])
def test_sizes_cover_their_ranges_evenly(seed: int, count: int) -> None:
    """Each tenth of a range, by logarithms, has its part of the sizes, however many are taken."""
    sizes = np.log([*islice(spread(seed), count)])
    for column, (low, high) in zip(sizes.T[:2], (TOKENS, BATCHES), strict=True):
        tenths = np.clip((column - np.log(low)) / np.log(high / low) * 10, 0, 9.99).astype(int)
        found = np.bincount(tenths, minlength=10)
        if low > 1:  # whole batches leave tenths of small ones empty
            assert found.max() - found.min() <= 3
        assert found.max() <= 0.4 * count


def loads(plan: Plan) -> Iterator[tuple[tuple[str, str], float | None, int, int]]:
    """Regime and phase, limit, prompt length and number of lanes of every load."""
    for stage in plan.stages:
        for point in stage.points:
            for place, load in point.loads:
                kind = (stage.sharing, load.phase)
                yield kind, stage.lanes[place].sm_percent, load.tokens, len(point.loads)


def test_no_pair_of_the_held_out_rows_has_a_prompt_length_or_split_of_the_calibration() -> None:
    """Rows that judge were never seen: neither their prompt lengths beside others, nor their phases'
    shares of the SMs.
    """
    seen, judged = gpu_plan(H200_BYTES), benchmark("heldout").plan(0, H200_BYTES)
    fitted = {tokens for _, _, tokens, lanes in loads(seen) if lanes > 1 and tokens}
    fitted_shares = {(kind, share) for kind, share, _, _ in loads(seen) if share}
    tokens = {tokens for _, _, tokens, lanes in loads(judged) if lanes > 1 and tokens}
    shares = {(kind, share) for kind, share, _, _ in loads(judged) if share}
    assert not tokens & fitted
    assert not shares & fitted_shares
    pairs = {
        point_key(stage, point)
        for stage in judged.stages
        for point in stage.points
        if len(point.loads) == 2 and point.repeat == 0
    }
    assert len(pairs) >= 240
