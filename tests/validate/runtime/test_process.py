"""How processes of a run begin and end."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import Pipe
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from stand_in import surroundings
from whole_run import ENDS_S, STARTS_S, Run

from splitwiser.validate.runtime import process as module
from splitwiser.validate.runtime.process import KILL_S, Method, end, environment, start

PARENT = """
import signal, sys, time
from splitwiser.validate.runtime.process import start

if __name__ == "__main__":
    kept = [start(method, "a sleeper", time.sleep, (600,)) for method in ("spawn", "forkserver")]
    print("note: started", file=sys.stderr, flush=True)
    signal.pause()
"""

LOST = """
import os, signal, threading, time
from splitwiser.validate.runtime import fork_server
from splitwiser.validate.runtime.faults import RunFailed
from splitwiser.validate.runtime.process import prepare, start

if __name__ == "__main__":
    prepare()
    server = fork_server._pid
    os.kill(server, signal.SIGSTOP)  # so that it starts nobody before it dies
    threading.Timer(1.0, os.kill, (server, signal.SIGKILL)).start()
    try:
        start("forkserver", "a sleeper", time.sleep, (600,))
    except RunFailed as error:
        print(str(error) == f"the fork server (pid {server}) was killed by SIGKILL")
"""

watched = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched by /proc")


class Stubborn:
    """A process that only a kill ends, on a clock that moves while somebody waits for it."""

    now = 0.0

    def __init__(self, immortal: bool) -> None:
        self.immortal, self.killed = immortal, False

    def join(self, timeout: float) -> None:
        if self.is_alive():
            Stubborn.now += timeout

    def is_alive(self) -> bool:
        return self.immortal or not self.killed

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize("patience", [0.0, 5.0])
@pytest.mark.parametrize("immortal", [False, True])
def test_patience_is_for_all_together(
    monkeypatch: pytest.MonkeyPatch, patience: float, immortal: bool
) -> None:
    """However many do not leave, all are killed once *patience* is over, and waited for once."""
    begun = monotonic()
    monkeypatch.setattr(module, "monotonic", lambda: begun + Stubborn.now)
    monkeypatch.setattr(Stubborn, "now", 0.0)
    processes: list[Any] = [Stubborn(immortal) for _ in range(5)]
    end(processes, patience)
    assert all(process.killed for process in processes)
    assert Stubborn.now == pytest.approx(patience + (KILL_S if immortal else 0.0))


def test_processes_wait_without_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started inside has patient threads, and the starter's own environment is as before."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with environment({"SPLITWISER_TRIAL": "1"}):
        assert os.environ["OMP_WAIT_POLICY"] == "passive"
        assert os.environ["SPLITWISER_TRIAL"] == "1"
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert "SPLITWISER_TRIAL" not in os.environ


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_process_has_the_environment_of_the_moment(
    monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    """A process has its variables, beside ours as they are now, and does not hear of Ctrl-C."""
    for moment in ("first", "second"):  # what a fork server was started with is not asked
        monkeypatch.setenv("SPLITWISER_MOMENT", moment)
        ours, theirs = Pipe()
        process = start(method, "a process", surroundings, (theirs,), {"SPLITWISER_TRIAL": "1"})
        theirs.close()
        variables, heard = ours.recv()
        assert variables == {**os.environ, **module.PATIENT, "SPLITWISER_TRIAL": "1"}
        assert heard == signal.SIG_IGN
        process.join()
        assert process.exitcode == 0


def running(folder: Path, text: str) -> Run:
    """A program that starts processes, under way."""
    program = folder / "program.py"
    program.write_text(text)
    return Run(folder, sys.executable, str(program))


@watched
def test_processes_die_with_the_main_one(tmp_path: Path) -> None:
    """However processes were started, none is left where the main one is killed, nor a server."""
    run = running(tmp_path, PARENT)
    try:
        run.await_note("note: started")
    finally:
        run.main.kill()
        run.main.wait()
    run.vanish(ENDS_S)


@watched
def test_a_fork_server_that_dies_before_its_fork_is_named(tmp_path: Path) -> None:
    """Where the fork server is killed while a process waits to be started, one line says so."""
    assert running(tmp_path, LOST).end(STARTS_S) == (0, "True\n", [])
