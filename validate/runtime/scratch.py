"""A private directory for one run, and the guarantee that nothing of the run outlives it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from splitwiser.validate.runtime import guardian
from splitwiser.validate.runtime.guardian import Process

_LONGEST = 64  # characters; below it go UNIX sockets, whose paths may have 107
_MARGIN = 16 << 20  # bytes for what is small: block files, logs
_GUARDIAN_S = 8.0  # the guardian's own waits add up to less


class Scratch:
    """A new private *directory*, and a guardian process that cleans up when this one ends.

    Use as a context manager. On leaving it, by whatever way, the guardian kills the processes
    watched, stops the MPS daemons watched, and removes the directory; leaving waits for that.
    Where this process is itself killed, the guardian does the same.

    The directory lies in memory (/dev/shm) where *need_bytes* fit there, else among temporary
    files. MemoryError where they fit in neither.
    """

    directory: Path

    def __init__(self, need_bytes: int = 0) -> None:
        self._watched: list[Process] = []
        self._daemons: list[Path] = []
        self._closed = False
        self.directory = _place(need_bytes) / f"splitwiser-{secrets.token_hex(6)}"
        # Its own session, so that a terminal's Ctrl-C does not reach it.
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", guardian.__file__, str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,
        )
        orders, said = self._guardian.stdin, self._guardian.stdout
        if orders is None or said is None or said.readline() != b"ready\n":
            raise OSError(f"no private directory could be made at {self.directory}")
        said.close()
        self._orders = orders

    def watch(self, pid: int) -> None:
        """Has process *pid* killed at the end; one that is gone already is let be."""
        process = guardian.identify(pid)
        if process is not None:
            self._watched.append(process)
            self._order({"watch": "process", **process._asdict()})

    def watch_mps(self, pipe_directory: Path) -> None:
        """Has the MPS daemon of *pipe_directory* stopped at the end; it need not run yet."""
        self._daemons.append(pipe_directory)
        self._order({"watch": "mps", "pipe_directory": str(pipe_directory)})

    def _order(self, order: dict[str, str | int]) -> None:
        try:
            self._orders.write(json.dumps(order).encode() + b"\n")
        except BrokenPipeError:
            return  # the guardian was killed: `close` notices, and does its work

    def close(self) -> None:
        """Cleans up, and returns when that is done; once is enough, twice does no harm."""
        if self._closed:
            return
        self._orders.close()
        try:
            done = self._guardian.wait(_GUARDIAN_S) == 0
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            done = False
        if not done:
            guardian.clean(self.directory, self._watched, self._daemons)
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _place(need_bytes: int) -> Path:
    """The first place for temporary files that is short, open to us, and has the room."""
    refused = []
    for place in dict.fromkeys((Path("/dev/shm"), Path(tempfile.gettempdir()), Path("/tmp"))):
        if not os.access(place, os.W_OK | os.X_OK) or len(str(place)) > _LONGEST:
            continue
        free = shutil.disk_usage(place).free
        if free >= need_bytes + _MARGIN:
            return place
        refused.append(f"{free:,} free in {place}")
    raise MemoryError(
        f"{need_bytes + _MARGIN:,} bytes of shared memory wanted, {', '.join(refused) or 'no place'}"
    )
