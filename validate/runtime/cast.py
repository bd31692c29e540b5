"""The processes of a run: who starts, with what, how they are known to be well, and how they end."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

from splitwiser.models.llm import Llm
from splitwiser.models.memory import MemoryPlan
from splitwiser.sim.admission import split_pools
from splitwiser.sim.deployment import Deployment, Workers
from splitwiser.sim.physics import ONE_PROCESS, most_tokens
from splitwiser.traces.trace import Trace
from splitwiser.validate.runtime.blocks import BlockAllocator
from splitwiser.validate.runtime.device import Device, cpu_threads
from splitwiser.validate.runtime.faults import Process, RunFailed, failing, how_it_died, named
from splitwiser.validate.runtime.host import work
from splitwiser.validate.runtime.messages import Failed, Ready
from splitwiser.validate.runtime.mps import MpsDaemon
from splitwiser.validate.runtime.owner import own
from splitwiser.validate.runtime.process import end, is_stopped, start
from splitwiser.validate.runtime.room import block_table
from splitwiser.validate.runtime.scratch import Scratch
from splitwiser.validate.runtime.staff import Crew, Post, Property, Shared
from splitwiser.validate.runtime.switchboard import Port

READY_S = 300.0  # for everybody to start, load weights, compile and capture
STOP_S = 4.0  # for everybody to end a step
STOPPED_S = 3.0  # after Ctrl-Z and `fg`, all go on together, but not in the same moment
LEAVE_S = 2.0  # for a process whose work is done to leave
LOOK_S = 0.2  # between two looks at whether to go on


class Cast:
    """The processes of one run; leaving the context ends them all, whatever has happened."""

    def __init__(
        self,
        trace: Trace,
        deployment: Deployment,
        llm: Llm,
        device: Device,
        plan: MemoryPlan,
        scratch: Scratch,
    ) -> None:
        self._trace = trace
        self._deployment = deployment
        self._llm = llm
        self._device = device
        self._scratch = scratch
        self._groups = list(deployment.each())
        self.pools, self._pool_of, self._source_of = _pools(deployment, plan.blocks, trace, llm)
        together = deployment.sharing in ONE_PROCESS
        everyone = range(len(self._groups))
        self._crews = [list(everyone)] if together else [[index] for index in everyone]
        self._mps: MpsDaemon | None = None
        self._owner: BaseProcess | None = None
        self._hosts: list[BaseProcess] = []
        self._holding: list[Connection] = []  # pipes that must not close while the run goes on
        self._stopped_at: dict[str, float] = {}  # first seen so, by the name of the process
        self._looked = 0.0  # at who is stopped, the last time
        self._free_lists: list[BlockAllocator] = []
        self._kept = ExitStack()
        self.ports: list[Port] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        patience = LEAVE_S if error is None else 0.0
        end(self._hosts, patience)  # those that work first: the owner holds their memory
        for pipe in self._holding if error is None else []:  # the owner's sign to leave
            pipe.close()
        end([] if self._owner is None else [self._owner], patience)
        for pipe in [*self._holding, *(port.connection for port in self.ports)]:
            pipe.close()
        self._kept.close()

    @property
    def count(self) -> int:
        """Processes on the device, the owner of the memory included."""
        return len(self._crews) + 1

    def start(self, folder: Path | None, seed: int) -> None:
        """Start every process; they make ready at the same time."""
        deployment = self._deployment
        if deployment.sharing == "mps" and self._device.kind == "cuda":
            self._mps = self._kept.enter_context(MpsDaemon(self._scratch))
        shared = Shared(
            self._llm,
            str(self._device),
            deployment,
            self._scratch.directory,
            folder,
            seed,
            self.pools,
            block_table(self._trace, self._llm, deployment.block_size),
        )
        for index, blocks in enumerate(self.pools):
            free_list = BlockAllocator.create(shared.allocator(index), blocks)
            self._kept.callback(free_list.close)
            self._free_lists.append(free_list)
        ours, theirs = multiprocessing.Pipe()
        self._holding.append(ours)
        self._owner = self._process("owner", own, (shared, theirs), None)
        theirs.close()
        threads = cpu_threads(deployment)
        longest = self._trace.longest_prompt(self._llm.max_context)
        for crew in self._crews:
            self._start_host(shared, crew, sum(threads[i] for i in crew), longest)

    def _start_host(self, shared: Shared, crew: list[int], threads: int, longest: int) -> None:
        held, owner = multiprocessing.Pipe()
        self._holding.append(held)
        pipes = [multiprocessing.Pipe() for _ in crew]
        posts = tuple(
            Post(
                index,
                self._groups[index],
                theirs,
                self._pool_of[index],
                self._source_of[index],
                most_tokens(self._groups[index], longest),
            )
            for index, (_, theirs) in zip(crew, pipes, strict=True)
        )
        groups = [self._groups[index] for index in crew]
        name = _name(groups, crew)
        process = self._process(
            name, work, (shared, Crew(posts, threads, owner)), groups[0].sm_percent
        )
        self._hosts.append(process)
        owner.close()
        for index, (ours, theirs) in zip(crew, pipes, strict=True):
            theirs.close()
            group = self._groups[index]
            self.ports.append(Port(index, group.phase, group, ours, process))

    def _process(
        self, name: str, target: Callable[..., None], args: tuple[Any, ...], percent: float | None
    ) -> BaseProcess:
        variables = None if self._mps is None else self._mps.environment(percent)
        process = start("forkserver", name, target, args, variables)
        assert process.pid is not None
        self._scratch.watch(process.pid)
        return process

    # Beginning and end ------------------------------------------------------------------------

    def ready(
        self, say: Callable[[str], None], go_on: Callable[[int, int], bool] | None
    ) -> list[dict[str, Any]]:
        """Wait until every worker can take requests; what each says about itself."""
        owned = self._property(go_on)
        for connection in self._holding[1:]:
            with suppress(OSError):  # it died: whoever looks for its answer tells
                connection.send(owned)
        say("loading kernels and capturing graphs" if self._device.kind == "cuda" else "loading")
        told: dict[int, dict[str, Any]] = {}
        deadline = monotonic() + READY_S
        while len(told) < len(self.ports):
            waiting = {port.connection: port for port in self.ports if port.index not in told}
            for connection in self._first_of(list(waiting), deadline, go_on):
                port = waiting[connection]
                message = self._read(connection, port.process)
                if isinstance(message, Failed):
                    raise RunFailed(f"{port.process.name} {failing(message.why)}")
                assert isinstance(message, Ready)
                told[port.index] = message.about
        return [told[port.index] for port in self.ports]

    def _property(self, go_on: Callable[[int, int], bool] | None) -> Property:
        assert self._owner is not None
        pipe = self._holding[0]
        self._first_of([pipe], monotonic() + READY_S, go_on)
        message = self._read(pipe, self._owner)
        if isinstance(message, str):
            raise RunFailed(f"the owner of weights and KV pools {failing(message)}")
        assert isinstance(message, Property)
        return message

    def _first_of(
        self, pipes: list[Connection], deadline: float, go_on: Callable[[int, int], bool] | None
    ) -> list[Connection]:
        """The pipes that have something; raises where somebody died, or nobody says anything."""
        assert self._owner is not None
        while True:
            processes = [self._owner, *self._hosts]
            found = [p for p in wait(pipes, LOOK_S) if isinstance(p, Connection)]
            if found:
                return found
            for process in processes:
                if process.exitcode is not None:
                    raise RunFailed(how_it_died(process))
            if (sick := self.health()) is not None:
                raise RunFailed(sick)
            if go_on is not None and not go_on(0, len(self._trace)):
                raise KeyboardInterrupt
            if monotonic() > deadline:
                raise RunFailed(f"a process was not ready after {READY_S:g} s")

    def _read(self, pipe: Connection, process: Process) -> Any:
        try:
            return pipe.recv()
        except (EOFError, OSError):
            process.join(LEAVE_S)
            raise RunFailed(how_it_died(process)) from None

    @property
    def blocks_in_use(self) -> int:
        """KV blocks that somebody holds, over all pools."""
        return sum(pool.total - pool.free_count() for pool in self._free_lists)

    def health(self) -> str | None:
        """What is wrong with somebody whom the router does not hear, in one line; or None."""
        if self._mps is not None and not self._mps.alive():
            return "the MPS daemon died"
        if self._owner is not None and self._owner.exitcode is not None:
            return how_it_died(self._owner)
        return self._stopped()

    def _stopped(self) -> str | None:
        """Who has been stopped for long: it would be missed late, or as if it only were slow."""
        before, self._looked = self._looked, monotonic()
        now = self._looked
        if now - before > STOPPED_S:  # we were stopped ourselves, perhaps with all the others
            self._stopped_at.clear()
        for process in [*([] if self._owner is None else [self._owner]), *self._hosts]:
            if process.pid is None or not is_stopped(process.pid):
                self._stopped_at.pop(process.name, None)
            elif now - self._stopped_at.setdefault(process.name, now) > STOPPED_S:
                return f"{named(process)} was stopped, by a signal such as SIGSTOP"
        return None


def _pools(
    deployment: Deployment, blocks: int, trace: Trace, llm: Llm
) -> tuple[tuple[int, ...], list[int], list[int | None]]:
    """The sizes of the KV pools, the pool of each worker, and the one that it copies from."""
    groups = list(deployment.each())
    nothing: list[int | None] = [None] * len(groups)
    if any(group.phase == "both" for group in groups):
        return (blocks,) * len(groups), list(range(len(groups))), nothing
    prefill, each = split_pools(deployment, blocks, trace.longest_prompt(llm.max_context))
    if each is None:
        return (blocks,), [0] * len(groups), nothing
    decoders = [index for index, group in enumerate(groups) if group.phase == "decode"]
    own = {index: place for place, index in enumerate(decoders, 1)}
    return (
        (prefill, *(each for _ in decoders)),
        [own.get(index, 0) for index in range(len(groups))],
        [0 if index in own else None for index in range(len(groups))],
    )


def _name(groups: list[Workers], indices: list[int]) -> str:
    """A process as an error names it, by its workers."""
    kinds = ["engine" if group.phase == "both" else group.phase for group in groups]
    if len(kinds) == 1:
        return f"{kinds[0]} process {indices[0]}"
    workers = (f"{kind} worker {index}" for kind, index in zip(kinds, indices, strict=True))
    return f"the process of {' and '.join(workers)}"
