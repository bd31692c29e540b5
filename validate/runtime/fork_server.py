"""The fork server: it has imported torch, and what it starts are forks of it.

Importing torch takes seconds of a core, which every process of a run would spend by itself. Python's
own fork server spends them once. It belongs to the main process: its first run starts it, later
ones find it there, and it leaves when the main process does.
"""

from __future__ import annotations

import os
from multiprocessing import forkserver
from pathlib import Path
from time import monotonic, sleep

LOST = 255  # the exit code that multiprocessing makes up where no server can tell it
GONE_S = 1.0  # for a server whose pipes have closed to be known as dead

_pid: int | None = None  # of the server: multiprocessing does not tell
_died: tuple[int, int] | None = None  # the last one that did, and its exit code


def ensure_running() -> None:
    """Start the server, where none runs; it imports torch while we go on.

    It inherits environment and blocked signals, and so do its children.
    """
    global _pid, _died
    _died = _exit() or _died
    forkserver.set_forkserver_preload(["torch"])  # initialises no CUDA
    forkserver.ensure_running()
    if _pid is None or not _is_server(_pid):
        everybody = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
        _pid = next(filter(_is_server, everybody), None)


def death() -> tuple[int, int] | None:
    """The pid of the last server that died, and its exit code, a signal's below 0."""
    deadline = monotonic() + GONE_S
    while _pid is not None and monotonic() < deadline:
        if (died := _exit()) is not None:
            return died
        sleep(0.01)
    return _died


def _exit() -> tuple[int, int] | None:
    """The server's pid and exit code, where it has died; they stay there for multiprocessing."""
    if _pid is None:
        return None
    try:
        ended = os.waitid(os.P_PID, _pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None
    if ended is None:
        return None
    return _pid, ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _is_server(pid: int) -> bool:
    """Whether *pid* is a fork server, and ours."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    parent = int(stat[stat.rindex(")") + 2 :].split()[1])
    return parent == os.getpid() and b"multiprocessing.forkserver" in command
