"""What holds in every simulation, whatever its traffic and deployment."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import A100, SMALL, random_trace, serve, small

from splitwiser.models.cost import CostModel, StepCost
from splitwiser.models.power import Power
from splitwiser.models.profile import profile_for
from splitwiser.models.sharing import sharing_for
from splitwiser.sim import build
from splitwiser.sim.build import Simulation
from splitwiser.sim.decoding import Costs
from splitwiser.sim.deployment import PRESETS, Workers
from splitwiser.sim.device import SharedDevice
from splitwiser.sim.log import STRETCH
from splitwiser.sim.physics import Physics, memory_plan
from splitwiser.sim.result import OUTCOMES, Result
from splitwiser.sim.simulate import simulate

FEW = settings(derandomize=True, deadline=None, max_examples=15)
SEEDS = st.integers(0, 1_000_000)
EVERY_PRESET = pytest.mark.parametrize("preset", PRESETS)


def token_times(result: Result) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return [result.token_times(request) for request in range(len(result))]


# Conservation and causality ---------------------------------------------------------------------


@EVERY_PRESET
@given(seed=SEEDS, share=st.floats(0, 1.2))
@FEW
def test_requests_are_conserved(preset: str, seed: int, share: float) -> None:
    """At any time arrived = completed + rejected + aborted + running + waiting, each as its times
    say.
    """
    trace = random_trace(seed, longest=1800)
    end = float(np.nanmax(serve(trace, small(preset)).finished))
    until = share * end + 1e-9
    result = serve(trace, small(preset), until=until)
    counts = dict(zip(OUTCOMES, np.bincount(result.outcome, minlength=5), strict=True))
    assert len(result) == (trace.arrival <= until).sum() == sum(counts.values())
    assert counts["completed"] == (result.finished <= until).sum()
    begun = ~np.isnan(result.scheduled)
    done = np.isin(result.outcome, [OUTCOMES.index(name) for name in ("completed", "aborted")])
    assert counts["running"] == (begun & ~done).sum()


@EVERY_PRESET
@given(seed=SEEDS, swap=st.booleans(), separate=st.booleans())
@FEW
def test_blocks_are_conserved(preset: str, seed: int, swap: bool, separate: bool) -> None:
    """No pool is ever overdrawn, and when all requests are gone every block is free again."""
    deployment = small(
        preset,
        preemption="swap" if swap else "recompute",
        kv="separate" if separate else "shared",
    )
    profile = profile_for(A100.name)
    simulation = Simulation(
        random_trace(seed, rate=3000.0),
        deployment,
        SMALL,
        memory_plan(deployment, SMALL, A100, profile),
        Physics.of(deployment, SMALL, A100, profile),
        profile,
        A100,
    )
    while simulation.env.peek() < float("inf"):
        simulation.env.step()
        assert all(0 <= pool.free <= pool.total for pool in simulation.pools)
    assert all(pool.free == pool.total for pool in simulation.pools)


@EVERY_PRESET
@given(seed=SEEDS)
@FEW
def test_nothing_happens_before_its_cause(preset: str, seed: int) -> None:
    """arrival <= scheduled <= first token <= ... <= finished, and every token comes after the one
    before.
    """
    result = serve(random_trace(seed), small(preset))
    assert (result.arrival <= result.scheduled).all()
    assert (result.scheduled < result.first_token).all()
    assert (result.first_token <= result.finished).all()
    for times, first, last, tokens in zip(
        token_times(result), result.first_token, result.finished, result.output_tokens, strict=True
    ):
        assert len(times) == tokens
        assert (np.diff(times) > 0).all()
        assert times[0] == first
        assert times[-1] == pytest.approx(last, rel=1e-12)


@pytest.mark.parametrize("preset", ["sequential", "continuous", "chunked"])
@given(seed=SEEDS)
@FEW
def test_no_idle_device_while_work_waits(preset: str, seed: int) -> None:
    """The device of a single process pauses only when nothing is in the system."""
    result = serve(random_trace(seed, rate=60.0), small(preset))
    rows = result.timeline.stretches
    starts, ends = rows[:, STRETCH.index("start")], rows[:, STRETCH.index("end")]
    assert starts[0] == pytest.approx(result.arrival[0])
    for begin, end in zip(ends[:-1], starts[1:], strict=True):
        if end - begin > 1e-9:
            middle = (begin + end) / 2
            assert not ((result.arrival < middle) & (result.finished > middle)).any()


@EVERY_PRESET
@given(seed=SEEDS, limit=st.integers(1, 6))
@FEW
def test_a_closed_loop_keeps_its_limit(preset: str, seed: int, limit: int) -> None:
    """With max_concurrency N never more than N requests are in the system, and N while enough are
    left.
    """
    trace = replace(
        random_trace(seed, rate=float("inf")), arrival=np.zeros(40), max_concurrency=limit
    )
    result = serve(trace, small(preset))
    for time in np.unique(np.concatenate((result.arrival, result.finished))):
        inside = int(((result.arrival <= time) & (result.finished > time)).sum())
        assert inside <= limit
        left = int((result.arrival > time).sum())
        assert inside == limit or not left


# Symmetry and scale -----------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["mps", "time_slice", "streams"])
@pytest.mark.parametrize("processes", [2, 3, 5])
def test_equal_processes_progress_equally(sharing: str, processes: int) -> None:
    """Engines that get the same requests finish them at the same times."""
    one = random_trace(11, requests=12)
    copies = np.repeat(np.arange(len(one)), processes)
    trace = one.take(copies)
    deployment = small(
        "replicas", processes=processes, sharing=sharing, start="ready", num_gpu_blocks=2000
    )
    finished = serve(trace, deployment).finished.reshape(-1, processes)
    np.testing.assert_allclose(finished, finished[:, :1].repeat(processes, axis=1), rtol=1e-9)


@pytest.mark.parametrize("power", [None, Power(0.1, 2.0)], ids=["free", "limited"])
@pytest.mark.parametrize("sharing", ["mps", "time_slice", "streams"])
@pytest.mark.parametrize("preset", ["sequential", "continuous", "chunked"])
def test_a_shared_device_with_one_process_is_exclusive(
    preset: str, sharing: str, power: Power | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fluid device serves one process as the exclusive device does, token by token, also where
    power limits its prompts.
    """
    profile = profile_for(A100.name)
    if power is not None:
        profile = profile.with_values(sustained=power.sustained, clock_relief=power.relief)
    trace, deployment = random_trace(12), small(preset)
    physics = Physics.of(deployment, SMALL, A100, profile)
    assert physics.power == power
    expected = token_times(serve(trace, deployment, physics=physics))
    rates = sharing_for(sharing, profile)
    monkeypatch.setattr(
        build, "ExclusiveDevice", lambda env, log, power: SharedDevice(env, rates, log, power)
    )
    found = token_times(serve(trace, deployment, physics=physics))
    for shared, alone in zip(found, expected, strict=True):
        np.testing.assert_allclose(shared, alone, rtol=1e-12)


class Scaled(NamedTuple):
    """Costs with every time `factor` times as long."""

    costs: Costs
    factor: float

    def step(
        self, tokens: float, outputs: float, pairs: float, prompt_kv: float, decodes: float
    ) -> StepCost:
        return self._scale(self.costs.step(tokens, outputs, pairs, prompt_kv, decodes))

    def decode(self, batch: int) -> StepCost:
        return self._scale(self.costs.decode(batch))

    def _scale(self, cost: StepCost) -> StepCost:
        times = ("gpu", "gpu_per_token", "host", "overhead", "gaps")
        longer = {name: getattr(cost, name) * self.factor for name in times}
        slower = {name: getattr(cost, name) / self.factor for name in ("peak", "bandwidth")}
        return cost._replace(**longer, **slower)


@pytest.mark.parametrize("preset", ["sequential", "continuous", "chunked", "split", "replicas"])
@pytest.mark.parametrize("factor", [3.0, 1e-3])
def test_scaling_all_times_scales_the_result(preset: str, factor: float) -> None:
    """Arrivals and costs c times as long give token times c times as late."""
    trace, deployment = random_trace(13), small(preset)
    profile = profile_for(A100.name).with_values(handover=1e-4)
    physics = Physics.of(deployment, SMALL, A100, profile)
    slow = Physics(lambda group: Scaled(physics.costs(group), factor), physics.sharing)
    later = trace.retimed(trace.arrival * factor)
    scaled = profile.with_values(handover=1e-4 * factor)
    one = simulate(trace, deployment, SMALL, A100, profile, physics=physics)
    other = simulate(later, deployment, SMALL, A100, scaled, physics=slow)
    for mine, theirs in zip(token_times(one), token_times(other), strict=True):
        np.testing.assert_allclose(theirs, mine * factor, rtol=1e-9)


# Determinism and blindness ----------------------------------------------------------------------


def digest(preset: str) -> str:
    """A hash of everything that a result holds."""
    result = serve(random_trace(14), small(preset))
    columns = (result.scheduled, result.first_token, result.finished, result.outcome)
    rows = (result.timeline.stretches, result.timeline.stays)
    return hashlib.sha256(b"".join(part.tobytes() for part in (*columns, *rows))).hexdigest()


def digests(presets: Sequence[str]) -> str:
    return " ".join(digest(preset) for preset in presets)


def test_the_same_arguments_give_the_same_bytes() -> None:
    """Twice here, and in fresh processes with other hash seeds, all results are equal bit for bit."""
    here = digests(list(PRESETS))
    assert digests(list(PRESETS)) == here
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(Path(__file__).parent), str(root / "src")])
    script = "import test_invariants as t; print(t.digests(list(t.PRESETS)))"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        there = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert there.stdout.strip() == here, there.stderr


@EVERY_PRESET
@given(seed=SEEDS)
@FEW
def test_the_scheduler_does_not_know_output_lengths(preset: str, seed: int) -> None:
    """Two traces that differ in output lengths only are served alike until the first shorter one
    ends.
    """
    trace = random_trace(seed)
    rng = np.random.default_rng(seed + 1)
    lengths = np.where(rng.random(40) < 0.3, rng.integers(1, 60, 40), trace.output_tokens)
    other = replace(trace, output_tokens=lengths)
    one, two = (token_times(serve(part, small(preset))) for part in (trace, other))
    shorter = np.minimum(trace.output_tokens, lengths)
    differ = np.flatnonzero(trace.output_tokens != lengths)
    until = min((one[request][shorter[request] - 1] for request in differ), default=np.inf)
    for mine, theirs in zip(one, two, strict=True):
        mine, theirs = mine[mine < until * (1 - 1e-9)], theirs[theirs < until * (1 - 1e-9)]
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)


def test_processes_of_one_group_are_told_apart_by_nothing() -> None:
    """Two groups of one process each are the same deployment as one group of two."""
    together = small("replicas", start="ready")
    apart = replace(together, workers=(Workers(), Workers()))
    apart = apart.override(num_gpu_blocks=100)
    trace = random_trace(15)
    one, two = serve(trace, together), serve(trace, apart)
    np.testing.assert_array_equal(one.finished, two.finished)


def test_a_cost_model_is_what_the_default_physics_uses() -> None:
    """Stating the profile's physics changes nothing."""
    trace, deployment = random_trace(16), small("continuous")
    profile = profile_for(A100.name)
    physics = Physics(
        lambda group: CostModel(SMALL, A100, profile), sharing_for("exclusive", profile)
    )
    stated = serve(trace, deployment, physics=physics)
    np.testing.assert_array_equal(stated.finished, serve(trace, deployment).finished)
