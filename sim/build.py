"""From a deployment to a simulated GPU with its processes, pools and lines of requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, inf
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from simpy import Environment

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.memory import MemoryPlan
from splitwiser.models.profile import Profile
from splitwiser.sim.decoding import WATERMARK
from splitwiser.sim.deployment import Deployment, Workers
from splitwiser.sim.device import Device, ExclusiveDevice, SharedDevice
from splitwiser.sim.kv import BlockPool, PrefixPool
from splitwiser.sim.log import Log
from splitwiser.sim.phases import DecodeWorker, PrefillWorker
from splitwiser.sim.physics import Physics
from splitwiser.sim.queues import Queue, Source, waiting_line
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
        self._frontend = 0.0 if deployment.start == "staggered" else deployment.tokenize_s
        device: Device = (
            ExclusiveDevice(self.env, self.log)
            if deployment.processes == 1
            else SharedDevice(self.env, physics.sharing, self.log)
        )
        prompts = trace.prompt_tokens.tolist()
        self._max_context = llm.max_context
        self._longest_prompt = trace.longest_prompt(llm.max_context)
        room = (llm.max_context - trace.prompt_tokens).clip(min=0)
        self.truncated = int((trace.output_tokens > room)[room > 0].sum())
        self.output_tokens = trace.output_tokens.clip(max=room)
        copy = profile.value("pcie_efficiency") * gpu.pcie
        self._block_copy = 2 * memory.block_bytes / gpu.bandwidth  # read here, written there
        self._copies = Link(self.env)
        self.source = Source(
            self.env, (trace.arrival + self._frontend).tolist(), trace.max_concurrency
        )
        self.world = World(
            env=self.env,
            device=device,
            log=self.log,
            source=self.source,
            prompt_tokens=prompts,
            output_tokens=self.output_tokens.tolist(),
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
        self.source.never = self._never()
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
        count, requests = len(groups), len(self._trace)
        routing = self.deployment.routing
        if routing == "shared_queue" or count == 1:
            lines = [range(requests)]
        elif routing == "contiguous":
            lines = [
                range(requests * r // count, requests * (r + 1) // count) for r in range(count)
            ]
            self.source.queue_of = lambda request: (count * (request + 1) - 1) // requests
        else:
            lines = [range(r, requests, count) for r in range(count)]
            self.source.queue_of = lambda request: request % count
        queues = [self._queue(line) for line in lines]
        queues[0].is_shared = len(queues) < count
        for index, group in enumerate(groups):
            pool = self._pool(self._memory.blocks, hashed=group.scheduler != "static")
            queue = queues[index % len(queues)]
            worker = self._worker(ENGINES[group.scheduler], index, group, queue, pool)
            queue.on_arrival.append(partial(self.world.device.break_at, worker.task))

    def _build_split(self) -> None:
        """Prefill and decode processes, over one pool or with a pool each."""
        queue = self._queue(range(len(self._trace)))
        separate = self.deployment.kv == "separate"
        decoders: list[DecodeWorker] = []
        groups = list(self.deployment.each())
        prefill_pool, decode_pools = self._split_pools(groups)
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

    def _split_pools(self, groups: Sequence[Workers]) -> tuple[BlockPool, list[BlockPool]]:
        """The prefill side's pool, and those of the decode processes.

        With separate pools the prefill side gets room for two batches of each process (one
        computed, one being copied out), at most half of the memory; the decode processes share the
        rest equally.
        """
        total = self._memory.blocks
        if self.deployment.kv == "shared":
            pool = self._pool(total)
            return pool, [pool]
        batches = sum(2 * g.max_num_batched_tokens for g in groups if g.phase == "prefill")
        longest = self._longest_prompt / (1 - WATERMARK)
        prefill = min(total // 2, ceil(max(batches, longest) / self.deployment.block_size))
        decoders = sum(1 for g in groups if g.phase == "decode")
        each = (total - prefill) // decoders
        return self._pool(prefill), [self._pool(each, hashed=False) for _ in range(decoders)]

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

    def _never(self) -> frozenset[int]:
        """The requests that can never be served: no room in the context, or in a pool."""
        prompts = self._trace.prompt_tokens
        too_long = (prompts >= self._max_context) | (prompts > self._most_tokens)
        return frozenset(np.flatnonzero(too_long).tolist())

    @property
    def _most_tokens(self) -> int:
        """Tokens of the longest prompt that every pool can admit."""
        return min(
            (pool.total - int(WATERMARK * pool.total)) * pool.block_size for pool in self.pools
        )

    def refusals(self) -> list[str]:
        """What to say of the requests that were not served, and why."""
        outcome = self.log.outcome
        told = []
        if rejected := outcome.count(Log.REJECTED):
            told.append(
                f"{rejected} requests rejected: no room for their prompts in the context of "
                f"{self._max_context} tokens, or in a KV pool of {self._most_tokens} tokens"
            )
        if aborted := outcome.count(Log.ABORTED):
            told.append(f"{aborted} requests aborted: they outgrew the KV pool")
        return told

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
