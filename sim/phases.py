"""The workers that run one phase each: prefill processes hand sequences over to decode processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

from simpy import Event

from splitwiser.sim.admission import WATERMARK
from splitwiser.sim.kv import BlockPool
from splitwiser.sim.worker import Steps, Worker
from splitwiser.sim.world import Link


class Handover(NamedTuple):
    """A sequence whose prompt is computed, on its way to a decode process."""

    request: int
    tokens: int
    remaining: int
    last_token: float


class DecodeWorker(Worker):
    """Decodes the sequences that prefill processes hand over; new ones join between two steps.

    With a pool of its own (`source_pool` is then the prefill side's) it first copies a sequence's
    blocks, `copy_seconds_per_block` each, once it has room for them.
    """

    source_pool: BlockPool | None = None
    copy_seconds_per_block = 0.0
    copies: Link | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inbox: deque[Handover] = deque()
        self._copied: deque[Handover] = deque()
        self._copying = 0
        self._idle: Event | None = None

    @property
    def load(self) -> int:
        """Sequences here and on their way here."""
        sequences = self.batch.size + len(self.inbox) + len(self._copied) + len(self.swapped)
        return sequences + self._copying

    def run(self) -> Steps:
        env, batch, pool = self.env, self.batch, self.pool
        now = env.now
        while True:
            if self.swapped and (yield from self.swap_in()):
                now = env.now
                continue
            self._take_in()
            if not batch.size:
                self._idle = env.event()
                now = yield self._idle
                continue
            if pool.free < batch.size:
                yield from self.make_room()
                now = env.now
            if batch.size:
                now = yield self.start_decode(now, self.next_decision())
                self.end_decode(now)

    def next_decision(self) -> float:
        """Only after preemption; for the rest, who has something to take in says so: see `look`."""
        if self.made_room:
            self.made_room = False
            return self.env.now
        return inf

    def receive(self, sequence: Handover) -> None:
        """A sequence is handed over."""
        self.inbox.append(sequence)
        if self.source_pool is not None:
            self._begin_copies()
        else:
            self.look()

    def look(self) -> None:
        """There may be something to take in: end the run at the next step, or the idling."""
        if self._idle is not None:
            event, self._idle = self._idle, None
            event.succeed(self.env.now)
        elif self.batch.size < self.max_seqs and (self.inbox or self._copied or self.swapped):
            self.device.break_at(self.task, self.env.now)

    def _take_in(self) -> None:
        ready = self.inbox if self.source_pool is None else self._copied
        while ready and self.batch.size < self.max_seqs:
            self.batch.add(*ready.popleft())

    def can_recompute(self, blocks: int) -> bool:
        source = self.source_pool
        back = source is None or blocks + int(WATERMARK * source.total) <= source.total
        return back and super().can_recompute(blocks)

    def _begin_copies(self) -> None:
        """Copy what fits the own pool, in order."""
        while self.inbox:
            sequence = self.inbox[0]
            if not self.pool.fits(sequence.request, sequence.tokens, self.watermark):
                return
            self.inbox.popleft()
            self.pool.admit(sequence.request, sequence.tokens)
            self._copying += 1
            assert self.copies is not None
            blocks = self.pool.blocks(sequence.tokens)
            seconds = self.copies.copy(blocks * self.copy_seconds_per_block)
            self.after(seconds, self._end_copy, sequence)

    def _end_copy(self, sequence: Handover) -> None:
        assert self.source_pool is not None
        self._copying -= 1
        self.source_pool.release(sequence.request, sequence.tokens)
        self._copied.append(sequence)
        self.look()

    def memory_came_free(self) -> None:
        """Blocks of the own pool came free."""
        if self.source_pool is not None and self.inbox:
            self._begin_copies()
        if self.swapped:
            self.look()


class PrefillWorker(Worker):
    """Computes prompts, and hands each to the decode process with the fewest sequences."""

    decoders: Sequence[DecodeWorker] = ()
    handover_seconds = 0.0

    def run(self) -> Steps:
        env, queue = self.env, self.queue
        now = env.now
        while True:
            if queue.next_at <= now:
                queue.pull(now)
            prompts = self.admit(self.max_seqs)
            if prompts:
                now = yield self.start_prefill(prompts, now)
                self.end_prefill(prompts, now)
            else:
                now = yield queue.wait()

    def computed(self, request: int, tokens: int, remaining: int, now: float) -> None:
        sequence = Handover(request, tokens, remaining, now)
        if self.handover_seconds:
            self.after(self.handover_seconds, self._hand_over, sequence)
        else:
            self._hand_over(sequence)

    def _hand_over(self, sequence: Handover) -> None:
        min(self.decoders, key=lambda decoder: decoder.load).receive(sequence)
