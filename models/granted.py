"""The SMs that processes are granted: limits in per cent, as MPS and green contexts round them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from splitwiser.models.gpu import Gpu
from splitwiser.models.memory import DoesNotFit

# MPS rounds a limit down to whole TPCs, of two SMs each: an H200 of 132 SMs grants 12 for 10 %,
# 32 for 25 %, 98 for 75 %, 118 for 90 % (benchmarks/h200/calibration.jsonl: `sms` of its lanes).
TPC = 2
_FEW = 1e-9  # rounding of whole numbers that were divided


class Granularity(NamedTuple):
    """SM groups of a GPU have *least* SMs or more, in multiples of *step*."""

    least: int
    step: int


def granularity(major: int) -> Granularity:
    """Return the granularity of SM groups on GPUs of compute capability *major*.x.

    From the CUDA driver API, cuDevSmResourceSplitByCount.
    """
    if major >= 9:
        return Granularity(8, 8)
    return {8: Granularity(4, 2), 7: Granularity(2, 2)}.get(major, Granularity(1, 1))


def group_sizes(percents: Sequence[float], sms: int, grain: Granularity) -> list[int]:
    """Return the SMs to ask for, for each of *percents* of *sms*: the nearest count that can be had.

    Where the percents sum to 100, the largest group (the last of equals) takes what the others
    leave: there the rounding matters least. Raises `DoesNotFit` where the groups do not.
    """
    sizes = [
        max(grain.least, grain.step * int(sms * percent / 100 / grain.step + 0.5))
        for percent in percents
    ]
    if abs(sum(percents) - 100) < 1e-6:
        largest = max(range(len(sizes)), key=lambda place: (percents[place], place))
        sizes[largest] = sms - sum(sizes) + sizes[largest]
    if sum(sizes) > sms or min(sizes) < grain.least:
        asked = ", ".join(f"{percent:g}" for percent in percents)
        raise DoesNotFit(
            f"green contexts of {asked} % do not fit {sms} SMs in groups of {grain.least} or more, "
            f"in steps of {grain.step}; use fewer or smaller ones"
        )
    return sizes


def sm_shares(sharing: str, percents: Sequence[float | None], gpu: Gpu) -> list[float]:
    """Return the part of the SMs, in (0, 1], that each process of a deployment may use.

    *percents* are the limits of all its processes (None: no limit). A CPU's threads are not
    rounded. Raises `DoesNotFit` where green contexts do not fit the GPU.
    """
    asked = [100.0 if percent is None else percent for percent in percents]
    if gpu.compute_capability is None or all(percent is None for percent in percents):
        return [percent / 100 for percent in asked]
    if sharing == "green_contexts":
        sizes = group_sizes(asked, gpu.sms, granularity(int(gpu.compute_capability)))
    else:
        tpcs = gpu.sms / TPC
        sizes = [TPC * max(1, int(tpcs * percent / 100 + _FEW)) for percent in asked]
    return [min(1.0, size / gpu.sms) for size in sizes]
