"""Streams inside one process: by priority, or each on its own SMs (green contexts).

A CUDA graph runs where it was captured: capture it within `run_on` of its own partition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from splitwiser.models.granted import granularity, group_sizes

if TYPE_CHECKING:
    import torch

HIGH, NORMAL = -1, 0  # priorities of a stream, as torch counts them


class Partition(NamedTuple):
    """A stream and the SMs that its kernels may run on; *keep* holds what the stream needs alive."""

    stream: torch.cuda.Stream
    sms: int
    keep: object = None


@contextmanager
def run_on(partition: Partition) -> Iterator[None]:
    """Within it, this thread launches on the partition's stream."""
    import torch

    with torch.cuda.stream(partition.stream):
        yield


def priority_streams(phases: Sequence[str], device_index: int) -> list[Partition]:
    """A stream for each worker on all SMs; blocks of decode kernels are scheduled before others.

    *phases* are the workers' phases. A block that runs already is not interrupted.
    """
    import torch

    sms = torch.cuda.get_device_properties(device_index).multi_processor_count
    return [
        Partition(torch.cuda.Stream(device_index, HIGH if phase == "decode" else NORMAL), sms)
        for phase in phases
    ]


def green_partitions(percents: Sequence[float], device_index: int) -> list[Partition]:
    """A stream for each of *percents* of the SMs, on disjoint groups of them.

    Groups are rounded as `group_sizes` says; a partition's `sms` is the count that the driver
    granted. Raises ValueError where the groups do not fit, and RuntimeError, in one line, where the
    driver refuses.
    """
    import torch

    driver = import_module("cuda.bindings.driver")
    # A green context is made beside the primary context, which torch has once it allocated.
    torch.zeros(1, device=f"cuda:{device_index}")
    major, _ = torch.cuda.get_device_capability(device_index)
    device = _done(driver.cuDeviceGet(device_index), "find the device")
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    whole = _done(driver.cuDeviceGetDevResource(device, kind), "list the SMs")
    sizes = group_sizes(percents, int(whole.sm.smCount), granularity(major))
    groups, kept = split_sms(driver, device, whole, sizes)
    partitions = []
    for group in groups:
        green = _green_context(driver, device, group)
        granted = _done(driver.cuGreenCtxGetDevResource(green, kind), "read the SMs of a group")
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        stream = _done(driver.cuGreenCtxStreamCreate(green, flags, NORMAL), "make a stream")
        partitions.append(
            Partition(
                torch.cuda.ExternalStream(int(stream), device=device_index),
                int(granted.sm.smCount),
                keep=(green, stream, group, kept),
            )
        )
    return partitions


def split_sms(
    driver: Any, device: Any, whole: Any, sizes: Sequence[int]
) -> tuple[list[Any], list[Any]]:
    """Disjoint SM resources of *sizes*, split off *whole* one after another, smallest first.

    The last one is the rest where the sizes use all of *whole*. Also returns what must be kept
    alive. Raises RuntimeError where the driver refuses a split.
    """
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    groups: list[Any] = [None] * len(sizes)
    kept: list[Any] = []
    rest, fresh = whole, True
    order = sorted(range(len(sizes)), key=lambda place: sizes[place])
    for done, place in enumerate(order, 1):
        if done == len(order) and sum(sizes) == int(whole.sm.smCount):
            groups[place] = rest
            break
        if not fresh:
            # What a split left over can be split again only as a green context's resource.
            green = _green_context(driver, device, rest)
            kept.append(green)
            rest = _done(driver.cuGreenCtxGetDevResource(green, kind), "read the SMs left over")
        what = f"split {sizes[place]} of {int(rest.sm.smCount)} SMs off"
        found, count, rest = _done(
            driver.cuDevSmResourceSplitByCount(1, rest, 0, sizes[place]), what
        )
        if int(count) != 1:
            raise RuntimeError(f"green contexts: cannot {what}: the driver made {count} groups")
        groups[place] = found[0]
        fresh = False
    return groups, kept


def _green_context(driver: Any, device: Any, resource: Any) -> Any:
    described = _done(driver.cuDevResourceGenerateDesc([resource], 1), "describe a group of SMs")
    flags = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
    return _done(driver.cuGreenCtxCreate(described, device, flags), "make a green context")


def _done(answer: tuple[Any, ...], what: str) -> Any:
    """The values of a driver call's *answer* (one, or a tuple); RuntimeError where it failed."""
    status, *values = answer
    if int(status):
        raise RuntimeError(f"green contexts: cannot {what}: {getattr(status, 'name', status)}")
    return values[0] if len(values) == 1 else tuple(values)
