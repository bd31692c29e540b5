"""A device that others use is not calibrated."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from splitwiser.validate.calibration import idle
from splitwiser.validate.calibration.idle import refuse_busy
from splitwiser.validate.runtime.device import Device

GPU = Device("cuda", 0)


class Nvml:
    """NVML as it answers on a GPU with these processes and this utilisation."""

    NVMLError = RuntimeError

    def __init__(self, processes: list[int], utilisation: int) -> None:
        self._processes = processes
        self._utilisation = utilisation
        self.closed = False

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=2**30) for pid in self._processes]

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=self._utilisation)

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.closed = True


def answer(monkeypatch: pytest.MonkeyPatch, nvml: Nvml) -> None:
    """Have NVML answer so."""
    monkeypatch.setattr(idle, "open_nvml", lambda device: (nvml, None))
    monkeypatch.setattr(idle, "LOOK_S", 0.0)


@pytest.mark.parametrize(
    ("nvml", "message"),
    [
        (Nvml([123], 0), "cuda:0 is busy: process 123 computes there and holds 1.0 GiB"),
        (Nvml([], 80), "cuda:0 is busy: kernels run 80% of the time"),
    ],
)
def test_a_gpu_that_others_use_is_refused(
    nvml: Nvml, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's process, or kernels that run, is one line; NVML is closed again."""
    answer(monkeypatch, nvml)
    with pytest.raises(ValueError, match=message) as refusal:
        refuse_busy(GPU)
    assert "\n" not in str(refusal.value)
    assert nvml.closed


def test_an_idle_gpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody there and no kernel running is no reason to refuse."""
    nvml = Nvml([], 1)
    answer(monkeypatch, nvml)
    refuse_busy(GPU)
    assert nvml.closed


@pytest.mark.parametrize(("share", "refused"), [(0.1, False), (0.9, True)])
def test_a_cpu_is_busy_by_its_load(
    share: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load near the number of cores is refused, a small one is not."""
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (share * cores, 0.0, 0.0))
    if refused:
        with pytest.raises(ValueError, match="the CPU is busy: 90%"):
            refuse_busy(Device("cpu"))
    else:
        refuse_busy(Device("cpu"))
