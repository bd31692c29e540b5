"""How well profiles fitted to a part of public measurements of engines predict the rest.

Each case states its split: nothing that is judged was fitted. The data are described in the README
of the folder that holds them; `benchmarks/accuracy.py` prints what these functions return.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.catalogue import llm
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import Profile, profile_for, sheet_profile
from splitwiser.sim.deployment import Deployment, chunked, continuous
from splitwiser.sim.simulate import simulate
from splitwiser.traces.trace import Trace
from splitwiser.validate.calibration.engine_fit import (
    NOISE,
    STEP,
    Engine,
    fit_engine,
    predict_row,
)
from splitwiser.validate.calibration.engine_table import EngineRow, read_engine_tables
from splitwiser.validate.calibration.fitting import fit
from splitwiser.validate.calibration.observations import Observations

Floats = NDArray[np.float64]

STATISTICS = ("mean", "p50", "p90", "p99")
LIGHT_REQUESTS = 100  # of the RTX PRO 6000 log: the first third, sent before a queue formed
# Stages of the H100 sweep that are fitted: those up to two thirds of what it can serve, and those
# that it keeps up with.
LIGHT_STAGES = ((0, 1, 2), (0, 1, 2, 3))
A10_PROMPTS, A10_OUTPUTS = (127, 2047), 512  # prompts and longest outputs that are fitted


class AccuracyRow(NamedTuple):
    """A quantity of one case: measured and predicted, in seconds or per second."""

    case: str
    quantity: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Return predicted/measured - 1."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True, slots=True)
class EngineAccuracy:
    """The held-out predictions of one engine: what was fitted to what, and the rows judged."""

    title: str
    split: str
    fitted: dict[str, float]
    rows: tuple[AccuracyRow, ...]


def public_engines(measured: Path) -> list[EngineAccuracy]:
    """Return the cases from the folder *measured* of public measurements."""
    return [
        rtx_pro_6000(measured / "llmservingsim_vllm_RTXPRO6000_Llama-3.1-8B" / "requests.jsonl"),
        *(h100(measured / "inference-perf_h100_vllm", stages) for stages in LIGHT_STAGES),
        a10(measured / "splitwiser_a10_llama2_7b_vllm.csv"),
    ]


# RTX PRO 6000 -----------------------------------------------------------------------------------


class RequestLog(NamedTuple):
    """Requests as an engine logged them, in the order of their arrival; latencies in seconds."""

    trace: Trace
    ttft: Floats
    tpot: Floats
    e2el: Floats


def read_request_log(path: Path) -> RequestLog:
    """Read LLMServingSim's `requests.jsonl`: latencies count from `queued_ts`.

    The engine writes `queued_ts` when it looks at what has come, between two steps.
    """
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines.sort(key=lambda line: float(line["queued_ts"]))
    queued, first, last = (
        np.array([line[name] for line in lines], dtype=float)
        for name in ("queued_ts", "first_token_ts", "last_token_ts")
    )
    prompts = np.array([line["input_toks"] for line in lines])
    outputs = np.array([line["output_toks"] for line in lines])
    trace = Trace(queued - queued[0], prompts, outputs, name=path.name)
    return RequestLog(trace, first - queued, (last - first) / (outputs - 1), last - queued)


def rtx_pro_6000(path: Path, profile: Profile | None = None) -> EngineAccuracy:
    """vLLM 0.19 on an RTX PRO 6000, from the profile of its kernels (None: the built-in one).

    Only the host's time between two steps is fitted, to the first requests. Requests that find a
    free place get their first token two steps after the engine has seen them: it schedules ahead.
    """
    log = read_request_log(path)
    start = profile_for("rtx-pro-6000") if profile is None else profile
    engine = Engine(
        replace(
            chunked().override(max_num_seqs=128, max_num_batched_tokens=2048),
            async_scheduling=True,
        ),
        llm("meta-llama/Llama-3.1-8B"),
        gpu("rtx-pro-6000"),
    )
    light = slice(0, LIGHT_REQUESTS)

    def tpot(trial: Profile) -> Floats:
        return served(log, engine, trial).tpot[light]

    observations = Observations(
        log.tpot[light],
        ["tpot"] * LIGHT_REQUESTS,
        [f"request {number}" for number in range(LIGHT_REQUESTS)],
        tpot,
    )
    host = fit(start, {"step_overhead": 1e-3}, observations, noise=NOISE, step=STEP)
    bare = served(log, engine, start.with_values(step_overhead=0.0))
    fitted = served(log, engine, host.profile)
    rest, whole = slice(LIGHT_REQUESTS, None), slice(None)
    return EngineAccuracy(
        "vLLM 0.19, Llama-3.1-8B on RTX PRO 6000",
        f"kernels from their profile; step_overhead fitted to the TPOT of the first"
        f" {LIGHT_REQUESTS} of {len(log.trace)} requests, the others judged, and the TTFT of these;"
        " without host time: no fit, all judged",
        {"step_overhead": host.profile.value("step_overhead")},
        (
            *_compare("later requests", log, fitted, rest),
            *_compare("first requests", log, fitted, light, ("ttft",)),
            *_compare("all requests, no host time", log, bare, whole),
        ),
    )


def served(log: RequestLog, engine: Engine, profile: Profile) -> RequestLog:
    """Return the prediction of a log's latencies."""
    result = simulate(log.trace, engine.deployment, engine.llm, engine.gpu, profile)
    return RequestLog(log.trace, result.ttft, result.tpot, result.e2el)


def _compare(
    case: str,
    measured: RequestLog,
    predicted: RequestLog,
    part: slice,
    latencies: Sequence[str] = ("ttft", "tpot", "e2el"),
) -> list[AccuracyRow]:
    rows = []
    for name in latencies:
        real, ours = (getattr(log, name)[part] for log in (measured, predicted))
        for statistic in STATISTICS:
            values = [_statistic(statistic, sample) for sample in (real, ours)]
            rows.append(AccuracyRow(case, f"{name} {statistic}", *values))
    return rows


def _statistic(name: str, sample: Floats) -> float:
    return float(sample.mean() if name == "mean" else np.percentile(sample, int(name[1:])))


# H100 and A10 -----------------------------------------------------------------------------------


def h100_engine() -> Engine:
    """vLLM 0.11 as in the sweep's `manifests.yaml`.

    Whole prompts of 204 tokens beside the decodes, in steps of up to 8,192 tokens (vLLM 0.11's
    default for its server on an H100).
    """
    deployment = chunked().override(max_num_seqs=128, max_num_batched_tokens=8192)
    return Engine(deployment, llm("meta-llama/Llama-3.1-8B"), gpu("h100-sxm"))


def h100_start() -> Profile:
    """The data sheet's profile; vLLM's steps with prompts replay piecewise CUDA graphs."""
    return replace(sheet_profile("h100-sxm"), graphed_prefill=True)


def h100_rows(folder: Path) -> list[EngineRow]:
    """The stages of the sweep."""
    paths = sorted(folder.glob("stage_*_lifecycle_metrics.json"))
    return read_engine_tables(paths)


def h100(folder: Path, stages: Sequence[int] = LIGHT_STAGES[0]) -> EngineAccuracy:
    """A sweep of loads: the light *stages* fitted, the others predicted."""
    rows = h100_rows(folder)
    return _judged(
        "vLLM 0.11, Llama-3.1-8B on H100",
        f"fitted to stages {', '.join(map(str, stages))}, the others judged; stages 4 to 6 ask for"
        " more than it serves",
        [rows[stage] for stage in stages],
        rows,
        h100_engine(),
        h100_start(),
    )


def a10_engine() -> Engine:
    """vLLM 0 as the paper's authors ran it, one request at a time."""
    deployment: Deployment = continuous()
    return Engine(deployment, llm("meta-llama/Llama-2-7b-hf"), gpu("a10"))


def a10_start() -> Profile:
    """The data sheet's profile."""
    return sheet_profile("a10")


def a10(path: Path) -> EngineAccuracy:
    """Single requests: short outputs of two prompt lengths fitted, the rest predicted."""
    rows = read_engine_tables([path])
    part = [
        row
        for row in rows
        if row.trace.prompt_tokens[0] in A10_PROMPTS and row.trace.output_tokens[0] <= A10_OUTPUTS
    ]
    return _judged(
        "vLLM 0, Llama-2-7B on A10",
        f"fitted to {len(part)} runs: prompts of {' and '.join(map(str, A10_PROMPTS))} tokens with"
        f" outputs up to {A10_OUTPUTS}; the other {len(rows) - len(part)} judged",
        part,
        rows,
        a10_engine(),
        a10_start(),
    )


def _judged(
    title: str,
    split: str,
    part: Sequence[EngineRow],
    rows: Sequence[EngineRow],
    engine: Engine,
    start: Profile,
) -> EngineAccuracy:
    """Fit *part* of the rows, and predict the others."""
    found = fit_engine(part, engine, start)
    judged = []
    for row in rows:
        if row in part:
            continue
        predicted = predict_row(row, engine, found.profile)
        judged += [
            AccuracyRow(row.load, name, value, predicted[name])
            for name, value in row.measured.items()
        ]
    fitted = {p.name: p.value for p in found.parameters if not p.kept}
    return EngineAccuracy(title, split, fitted, tuple(judged))
