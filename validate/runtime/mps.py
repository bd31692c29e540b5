"""NVIDIA's Multi-Process Service, started for one run and stopped with it.

The daemon's pipes and logs lie in the run's private directory, so that it meets no other daemon
on the machine; compute mode, clocks and MIG are left as they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from splitwiser.validate.runtime import guardian
from splitwiser.validate.runtime.faults import RunFailed
from splitwiser.validate.runtime.guardian import MPS_CONTROL, Process
from splitwiser.validate.runtime.scratch import Scratch

_START_S = 10.0
_ANSWER_S = 2.0


class MpsDaemon:
    """An MPS control daemon of our own; it runs inside the context, and is gone after it.

    `scratch` sees to it when we die inside. Its clients should have ended before the context
    does: the daemon gives them a second, then takes the server from under them.
    FileNotFoundError where MPS is not installed; `RunFailed` where the daemon does not come up.
    """

    def __init__(self, scratch: Scratch) -> None:
        if shutil.which(MPS_CONTROL) is None:
            raise FileNotFoundError(
                f"MPS needs {MPS_CONTROL}, which is not on PATH; it comes with NVIDIA's driver"
            )
        self._scratch = scratch
        self._directory = scratch.directory / "mps"
        self._pipes = self._directory / "pipe"
        self._logs = self._directory / "log"
        self._daemon: Process | None = None

    def __enter__(self) -> Self:
        for directory in (self._directory, self._pipes, self._logs):
            directory.mkdir(mode=0o700)
        self._scratch.watch_mps(self._pipes)  # before it starts: we may die in between
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def environment(self, sm_percent: float | None) -> dict[str, str]:
        """What a client must have in its environment before it initialises CUDA.

        *sm_percent* caps the SMs that it may use; None sets no cap.
        """
        variables = {
            "CUDA_MPS_PIPE_DIRECTORY": str(self._pipes),
            "CUDA_MPS_LOG_DIRECTORY": str(self._logs),
        }
        if sm_percent is not None:
            if not 0 < sm_percent <= 100:
                raise ValueError(f"sm_percent is above 0 and at most 100, not {sm_percent}")
            variables["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{sm_percent:g}"
        return variables

    def alive(self) -> bool:
        """Whether the daemon runs; cheap, for without it its clients may hang for ever."""
        return self._daemon is not None and guardian.lives(self._daemon)

    def clients(self) -> list[int]:
        """The process ids of the daemon's clients; RuntimeError where it does not answer."""
        servers = self._told("get_server_list")
        return [client for server in servers for client in self._told(f"get_client_list {server}")]

    def _told(self, command: str) -> list[int]:
        answer = self._ask(command)
        if answer is None:
            raise RuntimeError(f"the MPS daemon does not answer {command!r}")
        return [int(word) for word in answer.split() if word.isdigit()]

    def _ask(self, command: str) -> str | None:
        """What the daemon answers to *command*; None where it cannot be reached."""
        try:
            asked = subprocess.run(
                [MPS_CONTROL],
                check=False,
                input=f"{command}\n",
                env=self._clean_environment(),
                capture_output=True,
                text=True,
                timeout=_ANSWER_S,
            )
        except subprocess.TimeoutExpired:
            return None
        return asked.stdout if asked.returncode == 0 else None

    def _clean_environment(self) -> dict[str, str]:
        """Ours without CUDA's variables: the daemon has to see every GPU, since its clients count
        theirs among those that it sees.
        """
        ours = {key: value for key, value in os.environ.items() if not key.startswith("CUDA_")}
        return ours | self.environment(None)

    def _start(self) -> None:
        deadline = time.monotonic() + _START_S
        with (self._logs / "start.log").open("wb") as log:
            try:
                code = subprocess.run(
                    [MPS_CONTROL, "-d"],
                    check=False,
                    env=self._clean_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    timeout=_START_S,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        while code == 0 and time.monotonic() < deadline:
            if self._ask("get_server_list") is not None:
                running = guardian.mps_processes(self._pipes)
                self._daemon = running[0] if running else None
            if self._daemon is not None:
                return
            time.sleep(0.02)
        raise RunFailed(f"the MPS daemon did not come up: {self._last_words(code)}")

    def _last_words(self, code: int | None) -> str:
        """The last line that the daemon logged, or how its start ended where it said nothing."""
        for name in ("control.log", "start.log"):
            with suppress(OSError):
                lines = (self._logs / name).read_text(errors="replace").split("\n")
                said = [line.strip() for line in lines if line.strip()]
                if said:
                    return said[-1]
        return f"no answer within {_START_S:g} s" if not code else f"exit code {code}"

    def _stop(self) -> None:
        guardian.stop_mps(self._pipes)
        self._daemon = None
        shutil.rmtree(self._directory, ignore_errors=True)
