"""Which request comes when, and which worker gets it: decisions only, no pipes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

from splitwiser.sim.admission import Waiting, routes, waiting_line
from splitwiser.sim.deployment import Deployment

DEPTH = 2  # batches that a worker of a shared line may have and not have told of


class Arrivals:
    """The requests of a trace in order, at most *limit* of them in the system.

    As in `splitwiser.sim.queues.Source`, a request is issued when its arrival is past and fewer
    than *limit* are in the system; its latency counts from then. Times are seconds.
    """

    def __init__(self, arrival: Sequence[float], limit: int | None) -> None:
        self._arrival = arrival
        places = None if limit is None else deque([0.0] * min(limit, len(arrival)))
        self._places = places  # since when each is free
        self._next = 0
        self._latest = 0.0

    @property
    def next_at(self) -> float:
        """When the next request is issued; infinity where it waits for a completion, or never."""
        if self._next == len(self._arrival) or (self._places is not None and not self._places):
            return inf
        since = self._places[0] if self._places else 0.0
        return max(self._arrival[self._next], since, self._latest)

    def issue(self, now: float) -> tuple[int, float] | None:
        """The next request, if it is due by *now*, and the time at which it is issued."""
        time = self.next_at
        if time > now:
            return None
        if self._places is not None:
            self._places.popleft()
        self._latest = time  # workers tell of their completions out of order: issues stay in order
        self._next += 1
        return self._next - 1, time

    def complete(self, time: float) -> None:
        """A request left the system."""
        if self._places is not None:
            self._places.append(time)


class _Line(NamedTuple):
    """Requests that wait for any of some workers."""

    waiting: Waiting
    takers: tuple[int, ...]


class Dispatch:
    """Knows what every worker has, and gives it more.

    Whole engines get requests by the deployment's routing; the prefill workers of a split share one
    line, and a computed prompt goes to the decode worker with the fewest sequences. A line of one
    worker is passed on at once, for the worker keeps it. From a line of several the worker with the
    fewest prompt tokens not yet scheduled takes the next, while it has less than `DEPTH` batches:
    one that it computes, of which it tells at the end, and one so that it need not wait.

    *held* counts the requests at each worker.
    """

    def __init__(self, deployment: Deployment, requests: int) -> None:
        groups = list(deployment.each())
        self.held = [0] * len(groups)
        self._unscheduled = [0] * len(groups)  # prompt tokens
        self._most_tokens = [DEPTH * group.max_num_batched_tokens for group in groups]
        self._most_held = [DEPTH * group.max_num_seqs for group in groups]
        self._lengths: dict[int, int] = {}  # prompt tokens of what waits
        self._at: dict[int, int] = {}  # the worker that has a request
        self._pending: dict[int, int] = {}  # prompt tokens that a worker has not scheduled yet
        self._decoders = [i for i, group in enumerate(groups) if group.phase == "decode"]
        takers = [i for i, group in enumerate(groups) if group.phase != "decode"]
        routing = "shared_queue" if self._decoders else deployment.routing
        lines, self._line_of = routes(routing, len(takers), requests)
        self._lines = [
            _Line(waiting_line(deployment.order, self._lengths), tuple(takers[n :: len(lines)]))
            for n in range(len(lines))
        ]

    def submit(self, request: int, tokens: int, *, urgent: bool = False) -> None:
        """A prompt of so many tokens waits; an urgent one (preempted) goes before all others."""
        number = self._line_of(request) if request >= 0 else request % len(self._lines)
        self._lengths[request] = tokens
        waiting = self._lines[number].waiting
        if urgent:
            waiting.appendleft(request)
        else:
            waiting.append(request)

    def assign(self) -> Iterator[tuple[int, int]]:
        """The requests that go to a worker now, each with the worker."""
        for line in self._lines:
            while line.waiting and (worker := self._taker(line)) is not None:
                request = line.waiting.popleft()
                tokens = self._lengths.pop(request)
                self._unscheduled[worker] += tokens
                self._pending[request] = tokens
                self._put(request, worker)
                yield request, worker

    def scheduled(self, request: int) -> None:
        """The worker that has a request has begun to compute it."""
        self._unscheduled[self._at[request]] -= self._pending.pop(request, 0)

    def hand_over(self, request: int) -> int:
        """The prompt of a request is computed: the decode worker that gets it."""
        self.leave(request)
        worker = min(self._decoders, key=self.held.__getitem__)
        self._put(request, worker)
        return worker

    def leave(self, request: int) -> None:
        """A request leaves the worker that has it."""
        self.scheduled(request)
        self.held[self._at.pop(request)] -= 1

    def _put(self, request: int, worker: int) -> None:
        self._at[request] = worker
        self.held[worker] += 1

    def _taker(self, line: _Line) -> int | None:
        """The worker that takes the head of a line; None where all have enough."""
        if len(line.takers) == 1:
            return line.takers[0]
        able = [
            worker
            for worker in line.takers
            if self._unscheduled[worker] < self._most_tokens[worker]
            and self.held[worker] < self._most_held[worker]
        ]
        return min(able, key=lambda worker: self._unscheduled[worker], default=None)
