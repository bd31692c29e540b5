"""The fit: it finds what made the rows, says how well it knows it, and what it cannot know."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from splitwiser.models.profile import PARAMETERS, Profile, profile_for
from splitwiser.validate.calibration.fitting import Fit, fit, refitted
from splitwiser.validate.calibration.needs import NEEDS
from splitwiser.validate.calibration.observations import (
    Observations,
    cross_validate,
    errors_by_group,
)

TRUTH = {"gemm_efficiency": 0.62, "kv_efficiency": 0.8, "kernel_gap": 2e-6, "launch_host": 5e-6}
START = {"gemm_efficiency": 0.4, "kv_efficiency": 0.5, "kernel_gap": 1e-5, "launch_host": 2e-5}
EACH = 20  # rows of each group
SIZE = np.geomspace(1.0, 300.0, EACH)
KERNELS = np.linspace(100.0, 400.0, EACH)
BASE = profile_for("h200")
Predict = Callable[[Profile], NDArray[np.float64]]


def steps(profile: Profile) -> NDArray[np.float64]:
    """Return the seconds of prefills, of decode steps, and of decode steps bound by their host."""
    value = profile.value
    gaps = KERNELS * value("kernel_gap")
    decode = 1e-5 * SIZE / value("kv_efficiency")
    prefill = 1e-4 * SIZE / value("gemm_efficiency") + gaps
    return np.concatenate([prefill, decode + gaps, KERNELS * value("launch_host") + decode])


def rows(
    predict: Predict = steps, noise: float = 0.0, seed: int = 0, **truth: float
) -> Observations:
    """Return what a device of the parameters *truth* gives, with log-normal *noise*."""
    exact = predict(BASE.with_values(**{**TRUTH, **truth}))
    measured = exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(exact)))
    groups = [("prefill", "decode", "eager")[row // EACH] for row in range(len(exact))]
    return Observations(measured, groups, [f"row {i % EACH}" for i in range(len(exact))], predict)


def record(result: Fit) -> dict[str, tuple[float, float | None, bool]]:
    return {p.name: (p.value, p.stderr, p.identified) for p in result.parameters}


@settings(max_examples=20, deadline=None)
@given(
    gemm=st.floats(0.05, 0.95),
    kv=st.floats(0.05, 0.95),
    gap=st.floats(5e-7, 2e-5),
    host=st.floats(1e-6, 1e-4),
)
def test_exact_rows_give_back_what_made_them(
    gemm: float, kv: float, gap: float, host: float
) -> None:
    """Rows without noise give their parameters back, wherever the search began."""
    truth = {"gemm_efficiency": gemm, "kv_efficiency": kv, "kernel_gap": gap, "launch_host": host}
    result = fit(BASE, START, rows(**truth))
    for name, value in truth.items():
        assert result.profile.value(name) == pytest.approx(value, rel=1e-4)
    assert all(errors.mape < 1e-5 for errors in result.errors_by_group().values())


def test_standard_errors_are_true_ones() -> None:
    """Over many noisy worlds, the truth lies a standard error away on average (rms), and not more
    than five ever.
    """
    misses = []
    for seed in range(40):
        result = fit(BASE, START, rows(noise=0.03, seed=seed))
        misses += [
            [
                (p.value - TRUTH[p.name]) / p.stderr
                for p in result.parameters
                if p.stderr is not None
            ]
        ]
    rms = np.sqrt(np.mean(np.square(misses), axis=0))
    assert len(rms) == len(TRUTH)
    assert np.all((rms > 0.7) & (rms < 1.4)), rms
    assert np.max(np.abs(misses)) < 5.0


def test_more_noise_gives_larger_standard_errors() -> None:
    """Four times the noise gives about four times the standard errors, and shows in the scatter."""
    quiet, loud = (fit(BASE, START, rows(noise=noise)) for noise in (0.005, 0.02))
    for name in START:
        before, after = record(quiet)[name][1], record(loud)[name][1]
        assert before is not None
        assert after is not None
        assert 3.0 < after / before < 5.0
    assert 3.0 < loud.scatter / quiet.scatter < 5.0


def test_a_few_broken_rows_do_not_move_a_fit() -> None:
    """Three rows of sixty that took three times as long move no parameter by more than 3 %."""
    good = rows(noise=0.01)
    broken = good.measured.copy()
    broken[[5, 25, 45]] *= 3.0
    result = fit(BASE, START, Observations(broken, good.groups, good.titles, good.predict))
    for name, value in TRUTH.items():
        assert result.profile.value(name) == pytest.approx(value, rel=0.03)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_what_no_row_moves_with_is_kept(noise: float) -> None:
    """A parameter that no row depends on keeps its start value, has no standard error, and names
    the measurement that is missing; its profile entry says so, and the others are found.
    """
    start = {**START, "quantum": 1e-3, "compute_knee": 0.7}
    result = fit(BASE, start, rows(noise=noise), title="solo")
    found = {p.name: p for p in result.parameters}
    for name in ("quantum", "compute_knee"):
        assert found[name].value == result.profile.value(name) == start[name]
        assert found[name].stderr is None
        assert (found[name].identified, found[name].kept) == (False, True)
        assert found[name].missing == NEEDS[name]
        source = result.profile.parameters[name].source
        assert source == "start value of a fit; not identified by 60 rows: solo"
    assert result.decided == tuple(START)
    for name, value in TRUTH.items():
        assert result.profile.value(name) == pytest.approx(value, rel=0.05)


def test_what_rows_hardly_move_with_is_kept() -> None:
    """A parameter whose whole range changes rows by less than they scatter is not put at a bound,
    though a bound explains the scatter a little better.
    """

    def predict(profile: Profile) -> NDArray[np.float64]:
        weak = np.exp(1e-5 * np.sin(SIZE) * profile.value("wait_memory"))
        return steps(profile) * np.tile(weak, 3)

    result = fit(BASE, {**START, "wait_memory": 0.5}, rows(predict, noise=0.02, wait_memory=1.0))
    weak = next(p for p in result.parameters if p.name == "wait_memory")
    assert (weak.value, weak.kept, weak.at_bound) == (0.5, True, False)


def test_a_value_that_was_known_keeps_its_source() -> None:
    """A parameter kept at the profile's value keeps the source, however often it is fitted."""
    before = BASE.parameters["quantum"]
    profile = BASE
    for _ in range(2):
        profile = fit(profile, {**START, "quantum": before.value}, rows(), title="solo").profile
    after = profile.parameters["quantum"]
    assert after.value == before.value
    assert after.source == f"{before.source}; not identified by 60 rows: solo"


def product(profile: Profile) -> NDArray[np.float64]:
    """Return seconds that know two efficiencies by their product only, and two times by the sum."""
    value = profile.value
    both = value("gemm_efficiency") * value("memory_efficiency")
    times = value("kernel_gap") + value("handover")
    return np.concatenate([1e-3 * SIZE / both, 1e-3 * SIZE / value("kv_efficiency") + 100 * times])


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_what_rows_know_only_together_is_said(noise: float) -> None:
    """Of two parameters that only their product or sum decides, one is kept and neither gets a
    standard error; both name the other, and the rows are explained all the same.
    """
    start = {
        "gemm_efficiency": 0.6,
        "memory_efficiency": 0.8,
        "kv_efficiency": 0.6,
        "kernel_gap": 5e-6,
        "handover": 5e-6,
    }
    truth = {"memory_efficiency": 0.9, "kernel_gap": 1e-5, "handover": 2e-5}
    result = fit(BASE, start, rows(product, noise, **truth))
    found = {p.name: p for p in result.parameters}
    for pair in (("gemm_efficiency", "memory_efficiency"), ("kernel_gap", "handover")):
        kept, moved = sorted((found[name] for name in pair), key=lambda p: not p.kept)
        assert (kept.kept, moved.kept) == (True, False)
        assert kept.value == kept.start
        assert (kept.tied_to, moved.tied_to) == ((moved.name,), (kept.name,))
        assert (kept.stderr, moved.stderr) == (None, None)
        assert not (kept.identified or moved.identified)
        assert f"given {kept.name}" in result.profile.parameters[moved.name].source
    assert result.decided == ("kv_efficiency",)
    value = result.profile.value
    together = value("gemm_efficiency") * value("memory_efficiency")
    assert together == pytest.approx(0.62 * 0.9, rel=0.02)


def test_a_parameter_that_may_be_0_comes_out_as_0() -> None:
    """A world without gaps gives a gap of exactly 0, at its bound and without a standard error."""
    result = fit(BASE, START, rows(kernel_gap=0.0))
    gap = next(p for p in result.parameters if p.name == "kernel_gap")
    assert (gap.value, gap.stderr, gap.at_bound, gap.identified) == (0.0, None, True, True)
    assert result.profile.parameters["kernel_gap"].source.endswith("at its bound")
    assert "kernel_gap" not in result.decided


def test_an_efficiency_stops_at_its_bound() -> None:
    """Rows faster than any efficiency allows end at 1, and are told as misses."""
    fast = rows()
    with np.errstate(all="raise"):
        result = fit(BASE, START, Observations(fast.measured / 2, fast.groups, fast.titles, steps))
    gemm = next(p for p in result.parameters if p.name == "gemm_efficiency")
    assert (gemm.value, gemm.at_bound) == (1.0, True)
    assert result.errors_by_group()["prefill"].mape > 0.05


@pytest.mark.parametrize("start", [0.0, 1e-7, 5.0])
def test_a_bad_first_guess_of_a_time_is_no_hindrance(start: float) -> None:
    """A time whose first guess is 0, or a factor of 100,000 off, is found."""

    def predict(profile: Profile) -> NDArray[np.float64]:
        return 1e-3 * SIZE / profile.value("kv_efficiency") + 100 * profile.value("handover")

    result = fit(BASE, {"kv_efficiency": 0.5, "handover": start}, rows(predict, handover=2e-5))
    assert result.profile.value("handover") == pytest.approx(2e-5, rel=1e-3)


def test_a_bound_that_sleeps_at_the_start_is_found() -> None:
    """Host time that explains no row near its start, for the device is slower there, is still
    found where the rows are bound by the host.
    """

    def predict(profile: Profile) -> NDArray[np.float64]:
        device = 1e-4 * SIZE / profile.value("gemm_efficiency") + 2e-4
        return np.maximum(device, KERNELS * profile.value("launch_host"))

    start = {"gemm_efficiency": 0.4, "launch_host": 1e-8}
    result = fit(BASE, start, rows(predict, noise=0.01, launch_host=2e-5))
    assert result.profile.value("launch_host") == pytest.approx(2e-5, rel=0.02)
    assert set(result.decided) == set(start)


def test_correlations_are_symmetric_and_the_strong_ones_listed() -> None:
    """The matrix is symmetric with a diagonal of 1, and nearly exchangeable parameters are named."""

    def predict(profile: Profile) -> NDArray[np.float64]:
        gap, host = profile.value("kernel_gap"), profile.value("launch_host")
        return 1e-4 + KERNELS * gap + (KERNELS + 30 * np.sin(KERNELS)) * host

    start = {"kernel_gap": 1e-5, "launch_host": 1e-5}
    result = fit(BASE, start, rows(predict, noise=0.01))
    assert result.correlation == pytest.approx(result.correlation.T)
    assert np.diag(result.correlation) == pytest.approx(1.0)
    assert np.all(np.abs(result.correlation) <= 1.0 + 1e-9)
    (pair,) = result.strong_correlations
    assert (pair.first, pair.second) == ("kernel_gap", "launch_host")
    assert -1.0 <= pair.value < -0.9
    assert fit(BASE, START, rows(noise=0.01)).strong_correlations == ()


def test_too_few_rows_are_refused() -> None:
    """As many rows as parameters decide nothing; the line counts both."""
    few = rows().select([i < 4 for i in range(60)])
    with pytest.raises(ValueError, match=r"^solo: 4 rows cannot decide 4 parameters; at least 5"):
        fit(BASE, START, few, title="solo")


@pytest.mark.parametrize("wrong", [float("nan"), 0.0, -1.0, float("inf")])
def test_a_measurement_that_is_none_is_refused(wrong: float) -> None:
    """NaN, infinity, 0 and negative numbers are refused with the row's title."""
    good = rows()
    measured = good.measured.copy()
    measured[7] = wrong
    bad = Observations(measured, good.groups, good.titles, steps)
    with pytest.raises(ValueError, match=r"^solo: row 'row 7' of 'prefill' measured [^\n]+$"):
        fit(BASE, START, bad, title="solo")


def test_rows_that_contradict_each_other_are_refused() -> None:
    """A repetition may differ by a factor of 2 and not more; the line has both values."""
    good = rows()

    def repeated(factor: float) -> Observations:
        again = good.select([i == 3 for i in range(60)])
        measured = good.measured[3:4] * factor
        return Observations.concat(
            good, Observations(measured, again.groups, again.titles, again.predict)
        )

    assert fit(BASE, START, repeated(1.9)).residuals
    with pytest.raises(ValueError, match=r"^row 'row 3' of 'prefill' was measured as [^\n]+$"):
        fit(BASE, START, repeated(2.1))


def test_a_prediction_that_is_no_number_is_refused() -> None:
    """A model that fails on a row stops the fit and names the row."""

    def broken(profile: Profile) -> NDArray[np.float64]:
        seconds = steps(profile)
        seconds[22] = np.nan
        return seconds

    good = rows()
    with pytest.raises(ValueError, match="row 'row 2' of 'decode' is predicted as nan"):
        fit(BASE, START, Observations(good.measured, good.groups, good.titles, broken))


def test_rows_go_together_and_apart() -> None:
    """Selected parts put together again are the rows, their predictions and units included."""
    good = rows(noise=0.01)
    first = np.arange(60) < 23
    both = Observations.concat(good.select(first), good.select(~first))
    assert both.measured.tolist() == good.measured.tolist()
    assert (both.titles, both.units) == (list(good.titles), good.units)
    assert both.predict(BASE).tolist() == steps(BASE).tolist()
    with pytest.raises(ValueError, match="2 titles for 60 measured rows"):
        Observations(good.measured, good.groups, ["a", "b"], steps)


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.02]))
@settings(max_examples=10, deadline=None)
def test_a_refit_ends_where_a_fit_of_its_rows_does(seed: int, noise: float) -> None:
    """From the values of all rows, a part of them leads where a fit of that part from afar leads."""
    every = rows(noise=noise, seed=seed)
    part = every.select(np.arange(len(every)) % 3 != 0)
    known = {name: fit(BASE, START, every).profile.value(name) for name in START}
    again = refitted(BASE, known, part, noise=0.05)
    anew = fit(BASE, START, part).profile
    for name in START:
        assert again.value(name) == pytest.approx(anew.value(name), rel=1e-3)


def test_a_value_at_its_upper_bound_is_searched_from_below() -> None:
    """A search that begins at a bound leaves it, whichever bound it is."""
    for bound in (PARAMETERS["gemm_efficiency"].lower, PARAMETERS["gemm_efficiency"].upper):
        again = refitted(BASE, {**TRUTH, "gemm_efficiency": bound}, rows(), noise=0.05)
        assert again.value("gemm_efficiency") == pytest.approx(TRUTH["gemm_efficiency"], rel=1e-4)


def test_cross_validation_never_shows_a_fit_its_own_fold() -> None:
    """Every fold is predicted by a profile made from all the others and nothing of itself."""
    good = rows()
    folds = [f"size {i % 4}" for i in range(60)]
    seen = []

    def spy(train: Observations) -> Profile:
        seen.append(set(train.measured.tolist()))
        return BASE.with_values(gemm_efficiency=0.1 * len(seen))

    held_out = cross_validate(spy, good, folds)
    for fold, training in enumerate(seen):
        own = [i for i in range(60) if i % 4 == fold]
        assert training == {float(good.measured[i]) for i in range(60) if i % 4 != fold}
        expected = steps(BASE.with_values(gemm_efficiency=0.1 * (fold + 1)))[own]
        assert held_out[own].tolist() == expected.tolist()
    assert len(seen) == 4


def test_cross_validation_finds_a_model_that_does_not_generalise() -> None:
    """Held-out errors exceed those of the fit where a size follows another law."""
    good = rows(noise=0.01)
    measured = good.measured.copy()
    odd = np.arange(60) % EACH == EACH - 1
    measured[odd] *= 1.4
    strange = Observations(measured, good.groups, good.titles, steps)
    folds = [f"size {i % EACH}" for i in range(60)]
    held_out = cross_validate(lambda train: fit(BASE, START, train).profile, strange, folds)
    fitted = fit(BASE, START, strange).errors_by_group()["prefill"]
    blind = errors_by_group(strange.groups, measured, held_out)["prefill"]
    assert blind.n == fitted.n == EACH
    assert blind.p95 >= blind.mape > fitted.mape


def test_cross_validation_needs_folds() -> None:
    """One label leaves nothing to fit, and a fold too many of the rows names itself."""
    good = rows()
    with pytest.raises(ValueError, match="two labels or more"):
        cross_validate(lambda train: BASE, good, ["all"] * 60)
    folds = ["rest" if i > 2 else "first" for i in range(60)]
    with pytest.raises(ValueError, match=r"^without 'rest': 3 rows cannot decide 4 parameters"):
        cross_validate(lambda train: fit(BASE, START, train).profile, good, folds)


def test_errors_are_those_of_the_rows() -> None:
    """Mean, 95th percentile and bias of a group are those of its own rows."""
    summary = errors_by_group(["a", "b", "a"], np.array([1.0, 1.0, 2.0]), np.array([1.1, 3.0, 1.4]))
    assert list(summary) == ["a", "b"]
    assert summary["a"].mape == pytest.approx(0.2)
    assert summary["a"].bias == pytest.approx(-0.1)
    assert summary["a"].p95 == pytest.approx(0.29)
    assert (summary["b"].n, summary["b"].bias) == (1, pytest.approx(2.0))


def test_every_parameter_says_what_identifies_it() -> None:
    """No parameter of a profile is without a measurement that would identify it, and no other."""
    assert set(NEEDS) == set(PARAMETERS)
