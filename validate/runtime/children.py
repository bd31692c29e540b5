"""`Children`: the processes of one run. When one of them dies, the run ends and says which.

A child is started with a connection to its parent. A message is for whoever waits for it; a
`Failed`, a closed connection or an exit code other than 0 raises `RunFailed` in the parent.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from splitwiser.validate.runtime.faults import RunFailed, failing, how_it_died, line_of
from splitwiser.validate.runtime.messages import Failed
from splitwiser.validate.runtime.process import Method, end, start
from splitwiser.validate.runtime.scratch import Scratch

PATIENCE_S = 5.0  # for children that were asked to leave, all together
TURN_S = 0.5  # between two looks at everybody's health


@dataclass(frozen=True, slots=True)
class Child:
    """One child: its process, named for people, and the parent's end of its pipe."""

    process: BaseProcess
    connection: Connection


class Children:
    """A context manager: on leaving it normally, children leave; on an exception, they are killed.

    *health* is asked now and then while nothing comes: a line that says what is wrong ends the run.
    *method* is how children are started.
    """

    def __init__(
        self, scratch: Scratch, health: Callable[[], str | None], method: Method = "forkserver"
    ) -> None:
        self._scratch = scratch
        self._health = health
        self._method = method
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        # The first child owns the memory that the others use: it leaves last.
        self.join(self._children[1:])
        self.join(self._children[:1])

    def kill(self) -> None:
        """End every child at once: nothing more is wanted of any."""
        for child in self._children:
            child.process.kill()

    def start(
        self,
        name: str,
        work: Callable[..., None],
        *arguments: Any,
        variables: Mapping[str, str] | None = None,
    ) -> Child:
        """Start a child that runs `work(*arguments, connection)`; all of it must pickle.

        *variables* are what its environment has beside ours.
        """
        mine, theirs = multiprocessing.Pipe()
        life = (len(self._children), work, theirs, arguments)
        process = start(self._method, name, _live, life, variables)
        theirs.close()
        assert process.pid is not None
        self._scratch.watch(process.pid)
        child = Child(process, mine)
        self._children.append(child)
        return child

    def receive(self, child: Child) -> Any:
        """The next message of *child*; RunFailed where any child dies meanwhile."""
        while not self.ready([child], TURN_S):
            pass
        return self.read(child)

    def ready(self, children: Sequence[Child], seconds: float) -> list[Child]:
        """Which of *children* have something to read, waiting at most *seconds*.

        Raises RunFailed where a child has died with nothing left to read.
        """
        pipes = {child.connection: child for child in children}
        ends = {m.process.sentinel: m for m in self._children if m.process.exitcode is None}
        found = wait([*pipes, *ends], seconds)
        readable = [pipes[end] for end in found if isinstance(end, Connection)]
        if not readable:
            for end in found:
                if isinstance(end, int):
                    self._check(ends[end])
            fault = self._health()
            if fault is not None:
                raise RunFailed(fault)
        return readable

    def read(self, child: Child) -> Any:
        """What *child* sent; RunFailed for a fault that it reports, or where it is gone."""
        try:
            message = child.connection.recv()
        except (EOFError, ConnectionError):
            child.process.join(PATIENCE_S)
            raise RunFailed(how_it_died(child.process)) from None
        if isinstance(message, Failed | str):
            why = message if isinstance(message, str) else message.why
            raise RunFailed(f"{child.process.name} (pid {child.process.pid}) {failing(why)}")
        return message

    def send(self, child: Child, message: Any) -> None:
        """Hand *message* to *child*; RunFailed where it is gone."""
        try:
            child.connection.send(message)
        except OSError:
            if child.connection.poll():
                self.read(child)  # raises what it had to say
            child.process.join(PATIENCE_S)
            raise RunFailed(how_it_died(child.process)) from None

    def join(self, children: Sequence[Child]) -> None:
        """Have *children* leave, and wait until they have; those that do not soon are killed."""
        for child in children:
            child.connection.close()  # its end of file is the sign to leave
        end([child.process for child in children], PATIENCE_S)

    def _check(self, child: Child) -> None:
        """Raise RunFailed for a child that has died; one whose work was done may end."""
        child.process.join(PATIENCE_S)
        if child.process.exitcode:
            if not child.connection.closed and child.connection.poll():
                self.read(child)
            raise RunFailed(how_it_died(child.process))


def _live(
    index: int, work: Callable[..., None], connection: Connection, arguments: tuple[Any, ...]
) -> None:
    """A child's life: run *work*, and tell in one line what goes wrong."""
    try:
        work(*arguments, connection)
    except (EOFError, ConnectionError):  # the parent needs nothing more
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent tells it
        with contextlib.suppress(OSError):
            connection.send(Failed(index, line_of(error)))
        sys.exit(1)
