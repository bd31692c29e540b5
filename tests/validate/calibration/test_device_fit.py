"""The fit of a device's measurements."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from splitwiser.models.gpu import gpu
from splitwiser.models.profile import Profile, profile_for
from splitwiser.validate.calibration.device_fit import NOISE_BESIDE, STAGES, fit_device
from splitwiser.validate.calibration.fitting import fit
from splitwiser.validate.calibration.observed_steps import (
    beside,
    group_of,
    hosts_of,
    launches,
    observe,
)
from splitwiser.validate.calibration.points import Load
from splitwiser.validate.calibration.steps import Predictor, StepRow

SHEET = gpu("h200")
TRUTH = replace(profile_for("h200"), neighbours=None)  # the law alone
LLM = "meta-llama/Llama-3.1-8B"


def pair(sharing: str, tokens: int, batch: int, shares: tuple[float, float]) -> StepRow:
    """A prefill beside a decode step, not measured yet; its host is fast."""
    loads = (Load(LLM, prompts=1, tokens=tokens), Load(LLM, batch=batch, context=1024))
    return StepRow(sharing, loads, shares, (1.0, 1.0), hosts=(0.0, 0.0))


def measured(row: StepRow, profile: Profile) -> StepRow:
    """The row as a device of this profile would have it."""
    rates = Predictor(SHEET, profile).rates(row, hosts_of(row, SHEET))
    return replace(row, rates=tuple(rates))


def record(row: StepRow) -> dict[str, Any]:
    """The row as a raw file has it."""
    lanes = [
        {**asdict(load), "phase": load.phase, "sm_percent": 100.0 * share, "sms": None}
        | {"equal": not row.decode_first}
        for load, share in zip(row.loads, row.shares, strict=True)
    ]
    return {
        "sharing": row.sharing,
        "lanes": lanes,
        "repeat": row.repeat,
        "rates": list(row.rates),
        "host": list(row.hosts or ()),
    }


ROWS = [
    pair(sharing, tokens, batch, shares)
    for tokens in (300, 1000, 3000)
    for batch in (1, 32, 128)
    for sharing, shares in (
        ("mps", (1.0, 1.0)),
        ("mps", (0.7, 0.3)),
        ("mps", (0.8, 0.6)),
        ("green_contexts", (0.75, 0.25)),
    )
]


def test_rows_of_a_known_law_give_it_back() -> None:
    """Pairs made by a known law, with 1 % of noise, give its parameters within 4 standard errors."""
    truth = TRUTH.with_values(wait_memory=0.8, contention_compute=0.4, passed=5.0)
    noise = np.random.default_rng(0).lognormal(0.0, 0.01, (len(ROWS), 2))
    made = [measured(row, truth) for row in ROWS]
    rows = [
        replace(row, rates=tuple(rate * e for rate, e in zip(row.rates, errors, strict=True)))
        for row, errors in zip(made, noise, strict=True)
    ]
    start = {"wait_memory": 0.5, "contention_compute": 0.2, "passed": 8.0}
    found = fit(truth, start, beside(rows, SHEET, truth), noise=NOISE_BESIDE)
    for parameter in found.parameters:
        assert parameter.stderr is not None
        assert abs(parameter.value - truth.value(parameter.name)) < 4 * parameter.stderr


def test_demands_worked_out_once_predict_the_same() -> None:
    """For profiles that differ in the law of sharing only, `beside` predicts what `observe` does."""
    other = TRUTH.with_values(wait_memory=1.0, passed=4.0, power_compute=0.3, crowding=1.0)
    rows = [measured(row, TRUTH) for row in ROWS]
    assert beside(rows, SHEET, TRUTH).predict(other) == pytest.approx(
        observe(rows, SHEET).predict(other), rel=1e-12
    )


def test_held_out_rows_decide_nothing_of_their_predictions() -> None:
    """Where all rows of one fold were faster, their predictions by the other folds stay what they are."""

    def crowd(tokens: int, batch: int) -> StepRow:
        row = pair("time_slice", tokens, batch, (1.0, 1.0))
        loads = (*row.loads, replace(row.loads[1], batch=batch + 1))
        return replace(row, loads=loads, shares=(1.0,) * 3, rates=(1.0,) * 3, hosts=(0.0,) * 3)

    # Every fifth length is of one fold, and only crowds have these.
    pairs = [
        pair("time_slice", tokens, batch, (1.0, 1.0))
        for tokens in (200, 400, 700, 1000, 2000, 2800, 3600, 4500)
        for batch in (4, 90)
    ]
    crowds = [crowd(tokens, batch) for tokens in (100, 1500) for batch in (4, 90)]
    noise = np.random.default_rng(5)
    made = [
        replace(row, rates=tuple(r * noise.lognormal(0.0, 0.05) for r in row.rates))
        for row in (measured(row, TRUTH) for row in (*pairs, *crowds))
    ]

    def held_out(faster: float) -> float:
        told = [
            replace(row, rates=tuple(r * faster for r in row.rates)) if len(row.loads) > 2 else row
            for row in made
        ]
        found = fit_device([record(row) for row in told], SHEET, "bfloat16", TRUTH)
        return 1.0 + found.held_out["time slice of three or more, prefill"].bias

    assert held_out(1.3) == pytest.approx(1.3 * held_out(1.0), rel=2e-3)


def test_nothing_measured_is_refused() -> None:
    """Without a measurement that succeeded there is no profile, and one line says so."""
    failed = {"key": "a", "sharing": "mps", "lanes": [], "error": "out of memory"}
    for records in ([], [failed]):
        with pytest.raises(ValueError, match="no measurement succeeded"):
            fit_device(records, SHEET, "bfloat16", TRUTH)


def test_what_no_row_decides_keeps_its_value() -> None:
    """Pairs alone leave kernels, phases alone and time slices as the start has them."""
    records = [record(measured(row, TRUTH)) for row in ROWS]
    found = fit_device(records, SHEET, "bfloat16", TRUTH)
    fitted = set(STAGES[-1].start)
    assert {fit.title for fit in found.fits} == {STAGES[-1].title}
    for name, parameter in found.profile.parameters.items():
        assert name in fitted or parameter == TRUTH.parameters[name]


def eager(host: float, context: int) -> StepRow:
    """A decode step that waits for its launches, of *host* seconds each."""
    seconds = host * launches(Load(LLM))
    load = Load(LLM, batch=1, context=context, eager=True)
    return StepRow("time_slice", (load,), (1.0,), (1.0 / seconds,), hosts=(seconds,))


def test_rows_with_priorities_say_how_much_yields_to_them() -> None:
    """`yielded` is fitted to rows in which decode has priority, and left alone without any."""
    truth = TRUTH.with_values(passed=4.0, yielded=0.1)
    equals = [replace(row, decode_first=False) for row in ROWS]
    rows = [record(measured(row, truth)) for row in (*ROWS, *equals)]
    start = TRUTH.with_values(passed=5.0, yielded=0.03)
    found = fit_device(rows, SHEET, "bfloat16", start).profile
    assert found.value("passed") == pytest.approx(4.0, rel=0.02)
    assert found.value("yielded") == pytest.approx(0.1, rel=0.02)
    found = fit_device(rows[len(ROWS) :], SHEET, "bfloat16", start).profile
    assert found.value("yielded") == 0.03


def test_phases_alone_are_those_of_plain_processes() -> None:
    """What MPS adds to the gaps between kernels is told from those of plain processes, and counts as
    theirs where nothing else was measured.
    """
    truth = TRUTH.with_values(kernel_gap=4e-7)
    slower = truth.with_values(shared_gap=1.6e-6)
    loads = [Load(LLM, batch=batch, context=1024) for batch in (1, 4, 16, 64)]

    def alone(sharing: str, profile: Profile) -> list[dict[str, Any]]:
        rows = (StepRow(sharing, (load,), (1.0,), (1.0,), hosts=(0.0,)) for load in loads)
        return [record(measured(row, profile)) for row in rows]

    start = TRUTH.with_values(kernel_gap=1e-6, shared_gap=0.0)
    mixed, under_mps = (
        fit_device(rows, SHEET, "bfloat16", start)
        for rows in (
            alone("time_slice", truth) + alone("mps", slower),
            alone("mps", slower),
        )
    )
    assert mixed.profile.value("kernel_gap") == pytest.approx(4e-7, rel=1e-3)
    assert mixed.profile.value("shared_gap") == pytest.approx(1.6e-6, rel=1e-3)
    assert under_mps.profile.value("kernel_gap") == pytest.approx(2e-6, rel=1e-3)
    assert under_mps.profile.value("shared_gap") == 0.0
    assert [len(found.fits) for found in (mixed, under_mps)] == [2, 1]


def test_phases_alone_are_told_apart_in_reports() -> None:
    """Who may run beside a phase, and on which SMs, each has a group of its own."""
    kinds = [("time_slice", 1.0), ("mps", 1.0), ("mps", 0.5), ("streams", 1.0)]
    kinds.append(("green_contexts", 0.5))
    load = Load(LLM, batch=1, context=100)
    groups = {group_of(StepRow(sharing, (load,), (share,), (1.0,))) for sharing, share in kinds}
    assert len(groups) == len(kinds)


def test_a_launch_takes_what_the_quicker_launches_took() -> None:
    """The time of a launch is the lower quartile of those told, and that of the start without any."""
    took = [2e-5, 3e-5, 4e-5, 9e-5, 8e-5]
    told = [record(eager(each, 100 + place)) for place, each in enumerate(took)]
    found = fit_device(told, SHEET, "bfloat16", TRUTH).profile
    assert found.value("launch_host") == pytest.approx(np.quantile(took, 0.25), rel=1e-3)
    silent = [{**each, "host": None} for each in told[:2]]
    found = fit_device(silent, SHEET, "bfloat16", TRUTH).profile
    assert found.value("launch_host") == TRUTH.value("launch_host")


def test_what_pairs_say_beyond_the_law_goes_into_the_profile() -> None:
    """Decodes that are slower than any law beside the long prompts only are predicted when learnt."""
    rows = [
        replace(row, rates=(row.rates[0], row.rates[1] / (1.3 if row.loads[0].tokens > 900 else 1)))
        for row in (
            measured(pair("mps", tokens, batch, shares), TRUTH)
            for tokens in (150, 300, 600, 1000, 2000, 4000)
            for batch in (1, 8, 32, 128)
            for shares in ((1.0, 1.0), (0.8, 0.6))
        )
    ]
    found = fit_device([record(row) for row in rows], SHEET, "bfloat16", TRUTH)
    assert found.profile.neighbours is not None
    observed = beside(rows, SHEET, found.profile)
    errors = {
        profile.neighbours is not None: np.abs(observed.predict(profile) / observed.measured - 1)
        for profile in (found.profile, replace(found.profile, neighbours=None))
    }
    assert errors[True].mean() < 0.5 * errors[False].mean()
    told = [abs(residual.error) for residual in found.fits[-1].residuals]
    assert told == pytest.approx(errors[True].tolist(), abs=1e-9)


def test_a_slow_host_that_no_row_tells_does_not_slow_the_law() -> None:
    """A lane held back by a host of unknown speed tells nothing of the law; its neighbour does."""
    row = pair("mps", 300, 32, (1.0, 1.0))
    fast = measured(row, TRUTH)
    held = replace(fast, rates=(fast.rates[0] / 1.4, fast.rates[1]), hosts=None)
    assert hosts_of(held, SHEET)[0] == pytest.approx(1.0 / held.rates[0])  # type: ignore[index]
    seconds = observe([held], SHEET).predict(TRUTH)
    assert seconds[0] == pytest.approx(1.0 / held.rates[0], rel=0.2)
