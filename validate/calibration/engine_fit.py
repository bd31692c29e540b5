"""The fit of a profile to measured runs of a serving engine.

End-to-end latencies decide how fast prompts and tokens are and what the host adds to each step and
request. They say nothing of phases that share the GPU, and of a batch that never changes they
tell the sum of its kernels and its host, not the parts: the fit says which values it kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import PARAMETERS, Profile
from splitwiser.sim.deployment import Deployment
from splitwiser.sim.result import Result
from splitwiser.sim.simulate import simulate
from splitwiser.validate.calibration.engine_table import EngineRow
from splitwiser.validate.calibration.fitting import Fit, fit
from splitwiser.validate.calibration.observations import Observations

# What runs of an engine can tell, with first guesses for parameters that the start profile has at
# 0: from there a search cannot see which way to go. The time per token does not tell the weights'
# traffic from the host's part of a step, so memory_efficiency is none of them.
STARTS: Mapping[str, float] = {
    "step_overhead": 1e-3,
    "gemm_efficiency": 0.6,
    "request_overhead": 5e-3,
    "kv_efficiency": 0.8,
    "sequence_overhead": 1e-5,
    "attention_efficiency": 0.5,
}
LONG_PROMPT = 4096  # tokens from which attention is a part of a prompt's time that can be told
MUCH_KV = 0.5  # of the weights' bytes: KV reads from which they can be told under load
KEPT_UP = 0.95  # of the rate asked for: above it, the engine was not what limited the throughput
SHORT = 1000  # requests that a fit simulates of a run that keeps up: more change no median
NOISE = 0.03  # errors beyond it count linearly: latencies of equal runs repeat within about 3 %
COARSE = 80  # predictions of all rows that each coarse search makes under load
TURNS = 6  # searches, each from where the one before ended, while they gain
STRIDE = 0.25  # of the logarithms of parameters, with which they begin, up and down in turn
PRIOR = 0.05  # the first guesses weigh as rows that are off by so much for each factor of e
STEP = 0.03  # of the finite differences: a trace's median jumps by some tenths of a percent


@dataclass(frozen=True, slots=True)
class Engine:
    """What was measured: a model under a deployment on a GPU."""

    deployment: Deployment
    llm: Llm
    gpu: Gpu

    @property
    def replays_prompts(self) -> bool:
        """Whether steps with prompts replay CUDA graphs: vLLM v1's piecewise ones."""
        chunked = all(group.scheduler == "chunked" for group in self.deployment.workers)
        return chunked and not self.deployment.enforce_eager


def predict_row(row: EngineRow, engine: Engine, profile: Profile) -> dict[str, float]:
    """Return the prediction of each quantity that *row* measured, by name; seconds, or per second.

    Raises ValueError where the deployment cannot serve the row's requests.
    """
    result = simulate(row.trace, engine.deployment, engine.llm, engine.gpu, profile)
    if not result.completed.all():
        raise ValueError(
            f"{row.place}: {int((~result.completed).sum())} of {len(result)} requests cannot be"
            f" served by {engine.deployment.name} on {engine.gpu.name}"
        )
    return {name: quantity(name, result) for name in row.measured}


def quantity(name: str, result: Result) -> float:
    """Return a quantity of a served trace by its name, such as "median_ttft"; NaN if undefined."""
    statistic, _, latency = name.partition("_")
    if latency == "throughput" or name == "total_token_throughput":
        amounts = {
            "request_throughput": float(len(result)),
            "output_throughput": float(result.output_tokens.sum()),
            "total_token_throughput": float((result.prompt_tokens + result.output_tokens).sum()),
        }
        return amounts[name] / result.duration
    values: NDArray[np.float64] = getattr(result, latency)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan")
    if statistic == "mean":
        return float(values.mean())
    return float(np.percentile(values, 50 if statistic == "median" else int(statistic[1:])))


def engine_observations(
    rows: Sequence[EngineRow], engine: Engine, names: Sequence[str] = ()
) -> Observations:
    """Return the measurements of *rows* as a fit takes them, all or those called *names*.

    An end-to-end latency is left out beside a TTFT and a TPOT: it is their sum. So is the
    throughput of an engine that keeps up with the rate asked for: it is that rate. Of such a run
    the first requests are enough.
    """
    rows = [_shortened(row) for row in rows]
    wanted = [[name for name in _told(row) if not names or name in names] for row in rows]
    used = [(row, chosen) for row, chosen in zip(rows, wanted, strict=True) if chosen]

    def predict(profile: Profile) -> NDArray[np.float64]:
        predicted = ((predict_row(row, engine, profile), chosen) for row, chosen in used)
        return np.array([values[name] for values, chosen in predicted for name in chosen])

    pairs = [(row, name) for row, chosen in used for name in chosen]
    return Observations(
        np.array([row.measured[name] for row, name in pairs]),
        [name for _, name in pairs],
        [row.load for row, _ in pairs],
        predict,
        ["1/s" if name.endswith("throughput") else "s" for _, name in pairs],
    )


def _kept_up(row: EngineRow) -> bool:
    """Whether the engine served all that an open loop asked for, as fast as it came."""
    rate = row.trace.rate
    return row.measured.get("request_throughput", 0.0) >= KEPT_UP * rate and rate < inf


def _shortened(row: EngineRow) -> EngineRow:
    return replace(row, trace=row.trace.head(SHORT)) if _kept_up(row) else row


def _told(row: EngineRow) -> list[str]:
    """The names of what a row measured, without what others imply."""
    kinds = {name.rpartition("_")[2] for name in row.measured}
    implied = []
    if {"ttft", "tpot"} <= kinds:
        implied.append("_e2el")
    if _kept_up(row) and len(row.measured) > 1:
        implied.append("_throughput")
    return [name for name in row.measured if not name.endswith(tuple(implied))]


def fit_engine(
    rows: Sequence[EngineRow],
    engine: Engine,
    start: Profile,
    names: Sequence[str] | None = None,
) -> Fit:
    """Return the fit of *start* to *rows*: of the parameters *names*, by default those that such rows
    can decide, as many as there are measurements for.

    Raises ValueError, in one line, for fewer than two measurements.
    """
    observations = engine_observations(rows, engine)
    if names is None:
        names = _decidable(rows, engine)[: max(1, len(observations) - 1)]
    guesses = {name: _guess(name, start) for name in names}
    title = f"{engine.llm.name} under {engine.deployment.name}"
    if len(observations) > len(guesses) and not served_alone(rows):
        steady = engine_observations([row for row in rows if _kept_up(row)], engine)
        enough = len(steady) > len(guesses)
        guesses = _coarse(start, guesses, steady if enough else observations)
    found = fit(start, guesses, observations, noise=NOISE, step=STEP, title=title)
    undecided = {p.name: start.value(p.name) for p in found.parameters if p.kept}
    if all(guesses[name] == value for name, value in undecided.items()):
        return found
    # What the rows leave open is the start profile's, and not a guess of the coarse search.
    again = {**{p.name: p.value for p in found.parameters}, **undecided}
    return fit(start, again, observations, noise=NOISE, step=STEP, title=title)


def _coarse(
    start: Profile, guesses: Mapping[str, float], observations: Observations
) -> dict[str, float]:
    """Return better first guesses for rows under load.

    Latencies under load jump with the order of events, and slopes mislead far from the best values;
    so a search without slopes comes first (Nelder and Mead's simplex, on the loss of the fit). The
    loads that the engine keeps up with are enough for it.
    """
    from scipy.optimize import minimize

    names = list(guesses)
    bounds = [(PARAMETERS[name].lower, PARAMETERS[name].upper) for name in names]
    logs = np.log(observations.measured)
    first = np.log(list(guesses.values()))

    def values(at: NDArray[np.float64]) -> dict[str, float]:
        inside = (
            min(max(value, low), high)
            for value, (low, high) in zip(np.exp(at).tolist(), bounds, strict=True)
        )
        return dict(zip(names, inside, strict=True))

    def loss(at: NDArray[np.float64]) -> float:
        left = np.log(observations.predict(start.with_values(**values(at)))) - logs
        away = PRIOR * (at - first)
        return float(np.sum(np.sqrt(1.0 + (np.concatenate([left, away]) / NOISE) ** 2) - 1.0))

    at, least = first, loss(first)
    for turn in range(TURNS):
        stride = STRIDE if turn % 2 == 0 else -STRIDE
        found = minimize(
            loss,
            at,
            method="Nelder-Mead",
            options={
                "initial_simplex": np.vstack([at, at + stride * np.eye(len(names))]),
                "maxfev": COARSE,
                "xatol": STEP,
                "fatol": STEP,
            },
        )
        at, before, least = np.asarray(found.x, dtype=float), least, float(found.fun)
        if before - least < STEP:
            break
    return values(at)


def _decidable(rows: Sequence[EngineRow], engine: Engine) -> list[str]:
    """The parameters that rows like these can move, each apart from the others."""
    names = list(STARTS)
    prompts = max(int(row.trace.prompt_tokens.max()) for row in rows)
    if served_alone(rows):
        names.remove("sequence_overhead")  # the step's only sequence is a part of the step
    elif max(_kv_bytes(row, engine) for row in rows) < MUCH_KV * engine.llm.weight_bytes:
        names.remove("kv_efficiency")
    if prompts < LONG_PROMPT:
        names.remove("attention_efficiency")
    if not any("ttft" in name or "e2el" in name for row in rows for name in row.measured):
        names.remove("request_overhead")
    return names


def _kv_bytes(row: EngineRow, engine: Engine) -> float:
    """The most that a step of this run reads of the KV cache, in bytes."""
    most = sum(group.max_num_seqs for group in engine.deployment.workers)
    batch = min(len(row.trace), row.trace.max_concurrency or most, most)
    context = float((row.trace.prompt_tokens + row.trace.output_tokens).mean())
    return batch * context * engine.llm.kv_bytes_per_token


def served_alone(rows: Sequence[EngineRow]) -> bool:
    """Whether every request had the engine for itself."""
    return all(len(row.trace) == 1 for row in rows)


def _guess(name: str, start: Profile) -> float:
    value = start.value(name)
    return value if value > PARAMETERS[name].lower else STARTS[name]


def engine_profile(
    fit: Fit,
    engine: Engine,
    name: str,
    provenance: Mapping[str, str],
    residuals: Mapping[str, float] | None = None,
) -> Profile:
    """Return the profile of *fit* under a *name*, with its provenance and the errors that are left.

    *residuals* are those of fits before it.
    """
    errors = {f"mape: {group}": round(e.mape, 4) for group, e in fit.errors_by_group().items()}
    return replace(
        fit.profile,
        name=name,
        gpu=engine.gpu.name,
        kind="fitted",
        provenance=dict(provenance),
        residuals={**(residuals or {}), **errors},
    )
