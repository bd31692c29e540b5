"""`RunFailed`: a run that ended because something died; and how a process ended, in words."""

from __future__ import annotations

import signal
from typing import Protocol

from splitwiser.sim.result import Result
from splitwiser.validate.runtime import fork_server


class RunFailed(RuntimeError):  # noqa: N818 - the name says what happened, as its one line does
    """A run could not go on; its one line says who died, and how.

    *result* is what had become of every request until then, where there is anything to tell.
    """

    result: Result | None = None


class Process(Protocol):
    """The part of `multiprocessing.Process` that is looked at; *name* is as errors name it."""

    @property
    def name(self) -> str: ...
    @property
    def sentinel(self) -> int: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def exitcode(self) -> int | None: ...
    def join(self, timeout: float | None = None) -> None: ...


def named(process: Process) -> str:
    """A process as an error names it: "decode process 1 (pid 123)"."""
    return f"{process.name} (pid {process.pid})"


def how_it_died(process: Process) -> str:
    """Who ended, and how, in one line; for a process that has ended, or that says nothing more."""
    code = process.exitcode
    if code is None:
        return f"{named(process)} closed its connection"
    lost = server_death() if code == fork_server.LOST else None
    return lost or f"{named(process)} {_how(code)}"


def server_death() -> str | None:
    """How the fork server died, and all that it had started with it; None where it did not."""
    died = fork_server.death()
    return None if died is None else f"the fork server (pid {died[0]}) {_how(died[1])}"


def _how(code: int) -> str:
    if code >= 0:
        return f"ended too early, with exit code {code}"
    return f"was killed by {_signal(-code)}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def failing(why: str) -> str:
    """What a worker said of its own end, as it reads on after the worker's name."""
    return f"ran {why}" if why.startswith("out of memory") else f"failed: {why}"


def line_of(error: Exception) -> str:
    """An exception in one line, for `Failed.why`."""
    first = (str(error).strip() or "no reason given").splitlines()[0]
    # torch has no exception of its own for the CPU's memory.
    signs = ("out of memory", "can't allocate memory", "cannot allocate memory")
    if isinstance(error, MemoryError) or any(sign in first.lower() for sign in signs):
        return f"out of memory: {first}"
    return first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"
