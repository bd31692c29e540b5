"""`splitwiser calibrate --device cpu`: real processes, from the command to the profile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from splitwiser.cli import run
from splitwiser.models.profile import PARAMETERS, load_profile

COMMAND = (sys.executable, "-m", "splitwiser", "calibrate", "--device", "cpu", "--quick")
CALM = {**os.environ, "CI": "1"}  # tests of other things may run beside


def calibrate(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder."""
    return subprocess.run(
        [*COMMAND, "-o", "mine.json", "--no-picture", *more],
        cwd=folder,
        env=CALM,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a calibration, and its report."""
    folder = tmp_path_factory.mktemp("calibrated")
    done = calibrate(folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_profile_is_whole_and_the_report_names_every_parameter(
    calibrated: tuple[Path, str],
) -> None:
    """A calibration writes a fitted profile that loads, and says of each parameter what it is."""
    folder, report = calibrated
    profile = load_profile(folder / "mine.json")
    assert (profile.name, profile.gpu, profile.kind) == ("mine", "cpu", "fitted")
    assert all(f"{name}: " in report for name in PARAMETERS)


def test_a_second_call_measures_nothing(calibrated: tuple[Path, str]) -> None:
    """With all raw measurements there, the same command gives the same profile from them."""
    folder, _ = calibrated
    raw, profile = folder / "mine-raw" / "measurements.jsonl", folder / "mine.json"
    before = raw.read_bytes(), profile.read_bytes()
    done = calibrate(folder, "--json")
    assert done.returncode == 0, done.stderr
    assert (raw.read_bytes(), profile.read_bytes()) == before
    assert json.loads(done.stdout)["parameters"]


def test_raw_measurements_of_another_torch_are_refused(
    calibrated: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 2 and one line where the folder holds what another torch measured."""
    text = (calibrated[0] / "mine-raw" / "measurements.jsonl").read_text()
    conditions = {**json.loads(text.splitlines()[0]), "torch": "1.0"}
    (tmp_path / "mine-raw").mkdir()
    raw = tmp_path / "mine-raw" / "measurements.jsonl"
    raw.write_text(json.dumps(conditions) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", CALM["CI"])
    assert run([*COMMAND[3:], "-o", "mine.json", "--no-picture"]) == 2
    told = capsys.readouterr().err.splitlines()
    refusal = [line for line in told if not line.startswith("note: ")]
    assert len(refusal) == 1
    assert "was measured with torch = '1.0'" in refusal[0]


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    """After SIGINT the raw file holds what was done, no profile is written, and exit is 130."""
    running = subprocess.Popen(
        [*COMMAND, "-o", "mine.json", "--no-picture"],
        cwd=tmp_path,
        env=CALM,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    raw = tmp_path / "mine-raw" / "measurements.jsonl"
    deadline = time.monotonic() + 60
    while not (raw.exists() and len(raw.read_text().splitlines()) > 5):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "what was measured is kept" in said
    assert len(raw.read_text().splitlines()) > 5
    assert not (tmp_path / "mine.json").exists()
