"""What all processes of the slow simulator have in common, see `reference`."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from reference_world import (
    Idle,
    Line,
    Model,
    Pool,
    Process,
    Request,
    Sequence,
    Sleep,
    Step,
    World,
)

from splitwiser.models.cost import Demand, StepCost
from splitwiser.models.work import prompt_pairs
from splitwiser.sim.decoding import Costs
from splitwiser.sim.deployment import Workers


class Server:
    """What the processes have in common."""

    def __init__(self, world: World, line: Line, pool: Pool, group: Workers, model: Model) -> None:
        self.world, self.line, self.pool, self.model = world, line, pool, model
        self.max_seqs, self.max_tokens = group.max_num_seqs, group.max_num_batched_tokens
        self.cost: Costs = world.physics.costs(group)
        self.batch: list[Sequence] = []  # in order of admission
        self.swapped: list[Sequence] = []
        self.stated: Demand | None = None
        self.stated_for = (0, 0.0)  # sequences, and attended tokens at which it is restated

    def life(self) -> Process:
        raise NotImplementedError

    @property
    def attended(self) -> int:
        window = self.model.window
        lengths = [sequence.kv + 1 for sequence in self.batch]
        return sum(lengths if window is None else (min(n, window) for n in lengths))

    def wait(self) -> Idle:
        return Idle(self.line.sleepers)

    # Decoding

    def needed(self) -> int:
        """Blocks that the next step of the batch lacks."""
        pool = self.pool
        return sum(pool.blocks(s.kv + 1) - pool.held(s.request) for s in self.batch)

    def make_room(self) -> Generator[Sleep, None, None]:
        """Preempt until the next step of those that are left has its blocks."""
        while self.batch and self.needed() > self.pool.free:
            copied = self.preempt()
            if copied:
                yield Sleep(self.world.host_copy(copied * self.model.swap_seconds_per_block))

    def grow(self) -> None:
        for sequence in self.batch:
            self.pool.hold(sequence.request, sequence.kv + 1)

    def decode(self) -> Process:
        """One step of the batch."""
        yield from self.make_room()
        if not self.batch:
            return
        self.grow()
        cost = self.cost.decode(len(self.batch))
        yield Step(cost.seconds(self.attended), self.demand(cost))
        self.stepped()

    def demand(self, cost: StepCost) -> Demand:
        size, until = self.stated_for
        fresh = any(sequence.fresh for sequence in self.batch)
        if self.stated is None or fresh or size != len(self.batch) or self.attended >= until:
            self.stated = cost.demand(1.125 * self.attended)
            self.stated_for = (len(self.batch), 1.125 * self.attended)
        return self.stated

    def stepped(self) -> None:
        """The batch has made a step: a token for each."""
        for sequence in sorted(self.batch, key=lambda s: s.request.number):
            sequence.kv += 1
            sequence.fresh = False
            self.token(sequence.request)
            if len(sequence.request.times) == sequence.request.output:
                self.batch.remove(sequence)
                self.pool.release(sequence.request)
                self.world.leave(sequence.request, "completed")

    def token(self, request: Request) -> None:
        request.times.append(self.world.now)

    def preempt(self) -> int:
        """Take out the sequence admitted last; the blocks to copy."""
        sequence = self.batch.pop()
        request = sequence.request
        self.pool.release(request)
        request.preemptions += 1
        needed = self.pool.blocks(request.to_compute)
        if self.model.swap and needed <= self.pool.total and self.swaps:
            sequence.fresh = True
            self.swapped.append(sequence)
            return self.pool.blocks(sequence.kv)
        if all(needed + pool.watermark <= pool.total for pool in self.pools):
            self.line.push_back(request)
            self.world.wake(self.line.sleepers)
        else:
            self.world.leave(request, "aborted")
        return 0

    swaps = True

    @property
    def pools(self) -> list[Pool]:
        """The pools through which a preempted request has to go again."""
        return [self.pool]

    def swap_in(self) -> int:
        """Bring back swapped sequences that fit; the blocks to copy."""
        copied = 0
        while self.swapped and len(self.batch) < self.max_seqs:
            sequence = self.swapped[0]
            reserve = self.pool.watermark if self.batch else 0
            if not self.pool.fits(sequence.request, sequence.kv + 1, reserve):
                break
            self.batch.append(self.swapped.pop(0))
            self.pool.admit(sequence.request, sequence.kv)
            copied += self.pool.blocks(sequence.kv)
        return copied

    # Prompts

    def admit(self, room: int) -> list[tuple[Request, int]]:
        """Waiting requests for one prefill step, with the tokens found in the cache."""
        prompts: list[tuple[Request, int]] = []
        new = 0
        while self.line.waiting and len(prompts) < room:
            request = self.line.head()
            if prompts and new + request.to_compute > self.max_tokens:
                break
            if not self.pool.fits(request, request.to_compute, self.pool.watermark):
                break
            self.line.pop()
            reused = self.pool.admit(request, request.to_compute)
            if not request.times:
                request.reused = reused
            prompts.append((request, reused))
            new += request.to_compute - reused
        return prompts

    def prefill(self, prompts: list[tuple[Request, int]]) -> Process:
        lengths = [request.to_compute for request, _ in prompts]
        work = [
            prompt_pairs(length - reused, reused, self.model.window)
            for length, (_, reused) in zip(lengths, prompts, strict=True)
        ]
        new = sum(lengths) - sum(reused for _, reused in prompts)
        pairs, kv = (sum(column) for column in zip(*work, strict=True))
        cost = self.cost.step(new, len(prompts), pairs, kv, 0)
        self.schedule(request for request, _ in prompts)
        yield Step(cost.seconds(0), cost.demand(0))
        for (request, _), length in zip(prompts, lengths, strict=True):
            self.computed(request, length)

    def schedule(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request.scheduled != request.scheduled:
                request.scheduled = self.world.now

    def computed(self, request: Request, kv: int) -> None:
        """A prompt is computed: its request gets a token and goes on."""
        self.pool.publish(request)
        self.token(request)
        if len(request.times) == request.output:
            self.pool.release(request)
            self.world.leave(request, "completed")
        else:
            self.go_on(Sequence(request, kv))

    def go_on(self, sequence: Sequence) -> None:
        self.batch.append(sequence)
