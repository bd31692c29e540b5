"""The device of a run: names, what is refused before a process starts, threads, provenance."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.sim.deployment import PRESETS, Deployment, Workers
from splitwiser.validate.runtime import device as module
from splitwiser.validate.runtime.device import (
    Device,
    check,
    cpu_threads,
    device_named,
    notes_for,
    provenance,
)

SPLIT = PRESETS["split"]()
GREEN = replace(SPLIT, sharing="green_contexts")
GPU = Device("cuda", 0)


@given(st.integers(0, 9999))
def test_a_device_s_name_names_it(index: int) -> None:
    """A device reads back from its own name; "cuda" is the first."""
    for device in (Device("cpu"), Device("cuda", index)):
        assert device_named(str(device)) == device
    assert device_named("cuda") == GPU


@pytest.mark.parametrize(
    "text", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA", "cuda:0\n"]
)
def test_another_name_is_refused(text: str) -> None:
    """A text that names no device is refused with what would be accepted, in one line."""
    with pytest.raises(ValueError, match="accepted: cpu, cuda, or cuda:N") as error:
        device_named(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_cpu_runs_every_deployment(preset: str) -> None:
    """No sharing is refused on the CPU."""
    pytest.importorskip("torch")
    check(PRESETS[preset](), Device("cpu"))
    check(GREEN, Device("cpu"))


def test_without_torch_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is not installed, the module that is missing is named."""
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as error:
        check(SPLIT, Device("cpu"))
    assert error.value.name == "torch"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with one GPU, MPS and cuda-bindings, in which parts can be taken away."""
    torch = pytest.importorskip("torch")
    there = SimpleNamespace(cuda="13.0", count=1, nvml=True, mps="/usr/bin/mps", driver=13000)

    def open_nvml(device: Device) -> tuple[Any, Any]:
        if not there.nvml:
            raise LookupError("NVML is not available: no driver")
        return SimpleNamespace(nvmlShutdown=lambda: None), None

    def bindings(name: str) -> Any:
        if there.driver is None:
            raise ModuleNotFoundError(name)
        return SimpleNamespace(cuDriverGetVersion=lambda: (0, there.driver))

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there.count)
    monkeypatch.setattr(module, "open_nvml", open_nvml)
    monkeypatch.setattr(module, "import_module", bindings)
    monkeypatch.setattr(shutil, "which", lambda name: there.mps)
    there.no_cuda = lambda: monkeypatch.setattr(torch.version, "cuda", None)
    return there


def test_a_whole_machine_is_not_refused(machine: SimpleNamespace) -> None:
    """Where nothing is missing, nothing is refused."""
    for deployment in (SPLIT, GREEN, PRESETS["continuous"]()):
        check(deployment, GPU)


def test_torch_without_cuda_is_told_by_its_version(machine: SimpleNamespace) -> None:
    """A CPU build of torch is named where CUDA is asked for."""
    import torch

    machine.no_cuda()
    with pytest.raises(ValueError, match="torch with CUDA") as error:
        check(SPLIT, GPU)
    assert torch.__version__ in str(error.value)


MISSING: dict[str, tuple[dict[str, Any], Deployment, str]] = {
    "no GPU": ({"count": 0}, SPLIT, "NVIDIA driver"),
    "no NVML": ({"nvml": False}, SPLIT, "NVML is not available"),
    "no MPS": ({"mps": None}, SPLIT, "nvidia-cuda-mps-control"),
    "an old driver": ({"driver": 12040}, GREEN, "12.5 or later; this one is for 12.4"),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_told(machine: SimpleNamespace, case: str) -> None:
    """What a deployment needs and the machine lacks is refused in one line that names it."""
    lacks, deployment, told = MISSING[case]
    vars(machine).update(lacks)
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        check(deployment, GPU)
    assert "\n" not in str(error.value)


def test_only_what_is_asked_for_is_needed(machine: SimpleNamespace) -> None:
    """MPS may be absent for green contexts, and green contexts for MPS."""
    machine.mps = None
    check(GREEN, GPU)
    machine.mps, machine.driver = "/usr/bin/mps", 12040
    check(SPLIT, GPU)


@pytest.mark.parametrize("deployment", [SPLIT, GREEN])
def test_without_bindings_no_memory_is_shared(
    machine: SimpleNamespace, deployment: Deployment
) -> None:
    """Whatever the sharing, a run on a GPU needs cuda-bindings, and is told so by its name."""
    machine.driver = None
    with pytest.raises(ModuleNotFoundError, match="needs cuda-bindings") as error:
        check(deployment, GPU)
    assert error.value.name == "cuda-bindings"


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_the_paper_s_code_needs_its_packages(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Without one of them the preset pipeline is refused by its name, and nothing else is."""
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else name)
    check(SPLIT, Device("cpu"))
    with pytest.raises(ModuleNotFoundError, match=f"needs {package}") as error:
        check(PRESETS["pipeline"](), Device("cpu"))
    assert error.value.name == package


def test_an_index_too_high_is_told_the_last(machine: SimpleNamespace) -> None:
    """A GPU that is not there is refused with the last one that is."""
    machine.count = 2
    with pytest.raises(ValueError, match="cuda:2 is not there; the last one is cuda:1"):
        check(SPLIT, Device("cuda", 2))


def test_checking_makes_no_context(machine: SimpleNamespace) -> None:
    """Checks and provenance leave CUDA uninitialised in this process."""
    import torch

    check(GREEN, GPU)
    assert not torch.cuda.is_initialized()


# Threads ------------------------------------------------------------------------------------------


@given(st.integers(1, 64), st.lists(st.none() | st.floats(1, 100), min_size=1, max_size=8))
def test_threads_are_the_percent_of_the_cores(cores: int, percents: list[float | None]) -> None:
    """Each worker has at least one thread, and else no more than its part of the cores."""
    groups = tuple(Workers(sm_percent=percent) for percent in percents)
    deployment = Deployment("mine", groups, sharing="mps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        threads = cpu_threads(deployment)
    assert len(threads) == deployment.processes
    for percent, count in zip(percents, threads, strict=True):
        part = cores * (100 / len(percents) if percent is None else percent) / 100
        assert count == 1 or part - 1 < count <= part + 1e-6


@given(st.integers(1, 64), st.integers(1, 64))
def test_equal_workers_share_the_cores_equally(cores: int, processes: int) -> None:
    """Without percentages every worker has the same threads, and together they fill the cores."""
    deployment = Deployment("mine", (Workers(processes=processes),), sharing="time_slice")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        assert cpu_threads(deployment) == [max(1, cores // processes)] * processes


def test_notes_tell_what_stands_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU the result says what stands for SMs; on CUDA there is nothing to say."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert any("torch threads 6, 2 of 8 cores" in text for text in notes_for(SPLIT, Device("cpu")))
    assert notes_for(SPLIT, GPU) == []
    alone = replace(PRESETS["continuous"](), enforce_eager=True)
    assert notes_for(alone, Device("cpu")) == []


# Provenance ---------------------------------------------------------------------------------------


def test_provenance_is_plain_and_complete() -> None:
    """What a measurement rests on is plain JSON, with the processor, versions and date."""
    facts = provenance(Device("cpu"))
    assert json.loads(json.dumps(facts)) == facts
    assert facts["device"] == "cpu"
    assert all(facts[key] for key in ("name", "python", "date", "cores"))


def test_provenance_of_a_gpu_is_what_nvml_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's provenance names it, its driver and memory; what NVML does not tell is None."""
    pytest.importorskip("torch")

    class UntoldError(Exception):
        pass

    def untold(handle: object) -> None:
        raise UntoldError

    closed = []
    nvml = SimpleNamespace(
        NVMLError=UntoldError,
        nvmlDeviceGetName=lambda handle: "NVIDIA H200",
        nvmlDeviceGetUUID=lambda handle: "GPU-1",
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 13000,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=2**37),
        nvmlDeviceGetEnforcedPowerLimit=untold,
        nvmlShutdown=lambda: closed.append(True),
    )
    monkeypatch.setattr(module, "open_nvml", lambda device: (nvml, None))
    facts = provenance(GPU)
    assert (facts["name"], facts["driver"], facts["driver_cuda"]) == (
        "NVIDIA H200",
        "580.1",
        "13.0",
    )
    assert (facts["memory_bytes"], facts["power_limit_w"]) == (2**37, None)
    assert facts["uuid"] == "GPU-1"
    assert closed == [True]


@pytest.mark.parametrize(
    ("visible", "handle"),
    [(None, 1), ("3,2", 2), ("GPU-a, GPU-b", "GPU-b"), ("0", None), ("", None)],
)
def test_nvml_finds_the_gpu_that_cuda_counts(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, handle: object
) -> None:
    """The second GPU for CUDA is the second of CUDA_VISIBLE_DEVICES, by index or by UUID."""
    nvml = SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
    )
    monkeypatch.setattr(module, "import_module", lambda name: nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if handle is None:
        with pytest.raises(LookupError, match="cuda:1"):
            module.open_nvml(Device("cuda", 1))
    else:
        assert module.open_nvml(Device("cuda", 1))[1] == handle
