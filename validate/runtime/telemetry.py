"""What the GPU says of itself during a run: power, clock, memory, utilisation, by NVML."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isnan, nan
from threading import Event, Thread
from time import monotonic
from typing import Any, NamedTuple, Self

from splitwiser.validate.runtime.device import Device, open_nvml

PERIOD = 0.1  # seconds between two samples


class Sample(NamedTuple):
    """One look at the GPU; NaN for what it does not tell.

    *time* is `time.monotonic()`. *power* is in W, on most GPUs the driver's mean over the last
    second; *sm_clock* in Hz; *memory* in bytes, of all processes; *utilisation* the share of the
    driver's last sampling period in which any kernel ran.
    """

    time: float
    power: float
    sm_clock: float
    memory: float
    utilisation: float


class Telemetry:
    """Samples of a GPU from a thread, ten a second, while the context manager is open.

    It needs the driver and no CUDA context. Where NVML is not to be had, and on the CPU, there are
    no samples, and *note* says why; that is never an error.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.note: str | None = None
        self.samples: list[Sample] = []
        self._stop = Event()
        self._thread: Thread | None = None

    def __enter__(self) -> Self:
        if self.device.kind == "cpu":
            self.note = "no telemetry on the CPU"
            return self
        try:
            nvml, handle = open_nvml(self.device)
        except LookupError as error:
            self.note = f"no telemetry: {error}"
            return self
        self._thread = Thread(target=self._sample, args=(nvml, handle), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self, nvml: Any, handle: Any) -> None:
        def read(sensor: Callable[[], float]) -> float:
            try:
                return float(sensor())
            except nvml.NVMLError:  # this GPU does not tell, or not now
                return nan

        try:
            while True:
                now = monotonic()
                sample = Sample(
                    now,
                    read(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
                    read(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6),
                    read(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
                    read(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
                )
                self.samples.append(sample)
                if self._stop.wait(max(0.0, now + PERIOD - monotonic())):
                    return
        finally:
            nvml.nvmlShutdown()

    def frame(self, origin: float = 0.0) -> dict[str, list[float]]:
        """The samples as columns named as in `Sample`; times are seconds after *origin*."""
        rows = [sample._replace(time=sample.time - origin) for sample in self.samples]
        columns = zip(*rows, strict=True) if rows else ((),) * len(Sample._fields)
        return {name: list(column) for name, column in zip(Sample._fields, columns, strict=True)}

    def summary(self, start: float, end: float) -> dict[str, Any]:
        """The samples from *start* to *end* (`time.monotonic()`) in a few numbers, as plain JSON.

        Power in W, SM clock in MHz, memory in bytes; None for what no sample tells. Where there is
        a note, it is there too.
        """
        rows = [sample for sample in list(self.samples) if start <= sample.time <= end]
        power = _known(sample.power for sample in rows)
        clock = _known(sample.sm_clock / 1e6 for sample in rows)
        memory = _known(sample.memory for sample in rows)
        busy = _known(sample.utilisation for sample in rows)
        numbers: dict[str, Any] = {
            "samples": len(rows),
            "power_w_mean": _mean(power),
            "power_w_max": max(power, default=None),
            "sm_clock_mhz_mean": _mean(clock),
            "sm_clock_mhz_min": min(clock, default=None),
            "memory_bytes_peak": max(memory, default=None),
            "utilisation_mean": _mean(busy),
        }
        return numbers if self.note is None else {**numbers, "note": self.note}


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not isnan(value)]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
