"""How a process of a run begins and ends: it dies with the main process, and leaves Ctrl-C to it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any, Literal

from splitwiser.validate.runtime import fork_server
from splitwiser.validate.runtime.faults import RunFailed, server_death

Method = Literal["forkserver", "spawn"]
"""How processes are started: forks of a server that has imported torch, or each from nothing."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h
KILL_S = 2.0  # for a killed process to be gone
SWITCH_S = 2e-5  # between threads of a process: nobody must wait for Python's usual 5 ms


def start(
    method: Method,
    name: str,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    variables: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start a process that runs `work(*arguments)`; all of it must pickle.

    *variables* are what its environment has beside ours. RunFailed where it does not come to life.
    The first fork waits until the server has imported torch; a Ctrl-C meanwhile is heard after it.
    """
    kinds: dict[Method, type[BaseProcess]] = {
        "forkserver": ForkServerProcess,
        "spawn": SpawnProcess,
    }
    with environment(variables or {}):
        process = kinds[method](
            target=_live, args=({**os.environ}, work, arguments), name=name, daemon=True
        )
        if method == "forkserver":
            fork_server.ensure_running()
        try:
            process.start()
        except (ConnectionError, EOFError):
            lost = server_death() if method == "forkserver" else None
            raise RunFailed(lost or f"{name} died as it was started") from None
    return process


def prepare() -> None:
    """Start the fork server, so that it imports torch while other things are made ready."""
    with environment({}):
        fork_server.ensure_running()


def _live(
    variables: Mapping[str, str], work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """The life of a process of a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()  # a fork has that with which its server started
    os.environ.update(variables)
    _die_with_parents()
    sys.setswitchinterval(SWITCH_S)
    work(*arguments)


def _die_with_parents() -> None:
    """See that we are killed when the main process is, or the fork server."""
    if sys.platform == "linux":  # for a fork the parent is the server
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    main = parent_process()
    assert main is not None

    def outlive() -> None:
        wait([main.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    Thread(target=outlive, daemon=True).start()


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal such as SIGSTOP, and not been continued."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] == "T"


def end(processes: Sequence[BaseProcess], patience: float) -> None:
    """See that processes end: by themselves within *patience* seconds in all, or else killed."""
    deadline = monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
    deadline = monotonic() + KILL_S
    for process in processes:
        process.join(max(0.0, deadline - monotonic()))


# Torch's threads on the CPU sleep while they wait for each other. By default they spin: on two cores
# with other work, a prefill of tiny-llama then took 113 ms instead of 3.
PATIENT = {"OMP_WAIT_POLICY": "passive"}


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Within it, processes that are started have these variables, and Ctrl-C does not reach them.

    What torch's threads do is read where torch is loaded, so it has to be inherited. The signal is
    blocked until a process of a run ignores it.
    """
    values = {**PATIENT, **values}
    resource_tracker.ensure_running()  # starting it with the first process, it would unblock
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
