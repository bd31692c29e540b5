"""Measuring, on the CPU: real processes, a tiny model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.validate.calibration.lane import Done
from splitwiser.validate.calibration.measure import measure
from splitwiser.validate.calibration.plans import cpu_plan, decode, prefill
from splitwiser.validate.calibration.points import Kernel, Lane, Phase, Plan, Point, Stage
from splitwiser.validate.calibration.raw import read_raw
from splitwiser.validate.calibration.room import pruned
from splitwiser.validate.calibration.stage_run import StageRun
from splitwiser.validate.runtime.device import Device
from splitwiser.validate.runtime.telemetry import Telemetry

CPU = Device("cpu")


def small_plan() -> Plan:
    """A kernel of each table, one phase alone, and a pair as processes and as threads."""
    kernels = {kernel.table: kernel for kernel in cpu_plan().kernels}
    lanes = (Lane("prefill"), Lane("decode"))
    pair = Point(((0, prefill("tiny-llama", 64)), (1, decode("tiny-llama", 4, 128))))
    single = Point(((1, decode("tiny-llama", 4, 128)),))
    stages = (Stage("mps", lanes, (single, pair)), Stage("streams", lanes, (pair,)))
    return Plan("cpu", "float32", tuple(kernels.values()), stages)


def test_a_plan_is_measured_whole_and_not_twice(tmp_path: Path) -> None:
    """Every measurement is there once with positive numbers, and a second run measures nothing."""
    plan, path = small_plan(), tmp_path / "raw.jsonl"
    told: list[tuple[int, int]] = []
    measure(plan, CPU, path, progress=lambda done, total, what: told.append((done, total)))
    conditions, records = read_raw(path)
    assert len(records) == len(plan)
    assert not [record for record in records.values() if "error" in record]
    assert told[-1] == (len(plan), len(plan))
    assert conditions["torch"]
    before = path.read_bytes()
    assert measure(plan, CPU, path) < 5.0
    assert path.read_bytes() == before


def test_a_row_tells_what_each_lane_was_granted(tmp_path: Path) -> None:
    """Without a limit a lane has every core, and with half of them half, rounded down to one."""
    load = decode("tiny-llama", 1, 64)
    lanes = (Lane("decode"), Lane("decode", 50.0))
    plan = Plan("cpu", "float32", (), (Stage("mps", lanes, (Point(((0, load), (1, load))),)),))
    measure(plan, CPU, tmp_path / "raw.jsonl")
    (record,) = read_raw(tmp_path / "raw.jsonl")[1].values()
    cores = len(os.sched_getaffinity(0))
    assert [lane["sms"] for lane in record["lanes"]] == [cores, max(1, cores // 2)]


def test_a_rate_and_its_launches_are_of_the_same_steps() -> None:
    """The first step of a window ends no interval, and its launch counts as little."""
    stage = small_plan().stages[0]
    run = StageRun(stage, Device("cuda"), Telemetry(Device("cuda")))
    steps = [[Done(0.1, 9.0), Done(0.2, 1e-3), Done(0.3, 3e-3)]]
    assert run._host(steps)["host"] == pytest.approx([2e-3])


@given(st.sampled_from(["prefill", "decode"]), st.booleans())
def test_a_lane_that_runs_as_an_equal_has_no_priority(phase: Phase, equal: bool) -> None:
    """Only decode has a stream of its own priority, and not where its lane is an equal of others."""
    assert (Lane(phase, equal=equal).role == "decode") == (phase == "decode" and not equal)


def test_a_kernel_that_fails_is_written_down_as_failed(tmp_path: Path) -> None:
    """A measurement that cannot be made has a reason and no number; the others are made."""
    impossible = Kernel("gemm", {"m": 1, "n": 2**40, "k": 2**20})
    plan = replace(small_plan(), kernels=(impossible, *small_plan().kernels[:1]), stages=())
    measure(plan, CPU, tmp_path / "raw.jsonl")
    failed, good = read_raw(tmp_path / "raw.jsonl")[1].values()
    assert failed["error"].startswith("out of memory")
    assert "seconds" not in failed
    assert good["seconds"] > 0


def test_an_interruption_keeps_what_was_measured(tmp_path: Path) -> None:
    """After Ctrl-C the file holds what was done, and the next call does the rest only."""
    plan, path = small_plan(), tmp_path / "raw.jsonl"

    def interrupt(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(plan, CPU, path, progress=interrupt)
    assert len(read_raw(path)[1]) == 3
    made: list[int] = []
    measure(plan, CPU, path, progress=lambda done, total, what: made.append(done))
    assert min(made) >= 3
    assert len(read_raw(path)[1]) == len(plan)


def test_lanes_that_are_needed_keep_their_loads() -> None:
    """Leaving points out of a stage leaves every other point as it was, whatever lanes go."""
    lanes = (Lane("prefill"), Lane("decode", 50.0), Lane("decode", 25.0))
    load = decode("tiny-llama", 1, 64)
    stage = Stage("mps", lanes, (Point(((1, load),)), Point(((2, load),))))
    left = pruned(stage, stage.points[1:])
    assert left.lanes == (lanes[2],)
    assert left.points == (Point(((0, load),)),)
