"""Simulated worlds for the laws: an ordinary small one, and degenerate ones in which queueing
theory knows the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.cost import Demand, StepCost
from splitwiser.models.gpu import Gpu, gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile, profile_for
from splitwiser.sim.deployment import PRESETS, Deployment, Workers
from splitwiser.sim.physics import Physics
from splitwiser.sim.result import Result
from splitwiser.sim.simulate import simulate
from splitwiser.traces.trace import Trace

Floats = NDArray[np.float64]

SMALL = Llm(
    "small",
    "llama",
    layers=4,
    hidden=512,
    heads=8,
    kv_heads=8,
    head_dim=64,
    intermediate=2048,
    vocab=1000,
    max_context=4096,
    gated_mlp=True,
    tied_embeddings=False,
)
ENDLESS = replace(SMALL, layers=1, hidden=64, heads=1, kv_heads=1, max_context=10_000_000)
A100 = gpu("a100-80gb")


def random_trace(seed: int, requests: int = 40, rate: float = 400.0, longest: int = 300) -> Trace:
    """Poisson arrivals (all at once at an infinite rate), prompts and outputs uniform."""
    rng = np.random.default_rng(seed)
    return Trace(
        np.cumsum(rng.exponential(1 / rate, requests)),
        rng.integers(1, longest, requests, endpoint=True),
        rng.integers(1, 60, requests, endpoint=True),
    )


def small(preset: str, **options: object) -> Deployment:
    """A preset with a pool of 100 blocks, which makes it preempt now and then."""
    return PRESETS[preset]().override(**{"num_gpu_blocks": 100, "startup_s": 0.01, **options})


def serve(
    trace: Trace,
    deployment: Deployment,
    until: float | None = None,
    llm: Llm = SMALL,
    sheet: Gpu = A100,
    physics: Physics | None = None,
) -> Result:
    """Simulate with the built-in profile."""
    profile = profile_for(sheet.name)
    return simulate(trace, deployment, llm, sheet, profile, until=until, physics=physics)


# Degenerate worlds ------------------------------------------------------------------------------


class SecondsPerToken(NamedTuple):
    """A prompt costs a time in proportion to its tokens; nothing else costs anything."""

    seconds: float

    def step(
        self, tokens: float, outputs: float, pairs: float, prompt_kv: float, decodes: float
    ) -> StepCost:
        return StepCost(tokens * self.seconds, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1)

    def decode(self, batch: int) -> StepCost:
        return StepCost(self.seconds, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1)


class EqualShares:
    """Whoever runs gets the same part of the device."""

    def rates(self, demands: Sequence[Demand]) -> Sequence[float]:
        return [1 / len(demands)] * len(demands)


TOKENS_PER_SECOND = 10_000  # so fine that rounding service times to tokens does not show


def queue(seed: int, rate: float, services: Floats, servers: int = 1) -> Result:
    """One queue with Poisson arrivals at `rate` (1/s) and service times in seconds.

    With several servers they share one device equally: processor sharing, while fewer jobs are
    there than servers.
    """
    rng = np.random.default_rng(seed)
    tokens = np.maximum(1, np.rint(services * TOKENS_PER_SECOND)).astype(np.int64)
    trace = Trace(
        np.cumsum(rng.exponential(1 / rate, len(tokens))), tokens, np.ones(len(tokens), np.int64)
    )
    engine = Workers(processes=servers, max_num_seqs=1, max_num_batched_tokens=1)
    deployment = Deployment(
        "queue",
        (engine,),
        sharing="exclusive" if servers == 1 else "mps",
        routing="shared_queue",
        num_gpu_blocks=20_000,
    )
    profile: Profile = profile_for("h200").with_values(context_bytes=0, activation_factor=0)
    physics = Physics(lambda group: SecondsPerToken(1 / TOKENS_PER_SECOND), EqualShares())
    return simulate(trace, deployment, ENDLESS, gpu("h200"), profile, physics=physics)
