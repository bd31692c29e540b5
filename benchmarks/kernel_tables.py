"""Fit profiles to public tables of kernel times, and print what they are worth.

    python benchmarks/kernel_tables.py [GPU...] [--data DIR] [--write] [--json]

Reads NVIDIA aiconfigurator's tables of vLLM kernels (a100-80gb, l40s) and LLMServingSim's profile
(rtx-pro-6000) from DIR (default `../shared/data/measured` beside the repository). The errors are
those of rows whose model shape was left out of the fit; `--write` replaces the profiles in
`models/profiles/` by fits to all rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from splitwiser.models.catalogue import llm
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import BUILT_IN, Parameter, Profile, load_profile
from splitwiser.validate.calibration.kernel_accuracy import HeldOut, held_out
from splitwiser.validate.calibration.kernel_fit import KernelFit, fit_kernels
from splitwiser.validate.calibration.kernel_predict import cached
from splitwiser.validate.calibration.kernel_readers import read_kernels
from splitwiser.validate.calibration.kernel_table import KernelTable

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "measured"
UNKNOWN = (
    "host time between steps and on launches, sampling, element-wise kernels and decoding beside"
    " prompts are assumed; sharing is borrowed from the fit of one H200"
)


@dataclass(frozen=True)
class Source:
    """Where a GPU's kernel times stand, what they are, and what they leave open."""

    folder: str
    gap: Parameter
    provenance: dict[str, str]
    held_out: bool


AICONFIGURATOR = {
    "tables": "ai-dynamo/aiconfigurator 095f58a51c4c, vLLM 0.14.0 GEMM and attention (Apache-2.0)",
    "unknown": UNKNOWN,
    "command": "python benchmarks/kernel_tables.py --write",
}
REPLAYED = Parameter(
    0.0, None, "assumption: kernels repeated back to back hold the gaps between them"
)
SOURCES = {
    "a100-80gb": Source(
        "op_tables/a100_sxm", REPLAYED, {"device": "NVIDIA A100-SXM4-80GB", **AICONFIGURATOR}, True
    ),
    "l40s": Source("op_tables/l40s", REPLAYED, {"device": "NVIDIA L40S", **AICONFIGURATOR}, True),
    "rtx-pro-6000": Source(
        "llmservingsim_profile_RTXPRO6000_Llama-3.1-8B",
        Parameter(1e-6, None, "assumption: the profile's kernel times hold no gaps"),
        {
            "device": "NVIDIA RTX PRO 6000 Blackwell",
            "tables": "casys-kaist/LLMServingSim 5daddb21a545, vLLM 0.19 kernels of Llama-3.1-8B"
            " (MIT)",
            "unknown": "shapes of other models are extrapolated; host time between steps and on"
            " launches is assumed; sharing is borrowed from the fit of one H200",
            "command": "python benchmarks/kernel_tables.py --write",
        },
        False,
    ),
}


def start(name: str) -> Profile:
    """Return the data-sheet profile of a GPU: what no kernel time tells stays as it is there."""
    sheet = load_profile(BUILT_IN / "datasheet.json")
    parameters = {**sheet.parameters, **sheet.by_gpu.get(name, {}), "kernel_gap": SOURCES[name].gap}
    return replace(
        sheet, name=name, gpu=name, parameters=parameters, by_gpu={}, graphed_prefill=True
    )


def fit(name: str, table: KernelTable, errors: list[HeldOut]) -> KernelFit:
    """Fit a GPU's table; the profile says what it was fitted on and how far it is off."""
    sheet = gpu(name)
    result = fit_kernels(table, sheet, start(name))
    residuals = {}
    for kind, left in result.residuals.items():
        warm = cached(kind, table[kind], sheet, table.dtype)
        residuals[f"mape: {kind}"] = round(float(np.abs(np.expm1(left[~warm])).mean()), 4)
    residuals |= {f"held-out mape: {row.kind}, {row.scope}": round(row.mape, 4) for row in errors}
    points = sum(len(left) for left in result.residuals.values())
    provenance = {**SOURCES[name].provenance, "points": str(points)}
    return replace(
        result, profile=replace(result.profile, provenance=provenance, residuals=residuals)
    )


def show(name: str, result: KernelFit, errors: list[HeldOut], console: Console) -> None:
    """Print the held-out errors and the parameters that were fitted."""
    table = Table(title=f"{name}: rows of left-out model shapes")
    for column in ("kernel", "rows", "number", "MAPE", "95 %"):
        table.add_column(column, justify="left" if column in ("kernel", "rows") else "right")
    for row in errors:
        table.add_row(row.kind, row.scope, str(row.rows), f"{row.mape:.1%}", f"{row.p95:.1%}")
    if errors:
        console.print(table)
    table = Table(title=f"{name}: in the fit, cached rows aside")
    for column in ("kernel", "MAPE"):
        table.add_column(column)
    for title, error in result.profile.residuals.items():
        if title.startswith("mape: "):
            table.add_row(title.removeprefix("mape: "), f"{error:.1%}")
    console.print(table)


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gpus", nargs="*", metavar="GPU", help=", ".join(SOURCES))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {}
    try:
        for name in arguments.gpus or SOURCES:
            if name not in SOURCES:
                raise ValueError(f"no table of {name!r}; there are {', '.join(SOURCES)}")
            table = read_kernels(
                arguments.data / SOURCES[name].folder, llm=llm("meta-llama/Llama-3.1-8B")
            )
            errors = held_out(table, gpu(name), start(name)) if SOURCES[name].held_out else []
            result = fit(name, table, errors)
            found[name] = [row._asdict() for row in errors]
            if not arguments.json:
                show(name, result, errors, Console())
            if arguments.write:
                result.profile.save(BUILT_IN / f"{name}.json")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
