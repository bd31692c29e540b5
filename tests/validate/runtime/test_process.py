"""How processes of a run begin and end."""

from __future__ import annotations

import os
from time import monotonic
from typing import Any

import pytest

from splitwiser.validate.runtime import process as module
from splitwiser.validate.runtime.process import KILL_S, end, environment


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
