"""How many KV blocks a deployment gets on the device that is really there."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from splitwiser.models.gpu import Gpu, gpu
from splitwiser.models.llm import Llm
from splitwiser.models.memory import MemoryPlan
from splitwiser.models.profile import profile_for
from splitwiser.sim.admission import WATERMARK
from splitwiser.sim.deployment import Deployment
from splitwiser.sim.physics import memory_plan
from splitwiser.traces.trace import Trace

SPARE_BLOCKS = 2  # of a pool that holds all the traffic at once


def sheet_of(name: str, memory: float | None) -> Gpu:
    """The data sheet of a device by the name its driver gives it, with the *memory* (bytes) it has.

    A GPU without a data sheet is planned for like an H200 of that memory.
    """
    if memory is None:
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return replace(gpu("cpu"), memory=float(pages))
    for words in (name.lower().removeprefix("nvidia ").split(), ["h200"]):
        for count in range(len(words), 0, -1):
            try:
                return replace(gpu("-".join(words[:count])), memory=memory)
            except ValueError:
                continue
    raise AssertionError("the H200 has a data sheet")


def room(deployment: Deployment, llm: Llm, device: Gpu, trace: Trace) -> MemoryPlan:
    """The memory plan of a deployment, as the simulator makes it.

    The CPU's memory is also everybody else's: its pools are no larger than the traffic can fill.
    Raises `DoesNotFit` where not one block is left.
    """
    profile = profile_for(device.name)
    longest = trace.longest_prompt(llm.max_context)
    plan = memory_plan(deployment, llm, device, profile, longest)
    if device.name == "cpu" and deployment.num_gpu_blocks is None:
        most = min(plan.blocks, _all_at_once(trace, llm, deployment.block_size))
        return replace(plan, blocks=most, kv=most * plan.block_bytes * plan.pools)
    return plan


def _all_at_once(trace: Trace, llm: Llm, block_size: int) -> int:
    tokens = np.minimum(trace.prompt_tokens + trace.output_tokens, llm.max_context)
    blocks = int((-(-tokens // block_size)).sum())
    return int(np.ceil(blocks / (1 - WATERMARK))) + SPARE_BLOCKS


def block_table(trace: Trace, llm: Llm, block_size: int) -> int:
    """Blocks that the longest sequence of a trace can need."""
    longest = int((trace.prompt_tokens + trace.output_tokens).max(initial=1))
    return -(-min(longest, llm.max_context) // block_size) + 1
