"""The fit of a profile's parameters to the co-location tables, with residuals of each row.

The parameters of phases alone come from the rows that ran alone, the sharing parameters of a
regime from its pairs. Pairs are also predicted by parameters that never saw their prefill size
(leave one size out): those errors say what the model is worth on traffic nobody measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

import numpy as np

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import PARAMETERS, Parameter, Profile
from splitwiser.validate.corun import CorunRow, GenerateRow, predict_corun, predict_generate

NOISE = 0.05  # errors beyond it count linearly: alone rates repeat within about 5 %


@dataclass(frozen=True, slots=True)
class Rig:
    """What was measured: the model of the prefill and decode loops, that of `generate`, the GPU."""

    llm: Llm
    generate_llm: Llm
    gpu: Gpu


class Observation(NamedTuple):
    """One measured rate and how a profile predicts it."""

    regime: str
    title: str
    phase: str
    size: int | None
    measured: float
    predict: Callable[[Profile], float]


class Stage(NamedTuple):
    """Parameters fitted together, with their first guesses, and the rows that decide them."""

    title: str
    start: Mapping[str, float]
    rows: Sequence[Observation]


@dataclass(frozen=True, slots=True)
class Residual:
    """A measured rate, its prediction, and the prediction by parameters that never saw its size."""

    regime: str
    title: str
    phase: str
    measured: float
    predicted: float
    held_out: float | None = None

    @property
    def error(self) -> float:
        """Return predicted/measured - 1."""
        return self.predicted / self.measured - 1.0

    @property
    def held_out_error(self) -> float | None:
        """Return the same of the held-out prediction."""
        return None if self.held_out is None else self.held_out / self.measured - 1.0


@dataclass(frozen=True, slots=True)
class CorunFit:
    """The fitted profile, the names of what was fitted, and the residual of every row."""

    profile: Profile
    fitted: tuple[str, ...]
    residuals: tuple[Residual, ...]

    def errors(self, *, held_out: bool = False) -> dict[str, float]:
        """Return the mean absolute error by regime, as a fraction."""
        by_regime: dict[str, list[float]] = {}
        for residual in self.residuals:
            error = residual.held_out_error if held_out else residual.error
            if error is not None:
                by_regime.setdefault(residual.regime, []).append(abs(error))
        return {regime: fmean(errors) for regime, errors in by_regime.items()}


def observe_corun(row: CorunRow, rig: Rig) -> list[Observation]:
    """Return the rates that a row of the pair table measured."""
    measured = {"prefill": row.prefill_rate, "decode": row.decode_rate}
    regime = f"alone, {row.regime}" if row.alone else row.regime

    def predict(phase: str) -> Callable[[Profile], float]:
        return lambda profile: predict_corun(row, rig.llm, rig.gpu, profile)[phase]

    return [
        Observation(regime, row.title, phase, row.prefill_tokens, rate, predict(phase))
        for phase, rate in measured.items()
        if rate is not None
    ]


def observe_generate(row: GenerateRow, rig: Rig) -> Observation:
    """Return the rate that a row of the `generate` table measured."""
    return Observation(
        f"generate, {row.regime}",
        row.title,
        "batches",
        None,
        row.rate,
        lambda profile: predict_generate(row, rig.generate_llm, rig.gpu, profile),
    )


def fit_stage(profile: Profile, stage: Stage) -> Profile:
    """Return *profile* with the stage's parameters fitted, standard errors from the Jacobian.

    Least squares of log(predicted/measured) under a soft-L1 loss, in the logarithms of the
    parameters. A parameter that ends at its bound, or that the rows do not determine, has no
    standard error and says so. Raises ValueError with fewer rows than parameters.
    """
    from scipy.optimize import least_squares

    names = list(stage.start)
    if len(stage.rows) <= len(names):
        raise ValueError(
            f"{stage.title}: {len(stage.rows)} rates cannot decide {len(names)} parameters"
        )
    lower = np.log([max(PARAMETERS[name].lower, 1e-9) for name in names])
    upper = np.log([PARAMETERS[name].upper for name in names])

    def errors(logs: np.ndarray) -> np.ndarray:
        trial = profile.with_values(**_values(names, logs))
        return np.array([math.log(row.predict(trial) / row.measured) for row in stage.rows])

    solution = least_squares(
        errors,
        np.log(list(stage.start.values())),
        bounds=(lower, upper),
        loss="soft_l1",
        f_scale=NOISE,
    )
    left = errors(solution.x)
    variance = float(left @ left) / (len(left) - len(names))
    jacobian = np.asarray(solution.jac)
    information = jacobian.T @ jacobian
    determined = np.linalg.cond(information) < 1e12
    spread = np.sqrt(np.diag(np.linalg.pinv(information)) * variance)
    parameters = dict(profile.parameters)
    for i, (name, value) in enumerate(_values(names, solution.x).items()):
        bounded = bool(min(solution.x[i] - lower[i], upper[i] - solution.x[i]) < 1e-3)
        source = f"fitted to {len(left)} rates: {stage.title}" + (", at its bound" * bounded)
        stderr = value * float(spread[i]) if determined and not bounded else None
        parameters[name] = Parameter(value, stderr, source)
    return replace(profile, parameters=parameters)


def _values(names: Sequence[str], logs: np.ndarray) -> dict[str, float]:
    """Return the parameters of these logarithms, rounding kept inside the bounds."""
    return {
        name: float(np.clip(np.exp(log), PARAMETERS[name].lower, PARAMETERS[name].upper))
        for name, log in zip(names, logs, strict=True)
    }


ALONE = {
    "gemm_efficiency": 0.6,
    "kv_efficiency": 0.8,
    "kernel_gap": 3e-6,
    "launch_host": 2.5e-5,  # from above: below what hides the host it changes nothing
    "compute_knee": 0.7,
    "bandwidth_knee": 0.3,
}
# Regime of the rows, and what they decide, with first guesses.
SHARING = {
    "time_slice": {"quantum": 3e-4, "switch": 1e-5, "slice_hold": 0.7},
    "mps": {"wait_memory": 0.5, "wait_compute": 1.0},
    "mps 75%/25%": {"contention_memory": 0.5, "contention_compute": 0.2},
    "streams": {"stream_priority": 0.6},
    "alone, green_contexts": {"second_wave": 0.2},
}
GREEN = "green_contexts"
CROSSED = ("time_slice", "mps", "mps 75%/25%")  # with several prefill sizes to leave out


def fit_sharing(base: Profile, rows: Sequence[Observation]) -> Profile:
    """Return *base* with the sharing parameters of each regime fitted to its rows."""
    profile = base
    for regime, start in SHARING.items():
        chosen = [row for row in rows if row.regime == regime]
        if regime == "time_slice":
            chosen += [row for row in rows if row.regime == "generate, time_slice"]
        if chosen:
            profile = fit_stage(profile, Stage(regime, start, chosen))
    return profile


def fit_corun(
    corun: Sequence[CorunRow], generate: Sequence[GenerateRow], rig: Rig, start: Profile
) -> CorunFit:
    """Fit *start*'s parameters to both tables and return the fit with its residuals.

    Regimes without rows keep the values of *start*. Pairs under green contexts decide nothing:
    their predictions are all held out.
    """
    rows = [observation for row in corun for observation in observe_corun(row, rig)]
    rows += [observe_generate(row, rig) for row in generate]
    alone = [row for row in rows if row.regime.startswith("alone") and GREEN not in row.regime]
    base = fit_generate_overhead(
        fit_stage(start, Stage("phases alone", ALONE, alone)), generate, rig
    )
    profile = fit_sharing(base, rows)

    crossed = {row.size for row in rows if row.regime in CROSSED}
    blind = {size: fit_sharing(base, [row for row in rows if row.size != size]) for size in crossed}

    def held_out(row: Observation) -> float | None:
        if row.regime == GREEN:
            return row.predict(profile)
        return row.predict(blind[row.size]) if row.regime in CROSSED else None

    residuals = tuple(
        Residual(
            row.regime, row.title, row.phase, row.measured, row.predict(profile), held_out(row)
        )
        for row in rows
    )
    names = (*ALONE, "generate_overhead", *(name for names in SHARING.values() for name in names))
    return CorunFit(profile, names, residuals)


def fit_generate_overhead(profile: Profile, rows: Sequence[GenerateRow], rig: Rig) -> Profile:
    """Return *profile* with the overhead of `generate` that explains one process alone.

    One rate gives one value and no standard error. ValueError if no row has one process.
    """
    single = [row for row in rows if row.processes == 1]
    if not single:
        raise ValueError("generate_overhead needs a row of one process; there is none")
    row = single[0]
    bare = predict_generate(
        row, rig.generate_llm, rig.gpu, profile.with_values(generate_overhead=0.0)
    )
    overhead = max(0.0, (1.0 / row.rate - 1.0 / bare) / row.output_tokens)
    parameters = dict(profile.parameters)
    parameters["generate_overhead"] = Parameter(
        overhead, None, "what one process of generate leaves over: one rate, no standard error"
    )
    return replace(profile, parameters=parameters)
