"""What a plan answers: deployments with their rates, what limits each, and those without a rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from splitwiser.models.memory import MemoryPlan
from splitwiser.sim.deployment import Deployment
from splitwiser.sim.search import Capacity
from splitwiser.sim.trial import Trial

PREEMPTED = 0.01  # of the requests: memory is then what is short
CROWDED = 0.1  # of the busy time


@dataclass(frozen=True, slots=True)
class Limit:
    """What breaks first beyond a capacity, seen at `rate` (requests/s), 10 % above it.

    `breaks` is the objective that most requests miss there ("ttft", "tpot", "e2el"), or
    "throughput" where the deployment cannot complete requests faster, whatever the objectives.
    `cause` is "KV memory" (preemptions, or a pool that is full for a tenth of the time),
    "max_num_seqs" (batches at that size), "static batches" (requests wait for the batch before
    theirs to end) or "GPU time". `missed` holds the share that misses each objective, `latencies`
    p50, p90 and p99 in seconds by metric, `preempted` the share of requests that lost their KV
    blocks at least once.
    """

    breaks: str
    cause: str
    rate: float
    attainment: float
    missed: Mapping[str, float]
    latencies: Mapping[str, Mapping[str, float]]
    preempted: float

    @classmethod
    def of(cls, found: Capacity, deployment: Deployment) -> Limit:
        """Read the limit from the trial beyond a capacity."""
        trial = found.beyond
        worst = max(trial.missed, key=lambda name: trial.missed[name])
        return cls(
            "throughput" if found.saturated else worst,
            _cause(trial, deployment),
            trial.rate,
            trial.attainment,
            trial.missed,
            trial.latencies,
            trial.preempted,
        )

    def __str__(self) -> str:
        if self.breaks == "throughput":
            what = "completions cannot keep up with arrivals"
        else:
            p90 = self.latencies[self.breaks]["p90"] * 1e3
            what = f"{self.missed[self.breaks]:.0%} miss {self.breaks} (p90 {p90:.4g} ms)"
        preempted = f"; {self.preempted:.1%} preempted" if self.preempted else ""
        return f"at {self.rate:.3g}/s {what}: short of {self.cause}{preempted}"


def _cause(trial: Trial, deployment: Deployment) -> str:
    if trial.preempted >= PREEMPTED or trial.kv_full >= CROWDED:
        return "KV memory"
    if any(group.scheduler == "static" for group in deployment.workers):
        return "static batches"
    return "max_num_seqs" if trial.batch_full >= CROWDED else "GPU time"


@dataclass(frozen=True, slots=True)
class Row:
    """One deployment's answer.

    `rate` is the highest request rate (1/s) that meets the objectives, `low` and `high` its
    confidence limits; `attainment` and `latencies` (p50, p90 and p99 in seconds by metric) hold
    there, and `state` says whether the run was in a steady state. `output_throughput` (tokens/s)
    and `cost` (dollars per million output tokens) are those of that rate in the long run. `limit`
    says what breaks first beyond it; `saturation` is the rate of completions while requests are
    always waiting. `basis` names the requests that the number rests on, and `estimated` says that
    it was carried over from a part of the trace to the whole. `replications` are the rates found on
    resampled traces, where there were any; the confidence limits then rest on them.
    """

    name: str
    deployment: Deployment
    memory: MemoryPlan
    rate: float
    low: float
    high: float
    attainment: float
    latencies: Mapping[str, Mapping[str, float]]
    state: str
    output_throughput: float
    cost: float
    limit: Limit
    saturation: float
    basis: str
    estimated: bool
    simulations: int
    replications: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A deployment that does not fit (`memory` is None), or meets the objectives at no rate."""

    name: str
    deployment: Deployment
    reason: str
    memory: MemoryPlan | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer: deployments by falling rate, those without one, and what was asked.

    `goodput` holds the objectives in seconds by metric, `profile_kind` is "data sheet" or
    "fitted". `notes` says what was done to the traffic. `partial` says that the search was
    interrupted; what it had found is there.
    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    goodput: Mapping[str, float]
    target: float
    confidence: float
    model: str
    gpu: str
    price_per_hour: float
    profile: str
    profile_kind: str
    traffic: str
    requests: int
    notes: tuple[str, ...] = ()
    partial: bool = False

    @property
    def winner(self) -> Row | None:
        """The deployment with the highest rate; None where none has one."""
        return self.rows[0] if self.rows else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the units of the fields; a latency without a sample is None."""
        from splitwiser.sim.result import plain

        document: dict[str, Any] = plain(asdict(self))
        for row, entry in zip(self.rows, document["rows"], strict=True):
            entry["limit"]["text"] = str(row.limit)
        return document
