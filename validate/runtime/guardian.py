"""The guardian: a small process that ends what a run left behind, however the run ended.

`Scratch` starts it as a script, with the run's private directory for argument. It makes the
directory, says so, and reads what it has to watch, one JSON line each, until its input ends:
the run has closed it, or is dead. Then it cleans up and leaves. It stands on the standard
library alone, so that it starts in milliseconds and can be run by its path.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MPS_CONTROL = "nvidia-cuda-mps-control"
_MPS_NAME = "nvidia-cuda-mps"  # of the daemon and its servers, in the kernel's 15 characters
_KILL_S = 1.5  # for killed processes to be gone; one that holds much GPU memory takes a while
_QUIT_S = 2.0  # for the MPS daemon to answer `quit`


class Process(NamedTuple):
    """A process, told from a later one of the same *pid* by its *birth* (ticks since boot)."""

    pid: int
    birth: int


def identify(pid: int) -> Process | None:
    """The process that has *pid* now; None where there is none, or only its corpse."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = stat[stat.rindex(")") + 2 :].split()  # the name before may hold anything
    return None if state in "ZX" else Process(pid, int(fields[18]))


def lives(process: Process) -> bool:
    """Whether *process* still runs."""
    return identify(process.pid) == process


def _outlive(processes: Iterable[Process], patience: float) -> None:
    """Waits until none of *processes* lives, for at most *patience* seconds."""
    deadline = time.monotonic() + patience
    remaining = [process for process in processes if lives(process)]
    while remaining and time.monotonic() < deadline:
        time.sleep(0.005)
        remaining = [process for process in remaining if lives(process)]


def _kill(processes: Iterable[Process]) -> None:
    living = [process for process in processes if lives(process)]
    for process in living:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGKILL)
    _outlive(living, _KILL_S)


def mps_processes(pipe_directory: Path) -> list[Process]:
    """The MPS daemon and servers of *pipe_directory*: by the environment that they started with,
    and by the pid that the daemon wrote there. Those of others are never among them.
    """
    mark = b"CUDA_MPS_PIPE_DIRECTORY=" + os.fsencode(pipe_directory)
    written = ""
    with suppress(OSError):
        written = (pipe_directory / f"{MPS_CONTROL}.pid").read_text().strip()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile, or belongs to someone else
            if not (entry / "comm").read_text(errors="replace").startswith(_MPS_NAME):
                continue
            if entry.name == written or mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(identify(int(entry.name)))
    return [process for process in found if process is not None]


def stop_mps(pipe_directory: Path) -> None:
    """Asks the MPS daemon of *pipe_directory* to quit, then kills what is left of it."""
    processes = mps_processes(pipe_directory)
    if not processes:
        return
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [MPS_CONTROL],
            check=False,
            input=b"quit -t 1\n",  # waits 1 s for clients, then makes the servers go
            env={**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipe_directory)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_QUIT_S,
        )
        _outlive(processes, 0.5)
    _kill(mps_processes(pipe_directory))


def clean(directory: Path, watched: Iterable[Process], daemons: Iterable[Path]) -> None:
    """Kills the *watched* processes, stops the MPS *daemons*, and removes *directory*."""
    _kill(watched)
    for pipe_directory in daemons:
        stop_mps(pipe_directory)
    shutil.rmtree(directory, ignore_errors=True)


def main(directory: Path) -> None:
    """Guards *directory*, which must not exist yet, until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    directory.mkdir(mode=0o700)
    watched: list[Process] = []
    daemons: list[Path] = []
    try:
        print("ready", flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            if order["watch"] == "process":
                watched.append(Process(order["pid"], order["birth"]))
            else:
                daemons.append(Path(order["pipe_directory"]))
    finally:
        clean(directory, watched, daemons)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
