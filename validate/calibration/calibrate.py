"""`calibrate_device`: measure a device, and fit its profile."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitwiser.models.gpu import Gpu, gpu, gpus
from splitwiser.models.profile import sheet_profile
from splitwiser.sim.deployment import split
from splitwiser.validate.calibration.calibration import Calibration
from splitwiser.validate.calibration.device_fit import DeviceFit, fit_device
from splitwiser.validate.calibration.idle import refuse_busy
from splitwiser.validate.calibration.measure import Progress, measure
from splitwiser.validate.calibration.plans import cpu_plan, gpu_plan
from splitwiser.validate.calibration.plans import quick as a_third
from splitwiser.validate.calibration.points import Plan
from splitwiser.validate.calibration.raw import read_raw
from splitwiser.validate.runtime.device import Device, check, device_named, provenance
from splitwiser.validate.runtime.room import data_sheet

RAW_FILE = "measurements.jsonl"

# What no measurement of a plan tells.
HOST = (
    "an engine's host time between two steps (step_overhead, request_overhead, sequence_overhead),"
    " of generate, and of a hand-over: assumed; fit them to an engine's latencies with --from"
)
MEMORY = "the memory of contexts and activations, and the start of a process: assumed"
LAUNCHES = (
    "how fast this host launches kernels at another time: seen to change by two between runs of one"
    " machine"
)
CARDS = "another card of the same kind: its power limit and cooling change long prefills most"
ON_THE_CPU = "SMs, time slices, green contexts, power: torch threads on a CPU have none of them"


def calibrate_device(
    device: str,
    output: Path,
    raw: Path,
    *,
    quick: bool,
    fresh: bool,
    say: Callable[[str], None],
    progress: Progress,
) -> Calibration:
    """Measure *device* into the folder *raw*, and return the profile called like *output*.

    What *raw* holds already is not measured again, unless *fresh*. Raises ValueError, in one line,
    for a device that is not there, that others use, or that has no data sheet, LookupError where
    NVML cannot tell, and `RunFailed` where processes die again and again.
    """
    at = device_named(device)
    for sharing in ("mps", "green_contexts"):
        check(replace(split(), sharing=sharing), at)
    conditions = provenance(at)
    sheet = _sheet(at, conditions)
    refuse_busy(at)
    plan = _plan(at, conditions)
    if quick:
        plan = a_third(plan)
    path = raw / RAW_FILE
    say(f"{len(plan)} points to measure on {conditions['name']}; raw measurements in {raw}")
    seconds = measure(plan, at, path, fresh=fresh, progress=progress)
    conditions, records = read_raw(path)
    failed = [key for key, record in records.items() if "error" in record]
    if failed:
        say(f"{len(failed)} measurements failed, the first: {records[failed[0]]['error']}")
    found = fit_device(list(records.values()), sheet, plan.dtype, sheet_profile(sheet.name))
    notes = [HOST, MEMORY, ON_THE_CPU] if at.kind == "cpu" else [HOST, MEMORY, LAUNCHES, CARDS]
    if failed:
        notes.append(f"{len(failed)} measurements failed and decided nothing: see {path.name}")
    made = calibration(found, output.stem, conditions, notes)
    return replace(made, measuring=seconds, raw=raw)


def calibration(
    found: DeviceFit, name: str, conditions: Mapping[str, Any], notes: Sequence[str]
) -> Calibration:
    """The fit as a calibration: its profile named, with where it was measured and how well it fits."""
    residuals = {
        f"mape: {group}": round(errors.mape, 4)
        for group, errors in {
            **found.kernels,
            **{group: e for fit in found.fits for group, e in fit.errors_by_group().items()},
        }.items()
    }
    residuals |= {f"held-out mape: {g}": round(e.mape, 4) for g, e in found.held_out.items()}
    told = {
        "device": str(conditions["name"]),
        "driver": f"{conditions.get('driver') or 'none'}, CUDA {conditions.get('cuda') or 'none'}",
        "torch": str(conditions["torch"]),
        "date": str(conditions["date"])[:10],
        "points": str(sum(len(fit.residuals) for fit in found.fits)),
        "command": "splitwiser calibrate --device",
        "unknown": "; ".join(notes),
    }
    known = found.profile.neighbours
    if known is not None:
        told["beyond the law"] = f"{len(known.weights)} slow-downs of steps beside others"
    profile = replace(
        found.profile, name=name, kind="fitted", provenance=told, residuals=residuals, by_gpu={}
    )
    return Calibration(
        profile,
        found.fits,
        kernels=found.kernels,
        held_out=found.held_out,
        notes=tuple(notes),
        fitting=found.seconds,
    )


def _sheet(device: Device, conditions: Mapping[str, Any]) -> Gpu:
    """The data sheet of a device; ValueError where there is none."""
    if device.kind == "cpu":
        return replace(gpu("cpu"), sms=len(os.sched_getaffinity(0)))
    found = data_sheet(str(conditions["name"]))
    if found is None:
        known = ", ".join(sheet.name for sheet in gpus())
        raise ValueError(
            f"device {device} is {conditions['name']!r}, which has no data sheet; there are {known}"
            " (CONTRIBUTING.md says how to add one)"
        )
    return found


def _plan(device: Device, conditions: Mapping[str, Any]) -> Plan:
    return cpu_plan() if device.kind == "cpu" else gpu_plan(float(conditions["memory_bytes"]))
