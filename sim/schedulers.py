"""The workers that run both phases: static batches, continuous batching, chunked prefill."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from heapq import heapify, heappop, heappush
from math import inf, isnan

from simpy import Event

from splitwiser.models.work import prompt_pairs
from splitwiser.sim.batch import Member
from splitwiser.sim.device import Task
from splitwiser.sim.log import pack_stay
from splitwiser.sim.worker import Steps, Worker


class ContinuousWorker(Worker):
    """Continuous batching, prefill first (vLLM v0): prompts interrupt decoding between steps."""

    def run(self) -> Steps:
        env, queue, batch, pool = self.env, self.queue, self.batch, self.pool
        waiting = queue.waiting
        known = now = env.now
        while True:
            if queue.next_at <= known:
                queue.pull(known)
            if self.swapped:
                if (yield from self.swap_in()):
                    known = now = env.now
                    continue
            elif waiting and batch.size < self.max_seqs:
                prompts = self.admit(self.max_seqs - batch.size)
                if prompts:
                    begun = now
                    now = yield self.start_prefill(prompts, now)
                    known = self.decided(begun, now)
                    self.end_prefill(prompts, now)
                    continue
            if not batch.size:
                known = now = yield queue.wait()
                continue
            if pool.free < batch.size:
                yield from self.make_room()
                now = env.now
            if batch.size:
                begun = now
                now = yield self.start_decode(now, self.next_decision())
                known = self.decided(begun, now)
                self.end_decode(now)


class Partial:
    """A prompt of which `done` of `tokens` tokens are computed."""

    __slots__ = ("done", "request", "tokens")

    def __init__(self, request: int, done: int, tokens: int) -> None:
        self.request = request
        self.done = done
        self.tokens = tokens


class ChunkedWorker(Worker):
    """Chunked prefill (Sarathi, vLLM v1): a step decodes, and fills its budget with prompt chunks.

    A prompt gets all its blocks when its first chunk is scheduled, as in Sarathi. A scheduler that
    runs `ahead` plans a step when the one before it begins, as vLLM's `async_scheduling`: requests
    that come and places that come free during a step count from the next but one.
    """

    ahead = False
    partials: deque[Partial]
    leaving: int  # sequences that ended too late for the next step's plan to have their places

    def run(self) -> Steps:
        env, queue, batch, pool = self.env, self.queue, self.batch, self.pool
        self.partials = deque()
        self.leaving = 0
        now = known = env.now
        while True:
            if queue.next_at <= known:
                queue.pull(known)
            planned = now
            if self.swapped and (yield from self.swap_in()):
                now = env.now
                known = planned if self.ahead else now
                continue
            # Prompts that were begun go on even while sequences are swapped out: they hold memory.
            if self.partials or (queue.waiting and not self.swapped and batch.size < self.max_seqs):
                if pool.free < batch.size:
                    yield from self.make_room()
                    now = env.now
                step = batch.blocks_for(1)
                pool.free -= step
                chunks = self._chunks()
                if chunks:
                    running = batch.size + len(self.partials)
                    begun = now
                    now = yield self._start_mixed(chunks, now)
                    known = planned if self.ahead else self.decided(begun, now)
                    self._end_mixed(chunks, now)
                    self.leaving = running - batch.size - len(self.partials) if self.ahead else 0
                    continue
                pool.give(step)
            if not batch.size:
                if self.leaving:  # nothing runs: the next step is planned now
                    self.leaving = 0
                else:
                    now = yield queue.wait()
                known = now
                continue
            if pool.free < batch.size:
                yield from self.make_room()
                now = env.now
            if batch.size:
                running = batch.size
                begun = now
                now = yield self.start_decode(now, self.next_decision())
                known = planned if self.ahead else self.decided(begun, now)
                self.end_decode(now)
                self.leaving = running - batch.size if self.ahead else 0

    def next_decision(self) -> float:
        if not self.ahead:
            return super().next_decision()
        if self.made_room or (self.leaving and self.queue.waiting):
            self.made_room = False
            return self.env.now
        # Every arrival ends the run, so that what has come before its last step is known by then.
        return inf if self.batch.size >= self.max_seqs else self.queue.next_at

    def _chunks(self) -> list[tuple[Partial, int]]:
        """The next step's chunks: prompts begun first, then waiting ones while there is room."""
        waiting, pool, world = self.queue.waiting, self.pool, self.world
        budget = self.max_tokens - self.batch.size
        chunks: list[tuple[Partial, int]] = []
        for partial in self.partials:
            if budget <= 0:
                return chunks
            size = min(budget, partial.tokens - partial.done)
            chunks.append((partial, size))
            budget -= size
        running = self.batch.size + len(self.partials) + self.leaving
        room = 0 if self.swapped else self.max_seqs - running
        while waiting and budget > 0 and room > 0:
            room -= 1
            request = waiting[0]
            tokens = world.tokens_to_compute(request)
            if not pool.fits(request, tokens, self.watermark):
                break
            waiting.popleft()
            self.queue.head_changed()
            reused = pool.admit(request, tokens)
            if request not in world.generated:
                self.log.reused[request] = reused
            partial = Partial(request, reused, tokens)
            self.partials.append(partial)
            size = min(budget, tokens - reused)
            chunks.append((partial, size))
            budget -= size
        return chunks

    def _start_mixed(self, chunks: list[tuple[Partial, int]], now: float) -> Event:
        """Begin a step of the batch and the chunks; their blocks are taken already."""
        batch = self.batch
        new = complete = 0
        pairs = kv = 0.0
        for partial, size in chunks:
            if isnan(self.log.scheduled[partial.request]):
                self.log.scheduled[partial.request] = now
            new += size
            complete += partial.done + size == partial.tokens
            causal, read = prompt_pairs(size, partial.done, self.world.window)
            pairs += causal
            kv += read
        cost = self.cost.step(batch.size + new, batch.size + complete, pairs, kv, batch.size)
        self.task.batch, self.task.joined = batch.size, batch.newly_joined
        return self.start_step(cost, batch.attended, new, now)

    def _end_mixed(self, chunks: list[tuple[Partial, int]], now: float) -> None:
        if self.batch.size:
            self.advance(1, now)
        for partial, size in chunks:
            partial.done += size
            if partial.done == partial.tokens:
                self.partials.remove(partial)
                self.end_prefill([(partial.request, partial.tokens, 0)], now)


class StaticWorker(Worker):
    """Static batches: prompts padded to the longest, and run until the longest member has ended.

    Rows that have ended go on computing, as in Hugging Face's `generate`. Tokens count when they
    are made. A row that memory has no room for starts again in a later batch. The paper's code
    `keeps_padding` as context; paged attention reads what a row has, and the blocks of the padding
    are free again once the prompts are computed.
    """

    swaps = False
    keeps_padding = False

    def run(self) -> Steps:
        env, queue, batch, pool = self.env, self.queue, self.batch, self.pool
        self._ends: list[tuple[int, int]] = []  # (step, request) of the rows that still get tokens
        now = env.now
        while True:
            if queue.next_at <= now:
                queue.pull(now)
            if batch.size:
                if pool.free < batch.size:
                    yield from self.make_room()
                if batch.size:
                    now = yield self.start_decode(now, inf)
                    self.end_decode(now)
            elif queue.waiting:
                now = yield from self._begin(now)
            else:
                now = yield queue.wait()

    def _begin(self, now: float) -> Generator[Event, float, float]:
        """Make a batch of what waits, and compute its prompts."""
        waiting, world, pool = self.queue.waiting, self.world, self.pool
        requests: list[int] = []
        longest = 0
        while waiting and len(requests) < self.max_seqs:
            tokens = max(longest, world.tokens_to_compute(waiting[0]))
            if not pool.available((len(requests) + 1) * pool.blocks(tokens) + self.watermark):
                break
            longest = tokens
            requests.append(waiting.popleft())
        rows = len(requests)
        for request in requests:
            pool.admit(request, longest)
        causal, read = prompt_pairs(longest, 0, world.window)
        cost = self.cost.step(rows * longest, rows, rows * causal, rows * read, 0)
        for request in requests:
            if isnan(self.log.scheduled[request]):
                self.log.scheduled[request] = now
        self.task.batch = self.task.joined = 0
        now = yield self.start_step(cost, 0, rows * longest, now)
        held = [longest if self.keeps_padding else world.tokens_to_compute(r) for r in requests]
        pool.give(rows * pool.blocks(longest) - sum(map(pool.blocks, held)))
        to_come = [world.emit_first(request, now) for request in requests]
        for request, tokens, remaining in zip(requests, held, to_come, strict=True):
            if max(to_come):
                self.batch.add(request, tokens, max(to_come), now)
            else:
                pool.release(request, tokens)
            if remaining:
                heappush(self._ends, (self.batch.step + remaining, request))
            else:
                world.finish(request, now)
        return now

    def _plan(self, task: Task) -> None:
        super()._plan(task)
        task.steps = min(task.steps, self._ends[0][0] - self.batch.step)
        # The ended rows compute, but nobody gets their tokens.
        task.batch = len(self._ends)
        task.joined = task.batch if task.joined else 0

    def advance(self, steps: int, now: float) -> None:
        self.last_step = now
        rows = dict(self.batch.members)
        for request, tokens, joined, ends, _ in self.batch.advance(steps):
            self.pool.release(request, tokens + ends - joined)
        while self._ends and self._ends[0][0] <= self.batch.step:
            step, request = heappop(self._ends)
            _, _, joined, _, last_token = rows[request]
            self._write_stay(pack_stay(request, self.index, joined, step, last_token))
            self.world.finish(request, now)
        self._drop_ended_batch()

    def has_ended(self, request: int) -> bool:
        return all(request != live for _, live in self._ends)

    def remaining(self, member: Member) -> int:
        return next(step for step, request in self._ends if request == member[0]) - self.batch.step

    def preempt(self) -> int:
        last = next(reversed(self.batch.members))
        copied = 0
        if not self.has_ended(last):
            copied = super().preempt()
            self._ends = [entry for entry in self._ends if entry[1] != last]
            heapify(self._ends)
        else:
            self._drop(last)
        self._drop_ended_batch()
        return copied

    def _drop_ended_batch(self) -> None:
        """Where all the rows that are left have ended, the batch is over."""
        if not self._ends:
            for request in list(self.batch.members):
                self._drop(request)

    def _drop(self, request: int) -> None:
        """Take out a row that has ended."""
        _, tokens, joined, _, _ = self.batch.remove(request)
        self.pool.release(request, tokens + self.batch.step - joined)
