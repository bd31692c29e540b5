"""`splitwiser profiles`: what a prediction's constants are, and where each is from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App

from splitwiser.cli.console import print_json, print_pairs, print_table
from splitwiser.cli.options import Flag
from splitwiser.models.gpu import gpus
from splitwiser.models.profile import PARAMETERS, Parameter, Profile, load_profile, profile_for

app = App(name="profiles")


@app.default
def describe(name: str | None = None, /, *, json: Annotated[bool, Flag] = False) -> None:
    """List the profiles that ship with the package, or describe one.

    Parameters
    ----------
    name
        A GPU, or the path of a profile's JSON file. Without it, every GPU's profile is listed.
    json
        Print one JSON object.
    """
    if name is None:
        profiles = [profile_for(sheet.name) for sheet in gpus()]
        if json:
            print_json({"profiles": [_facts(profile) for profile in profiles]})
        else:
            print_table(("GPU", "profile", "kind", ">fitted", ">assumed"), map(_line, profiles))
        return
    path = Path(name)
    is_file = path.suffix == ".json" or path.is_file()
    profile = load_profile(path) if is_file else profile_for(name)
    if json:
        print_json(_facts(profile))
    else:
        _print(profile)


def _facts(profile: Profile) -> dict[str, object]:
    return {
        "name": profile.name,
        "gpu": profile.gpu,
        "kind": profile.kind,
        "provenance": dict(profile.provenance),
        "residuals": dict(profile.residuals),
        "parameters": {
            name: {
                **asdict(parameter),
                "unit": PARAMETERS[name].unit,
                "meaning": PARAMETERS[name].text,
            }
            for name, parameter in profile.parameters.items()
        },
    }


def _line(profile: Profile) -> tuple[str, str, str, int, int]:
    fitted = sum(parameter.stderr is not None for parameter in profile.parameters.values())
    return profile.gpu, profile.name, profile.kind, fitted, len(profile.parameters) - fitted


def _print(profile: Profile) -> None:
    print_pairs(
        [
            ("profile", profile.name),
            ("GPU", profile.gpu),
            ("kind", profile.kind),
            *profile.provenance.items(),
            *((f"residual {name}", f"{value:.1%}") for name, value in profile.residuals.items()),
        ]
    )
    print()
    print_table(
        ("parameter", ">value", ">stderr", "what it is, and where it is from"),
        (_row(name, parameter) for name, parameter in profile.parameters.items()),
    )


def _row(name: str, parameter: Parameter) -> tuple[str, str, str, str]:
    unit = PARAMETERS[name].unit.removeprefix("1")
    stderr = "assumed" if parameter.stderr is None else f"{parameter.stderr:.2g}"
    meaning = f"{PARAMETERS[name].text}: {parameter.source}"
    return name, f"{parameter.value:.4g} {unit}".strip(), stderr, meaning
