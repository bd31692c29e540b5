"""A run in a process of its own, as a user starts it, and what there is to see of it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

from splitwiser.validate.runtime import guardian

ENDS_S = 10.0  # a run that cannot go on ends within so many seconds
STARTS_S = 90.0  # for a start, on a machine that is busy
SERVED_S = 2.0  # of serving, before the blow: some requests have finished, and most have not
SRC = Path(__file__).parents[3] / "src"
MARK = "SPLITWISER_TEST_RUN"


class Run:
    """A run under way, in a process group of its own as a terminal would have it."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.folder = folder
        self.directory: Path | None = None  # its private one, once its guardian has been seen
        self._mark = secrets.token_hex(8)
        self._out, self._err = folder / f"out-{self._mark}", folder / f"err-{self._mark}"
        paths = (str(SRC), str(Path(__file__).parent))
        environment = {**os.environ, MARK: self._mark, "PYTHONPATH": os.pathsep.join(paths)}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.main = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def await_note(self, text: str) -> None:
        """Wait until the run has said *text*."""
        deadline = time.monotonic() + STARTS_S
        while text not in self._err.read_text():
            assert self.main.poll() is None and time.monotonic() < deadline, self._err.read_text()
            time.sleep(0.01)

    def serve(self) -> None:
        """Wait until the run has served for a while."""
        self.await_note("note: serving ")
        time.sleep(SERVED_S)

    def children(self) -> dict[str, int]:
        """The process ids of the run's processes by what they are; hosts are numbered from 0."""
        found: list[tuple[int, int, int, bytes]] = []
        for pid in self._marked():
            try:
                stat = Path(f"/proc/{pid}/stat").read_text()
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # it has ended meanwhile, as the guardian's own children soon do
                continue
            fields = stat[stat.rindex(")") + 2 :].split()
            found.append((int(fields[19]), pid, int(fields[1]), command))
        named: dict[str, int] = {}
        forks = 0
        for _, pid, parent, command in sorted(found):
            if parent == named.get("fork server"):
                named[f"host {forks - 1}" if forks else "owner"] = pid
                forks += 1
            elif parent != self.main.pid:
                continue
            elif b"guardian.py" in command:
                named["guardian"] = pid
                self.directory = Path(os.fsdecode(command.split(b"\0")[-2]))
            elif b"forkserver" in command:
                named["fork server"] = pid
        return named

    def child(self, name: str) -> int:
        """The process id of one of them, once it is there."""
        deadline = time.monotonic() + STARTS_S
        while (pid := self.children().get(name)) is None:
            assert time.monotonic() < deadline, self._err.read_text()
        return pid

    def interrupt(self) -> None:
        """Ctrl-C: a terminal signals the whole group."""
        os.killpg(self.main.pid, signal.SIGINT)

    def end(self, within: float = ENDS_S) -> tuple[int, str, list[str]]:
        """Status, stdout, and the lines of stderr but notes; within that time nothing is left."""
        status = self.main.wait(within)
        self.vanish(ENDS_S)  # multiprocessing's own leave when they see that the main process has
        lines = self._err.read_text().splitlines()
        return status, self._out.read_text(), [x for x in lines if not x.startswith("note: ")]

    def vanish(self, within: float) -> None:
        """Wait until no process of the run is left."""
        deadline = time.monotonic() + within
        while left := self._marked():
            assert time.monotonic() < deadline, [*map(_command, left)]
            time.sleep(0.02)

    def _marked(self) -> list[int]:
        """All processes that descend from this run, whosever children they are now."""
        mark, marked = f"{MARK}={self._mark}".encode(), []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    marked.append(int(entry.name))
            except OSError:  # it has ended, or is not ours
                continue
        return [pid for pid in marked if guardian.identify(pid) is not None]


def _command(pid: int) -> str:
    """The command line of a process, to tell who is left; none where it has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""
