"""From a deployment to a simulated GPU with its processes, pools and lines of requests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from simpy import Environment

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.memory import MemoryPlan
from splitwiser.models.profile import Profile
from splitwiser.sim.admission import Limits, Outputs, routes, split_pools, waiting_line
from splitwiser.sim.deployment import Deployment, Workers
from splitwiser.sim.device import Device, ExclusiveDevice, SharedDevice
from splitwiser.sim.kv import BlockPool, PrefixPool
from splitwiser.sim.log import Log
from splitwiser.sim.phases import DecodeWorker, PrefillWorker
from splitwiser.sim.physics import Physics
from splitwiser.sim.queues import Queue, Source
from splitwiser.sim.schedulers import ChunkedWorker, ContinuousWorker, StaticWorker
from splitwiser.sim.worker import Steps, Worker
from splitwiser.sim.world import Link, World
from splitwiser.traces.trace import Trace

AnyWorker = TypeVar("AnyWorker", bound=Worker)

ENGINES: dict[str, type[Worker]] = {
    "static": StaticWorker,
    "continuous": ContinuousWorker,
    "chunked": ChunkedWorker,
}
Progress = Callable[[float], bool]
PARTS = 100  # reports of progress


class Simulation:
    """One GPU, its processes and its traffic, ready to run."""

    def __init__(
        self,
        trace: Trace,
        deployment: Deployment,
        llm: Llm,
        memory: MemoryPlan,
        physics: Physics,
        profile: Profile,
        gpu: Gpu,
    ) -> None:
        self.env = Environment()
        self.log = Log(len(trace))
        self.deployment = deployment
        self._trace = trace
        self._memory = memory
        self._profile = profile
        self._physics = physics
        # Tokenising delays a request by its own time only, but in the paper's code.
        self._frontend = (
            0.0
            if deployment.start == "staggered"
            else deployment.tokenize_s + profile.value("request_overhead")
        )
        device: Device = (
            ExclusiveDevice(self.env, self.log, physics.power)
            if deployment.processes == 1
            else SharedDevice(self.env, physics.sharing, self.log, physics.power)
        )
        prompts = trace.prompt_tokens.tolist()
        self._longest_prompt = trace.longest_prompt(llm.max_context)
        self.outputs = Outputs.of(trace.prompt_tokens, trace.output_tokens, llm.max_context)
        copy = profile.value("pcie_efficiency") * gpu.pcie
        self._block_copy = 2 * memory.block_bytes / gpu.bandwidth  # read here, written there
        self._copies = Link(self.env)
        self.source = Source(
            self.env,
            (trace.arrival + self._frontend).tolist(),
            trace.max_concurrency,
            self._frontend,
        )
        self.world = World(
            env=self.env,
            device=device,
            log=self.log,
            source=self.source,
            prompt_tokens=prompts,
            output_tokens=self.outputs.tokens.tolist(),
            window=llm.sliding_window,
            swap=deployment.preemption == "swap",
            swap_seconds_per_block=memory.block_bytes / copy,
            host_link=Link(self.env),
        )
        self.pools: list[BlockPool] = []
        self.workers: list[Worker] = []
        if any(group.phase == "both" for group in deployment.workers):
            self._build_engines()
        else:
            self._build_split()
        self._limits = Limits.of(
            llm.max_context, (pool.total for pool in self.pools), deployment.block_size
        )
        self.source.never = self._limits.never(trace.prompt_tokens)
        self.source.begin()
        for worker, ready in zip(self.workers, self._ready(), strict=True):
            life = worker.run()
            self.env.process(_after(self.env, ready, life) if ready else life)

    def run(self, until: float | None = None, progress: Progress | None = None) -> float | None:
        """Run to the end of the traffic or to `until`, and return when it was stopped, if it was.

        `progress` is called with the share of the requests that have arrived, and stops the
        simulation by returning False.
        """
        if progress is not None:
            until = self._run_in_parts(until, progress)
        else:
            self.env.run(until)
        self.world.device.write_open_stretches()
        for worker in self.workers:
            worker.write_open_stays()
        for request in self.source.never:
            if until is None or self.source.arrival[request] <= until:
                self.log.outcome[request] = Log.REJECTED
        return until

    def _run_in_parts(self, until: float | None, progress: Progress) -> float | None:
        arrival = self._trace.arrival
        end = inf if until is None else until
        for part in range(1, PARTS + 1):
            time = float(arrival[(len(arrival) * part - 1) // PARTS])
            if self.env.now < time < end:
                self.env.run(time)
            if not progress(part / PARTS):
                return self.env.now
        self.env.run(until)
        return until

    # Parts ------------------------------------------------------------------------------------

    def _build_engines(self) -> None:
        """Whole engines, each with a pool of its own."""
        groups = list(self.deployment.each())
        lines, self.source.queue_of = routes(self.deployment.routing, len(groups), len(self._trace))
        queues = [self._queue(line) for line in lines]
        queues[0].is_shared = len(queues) < len(groups)
        for index, group in enumerate(groups):
            pool = self._pool(self._memory.blocks, hashed=group.scheduler != "static")
            queue = queues[index % len(queues)]
            worker = self._worker(ENGINES[group.scheduler], index, group, queue, pool)
            worker.lead = self._profile.value("decided_ahead")
            if isinstance(worker, ChunkedWorker):
                worker.ahead = self.deployment.async_scheduling
            if isinstance(worker, StaticWorker):
                worker.keeps_padding = self.deployment.start == "staggered"
            queue.on_arrival.append(partial(self.world.device.break_at, worker.task))

    def _build_split(self) -> None:
        """Prefill and decode processes, over one pool or with a pool each."""
        queue = self._queue(range(len(self._trace)))
        separate = self.deployment.kv == "separate"
        decoders: list[DecodeWorker] = []
        groups = list(self.deployment.each())
        prefill_pool, decode_pools = self._split_pools()
        for index, group in enumerate(groups):
            if group.phase == "decode":
                pool = decode_pools[len(decoders) % len(decode_pools)]
                decoder = self._worker(DecodeWorker, index, group, queue, pool)
                decoders.append(decoder)
                if separate:
                    decoder.source_pool = prefill_pool
                    decoder.copy_seconds_per_block = self._block_copy
                    decoder.copies = self._copies
                pool.reclaim.append(decoder.reclaim)
                pool.on_free.append(decoder.memory_came_free)
            else:
                prefiller = self._worker(PrefillWorker, index, group, queue, prefill_pool)
                prefiller.decoders = decoders
                prefiller.handover_seconds = self._profile.value("handover")
        prefill_pool.on_free.append(queue.memory_came_free)

    def _split_pools(self) -> tuple[BlockPool, list[BlockPool]]:
        """The prefill side's pool, and those of the decode processes."""
        blocks = split_pools(self.deployment, self._memory.blocks, self._longest_prompt)
        pool = self._pool(blocks.prefill)
        if blocks.decode is None:
            return pool, [pool]
        decoders = sum(g.processes for g in self.deployment.workers if g.phase == "decode")
        return pool, [self._pool(blocks.decode, hashed=False) for _ in range(decoders)]

    def _pool(self, blocks: int, hashed: bool = True) -> BlockPool:
        prefix = self._trace.prefix
        size = self.deployment.block_size
        pool: BlockPool
        if hashed and prefix is not None and self.deployment.prefix_caching:
            pool = PrefixPool(
                blocks,
                size,
                lambda request: prefix.row(request).tolist(),
                self._trace.prompt_tokens.tolist(),
                prefix.block_tokens,
            )
        else:
            pool = BlockPool(blocks, size)
        self.pools.append(pool)
        return pool

    def _queue(self, requests: range) -> Queue:
        line = waiting_line(self.deployment.order, self._trace.prompt_tokens.tolist())
        queue = Queue(self.env, self.source, requests, line)
        self.source.queues.append(queue)
        return queue

    def _worker(
        self, kind: type[AnyWorker], index: int, group: Workers, queue: Queue, pool: BlockPool
    ) -> AnyWorker:
        worker = kind(
            self.world,
            index,
            self._physics.costs(group),
            queue,
            pool,
            group.max_num_seqs,
            group.max_num_batched_tokens,
        )
        self.workers.append(worker)
        return worker

    # Beginnings and ends ----------------------------------------------------------------------

    def _ready(self) -> list[float]:
        """When each process can take its first request."""
        count = self.deployment.processes
        if self.deployment.start == "ready":
            return [0.0] * count
        startup = self.deployment.startup_s
        if startup is None:
            startup = self._profile.value("startup")
        if self.deployment.start == "cold":
            return [startup] * count
        # As the paper's code: a process starts once its part is tokenised, and parts go in turn.
        requests = len(self._trace)
        return [
            startup * (r + 1) + self.deployment.tokenize_s * (requests * (r + 1) // count)
            for r in range(count)
        ]

    def refusals(self) -> list[str]:
        """What to say of the requests that were not served, and why."""
        outcome = self.log.outcome
        return self._limits.refusals(outcome.count(Log.REJECTED), outcome.count(Log.ABORTED))

    @property
    def issued(self) -> NDArray[np.float64]:
        """When each request arrived (with a concurrency limit: when it was issued; infinity if it
        never was).
        """
        issued = np.asarray(self.source.arrival) - self._frontend
        issued[self.source.bound :] = np.inf
        return issued


def _after(env: Environment, seconds: float, life: Steps) -> Steps:
    yield env.timeout(seconds)
    yield from life
