"""Where requests wait: arrival and concurrency limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from simpy import Environment, Event

from splitwiser.sim.admission import Waiting


class Queue:
    """One line of requests, and when its next one arrives.

    `next_at` is the time of the next arrival as far as it is settled now (infinity where it waits
    for a completion, or there is none): the world knows it and may jump there. The scheduler sees
    `waiting`.
    """

    def __init__(self, env: Environment, source: Source, requests: range, waiting: Waiting) -> None:
        self.env = env
        self.waiting = waiting
        self.overtaking = not isinstance(waiting, deque)  # whether an arrival can become the head
        self.next_at = inf
        self.is_shared = False  # whether several engines take from it
        self.on_arrival: list[Callable[[float], None]] = []
        self._source = source
        self._requests = requests
        self._cursor = 0
        self._wake: Event | None = None
        self.settle()

    def pull(self, now: float) -> None:
        """Move what has arrived by `now` into the waiting line; refuse what can never be served."""
        never = self._source.never
        while self.next_at <= now:
            request = self._requests[self._cursor]
            self._cursor += 1
            if never and request in never:
                self._source.refuse(request)
            else:
                self.waiting.append(request)
            self.settle()

    def settle(self) -> None:
        """Find out when the next request arrives."""
        requests, cursor = self._requests, self._cursor
        if cursor < len(requests) and (request := requests[cursor]) < self._source.bound:
            self.next_at = self._source.arrival[request]
        else:
            self.next_at = inf

    def announce(self) -> None:
        """A request of this line that waited for a completion elsewhere may come now."""
        before = self.next_at
        self.settle()
        if self.next_at < before:
            for listener in self.on_arrival:
                listener(self.next_at)
            self.wake()

    def wait(self) -> Event:
        """An event, at the next arrival at the latest, at which idle workers should look again."""
        if self._wake is None:
            if self.next_at < inf:
                now = self.env.now
                delay = max(0.0, self.next_at - now)
                self._wake = self.env.timeout(delay, now + delay)
            else:
                self._wake = self.env.event()
            self._wake.callbacks.append(self._woken)
        return self._wake

    def _woken(self, event: Event) -> None:
        if self._wake is event:  # else somebody waits anew already
            self._wake = None

    def head_changed(self) -> None:
        """Let the busy workers of a shared line look at its new head at their next step."""
        if self.is_shared:
            for listener in self.on_arrival:
                listener(self.env.now)

    def memory_came_free(self) -> None:
        """Somebody may wait for it."""
        if self.waiting:
            self.wake()

    def wake(self) -> None:
        """Let idle workers look at the line again now: requests have come, or may fit."""
        if self._wake is not None:
            now = self.env.event()
            now.callbacks.extend(self._wake.callbacks)
            self._wake.callbacks.clear()
            self._wake = None
            now.succeed(self.env.now)


class Source:
    """The traffic: issues the requests of a trace in order, at most `limit` in flight.

    As in vLLM's `--max-concurrency`, request j is issued when its arrival is past and fewer than
    `limit` requests are in flight; its latency counts from then. `arrival` says when each reaches
    the scheduler at the earliest, `frontend` seconds after it was issued.
    """

    def __init__(
        self, env: Environment, arrival: list[float], limit: int | None, frontend: float = 0.0
    ) -> None:
        self.env = env
        self.arrival = arrival
        self._frontend = frontend
        self.queues: list[Queue] = []
        self.queue_of: Callable[[int], int] = lambda request: 0
        self.never: frozenset[int] = frozenset()  # requests too long for the context or the pool
        self.bound = len(arrival) if limit is None else min(limit, len(arrival))
        self.is_closed = self.bound < len(arrival)  # whether requests wait for completions
        self._refusals: set[int] = set()  # to come: requests issued that can never be served

    def begin(self) -> None:
        """All is set up: settle what arrives first."""
        if self.bound < len(self.arrival):
            for request in self.never.intersection(range(self.bound)):
                self._expect(request)
        for queue in self.queues:
            queue.settle()

    def complete(self, now: float) -> None:
        """A request left the system: one more may be issued."""
        while self.bound < len(self.arrival):
            issued = self.bound
            self.bound += 1
            self.arrival[issued] = max(self.arrival[issued], now + self._frontend)
            self.queues[self.queue_of(issued)].announce()
            if issued not in self.never:
                break
            if self.arrival[issued] > now:
                self._expect(issued)
                break

    def refuse(self, request: int) -> None:
        """A request that can never be served has arrived, and leaves."""
        if request in self._refusals:
            self._refusals.remove(request)
            self.complete(self.arrival[request])

    def _expect(self, request: int) -> None:
        """Refuse a request when it arrives, whether or not a worker looks at its line then."""
        self._refusals.add(request)
        timer = self.env.timeout(max(0.0, self.arrival[request] - self.env.now))
        timer.callbacks.append(lambda _: self.refuse(request))
