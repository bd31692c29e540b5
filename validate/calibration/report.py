"""What a calibration tells a person, and a program: text of `WIDTH` columns, and one document.

The text is modelled on lmfit's `fit_report`: value +/- standard error (relative) (start), and what
is fixed, at a boundary or not identified in so many words.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from splitwiser.models.profile import PARAMETERS, Parameter
from splitwiser.validate.calibration.calibration import Calibration
from splitwiser.validate.calibration.fitting import STRONG, Fit, FittedParameter
from splitwiser.validate.calibration.observations import Errors

WIDTH = 100
INDENT = "    "
COLUMNS = f"{'n':>6}{'MAPE':>8}{'p95':>8}{'bias':>8}"


def report(calibration: Calibration) -> str:
    """Return the report: where it was measured, each parameter once, correlations, errors, notes."""
    sections = (
        _origin(calibration),
        _fitted(calibration),
        _fixed(calibration),
        _correlations(calibration),
        _errors(calibration),
        _unknown(calibration),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if len(lines) > 1) + "\n"


def _origin(calibration: Calibration) -> Iterator[str]:
    profile = calibration.profile
    yield "[[Calibration]]"
    facts = {"profile": f"{profile.name} ({profile.kind})", "GPU": profile.gpu}
    facts |= profile.provenance
    for name, seconds in (("measuring", calibration.measuring), ("fitting", calibration.fitting)):
        if seconds:
            facts[name] = f"{seconds:,.0f} s" if seconds >= 10.0 else f"{seconds:.1f} s"
    if calibration.raw is not None:
        facts["raw data"] = str(calibration.raw)
    label = max(map(len, facts)) + 2
    for name, value in facts.items():
        yield from _folded(f"{INDENT}{name:<{label}}", value)


def _fitted(calibration: Calibration) -> Iterator[str]:
    yield "[[Fitted parameters]]"
    for fit in calibration.fits:
        own = [p for p, last in calibration.parameters.values() if last is fit]
        if own:
            rows = f"{len(fit.residuals)} rows, scatter {fit.scatter:.1%}"
            yield f"  {fit.title or 'fit'} ({rows})"
        for parameter in own:
            yield from _folded(f"{INDENT}{parameter.name}: ", fitted_line(parameter))


def fitted_line(p: FittedParameter) -> str:
    """Return what is known of a fitted parameter, as a person reads it."""
    start = f"(start = {p.start:.4g})"
    value = _amount(p.name, p.value)
    meaning = PARAMETERS[p.name].text
    if p.kept and p.tied_to:
        verdict = f"(start kept) not told apart from {', '.join(p.tied_to)}: measure {p.missing}"
    elif p.kept:
        verdict = f"(start kept) not identified: measure {p.missing}"
    elif p.tied_to:
        verdict = f"{start} known only with {', '.join(p.tied_to)}: measure {p.missing}"
    elif p.at_bound:
        verdict = f"{start} at boundary"
    elif p.stderr is None:
        verdict = start
    else:
        relative = f" ({p.stderr / p.value:.1%})" if p.value else ""
        return f"{value} +/- {p.stderr:.2g}{relative} {start}; {meaning}"
    return f"{value} {verdict}; {meaning}"


def _fixed(calibration: Calibration) -> Iterator[str]:
    yield "[[From single kernels, or not fitted]]"
    fitted = calibration.parameters
    for name, parameter in calibration.profile.parameters.items():
        if name not in fitted:
            yield from _folded(f"{INDENT}{name}: ", fixed_line(name, parameter))


def fixed_line(name: str, parameter: Parameter) -> str:
    """Return what is known of a parameter that no fit decided: its value and why it is that."""
    spread = "" if parameter.stderr is None else f" +/- {parameter.stderr:.2g}"
    source = parameter.source.removeprefix("fixed: ")
    why = source if parameter.stderr is not None else f"fixed: {source}"
    return f"{_amount(name, parameter.value)}{spread} ({why})"


def _correlations(calibration: Calibration) -> Iterator[str]:
    yield f"[[Correlations above {STRONG}]]"
    pairs = [pair for fit in calibration.fits for pair in fit.strong_correlations]
    for pair in pairs:
        yield f"{INDENT}C({pair.first}, {pair.second}) = {pair.value:+.3f}"
    if not pairs:
        yield f"{INDENT}none"


def _errors(calibration: Calibration) -> Iterator[str]:
    errors, blind = calibration.errors, calibration.held_out
    groups = [*errors, *(group for group in blind if group not in errors)]
    label = max([len(INDENT), *(len(group) + len(INDENT) for group in groups)]) + 2
    label = min(label, WIDTH - 2 * len(COLUMNS) - 2)
    yield "[[Errors: predicted/measured - 1]]"
    yield f"{'':<{label}}{'fitted rows':>{len(COLUMNS)}}  {'rows held out':>{len(COLUMNS)}}"
    yield f"{INDENT + 'group':<{label}}{COLUMNS}  {COLUMNS}"
    for group in groups:
        cells = f"{_cells(errors.get(group))}  {_cells(blind.get(group))}".rstrip()
        *above, last = textwrap.wrap(group, label - len(INDENT) - 1) or [""]
        yield from (INDENT + line for line in above)
        yield f"{INDENT + last:<{label}}{cells}"


def _unknown(calibration: Calibration) -> Iterator[str]:
    yield "[[What this profile cannot know]]"
    for note in calibration.notes:
        yield from _folded(f"{INDENT}- ", note)


def _cells(errors: Errors | None) -> str:
    if errors is None:
        return f"{'-':>{len(COLUMNS)}}"
    return f"{errors.n:>6}{errors.mape:>8.1%}{errors.p95:>8.1%}{errors.bias:>+8.1%}"


def _amount(name: str, value: float) -> str:
    unit = PARAMETERS[name].unit.removeprefix("1")
    return f"{value:.4g} {unit}".rstrip()


def _folded(label: str, text: str) -> list[str]:
    """Return *text* after *label*, its further lines set in."""
    set_in = " " * min(len(label), 2 * len(INDENT))
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=label, subsequent_indent=set_in
    ) or [label.rstrip()]


def document(calibration: Calibration) -> dict[str, Any]:
    """Return the calibration as one JSON object: parameters, errors, rows and notes, SI units."""
    profile = calibration.profile
    return {
        "profile": profile.name,
        "gpu": profile.gpu,
        "kind": profile.kind,
        "provenance": dict(profile.provenance),
        "parameters": {
            name: _entry(name, parameter, calibration)
            for name, parameter in profile.parameters.items()
        },
        "correlations": [
            {"between": [pair.first, pair.second], "value": pair.value, "fit": fit.title}
            for fit in calibration.fits
            for pair in fit.strong_correlations
        ],
        "errors": {group: e._asdict() for group, e in calibration.errors.items()},
        "held_out_errors": {group: e._asdict() for group, e in calibration.held_out.items()},
        "rows": [{**row._asdict(), "error": row.error} for row in calibration.residuals],
        "notes": list(calibration.notes),
        "measuring_s": calibration.measuring,
        "fitting_s": calibration.fitting,
        "raw": None if calibration.raw is None else str(calibration.raw),
    }


def _entry(name: str, parameter: Parameter, calibration: Calibration) -> dict[str, Any]:
    entry = {**asdict(parameter), "unit": PARAMETERS[name].unit, "fitted": False}
    record: tuple[FittedParameter, Fit] | None = calibration.parameters.get(name)
    if record is not None:
        said, fit = record
        entry |= {
            "fitted": not said.kept,
            "fit": fit.title,
            "start": said.start,
            "at_bound": said.at_bound,
            "identified": said.identified,
            "tied_to": list(said.tied_to),
            "missing": said.missing or None,
        }
    return entry
