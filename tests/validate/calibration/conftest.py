"""A calibration made of numbers that a test can check by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from splitwiser.models.profile import Parameter, profile_for
from splitwiser.validate.calibration.calibration import Calibration
from splitwiser.validate.calibration.fitting import Fit, FittedParameter
from splitwiser.validate.calibration.observations import Errors, Residual

SAID = {  # of each parameter: value, standard error, start, and what the fit found out
    "gemm_efficiency": (0.6, 0.012, 0.5, {}),
    "kernel_gap": (0.0, None, 1e-6, {"at_bound": True}),
    "quantum": (1e-3, None, 1e-3, {"identified": False, "kept": True, "missing": "two processes"}),
    "switch": (2e-5, None, 1e-5, {"identified": False, "tied_to": ("slice_hold",), "missing": "x"}),
    "launch_host": (2e-5, 1e-6, 1e-5, {}),
}


def parameter(name: str) -> FittedParameter:
    value, stderr, start, found = SAID[name]
    plain = {"at_bound": False, "identified": True, "kept": False, "tied_to": (), "missing": ""}
    return FittedParameter(name=name, value=value, stderr=stderr, start=start, **{**plain, **found})


@pytest.fixture
def calibration() -> Calibration:
    """A calibration of two fits: five parameters, two strongly correlated, three groups of rows."""
    base = profile_for("h200")
    entries = {name: Parameter(SAID[name][0], SAID[name][1], "fitted") for name in SAID}
    entries["sharpness"] = Parameter(4.0, None, "fixed: these rows prefer 3 to 8 about equally")
    profile = replace(
        base,
        name="lab",
        kind="fitted",
        parameters={**base.parameters, **entries},
        provenance={"device": "NVIDIA H200", "driver": "580", "torch": "2.11", "date": "2026-11"},
    )
    first = Fit(
        title="phases alone",
        profile=profile,
        parameters=tuple(parameter(name) for name in ("gemm_efficiency", "kernel_gap")),
        decided=("gemm_efficiency", "launch_host"),
        correlation=np.array([[1.0, -0.95], [-0.95, 1.0]]),
        residuals=(
            Residual("prefill", "P 128", "s", 1e-3, 1.1e-3),
            Residual("prefill", "P 512", "s", 4e-3, 3.76e-3),
            Residual("decode <&>", "D 16x1024", "1/s", 200.0, 202.0),
        ),
        scatter=0.05,
    )
    second = replace(
        first,
        title="time slicing",
        parameters=tuple(parameter(name) for name in ("quantum", "switch", "launch_host")),
        decided=(),
        correlation=np.empty((0, 0)),
        residuals=(Residual("time_slice", "P 128 + D 16x1024", "s", 2e-3, 2e-3),),
    )
    return Calibration(
        profile=profile,
        fits=(first, second),
        held_out={"prefill": Errors(0.11, 0.12, 2, 0.01), "unseen": Errors(0.2, 0.3, 5, -0.2)},
        notes=("Another host launches kernels at another pace.", "Memory was not measured."),
        measuring=612.4,
        fitting=7.25,
        raw=Path("lab-raw"),
    )
