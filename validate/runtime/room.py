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


def room(
    deployment: Deployment, llm: Llm, name: str, memory: float | None, trace: Trace
) -> MemoryPlan:
    """The memory plan of a deployment, as the simulator makes it, on a device called *name*.

    *memory* is that of a GPU in bytes; None stands for the CPU, whose free memory is also everybody
    else's: its pools are no larger than the traffic can fill. What contexts and activations take on
    a GPU without a data sheet is assumed to be as on an H200. Raises `DoesNotFit` where not one
    block is left.
    """
    if memory is None:
        known = gpu("cpu")
        memory = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    else:
        known = data_sheet(name) or gpu("h200")
    device = replace(known, name=name, memory=memory)
    longest = trace.longest_prompt(llm.max_context)
    plan = memory_plan(deployment, llm, device, profile_for(known.name), longest)
    if known.name == "cpu" and deployment.num_gpu_blocks is None:
        most = min(plan.blocks, _all_at_once(trace, llm, deployment.block_size))
        return replace(plan, blocks=most, kv=most * plan.block_bytes * plan.pools)
    return plan


def data_sheet(name: str) -> Gpu | None:
    """The data sheet for the name that a driver gives a GPU; None where there is none."""
    words = name.lower().removeprefix("nvidia ").split()
    for count in range(len(words), 0, -1):
        try:
            return gpu("-".join(words[:count]))
        except ValueError:
            continue
    return None


def _all_at_once(trace: Trace, llm: Llm, block_size: int) -> int:
    tokens = np.minimum(trace.prompt_tokens + trace.output_tokens, llm.max_context)
    blocks = int((-(-tokens // block_size)).sum())
    return int(np.ceil(blocks / (1 - WATERMARK))) + SPARE_BLOCKS


def block_table(trace: Trace, llm: Llm, block_size: int) -> int:
    """Blocks that the longest sequence of a trace can need."""
    longest = int((trace.prompt_tokens + trace.output_tokens).max(initial=1))
    return -(-min(longest, llm.max_context) // block_size) + 1
