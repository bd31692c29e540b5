"""`splitwiser calibrate`: what it refuses, writes and prints; measuring and fitting are replaced."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from splitwiser.cli import run
from splitwiser.models.profile import PARAMETERS, load_profile, profile_for
from splitwiser.sim.deployment import chunked, continuous
from splitwiser.validate.calibration import picture as pictures
from splitwiser.validate.calibration.calibration import Calibration
from splitwiser.validate.calibration.fitting import fit
from splitwiser.validate.calibration.observations import Observations

Cli = Callable[..., tuple[int, str, list[str]]]
DEVICE = ("calibrate", "--device", "cpu", "-o", "lab.json")
TABLES = ("calibrate", "--from", "a.csv", "b.csv", "--model", "opt-125m", "--gpu", "a10")
FROM = (*TABLES, "-o", "lab.json")
SOURCES = "splitwiser.validate.calibration"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run a command line in an empty folder: status, stdout, and the lines of stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*argv: str) -> tuple[int, str, list[str]]:
        status = run(argv)
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return call


def calibration() -> Calibration:
    """A calibration of one parameter from three rows."""
    profile = replace(profile_for("h200"), name="lab", provenance={"device": "NVIDIA H200"})
    rows = Observations(
        np.array([1.0, 2.0, 4.1]),
        ["prefill"] * 3,
        ["P 128", "P 256", "P 512"],
        lambda profile: np.array([0.6, 1.2, 2.4]) / profile.value("gemm_efficiency"),
    )
    result = fit(profile, {"gemm_efficiency": 0.5}, rows, title="alone")
    return Calibration(result.profile, (result,), notes=("Nothing else was measured.",))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What measuring and reading tables were asked, and what they do before they end."""
    seen: dict[str, Any] = {"during": lambda: None}

    def calibrate_device(device: str, output: Path, raw: Path, **options: Any) -> Calibration:
        seen.update(options, device=device, output=output, raw=raw)
        options["say"]("measuring 3 points")
        options["progress"](1, 3, "P 128")
        seen["during"]()
        return calibration()

    def calibrate_tables(
        tables: Sequence[Path], llm: Any, gpu: Any, name: str, deployment: Any
    ) -> Calibration:
        seen.update(tables=tables, llm=llm, gpu=gpu, name=name, deployment=deployment)
        seen["during"]()
        return calibration()

    for function in (calibrate_device, calibrate_tables):
        source = {"calibrate_device": "calibrate", "calibrate_tables": "from_tables"}
        name = f"{SOURCES}.{source[function.__name__]}"
        module = ModuleType(name)
        vars(module)[function.__name__] = function
        monkeypatch.setitem(sys.modules, name, module)
    return seen


BAD: dict[str, tuple[Sequence[str], str]] = {
    "no source": (("calibrate", "-o", "lab.json"), "give --device cuda:0 (or cpu)"),
    "no output": (("calibrate", "--device", "cpu"), "--output"),
    "two sources": ((*DEVICE, "--from", "a.csv"), "--device and --from exclude each other"),
    "a model for a device": (
        (*DEVICE, "--model", "opt-125m"),
        "--model has no effect with --device",
    ),
    "an engine for a device": (
        (*DEVICE, "--max-num-seqs", "4"),
        "--max-num-seqs has no effect with --device",
    ),
    "a GPU for a device": ((*DEVICE, "--gpu", "a10"), "--gpu has no effect with --device"),
    "raw data of tables": ((*FROM, "--raw", "x"), "--raw has no effect with --from"),
    "quick tables": ((*FROM, "--quick"), "--quick has no effect with --from"),
    "fresh tables": ((*FROM, "--fresh"), "--fresh has no effect with --from"),
    "resumed tables": ((*FROM, "--resume"), "--resume has no effect with --from"),
    "tables of nothing": ((*TABLES[:4], "-o", "x.json"), "--from needs --model and --gpu"),
    "tables without a GPU": ((*TABLES[:6], "-o", "x.json"), "--from needs --gpu"),
    "an unknown model": ((*TABLES[:5], "opt-125", *TABLES[6:], "-o", "x"), "did you mean"),
    "an unknown GPU": ((*TABLES[:7], "a11", "-o", "x.json"), "did you mean a10"),
    "no folder": ((*DEVICE[:3], "-o", "nowhere/lab.json"), "nowhere/lab.json cannot be written"),
    "a folder as output": ((*DEVICE[:3], "-o", "."), "cannot be written"),
    "no folder for the picture": (
        (*DEVICE, "--picture", "nowhere/lab.svg"),
        "nowhere/lab.svg cannot be written",
    ),
    "another picture": ((*DEVICE, "--picture", "lab.pdf"), "accepted: .html, .svg, .png"),
    "a picture and none": ((*DEVICE, "--picture", "x.svg", "--no-picture"), "exclude each other"),
    "a picture in the profile's place": ((*DEVICE[:3], "-o", "x.html"), "both the profile and its"),
    "a profile in a table's place": ((*TABLES, "-o", "b.csv"), "one of the tables of --from"),
    "a raw folder that is a file": ((*DEVICE, "--raw", __file__), "accepted: a folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(
    cli: Cli, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    """Bad input ends with status 2 and one line, before anything was measured or written."""
    argv, told = BAD[case]
    monkeypatch.setattr(pictures, "missing_package", lambda: None)
    work["during"] = lambda: pytest.fail("it ran")
    status, out, lines = cli(*argv)
    assert (status, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("splitwiser: ") and told in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_profile_a_picture_and_a_report_are_made(
    cli: Cli, work: dict[str, Any], tmp_path: Path
) -> None:
    """The profile can be loaded, the picture stands beside it, the report is on stdout."""
    pytest.importorskip("altair")
    status, out, lines = cli(*DEVICE)
    assert status == 0
    assert load_profile(tmp_path / "lab.json") == calibration().profile
    assert "lab: measured against fitted" in (tmp_path / "lab.html").read_text("utf-8")
    assert out.startswith("[[Calibration]]\n") and "Nothing else was measured." in out
    assert lines == ["note: measuring 3 points", "note: wrote lab.json", "note: wrote lab.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab.html", "lab.json"]


def test_the_picture_goes_where_it_is_asked(cli: Cli, work: dict[str, Any], tmp_path: Path) -> None:
    """--picture names the file and the kind, and --no-picture leaves it out."""
    pytest.importorskip("altair")
    assert cli(*DEVICE, "--picture", "other.svg")[0] == 0
    assert (tmp_path / "other.svg").read_text("utf-8").startswith("<svg")
    assert cli(*FROM, "--no-picture")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab.json", "other.svg"]


def test_without_altair_only_an_asked_picture_fails(
    cli: Cli, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the extra a calibration runs and says that it has no picture; who asks for one is
    told the extra before anything is measured.
    """
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    status, out, lines = cli(*DEVICE)
    assert (status, lines[0]) == (
        0,
        "note: no picture: it needs altair, pip install 'splitwiser[report]'",
    )
    assert out.startswith("[[Calibration]]")
    assert [path.name for path in tmp_path.iterdir()] == ["lab.json"]
    work["during"] = lambda: pytest.fail("it ran")
    told = "splitwiser: a picture needs altair: pip install 'splitwiser[report]'"
    assert cli(*DEVICE, "--picture", "lab.png") == (2, "", [told])


def test_the_options_reach_the_measurement(cli: Cli, work: dict[str, Any]) -> None:
    """Device, raw folder, quick and fresh are handed on; raw data lie beside the profile, and are
    gone on from, unless told otherwise.
    """
    assert cli(*DEVICE, "--no-picture")[0] == 0
    expected = {"device": "cpu", "raw": Path("lab-raw"), "quick": False, "fresh": False}
    assert {key: work[key] for key in expected} == expected
    assert cli(*DEVICE, "--no-picture", "--raw", "there", "--quick", "--fresh")[0] == 0
    expected = {"device": "cpu", "raw": Path("there"), "quick": True, "fresh": True}
    assert {key: work[key] for key in expected} == expected
    assert cli(*DEVICE, "--no-picture", "--resume")[0] == 0
    assert work["fresh"] is False


def test_the_tables_reach_the_fit(cli: Cli, work: dict[str, Any]) -> None:
    """Tables, model and GPU are handed on, and the profile is called as its file."""
    assert cli(*FROM, "--no-picture")[0] == 0
    assert work["tables"] == (Path("a.csv"), Path("b.csv"))
    assert (work["llm"].name, work["gpu"].name) == ("facebook/opt-125m", "a10")
    assert work["name"] == "lab"
    assert work["deployment"] == chunked()
    engine = ("--deployment", "continuous", "--max-num-seqs", "8")
    assert cli(*FROM, *engine, "--no-picture")[0] == 0
    assert work["deployment"] == continuous().override(max_num_seqs=8)


def test_json_is_one_object(cli: Cli, work: dict[str, Any]) -> None:
    """`--json` prints the files, every parameter and every row, and nothing else on stdout."""
    status, out, _ = cli(*FROM, "--json", "--no-picture")
    content = json.loads(out)
    assert status == 0
    assert (content["output"], content["picture"]) == ("lab.json", None)
    assert set(content["parameters"]) == set(PARAMETERS)
    assert content["parameters"]["gemm_efficiency"]["stderr"] > 0
    assert len(content["rows"]) == 3


@pytest.mark.parametrize(("argv", "told"), [(DEVICE, "kept in lab-raw"), (FROM, "no profile")])
def test_ctrl_c_says_what_is_kept(
    cli: Cli, work: dict[str, Any], tmp_path: Path, argv: Sequence[str], told: str
) -> None:
    """An interrupt ends with status 130 and a line that says what is kept and how to go on."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    work["during"] = interrupt
    status, out, lines = cli(*argv, "--no-picture")
    assert (status, out) == (130, "")
    assert lines[-1].startswith("splitwiser: interrupted: ") and told in lines[-1]
    assert not list(tmp_path.iterdir())


def test_without_torch_the_extra_is_named(
    cli: Cli, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch cannot be imported, one line says how to install it."""

    def absent() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    work["during"] = absent
    status, out, lines = cli(*DEVICE, "--no-picture")
    told = "splitwiser calibrate --device needs torch: pip install 'splitwiser[validate]'"
    assert (status, out, lines[-1]) == (2, "", f"splitwiser: {told}")


def test_a_fault_of_a_table_leaves_an_older_profile(
    cli: Cli, work: dict[str, Any], tmp_path: Path
) -> None:
    """A table that cannot be fitted is one line, and what was at the output stays."""
    (tmp_path / "lab.json").write_text("older", encoding="utf-8")

    def faulty() -> None:
        raise ValueError("a.csv, line 3: seconds is 'nan'; expected a positive number")

    work["during"] = faulty
    status, out, lines = cli(*FROM, "--no-picture")
    assert (status, out) == (2, "")
    assert lines == ["splitwiser: a.csv, line 3: seconds is 'nan'; expected a positive number"]
    assert (tmp_path / "lab.json").read_text("utf-8") == "older"
