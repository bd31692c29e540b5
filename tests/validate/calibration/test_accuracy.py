"""Errors summed up, and what the committed measurements say of the H200 profile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.models.profile import BUILT_IN, load_profile
from splitwiser.validate.calibration.accuracy import Score, score, scores
from splitwiser.validate.calibration.accuracy_h200 import H200, alone, corun
from splitwiser.validate.calibration.baselines import BASELINES
from splitwiser.validate.calibration.steps import Predictor, read_steps

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def h200() -> H200:
    """The committed measurements."""
    return H200.read(ROOT / "benchmarks" / "h200")


@pytest.fixture(scope="module")
def beside(h200: H200) -> dict[str, Score]:
    """The errors of what ran beside others."""
    return {s.group: s for s in corun(h200)}


@given(errors=st.lists(st.floats(-0.9, 10.0), min_size=1))
def test_a_score_is_of_the_sizes_of_errors(errors: list[float]) -> None:
    """MAPE and p95 are of absolute errors, the bias of signed ones."""
    found = score("some", errors)
    assert found.mape == pytest.approx(np.mean(np.abs(errors)))
    assert found.p95 == pytest.approx(np.quantile(np.abs(errors), 0.95))
    assert found.bias == pytest.approx(np.mean(errors))
    assert abs(found.bias) <= found.mape + 1e-12


def test_no_rows_have_no_score() -> None:
    """An empty group is an error, not a zero."""
    with pytest.raises(ValueError, match="nobody: no rows"):
        score("nobody", [])


def test_groups_lose_no_row() -> None:
    """Summing up by group counts every row once, in the order of first rows."""
    found = scores([("b", 0.1), ("a", -0.2), ("b", 0.3)])
    assert [(s.group, s.n) for s in found] == [("b", 2), ("a", 1)]


def test_phases_of_models_never_measured_are_predicted(h200: H200) -> None:
    """Where the GPU is the limit, phases alone are within 5 % on average and 10 % at the 95th percentile."""
    whole = alone(h200)[0]
    assert whole.mape < 0.05
    assert whole.p95 < 0.10


def test_what_judges_was_never_seen(h200: H200) -> None:
    """No row that is judged beside others has a prompt length of the calibration, alone or not."""
    fitted = read_steps(ROOT / "benchmarks" / "h200" / "calibration.jsonl", 132)
    seen = {load.tokens for row in fitted for load in row.loads if load.prompts}
    for row in (*h200.judged, *h200.elsewhere):
        assert row.alone or not seen & {load.tokens for load in row.loads if load.prompts}


def test_no_row_judges_twice(h200: H200) -> None:
    """Of a card no row is there twice."""
    for rows in (h200.judged, h200.elsewhere):
        titles = [(row.sharing, row.title, row.loads, row.repeat) for row in rows]
        assert len(set(titles)) == len(titles)


def test_knowing_more_predicts_better(h200: H200, beside: dict[str, Score]) -> None:
    """Launches that are told, and pairs beyond the law, each lower the errors of rows not fitted."""
    assert beside["all"].mape < 0.9 * beside["the host's launches not known, but modelled"].mape
    assert beside["all"].mape < 0.9 * beside["without what pairs say beyond the law"].mape
    phases = {s.group: s for s in alone(h200)}
    told = phases["prefill, bound by launches"].mape
    assert told < 0.05 < phases["launches bound, and modelled"].mape


def test_the_law_beats_every_baseline(beside: dict[str, Score]) -> None:
    """On the same held-out rows no baseline comes near, and nothing beats what repeats."""
    rivals = [s for group, s in beside.items() if group.startswith("baseline: ")]
    assert len(rivals) == len(BASELINES)
    assert all(s.mape > 1.3 * beside["all"].mape and s.n == beside["all"].n for s in rivals)
    calm = beside["noise of a repetition, no lane bound by launches"]
    assert calm.mape < min(beside["all"].mape, beside["noise of a repetition"].mape)


def test_baselines_predict_rates(h200: H200) -> None:
    """Every baseline gives positive rates; without contention they are those of phases alone."""
    rows = [row for row in h200.judged if not row.alone][::17]
    model = Predictor(h200.sheet, h200.profile)
    for name, make in BASELINES.items():
        rates = make(h200.fitted, h200.sheet, h200.profile)
        for row in rows:
            assert min(rates(row)) > 0
            if name == "contention ignored":
                assert rates(row) == pytest.approx(
                    [1 / d.seconds for d in model.demands(row, row.hosts)]
                )


def test_the_command_prints_the_keys_that_are_owed() -> None:
    """`accuracy.py --json` gives mape, p95 and n of each part, as fractions."""
    command = [sys.executable, str(ROOT / "benchmarks" / "accuracy.py"), "--only", "alone", "corun"]
    done = subprocess.run(
        [*command, "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )
    found = json.loads(done.stdout)
    assert set(found) == {"alone", "corun"}
    for part in found.values():
        assert 0 < part["mape"] < part["p95"] < 1
        assert part["n"] > 30


def test_the_accuracy_page_is_what_the_command_prints(h200: H200, beside: dict[str, Score]) -> None:
    """docs/accuracy.md holds the numbers of the profile that ships."""
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    for s in [alone(h200)[0], next(iter(beside.values()))]:
        assert f"{s.n} │ {s.mape:>5.1%} │ {s.p95:>5.1%}" in page


def test_the_shipped_profile_is_that_of_the_raw_measurements() -> None:
    """`h200_profile.py` gives the committed parameters again."""
    command = [sys.executable, str(ROOT / "benchmarks" / "h200_profile.py"), "--json"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )
    found = json.loads(done.stdout)["parameters"]
    shipped = load_profile(BUILT_IN / "h200.json")
    for name, parameter in shipped.parameters.items():
        assert found[name]["value"] == pytest.approx(parameter.value, rel=1e-3), name
