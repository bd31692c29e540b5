"""What all workers have in common: a loop that launches steps ahead, and a decode batch.

A worker decides and launches its next step shortly before the one under way ends, so that the
device does not wait for the host, and whoever comes meanwhile is still in time for it. What it
schedules is the state once all launched steps have ended: the host knows it by counting. Tokens,
and blocks to be freed, come when a step has ended (`settle`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from operator import attrgetter
from time import monotonic
from typing import Any

import numpy as np
from torch import Tensor

from splitwiser.sim.admission import WATERMARK, waiting_line
from splitwiser.sim.deployment import Workers
from splitwiser.validate.runtime.blocks import BlockAllocator
from splitwiser.validate.runtime.mailbox import Mailbox
from splitwiser.validate.runtime.messages import Aborted, Ids, Preempted, Prompt, Stop, Stopped
from splitwiser.validate.runtime.pace import Pace
from splitwiser.validate.runtime.reporter import Flight, Reporter, Running, slots_of
from splitwiser.validate.runtime.runner import Chunk, Runner

RECHECK = 1e-3  # s between two looks at the pool, while only memory is missing


class Worker(ABC):
    """One worker of a deployment: it talks to the router, and takes steps on its runner."""

    hands_over = False  # whether computed prompts go on in another worker

    def __init__(
        self,
        index: int,
        group: Workers,
        runner: Runner,
        pool: BlockAllocator,
        mailbox: Mailbox,
        reporter: Reporter,
        *,
        order: str,
        swap: bool,
    ) -> None:
        self.index = index
        self.runner = runner
        self.pool = pool
        self.mailbox = mailbox
        self.reporter = reporter
        self.max_seqs = group.max_num_seqs
        self.max_tokens = group.max_num_batched_tokens
        self.watermark = int(WATERMARK * pool.total)
        self.batch: list[Running] = []  # in the order in which they joined
        self.swapped: deque[tuple[Running, Tensor]] = deque()
        self._swap = swap
        self._prompts: dict[int, Prompt] = {}
        self._lengths: dict[int, int] = {}
        self.waiting = waiting_line(order, self._lengths)
        self._slots = list(range(group.max_num_seqs))[::-1]
        self._flight: Flight | None = None
        self._idle = True  # there was nothing to launch
        self._stopped = False
        self._pace = Pace()
        self._preemptions = 0

    # The loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until the router says stop."""
        while True:
            self._listen()
            if self._stopped:
                break
            following = self.launch()
            self._idle = following is None
            if following is not None:
                self.reporter.watch(following)
            self.settle()
            self._flight = following
            if not self.runner.asynchronous:
                self.settle()
        self.settle()
        self.mailbox.send(Stopped(self.index, self.about()))

    def about(self) -> dict[str, Any]:
        """What this worker counted, for the result."""
        return {
            "steps": self.reporter.steps,
            "preemptions": self._preemptions,
            "send_seconds": self.mailbox.send_seconds,
        }

    @abstractmethod
    def launch(self) -> Flight | None:
        """Decide on the next step and launch it; None where there is nothing to do."""

    def receive(self, message: Any, at: float) -> None:
        """A message of the router, which came at a time."""
        if isinstance(message, Stop):
            self._stopped = True
        elif isinstance(message, Prompt):
            self.enqueue(message)
        elif isinstance(message, MemoryError):
            raise message
        else:
            raise TypeError(f"worker {self.index} cannot do {type(message).__name__}")

    def enqueue(self, prompt: Prompt) -> None:
        """Put a prompt into the waiting line."""
        self._prompts[prompt.request] = prompt
        self._lengths[prompt.request] = len(prompt.tokens)
        if prompt.urgent:
            self.waiting.appendleft(prompt.request)
        else:
            self.waiting.append(prompt.request)

    @property
    def wants_memory(self) -> bool:
        """Whether somebody waits who could go on if blocks came free."""
        return bool(self.waiting or self.swapped)

    def _listen(self) -> None:
        """Take messages until it is time to launch; without a step under way, until there is work."""
        flight = self._flight
        if flight is None:
            idling = RECHECK if self.wants_memory else None
            for at, message in self.mailbox.take(idling if self._idle else 0):
                self.receive(message, at)
            return
        deadline = self._pace.next_launch(flight)
        while True:
            for at, message in self.mailbox.take(deadline - monotonic()):
                self.receive(message, at)
            if self._stopped or flight.done.is_set() or monotonic() >= deadline:
                return

    def settle(self) -> None:
        """Wait for the end of the step under way: its tokens are known then, and blocks are free."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        flight.done.wait()
        if flight.failure is not None:
            raise flight.failure
        self._pace.learn(flight)

    # Prompts ----------------------------------------------------------------------------------

    def admit(self, room: int) -> list[Running]:
        """Take what waits, in order, that fits the pool, *room* sequences and `max_tokens`.

        A prompt longer than `max_tokens` runs alone, as in the simulator.
        """
        admitted: list[Running] = []
        tokens = 0
        while self.waiting and len(admitted) < room:
            count = self._lengths[self.waiting[0]]
            if admitted and tokens + count > self.max_tokens:
                break
            running = self.admit_head(count)
            if running is None:
                break
            admitted.append(running)
            tokens += count
        return admitted

    def admit_head(self, tokens: int) -> Running | None:
        """Take the head of the line, with blocks for *tokens* tokens; None where they do not fit."""
        blocks = self.pool.allocate(self.blocks(tokens), self.watermark)
        if blocks is None:
            return None
        prompt = self._prompts.pop(self.waiting.popleft())
        del self._lengths[prompt.request]
        return Running(
            prompt.request,
            prompt.tokens.tolist(),
            len(prompt.tokens),
            prompt.outputs,
            blocks.tolist(),
            None,
            not prompt.urgent,
        )

    def compute(self, prompts: list[Running], padded: int = 0) -> Flight:
        """Launch a step that computes whole prompts, each padded to at least *padded* tokens."""
        chunks = []
        for running in prompts:
            self.promise_token(running)
            tokens = np.zeros(max(running.length, padded), np.int32)
            tokens[: running.length] = running.tokens
            blocks = np.array(running.blocks, np.int32)
            chunks.append(Chunk(tokens, 0, blocks, running.length - 1, running.slot))
        return Flight(
            self.runner.compute(chunks, []),
            prompts=prompts,
            prompt_tokens=sum(len(chunk.tokens) for chunk in chunks),
            scheduled=tuple(r.request for r in prompts if r.is_new),
            leaving=[r for r in prompts if not r.outputs],
        )

    def promise_token(self, running: Running) -> None:
        """The prompt will give a token; whoever has more to come joins the batch, if it is here."""
        running.outputs -= 1
        if running.outputs and not self.hands_over:
            self.join(running)

    # The batch --------------------------------------------------------------------------------

    def join(self, running: Running) -> None:
        """A sequence takes a slot and decodes from the next step on."""
        running.slot = self._slots.pop()
        self.runner.add_blocks(running.slot, 0, running.blocks)
        self.batch.append(running)

    def leave(self, running: Running) -> None:
        """A sequence gives its slot back."""
        assert running.slot is not None
        self._slots.append(running.slot)
        self.batch.remove(running)

    def members(self) -> list[Running]:
        """The batch in the order in which a step computes it: the longest sequences first.

        The device begins their attention in that order, and the step waits for the last to end:
        a long one that begins late runs on alone (`benchmarks/steps.py`).
        """
        return sorted(self.batch, key=attrgetter("length"), reverse=True)

    def decode(self) -> Flight:
        """Launch a decode step of the batch."""
        members = self.members()
        pending = self.runner.decode(slots_of(members))
        return Flight(pending, decoded=members, leaving=self.advance(members))

    def advance(self, members: list[Running]) -> list[Running]:
        """These members of the batch get a token each by a launched step; who leaves with it."""
        ended = []
        for member in members:
            member.length += 1
            member.outputs -= 1
            if not member.outputs:
                ended.append(member)
        for member in ended:
            self.leave(member)
        return ended

    # Memory -----------------------------------------------------------------------------------

    def blocks(self, tokens: int) -> int:
        """Blocks that hold *tokens* tokens."""
        return -(-tokens // self.runner.block_size)

    def release(self, member: Running) -> None:
        """Free the blocks of a sequence."""
        self.pool.release(np.array(member.blocks, np.int32))
        member.blocks = []

    def make_room(self) -> None:
        """See that every member has a block for its next token; preempt the last where none is."""
        while self.batch:
            full = [m for m in self.batch if m.length == len(m.blocks) * self.runner.block_size]
            if not full:
                return
            blocks = self.pool.allocate(len(full))
            if blocks is not None:
                for member, block in zip(full, blocks.tolist(), strict=True):
                    assert member.slot is not None
                    self.runner.add_blocks(member.slot, len(member.blocks), [block])
                    member.blocks.append(block)
                return
            if self._flight is not None:
                self.settle()  # who left with it frees blocks; and the tokens must be known
            else:
                self.preempt(self.batch[-1])

    def preempt(self, member: Running) -> None:
        """Take a member out of the batch: swap it out, have it recomputed, or give it up."""
        self.leave(member)
        self._preemptions += 1
        needed = self.blocks(member.length + 1)
        if self._swap and needed <= self.pool.total:
            # Whoever has just come back may hold a block more, for the next token.
            kept = np.array(member.blocks[: self.blocks(member.length)], np.int32)
            self.swapped.append((member, self.runner.save(kept)))
            self.mailbox.send(Preempted(self.index, member.request, kept=True))
        elif needed + self.watermark <= self.pool.total:
            self.mailbox.send(Preempted(self.index, member.request, kept=self.requeue(member)))
        else:
            self.mailbox.send(Aborted(self.index, member.request))
        self.release(member)

    def requeue(self, member: Running) -> bool:
        """Put a preempted member into the own line; False where the router has to send it on."""
        tokens: Ids = np.array(member.tokens, np.int32)
        self.enqueue(Prompt(member.request, tokens, member.outputs, urgent=True))
        return True

    def swap_in(self) -> None:
        """Bring back swapped sequences that fit, in order."""
        while self.swapped and len(self.batch) < self.max_seqs:
            member, saved = self.swapped[0]
            reserve = self.watermark if self.batch else 0
            blocks = self.pool.allocate(self.blocks(member.length + 1), reserve)
            if blocks is None:
                return
            self.swapped.popleft()
            kept = self.blocks(member.length)
            self.runner.restore(saved, blocks[:kept])
            member.blocks = blocks.tolist()
            self.join(member)
            assert member.slot is not None
            self.runner.seat(member.slot, member.tokens[-1], member.length)
