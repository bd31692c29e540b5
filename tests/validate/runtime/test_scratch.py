"""The private directory of a run, and the guardian that cleans up after it."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from splitwiser.validate.runtime import guardian
from splitwiser.validate.runtime.scratch import Scratch

RUN = """
import subprocess, sys, time
from splitwiser.validate.runtime.scratch import Scratch
with Scratch() as scratch:
    children = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    for child in children:
        scratch.watch(child.pid)
    (scratch.directory / "deep").mkdir()
    (scratch.directory / "deep" / "file").write_text("x")
    print(scratch.directory, *(child.pid for child in children), flush=True)
    if sys.argv[1] == "raise":
        raise RuntimeError("the body failed")
    time.sleep(600 if sys.argv[1] == "sleep" else 0)
"""


def start(how: str) -> tuple[subprocess.Popen[str], Path, list[guardian.Process]]:
    """A process with a scratch directory and two children: it, the directory, the children."""
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.stdout is not None
    directory, *pids = run.stdout.readline().split()
    children = [guardian.identify(int(pid)) for pid in pids]
    return run, Path(directory), [child for child in children if child is not None]


def wait_until_clean(directory: Path, children: list[guardian.Process]) -> bool:
    """Whether within 5 s the children are dead and the directory is gone."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not directory.exists() and not any(map(guardian.lives, children)):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    "blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda blow: blow.name
)
def test_a_killed_run_leaves_nothing(blow: signal.Signals) -> None:
    """Whatever signal ends a run, its children and its directory are gone within 5 s."""
    run, directory, children = start("sleep")
    assert directory.exists()
    assert len(children) == 2
    run.send_signal(blow)
    run.wait(10)
    assert wait_until_clean(directory, children)


@pytest.mark.parametrize(("how", "code"), [("leave", 0), ("raise", 1)])
def test_leaving_waits_for_the_cleaning(how: str, code: int) -> None:
    """When a run has ended, by itself or by an exception, nothing of it is left already."""
    run, directory, children = start(how)
    assert run.wait(10) == code
    assert not directory.exists()
    assert not any(map(guardian.lives, children))


def test_a_killed_guardian_is_stood_in_for() -> None:
    """A run whose guardian was killed cleans up as the guardian would have."""
    with Scratch() as private:
        child = subprocess.Popen(["sleep", "600"])
        private.watch(child.pid)
        private._guardian.send_signal(signal.SIGKILL)
        private._guardian.wait()
        private.watch_mps(private.directory / "mps")
    assert not private.directory.exists()
    assert child.wait(5) == -signal.SIGKILL


def test_a_reused_pid_is_let_be() -> None:
    """A process that has the pid of a watched one but another birth is not killed."""
    child = subprocess.Popen(["sleep", "600"])
    try:
        process = guardian.identify(child.pid)
        assert process is not None
        guardian.clean(Path("/nowhere"), [process._replace(birth=process.birth - 1)], [])
        assert guardian.lives(process)
    finally:
        child.kill()
    child.wait()
    assert not guardian.lives(process)
    with Scratch() as private:
        private.watch(child.pid)  # gone: nothing to watch


def test_directories_are_private_and_apart() -> None:
    """Two directories at once differ, are ours alone, and one's end leaves the other."""
    with Scratch() as one:
        with Scratch() as other:
            assert one.directory != other.directory
            assert one.directory.stat().st_mode & 0o777 == 0o700
            assert len(str(one.directory)) < 100
        assert one.directory.exists()
        assert not other.directory.exists()
    one.close()
    assert not one.directory.exists()


def test_a_directory_that_stands_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is taken is an error, and what stands there stays."""
    with Scratch() as private:
        taken = private.directory.name.removeprefix("splitwiser-")
        monkeypatch.setattr(secrets, "token_hex", lambda _: taken)
        with pytest.raises(OSError, match=str(private.directory)):
            Scratch()
        assert private.directory.exists()


def test_the_directory_goes_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What does not fit in memory goes among temporary files, and what fits nowhere is refused."""
    free = {"/dev/shm": 64 << 20}

    class Usage:
        def __init__(self, place: Path) -> None:
            self.free = free.get(str(place), 1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", Usage)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    with Scratch(1 << 30) as private:
        assert private.directory.parent == Path("/tmp")
    with pytest.raises(MemoryError, match=r"67,108,864 free in /dev/shm, .* free in /tmp"):
        Scratch(1 << 41)
