"""How a process of a run begins and ends: it dies with its parent, and leaves Ctrl-C to it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic

PR_SET_PDEATHSIG = 1  # linux/prctl.h
KILL_S = 2.0  # for a killed process to be gone
SWITCH_S = 2e-5  # between threads of a process: nobody must wait for Python's usual 5 ms


def begin() -> None:
    """To be called first in a process that was spawned."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = parent_process()
        if parent is not None and os.getppid() != parent.pid:  # it had died already
            sys.exit(1)
    sys.setswitchinterval(SWITCH_S)


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

    A variable of CUDA or MPS must be there before the process first touches the device, so it has
    to be inherited. The signal is blocked until `begin` ignores it.
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
