"""The capacity of a deployment: the highest rate at which its requests meet their objectives.

The search plays one and the same trace at every rate and for every deployment (common random
numbers), scaling its arrivals. The attainment falls with the rate, in steps; the root is
bracketed, the bracket halved or cut by regula falsi until it is within the tolerance, and its
lower end is the answer: a rate that was simulated, and met the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, inf, log, sqrt

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile, profile_for
from splitwiser.sim.deployment import Deployment
from splitwiser.sim.objectives import check_goodput
from splitwiser.sim.physics import Physics
from splitwiser.sim.trial import PARTS, Experiment, Saturation, Trial
from splitwiser.traces.trace import Trace

TOLERANCE = 0.01  # of the rate
MOST_STEPS = 8  # of 10 % each, to a confidence limit
NEAR = 0.9  # of the saturation rate: above, a growing number in the system is a backlog
OVERLOADED = -0.1  # the margin of an overload; any negative number serves
BEYOND = 1.1  # times the capacity: where one looks for what breaks first
LEAST_REQUESTS = 2 * PARTS + 2  # two in each part, after the warm-up
IDLE = 1e-3  # of the saturation rate: bursts that fail even there are no matter of the rate


class Unattainable(ValueError):  # noqa: N818 - as DoesNotFit: the name says what is wrong
    """No rate meets the objectives; the message says which one fails, and by how much."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The highest rate (requests/s) with its confidence limits, the trials there and 10 % beyond.

    `saturation` is the rate of completions while requests are always waiting. No rate above it is
    called a capacity, nor one within 10 % of it at which the number in the system keeps growing
    (`splitwiser.sim.stats.steady`), whatever a finite trace attains: a longer one would not.
    `saturated` says that this, and not an objective, sets the rate.
    """

    rate: float
    low: float
    high: float
    saturated: bool
    saturation: float
    trial: Trial
    beyond: Trial
    requests: int
    simulations: int


def capacity(
    deployment: Deployment,
    trace: Trace,
    llm: Llm,
    gpu: Gpu,
    profile: Profile | None = None,
    *,
    goodput: Mapping[str, float],
    target: float = 0.9,
    confidence: float = 0.95,
    guess: float | None = None,
    tolerance: float = TOLERANCE,
    physics: Physics | None = None,
) -> Capacity:
    """The highest rate at which a share *target* of the requests meets every objective.

    *goodput* holds seconds by metric (`parse_goodput`). The first 5 % of the requests do not count
    (they find an empty system). Between the confidence limits the attainment differs from the
    target by no more than its t interval at level *confidence*. That comes from batch means (Law,
    Simulation Modeling and Analysis, 2015, sec. 9.5.3): 20 consecutive parts of the trace, the
    same at every rate, stand for replications, so that it holds the trace's own ups and downs. The
    limits are interpolated between rates that were simulated. The search ends at a relative
    *tolerance* of the rate (rates have three digits, so 1 % is about the least) and starts from
    *guess*.

    Raises `Unattainable` where even requests alone on the GPU, or nearly so, miss an objective,
    `DoesNotFit`, and ValueError for a trace without a rate to scale.
    """
    check_scalable(trace)
    check_goodput(goodput)
    for name, share in (("target", target), ("confidence", confidence)):
        if not 0 < share < 1:
            raise ValueError(f"{name} = {share}: a share above 0 and below 1")
    profile = profile if profile is not None else profile_for(gpu.name)
    experiment = Experiment(deployment, trace, llm, gpu, profile, goodput, physics)
    search = _Search(experiment, target, confidence)
    rate, saturated = search.root(guess, tolerance)
    trial, beyond = search.at(rate), search.at(_grid(rate * BEYOND))
    low, high = search.limits(rate, saturated)
    return Capacity(
        rate,
        low,
        high,
        saturated,
        search.saturation.rate,
        trial,
        beyond,
        len(trace),
        search.simulations,
    )


def check_scalable(trace: Trace) -> None:
    """Raise ValueError, in one line, for a trace that has no arrival rate to search over."""
    if trace.max_concurrency is not None:
        raise ValueError(
            f"{trace.name}: a closed loop (max_concurrency = {trace.max_concurrency}) has no "
            "arrival rate to scale; leave the limit out"
        )
    if trace.rate == inf:
        raise ValueError(
            f"{trace.name}: all {len(trace)} requests arrive at once, so there is no rate to "
            "scale; give a finite request rate"
        )
    if len(trace) < LEAST_REQUESTS:
        raise ValueError(
            f"{trace.name}: {len(trace)} requests are too few to search for a capacity; "
            f"{LEAST_REQUESTS} are the least"
        )


class _Search:
    """The trials of one experiment, by rate; rates lie on a grid (`_grid`)."""

    def __init__(self, experiment: Experiment, target: float, confidence: float) -> None:
        from scipy.special import stdtrit

        self._experiment = experiment
        self._target = target
        self._t = float(stdtrit(PARTS - 1, (1 + confidence) / 2))
        self._trials: dict[float, Trial] = {}
        self.saturation: Saturation = experiment.saturation()
        self.simulations = 1
        if not self.saturation.rate:
            self._check_alone()

    def at(self, rate: float) -> Trial:
        """The trial at a rate of the grid."""
        trial = self._trials.get(rate)
        if trial is None:
            trial = self._trials[rate] = self._experiment.at(rate)
            self.simulations += 1
        return trial

    def margin(self, rate: float, errors: float = 0.0) -> float:
        """How far the attainment, moved by *errors* of its standard errors, lies above the target.

        An overload is below it, whatever a finite trace attains.
        """
        trial = self.at(rate)
        margin = trial.attainment + errors * trial.standard_error - self._target
        return min(margin, OVERLOADED) if self._overloads(trial) else margin

    def _overloads(self, trial: Trial) -> bool:
        """Whether the backlog grows; far below saturation it is the traffic itself that grows."""
        return trial.state == "overload" and trial.rate > NEAR * self.saturation.rate

    # The root ---------------------------------------------------------------------------------

    def root(self, guess: float | None, tolerance: float) -> tuple[float, bool]:
        """The capacity, and whether it is throughput that sets it."""
        most = _grid(self.saturation.rate)
        low, high = self._bracket(guess, most)
        if low == most:
            return most, True
        low, high = narrow(self.margin, low, high, tolerance)
        return low, self.at(high).attainment >= self._target

    def _bracket(self, guess: float | None, most: float) -> tuple[float, float]:
        """A rate that meets the target and one that fails; both *most* where even that meets it."""
        factor = 1.3 if guess is None else 1.03
        low = high = rate = min(most, _grid(0.7 * most if guess is None else guess))
        checked = False
        if self.margin(rate) >= 0:
            while low < most:
                high = min(most, _grid(low * factor))
                if self.margin(high) < 0:
                    return low, high
                low, factor = high, factor**2
            return most, most
        while True:
            # The further below the target, the longer the step.
            low = _grid(high / max(factor, 1 - 0.6 * self.margin(high)))
            if not checked and low < 0.25 * most:
                self._check_alone()
                checked = True
            if low < IDLE * most:
                raise self._unattainable(self.at(high), f"even at {high:g} requests/s")
            if self.margin(low) >= 0:
                return low, high
            high, factor = low, factor**1.5

    def _check_alone(self) -> None:
        trial = self._experiment.alone()
        self.simulations += 1
        if trial.attainment < self._target:
            raise self._unattainable(trial, "even with the GPU to themselves")

    def _unattainable(self, trial: Trial, when: str) -> Unattainable:
        if trial.rejected > 1 - self._target:
            return Unattainable(
                f"{trial.rejected:.1%} of the requests can never be served: "
                "they are too long for the model's context or the KV pool"
            )
        worst = max(trial.missed, key=lambda name: trial.missed[name])
        limit = self._experiment.objectives[worst] * 1e3
        return Unattainable(
            f"{worst}: {when}, {trial.missed[worst]:.1%} of the requests miss {limit:g} ms "
            f"(p90 {trial.latencies[worst]['p90'] * 1e3:.4g} ms)"
        )

    # Its confidence limits --------------------------------------------------------------------

    def limits(self, rate: float, saturated: bool) -> tuple[float, float]:
        """The rates between which the attainment cannot be told from the target."""
        low = self._limit(rate, -self._t, 1 / BEYOND)
        if saturated:
            spread = self._t * self.saturation.standard_error
            return min(low, max(0.0, rate - spread)), max(rate, self.saturation.rate + spread)
        return low, self._limit(rate, self._t, BEYOND)

    def _limit(self, rate: float, errors: float, factor: float) -> float:
        """Walk from the capacity to where the moved margin changes its sign, and interpolate."""
        above = self.margin(rate, errors) >= 0
        if above != (errors > 0):  # the interval has no width on this side
            return rate
        here = rate
        for _ in range(MOST_STEPS):
            there = self._next(here, factor)
            if (self.margin(there, errors) >= 0) != above:
                low, high = min(here, there), max(here, there)
                return interpolate(lambda known: self.margin(known, errors), low, high)
            here = there
        return here

    def _next(self, rate: float, factor: float) -> float:
        """A rate about *factor* away, one that was visited if possible."""
        known = [
            (abs(log(visited / rate) / log(factor) - 1), visited)
            for visited in self._trials
            if 0.4 <= log(visited / rate) / log(factor) <= 2
        ]
        return min(known)[1] if known else _grid(rate * factor)


def narrow(
    margin: Callable[[float], float], low: float, high: float, tolerance: float = TOLERANCE
) -> tuple[float, float]:
    """Narrow a bracket, margin(low) >= 0 > margin(high), to a relative width of *tolerance*.

    Regula falsi on the logarithm of the rate, each guess moved towards the farther end so that it
    falls beyond the root and takes most of the bracket with it; a bisection follows where that
    failed. The rates tried lie on the grid; where none is left between the ends, these are the
    answer.
    """
    halve = False
    while high > low * (1 + tolerance):
        width = high / low
        if halve:
            rate = sqrt(low * high)
        else:
            rate = interpolate(margin, low, high)
            nearer_low = rate * rate < low * high
            rate *= 1 + 0.4 * tolerance if nearer_low else 1 - 0.4 * tolerance
        rate = _grid(min(max(rate, low * width**0.1), low * width**0.9))
        if not low < rate < high:
            rate = _grid(sqrt(low * high))
            if not low < rate < high:
                break
        if margin(rate) >= 0:
            low = rate
        else:
            high = rate
        halve = high / low > sqrt(width)
    return low, high


def interpolate(margin: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a straight line between two rates (in their logarithm)."""
    below, above = margin(low), margin(high)
    if below <= above:
        return low
    share = min(1.0, max(0.0, below / (below - above)))
    return exp(log(low) + share * log(high / low))


def _grid(rate: float) -> float:
    """A rate to three digits, as it is printed: whoever types it gets the same simulation."""
    return float(f"{rate:.3g}")
