"""How well the H200 profile predicts rows that it was not fitted to, and what its effects are worth.

The rows are committed: `heldout-0.jsonl` on the card and in the hour of the calibration, of which a
half is fitted (`held_out`), and `heldout-1.jsonl` on another card, of which none is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.gpu import Gpu, gpu
from splitwiser.models.profile import Profile, profile_for
from splitwiser.validate.calibration.accuracy import Score, score, scores
from splitwiser.validate.calibration.baselines import BASELINES
from splitwiser.validate.calibration.device_fit import (
    NOISE_BESIDE,
    SLOW_LAUNCH,
    SPATIAL,
    STAGES,
    beside,
    launches,
    observe,
)
from splitwiser.validate.calibration.fitting import fit
from splitwiser.validate.calibration.held_out import split
from splitwiser.validate.calibration.raw import read_raw
from splitwiser.validate.calibration.steps import Predictor, StepRow, rows_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class H200:
    """The rows of the H200: *fitted*, *judged*, and those of *another* card; and the profile."""

    sheet: Gpu
    profile: Profile
    fitted: tuple[StepRow, ...]
    judged: tuple[StepRow, ...]
    another: tuple[StepRow, ...]

    @classmethod
    def read(cls, folder: Path) -> H200:
        """Read the raw measurements. FileNotFoundError where they are not there."""
        sheet = gpu("h200")

        def rows(name: str) -> list[StepRow]:
            return rows_of(read_raw(folder / name)[1].values(), sheet.sms)

        fitted, judged = split(rows("heldout-0.jsonl"))
        calibrated = [row for row in rows("calibration.jsonl") if not row.alone]
        return cls(
            sheet,
            profile_for("h200"),
            (*calibrated, *fitted),
            tuple(judged),
            tuple(rows("heldout-1.jsonl")),
        )


def alone(h200: H200) -> list[Score]:
    """Errors of phases alone: the GPU's time first, then the rows that wait for launches."""
    model = Predictor(h200.sheet, h200.profile)
    named = []
    for rows, card in ((h200.judged, ""), (h200.another, ", another card")):
        for row in rows:
            if not row.alone:
                continue
            phase = f"{row.loads[0].phase}{' eager' * row.loads[0].eager}"
            bound = "" if _gpu_bound(row, model) else ", bound by launches"
            error = model.rates(row)[0] ** -1 * row.rates[0] - 1.0
            named.append((f"{phase}{bound}{card}", error))
    by_group = scores(sorted(named, key=lambda item: ("card" in item[0], "bound" in item[0])))
    whole = [error for group, error in named if group in ("prefill", "decode")]
    return [score("all, bound by the GPU", whole), *by_group]


def _gpu_bound(row: StepRow, model: Predictor) -> bool:
    """Whether no launch holds a lane back, as slowly as hosts were seen to launch."""
    return all(
        demand.busy > SLOW_LAUNCH * launches(load)
        for load, demand in zip(row.loads, model.demands(row), strict=True)
        if load.prompts or load.eager
    )


def corun(h200: H200) -> list[Score]:
    """Errors beside others: by regime and phase, then noise, baselines and another card."""
    model = Predictor(h200.sheet, h200.profile)
    together = [row for row in h200.judged if not row.alone]
    first = [row for row in together if row.repeat == 0]
    named = _named(first, model.rates)
    aside = [row for row in first if _gpu_bound(row, model)]
    told = _named(aside, model.rates)
    found = [
        score("all", [error for _, error in named]),
        *scores(sorted(named)),
        score("host aside: all", [error for _, error in told]),
        *scores([(f"host aside: {group}", error) for group, error in sorted(told)]),
        *_noise(together),
    ]
    for name, make in BASELINES.items():
        rates = make(h200.fitted, h200.sheet, h200.profile)
        errors = [error for _, error in _named(first, rates)]
        found.append(score(f"baseline: {name}", errors))
    other = [row for row in h200.another if not row.alone and row.repeat == 0]
    known = [error for _, error in _named(other, lambda row: model.rates(row, row.hosts))]
    found.append(score("another card, its host's launches known", known))
    own = Predictor(h200.sheet, _of_its_phases(h200))
    named = _named(other, lambda row: own.rates(row, row.hosts))
    found.append(score("and its power limit: all", [error for _, error in named]))
    found += scores([(f"and its power limit: {group}", error) for group, error in sorted(named)])
    return found


def _of_its_phases(h200: H200) -> Profile:
    """The profile with the power limit of the other card, from its phases alone."""
    rows = [row for row in h200.another if row.alone]
    start = {"sustained": STAGES[0].start["sustained"]}
    return fit(h200.profile, start, observe(rows, h200.sheet), noise=STAGES[0].noise).profile


def _named(
    rows: Sequence[StepRow], rates: Callable[[StepRow], Sequence[float]]
) -> list[tuple[str, float]]:
    """The error of every lane's step time, by regime and phase."""
    named = []
    for row in rows:
        crowd = f" x{len(row.loads)}" if len(row.loads) > 2 else ""
        for load, measured, rate in zip(row.loads, row.rates, rates(row), strict=True):
            phase = f"{load.phase}{' eager' * load.eager}"
            named.append((f"{row.regime.replace('_', ' ')}{crowd}, {phase}", measured / rate - 1.0))
    return named


def _noise(rows: Sequence[StepRow]) -> list[Score]:
    """Each repetition against the mean of the others, whoever waits for its host included."""
    repeated: dict[str, list[StepRow]] = {}
    for row in rows:
        models = [load.llm for load in row.loads]
        repeated.setdefault(f"{row.sharing}: {row.title} {models}", []).append(row)
    errors = []
    for group in repeated.values():
        for place, row in enumerate(group):
            others = [other for at, other in enumerate(group) if at != place]
            for lane, rate in enumerate(row.rates):
                if others:
                    errors.append(fmean(other.rates[lane] for other in others) / rate - 1.0)
    return [score("noise of a repetition", errors)]


def of_calibration(h200: H200, folder: Path) -> Profile:
    """The profile with its law of sharing fitted to the pairs of calibration.jsonl alone."""
    rows = rows_of(read_raw(folder / "calibration.jsonl")[1].values(), h200.sheet.sms)
    profile = h200.profile
    for stage in STAGES:
        if stage.noise == NOISE_BESIDE:
            chosen = [row for row in rows if stage.rows(row)]
            observed = beside(chosen, h200.sheet, profile)
            profile = fit(profile, stage.start, observed, noise=stage.noise).profile
    return profile


# Ablation -----------------------------------------------------------------------------------------

# What stands for the law without an effect, and the parameters that go with it.
EFFECTS: Mapping[str, Mapping[str, float]] = {
    "the whole law": {},
    "a kernel waits as long whatever runs (exponent 0)": {"wait_exponent": 0.0},
    "waits grow with the neighbour's kernel (exponent 1)": {"wait_exponent": 1.0},
    "nothing is yielded": {"yielded": 0.0},
    "no contention on other SMs": {"contention": 0.0},
    "no power shared": {"power_memory": 0.0, "power_compute": 0.0},
    "further neighbours cost no more than the first": {"crowding": 0.0},
    "waits in proportion to the overlap": {"wait_overlap": 1.0},
    "memory-bound steps want all their SMs": {"memory_spread": 1.0},
}


def ablation(h200: H200) -> list[Score]:
    """Held-out errors of the spatial regimes where the law is fitted anew without an effect."""
    stage = STAGES[-1]
    rows = [row for row in h200.fitted if row.sharing in SPATIAL]
    judged = [
        row for row in h200.judged if row.sharing in SPATIAL and not row.alone and row.repeat == 0
    ]
    found = []
    for name, fixed in EFFECTS.items():
        base = h200.profile.with_values(**fixed)
        start = {key: value for key, value in stage.start.items() if key not in fixed}
        done = fit(base, start, beside(rows, h200.sheet, base), noise=NOISE_BESIDE, title=name)
        model = Predictor(h200.sheet, done.profile)
        found.append(score(name, [error for _, error in _named(judged, model.rates)]))
    return found
