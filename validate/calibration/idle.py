"""Whether a device is idle: what others compute there would be in every measurement."""

from __future__ import annotations

import os
from time import sleep

from splitwiser.validate.runtime.device import Device, open_nvml

LOOKS, LOOK_S = 4, 0.25
BUSY = 0.05  # share of the driver's sampling period in which a kernel ran
LOAD = 0.6  # runnable processes per core


def refuse_busy(device: Device) -> None:
    """Raise ValueError, in one line, where others compute on *device* now.

    On a GPU that is what NVML tells: processes with a context there, and kernels that run. On the
    CPU it is the load of the last minute. Where NVML is not to be had, LookupError.
    """
    if device.kind == "cpu":
        cores = len(os.sched_getaffinity(0))
        load = os.getloadavg()[0] / cores
        if load > LOAD and not os.environ.get("CI"):
            raise ValueError(
                f"the CPU is busy: {load:.0%} of {cores} cores over the last minute (at most "
                f"{LOAD:.0%} while calibrating); wait, or stop what runs"
            )
        return
    nvml, handle = open_nvml(device)
    try:
        try:
            others = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError:  # not told here: the utilisation has to do
            others = []
        for other in others:
            used = other.usedGpuMemory or 0
            raise ValueError(
                f"device {device} is busy: process {other.pid} computes there and holds "
                f"{used / 2**30:.1f} GiB; a calibration needs the device to itself"
            )
        for _ in range(LOOKS):
            busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            if busy > BUSY:
                raise ValueError(
                    f"device {device} is busy: kernels run {busy:.0%} of the time; a calibration "
                    "needs the device to itself"
                )
            sleep(LOOK_S)
    finally:
        nvml.nvmlShutdown()
