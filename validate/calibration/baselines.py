"""Other models of steps beside each other, fitted to the same rows where they have parameters.

Each returns, for rows to fit, what predicts the steps per second of a row's lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.cost import Demand
from splitwiser.models.gpu import Gpu
from splitwiser.models.kernels import saturation
from splitwiser.models.profile import Profile
from splitwiser.validate.calibration.observed_steps import hosts_of
from splitwiser.validate.calibration.steps import Predictor, StepRow

Floats = NDArray[np.float64]
Rates = Callable[[StepRow], list[float]]
Features = Callable[[Demand, Sequence[Demand]], list[float]]


def ignored(rows: Sequence[StepRow], sheet: Gpu, profile: Profile) -> Rates:
    """Contention ignored: each lane as if alone on its share."""
    model = Predictor(sheet, profile)
    return lambda row: [1.0 / demand.seconds for demand in model.demands(row, hosts_of(row, sheet))]


def roofline(rows: Sequence[StepRow], sheet: Gpu, profile: Profile) -> Rates:
    """DuetServe's form: the longer of FLOP and bytes on the SMs of the share, no contention.

    t = max(F/Pi(S), B/beta(S)); rates on a share as the profile's. Its paper measures Pi and beta for
    each share; ours are the profile's efficiencies and saturation.
    """
    model = Predictor(sheet, profile)
    value = profile.value

    def rates(row: StepRow) -> list[float]:
        found = []
        for demand in model.demands(row, hosts_of(row, sheet)):
            share = demand.sm_share
            peak = value("gemm_efficiency") * saturation(
                share, value("compute_knee"), value("compute_bend")
            )
            reach = value("memory_efficiency") * saturation(
                share, value("bandwidth_knee"), value("bandwidth_bend")
            )
            found.append(1.0 / max(demand.compute / min(peak, share), demand.memory / reach))
        return found

    return rates


def gpulet(rows: Sequence[StepRow], sheet: Gpu, profile: Profile) -> Rates:
    """gpulet's linear interference: slow-down from both sides' use of compute and of DRAM.

    slow = a1 c_me + a2 c_you + a3 m_me + a4 m_you + a5 (Choi et al., ATC 2022; L2 in place of
    compute there). Several neighbours' uses are summed. One set of coefficients for each regime.
    """

    def features(own: Demand, others: Sequence[Demand]) -> list[float]:
        def use(demand: Demand) -> tuple[float, float]:
            return demand.compute / demand.seconds, demand.memory / demand.seconds

        mine, yours = use(own), np.sum([use(other) for other in others], axis=0)
        return [*mine, *map(float, yours), 1.0]

    return _regressed(rows, sheet, profile, features, logarithms=False)


def linear(rows: Sequence[StepRow], sheet: Gpu, profile: Profile) -> Rates:
    """Linear regression of the logarithm of the slow-down on those of both times and shares."""

    def features(own: Demand, others: Sequence[Demand]) -> list[float]:
        beside = sum(other.seconds for other in others)
        share = sum(other.sm_share for other in others)
        phase = float(own.prompt > 0)
        logs = [np.log(own.seconds), np.log(beside), np.log(own.sm_share), np.log(share)]
        return [*map(float, logs), *(phase * float(log) for log in logs), phase, 1.0]

    return _regressed(rows, sheet, profile, features, logarithms=True)


def _regressed(
    rows: Sequence[StepRow], sheet: Gpu, profile: Profile, features: Features, *, logarithms: bool
) -> Rates:
    model = Predictor(sheet, profile)
    matrix: dict[str, list[list[float]]] = {}
    target: dict[str, list[float]] = {}
    for row in rows:
        demands = model.demands(row, hosts_of(row, sheet))
        for place, (demand, rate) in enumerate(zip(demands, row.rates, strict=True)):
            others = [other for at, other in enumerate(demands) if at != place]
            slow = 1.0 / (rate * demand.seconds)
            matrix.setdefault(row.regime, []).append(features(demand, others))
            target.setdefault(row.regime, []).append(float(np.log(slow)) if logarithms else slow)
    found = {
        regime: np.linalg.lstsq(np.array(lines), np.array(target[regime]), rcond=None)[0]
        for regime, lines in matrix.items()
    }

    def rates(row: StepRow) -> list[float]:
        demands = model.demands(row, hosts_of(row, sheet))
        predicted = []
        for place, demand in enumerate(demands):
            others = [other for at, other in enumerate(demands) if at != place]
            slow = float(np.array(features(demand, others)) @ found[row.regime])
            slow = float(np.exp(slow)) if logarithms else slow
            predicted.append(1.0 / (demand.seconds * max(slow, 1.0)))
        return predicted

    return rates


BASELINES: Mapping[str, Callable[[Sequence[StepRow], Gpu, Profile], Rates]] = {
    "contention ignored": ignored,
    "roofline of the SM share (DuetServe)": roofline,
    "linear interference (gpulet)": gpulet,
    "linear regression": linear,
}
