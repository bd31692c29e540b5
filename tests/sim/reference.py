"""A slow simulator to hold the fast one to: every step of every process is made, one by one.

It shares the policies (who is admitted, who is preempted, what a batch asks of the GPU) and the
costs with `splitwiser.sim`, and nothing else: no runs, no closed forms, no reservations. Tokens are
counted by appending their times to a list. It needs no SimPy: a process is a generator that yields
what it waits for.
"""

from __future__ import annotations

from functools import partial
from math import inf

import numpy as np
from reference_engines import Chunked, Continuous, Static
from reference_phases import Decoder, Prefiller
from reference_server import Server
from reference_world import (
    Line,
    Model,
    Pool,
    Request,
    World,
)

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.memory import MemoryPlan
from splitwiser.models.profile import Profile
from splitwiser.sim.deployment import Deployment
from splitwiser.sim.physics import Physics
from splitwiser.traces.trace import Trace

ENGINES = {"static": Static, "continuous": Continuous, "chunked": Chunked}


def simulate_slowly(
    trace: Trace,
    deployment: Deployment,
    llm: Llm,
    gpu: Gpu,
    profile: Profile,
    memory: MemoryPlan,
    pools: list[int],
    physics: Physics,
    until: float = inf,
) -> list[Request]:
    """Serve the trace step by step; `pools` are the blocks of every pool."""
    model = Model(
        llm.sliding_window,
        deployment.preemption == "swap",
        memory.block_bytes / (profile.value("pcie_efficiency") * gpu.pcie),
        2 * memory.block_bytes / gpu.bandwidth,
        profile.value("handover"),
    )
    frontend = 0.0
    if deployment.start != "staggered":
        frontend = deployment.tokenize_s + profile.value("request_overhead")
    requests = [
        Request(
            i,
            float(trace.arrival[i]) + frontend,
            int(trace.prompt_tokens[i]),
            int(min(trace.output_tokens[i], max(0, llm.max_context - trace.prompt_tokens[i]))),
            [] if trace.prefix is None else trace.prefix.row(i).tolist(),
        )
        for i in range(len(trace))
    ]
    world = World(physics, trace.max_concurrency, requests, frontend)
    most = min((total - int(0.01 * total)) * deployment.block_size for total in pools)
    world.never = {r.number for r in requests if r.prompt >= llm.max_context or r.prompt > most}
    build = _split if deployment.workers[0].phase != "both" else _engines
    hashing = trace.prefix is not None and deployment.prefix_caching
    block_tokens = trace.prefix.block_tokens if trace.prefix is not None and hashing else None
    processes = build(world, deployment, model, pools, block_tokens)
    starts = _starts(deployment, profile, len(trace), len(processes))
    for process, start in zip(processes, starts, strict=True):
        world.at(start, partial(world.resume, process.life()))
    world.run(until)
    return requests


def _starts(deployment: Deployment, profile: Profile, requests: int, count: int) -> list[float]:
    startup = deployment.startup_s
    if startup is None:
        startup = profile.value("startup")
    if deployment.start == "ready":
        return [0.0] * count
    if deployment.start == "cold":
        return [startup] * count
    parts = [requests * (i + 1) // count for i in range(count)]
    return [startup * (i + 1) + deployment.tokenize_s * parts[i] for i in range(count)]


def _engines(
    world: World, deployment: Deployment, model: Model, pools: list[int], hashed: int | None
) -> list[Server]:
    groups = list(deployment.each())
    count, total = len(groups), len(world.requests)
    lines = [Line(deployment.order) for _ in groups]
    if deployment.routing == "shared_queue":
        lines = lines[:1] * count
    elif deployment.routing == "contiguous":
        bounds = [total * (i + 1) // count for i in range(count)]
        owner = np.searchsorted(bounds, np.arange(total), side="right")
    world.line_of = lambda number: lines[
        int(owner[number]) if deployment.routing == "contiguous" else number % count
    ]
    servers = [
        ENGINES[group.scheduler](
            world,
            line,
            Pool(pool, deployment.block_size, None if group.scheduler == "static" else hashed),
            group,
            model,
        )
        for group, line, pool in zip(groups, lines, pools, strict=True)
    ]
    for server in servers:
        if isinstance(server, Chunked):
            server.ahead = deployment.async_scheduling
        if isinstance(server, Static):
            server.keeps_padding = deployment.start == "staggered"
    return servers


def _split(
    world: World, deployment: Deployment, model: Model, pools: list[int], hashed: int | None
) -> list[Server]:
    line = Line(deployment.order)
    world.line_of = lambda number: line
    size = deployment.block_size
    first = Pool(pools[0], size, hashed)
    own = iter([Pool(total, size, None) for total in pools[1:]])
    decoders: list[Decoder] = []
    processes: list[Server] = []
    for group in deployment.each():
        if group.phase == "decode":
            pool = first if deployment.kv == "shared" else next(own)
            decoder = Decoder(world, line, pool, group, model)
            decoder.source = first if deployment.kv == "separate" else None
            pool.on_free.append(decoder.memory_came_free)
            decoders.append(decoder)
            processes.append(decoder)
        else:
            prefiller = Prefiller(world, line, first, group, model)
            prefiller.decoders = decoders
            processes.append(prefiller)
    first.on_free.append(lambda: world.wake(line.sleepers))
    return processes
