"""`Switchboard`: the router's ends of the pipes to its workers, and a watch on their processes.

It never waits for a worker that is slow to read: a message goes out when there is room for it in
the pipe. (`select` calls a UNIX socket writable while three quarters of its buffer are free, some
150 KB; only a message that is longer waits for its reader.) `select` also keeps time to
microseconds, where `multiprocessing.connection.wait` keeps it to milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from select import select
from time import monotonic
from typing import Any, NamedTuple

from splitwiser.sim.deployment import Workers
from splitwiser.validate.runtime.faults import Process, failing, how_it_died, named
from splitwiser.validate.runtime.messages import Failed, send

PATIENCE_S = 2.0  # for the end of a process whose connection is closed


@dataclass(frozen=True, slots=True, eq=False)
class Port:
    """A worker as the router sees it; several may be threads of one process."""

    index: int
    phase: str
    group: Workers
    connection: Connection
    process: Process


class Gone(NamedTuple):
    """A worker is no more; *line* says which, and why."""

    line: str


class Switchboard:
    """Sends to workers by their number, and takes what they say.

    *waited* are the seconds spent waiting for them.
    """

    def __init__(self, ports: Sequence[Port]) -> None:
        self.waited = 0.0
        self._ports = {port.index: port for port in ports}
        self._outgoing: dict[int, deque[object]] = {port.index: deque() for port in ports}
        self._by_pipe = {port.connection.fileno(): port for port in ports}
        self._by_process: dict[int, list[Port]] = {}
        for port in ports:
            self._by_process.setdefault(port.process.sentinel, []).append(port)

    def post(self, worker: int, message: object) -> None:
        """Send a message, now if there is room for it, else when there is."""
        outgoing = self._outgoing[worker]
        outgoing.append(message)
        port = self._ports[worker]
        pipe = port.connection.fileno()
        if len(outgoing) == 1 and pipe in self._by_pipe and select([], [pipe], [], 0)[1]:
            self._send(port)

    def broadcast(self, message: object) -> None:
        """Send a message to every worker, in place of all that was not sent yet."""
        for outgoing in self._outgoing.values():
            outgoing.clear()
            outgoing.append(message)

    def dismiss(self, worker: int) -> None:
        """Listen no more to a worker that has said its last."""
        self._by_pipe.pop(self._ports[worker].connection.fileno(), None)

    def turn(self, seconds: float) -> Iterator[tuple[int, Any]]:
        """Wait at most so long until something can be done, and do it: what came, from whom.

        One message of each worker at a time; the last of a worker is `Gone`.
        """
        sending = {pipe: port for pipe, port in self._by_pipe.items() if self._outgoing[port.index]}
        begun = monotonic()
        ready, writable, _ = select(
            [*self._by_pipe, *self._by_process], sending, [], max(0.0, seconds)
        )
        self.waited += monotonic() - begun
        for pipe in writable:
            self._send(sending[pipe])
        for end in ready:
            if (port := self._by_pipe.get(end)) is not None:
                yield port.index, self._read(port)
        for end in ready:
            if (hosted := self._by_process.pop(end, None)) is not None:
                yield from self._last_words(hosted)

    def remaining(self) -> Iterator[tuple[int, Any]]:
        """What the workers have said and nobody has taken yet, without waiting."""
        for pipe, port in list(self._by_pipe.items()):
            while pipe in self._by_pipe and port.connection.poll():
                yield port.index, self._read(port)

    def who(self, worker: int) -> str:
        """A worker as an error names it."""
        return named(self._ports[worker].process)

    def _send(self, port: Port) -> None:
        outgoing = self._outgoing[port.index]
        try:
            send(port.connection, outgoing.popleft())
        except OSError:  # nobody reads any more; the end of the pipe or process will tell
            outgoing.clear()

    def _read(self, port: Port) -> Any:
        try:
            message = port.connection.recv()
        except (EOFError, OSError):
            return self._lost(port)
        if isinstance(message, Failed):
            return Gone(f"{self.who(port.index)} {failing(message.why)}")
        return message

    def _lost(self, port: Port) -> Gone:
        """The pipe of a worker has ended: so has its process, or it will at once."""
        del self._by_pipe[port.connection.fileno()]
        self._outgoing[port.index].clear()
        port.process.join(PATIENCE_S)
        return Gone(how_it_died(port.process))

    def _last_words(self, hosted: Sequence[Port]) -> Iterator[tuple[int, Any]]:
        """A process has ended: what its workers had said, and how it ended."""
        for port in hosted:
            pipe = port.connection.fileno()
            while pipe in self._by_pipe and port.connection.poll():
                yield port.index, self._read(port)
            if pipe in self._by_pipe:
                yield port.index, self._lost(port)
