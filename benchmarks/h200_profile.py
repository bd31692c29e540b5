"""The H200 profile, from the raw measurements in benchmarks/h200.

    python benchmarks/h200_profile.py [--write] [--picture FILE] [--json]

Fits what `splitwiser calibrate --device` measured (calibration.jsonl), and prints the report.
`--write` replaces `models/profiles/h200.json`, and in every other profile what it borrows from it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from splitwiser.models.gpu import gpu
from splitwiser.models.profile import BUILT_IN, Parameter, Profile, load_profile, sheet_profile
from splitwiser.validate.calibration.calibrate import CARDS, HOST, LAUNCHES, MEMORY, calibration
from splitwiser.validate.calibration.calibration import Calibration
from splitwiser.validate.calibration.device_fit import STAGES, fit_device
from splitwiser.validate.calibration.picture import picture
from splitwiser.validate.calibration.raw import read_raw
from splitwiser.validate.calibration.report import document, report
from splitwiser.validate.runtime.pace import AHEAD as AHEAD_OF_END

RAW = Path(__file__).parent / "h200"
COMMAND = "python benchmarks/h200_profile.py --write"
BORROWED = "borrowed from the fit of one H200 (h200.json)"
AHEAD = (
    "none: the runtime launches ahead (read off one of its engines, benchmarks/h200_deployments,"
    " continuous); other engines have their own"
)
RUN = Path(__file__).parent / "h200_deployments" / "split-mps-0.parquet"
LEAD = "the runtime's own (validate/runtime/pace.py)"
REACHED = (
    "lower quartile of what requests waited for a prefill process that mostly idled"
    " (benchmarks/h200_deployments, split-mps-0)"
)
# Of generate, from one process of the public table of an H200 (generate_overhead).
KEPT = ("generate_overhead",)


def h200() -> Calibration:
    """The calibration of the H200."""
    sheet = gpu("h200")
    conditions, records = read_raw(RAW / "calibration.jsonl")
    start = sheet_profile("h200")
    before = load_profile(BUILT_IN / "h200.json")
    kept = {name: before.parameters[name] for name in KEPT}
    kept["step_overhead"] = Parameter(0.0, None, AHEAD)
    kept["decided_ahead"] = Parameter(AHEAD_OF_END, None, LEAD)
    run = pd.read_parquet(RUN)
    waited = float((run["scheduled"] - run["arrival"]).quantile(0.25))
    kept["request_overhead"] = Parameter(float(f"{waited:.2g}"), None, REACHED)
    # What the sheet borrows from this fit must not decide it: all of that is fitted, from guesses.
    guessed = {
        name: Parameter(value, None, "first guess")
        for stage in STAGES
        for name, value in stage.start.items()
    }
    start = replace(start, parameters={**start.parameters, **guessed, **kept})
    found = fit_device(list(records.values()), sheet, str(conditions["dtype"]), start)
    done = calibration(found, "h200", conditions, (HOST, MEMORY, LAUNCHES, CARDS))
    told = {**done.profile.provenance, "command": COMMAND}
    return replace(done, profile=replace(done.profile, provenance=told))


def write(profile: Profile) -> None:
    """Save the profile, and lend the others what they borrow."""
    profile.save(BUILT_IN / "h200.json")
    for path in sorted(BUILT_IN.glob("*.json")):
        other = load_profile(path)
        parameters = {
            name: Parameter(float(f"{profile.value(name):.3g}"), None, BORROWED)
            if parameter.source == BORROWED
            else parameter
            for name, parameter in other.parameters.items()
        }
        replace(other, parameters=parameters).save(path)


def main() -> int:
    """Fit, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the built-in profiles")
    parser.add_argument("--picture", type=Path, help="measured against fitted: .html, .svg or .png")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    try:
        done = h200()
        if options.write:
            write(done.profile)
        if options.picture:
            made_on = ", ".join(
                done.profile.provenance[key] for key in ("device", "driver", "date")
            )
            drawn = picture(
                done.residuals, "h200: measured against fitted", made_on, options.picture.suffix
            )
            options.picture.write_bytes(drawn)
    except (ValueError, OSError) as error:
        print(f"h200_profile: {error}", file=sys.stderr)
        return 2
    print(
        json.dumps(document(done), indent=2) if options.json else report(done),
        end="\n" * options.json,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
