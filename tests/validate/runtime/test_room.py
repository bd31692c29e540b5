"""The memory plan on the device that is there."""

from __future__ import annotations

import numpy as np
import pytest

from splitwiser.models.catalogue import llm
from splitwiser.models.memory import DoesNotFit
from splitwiser.sim.deployment import continuous
from splitwiser.traces.trace import Trace
from splitwiser.validate.runtime.room import room

TRACE = Trace(np.zeros(2), np.array([100, 20]), np.array([5, 9]))


@pytest.mark.parametrize("name", ["NVIDIA A10", "NVIDIA B7000 of tomorrow"])
def test_a_refusal_names_the_device_that_is_there(name: str) -> None:
    """Whatever data sheet stood in for it."""
    with pytest.raises(DoesNotFit, match=f"does not fit on {name}: "):
        room(continuous(), llm("meta-llama/Llama-2-13b-hf"), name, 24e9, TRACE)


def test_a_pool_on_the_cpu_is_what_the_traffic_can_fill() -> None:
    """The machine's memory is not taken because it is there."""
    blocks = room(continuous(), llm("tiny-llama"), "some CPU", None, TRACE).blocks
    assert 7 + 2 <= blocks <= 7 + 2 + 3
