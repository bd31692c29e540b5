"""What every worker can do with the sequences it has: decode them, and preempt where memory runs
short.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from math import ceil, inf
from typing import Any, NamedTuple, Protocol

from simpy import Event

from splitwiser.models.cost import StepCost
from splitwiser.sim.admission import WATERMARK
from splitwiser.sim.batch import DecodeBatch, Member
from splitwiser.sim.device import NOTHING, Task
from splitwiser.sim.kv import BlockPool
from splitwiser.sim.log import pack_stay
from splitwiser.sim.queues import Queue
from splitwiser.sim.world import World

REREAD = 1.125  # a decode batch states its demand anew when its attended tokens grew by this factor


class Costs(Protocol):
    """What a step costs alone (`splitwiser.models.cost.CostModel`)."""

    def step(
        self, tokens: float, outputs: float, pairs: float, prompt_kv: float, decodes: float
    ) -> StepCost:
        """The cost of a step that computes prompts, decodes, or both."""
        ...

    def decode(self, batch: int) -> StepCost:
        """The cost of a pure decode step."""
        ...


class Swapped(NamedTuple):
    """A sequence whose KV blocks wait in host memory."""

    request: int
    tokens: int
    last_token: float


# Of a decode step: seconds alone without attended tokens, of each of them, host's floor, overhead;
# all of it.
Line = tuple[float, float, float, float, StepCost]


class Decoder:
    """A process on the GPU: a decode batch, a KV pool, and at most one run on the device.

    `max_seqs` and `max_tokens` are vLLM's `max_num_seqs` and `max_num_batched_tokens`.
    """

    swaps = True  # whether it can preempt by swapping to host memory

    def __init__(
        self,
        world: World,
        index: int,
        cost: Costs,
        queue: Queue,
        pool: BlockPool,
        max_seqs: int,
        max_tokens: int,
    ) -> None:
        self.world = world
        self.env = world.env
        self.device = world.device
        self.log = world.log
        self.index = index
        self._write_stay = world.log.stays.extend
        self.cost = cost
        self.queue = queue
        self.pool = pool
        self.max_seqs = max_seqs
        self.max_tokens = max_tokens
        self.task = Task(index)
        self.batch = DecodeBatch(pool.block_size, world.window)
        self.swapped: deque[Swapped] = deque()
        self.watermark = int(WATERMARK * pool.total)
        self._needs_demand = world.device.needs_demand
        self._lines: dict[int, Line] = {}  # by batch size
        self._prompt_costs: dict[int, StepCost] = {}  # of single prompts, by length
        self._stated = NOTHING  # the demand of the decode batch, as it was last stated
        self._stated_size = 0
        self._stated_until = 0.0  # attended tokens
        self._planned = 0  # steps for which `reserved` was taken
        self.made_room = False  # whether somebody was preempted since the last decision
        self.reserved = 0  # blocks taken for the run that is going on
        self.last_step = 0.0  # when the last decode step ended
        self.lead = 0.0  # part of a step before its end at which the next one is decided

    # Decoding ---------------------------------------------------------------------------------

    def start_decode(self, now: float, break_at: float) -> Event:
        """Decode until the batch changes, or to the first step boundary at or after `break_at`.

        The pool must have the blocks of the next step, see `make_room`.
        """
        batch, pool, task = self.batch, self.pool, self.task
        self._plan(task)
        if break_at <= now:
            task.steps, break_at = 1, inf
        task.break_at = break_at
        if break_at < inf:
            self.device.clip(task, now)
        reserved = batch.blocks_for(task.steps)
        if reserved > pool.free:
            task.steps = batch.steps_with(pool.free, task.steps)
            reserved = batch.blocks_for(task.steps)
        pool.free -= reserved
        self.reserved = reserved
        self._planned = task.steps
        task.blocks = pool.total - pool.free
        return self.device.start(task, now)

    def end_decode(self, now: float) -> None:
        """The run that `start_decode` began has ended."""
        steps = self.task.steps
        if steps != self._planned:
            self.reclaim()
        self.reserved = 0
        self.advance(steps, now)

    def advance(self, steps: int, now: float) -> None:
        """The batch has made `steps` steps: its ended members leave."""
        self.last_step = now
        world = self.world
        for request, tokens, joined, ends, last_token in self.batch.advance(steps):
            self._write_stay(pack_stay(request, self.index, joined, ends, last_token))
            self.pool.release(request, tokens + ends - joined)
            world.finish(request, now)

    def write_open_stays(self) -> None:
        """The simulation stops here: write down the stays that go on, without an end."""
        for request, _, joined, _, last_token in self.batch.members.values():
            if not self.has_ended(request):
                self._write_stay(pack_stay(request, self.index, joined, inf, last_token))

    def has_ended(self, request: int) -> bool:
        """Whether a request in the batch has all its tokens already."""
        return False

    def remaining(self, member: Member) -> int:
        """Tokens that a member has still to get."""
        return member[3] - self.batch.step

    def _plan(self, task: Task) -> None:
        """Write the longest run of equal batch into `task`."""
        batch = self.batch
        size = batch.size
        line = self._lines.get(size)
        if line is None:
            line = self._lines[size] = self._line(size)
        constant, per_token, host, overhead, cost = line
        steps = batch.steps_to_change()
        gpu = constant + per_token * batch.attended
        growth = per_token * batch.growing
        if gpu < host:  # bound by the host until the contexts have grown enough
            if growth > 0.0:
                steps = min(steps, ceil((host - gpu) / growth))
            gpu, growth = host, 0.0
        if self._needs_demand:
            steps = self._state_demand(task, cost, steps)
        task.first = gpu + overhead
        task.growth = growth
        task.batch = size
        task.joined = batch.newly_joined
        task.tokens = 0
        task.steps = steps

    def _line(self, size: int) -> Line:
        """The cost of decode steps of `size` sequences, taken apart because it is needed so often."""
        cost = self.cost.decode(size)
        return cost.alone, cost.gpu_per_token, cost.host, cost.overhead, cost

    def _state_demand(self, task: Task, cost: StepCost, steps: int) -> int:
        """Say what the batch asks of the GPU, and for how many of the `steps` that holds.

        It is that of contexts an eighth longer, or of those now, whichever moves more bytes per
        second: with its context a decode step's traffic per second rises all the way, or falls.
        """
        batch = self.batch
        if (
            batch.newly_joined
            or batch.size != self._stated_size
            or batch.attended >= self._stated_until
        ):
            alone = cost.alone + cost.overhead
            rises = cost.bytes_per_token * alone >= cost.bytes * cost.gpu_per_token
            self._stated = cost.demand((REREAD if rises else 1.0) * batch.attended)
            self._stated_size = batch.size
            self._stated_until = REREAD * batch.attended
        task.demand = self._stated
        room = self._stated_until - batch.attended
        if steps * batch.growing > room:
            return ceil(room / batch.growing) or 1
        return steps

    def next_decision(self) -> float:
        """When the next arrival may change the batch; never, where it could not be admitted anyway."""
        queue = self.queue
        if self.made_room:  # what preemption freed may suffice for somebody
            self.made_room = False
            return self.env.now
        if self.batch.size >= self.max_seqs or self.swapped:
            return inf
        if queue.waiting and not queue.overtaking:
            return inf  # its head does not fit, and nobody gets ahead of it
        return queue.next_at

    def decided(self, begun: float, now: float) -> float:
        """When it was decided what follows the run from *begun* to *now*: who came later waits for
        the step behind that.
        """
        if not self.lead:
            return now
        return now - self.lead * (now - begun) / self.task.steps

    # Memory -----------------------------------------------------------------------------------

    def reclaim(self) -> None:
        """Give back the blocks that a run which is cut short will not need."""
        if self.reserved:
            self.device.break_at(self.task, self.env.now)
            needed = self.batch.blocks_for(self.task.steps)
            if needed < self.reserved:
                unused, self.reserved = self.reserved - needed, needed
                self.pool.free += unused  # nobody waits for it: who looks for memory reclaims first

    def make_room(self) -> Generator[Event, Any, None]:
        """Preempt until the next step of the members that are left, if any, has its blocks.

        There is nothing to do while the pool has a free block for each member.
        """
        batch = self.batch
        while batch.size and not self.pool.available(batch.blocks_for(1)):
            copied = self.preempt()
            if copied:
                yield self._host_copy(copied)

    def _host_copy(self, blocks: int) -> Event:
        """The end of a copy of so many blocks to or from host memory."""
        world = self.world
        return self.env.timeout(world.host_link.copy(blocks * world.swap_seconds_per_block))

    def preempt(self) -> int:
        """Take the member admitted last out of the batch; the blocks to copy to host memory."""
        world, batch, pool = self.world, self.batch, self.pool
        request = next(reversed(batch.members))
        member = batch.remove(request)
        _, tokens, joined, _, last_token = member
        self._write_stay(pack_stay(request, self.index, joined, batch.step, last_token))
        pool.release(request, tokens + batch.step - joined)
        if batch.step > joined:
            last_token = self.last_step
        generated = world.output_tokens[request] - self.remaining(member)
        tokens = world.prompt_tokens[request] + generated - 1  # the last one has no KV yet
        self.log.preemptions[request] += 1
        self.made_room = True
        needed = pool.blocks(tokens + 1)
        if self.swaps and world.swap and needed <= pool.total:
            self.swapped.append(Swapped(request, tokens, last_token))
            return pool.blocks(tokens)
        if self.can_recompute(needed):
            world.generated[request] = (generated, last_token)
            self.queue.waiting.appendleft(request)
            self.queue.head_changed()
            self.queue.wake()
        else:
            world.abort(request, self.env.now)
        return 0

    def can_recompute(self, blocks: int) -> bool:
        """Whether a preempted sequence of so many blocks could be admitted again."""
        return blocks + self.watermark <= self.pool.total

    def swap_in(self) -> Generator[Event, Any, bool]:
        """Bring back swapped sequences that fit, in order; whether there were any."""
        batch, pool = self.batch, self.pool
        copied = 0
        while self.swapped and batch.size < self.max_seqs:
            request, tokens, last_token = self.swapped[0]
            if not pool.fits(request, tokens + 1, self.watermark if batch.size else 0):
                break
            self.swapped.popleft()
            pool.admit(request, tokens)
            batch.add(request, tokens, self.world.remaining(request, tokens), last_token)
            copied += pool.blocks(tokens)
        if copied:
            yield self._host_copy(copied)
        return copied > 0
