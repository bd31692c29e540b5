"""A process with one worker, or with several as threads (streams, green contexts)."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from splitwiser.sim.deployment import Workers
from splitwiser.validate.runtime.blocks import BlockAllocator
from splitwiser.validate.runtime.faults import line_of
from splitwiser.validate.runtime.mailbox import Mailbox
from splitwiser.validate.runtime.messages import Failed, Ready
from splitwiser.validate.runtime.owner import pool_shape, weights_arena
from splitwiser.validate.runtime.staff import Crew, Handle, Post, Property, Shared

if TYPE_CHECKING:
    from torch import Tensor

    from splitwiser.validate.runtime.partition import Partition
    from splitwiser.validate.runtime.transformer import Transformer
    from splitwiser.validate.runtime.worker import Worker

CPU_WARM_UP = 256  # prompt tokens: there is nothing to compile or load


def work(shared: Shared, crew: Crew) -> None:
    """The life of a process with workers."""
    try:
        import torch

        torch.set_num_threads(crew.threads)
        owned: Property = crew.owner.recv()
        with torch.inference_mode(), ExitStack() as kept:
            _Host(shared, crew, owned, kept).run()
    except Exception as error:  # noqa: BLE001 - whatever it is, the router tells it
        with suppress(OSError):  # the router has gone
            for post in crew.posts:
                post.connection.send(Failed(post.index, line_of(error)))


class _Place(NamedTuple):
    """A worker and where on the device it runs."""

    worker: Worker
    mailbox: Mailbox
    partition: Partition | None


class _Host:
    def __init__(self, shared: Shared, crew: Crew, owned: Property, kept: ExitStack) -> None:
        import torch

        self._shared = shared
        self._kept = kept
        self._device = torch.device(shared.device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        self._pools = [self._pool(index, handle) for index, handle in enumerate(owned.pools)]
        self._weights = self._map_weights(owned.weights)
        partitions = _partitions(shared, [post.group for post in crew.posts])
        self._places = [
            self._place(post, partition)
            for post, partition in zip(crew.posts, partitions, strict=True)
        ]

    def run(self) -> None:
        """Run the workers to their ends: one in this thread, several in a thread each."""
        if len(self._places) == 1:
            self._life(self._places[0])
            return
        threads = [Thread(target=self._life, args=(place,)) for place in self._places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _life(self, place: _Place) -> None:
        import torch

        try:
            with torch.inference_mode(), _on(place.partition):
                place.worker.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the router tells it
            place.mailbox.send(Failed(place.worker.index, line_of(error)))

    def _place(self, post: Post, partition: Partition | None) -> _Place:
        """Make a worker, and have everything compiled, loaded and captured that it will need."""

        from splitwiser.validate.runtime.reporter import Reporter
        from splitwiser.validate.runtime.runner import Runner

        begun = monotonic()
        deployment = self._shared.deployment
        with _on(partition):
            runner = Runner(
                self._model(partition),
                self._pools[post.pool],
                block_size=deployment.block_size,
                max_seqs=post.group.max_num_seqs,
                max_blocks=self._shared.max_blocks,
                eager=deployment.enforce_eager or post.group.phase == "prefill",
            )
            longest = post.longest if runner.asynchronous else min(post.longest, CPU_WARM_UP)
            runner.warm_up(longest, self._shared.llm.max_context)
        mailbox = Mailbox(post.connection)
        kind = _worker_class(post.group)
        free_list = self._free_list(post.pool)
        worker = kind(
            post.index,
            post.group,
            runner,
            self._free_list(post.pool),
            mailbox,
            Reporter(post.index, runner, free_list, mailbox, kind.hands_over),
            order=deployment.order,
            swap=deployment.preemption == "swap",
        )
        if post.source is not None:
            worker.source = self._free_list(post.source), self._pools[post.source]
        mailbox.send(Ready(post.index, _about(self._device, partition, monotonic() - begun)))
        return _Place(worker, mailbox, partition)

    def _free_list(self, pool: int) -> BlockAllocator:
        """The free list of a pool, opened anew: an opening does not lock out its own users."""
        opened = BlockAllocator.open(self._shared.allocator(pool))
        self._kept.callback(opened.close)
        return opened

    def _pool(self, index: int, handle: Handle) -> Tensor:
        """Map a KV pool."""
        from splitwiser.validate.runtime.arena import Arena

        llm = self._shared.llm
        arena = Arena.open(handle)
        self._kept.callback(arena.close)
        shape = pool_shape(llm, self._shared.pool_blocks[index], self._shared.deployment.block_size)
        return arena.flat.view(_dtype(llm.dtype)).view(shape)

    def _map_weights(self, handle: Handle | None) -> dict[str, Tensor]:
        """The weights: the owner's, or a copy of our own."""
        from splitwiser.validate.runtime.arena import Arena
        from splitwiser.validate.runtime.weights import layout

        shared = self._shared
        arena = weights_arena(shared, self._device) if handle is None else Arena.open(handle)
        self._kept.callback(arena.close)
        return layout(shared.llm).views(arena.flat)

    def _model(self, partition: Partition | None) -> Transformer:
        from splitwiser.validate.runtime.kernels import kernels_for
        from splitwiser.validate.runtime.numerics import numerics_of
        from splitwiser.validate.runtime.transformer import Transformer

        llm, folder = self._shared.llm, self._shared.folder
        kernels = kernels_for(self._device, partition and partition.sms)
        return Transformer(llm, numerics_of(llm, folder), self._weights, kernels)


def _on(partition: Partition | None) -> AbstractContextManager[None]:
    """Launch there; on the CPU there is no choice."""
    if partition is None:
        return nullcontext()
    from splitwiser.validate.runtime.partition import run_on

    return run_on(partition)


def _worker_class(group: Workers) -> Any:
    from splitwiser.validate.runtime.engines import ChunkedEngine, ContinuousEngine, StaticEngine
    from splitwiser.validate.runtime.phases import DecodeWorker, PrefillWorker

    phases = {"prefill": PrefillWorker, "decode": DecodeWorker}
    engines = {"continuous": ContinuousEngine, "chunked": ChunkedEngine, "static": StaticEngine}
    return phases.get(group.phase) or engines[group.scheduler]


def _partitions(shared: Shared, groups: list[Workers]) -> list[Partition | None]:
    """Where on the device each worker of this process runs: its stream, and its SMs."""
    import torch

    device = torch.device(shared.device)
    if device.type != "cuda":
        return [None] * len(groups)
    from splitwiser.validate.runtime.partition import green_partitions, priority_streams

    if shared.deployment.sharing == "green_contexts":
        return [*green_partitions([group.sm_percent or 100 for group in groups], device.index)]
    return [*priority_streams([group.phase for group in groups], device.index)]


def _about(device: Any, partition: Partition | None, seconds: float) -> dict[str, Any]:
    """What the router may tell of a worker: under MPS the SMs that it was really granted."""
    import os

    import torch

    sms = partition.sms if partition is not None else torch.get_num_threads()
    about = {"pid": os.getpid(), "sms": sms, "warm_up_s": seconds}
    if device.type == "cuda":
        about["allocated_bytes"] = torch.cuda.max_memory_reserved(device)
    return about


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)
