"""What the scripts that measure steps have in common: options, progress, and the rows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from splitwiser.models.gpu import gpu
from splitwiser.validate.calibration.measure import measure
from splitwiser.validate.calibration.points import Plan
from splitwiser.validate.calibration.steps import StepRow, read_steps
from splitwiser.validate.runtime.device import device_named


def h200_rows(about: str | None, plan: Plan, committed: Path) -> list[StepRow]:
    """The *committed* rows of a plan, or those of the file that `--out` has it measured into."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, help="measure, into this file of raw measurements")
    options = parser.parse_args()
    if options.out is not None:
        measure(plan, device_named(options.device), options.out, progress=progress)
    return read_steps(options.out or committed, gpu("h200").sms)


def progress(done: int, total: int, what: str) -> None:
    """Say how far it is."""
    print(f"{done}/{total} {what}", file=sys.stderr)
