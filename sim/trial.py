"""One trial: what a deployment does with a trace that is played at a given rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile
from splitwiser.sim.deployment import Deployment
from splitwiser.sim.log import STRETCH
from splitwiser.sim.objectives import misses
from splitwiser.sim.physics import Physics
from splitwiser.sim.result import Result
from splitwiser.sim.simulate import simulate
from splitwiser.sim.stats import steady
from splitwiser.traces.trace import MAX_SECONDS, Trace

# The first requests find an empty system, and do not count. The share is fixed, so that the same
# requests count at every rate (common random numbers); MSER-5 would choose others at each.
WARM_UP = 0.05
PARTS = 20  # consecutive parts of the trace that stand for replications (batch means)
FULL_BATCHES = 8  # that the requests should fill, for their completions to tell a rate
FULL = 0.95  # of the KV blocks in use: nothing to speak of can be admitted
ALONE_GAP_S = 1e4  # between two requests, so that none meets another
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Experiment:
    """A deployment, its traffic, its objectives (seconds by metric): a trial but for the rate."""

    deployment: Deployment
    trace: Trace
    llm: Llm
    gpu: Gpu
    profile: Profile
    objectives: Mapping[str, float]
    physics: Physics | None = None

    def at(self, rate: float) -> Trial:
        """Play the trace at *rate* requests/s."""
        return Trial.of(self._play(self.trace.scale(rate / self.trace.rate)), rate, self)

    def alone(self) -> Trial:
        """Serve each request with the GPU to itself."""
        count = len(self.trace)
        gap = min(ALONE_GAP_S, MAX_SECONDS / (count + 1))
        return Trial.of(
            self._play(self.trace.retimed(np.arange(count, dtype=np.float64) * gap)), 1 / gap, self
        )

    def saturation(self) -> Saturation:
        """Let all requests wait from the start, and see how fast they are completed.

        A trace of fewer requests than several full batches is repeated: it would end before the
        batches are full.
        """
        slots = sum(g.max_num_seqs for g in self.deployment.each() if g.phase != "prefill")
        trace = self.trace.retimed(np.zeros(len(self.trace)))
        if len(trace) < FULL_BATCHES * slots:
            trace = trace.take(np.arange(FULL_BATCHES * slots) % len(trace))
        result = self._play(trace)
        return Saturation.of(np.sort(result.finished[~np.isnan(result.finished)]))

    def _play(self, trace: Trace) -> Result:
        return simulate(
            trace, self.deployment, self.llm, self.gpu, self.profile, physics=self.physics
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one rate (requests/s); every share is of the requests that count.

    `attainment` is the share that met all objectives, `parts` the same for consecutive parts of
    the trace, `missed` the share that missed each objective and `rejected` those that were never
    finished; `served` is the share of the trace's output tokens that completed requests got.
    `latencies` holds p50, p90 and p99 by metric, in seconds. `preempted` is the share that lost
    its KV blocks at least once; `kv_full` and `batch_full` are shares of the busy time in which a
    KV pool was full, or a decode batch as large as `max_num_seqs` allows. `state` is the verdict
    of `splitwiser.sim.stats.steady`: "steady", "overload" or "short".
    """

    rate: float
    attainment: float
    parts: tuple[float, ...]
    missed: Mapping[str, float]
    rejected: float
    served: float
    latencies: Mapping[str, Mapping[str, float]]
    preempted: float
    kv_full: float
    batch_full: float
    state: str

    @classmethod
    def of(cls, result: Result, rate: float, experiment: Experiment) -> Trial:
        """Read a trial from the result of its simulation."""
        first = ceil(WARM_UP * len(result))
        late = {name: bad[first:] for name, bad in misses(result, experiment.objectives).items()}
        good = ~np.logical_or.reduce(list(late.values()))
        completed = result.completed[first:]
        wanted = experiment.trace.output_tokens[first:]
        given = result.output_tokens[first:][completed]
        kv_full, batch_full = _crowding(result, experiment.deployment)
        return cls(
            rate=rate,
            attainment=float(good.mean()),
            parts=tuple(float(part.mean()) for part in np.array_split(good, PARTS)),
            missed={name: float(bad.mean()) for name, bad in late.items()},
            rejected=float((~completed).mean()),
            served=float(given.sum() / wanted.sum()),
            latencies={
                name: _percentiles(getattr(result, name)[first:])
                for name in ("ttft", "tpot", "e2el")
            },
            preempted=float((result.preemptions[first:] > 0).mean()),
            kv_full=kv_full,
            batch_full=batch_full,
            state=steady(result),
        )

    @property
    def standard_error(self) -> float:
        """Of the attainment, from its parts (batch means)."""
        return float(np.std(self.parts, ddof=1) / np.sqrt(len(self.parts)))


@dataclass(frozen=True, slots=True)
class Saturation:
    """Completions per second while requests are always waiting, and their standard error."""

    rate: float
    standard_error: float

    @classmethod
    def of(cls, finished: NDArray[np.float64]) -> Saturation:
        """From the sorted completion times of requests that all arrive at 0.

        The first and last tenth, in which the batch fills and empties, do not count. Without any
        completion the rate is 0.
        """
        if not len(finished):
            return cls(0.0, 0.0)
        edges = np.linspace(0.1, 0.9, PARTS + 1) * (len(finished) - 1)
        edges = np.unique(edges.astype(np.int64))
        spans = np.diff(finished[edges])
        if len(spans) < 2 or not spans.sum() > 0:
            return cls(len(finished) / float(finished[-1]), 0.0)
        counts = np.diff(edges)
        rate = float(counts.sum() / spans.sum())
        # A ratio estimate, with its standard error (Cochran, Sampling Techniques, 1977, sec. 6.3).
        spread = float(np.std(counts - rate * spans, ddof=1) / np.sqrt(len(spans)))
        return cls(rate, spread / float(spans.mean()))


def _percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    known = seconds[~np.isnan(seconds)]
    if not len(known):
        return {f"p{q}": float("nan") for q in PERCENTILES}
    values = np.percentile(known, PERCENTILES)
    return {f"p{q}": float(value) for q, value in zip(PERCENTILES, values, strict=True)}


def _crowding(result: Result, deployment: Deployment) -> tuple[float, float]:
    """The shares of the workers' busy time with a full KV pool, and with a full decode batch."""
    columns = dict(zip(STRETCH, result.timeline.stretches.T, strict=True))
    worker = columns["worker"].astype(np.int64)
    seconds = columns["end"] - columns["start"]
    total = float(seconds.sum())
    if not total > 0:
        return 0.0, 0.0
    pools = np.asarray(result.meta["num_gpu_blocks"])
    # Engines have a pool each, in order; the processes of a split share one.
    own = pools[worker] if len(pools) == deployment.processes else np.full(len(worker), pools[-1])
    limits = np.array([group.max_num_seqs for group in deployment.each()])[worker]
    kv = float(seconds[columns["blocks"] >= FULL * own].sum()) / total
    batch = float(seconds[columns["batch"] >= limits].sum()) / total
    return kv, batch
