"""The fit of a profile's kernels to a table of measured ones: parameters first, then corrections.

The parameters of `models/kernels.py` are fitted to the logarithms of the times; what they leave
becomes corrections. Rows that the L2 served decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from splitwiser.models.corrections import Correction
from splitwiser.models.gpu import Gpu
from splitwiser.models.kernels import KernelModel
from splitwiser.models.profile import PARAMETERS, Parameter, Profile
from splitwiser.validate.calibration.kernel_corrections import (
    decode_lines,
    elementwise_correction,
    gemm_correction,
    line_corrections,
    prompt_correction,
)
from splitwiser.validate.calibration.kernel_predict import (
    Array,
    cached,
    predict_decodes,
    predict_gemm,
    predict_kernels,
    predict_prompts,
)
from splitwiser.validate.calibration.kernel_table import SAMPLER, KernelTable
from splitwiser.validate.calibration.search import soft_l1

NOISE = 0.1  # errors beyond it count linearly: a library's choice of kernel is off by as much
MOST_ROWS = 2000  # rows of a kind that decide parameters; more change them by less than 1 %
# The first guesses weigh as one row that is off by so much for each factor of e. That decides what
# rows leave open, such as the saturation of SMs where tables know only the whole device.
PRIOR = 0.05
# The kernels of mixed steps re-read keys for each query head; where the L2 no longer holds them, a
# token takes twice as long, which no line can say. So the lines are those of contexts up to this.
MIXED_CONTEXT = 4096
LEAST_SIDE = 512  # smaller matrices are no layer of a language model

# What each stage fits, with first guesses.
GEMM = {
    "gemm_efficiency": 0.8,
    "memory_efficiency": 0.75,
    "sharpness": 4.0,
    "gemm_start": 4e-6,
    "tile_overhead": 1.5e-6,
    "tile_traffic": 3.0,
    "split_traffic": 0.3,
    "compute_knee": 0.8,
}
TILE_STEPS = (256.0, 16.0)  # a library with tiles of powers of two, and one of many heights
CLEARLY = 0.97  # of the loss that the first leaves: the second explains the rows better
PROMPTS = {"attention_efficiency": 0.5, "attention_start": 8e-6}
DECODES = {"kv_efficiency": 0.8, "decode_block": 4e-6}


@dataclass(frozen=True, slots=True)
class KernelFit:
    """The fitted profile, and log(predicted/measured) of every row by kind of kernel."""

    profile: Profile
    residuals: Mapping[str, Array]


def fit_kernels(table: KernelTable, gpu: Gpu, start: Profile) -> KernelFit:
    """Fit the kernels of *start* to a table; kinds without rows keep what *start* says."""
    whole = table
    table = table.where(lambda kind, frame: ~cached(kind, frame, gpu, table.dtype))
    # Kernels are timed one by one: how fast power lets them go on is in none of the rows.
    profile = replace(start.with_values(sustained=1.0), gpu=gpu.name, kind="fitted")
    for fit in (_fit_gemm, _fit_prompts, _fit_decodes, _fit_mixed, _fit_elementwise):
        profile = fit(table, gpu, profile)
    predicted = predict_kernels(whole, gpu, profile)
    residuals = {
        kind: np.log(seconds / whole[kind]["seconds"].to_numpy(float))
        for kind, seconds in predicted.items()
    }
    kept = {**profile.parameters, "sustained": start.parameters["sustained"]}
    return KernelFit(replace(profile, parameters=kept), residuals)


def _fit_gemm(table: KernelTable, gpu: Gpu, profile: Profile) -> Profile:
    frame = table["gemm"]
    if frame.empty:
        return profile
    profile = _without(profile, "gemm")
    layers = frame[frame[["n", "k"]].min(axis=1) >= LEAST_SIDE]
    layers = layers if len(layers) > len(GEMM) else frame
    some = layers.sample(min(len(layers), MOST_ROWS), random_state=0)
    measured = np.log(some["seconds"].to_numpy(float))

    def errors(trial: Profile) -> Array:
        return np.asarray(
            np.log(predict_gemm(KernelModel(gpu, trial, table.dtype), some)) - measured
        )

    # What shares of the SMs said of power stands, unless the waves of whole-device grids know better.
    first = {**GEMM, "compute_knee": profile.value("compute_knee")}
    trials = [
        _solve(_set(profile, "explains the GEMMs best", tile_step=step), first, errors, "GEMMs")
        for step in TILE_STEPS
    ]
    usual, finer = (soft_l1(errors(trial), NOISE) for trial in trials)
    profile = trials[finer < CLEARLY * usual]
    left = frame.assign(
        factor=frame["seconds"] / predict_gemm(KernelModel(gpu, profile, table.dtype), frame)
    )
    fastest = _digits(float(frame["seconds"].min()))
    profile = _set(profile, "the fastest GEMM", stream_start=fastest)
    return _with(profile, gemm=gemm_correction(left))


def _fit_prompts(table: KernelTable, gpu: Gpu, profile: Profile) -> Profile:
    frame = table["prompt_attention"]
    if frame.empty:
        return profile
    profile = _without(profile, "prompt_attention")
    some = frame.sample(min(len(frame), MOST_ROWS), random_state=0).reset_index(drop=True)
    measured = np.log(some["seconds"].to_numpy(float))

    def errors(trial: Profile) -> Array:
        return np.asarray(
            np.log(predict_prompts(KernelModel(gpu, trial, table.dtype), some)) - measured
        )

    profile = _solve(profile, PROMPTS, errors, "prompt attention")
    left = frame.assign(
        factor=frame["seconds"] / predict_prompts(KernelModel(gpu, profile, table.dtype), frame)
    )
    return _with(profile, prompt_attention=prompt_correction(left))


def _fit_decodes(table: KernelTable, gpu: Gpu, profile: Profile) -> Profile:
    """Fit a line over attended tokens for each batch and head shape, then what the lines share."""
    frame = table["decode_attention"]
    if frame.empty:
        return profile
    profile = _without(profile, "decode_fixed", "decode_slope")
    some = frame.sample(min(len(frame), MOST_ROWS), random_state=0).reset_index(drop=True)
    measured = np.log(some["seconds"].to_numpy(float))

    def errors(trial: Profile) -> Array:
        return np.asarray(
            np.log(predict_decodes(KernelModel(gpu, trial, table.dtype), some)) - measured
        )

    profile = _solve(profile, DECODES, errors, "decode attention")
    lines = decode_lines(frame)
    if not lines:  # a line wants three contexts of one batch
        return profile
    model = KernelModel(gpu, profile, table.dtype)
    fixed, slope = line_corrections(lines, lambda *key: model.decode_attention(*key))
    return _with(profile, decode_fixed=fixed, decode_slope=slope)


def _fit_mixed(table: KernelTable, gpu: Gpu, profile: Profile) -> Profile:
    """Fit what decoding sequences add to the attention of a step with a prompt chunk."""
    frame = table["mixed_attention"]
    if frame.empty:
        return profile
    profile = _without(profile, "mixed_fixed", "mixed_slope")
    model = KernelModel(gpu, profile, table.dtype)
    prompts = predict_prompts(model, frame.assign(batch=1))
    lines = decode_lines(frame.assign(prompts=prompts)[frame["context"] <= MIXED_CONTEXT])
    slower = [slope / model.decode_attention(*key)[1] for key, (_, slope) in lines.items()]
    low, high = PARAMETERS["mixed_decode"].lower, PARAMETERS["mixed_decode"].upper
    profile = _set(
        profile,
        f"median over {len(slower)} batches of the time per attended token, over that without prompts",
        mixed_decode=float(np.clip(np.median(slower), low, high)),
    )
    model = KernelModel(gpu, profile, table.dtype)
    fixed, slope = line_corrections(lines, lambda *key: model.decode_attention(*key, mixed=True))
    return _with(profile, mixed_fixed=fixed, mixed_slope=slope)


def _fit_elementwise(table: KernelTable, gpu: Gpu, profile: Profile) -> Profile:
    frame = table["elementwise"]
    light, sampler = frame[frame["name"] != SAMPLER], frame[frame["name"] == SAMPLER]
    if len(light):
        profile = _without(profile, "elementwise")
        fastest = _digits(float(light["seconds"].min()))
        profile = _set(profile, "the fastest element-wise kernel", stream_start=fastest)
        model = KernelModel(gpu, profile, table.dtype)
        left = light.assign(factor=light["seconds"] / model.stream(light["bytes"]))
        profile = _with(profile, elementwise=elementwise_correction(left))
    if len(sampler):
        rate = KernelModel(gpu, profile, table.dtype).stream_rate
        seconds = sampler["seconds"].to_numpy(float)
        columns = np.c_[np.ones(len(seconds)), sampler["bytes"] / rate] / seconds[:, None]
        begin, passes = np.linalg.lstsq(columns, np.ones(len(seconds)), rcond=None)[0]
        profile = _set(
            profile,
            f"fitted to {len(seconds)} times of the sampler",
            sampling_start=max(float(begin), 0.0),
            sampling_passes=max(float(passes), 0.0),
        )
    return profile


def _without(profile: Profile, *kinds: str) -> Profile:
    kept = {kind: table for kind, table in profile.corrections.items() if kind not in kinds}
    return replace(profile, corrections=kept)


def _with(profile: Profile, **corrections: Correction) -> Profile:
    return replace(profile, corrections={**profile.corrections, **corrections})


def _set(profile: Profile, source: str, **values: float) -> Profile:
    """Return *profile* with values that have a closed form, and so no standard error."""
    parameters = {name: Parameter(_digits(value), None, source) for name, value in values.items()}
    return replace(profile, parameters={**profile.parameters, **parameters})


def _solve(
    profile: Profile, first: Mapping[str, float], errors: Callable[[Profile], Array], title: str
) -> Profile:
    """Return *profile* with the parameters of *first* fitted, standard errors from the Jacobian.

    Least squares of *errors* under a soft-L1 loss, in the logarithms of the parameters. A parameter
    that ends at its bound, or whose error would be as large as itself, has no standard error and
    says so. Raises ValueError with fewer rows than parameters.
    """
    from scipy.optimize import least_squares

    names = list(first)
    guess = np.log(list(first.values()))
    lower = np.log([max(PARAMETERS[name].lower, 1e-9) for name in names])
    upper = np.log([PARAMETERS[name].upper for name in names])

    def values(logs: Array) -> dict[str, float]:
        bounds = ((PARAMETERS[name].lower, PARAMETERS[name].upper) for name in names)
        return {
            name: float(np.clip(np.exp(log), *bound))
            for name, log, bound in zip(names, logs, bounds, strict=True)
        }

    def left(logs: Array) -> Array:
        rows = errors(profile.with_values(**values(logs)))
        return np.concatenate([rows, PRIOR * (logs - guess)])

    rows = len(left(guess)) - len(names)
    if rows <= len(names):
        raise ValueError(f"{title}: {rows} rows cannot decide {len(names)} parameters")
    solution = least_squares(
        left,
        guess,
        bounds=(lower, upper),
        loss="soft_l1",
        f_scale=NOISE,
        # Waves make steps in the times, over which differences have to reach.
        diff_step=[1e-3] * len(names),
        max_nfev=40,
    )
    remains = left(solution.x)[:rows]
    variance = float(remains @ remains) / (rows - len(names))
    spread = _spread(np.asarray(solution.jac)[:rows]) * variance**0.5
    parameters = dict(profile.parameters)
    for i, (name, value) in enumerate(values(solution.x).items()):
        source = f"fitted to {rows} rows of {title}"
        stderr: float | None = _digits(value * float(spread[i]))
        if min(solution.x[i] - lower[i], upper[i] - solution.x[i]) < 1e-3:
            source, stderr = f"{source}, at its bound", None
        elif not spread[i] < 1.0:
            source, stderr = f"left open by {rows} rows of {title}", None
        parameters[name] = Parameter(_digits(value), stderr, source)
    return replace(profile, parameters=parameters)


def _spread(jacobian: Array) -> Array:
    """Return the standard errors of the logarithms at unit variance, infinite where left open.

    Columns whose parameter moves the errors least are left out until the others are determined.
    """
    spread = np.full(jacobian.shape[1], np.inf)
    order = np.argsort(-np.linalg.norm(jacobian, axis=0))
    for count in range(len(order), 0, -1):
        chosen = order[:count]
        information = jacobian[:, chosen].T @ jacobian[:, chosen]
        if np.linalg.cond(information) < 1e8:
            spread[chosen] = np.sqrt(np.diag(np.linalg.inv(information)))
            break
    return spread


def _digits(value: float) -> float:
    """Return a value to six significant digits: no fit here is known better."""
    return float(f"{value:.6g}")
