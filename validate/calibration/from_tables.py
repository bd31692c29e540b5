"""A profile from tables that somebody measured: kernel times, runs of an engine, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import profile_for, sheet_profile
from splitwiser.sim.deployment import Deployment, chunked
from splitwiser.validate.calibration.calibration import Calibration
from splitwiser.validate.calibration.engine_fit import (
    Engine,
    engine_profile,
    fit_engine,
    served_alone,
)
from splitwiser.validate.calibration.engine_table import is_engine_table, read_engine_tables
from splitwiser.validate.calibration.fitting import Fit
from splitwiser.validate.calibration.kernel_fit import fit_kernels
from splitwiser.validate.calibration.kernel_readers import read_kernels

HOST = ("step_overhead", "request_overhead", "sequence_overhead")
ALONE = (
    "no table here has phases that share the GPU: the sharing parameters are those of other"
    " measurements"
)
HOST_ASSUMED = "kernel times say nothing of the host: its time between steps is assumed"
UNTOLD = (
    "an engine's time per token is the sum of the weights' traffic and the host's time:"
    " memory_efficiency is not told from step_overhead"
)
SINGLE = "one request at a time tells nothing of batches: sequence_overhead is assumed"
DEPLOYED = "the engine's own settings decide its latencies: they were taken as {}"


def calibrate_tables(
    tables: Sequence[Path],
    llm: Llm,
    gpu: Gpu,
    name: str,
    deployment: Deployment | None = None,
) -> Calibration:
    """Fit a profile of *gpu* to *tables* of *llm*, and call it *name*.

    Kernel times decide the kernels, from the data sheet on. Runs of an engine under *deployment*
    (None: `chunked`, vLLM's) decide the host's part; where neither *tables* nor the built-in
    profile have kernel times, they also decide what they can tell of the kernels. Raises
    ValueError or FileNotFoundError in one line for a table that cannot be used.
    """
    for table in tables:
        if not Path(table).exists():
            raise FileNotFoundError(f"no table at {table}")
    began = perf_counter()
    runs = [Path(table) for table in tables if is_engine_table(Path(table))]
    kernels = [Path(table) for table in tables if Path(table) not in runs]
    profile = sheet_profile(gpu.name) if kernels else profile_for(gpu.name)
    notes = [ALONE, f"what no row decides is that of the profile {profile.name}"]
    residuals: dict[str, float] = {}
    if kernels:
        found = fit_kernels(read_kernels(*kernels, llm=llm), gpu, profile)
        profile = found.profile
        residuals = {
            f"mape: {kind}": round(float(np.abs(np.expm1(left)).mean()), 4)
            for kind, left in found.residuals.items()
            if len(left)
        }
    fits: tuple[Fit, ...] = ()
    if runs:
        engine = Engine(deployment or chunked(), llm, gpu)
        profile = replace(profile, graphed_prefill=engine.replays_prompts)
        rows = read_engine_tables(runs)
        if not profile.corrections:
            notes.append(UNTOLD)
        if served_alone(rows):
            notes.append(SINGLE)
        fit = fit_engine(rows, engine, profile, HOST if profile.corrections else None)
        fits = (fit,)
        notes.append(DEPLOYED.format(_settings(engine.deployment)))
        profile = engine_profile(fit, engine, name, {}, residuals)
    else:
        notes.append(HOST_ASSUMED)
        profile = replace(profile, name=name, residuals=residuals)
    return Calibration(
        replace(profile, provenance=_provenance(tables, llm, gpu, notes)),
        fits,
        notes=tuple(notes),
        fitting=perf_counter() - began,
    )


def _provenance(
    tables: Sequence[Path], llm: Llm, gpu: Gpu, notes: Sequence[str]
) -> Mapping[str, str]:
    return {
        "device": gpu.title,
        "workload": llm.name,
        "tables": ", ".join(Path(table).name for table in tables),
        "note": "; ".join(notes),
    }


def _settings(deployment: Deployment) -> str:
    group = deployment.workers[0]
    ahead = ", scheduling ahead" if deployment.async_scheduling else ""
    return (
        f"{deployment.name} with max_num_seqs {group.max_num_seqs} and max_num_batched_tokens"
        f" {group.max_num_batched_tokens}{ahead}"
    )
