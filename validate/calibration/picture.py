"""The picture of a calibration: measured against fitted, and the errors of each group below.

One file that needs nothing else, by its suffix: .html (the scripts are inside, it works offline),
.svg or .png. It takes the extra `report`: altair and vl-convert.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitwiser.validate.calibration.observations import Residual, errors_by_group

if TYPE_CHECKING:
    import altair as alt

SUFFIXES = (".html", ".svg", ".png")
PACKAGES = {"altair": "altair", "vl_convert": "vl-convert-python"}  # modules, and who brings them
BAND = 0.10  # error that the grey band covers on either side
SIDE = 330  # pixels of the square of measured against fitted
ROW = 26  # pixels of a group's line of errors
FEW, MANY = 10, 20  # groups that ten well separated colours tell apart, and twenty
SHAPES = ("circle", "diamond", "triangle-up", "cross")  # where colours come again
CROWD = 300  # rows from which points are small and let others through
UNITS = {"s": "seconds, with SI prefixes", "1/s": "per second"}


def missing_package() -> str | None:
    """Return the package that pictures need and that is not installed, or None."""
    missing = (package for module, package in PACKAGES.items() if find_spec(module) is None)
    return next(missing, None)


def check_picture(path: Path) -> None:
    """Raise ValueError, in one line, unless a picture can be drawn for *path*."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"picture {path}: suffix {path.suffix!r}; accepted: {', '.join(SUFFIXES)}")
    package = missing_package()
    if package is not None:
        raise ValueError(f"a picture needs {package}: pip install 'splitwiser[report]'")


def picture(residuals: Sequence[Residual], title: str, subtitle: str, suffix: str) -> bytes:
    """Return the picture of these rows as the content of a file of that *suffix*.

    Rows of different units are drawn apart. Raises ValueError without any row, and as
    `check_picture` does.
    """
    check_picture(Path(f"picture{suffix}"))
    if not residuals:
        raise ValueError("a picture needs at least one measured row; there is none")
    import altair as alt
    import vl_convert

    with alt.data_transformers.enable("default", max_rows=None):
        drawing = _drawing(residuals, title, subtitle).to_dict()
    if suffix == ".html":
        page = vl_convert.vegalite_to_html(drawing, bundle=True)
        return page.replace("<title>Chart<", f"<title>{escape(title)}<", 1).encode()
    if suffix == ".svg":
        return vl_convert.vegalite_to_svg(drawing).encode()
    return vl_convert.vegalite_to_png(drawing, scale=2.0)


def _drawing(residuals: Sequence[Residual], title: str, subtitle: str) -> alt.VConcatChart:
    """Return squares of measured against fitted, one for each unit, over the groups' errors."""
    import altair as alt

    rows = _rows(residuals)
    groups = list(dict.fromkeys(row["group"] for row in rows))
    looks = _looks(groups)
    units = list(dict.fromkeys(row["unit"] for row in rows))
    squares = [_square([row for row in rows if row["unit"] == unit], unit, looks) for unit in units]
    errors = _errors(rows, groups, looks, width=SIDE * len(units) + 100 * (len(units) - 1))
    drawing: alt.VConcatChart = (
        alt.vconcat(alt.hconcat(*squares, spacing=40), errors, spacing=30)
        .properties(
            title=alt.TitleParams(_text(title), subtitle=_text(subtitle), anchor="start", offset=14)
        )
        .configure_title(fontSize=12)
        .configure_view(stroke="#cccccc")
        .configure_axis(gridColor="#eeeeee", labelLimit=400, titleFontWeight="normal")
        .configure_legend(titleFontWeight="normal")
    )
    return drawing


def _looks(groups: Sequence[str]) -> tuple[alt.Color, alt.Shape]:
    """Return a colour and a shape for each group, no two of them alike, in one legend."""
    import altair as alt

    legend = alt.Legend(
        title="group of rows", labelLimit=300, symbolOpacity=1.0, symbolLimit=len(groups)
    )
    colors = alt.Scale(domain=groups, scheme="tableau10" if len(groups) <= FEW else "tableau20")
    shapes = [SHAPES[place // MANY % len(SHAPES)] for place in range(len(groups))]
    return (
        alt.Color("group:N", scale=colors, legend=legend),
        alt.Shape("group:N", scale=alt.Scale(domain=groups, range=shapes), legend=legend),
    )


def _rows(residuals: Sequence[Residual]) -> list[dict[str, Any]]:
    """Return the rows as the drawing reads them; `line` is the label of a group's errors."""
    summary = errors_by_group(
        [row.group for row in residuals],
        np.array([row.measured for row in residuals]),
        np.array([row.predicted for row in residuals]),
    )
    return [
        {
            "group": _text(row.group),
            "line": f"{_text(row.group)}: MAPE {summary[row.group].mape:.1%}",
            "what": _text(row.title),
            "unit": row.unit,
            "measured": row.measured,
            "fitted": row.predicted,
            "error": row.error,
        }
        for row in residuals
    ]


def _text(text: str) -> str:
    """Return *text* without what would end the script that holds it in a page."""
    return text.replace("</", "< /")


def _square(
    rows: Sequence[dict[str, Any]], unit: str, looks: tuple[alt.Color, alt.Shape]
) -> alt.LayerChart | alt.FacetChart:
    """Return fitted over measured values on logarithmic axes, with y = x and the band around it."""
    import altair as alt

    values = [row[name] for row in rows for name in ("measured", "fitted")]
    low, high = min(values) / 1.3, max(values) * 1.3
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(format="~s", tickCount=5, labelOverlap=True)
    name = UNITS.get(unit, unit)
    ends = [{"x": x, "low": x * (1 - BAND), "high": x * (1 + BAND)} for x in (low, high)]
    line = alt.Chart(alt.InlineData(values=ends))
    x = alt.X("x:Q", scale=scale, axis=axis, title=f"measured ({name})")
    y = alt.Y("low:Q", scale=scale, axis=axis, title=f"fitted ({name})")
    band = line.mark_area(color="#999999", opacity=0.25, clip=True).encode(x, y, alt.Y2("high:Q"))
    equal = line.mark_line(color="#555555", strokeWidth=1).encode(x, alt.Y("x:Q"))
    points = _points(rows).encode(alt.X("measured:Q"), alt.Y("fitted:Q"), *looks)
    return alt.layer(band, equal, points).properties(
        width=SIDE,
        height=SIDE,
        title=f"{len(rows)} rows; line: fitted = measured, band: ±{BAND:.0%}",
    )


def _errors(
    rows: Sequence[dict[str, Any]],
    groups: Sequence[str],
    looks: tuple[alt.Color, alt.Shape],
    width: float,
) -> alt.LayerChart | alt.FacetChart:
    """Return each row's error on its group's line, with the band."""
    import altair as alt

    lines = list(dict.fromkeys(row["line"] for row in rows))
    band = (
        alt.Chart(alt.InlineData(values=[{"low": -BAND, "high": BAND, "zero": 0.0}]))
        .mark_rect(color="#999999", opacity=0.25)
        .encode(
            alt.X(
                "low:Q",
                title="error: fitted / measured - 1",
                axis=alt.Axis(format="+.0%", tickCount=8, labelFlush=False),
            ),
            alt.X2("high:Q"),
        )
    )
    zero = (
        alt.Chart(alt.InlineData(values=[{"zero": 0.0}]))
        .mark_rule(color="#555555", strokeWidth=1)
        .encode(alt.X("zero:Q"))
    )
    line = alt.Y("line:N", sort=lines, title=None)
    points = _points(rows).encode(alt.X("error:Q"), line, *looks)
    return alt.layer(band, zero, points).properties(width=width, height=ROW * len(groups))


def _points(rows: Sequence[dict[str, Any]]) -> alt.Chart:
    """Return a point for each row, with what it was where a mouse rests on it."""
    import altair as alt

    crowded = len(rows) > CROWD
    told = [alt.Tooltip(f"{name}:N") for name in ("group", "what")]
    told += [alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("measured", "fitted")]
    told += [alt.Tooltip("error:Q", format="+.1%")]
    base = alt.Chart(alt.InlineData(values=list(rows)))
    points: alt.Chart = base.mark_point(
        filled=True, size=15 if crowded else 45, opacity=0.4 if crowded else 0.75
    )
    return points.encode(tooltip=told)
