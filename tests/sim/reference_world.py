"""The clock, the GPU, the pools and the lines of the slow simulator, see `reference`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from math import ceil, inf, nan
from typing import NamedTuple

from splitwiser.models.cost import Demand
from splitwiser.sim.physics import Physics


class Step(NamedTuple):
    """A process waits for one step of so many seconds alone on the GPU."""

    seconds: float
    demand: Demand


class Sleep(NamedTuple):
    """A process waits for a time in seconds."""

    seconds: float


class Idle(NamedTuple):
    """A process waits to be woken with the others of a list."""

    sleepers: list[Process]


Process = Generator[Step | Sleep | Idle, None, None]


@dataclass(eq=False)
class Running:
    """A step on the GPU, with its seconds alone still to do."""

    process: Process
    left: float
    demand: Demand
    rate: float = 1.0


@dataclass
class Request:
    """A request and what became of it."""

    number: int
    arrival: float
    prompt: int
    output: int
    hashes: list[int]
    scheduled: float = nan
    times: list[float] = field(default_factory=list)  # of its tokens
    preemptions: int = 0
    reused: int = 0
    outcome: str = "in system"

    @property
    def to_compute(self) -> int:
        """The prompt, and what had been generated before a preemption."""
        return self.prompt + len(self.times)


@dataclass(eq=False)
class Sequence:
    """A request in a decode batch or a static row."""

    request: Request
    kv: int
    fresh: bool = True  # it has not made a step in this batch yet


class Pool:
    """KV blocks: who holds how many. Hashed blocks are `ratio` blocks each and may have several
    holders.
    """

    def __init__(self, total: int, size: int, block_tokens: int | None) -> None:
        self.total, self.size, self.block_tokens = total, size, block_tokens
        self.ratio = (block_tokens or 0) // size
        self.private: dict[int, int] = {}
        self.shared: dict[int, list[int]] = {}
        self.users: dict[int, int] = {}  # of every hashed block that is there
        self.idle: list[int] = []  # hashed blocks without users, longest idle first
        self.on_free: list[Callable[[], None]] = []
        self.watermark = int(0.01 * total)

    def blocks(self, tokens: int) -> int:
        return ceil(tokens / self.size)

    @property
    def free(self) -> int:
        used = sum(1 for users in self.users.values() if users)
        return self.total - sum(self.private.values()) - self.ratio * used

    def hits(self, request: Request) -> list[int]:
        found: list[int] = []
        if self.block_tokens is not None:
            for block in request.hashes[: (request.prompt - 1) // self.block_tokens]:
                if block not in self.users:
                    break
                found.append(block)
        return found

    def fits(self, request: Request, tokens: int, reserve: int) -> bool:
        in_use = sum(1 for block in self.hits(request) if self.users[block])
        return self.blocks(tokens) - in_use * self.ratio + reserve <= self.free

    def admit(self, request: Request, tokens: int) -> int:
        """Allocate; the number of tokens found in the cache."""
        hits = self.hits(request)
        for block in hits:
            self.users[block] += 1
            if block in self.idle:
                self.idle.remove(block)
        self.shared[request.number] = hits
        self.hold(request, tokens)
        return len(hits) * (self.block_tokens or 0)

    def held(self, request: Request) -> int:
        return self.private[request.number] + len(self.shared[request.number]) * self.ratio

    def hold(self, request: Request, tokens: int) -> None:
        """Let a request hold blocks for so many tokens."""
        mine = len(self.shared[request.number]) * self.ratio
        self.private[request.number] = self.blocks(tokens) - mine
        while self.free < len(self.idle) * self.ratio:
            del self.users[self.idle.pop(0)]
        assert self.free >= 0

    def publish(self, request: Request) -> None:
        """The prompt is computed: others may use its whole blocks."""
        if self.block_tokens is None:
            return
        mine = self.shared[request.number]
        for block in request.hashes[len(mine) : request.prompt // self.block_tokens]:
            if block in self.users:
                return
            self.users[block] = 1
            self.private[request.number] -= self.ratio
            mine.append(block)

    def release(self, request: Request) -> None:
        del self.private[request.number]
        for block in reversed(self.shared.pop(request.number)):
            self.users[block] -= 1
            if not self.users[block]:
                self.idle.append(block)
        for notify in self.on_free:
            notify()


class Line:
    """Waiting requests, and the idle processes that serve them.

    Of the requests that have `arrived`, those `waiting` did so by the time up to which the
    scheduler knows.
    """

    def __init__(self, order: str) -> None:
        self.order = order
        self.arrived: list[Request] = []
        self.known = inf
        self.returned: list[int] = []  # preempted, the last one first
        self.sleepers: list[Process] = []

    @property
    def waiting(self) -> list[Request]:
        return [request for request in self.arrived if request.arrival <= self.known]

    def head(self) -> Request:
        if self.order == "fcfs":
            return self.waiting[0]
        return min(self.waiting, key=lambda r: (r.number not in self.returned, self._size(r)))

    def _size(self, request: Request) -> tuple[int, int]:
        back = request.number in self.returned
        return (0 if back else request.prompt, request.number)

    def pop(self) -> Request:
        request = self.head()
        self.arrived.remove(request)
        if request.number in self.returned:
            self.returned.remove(request.number)
        return request

    def push_back(self, request: Request) -> None:
        self.returned.insert(0, request.number)
        self.arrived.insert(0, request)


class World:
    """The clock, the GPU and the traffic."""

    def __init__(
        self, physics: Physics, limit: int | None, requests: list[Request], frontend: float
    ) -> None:
        self.now = 0.0
        self.frontend = frontend
        self.physics = physics
        self.requests = requests
        self.steps: list[Running] = []
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.line_of: Callable[[int], Line] = lambda number: Line("fcfs")
        self.never: set[int] = set()
        self._count = 0
        self._issued = self._delivered = 0
        self._limit = limit
        self._host_free = self._device_free = 0.0  # when the ways for copies are free again

    def host_copy(self, seconds: float) -> float:
        """Seconds until a copy over PCIe is over; copies go one after another."""
        self._host_free = max(self.now, self._host_free) + seconds
        return self._host_free - self.now

    def device_copy(self, seconds: float) -> float:
        """When a copy within the device's memory is over."""
        self._device_free = max(self.now, self._device_free) + seconds
        return self._device_free

    def at(self, time: float, act: Callable[[], None]) -> None:
        self._count += 1
        heappush(self.agenda, (time, self._count, act))

    def resume(self, process: Process) -> None:
        """Let a process go on until it waits again."""
        wish = next(process)
        if isinstance(wish, Step):
            self.steps.append(Running(process, wish.seconds, wish.demand))
        elif isinstance(wish, Sleep):
            self.at(self.now + wish.seconds, lambda: self.resume(process))
        else:
            wish.sleepers.append(process)

    def wake(self, sleepers: list[Process]) -> None:
        for process in sleepers:
            self.at(self.now, partial(self.resume, process))
        sleepers.clear()

    def run(self, until: float) -> None:
        for _ in range(len(self.requests) if self._limit is None else self._limit):
            self.issue()
        while True:
            self.set_rates()
            soonest = min(self.steps, key=lambda step: step.left / step.rate, default=None)
            end = self.now + soonest.left / soonest.rate if soonest else inf
            time = min(end, self.agenda[0][0] if self.agenda else inf)
            if time >= until:
                return
            for step in self.steps:
                step.left -= (time - self.now) * step.rate
            self.now = time
            if soonest and end <= time and not (self.agenda and self.agenda[0][0] < end):
                self.steps.remove(soonest)
                self.resume(soonest.process)
            else:
                heappop(self.agenda)[2]()

    def set_rates(self) -> None:
        """Every step's rate follows from what all the running steps ask for."""
        if len(self.steps) == 1:
            self.steps[0].rate = 1.0
        elif self.steps:
            rates = self.physics.sharing.rates([step.demand for step in self.steps])
            for step, rate in zip(self.steps, rates, strict=True):
                step.rate = rate

    def issue(self) -> None:
        """Issue the next request of the trace, now or at its own time; it arrives when the frontend
        has handed it on.
        """
        if self._issued < len(self.requests):
            request = self.requests[self._issued]
            self._issued += 1
            request.arrival = max(request.arrival, self.now + self.frontend)
            if request.arrival > self.now:
                self.at(request.arrival, self.deliver)
            else:
                self.deliver()

    def deliver(self) -> None:
        """Bring what has arrived to its line, in order; a request that can never be served makes
        room at once.
        """
        while self._delivered < self._issued and self.requests[self._delivered].arrival <= self.now:
            request = self.requests[self._delivered]
            self._delivered += 1
            if request.number in self.never:
                self.leave(request, "rejected")
            else:
                line = self.line_of(request.number)
                line.arrived.append(request)
                self.wake(line.sleepers)

    def leave(self, request: Request, outcome: str) -> None:
        request.outcome = outcome
        if self._limit is not None:
            self.issue()


class Model(NamedTuple):
    """The constants of a run."""

    window: int | None
    swap: bool
    swap_seconds_per_block: float
    copy_seconds_per_block: float
    handover: float
