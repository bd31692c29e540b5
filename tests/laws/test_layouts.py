"""What must not depend on how memory is laid out, or on how long a trace is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from splitwiser.models.catalogue import llm
from splitwiser.models.cost import CostModel
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import profile_for
from splitwiser.sim.deployment import continuous, split
from splitwiser.sim.simulate import simulate
from splitwiser.sim.trial import Experiment
from splitwiser.traces.trace import Trace

MODEL, SHEET = llm("meta-llama/Llama-3.1-8B"), gpu("h200")


def at_once(requests: int, prompt: int, output: int) -> Trace:
    return Trace(np.zeros(requests), np.full(requests, prompt), np.full(requests, output))


@pytest.mark.parametrize("kv", ["shared", "separate"])
def test_a_prompt_longer_than_the_batches_is_served_in_either_layout(kv: str) -> None:
    """Separate pools take every prompt that a shared one takes, up to half of the memory."""
    result = simulate(at_once(4, 20_000, 4), replace(split(), kv=kv), MODEL, SHEET)
    assert result.summary()["completed"] == 4


def test_memory_has_room_for_the_longest_prompt() -> None:
    """A prompt that runs alone, above the token budget, takes its activations from the KV pool."""
    few = continuous().override(max_num_batched_tokens=2048)
    short, long = (
        simulate(at_once(1, prompt, 1), few, MODEL, SHEET).meta["num_gpu_blocks"][0]
        for prompt in (2048, 60_000)
    )
    assert long < short


def test_a_short_trace_saturates_like_a_long_one() -> None:
    """Equal requests have one saturation rate, however few there are."""
    rates = [
        Experiment(
            continuous(), at_once(count, 500, 100), MODEL, SHEET, profile_for("h200"), {"ttft": 1.0}
        )
        .saturation()
        .rate
        for count in (50, 4000)
    ]
    assert rates[0] == pytest.approx(rates[1], rel=0.05)


@pytest.mark.parametrize("batch", [1, 8, 64, 256])
def test_traffic_per_second_rises_or_falls_with_the_context(batch: int) -> None:
    """Of a range of contexts one end or the other bounds a decode step's traffic per second."""
    cost = CostModel(MODEL, SHEET, profile_for("h200")).decode(batch)
    demands = [cost.demand(attended) for attended in np.linspace(batch, batch * 8192, 40)]
    traffic = [demand.bytes / demand.seconds for demand in demands]
    assert all(np.diff(traffic) >= 0) or all(np.diff(traffic) <= 0)
