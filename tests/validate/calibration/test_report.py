"""The report of a calibration: everything once, and what is not known in so many words."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from splitwiser.models.profile import PARAMETERS
from splitwiser.validate.calibration.calibration import Calibration
from splitwiser.validate.calibration.report import document, report


def line(text: str, start: str) -> str:
    """The line of a report that begins so, and those set in below it, as one."""
    lines = text.splitlines()
    first = next(i for i, each in enumerate(lines) if each.strip().startswith(start))
    more = next(i for i, each in enumerate([*lines, ""]) if i > first and each[:5] != " " * 5)
    return " ".join(each.strip() for each in lines[first:more])


def test_every_parameter_is_named_once(calibration: Calibration) -> None:
    """Each parameter of the profile has one line, whether fitted, kept or fixed."""
    starts = [each.strip().partition(":")[0] for each in report(calibration).splitlines()]
    assert {name: starts.count(name) for name in PARAMETERS} == dict.fromkeys(PARAMETERS, 1)


def test_a_parameter_fitted_twice_is_the_later_fit_s(calibration: Calibration) -> None:
    """Where two fits have a parameter or a group of rows, the report has the later fit's."""
    again = replace(
        calibration.fits[0],
        title="again",
        parameters=(calibration.fits[0].parameters[0]._replace(start=0.7),),
        residuals=(calibration.fits[0].residuals[2]._replace(predicted=100.0),),
    )
    both = replace(calibration, fits=(*calibration.fits, again))
    assert "(start = 0.7)" in line(report(both), "gemm_efficiency:")
    assert [p for p in report(both).split() if p == "gemm_efficiency:"] == ["gemm_efficiency:"]
    assert [row.predicted for row in both.residuals if row.unit == "1/s"] == [100.0]
    assert both.errors["decode <&>"].bias == -0.5
    assert len(both.residuals) == len(calibration.residuals) == 4


def test_a_line_says_how_well_a_value_is_known(calibration: Calibration) -> None:
    """Standard error and start stand beside a value; bounds, ties and missing rows are said."""
    text = report(calibration)
    assert line(text, "gemm_efficiency:").startswith(
        "gemm_efficiency: 0.6 +/- 0.012 (2.0%) (start = 0.5); share of peak"
    )
    assert "0 s (start = 1e-06) at boundary" in line(text, "kernel_gap:")
    assert "not identified: measure two processes" in line(text, "quantum:")
    assert "(start kept)" in line(text, "quantum:")
    assert "known only with slice_hold: measure x" in line(text, "switch:")
    assert "+/-" not in line(text, "switch:")
    assert (
        line(text, "sharpness:") == "sharpness: 4 (fixed: these rows prefer 3 to 8 about equally)"
    )


def test_a_kept_tie_says_with_what(calibration: Calibration) -> None:
    """A parameter that is kept because others hide it names them and the measurement."""
    fit = calibration.fits[1]
    kept = fit.parameters[1]._replace(kept=True, value=1e-5)
    tied = replace(calibration, fits=(calibration.fits[0], replace(fit, parameters=(kept,))))
    assert "(start kept) not told apart from slice_hold: measure x" in line(report(tied), "switch:")


def test_errors_stand_beside_the_held_out_ones(calibration: Calibration) -> None:
    """Each group has its rows, errors and bias, fitted and held out; a missing one is a dash."""
    text = report(calibration)
    assert line(text, "prefill ").split()[1:] == [
        *("2", "8.0%", "9.8%", "+2.0%"),
        *("2", "11.0%", "12.0%", "+1.0%"),
    ]
    assert line(text, "time_slice ").split()[1:] == ["1", "0.0%", "0.0%", "+0.0%", "-"]
    assert line(text, "unseen ").split()[1:] == ["-", "5", "20.0%", "30.0%", "-20.0%"]


def test_the_origin_correlations_and_limits_are_told(calibration: Calibration) -> None:
    """Device, software, date, raw data, strong correlations and every note are in the report."""
    text = report(calibration)
    for fact in (
        "NVIDIA H200",
        "580",
        "2.11",
        "2026-11",
        "612 s",
        "7.2 s",
        "lab-raw",
        "lab (fitted)",
    ):
        assert fact in text
    assert "C(gemm_efficiency, launch_host) = -0.950" in text
    for note in calibration.notes:
        assert f"- {note}" in text
    silent = replace(calibration.fits[1])
    assert "[[Correlations above 0.9]]\n    none" in report(replace(calibration, fits=(silent,)))


@pytest.mark.parametrize("length", [3, 200])
def test_no_line_is_wider_than_a_page(calibration: Calibration, length: int) -> None:
    """Long groups, notes and provenance are folded, and the same calibration prints the same."""
    fit = calibration.fits[0]
    rows = tuple(row._replace(group="group " * length) for row in fit.residuals)
    profile = replace(calibration.profile, provenance={"device": "device " * length})
    wide = replace(
        calibration,
        fits=(replace(fit, residuals=rows),),
        notes=("word " * length,),
        profile=profile,
    )
    text = report(wide)
    assert max(map(len, text.splitlines())) <= 100
    assert text == report(wide)
    assert text.count("device") >= length


def test_the_document_is_json_with_every_parameter(calibration: Calibration) -> None:
    """The JSON object has every parameter with unit, standard error and verdict, and every row."""
    content = json.loads(json.dumps(document(calibration), allow_nan=False))
    assert set(content["parameters"]) == set(PARAMETERS)
    assert content["parameters"]["gemm_efficiency"]["stderr"] == 0.012
    assert content["parameters"]["quantum"]["identified"] is False
    assert content["parameters"]["quantum"]["fitted"] is False
    assert content["parameters"]["quantum"]["missing"] == "two processes"
    assert content["parameters"]["switch"]["tied_to"] == ["slice_hold"]
    assert content["parameters"]["sharpness"]["fitted"] is False
    assert [row["error"] for row in content["rows"]] == [row.error for row in calibration.residuals]
    assert content["held_out_errors"]["unseen"] == {"mape": 0.2, "p95": 0.3, "n": 5, "bias": -0.2}
    assert content["correlations"][0]["between"] == ["gemm_efficiency", "launch_host"]
