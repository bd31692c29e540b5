"""Measured steps as observations: what was measured, and how a profile predicts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.catalogue import llm as llm_named
from splitwiser.models.gpu import Gpu
from splitwiser.models.profile import Profile
from splitwiser.models.sharing import sharing_for
from splitwiser.models.work import MIXED_LAUNCHES, coefficients
from splitwiser.validate.calibration.neighbours_fit import Pair
from splitwiser.validate.calibration.observations import Observations
from splitwiser.validate.calibration.points import Load
from splitwiser.validate.calibration.steps import Predictor, StepRow

Floats = NDArray[np.float64]

SPATIAL = ("mps", "streams", "green_contexts")
SLOW_LAUNCH = 8e-5  # s a kernel: hosts were seen at half their speed for seconds at a time
BOUND = 0.9  # of a step's time: launches that take as much of it bound it


def whole(row: StepRow) -> bool:
    """Whether a phase had all SMs to itself."""
    return row.alone and row.shares[0] == 1.0


def bound_by_launches(row: StepRow) -> bool:
    """Whether its host held a phase back, as far as its row tells."""
    return row.hosts is not None and row.hosts[0] * row.rates[0] > BOUND


def pairs_of(rows: Sequence[StepRow], gpu: Gpu, profile: Profile) -> list[Pair]:
    """The rows of two lanes at once, with what each asked and how fast it was, alone being 1."""
    model = Predictor(gpu, profile, rows)
    found = []
    for row in rows:
        if len(row.loads) == 2 and row.sharing in SPATIAL:
            demands = model.demands(row, hosts_of(row, gpu))
            rates = [
                min(1.0, rate * demand.seconds)
                for rate, demand in zip(row.rates, demands, strict=True)
            ]
            found.append(Pair(row.sharing, row.decode_first, demands, rates))
    return found


def observe(rows: Sequence[StepRow], gpu: Gpu) -> Observations:
    """The seconds of every lane's step, and how a profile predicts them."""

    def predict(profile: Profile) -> Floats:
        model = Predictor(gpu, profile, rows)
        return np.array(
            [1.0 / rate for row in rows for rate in model.rates(row, hosts_of(row, gpu))]
        )

    return _observations(rows, predict)


def beside(rows: Sequence[StepRow], gpu: Gpu, alone: Profile) -> Observations:
    """The same, for profiles that differ from *alone* in how tasks share the device only.

    What each step asks of its share is worked out once, so that a prediction is cheap.
    """
    model = Predictor(gpu, alone, rows)
    demands = [model.demands(row, hosts_of(row, gpu)) for row in rows]

    def predict(profile: Profile) -> Floats:
        kinds = {(row.sharing, row.decode_first) for row in rows}
        laws = {kind: sharing_for(kind[0], profile, decode_first=kind[1]) for kind in kinds}
        seconds = []
        for row, asked in zip(rows, demands, strict=True):
            rates = laws[row.sharing, row.decode_first].rates(asked)
            seconds += [each.seconds / rate for each, rate in zip(asked, rates, strict=True)]
        return np.array(seconds)

    return _observations(rows, predict)


def _observations(rows: Sequence[StepRow], predict: Callable[[Profile], Floats]) -> Observations:
    measured = [1.0 / rate for row in rows for rate in row.rates]
    groups = [f"{group_of(row)}, {load.phase}" for row in rows for load in row.loads]
    titles = [title_of(row, place) for row in rows for place in range(len(row.loads))]
    return Observations(np.array(measured), groups, titles, predict)


def hosts_of(row: StepRow, gpu: Gpu) -> list[float | None] | None:
    """The seconds that the launches of each lane's step take; None where the model tells.

    Hosts launch at speeds that differ from one second to the next. Where a row tells the
    time of its launches, that is taken; where it does not, a lane that the host may hold back is
    taken to have been held back, and tells only what it did to the others.
    """
    if gpu.name == "cpu":
        return None
    if row.hosts is not None:
        return list(row.hosts)
    if row.alone:
        return None
    return [
        min(1.0 / rate, SLOW_LAUNCH * launches(load)) if load.prompts or load.eager else 0.0
        for load, rate in zip(row.loads, row.rates, strict=True)
    ]


def launches(load: Load) -> float:
    """About how many kernels a step launches, or what takes its host as long."""
    c = coefficients(llm_named(load.llm))
    return c.dense_kernels + (MIXED_LAUNCHES * c.layers if load.prompts and load.batch else 0.0)


def title_of(row: StepRow, place: int) -> str:
    """What names the lane at *place* of a row; repetitions share it."""
    return f"{row.sharing}: {row.title}, {row.loads[place].llm.split('/')[-1]}, lane {place}"


def group_of(row: StepRow) -> str:
    if row.alone:
        if row.shares[0] == 1.0 and row.sharing not in SPATIAL:
            return "alone"
        on_a_share = " on a share" if row.shares[0] < 1.0 else ""
        return f"alone{on_a_share}, {row.sharing.replace('_', ' ')}"
    crowd = "" if len(row.loads) == 2 else " of three or more"
    return f"{row.regime.replace('_', ' ')}{crowd}"
