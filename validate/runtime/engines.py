"""Whole engines, which run both phases: continuous batching, chunked prefill, static batches.

They decide as their namesakes in `splitwiser.sim.schedulers` do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitwiser.validate.runtime.reporter import Flight, Running, slots_of
from splitwiser.validate.runtime.runner import Chunk
from splitwiser.validate.runtime.worker import Worker


class ContinuousEngine(Worker):
    """Continuous batching, prefill first (vLLM v0): prompts interrupt decoding between steps."""

    def launch(self) -> Flight | None:
        if self.swapped:
            self.swap_in()
        elif self.waiting and len(self.batch) < self.max_seqs:
            prompts = self.admit(self.max_seqs - len(self.batch))
            if prompts:
                return self.compute(prompts)
        self.make_room()
        return self.decode() if self.batch else None


@dataclass(slots=True, eq=False)
class Partial:
    """A prompt of which *done* tokens are computed, or about to be."""

    running: Running
    done: int = 0


class ChunkedEngine(Worker):
    """Chunked prefill (Sarathi, vLLM v1): a step decodes, and fills its budget with prompt chunks.

    A prompt gets all its blocks when its first chunk is scheduled, as in Sarathi.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.partials: deque[Partial] = deque()

    def launch(self) -> Flight | None:
        if self.swapped:
            self.swap_in()
        self.make_room()
        chunks = self._chunks()
        if chunks:
            return self._mixed(chunks)
        return self.decode() if self.batch else None

    def _chunks(self) -> list[tuple[Partial, int]]:
        """The next step's chunks: prompts begun first, then waiting ones while there is room."""
        budget = self.max_tokens - len(self.batch)
        chunks: list[tuple[Partial, int]] = []
        for partial in self.partials:
            if budget <= 0:
                return chunks
            size = min(budget, partial.running.length - partial.done)
            chunks.append((partial, size))
            budget -= size
        room = 0 if self.swapped else self.max_seqs - len(self.batch) - len(self.partials)
        while self.waiting and budget > 0 and room > 0:
            running = self.admit_head(self._lengths[self.waiting[0]])
            if running is None:
                break
            room -= 1
            partial = Partial(running)
            self.partials.append(partial)
            size = min(budget, running.length)
            chunks.append((partial, size))
            budget -= size
        return chunks

    def _mixed(self, sizes: list[tuple[Partial, int]]) -> Flight:
        """Launch a step of the batch and the chunks."""
        members = self.members()
        slots = slots_of(members)  # before anybody gives theirs back
        chunks: list[Chunk] = []
        scheduled: list[int] = []
        complete: list[Running] = []
        for partial, size in sizes:
            running, done = partial.running, partial.done
            if not done and running.is_new:
                scheduled.append(running.request)
            partial.done += size
            ends = partial.done == running.length
            if ends:
                self.partials.remove(partial)
                complete.append(running)
                # It takes its slot before the step's own members give theirs back: they still
                # decode in this step.
                self.promise_token(running)
            chunks.append(
                Chunk(
                    np.array(running.tokens[done : partial.done], np.int32),
                    done,
                    np.array(running.blocks, np.int32),
                    size - 1 if ends else None,
                    running.slot,
                )
            )
        pending = self.runner.compute(chunks, slots)
        return Flight(
            pending,
            decoded=members,
            prompts=complete,
            prompt_tokens=sum(size for _, size in sizes),
            scheduled=tuple(scheduled),
            leaving=self.advance(members) + [r for r in complete if not r.outputs],
        )


class StaticEngine(Worker):
    """Static batches: prompts padded to the longest, and run until the longest member has ended.

    Rows that have ended go on computing, as in Hugging Face's `generate`. A decode step reads what
    each row has, so that the blocks of the padding serve others once the prompts are launched.
    """

    def launch(self) -> Flight | None:
        if self.batch and not any(member.outputs for member in self.batch):
            self.settle()
            for member in self.batch.copy():
                self._drop(member)
        if not self.batch:
            return self._begin()
        for member in [m for m in self.batch if not m.outputs and m.length >= self.runner.longest]:
            self._drop(member)  # it has no room to go on for nothing
        self.make_room()
        return self.decode() if any(member.outputs for member in self.batch) else None

    def _begin(self) -> Flight | None:
        """Make a batch of what waits, and compute its prompts."""
        prompts: list[Running] = []
        longest = 0
        while self.waiting and len(prompts) < self.max_seqs:
            wanted = max(longest, self._lengths[self.waiting[0]])
            if not self._widen(prompts, wanted):
                break
            running = self.admit_head(wanted)
            if running is None:
                break
            longest = wanted
            prompts.append(running)
        if not prompts:
            return None
        flight = self.compute(prompts, longest)
        flight.leaving = []  # rows that have ended stay until the batch has
        for running in prompts:
            self._narrow(running)
        return flight

    def _narrow(self, running: Running) -> None:
        """Free the blocks of a prompt's padding: what writes to them next is launched behind it."""
        kept = self.blocks(running.length)
        self.pool.release(np.array(running.blocks[kept:], np.int32))
        del running.blocks[kept:]

    def _widen(self, prompts: list[Running], longest: int) -> bool:
        """Give every row blocks for *longest* tokens; False, and nothing done, if they do not fit."""
        missing = [self.blocks(longest) - len(running.blocks) for running in prompts]
        blocks = self.pool.allocate(sum(missing), self.watermark) if any(missing) else None
        if blocks is None:
            return not any(missing)
        for running, count in zip(prompts, missing, strict=True):
            running.blocks.extend(blocks[:count].tolist())
            blocks = blocks[count:]
        return True

    def promise_token(self, running: Running) -> None:
        running.outputs -= 1
        self.join(running)

    def advance(self, members: list[Running]) -> list[Running]:
        for member in members:
            member.length += 1
            member.outputs = max(0, member.outputs - 1)
        if any(member.outputs for member in members):
            return []
        for member in members:
            self.leave(member)
        return members

    def decode(self) -> Flight:
        gaining = [member if member.outputs else None for member in self.members()]
        flight = super().decode()
        flight.decoded = gaining
        return flight

    def _drop(self, member: Running) -> None:
        self.leave(member)
        self.release(member)

    def preempt(self, member: Running) -> None:
        if member.outputs:
            super().preempt(member)
        else:
            self._drop(member)
