"""The profile of a device from the raw measurements of its calibration.

Five stages, each on what the one before left: single kernels; phases alone on the whole device;
phases alone on shares of the SMs; phases in turns; phases beside each other. What no row decides
keeps the value of the start profile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.catalogue import llm as llm_named
from splitwiser.models.gpu import Gpu
from splitwiser.models.profile import Profile
from splitwiser.models.sharing import sharing_for
from splitwiser.models.work import coefficients
from splitwiser.validate.calibration.fitting import Fit, fit
from splitwiser.validate.calibration.kernel_fit import fit_kernels
from splitwiser.validate.calibration.observations import (
    Errors,
    Observations,
    cross_validate,
    errors_by_group,
)
from splitwiser.validate.calibration.points import Load
from splitwiser.validate.calibration.raw_kernels import kernel_table
from splitwiser.validate.calibration.steps import Predictor, StepRow, rows_of

Floats = NDArray[np.float64]

SPATIAL = ("mps", "streams", "green_contexts")
SLOW_LAUNCH = 8e-5  # s a kernel: hosts were seen at half their speed for seconds at a time
NOISE_ALONE, NOISE_BESIDE = 0.03, 0.05  # relative errors beyond which a row counts linearly
FOLDS = 5  # of the cross-validation, by the lengths of the prompts


class Stage(NamedTuple):
    """Parameters that are fitted together, with first guesses, most important first."""

    title: str
    start: Mapping[str, float]
    rows: Callable[[StepRow], bool]
    noise: float


def _whole(row: StepRow) -> bool:
    return row.alone and row.shares[0] == 1.0


def _limited(row: StepRow) -> bool:
    return row.alone and row.shares[0] < 1.0


STAGES = (
    Stage(
        "phases alone",
        {"launch_host": 3e-5, "kernel_gap": 5e-7, "sustained": 0.1},
        _whole,
        NOISE_ALONE,
    ),
    Stage(
        "phases alone on shares of the SMs",
        {
            "compute_knee": 0.8,
            "bandwidth_knee": 0.25,
            "kv_knee": 0.6,
            "compute_bend": 4.0,
            "bandwidth_bend": 3.0,
            "second_wave": 0.2,
        },
        _limited,
        NOISE_ALONE,
    ),
    Stage(
        "phases in turns",
        {"switch": 2e-4, "quantum": 3e-3, "slice_hold": 0.5},
        lambda row: not row.alone and row.sharing == "time_slice",
        NOISE_BESIDE,
    ),
    Stage(
        "phases beside each other",
        {
            "wait_memory": 0.5,
            "yielded": 0.4,
            "contention": 0.2,
            "wait_exponent": 0.6,
            "wait_compute": 1.2,
            "power_compute": 1.2,
            "power_memory": 0.6,
            "wait_overlap": 3.5,
            "memory_spread": 0.5,
            "yield_overlap": 0.4,
            "crowding": 0.2,
        },
        lambda row: not row.alone and row.sharing in SPATIAL,
        NOISE_BESIDE,
    ),
)


@dataclass(frozen=True, eq=False)
class DeviceFit:
    """The profile, the fits that made it, and the errors of rows held out by prompt length."""

    profile: Profile
    fits: tuple[Fit, ...]
    kernels: Mapping[str, Errors]
    held_out: Mapping[str, Errors]


def fit_device(
    records: Sequence[Mapping[str, Any]],
    gpu: Gpu,
    dtype: str,
    start: Profile,
    more: Sequence[StepRow] = (),
) -> DeviceFit:
    """Fit *start* to the measurements *records* of one device, and to *more* of its steps.

    ValueError where nothing was measured.
    """
    profile, kernels = start, dict[str, Errors]()
    table = kernel_table(records, dtype, {})
    if table.frames:
        found = fit_kernels(table, gpu, start)
        profile = found.profile
        kernels = {
            f"kernels, {kind.replace('_', ' ')}": _errors(np.expm1(left))
            for kind, left in found.residuals.items()
            if len(left)
        }
    rows = [*rows_of(records, gpu.sms), *more]
    if not rows and not kernels:
        raise ValueError("no measurement succeeded: there is nothing to fit")
    fits, held_out = [], dict[str, Errors]()
    for stage in STAGES:
        chosen = [row for row in rows if stage.rows(row)]
        names = _decidable(stage, chosen, gpu)
        if not names:
            continue
        together = stage.noise == NOISE_BESIDE
        observed = beside(chosen, gpu, profile) if together else observe(chosen, gpu)
        begins = {name: stage.start[name] for name in names}
        one = fit(profile, begins, observed, noise=stage.noise, title=stage.title)
        if together:
            held_out |= _cross_validated(profile, one, chosen, observed, stage)
        fits.append(one)
        profile = one.profile
    return DeviceFit(profile, tuple(fits), kernels, held_out)


def _decidable(stage: Stage, rows: Sequence[StepRow], gpu: Gpu) -> list[str]:
    """The parameters that so many rows may decide: one for each three rates, the first ones first."""
    rates = sum(len(row.rates) for row in rows)
    names = list(stage.start)
    if "second_wave" in names and not any(row.sharing == "green_contexts" for row in rows):
        names.remove("second_wave")
    if gpu.name == "cpu":  # torch threads stand for SMs, and no power limits them
        names = [name for name in names if not name.startswith("power")]
    return names[: rates // 3]


def observe(rows: Sequence[StepRow], gpu: Gpu) -> Observations:
    """The seconds of every lane's step, and how a profile predicts them."""

    def predict(profile: Profile) -> Floats:
        model = Predictor(gpu, profile)
        return np.array(
            [1.0 / rate for row in rows for rate in model.rates(row, hosts_of(row, gpu))]
        )

    return _observations(rows, predict)


def beside(rows: Sequence[StepRow], gpu: Gpu, alone: Profile) -> Observations:
    """The same, for profiles that differ from *alone* in how tasks share the device only.

    What each step asks of its share is worked out once, so that a prediction is cheap.
    """
    model = Predictor(gpu, alone)
    demands = [model.demands(row, hosts_of(row, gpu)) for row in rows]

    def predict(profile: Profile) -> Floats:
        laws = {regime: sharing_for(regime, profile) for regime in {row.sharing for row in rows}}
        seconds = []
        for row, asked in zip(rows, demands, strict=True):
            rates = laws[row.sharing].rates(asked)
            seconds += [each.seconds / rate for each, rate in zip(asked, rates, strict=True)]
        return np.array(seconds)

    return _observations(rows, predict)


def _observations(rows: Sequence[StepRow], predict: Callable[[Profile], Floats]) -> Observations:
    measured = [1.0 / rate for row in rows for rate in row.rates]
    groups = [f"{group_of(row)}, {load.phase}" for row in rows for load in row.loads]
    titles = [
        f"{row.sharing}: {row.title}, {load.llm.split('/')[-1]}, lane {place}"
        for row in rows
        for place, load in enumerate(row.loads)
    ]
    return Observations(np.array(measured), groups, titles, predict)


def hosts_of(row: StepRow, gpu: Gpu) -> list[float | None] | None:
    """The seconds that the launches of each lane's step take; None where the model tells.

    Hosts launch at speeds that differ by two from one second to the next. Where a row tells the
    time of its launches, that is taken; where it does not, a lane that the host may hold back is
    taken to have been held back, and tells only what it did to the others.
    """
    if row.alone or gpu.name == "cpu":
        return None
    if row.hosts is not None:
        return list(row.hosts)
    return [
        min(1.0 / rate, SLOW_LAUNCH * launches(load)) if load.prompts or load.eager else 0.0
        for load, rate in zip(row.loads, row.rates, strict=True)
    ]


def launches(load: Load) -> float:
    """About how many kernels a step launches."""
    return coefficients(llm_named(load.llm)).dense_kernels


def group_of(row: StepRow) -> str:
    if row.alone:
        if row.shares[0] == 1.0:
            return "alone"
        return f"alone on a share, {row.sharing.replace('_', ' ')}"
    crowd = "" if len(row.loads) == 2 else " of three or more"
    return f"{row.regime.replace('_', ' ')}{crowd}"


def _cross_validated(
    profile: Profile, whole: Fit, rows: Sequence[StepRow], observed: Observations, stage: Stage
) -> dict[str, Errors]:
    """The errors of rows predicted by fits that saw no prompt of their lengths, by group.

    Each such fit begins at the whole one's values, at the first guess where that is zero.
    """
    lengths = sorted({_length(row) for row in rows})
    fold_of = {length: str(place % FOLDS) for place, length in enumerate(lengths)}
    folds = [fold_of[_length(row)] for row in rows for _ in row.loads]
    start = {p.name: p.value or stage.start[p.name] for p in whole.parameters}
    if len(set(folds)) < 2 or len(folds) < 4 * len(start):
        return {}

    def fit_rows(others: Observations) -> Profile:
        return fit(profile, start, others, noise=stage.noise, title=stage.title).profile

    predicted = cross_validate(fit_rows, observed, folds)
    return errors_by_group(observed.groups, observed.measured, predicted)


def _length(row: StepRow) -> int:
    return max(load.tokens for load in row.loads)


def _errors(left: Floats) -> Errors:
    size = np.abs(left)
    return Errors(float(size.mean()), float(np.quantile(size, 0.95)), len(left), float(left.mean()))
