"""Fit the profiles of public engine measurements, and print what each fit decided.

    python benchmarks/engine_profiles.py [--data DIR] [--only GPU] [--write]

Reads the H100 sweep and the A10 logs from DIR (default `../shared/data/measured` beside the
repository), each whole. `--write` replaces `models/profiles/h100-sxm.json` and `a10.json`. How well
a part of these rows predicts the others is for `benchmarks/accuracy.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from splitwiser.models.profile import BUILT_IN, Profile
from splitwiser.validate.calibration.engine_accuracy import (
    a10_engine,
    a10_start,
    h100_engine,
    h100_rows,
    h100_start,
)
from splitwiser.validate.calibration.engine_fit import Engine, engine_profile, fit_engine
from splitwiser.validate.calibration.engine_table import EngineRow, read_engine_tables

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "measured"
COMMAND = "python benchmarks/engine_profiles.py --write"
SHARING = "phases that share the GPU (borrowed from the fit of one H200)"


@dataclass(frozen=True)
class Source:
    """The rows of one engine, what ran, and what is to be said of the profile."""

    rows: Callable[[Path], list[EngineRow]]
    engine: Callable[[], Engine]
    start: Callable[[], Profile]
    provenance: Mapping[str, str]


SOURCES = {
    "h100-sxm": Source(
        lambda data: h100_rows(data / "inference-perf_h100_vllm"),
        h100_engine,
        h100_start,
        {
            "device": "NVIDIA H100 80GB, a GKE node",
            "engine": "vLLM 0.11.0: max_num_seqs 128, whole prompts beside decodes",
            "workload": "Llama-3.1-8B, 204 prompt and 64 output tokens, 1 to 183 requests/s",
            "source": "kubernetes-sigs/inference-perf @7de5ef2ed6f7, demos/kubecon-na-2025/vllm"
            " (Apache-2.0)",
            "cannot know": f"{SHARING}; long prompts and contexts; how kernels and host share the"
            " time of a step beyond what the sweep's loads tell apart",
            "command": COMMAND,
        },
    ),
    "a10": Source(
        lambda data: read_engine_tables([data / "splitwiser_a10_llama2_7b_vllm.csv"]),
        a10_engine,
        a10_start,
        {
            "device": "NVIDIA A10 24GB",
            "engine": "vLLM 0 as the Splitwiser authors ran it, one request at a time",
            "workload": "Llama-2-7B, prompts of 127, 511 and 2047 tokens, 128 to 3970 output tokens",
            "source": "figures from the log files of adney11/vllm-sysml, branch share_model",
            "cannot know": f"{SHARING}; batches: one request leaves memory_efficiency and"
            " step_overhead untold apart, and nothing of sequence_overhead",
            "command": COMMAND,
        },
    ),
}


def fitted(name: str, data: Path) -> Profile:
    """Return the profile fitted to all rows of one source, and print what was decided."""
    source = SOURCES[name]
    rows, engine = source.rows(data), source.engine()
    began = perf_counter()
    fit = fit_engine(rows, engine, source.start())
    took = perf_counter() - began
    print(f"{name}: {len(fit.residuals)} measurements of {len(rows)} runs, {took:.0f} s")
    for parameter in fit.parameters:
        state = "kept" if parameter.kept else f"+/- {parameter.stderr or float('nan'):.2g}"
        tied = f" known only with {', '.join(parameter.tied_to)}" if parameter.tied_to else ""
        print(f"  {parameter.name:<22}{parameter.value:<12.4g}{state}{tied}")
    for group, errors in fit.errors_by_group().items():
        print(f"  {group:<22}MAPE {errors.mape:.1%} p95 {errors.p95:.1%} n {errors.n}")
    provenance = {**source.provenance, "points": str(len(fit.residuals))}
    return engine_profile(fit, engine, name, provenance)


def main() -> None:
    """Fit what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", choices=SOURCES)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    for name in [asked.only] if asked.only else SOURCES:
        profile = fitted(name, asked.data)
        if asked.write:
            profile.save(BUILT_IN / f"{name}.json")


if __name__ == "__main__":
    main()
