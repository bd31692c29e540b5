"""Telemetry: what is sampled, when, and what is said where nothing can be."""

from __future__ import annotations

import json
from math import isnan
from threading import active_count
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import pytest

from splitwiser.validate.runtime import telemetry as module
from splitwiser.validate.runtime.device import Device
from splitwiser.validate.runtime.telemetry import Sample, Telemetry

GPU = Device("cuda", 0)
NUMBERS = (
    "power_w_mean",
    "power_w_max",
    "sm_clock_mhz_mean",
    "sm_clock_mhz_min",
    "memory_bytes_peak",
    "utilisation_mean",
)


class UntoldError(Exception):
    """NVML's error for a sensor that a GPU does not have."""


def _untold(handle: object) -> Any:
    raise UntoldError


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU at 500 W, 1,980 MHz, with 8 GiB in use; it does not tell its utilisation."""
    fake = SimpleNamespace(
        NVMLError=UntoldError,
        NVML_CLOCK_SM=1,
        closed=0,
        nvmlDeviceGetPowerUsage=lambda handle: 500_000,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1980,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=2**33),
        nvmlDeviceGetUtilizationRates=_untold,
    )

    def close() -> None:
        fake.closed += 1

    fake.nvmlShutdown = close
    monkeypatch.setattr(module, "open_nvml", lambda device: (fake, "handle"))
    return fake


def test_samples_are_in_si_and_end_with_the_context(nvml: SimpleNamespace) -> None:
    """Samples come while the context is open, in W, Hz and bytes; then thread and NVML are gone."""
    threads, begun = active_count(), monotonic()
    with Telemetry(GPU) as telemetry:
        sleep(0.25)
        assert not nvml.closed
    assert monotonic() - begun < 1  # it does not wait for the next sample
    assert active_count() == threads
    assert nvml.closed == 1
    assert 2 <= len(telemetry.samples) <= 4
    sample = telemetry.samples[-1]
    assert begun <= sample.time <= monotonic()
    assert sample[1:4] == (500.0, 1.98e9, 2.0**33)
    assert isnan(sample.utilisation)


def test_leaving_at_once_is_quick(nvml: SimpleNamespace) -> None:
    """A context left at once does not wait for its period, and has its first sample."""
    begun = monotonic()
    with Telemetry(GPU) as telemetry:
        pass
    assert monotonic() - begun < module.PERIOD
    assert len(telemetry.samples) == 1


def _sampled(*samples: tuple[float, ...]) -> Telemetry:
    telemetry = Telemetry(GPU)
    telemetry.samples = [Sample(*sample) for sample in samples]
    return telemetry


def test_a_summary_is_of_its_window_only() -> None:
    """Only samples between start and end count; an unknown value is left out of a mean."""
    nan = float("nan")
    summary = _sampled(
        (0.0, 900.0, 1e9, 9e9, 1.0),
        (1.0, 100.0, 2e9, 1e9, nan),
        (2.0, 300.0, 1.5e9, 3e9, 0.5),
        (3.0, 900.0, 1e9, 9e9, 1.0),
    ).summary(0.5, 2.5)
    assert summary == {
        "samples": 2,
        "power_w_mean": 200.0,
        "power_w_max": 300.0,
        "sm_clock_mhz_mean": 1750.0,
        "sm_clock_mhz_min": 1500.0,
        "memory_bytes_peak": 3e9,
        "utilisation_mean": 0.5,
    }


def test_an_empty_window_tells_nothing() -> None:
    """Where no sample falls into the window, every number is None, not zero."""
    summary = _sampled((0.0, 1.0, 1.0, 1.0, 1.0)).summary(5, 6)
    assert summary == {"samples": 0, **dict.fromkeys(NUMBERS)}


def test_columns_are_lists_after_an_origin() -> None:
    """The columns have the samples' values, with times after the origin; without samples, none."""
    frame = _sampled((10.0, 1.0, 2.0, 3.0, 0.0), (10.5, 4.0, 5.0, 6.0, 1.0)).frame(origin=10.0)
    assert list(frame) == list(Sample._fields)
    assert frame["time"] == [0.0, 0.5]
    assert frame["power"] == [1.0, 4.0]
    assert set(map(tuple, Telemetry(GPU).frame().values())) == {()}


def test_the_cpu_has_no_telemetry() -> None:
    """On the CPU there are no samples, no thread, and a note."""
    threads = active_count()
    with Telemetry(Device("cpu")) as telemetry:
        assert active_count() == threads
    summary = telemetry.summary(0, monotonic())
    assert summary["samples"] == 0 and "CPU" in summary["note"]
    assert json.loads(json.dumps(summary)) == summary


def test_without_nvml_there_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where NVML is missing the run goes on, and its telemetry says why there is none."""

    def missing(device: Device) -> Any:
        raise LookupError("NVML is not available: no driver")

    monkeypatch.setattr(module, "open_nvml", missing)
    with Telemetry(GPU) as telemetry:
        pass
    assert telemetry.summary(0, 1)["note"] == "no telemetry: NVML is not available: no driver"
