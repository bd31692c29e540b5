"""Run a plan on a device: every measurement goes into a raw file as soon as it is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from splitwiser.validate.calibration.kernel_bench import bench
from splitwiser.validate.calibration.points import Kernel, Plan, Stage, kernel_key, point_key
from splitwiser.validate.calibration.raw import RawFile
from splitwiser.validate.calibration.room import pruned
from splitwiser.validate.calibration.stage_run import StageRun
from splitwiser.validate.runtime.children import Children
from splitwiser.validate.runtime.device import Device, provenance
from splitwiser.validate.runtime.faults import RunFailed
from splitwiser.validate.runtime.scratch import Scratch
from splitwiser.validate.runtime.telemetry import Telemetry

Progress = Callable[[int, int, str], None]
"""Told after each measurement: how many are done, how many there are, and what is next."""


def measure(
    plan: Plan, device: Device, path: Path, *, fresh: bool = False, progress: Progress | None = None
) -> float:
    """Measure what *plan* names and *path* lacks; the seconds that this took.

    Ctrl-C leaves *path* with all that was measured: the next call goes on from there. A measurement
    that fails is written down as failed. Raises ValueError where *path* is of another device, and
    `RunFailed` where processes die again and again.
    """
    begun = monotonic()
    conditions = {"plan": plan.name, "dtype": plan.dtype, **provenance(device)}
    with RawFile(path, conditions, fresh=fresh) as raw, Telemetry(device) as telemetry:
        tell = _Teller(plan, raw, progress)
        _measure_kernels(plan, device, raw, tell)
        for stage in plan.stages:
            _measure_stage(stage, device, raw, telemetry, tell)
    return monotonic() - begun


class _Teller:
    """Counts what is done, for whoever shows the progress."""

    def __init__(self, plan: Plan, raw: RawFile, progress: Progress | None) -> None:
        self._total = len(plan)
        self._raw = raw
        self._progress = progress

    def __call__(self, what: str) -> None:
        if self._progress is not None:
            self._progress(min(len(self._raw.records), self._total), self._total, what)


def _measure_kernels(plan: Plan, device: Device, raw: RawFile, tell: _Teller) -> None:
    wanted = [kernel for kernel in plan.kernels if kernel_key(kernel) not in raw]
    if not wanted:
        return
    tell("kernels")
    with Scratch() as scratch, Children(scratch, lambda: None) as children:
        child = children.start("the process of the kernels", bench, str(device), plan.dtype, wanted)
        for kernel in wanted:
            raw.add(kernel_key(kernel), _told(children.receive(child), kernel))
            tell(kernel.table.replace("_", " "))


def _told(record: dict[str, Any], kernel: Kernel) -> dict[str, Any]:
    if any(record.get(name) != value for name, value in kernel.sizes.items()):
        raise RunFailed(f"the process of the kernels measured {record} in place of {kernel}")
    return record


DEATHS = 3  # of a stage's processes, after which the plan is given up


def _measure_stage(
    stage: Stage, device: Device, raw: RawFile, telemetry: Telemetry, tell: _Teller
) -> None:
    for death in range(DEATHS):
        wanted = [point for point in stage.points if point_key(stage, point) not in raw]
        if not wanted:
            return
        tell(f"starting the processes of {stage.sharing}")
        try:
            _measure_points(pruned(stage, wanted), device, raw, telemetry, tell)
        except RunFailed:
            if death == DEATHS - 1:
                raise


def _measure_points(
    stage: Stage, device: Device, raw: RawFile, telemetry: Telemetry, tell: _Teller
) -> None:
    with StageRun(stage, device, telemetry) as run:
        for point in stage.points:
            try:
                record = run.measure(point)
            except RunFailed as error:
                raw.add(point_key(stage, point), {"sharing": stage.sharing, "error": str(error)})
                raise
            raw.add(point_key(stage, point), record)
            tell(f"{stage.sharing}: {' beside '.join(load.title for _, load in point.loads)}")
