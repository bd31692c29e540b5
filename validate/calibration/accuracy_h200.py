"""How well the H200 profile predicts rows that it was not fitted to, and what its effects are worth.

The rows are committed: the profile is fitted to `calibration.jsonl`; `heldout-14.jsonl` was drawn at
random and measured on the same card right after it, `heldout-15.jsonl` on another card, by
another seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from splitwiser.models.gpu import Gpu, gpu
from splitwiser.models.profile import Profile, profile_for
from splitwiser.validate.calibration.accuracy import Score, score, scores
from splitwiser.validate.calibration.baselines import BASELINES
from splitwiser.validate.calibration.device_fit import NOISE_BESIDE, STAGES, Stage
from splitwiser.validate.calibration.fitting import fit
from splitwiser.validate.calibration.neighbours_fit import with_neighbours
from splitwiser.validate.calibration.observed_steps import (
    BOUND,
    beside,
    bound_by_launches,
    observe,
    pairs_of,
)
from splitwiser.validate.calibration.raw import read_raw
from splitwiser.validate.calibration.steps import Predictor, StepRow, rows_of

ALIKE = ", its like"  # beside a step of the same phase
ELSEWHERE = ", another card"
Rates = Callable[[StepRow], Sequence[float]]


@dataclass(frozen=True, eq=False)
class H200:
    """The rows of the H200: *fitted*, *judged* on the same card, and judged *elsewhere*, on another;
    and the profile.

    No row that is judged beside others has a prompt length that any fitted row has.
    """

    sheet: Gpu
    profile: Profile
    fitted: tuple[StepRow, ...]
    judged: tuple[StepRow, ...]
    elsewhere: tuple[StepRow, ...]

    @classmethod
    def read(cls, folder: Path) -> H200:
        """Read the raw measurements. FileNotFoundError where they are not there."""
        sheet = gpu("h200")

        def rows(name: str) -> list[StepRow]:
            return rows_of(read_raw(folder / name)[1].values(), sheet.sms)

        fitted = rows("calibration.jsonl")
        lengths = set().union(*map(_lengths, fitted))

        def unseen(name: str) -> tuple[StepRow, ...]:
            return tuple(row for row in rows(name) if row.alone or not _lengths(row) & lengths)

        return cls(
            sheet,
            profile_for("h200"),
            tuple(row for row in fitted if not row.alone),
            unseen("heldout-14.jsonl"),
            unseen("heldout-15.jsonl"),
        )


def _lengths(row: StepRow) -> set[int]:
    return {load.tokens for load in row.loads if load.prompts}


def alone(h200: H200) -> list[Score]:
    """Errors of phases alone: the GPU's time first, then the rows that wait for launches."""
    model = Predictor(h200.sheet, h200.profile)
    told: list[tuple[str, float]] = []
    modelled: list[tuple[str, float]] = []
    for rows, when in ((h200.judged, ""), (h200.elsewhere, ELSEWHERE)):
        for row in rows:
            if not row.alone:
                continue
            load = row.loads[0]
            phase = f"{load.phase}{' eager' * load.eager}"
            bound = (load.prompts or load.eager) and bound_by_launches(row)
            group = f"{phase}{', bound by launches' if bound else ''}{when}"
            told.append((group, row.rates[0] / model.rates(row, row.hosts)[0] - 1.0))
            if bound:
                error = row.rates[0] / model.rates(row)[0] - 1.0
                modelled.append((f"launches bound, and modelled{when}", error))
    by_group = scores(sorted(told, key=lambda item: (ELSEWHERE in item[0], "bound" in item[0])))
    whole = [error for group, error in told if group in ("prefill", "decode")]
    bound_by_gpu = score("all, bound by the GPU", whole)
    return [bound_by_gpu, *by_group, *scores(modelled), _two_cards(h200)]


def corun(h200: H200) -> list[Score]:
    """Errors beside others: by regime and phase, then noise, baselines and another card's rows."""
    model = Predictor(h200.sheet, h200.profile)
    together = [row for row in h200.judged if not row.alone]
    first = [row for row in together if row.repeat == 0]
    named = _named(first, _told(model))
    found = [
        *_summed(named),
        *scores(sorted(named)),
        *_noise(together),
        _all("without what pairs say beyond the law", first, _told(_lawful(h200))),
        _all("the host's launches not known, but modelled", first, model.rates),
        _as_if_decode_came_first(first, model),
    ]
    for name, make in BASELINES.items():
        rates = make(h200.fitted, h200.sheet, h200.profile)
        found.append(_all(f"baseline: {name}", first, rates))
    other = [row for row in h200.elsewhere if not row.alone and row.repeat == 0]
    found += _summed(_named(other, _told(model)), ELSEWHERE)
    own = Predictor(h200.sheet, _of_its_phases(h200))
    return found + _summed(_named(other, _told(own)), f"{ELSEWHERE}, by its power limit")


def _summed(named: Sequence[tuple[str, float]], where: str = "") -> list[Score]:
    """The errors of all, of pairs of a prefill and a decode, of other pairs, and of more."""
    return [
        score(f"all{where}", [error for _, error in named]),
        score(
            f"pairs{where}", [e for group, e in named if " x" not in group and ALIKE not in group]
        ),
        score(f"two of one phase{where}", [error for group, error in named if ALIKE in group]),
        score(f"three and four{where}", [error for group, error in named if " x" in group]),
    ]


def _told(model: Predictor) -> Rates:
    """Predictions to which a row tells what its launches took their hosts."""
    return lambda row: model.rates(row, row.hosts)


def _lawful(h200: H200) -> Predictor:
    return Predictor(h200.sheet, replace(h200.profile, neighbours=None))


def _all(group: str, rows: Sequence[StepRow], rates: Rates) -> Score:
    return score(group, [error for _, error in _named(rows, rates)])


def _as_if_decode_came_first(rows: Sequence[StepRow], model: Predictor) -> Score:
    """Rows without priorities, predicted by what those with them say."""
    equals = [replace(row, decode_first=True) for row in rows if not row.decode_first]
    return _all("equals, predicted as if decode had priority", equals, _told(model))


def _of_its_phases(h200: H200) -> Profile:
    """The profile with the power limit of the other card, from its phases alone."""
    rows = [row for row in h200.elsewhere if row.alone]
    start = {"sustained": STAGES[0].start["sustained"]}
    return fit(h200.profile, start, observe(rows, h200.sheet), noise=STAGES[0].noise).profile


def _named(rows: Sequence[StepRow], rates: Rates) -> list[tuple[str, float]]:
    """The error of every lane's step time, by regime and phase."""
    named = []
    for row in rows:
        crowd = f" x{len(row.loads)}" if len(row.loads) > 2 else ""
        if len(row.loads) == 2 and len({load.phase for load in row.loads}) == 1:
            crowd = ALIKE
        for load, measured, rate in zip(row.loads, row.rates, rates(row), strict=True):
            phase = f"{load.phase}{' eager' * load.eager}"
            named.append((f"{row.regime.replace('_', ' ')}{crowd}, {phase}", measured / rate - 1.0))
    return named


def _title(row: StepRow) -> str:
    return f"{row.sharing}: {row.title} {[load.llm for load in row.loads]}"


def _noise(rows: Sequence[StepRow]) -> list[Score]:
    """Each repetition against the mean of the others: all, and those that no host holds back."""
    repeated: dict[str, list[StepRow]] = {}
    for row in rows:
        repeated.setdefault(_title(row), []).append(row)
    errors, calm = [], []
    for group in repeated.values():
        found = [
            fmean(other.rates[lane] for other in group if other is not row) / rate - 1.0
            for row in group
            for lane, rate in enumerate(row.rates)
            if len(group) > 1
        ]
        errors += found
        if not any(_held_back(row) for row in group):
            calm += found
    return [
        score("noise of a repetition", errors),
        score("noise of a repetition, no lane bound by launches", calm),
    ]


def _held_back(row: StepRow) -> bool:
    """Whether its host held a lane back in this repetition."""
    assert row.hosts is not None
    return any(host * rate > BOUND for host, rate in zip(row.hosts, row.rates, strict=True))


def _two_cards(h200: H200) -> Score:
    """The same phases alone on two cards: how far any prediction can be carried."""
    first = {_title(row): row for row in h200.judged if row.alone and not _held_back(row)}
    again = [row for row in h200.elsewhere if row.alone and not _held_back(row)]
    errors = [
        row.rates[0] / first[_title(row)].rates[0] - 1.0 for row in again if _title(row) in first
    ]
    return score("measured again, on another card", errors)


# Ablation -----------------------------------------------------------------------------------------

# What stands for a law without an effect, and the parameters that go with it.
EFFECTS: Mapping[str, Mapping[str, float]] = {
    "the whole law": {},
    "one kernel of each by turns, of both kinds": {"passed": 1.0},
    "no kernels of prompts yield to priority": {"yielded": 0.0},
    "kernels launched for more SMs lose nothing by it": {"narrow": 0.0},
    "no contention on other SMs": {"contention_memory": 0.0, "contention_compute": 0.0},
    "no power shared": {"power_memory": 0.0, "power_compute": 0.0},
    "decodes come no oftener the more they are": {"crowding": 0.0},
    "decodes come no oftener the more prompts there are": {"crowding_prompts": 0.0},
}
EFFECTS_IN_TURNS: Mapping[str, Mapping[str, float]] = {
    "in turns: the whole law": {},
    "in turns: the clock does not rise": {"clock_relief": 0.0},
    "in turns: switching is free": {"switch": 0.0},
    "in turns: no turn is held through launch gaps": {"slice_hold": 0.0},
}


def ablation(h200: H200) -> list[Score]:
    """Held-out errors of the regimes where their law is fitted anew without an effect.

    What pairs say beyond the law makes up for a part of what it lacks: where they are learnt from,
    each is given without and with it.
    """
    beside_each_other, in_turns = STAGES[-1], STAGES[-2]
    return [
        *_ablated(h200, beside_each_other, EFFECTS),
        *_ablated(h200, in_turns, EFFECTS_IN_TURNS),
    ]


def _ablated(h200: H200, stage: Stage, effects: Mapping[str, Mapping[str, float]]) -> list[Score]:
    rows = [row for row in h200.fitted if stage.rows(row)]
    judged = [row for row in h200.judged if stage.rows(row) and row.repeat == 0]
    pairs = pairs_of(rows, h200.sheet, h200.profile)
    found = []
    for name, fixed in effects.items():
        base = replace(h200.profile.with_values(**fixed), neighbours=None)
        start = {key: value for key, value in stage.start.items() if key not in fixed}
        done = fit(base, start, beside(rows, h200.sheet, base), noise=NOISE_BESIDE, title=name)
        told = {name: done.profile}
        if stage.learns:
            told[f"{name}; with pairs beyond it"] = with_neighbours(done.profile, pairs)[0]
        for what, profile in told.items():
            found.append(_all(what, judged, _told(Predictor(h200.sheet, profile))))
    return found
