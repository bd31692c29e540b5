"""The MPS daemon of a run: its life, with a stand-in, and the real one where it is installed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitwiser.validate.runtime import guardian
from splitwiser.validate.runtime.faults import RunFailed
from splitwiser.validate.runtime.mps import MpsDaemon
from splitwiser.validate.runtime.scratch import Scratch

REAL = shutil.which(guardian.MPS_CONTROL)

# On its surface NVIDIA's: -d leaves a daemon in the background, which a second call talks to.
STAND_IN = """#!/bin/sh
dir=$CUDA_MPS_PIPE_DIRECTORY
case "$1" in
-d)
    echo "control starting, devices ${CUDA_VISIBLE_DEVICES:-all}" >> "$CUDA_MPS_LOG_DIRECTORY/control.log"
    [ "$STAND_IN" = refuses ] && echo "An instance is already running" && exit 1
    setsid "$0" --serve < /dev/null > /dev/null 2>&1 & ;;
--serve)
    touch "$dir/control"
    while [ ! -e "$dir/quit" ] || [ "$STAND_IN" = deaf ]; do sleep 0.02; done
    rm "$dir/control" ;;
*)
    read -r command argument
    [ -e "$dir/control" ] || { echo "Cannot find MPS control daemon process"; exit 1; }
    case "$command" in
    get_server_list) echo 70 ;;
    get_client_list) echo "${argument}1"; echo "${argument}2" ;;
    quit) touch "$dir/quit"; while [ -e "$dir/control" ]; do sleep 0.02; done ;;
    esac ;;
esac
"""

RUN = """
import time
from splitwiser.validate.runtime.mps import MpsDaemon
from splitwiser.validate.runtime.scratch import Scratch
with Scratch() as scratch, MpsDaemon(scratch) as daemon:
    print(scratch.directory, daemon._daemon.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in, first on PATH."""
    binary = tmp_path / guardian.MPS_CONTROL
    binary.write_text(STAND_IN)
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    yield


def running(daemon: MpsDaemon) -> list[guardian.Process]:
    """The processes of *daemon*."""
    return guardian.mps_processes(Path(daemon.environment(None)["CUDA_MPS_PIPE_DIRECTORY"]))


def check_life() -> None:
    """Starts a daemon, twice in one scratch directory, and sees it come and go."""
    with Scratch() as scratch:
        for _ in range(2):
            with MpsDaemon(scratch) as daemon:
                assert daemon.alive()
                assert running(daemon)
            assert not daemon.alive()
            assert not running(daemon)


def test_a_daemon_lives_as_long_as_its_context(stand_in: None) -> None:
    """A daemon runs inside the context and is gone after it, every time."""
    check_life()


@pytest.mark.skipif(REAL is None, reason="needs nvidia-cuda-mps-control")
def test_the_real_daemon_lives_as_long_as_its_context() -> None:
    """NVIDIA's daemon, too, runs inside the context and is gone after it."""
    check_life()


@pytest.mark.skipif(REAL is None, reason="needs nvidia-cuda-mps-control")
def test_the_real_daemon_answers() -> None:
    """NVIDIA's daemon has no clients before one initialises CUDA."""
    with Scratch() as scratch, MpsDaemon(scratch) as daemon:
        assert daemon.clients() == []


def test_the_daemon_sees_every_gpu(stand_in: None) -> None:
    """Which GPUs this process may use does not limit the daemon; its clients' answers are read."""
    with Scratch() as scratch, MpsDaemon(scratch) as daemon:
        logs = Path(daemon.environment(None)["CUDA_MPS_LOG_DIRECTORY"])
        assert (logs / "control.log").read_text() == "control starting, devices all\n"
        assert daemon.clients() == [701, 702]


def test_two_daemons_at_once_do_not_meet(stand_in: None) -> None:
    """The end of one run's daemon leaves another run's alive."""
    with Scratch() as one, MpsDaemon(one) as first:
        with Scratch() as other, MpsDaemon(other) as second:
            assert first.environment(None) != second.environment(None)
            assert not set(running(first)) & set(running(second))
        assert not running(second)
        assert first.alive()


def test_a_daemon_that_will_not_quit_is_killed(
    stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that does not heed `quit` is gone within 5 s of the end all the same."""
    monkeypatch.setenv("STAND_IN", "deaf")
    with Scratch() as scratch:
        with MpsDaemon(scratch) as daemon:
            end = time.monotonic()
        assert time.monotonic() - end < 5
        assert not running(daemon)


def test_a_killed_run_leaves_no_daemon(stand_in: None) -> None:
    """When a run is SIGKILLed, its daemon and its directory are gone within 5 s."""
    run = subprocess.Popen(
        [sys.executable, "-c", RUN],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.stdout is not None
    directory, pid = run.stdout.readline().split()
    daemon = guardian.identify(int(pid))
    assert daemon is not None
    run.send_signal(signal.SIGKILL)
    run.wait(5)
    deadline = time.monotonic() + 5
    while guardian.lives(daemon) or Path(directory).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_death_of_the_daemon_is_noticed(stand_in: None) -> None:
    """`alive` is false as soon as the daemon is dead."""
    with Scratch() as scratch, MpsDaemon(scratch) as daemon:
        (process,) = running(daemon)
        os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while daemon.alive():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_daemon_that_does_not_come_up_says_why(
    stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed start is one line that ends with the daemon's own last words, and leaves nothing."""
    monkeypatch.setenv("STAND_IN", "refuses")
    with Scratch() as scratch:
        with pytest.raises(RunFailed, match=r"did not come up: control starting, devices all$"):
            MpsDaemon(scratch).__enter__()
        assert list(scratch.directory.iterdir()) == []


def test_a_missing_daemon_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without NVIDIA's program the error names it."""
    with Scratch() as scratch:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(FileNotFoundError, match="needs nvidia-cuda-mps-control, which is not"):
            MpsDaemon(scratch)


def test_a_cap_goes_to_the_client_alone(stand_in: None) -> None:
    """A client's environment names the daemon, and a cap only where one is asked for."""
    with Scratch() as scratch:
        daemon = MpsDaemon(scratch)
        free, capped = daemon.environment(None), daemon.environment(12.5)
        assert set(free) == {"CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"}
        assert capped == free | {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "12.5"}
        assert len(free["CUDA_MPS_PIPE_DIRECTORY"]) < 80
        for wrong in (0.0, 101.0):
            with pytest.raises(ValueError, match=f"not {wrong}"):
                daemon.environment(wrong)
