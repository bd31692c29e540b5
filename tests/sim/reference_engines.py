"""The slow simulator's processes that run both phases, see `reference`."""

from __future__ import annotations

from dataclasses import dataclass

from reference_server import Server
from reference_world import (
    Process,
    Request,
    Sequence,
    Sleep,
    Step,
)

from splitwiser.models.work import prompt_pairs


class Continuous(Server):
    """Prefill first."""

    def life(self) -> Process:
        while True:
            if self.swapped:
                copied = self.swap_in()
                if copied:
                    yield Sleep(self.world.host_copy(copied * self.model.swap_seconds_per_block))
                    continue
            elif self.line.waiting and len(self.batch) < self.max_seqs:
                prompts = self.admit(self.max_seqs - len(self.batch))
                if prompts:
                    yield from self.prefill(prompts)
                    continue
            if self.batch:
                yield from self.decode()
            else:
                yield self.wait()


@dataclass(eq=False)
class Partial:
    """A prompt of which `done` of `tokens` tokens are computed."""

    request: Request
    done: int
    tokens: int


class Chunked(Server):
    """Every step decodes the batch and computes chunks of prompts.

    A scheduler that runs ahead plans a step when the one before it begins: it knows of the arrivals
    and of the ends up to then.
    """

    ahead = False

    def life(self) -> Process:
        self.partials: list[Partial] = []
        self.leaving = 0
        begun = self.world.now
        while True:
            if self.ahead:
                self.line.known = begun
            begun = self.world.now
            if self.swapped:
                copied = self.swap_in()
                if copied:
                    yield Sleep(self.world.host_copy(copied * self.model.swap_seconds_per_block))
                    continue
            if self.partials or (
                self.line.waiting and not self.swapped and len(self.batch) < self.max_seqs
            ):
                yield from self.make_room()
                self.grow()
                chunks = self.chunks()
                if chunks:
                    yield from self.mixed(chunks)
                    continue
            if self.batch:
                yield from self.decode()
            elif self.leaving or len(self.line.arrived) > len(self.line.waiting):
                self.leaving = 0
            else:
                yield self.wait()
                begun = self.world.now

    def stepped(self) -> None:
        running = len(self.batch)
        super().stepped()
        self.leaving = running - len(self.batch) if self.ahead else 0

    def chunks(self) -> list[tuple[Partial, int]]:
        budget = self.max_tokens - len(self.batch)
        chunks: list[tuple[Partial, int]] = []
        for part in self.partials:
            size = min(budget, part.tokens - part.done)
            if size > 0:
                chunks.append((part, size))
                budget -= size
        while (
            self.line.waiting
            and not self.swapped
            and budget > 0
            and len(self.batch) + len(self.partials) + self.leaving < self.max_seqs
        ):
            request = self.line.head()
            if not self.pool.fits(request, request.to_compute, self.pool.watermark):
                break
            self.line.pop()
            reused = self.pool.admit(request, request.to_compute)
            if not request.times:
                request.reused = reused
            part = Partial(request, reused, request.to_compute)
            self.partials.append(part)
            chunks.append((part, min(budget, part.tokens - reused)))
            budget -= chunks[-1][1]
        return chunks

    def mixed(self, chunks: list[tuple[Partial, int]]) -> Process:
        work = [prompt_pairs(size, part.done, self.model.window) for part, size in chunks]
        pairs, kv = (sum(column) for column in zip(*work, strict=True))
        rows = len(self.batch)
        new = sum(size for _, size in chunks)
        outputs = rows + sum(part.done + size == part.tokens for part, size in chunks)
        cost = self.cost.step(rows + new, outputs, pairs, kv, rows)
        self.schedule(part.request for part, _ in chunks)
        running = rows + len(self.partials)
        yield Step(cost.seconds(self.attended), cost.demand(self.attended))
        self.stepped()
        for part, size in chunks:
            part.done += size
            if part.done == part.tokens:
                self.partials.remove(part)
                self.computed(part.request, part.tokens)
        self.leaving = running - len(self.batch) - len(self.partials) if self.ahead else 0


class Static(Server):
    """A batch runs until its last row has ended; prompts are padded to the longest, and contexts
    where padding is kept.
    """

    swaps = False
    keeps_padding = False

    def life(self) -> Process:
        while True:
            if self.batch:
                yield from self.decode()
            elif self.line.waiting:
                yield from self.begin()
            else:
                yield self.wait()

    def live(self, sequence: Sequence) -> bool:
        return sequence.request.outcome == "in system"

    def begin(self) -> Process:
        rows: list[Request] = []
        longest = 0
        while self.line.waiting and len(rows) < self.max_seqs:
            tokens = max(longest, self.line.head().to_compute)
            if (len(rows) + 1) * self.pool.blocks(tokens) + self.pool.watermark > self.pool.free:
                break
            longest = tokens
            rows.append(self.line.pop())
        for request in rows:
            self.pool.admit(request, longest)
        causal, read = prompt_pairs(longest, 0, self.model.window)
        count = len(rows)
        cost = self.cost.step(count * longest, count, count * causal, count * read, 0)
        self.schedule(rows)
        yield Step(cost.seconds(0), cost.demand(0))
        for request in rows:
            context = longest if self.keeps_padding else request.to_compute
            self.pool.hold(request, context)
            self.batch.append(Sequence(request, context))
            self.token(request)
        self.end_rows()

    def token(self, request: Request) -> None:
        if request.outcome == "in system":
            super().token(request)

    def stepped(self) -> None:
        for sequence in self.batch:
            sequence.kv += 1
            sequence.fresh = False
            self.token(sequence.request)
        self.end_rows()

    def end_rows(self) -> None:
        for sequence in self.batch:
            request = sequence.request
            if self.live(sequence) and len(request.times) == request.output:
                self.world.leave(request, "completed")
        self.end_batch()

    def end_batch(self) -> None:
        if not any(self.live(sequence) for sequence in self.batch):
            for sequence in self.batch:
                self.pool.release(sequence.request)
            self.batch.clear()

    def preempt(self) -> int:
        if self.live(self.batch[-1]):
            super().preempt()
        else:
            self.pool.release(self.batch.pop().request)
        self.end_batch()
        return 0
