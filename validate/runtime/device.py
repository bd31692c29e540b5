"""The device of a run: its name, whether it can do what a deployment asks, and what it is.

Nothing here creates a CUDA context: the process that asks is not one that computes.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from splitwiser.sim.deployment import Deployment
from splitwiser.validate.runtime.guardian import MPS_CONTROL

GENERATE_PACKAGES = ("transformers", "tokenizers")  # what the paper's code is made of
GREEN_CONTEXTS_FROM = 12050  # the first driver with cuGreenCtxStreamCreate: CUDA 12.5


@dataclass(frozen=True, slots=True)
class Device:
    """Where a run computes: *kind* is "cpu" or "cuda"; *index* counts as CUDA does."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        """The name as torch takes it."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


def device_named(text: str) -> Device:
    """The device that *text* names: "cpu", "cuda" (the first one) or "cuda:N".

    Raises ValueError for anything else. Whether there is such a device, `check` says.
    """
    found = re.fullmatch(r"(cpu)|cuda(?::([0-9]{1,4}))?", text)
    if found is None:
        raise ValueError(f"unknown device {text!r}; accepted: cpu, cuda, or cuda:N such as cuda:0")
    return Device("cpu") if found[1] else Device("cuda", int(found[2] or 0))


def check(deployment: Deployment, device: Device) -> None:
    """Refuse what *device* cannot do for *deployment*, before any process starts.

    Raises ModuleNotFoundError, with its name, where a package is missing, and ValueError, in one
    line that says what is missing, where there is no such CUDA device, no MPS or no green contexts.
    The CPU does everything, some of it in its own way: see `notes_for`.
    """
    need("torch", *(GENERATE_PACKAGES if deployment.start == "staggered" else ()))
    if device.kind == "cpu":
        return
    _check_cuda(device)
    driver = _driver()
    if deployment.sharing == "mps" and shutil.which(MPS_CONTROL) is None:
        raise ValueError(
            f'sharing = "mps" needs {MPS_CONTROL}, which is not in PATH; it comes with the NVIDIA driver'
        )
    if deployment.sharing == "green_contexts":
        _check_green_contexts(driver)


def need(*packages: str) -> None:
    """Raise ModuleNotFoundError, in one line, for the first of these that cannot be imported."""
    for package in packages:
        if find_spec(package) is None:
            raise _missing(package)


def _missing(package: str) -> ModuleNotFoundError:
    line = f"a real run needs {package}, which is missing: pip install 'splitwiser[validate]'"
    return ModuleNotFoundError(line, name=package)


def _check_cuda(device: Device) -> None:
    import torch

    if torch.version.cuda is None:
        raise ValueError(
            f"device {device} needs torch with CUDA; torch {torch.__version__} is built without it"
        )
    count = torch.cuda.device_count()
    if count == 0:
        raise ValueError(
            f"device {device}: no CUDA device is there; an NVIDIA driver is needed, and a GPU that "
            f"CUDA_VISIBLE_DEVICES ({os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}) does not hide"
        )
    if device.index >= count:
        raise ValueError(f"device {device} is not there; the last one is cuda:{count - 1}")
    try:
        nvml, _ = open_nvml(device)
    except LookupError as error:
        raise ValueError(f"the memory of device {device} cannot be told: {error}") from None
    nvml.nvmlShutdown()


def _driver() -> Any:
    """CUDA's driver for Python: the processes share their memory by it. A torch for CUDA brings it."""
    try:
        return import_module("cuda.bindings.driver")
    except ImportError:
        raise _missing("cuda-bindings") from None


def _check_green_contexts(driver: Any) -> None:
    failed, found = driver.cuDriverGetVersion()  # needs no context, nor cuInit
    if int(failed) or found < GREEN_CONTEXTS_FROM:
        raise ValueError(
            f'sharing = "green_contexts" needs a driver for CUDA {_cuda(GREEN_CONTEXTS_FROM)} or later; '
            f"this one is for {_cuda(0 if int(failed) else found)}"
        )


def cpu_threads(deployment: Deployment) -> list[int]:
    """The torch threads of each worker on the CPU: its `sm_percent` of the cores, else an equal part.

    Cores are those that this process may use; parts are rounded down, to at least one thread.
    """
    cores = len(os.sched_getaffinity(0))
    equal = 100 / deployment.processes
    percents = (equal if w.sm_percent is None else w.sm_percent for w in deployment.each())
    return [max(1, int(cores * percent / 100 + 1e-9)) for percent in percents]


def notes_for(deployment: Deployment, device: Device) -> list[str]:
    """What a reader of the result must know of how *device* does what *deployment* asks."""
    if device.kind != "cpu":
        return []
    notes = []
    if not deployment.enforce_eager:
        notes.append("the CPU has no CUDA graphs: every step is launched eagerly")
    means = {
        "mps": "processes that the operating system runs side by side",
        "green_contexts": "threads of one process",
        "streams": "threads of one process, without priorities",
        "time_slice": "processes that the operating system runs side by side, not in turns",
    }
    if deployment.sharing in means:
        threads = ", ".join(map(str, cpu_threads(deployment)))
        cores = len(os.sched_getaffinity(0))
        notes.append(
            f'sharing = "{deployment.sharing}" on the CPU means {means[deployment.sharing]}; '
            f"torch threads {threads} of {cores} cores stand for SMs"
        )
    return notes


def provenance(device: Device) -> dict[str, Any]:
    """What a measurement rests on, as plain JSON: the device by name, software versions, the date.

    *uuid* tells one card from others of its name. *cuda* is the toolkit that torch was built with,
    *driver_cuda* the newest that the driver takes. What cannot be found out is None.
    """
    facts: dict[str, Any] = {
        "device": str(device),
        "name": _processor() if device.kind == "cpu" else None,
        "torch": _installed("torch"),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if device.kind == "cpu":
        return {**facts, "cores": len(os.sched_getaffinity(0))}
    import torch

    facts |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    facts |= dict.fromkeys(("uuid", "driver", "driver_cuda", "memory_bytes", "power_limit_w"))
    try:
        nvml, handle = open_nvml(device)
    except LookupError:
        return facts
    try:
        readings = {
            "name": lambda: nvml.nvmlDeviceGetName(handle),
            "uuid": lambda: nvml.nvmlDeviceGetUUID(handle),
            "driver": nvml.nvmlSystemGetDriverVersion,
            "driver_cuda": lambda: _cuda(nvml.nvmlSystemGetCudaDriverVersion_v2()),
            "memory_bytes": lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        }
        for name, reading in readings.items():
            try:
                facts[name] = reading()
            except nvml.NVMLError:  # this device does not tell
                continue
    finally:
        nvml.nvmlShutdown()
    return facts


def open_nvml(device: Device) -> tuple[Any, Any]:
    """The pynvml module, initialised, and its handle of a CUDA *device*; the caller shuts it down.

    NVML counts all GPUs of the machine, CUDA those in CUDA_VISIBLE_DEVICES (by index or UUID). Where
    GPUs differ, both count alike only with CUDA_DEVICE_ORDER=PCI_BUS_ID. Raises LookupError, in one
    line, where the package, the driver or the GPU is not there.
    """
    try:
        nvml = import_module("pynvml")
    except ImportError:
        raise LookupError("the package nvidia-ml-py is not installed") from None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [] if visible is None else [name.strip() for name in visible.split(",")]
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise LookupError(f"NVML is not available: {error}") from None
    try:
        name = str(device.index) if visible is None else names[device.index]
        if name.isdecimal():
            return nvml, nvml.nvmlDeviceGetHandleByIndex(int(name))
        return nvml, nvml.nvmlDeviceGetHandleByUUID(name)
    except (nvml.NVMLError, IndexError) as error:
        nvml.nvmlShutdown()
        raise LookupError(f"NVML does not find {device}: {error}") from None


def _cuda(number: int) -> str:
    """A CUDA version as people write it: 12050 is 12.5."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The CPU's model, as Linux names it; else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()
