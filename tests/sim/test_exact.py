"""The fast simulator against the slow one of `reference`: the same tokens at the same times."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from math import inf
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.random import Generator
from reference import simulate_slowly
from reference_world import Request

from splitwiser.models.cost import CostModel, StepCost
from splitwiser.models.gpu import Gpu, gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile, profile_for
from splitwiser.sim.decoding import Costs
from splitwiser.sim.deployment import PRESETS, Deployment, Workers
from splitwiser.sim.physics import Physics, memory_plan
from splitwiser.sim.result import OUTCOMES, Result
from splitwiser.sim.simulate import simulate
from splitwiser.traces.prefix import PrefixBlocks
from splitwiser.traces.trace import Trace

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
    max_context=200,
    gated_mlp=True,
    tied_embeddings=False,
)
GPUS = ("a10", "a100-80gb", "h200")
EXACT = settings(
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Uneven(NamedTuple):
    """Costs that vary a little with the prompts and, for decode processes, from one to the next.

    Processes bound by the host would step in time, and then rounding would decide who comes first.
    """

    costs: Costs
    decode_factor: float

    def step(
        self, tokens: float, outputs: float, pairs: float, prompt_kv: float, decodes: float
    ) -> StepCost:
        cost = self.costs.step(tokens, outputs, pairs, prompt_kv, decodes)
        return self._longer(cost, 1 + pairs * 0.618034 % 1 / 50)

    def decode(self, batch: int) -> StepCost:
        return self._longer(self.costs.decode(batch), self.decode_factor)

    def _longer(self, cost: StepCost, factor: float) -> StepCost:
        times = ("gpu", "gpu_per_token", "host", "overhead")
        return cost._replace(**{name: getattr(cost, name) * factor for name in times})


class Case(NamedTuple):
    """All that a simulation depends on."""

    trace: Trace
    deployment: Deployment
    llm: Llm
    gpu: Gpu
    profile: Profile
    until: float | None = None

    @property
    def physics(self) -> Physics:
        physics = Physics.of(self.deployment, self.llm, self.gpu, self.profile)
        process = count()

        def costs(group: Workers) -> Costs:
            # Engines stay equal in this: which of two idle ones takes a request must not matter.
            late = next(process) if group.phase == "decode" else 0
            return Uneven(physics.costs(group), 1 + late / 97)

        return Physics(costs, physics.sharing)

    def fast(self) -> Result:
        return simulate(
            self.trace,
            self.deployment,
            self.llm,
            self.gpu,
            self.profile,
            until=self.until,
            physics=self.physics,
        )

    def slow(self, pools: list[int]) -> list[Request]:
        deployment, llm, sheet, profile = self[1:5]
        return simulate_slowly(
            self.trace,
            deployment,
            llm,
            sheet,
            profile,
            memory_plan(deployment, llm, sheet, profile),
            pools,
            self.physics,
            inf if self.until is None else self.until,
        )


def assert_same(case: Case, unfinished: bool = False) -> tuple[Result, list[Request]]:
    """Run both simulators, and compare every request and every token."""
    fast = case.fast()
    slow = case.slow(fast.meta["num_gpu_blocks"])
    frontend = 0.0
    if case.deployment.start != "staggered":
        frontend = case.deployment.tokenize_s + case.profile.value("request_overhead")
    tokens = fast.timeline.token_times(np.arange(len(fast)), fast.first_token, fast.finished)
    for i in range(len(fast)):
        request = slow[i]
        place = f"request {i}"
        assert int(fast.preemptions[i]) == request.preemptions, place
        assert int(fast.reused[i]) == request.reused, place
        outcome = OUTCOMES[fast.outcome[i]]
        if request.outcome == "in system":
            assert outcome == ("waiting" if np.isnan(request.scheduled) else "running"), place
        else:
            assert outcome == request.outcome, place
        close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12, "err_msg": place}
        np.testing.assert_allclose(fast.arrival[i] + frontend, request.arrival, **close)
        np.testing.assert_allclose(fast.scheduled[i], request.scheduled, **close)
        times = np.array(request.times)
        np.testing.assert_equal(len(tokens.of(i)), len(times), place)
        np.testing.assert_allclose(tokens.of(i), times, **close)
    if case.until is None and not unfinished:
        assert all(request.outcome != "in system" for request in slow), "a request never ends"
    return fast, slow


# Cases ------------------------------------------------------------------------------------------


def random_trace(rng: Generator, requests: int, gap: float, longest: int) -> Trace:
    """Prompts up to `longest` tokens, Poisson arrivals (all at once where `gap` is 0)."""
    arrival = np.cumsum(rng.exponential(gap, requests)) if gap else np.zeros(requests)
    outputs = rng.integers(1, rng.choice([2, 12, 60, 120]), requests, endpoint=True)
    return Trace(arrival, rng.integers(1, longest, requests, endpoint=True), outputs)


def with_prefixes(rng: Generator, trace: Trace, block_tokens: int) -> Trace:
    """Give every prompt the hashes of one of a few families that share their beginnings."""
    rows = []
    for tokens in trace.prompt_tokens:
        family, branch = rng.integers(3), rng.integers(3)
        blocks = -(-int(tokens) // block_tokens)
        rows.append(
            [
                family * 1000 + k if k < 3 else family * 1000 + branch * 100 + k
                for k in range(blocks)
            ]
        )
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    ids = np.array([block for row in rows for block in row], dtype=np.int64)
    return replace(trace, prefix=PrefixBlocks(offsets, ids, block_tokens))


def eager_floor(rng: Generator, sheet: Gpu, profile: Profile, llm: Llm) -> Profile:
    """A launch time with which a decode step becomes bound by the GPU while its contexts grow."""
    cost = CostModel(llm, sheet, profile, eager=True).decode(int(rng.integers(1, 6)))
    host = cost.gpu + cost.gpu_per_token * rng.integers(1, 600)
    return profile.with_values(launch_host=host / cost.kernels)


def deployments(rng: Generator, preset: str) -> Deployment:
    """The preset with options drawn at random; a small pool forces preemption."""

    def pick(*options: Any) -> Any:
        return options[int(rng.integers(len(options)))]

    deployment = PRESETS[preset]()
    block_size = pick(1, 4, 16)
    tokens = pick(208, 320, 640, 6400)  # in the pool; a sequence is at most 200
    options: dict[str, Any] = {
        "block_size": block_size,
        "num_gpu_blocks": -(-tokens // block_size) + 2,
        "order": pick("fcfs", "shortest_prompt"),
        "preemption": pick("recompute", "swap"),
        "enforce_eager": pick(True, False),
        "max_num_seqs": pick(1, 2, 4, 64),
        "max_num_batched_tokens": pick(16, 64, 150, 1000),
        "start": pick("ready", "ready", "cold", "staggered"),
        "startup_s": pick(0.0, 0.003),
        "tokenize_s": pick(0.0, 0.0002),
    }
    if preset in ("replicas", "pipeline"):
        options["processes"] = pick(1, 2, 3)
        options["routing"] = pick("round_robin", "contiguous", "shared_queue")
        # Which of two idle engines takes a request is open, and their caches differ.
        options["prefix_caching"] = options["routing"] != "shared_queue"
        options["sharing"] = pick("mps", "time_slice", "streams")
        options["scheduler"] = "static" if preset == "pipeline" else pick("continuous", "chunked")
    if preset == "split":
        p, d = pick(1, 2), pick(1, 2, 3)
        options["workers"] = (
            Workers("prefill", p, sm_percent=pick(None, 75)),
            Workers("decode", d, sm_percent=pick(None, 25)),
        )
        options["kv"] = pick("shared", "separate")
    deployment = replace(deployment, workers=options.pop("workers", deployment.workers))
    deployment = deployment.override(**options)
    chunked = all(group.scheduler == "chunked" for group in deployment.workers)
    if chunked and deployment.routing != "shared_queue":
        deployment = replace(deployment, async_scheduling=pick(False, True))
    return deployment


def random_case(preset: str, seed: int) -> Case:
    """A small simulation under a preset; the same one for the same seed."""
    rng = np.random.default_rng(seed)
    sheet = gpu(GPUS[int(rng.integers(len(GPUS)))])
    deployment = deployments(rng, preset)
    gap = float(rng.choice([0.0, 1e-4, 1e-3, 5e-3]))
    longest = int(rng.choice([20, 100, 215]))
    trace = random_trace(rng, int(rng.integers(2, 24)), gap, longest)
    if rng.random() < 0.4:
        trace = with_prefixes(rng, trace, 16)
    if rng.random() < 0.3:
        trace = replace(trace, max_concurrency=int(rng.integers(1, 8)))
    llm = replace(SMALL, sliding_window=int(rng.integers(1, 100))) if rng.random() < 0.3 else SMALL
    # When a run of many steps decided on the next is known by their mean: test_ahead.py.
    profile = profile_for(sheet.name).with_values(decided_ahead=0.0)
    if deployment.enforce_eager:
        profile = eager_floor(rng, sheet, profile, llm)
    if rng.random() < 0.5:
        profile = profile.with_values(handover=0.0)
    if rng.random() < 0.5:
        profile = profile.with_values(request_overhead=4e-4, sequence_overhead=1e-5)
    until = float(rng.uniform(0, 0.05)) if rng.random() < 0.2 else None
    return Case(trace, deployment, llm, sheet, profile, until)


@pytest.mark.parametrize("preset", PRESETS)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=129)  # a sequence swapped out fits again at once, though its neighbours lack a block
@example(seed=263)  # preemption frees more than the next step needs
@example(seed=54)  # a request that is refused makes room while its line's engine is busy
@example(seed=299)  # memory comes free while a process on its way to wait has not waited yet
@example(seed=1019)  # two decoders wake at once, and the first reserves all that is left
@example(seed=1608)  # another engine takes the head of a shared line
@settings(EXACT, max_examples=50)
def test_every_token_comes_when_the_slow_simulator_says(preset: str, seed: int) -> None:
    """Jumping over steps gives the token times of making every step."""
    assert_same(random_case(preset, seed))
