"""The profile of a device from the raw measurements of its calibration.

Five stages, each on what the one before left: single kernels; phases alone in plain processes;
phases alone where others may run, and on shares of the SMs; phases in turns; phases beside each
other. What no row decides keeps the value of the start profile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.gpu import Gpu
from splitwiser.models.profile import Parameter, Profile
from splitwiser.validate.calibration.fitting import Fit, fit, refitted
from splitwiser.validate.calibration.kernel_fit import fit_kernels
from splitwiser.validate.calibration.neighbours_fit import Pair, Process, with_neighbours
from splitwiser.validate.calibration.observations import (
    Errors,
    Observations,
    cross_validate,
    errors_by_group,
)
from splitwiser.validate.calibration.observed_steps import (
    SPATIAL,
    beside,
    bound_by_launches,
    launches,
    observe,
    pairs_of,
    title_of,
    whole,
)
from splitwiser.validate.calibration.raw_kernels import kernel_table
from splitwiser.validate.calibration.steps import StepRow, rows_of

Floats = NDArray[np.float64]

NOISE_ALONE, NOISE_BESIDE = 0.03, 0.05  # relative errors beyond which a row counts linearly
LAUNCHES = 5  # phases that launches bound, from which a host's speed is read
FOLDS = 5  # of the cross-validation, by the lengths of the prompts
NEAR = 3  # tries from the optimum of all rows to that of a fold: errors move by 0.01 % with more


class Stage(NamedTuple):
    """Parameters that are fitted together, with first guesses, most important first.

    A stage *learns* if its pairs also say something beyond the law.
    """

    title: str
    start: Mapping[str, float]
    rows: Callable[[StepRow], bool]
    noise: float
    learns: bool = False


def _shared(row: StepRow) -> bool:
    return row.alone and (row.shares[0] < 1.0 or row.sharing in SPATIAL)


def _in_turns(row: StepRow) -> bool:
    return not row.alone and row.sharing == "time_slice"


STAGES = (
    Stage(
        "phases alone",
        {"launch_host": 3e-5, "kernel_gap": 5e-7, "sustained": 0.7},
        whole,
        NOISE_ALONE,
    ),
    Stage(
        "phases alone under MPS, in streams and on shares of the SMs",
        {
            "shared_gap": 5e-7,
            "compute_knee": 1.0,
            "bandwidth_knee": 0.18,
            "kv_knee": 0.6,
            "compute_bend": 2.0,
            "second_wave": 0.2,
            "tile_relief": 0.5,
            "bandwidth_bend": 3.0,
        },
        _shared,
        NOISE_ALONE,
    ),
    Stage(
        "phases in turns",
        {"switch": 2e-4, "quantum": 3e-3, "slice_hold": 0.5, "clock_relief": 1.0},
        _in_turns,
        NOISE_BESIDE,
    ),
    Stage(
        "phases beside each other",
        {
            "wait_memory": 0.6,
            "contention_compute": 0.2,
            "wait_compute": 1.2,
            "power_compute": 1.0,
            "passed": 3.0,
            "narrow": 0.7,
            "power_memory": 0.6,
            "crowding": 1.0,
            "yielded": 0.06,
            "contention_memory": 0.5,
            "crowding_prompts": 0.3,
        },
        lambda row: not row.alone and row.sharing in SPATIAL,
        NOISE_BESIDE,
        learns=True,
    ),
)


@dataclass(frozen=True, eq=False)
class DeviceFit:
    """The profile, the fits that made it, and the errors of rows held out by prompt length.

    `seconds` is what all fits took, held-out ones among them.
    """

    profile: Profile
    fits: tuple[Fit, ...]
    kernels: Mapping[str, Errors]
    held_out: Mapping[str, Errors]
    seconds: float


def fit_device(
    records: Sequence[Mapping[str, Any]],
    gpu: Gpu,
    dtype: str,
    start: Profile,
) -> DeviceFit:
    """Fit *start* to the measurements *records* of one device.

    ValueError where nothing was measured.
    """
    began = perf_counter()
    profile, kernels = replace(start, neighbours=None), dict[str, Errors]()
    table = kernel_table(records, dtype, {})
    if table.frames:
        found = fit_kernels(table, gpu, profile)
        profile = found.profile
        kernels = {
            f"kernels, {kind.replace('_', ' ')}": _errors(np.expm1(left))
            for kind, left in found.residuals.items()
            if len(left)
        }
    rows = rows_of(records, gpu.sms)
    if not rows and not kernels:
        raise ValueError("no measurement succeeded: there is nothing to fit")
    profile = _with_launches(profile, rows)
    fits, held_out = [], dict[str, Errors]()
    for stage in STAGES:
        chosen = _rows_for(stage, rows)
        names = _decidable(stage, chosen, gpu)
        if not names:
            continue
        together = stage.noise == NOISE_BESIDE
        observed = beside(chosen, gpu, profile) if together else observe(chosen, gpu)
        begins = {name: stage.start[name] for name in names}
        one = fit(profile, begins, observed, noise=stage.noise, title=stage.title)
        process = None
        if stage.learns:
            one, process = _with_neighbours(one, observed, pairs_of(chosen, gpu, profile))
        if together:
            held_out |= _cross_validated(profile, one, chosen, observed, stage, gpu, process)
        fits.append(one)
        profile = one.profile
    return DeviceFit(profile, tuple(fits), kernels, held_out, perf_counter() - began)


def _with_launches(profile: Profile, rows: Sequence[StepRow]) -> Profile:
    """The profile with the time of one launch, where rows tell their host's.

    Hosts are slower than they can be for seconds at a time, and never faster: the lower quartile
    of what phases alone on the whole device took is that of a host at its usual speed.
    """
    each = [
        row.hosts[0] / launches(row.loads[0])
        for row in rows
        if row.hosts is not None and whole(row) and bound_by_launches(row)
    ]
    if len(each) < LAUNCHES:
        return profile
    quarter, half, most = np.quantile(each, [0.25, 0.5, 0.75])
    source = (
        f"lower quartile of {len(each)} phases that launches bound (median {half:.2g} s, upper"
        f" quartile {most:.2g} s)"
    )
    told = Parameter(float(f"{quarter:.4g}"), None, source)
    return replace(profile, parameters={**profile.parameters, "launch_host": told})


def _rows_for(stage: Stage, rows: Sequence[StepRow]) -> list[StepRow]:
    """The rows of a stage; the first is for phases alone without MPS and streams.

    Under these decode steps are some per cent slower, which the second tells from the first. Where
    none but these were measured (a CPU has no time slices), the first takes them.
    """
    chosen = [row for row in rows if stage.rows(row)]
    plain = [row for row in rows if whole(row) and row.sharing == "time_slice"]
    if stage.rows is whole:
        return plain or chosen
    return chosen if plain else [row for row in chosen if not whole(row)]


def _decidable(stage: Stage, rows: Sequence[StepRow], gpu: Gpu) -> list[str]:
    """The parameters that so many rows may decide: one for each three rates, the first ones first."""
    rates = sum(len(row.rates) for row in rows)
    names = list(stage.start)
    if "launch_host" in names and any(row.hosts is not None for row in rows):
        names.remove("launch_host")  # read off, not fitted
    if "second_wave" in names and not any(row.sharing == "green_contexts" for row in rows):
        names.remove("second_wave")
    if "shared_gap" in names and not any(map(whole, rows)):
        names.remove("shared_gap")
    if "yielded" in names and not any(row.decode_first for row in rows):
        names.remove("yielded")
    if gpu.name == "cpu":  # torch threads stand for SMs, and no power limits them
        names = [name for name in names if not name.startswith("power") and name != "sustained"]
    return names[: rates // 3]


def _with_neighbours(
    lawful: Fit, observed: Observations, pairs: Sequence[Pair]
) -> tuple[Fit, Process | None]:
    """The fit of a law with what its pairs say beyond it, and the process that told that."""
    profile, process = with_neighbours(lawful.profile, pairs)
    predicted = observed.predict(profile).tolist()
    residuals = [
        residual._replace(predicted=value)
        for residual, value in zip(lawful.residuals, predicted, strict=True)
    ]
    return replace(lawful, profile=profile, residuals=tuple(residuals)), process


def _cross_validated(
    profile: Profile,
    whole_fit: Fit,
    rows: Sequence[StepRow],
    observed: Observations,
    stage: Stage,
    gpu: Gpu,
    process: Process | None,
) -> dict[str, Errors]:
    """The errors of rows predicted by fits that saw no prompt of their lengths, by group.

    Each such fit moves what the whole one did not keep, from the values found, from the first guess
    where that is zero. What pairs say beyond the law is learnt anew, under the whole fit's scales.
    """
    lengths = sorted({_length(row) for row in rows})
    fold_of = {length: str(place % FOLDS) for place, length in enumerate(lengths)}
    folds = [fold_of[_length(row)] for row in rows for _ in row.loads]
    if len(set(folds)) < 2 or len(folds) < 4 * len(whole_fit.parameters):
        return {}
    found = {p.name: p.value for p in whole_fit.parameters}
    moved = {p.name: p.value or p.start for p in whole_fit.parameters if not p.kept}
    tries = NEAR if all(found[name] == value for name, value in moved.items()) else None
    law = profile.with_values(**found)

    def fit_rows(others: Observations) -> Profile:
        known = set(others.titles)
        kept = [row for row in rows if title_of(row, 0) in known]
        # Observed anew: a part of all rows is predicted by predicting all of them.
        seen = beside(kept, gpu, profile)
        fitted = refitted(law, moved, seen, noise=stage.noise, tries=tries)
        if process is None:
            return fitted
        return with_neighbours(fitted, pairs_of(kept, gpu, profile), process)[0]

    predicted = cross_validate(fit_rows, observed, folds)
    return errors_by_group(observed.groups, observed.measured, predicted)


def _length(row: StepRow) -> int:
    return max(load.tokens for load in row.loads)


def _errors(left: Floats) -> Errors:
    size = np.abs(left)
    return Errors(float(size.mean()), float(np.quantile(size, 0.95)), len(left), float(left.mean()))
