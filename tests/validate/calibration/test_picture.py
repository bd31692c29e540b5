"""The picture of a calibration: one file with every row, readable without a network."""

from __future__ import annotations

import struct
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from splitwiser.validate.calibration import picture as pictures
from splitwiser.validate.calibration.calibration import Calibration
from splitwiser.validate.calibration.observations import Residual
from splitwiser.validate.calibration.picture import check_picture, picture


def drawn(calibration: Calibration, suffix: str) -> bytes:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    return picture(calibration.residuals, "lab: measured against fitted", "NVIDIA H200", suffix)


def test_the_html_needs_no_network(calibration: Calibration) -> None:
    """No script, style sheet, font or image of the page comes from elsewhere."""
    page = drawn(calibration, ".html").decode()
    tags = _Tags()
    tags.feed(page)
    assert "script" in [name for name, _ in tags.found]
    asked = {key for _, attributes in tags.found for key in attributes}
    assert not asked & {"src", "href", "srcset", "data"}
    assert "@import" not in page


def test_a_name_cannot_break_the_page(calibration: Calibration) -> None:
    """A table's text stays text: it neither ends the page's script nor adds a tag."""
    pytest.importorskip("altair")
    row = calibration.residuals[0]._replace(group="</script><img>", title="</script><img>")
    tags = _Tags()
    tags.feed(picture([row], "</script><img>", "</script><img>", ".html").decode())
    assert "img" not in [name for name, _ in tags.found]


class _Tags(HTMLParser):
    """The tags of a page with their attributes; what scripts hold is text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, set[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key for key, _ in attrs}))


def test_the_html_holds_every_row(calibration: Calibration) -> None:
    """Title, groups and every row's name are in the page, for who rests a mouse on a point."""
    page = drawn(calibration, ".html").decode()
    assert "<title>lab: measured against fitted</title>" in page
    for text in ("lab: measured against fitted", "NVIDIA H200", "D 16x1024", "P 128 + D 16x1024"):
        assert text in page


def test_the_svg_names_axes_groups_and_errors(calibration: Calibration) -> None:
    """Axes carry their units, rows of two units are drawn apart, and each group has its error."""
    root = ElementTree.fromstring(drawn(calibration, ".svg"))
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "measured (seconds, with SI prefixes)" in texts
    assert "fitted (per second)" in texts
    assert "3 rows; line: fitted = measured, band: ±10%" in texts
    assert "prefill: MAPE 8.0%" in texts
    assert {"prefill", "decode <&>", "time_slice"} <= set(texts)  # the legend
    points = [p for p in root.iter("{http://www.w3.org/2000/svg}path") if _is_point(p)]
    assert len(points) >= 2 * len(calibration.residuals)  # as a pair of values, and as an error


def _is_point(path: ElementTree.Element) -> bool:
    return path.get("aria-roledescription") == "point"


def test_the_png_is_one_and_large_enough(calibration: Calibration) -> None:
    """The PNG has a picture's size: two squares of at least 300 pixels, doubled for sharpness."""
    content = drawn(calibration, ".png")
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 4 * 300
    assert height > 2 * 300


def test_a_picture_is_always_the_same(calibration: Calibration) -> None:
    """The same rows give the same bytes."""
    assert drawn(calibration, ".png") == drawn(calibration, ".png")


def test_many_rows_and_groups_fit(calibration: Calibration) -> None:
    """Five thousand rows and one in a dozen groups are drawn, more than altair takes unasked; of
    dozens of groups no two look alike.
    """
    pytest.importorskip("altair")
    count = 5001
    rows = [Residual(f"g{i % 12}", f"row {i}", "s", 1e-3 + i, 1.02e-3 + i) for i in range(count)]
    assert picture(rows, "many", "", ".svg").count(b'"point"') >= 2 * count
    rows = [Residual(f"g{i}", f"row {i}", "s", 1.0 + i, 1.02 + i) for i in range(45)]
    root = ElementTree.fromstring(picture(rows, "many", "", ".svg"))
    looks = [
        (symbol.get("fill"), symbol.get("d"))
        for part in root.iter()
        if "role-legend-symbol" in part.get("class", "")
        for symbol in part.iter("{http://www.w3.org/2000/svg}path")
    ]
    assert len(looks) == len(set(looks)) == 45


def test_another_suffix_is_refused() -> None:
    """The suffix says what is written; an unknown one names those that are."""
    with pytest.raises(ValueError, match=r"suffix '.pdf'; accepted: .html, .svg, .png"):
        check_picture(Path("fit.pdf"))
    with pytest.raises(ValueError, match=r"suffix ''"):
        check_picture(Path("fit"))


def test_no_rows_make_no_picture() -> None:
    """A picture of nothing is refused."""
    pytest.importorskip("altair")
    with pytest.raises(ValueError, match="at least one measured row"):
        picture([], "nothing", "", ".svg")


@pytest.mark.parametrize(
    ("module", "package"), [("altair", "altair"), ("vl_convert", "vl-convert-python")]
)
def test_the_extra_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    """Without one of its packages, the line names it and the extra that brings it."""
    monkeypatch.setattr(
        pictures, "find_spec", lambda name: None if name == module else sys.modules["sys"]
    )
    with pytest.raises(ValueError, match=rf"needs {package}: pip install 'splitwiser\[report\]'$"):
        check_picture(Path("fit.html"))
