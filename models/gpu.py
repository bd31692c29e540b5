"""`Gpu`: the data sheet of one device, and the devices that ship with the package."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from splitwiser.models.names import unknown_name

_SHEETS = Path(__file__).with_name("gpus.toml")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A data sheet: what the device could do at most.

    `flops` is dense peak FLOP/s by dtype ("bfloat16", "float16", "float32", "float8_e4m3fn"),
    without structured sparsity and with float32 accumulation; a dtype that the matrix units do not
    have is absent. `bandwidth` is bytes/s of device memory and `pcie` bytes/s in one direction;
    `memory` is the bytes that the driver gives to programs (less than the data sheet's gigabytes),
    `l2` bytes of last-level cache, `power` watts, `price_per_hour` US dollars (an editable default,
    not a quote: `dataclasses.replace(gpu, price_per_hour=...)`). For `cpu`, `sms` are cores.
    `source` says where the numbers stand. `compute_capability` is CUDA's, None for what is no CUDA
    device.
    """

    name: str
    title: str
    sms: int
    flops: Mapping[str, float] = field(hash=False)
    bandwidth: float
    memory: float
    l2: float
    power: float
    pcie: float
    price_per_hour: float
    source: str
    compute_capability: float | None = None

    def peak(self, dtype: str) -> float:
        """Dense peak FLOP/s in `dtype`; ValueError, naming what there is, where it has no units."""
        try:
            return self.flops[dtype]
        except KeyError:
            known = ", ".join(sorted(self.flops))
            raise ValueError(f"{self.name} does not compute in {dtype!r}; it has {known}") from None


def gpu(name: str) -> Gpu:
    """The data sheet called `name`, in any case ("H200", "rtx 4090").

    Raises ValueError with the nearest names where there is none.
    """
    known = _by_name()
    key = "-".join(name.casefold().replace("_", " ").split())
    if key not in known:
        raise unknown_name("GPU", name, known)
    return known[key]


def gpus() -> tuple[Gpu, ...]:
    """Every data sheet that ships with the package, in the file's order."""
    return tuple(_by_name().values())


@cache
def _by_name() -> dict[str, Gpu]:
    sheets = tomllib.loads(_SHEETS.read_text(encoding="utf-8"))
    return {name: Gpu(name=name, **sheet) for name, sheet in sheets.items()}
