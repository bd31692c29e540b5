"""The processes of a stage: the owner of weights and KV pools, and those in which lanes run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from splitwiser.validate.calibration.lane import (
    Done,
    LaneRunner,
    Models,
    measured_llm,
    repeat,
)
from splitwiser.validate.calibration.points import BLOCK, Lane, Load
from splitwiser.validate.runtime.faults import line_of
from splitwiser.validate.runtime.owner import pool_shape
from splitwiser.validate.runtime.staff import Handle

if TYPE_CHECKING:
    import torch

    from splitwiser.validate.runtime.arena import Arena
    from splitwiser.validate.runtime.partition import Partition

RESERVE = 640  # blocks behind each pool into which the prompts of one lane go
SEED = 0


class Estate(NamedTuple):
    """What the owner holds for every lane: by model, handles of weights and of the KV pool."""

    weights: dict[str, Handle]
    pools: dict[str, Handle]


@dataclass(frozen=True, slots=True)
class Needs:
    """What the owner allocates: blocks of each model's pool, the reserves of all lanes included."""

    device: str
    directory: Path
    blocks: dict[str, int]


@dataclass(frozen=True, slots=True)
class Booth:
    """One process with lanes: threads of it where there are several, by their places in the stage.

    *percents* divides the SMs between its lanes (green contexts); None: streams, or a process
    alone. *loads* are all that each lane will run.
    """

    needs: Needs
    places: tuple[int, ...]
    lanes: tuple[Lane, ...]
    loads: tuple[tuple[Load, ...], ...]
    percents: tuple[float, ...] | None
    threads: int
    lanes_in_all: int


class Prepare(NamedTuple):
    """Make ready for these loads, by the place of their lane."""

    loads: dict[int, Load]


class Window(NamedTuple):
    """Repeat what was prepared, from *begin* to *end* (`time.monotonic`)."""

    begin: float
    end: float


class Refused(NamedTuple):
    """What a process could not do, in one line; it is ready for something else."""

    why: str


def hold(needs: Needs, connection: Connection) -> None:
    """The life of the owner: allocate, tell the handles, and hold them until the pipe closes."""
    import torch

    from splitwiser.validate.runtime.arena import Arena
    from splitwiser.validate.runtime.weights import fill_random, layout

    device = torch.device(needs.device)
    kept: list[Arena] = []
    weights, pools = {}, {}
    for name, blocks in needs.blocks.items():
        llm = measured_llm(name)
        arena = Arena.allocate(layout(llm).nbytes, device, needs.directory / f"weights-{len(kept)}")
        fill_random(arena.flat, llm, SEED)
        size = prod(pool_shape(llm, blocks, BLOCK)) * llm.dtype_bytes
        pool = Arena.allocate(size, device, needs.directory / f"pool-{len(kept)}")
        for layer in _pool(pool, name, blocks):
            layer.normal_()
        kept += [arena, pool]
        weights[name], pools[name] = arena.handle, pool.handle
    if device.type == "cuda":
        torch.cuda.synchronize()
    connection.send(Estate(weights, pools))
    connection.recv()


def attend(booth: Booth, connection: Connection) -> None:
    """The life of a process with lanes: warm up, then prepare and repeat as it is told."""
    import torch

    torch.set_num_threads(booth.threads)
    estate: Estate = connection.recv()
    with torch.inference_mode(), ExitStack() as kept:
        runners = _lanes(booth, estate, kept)
        for place, lane in enumerate(runners):
            with lane.on():
                lane.warm_up(list(booth.loads[place]))
        connection.send([lane.sms or lane.threads for lane in runners])
        prepared: dict[int, Any] = {}
        while True:
            order: Prepare | Window = connection.recv()
            if isinstance(order, Window):
                connection.send(_repeat_all(runners, prepared, order))
                continue
            prepared.clear()
            seconds = {}
            try:
                for place, load in order.loads.items():
                    at = booth.places.index(place)
                    with runners[at].on():
                        prepared[at], seconds[place] = runners[at].prepare(load)
            except (RuntimeError, MemoryError, ValueError) as error:  # out of memory, above all
                connection.send(Refused(line_of(error)))
            else:
                connection.send(seconds)


def _repeat_all(
    runners: Sequence[_Seated], prepared: dict[int, Any], window: Window
) -> list[list[Done]]:
    """Run every lane that was prepared, the first in this thread; what each repeated."""
    import torch

    done: dict[int, list[Done]] = {}

    def run(at: int) -> None:
        with torch.inference_mode(), runners[at].on():
            done[at] = repeat(prepared[at], *window)

    first, *others = prepared
    threads = [Thread(target=run, args=(at,)) for at in others]
    for thread in threads:
        thread.start()
    run(first)
    for thread in threads:
        thread.join()
    return [done.get(at, []) for at in prepared]


class _Seated(LaneRunner):
    """A lane in its place on the device."""

    sms: int | None = None
    threads: int | None = None


def _lanes(booth: Booth, estate: Estate, kept: ExitStack) -> list[_Seated]:
    """Map what the owner holds, and give each lane its place."""
    import torch

    device = torch.device(booth.needs.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    models = _models(booth.needs, estate, kept)
    lanes = []
    for place, partition in zip(booth.places, _partitions(booth, device), strict=True):
        reserve = {
            name: np.arange(
                blocks - RESERVE * (booth.lanes_in_all - place),
                blocks - RESERVE * (booth.lanes_in_all - place - 1),
                dtype=np.int32,
            )
            for name, blocks in booth.needs.blocks.items()
        }
        green = booth.percents is not None and partition is not None
        sms = partition.sms if partition and green else None
        lane = _Seated(models, partition, sms, reserve, place)
        lane.sms = partition.sms if partition else None
        lane.threads = booth.threads if device.type == "cpu" else None
        lanes.append(lane)
    return lanes


def _partitions(booth: Booth, device: torch.device) -> list[Partition | None]:
    if device.type == "cpu":
        return [None] * len(booth.lanes)
    from splitwiser.validate.runtime.partition import green_partitions, priority_streams

    index = device.index or 0
    if booth.percents is not None:
        return [*green_partitions(booth.percents, index)]
    return [*priority_streams([lane.role for lane in booth.lanes], index)]


def _models(needs: Needs, estate: Estate, kept: ExitStack) -> Models:
    from splitwiser.validate.runtime.arena import Arena
    from splitwiser.validate.runtime.weights import layout

    weights, pools = {}, {}
    for name, blocks in needs.blocks.items():
        arena, pool = Arena.open(estate.weights[name]), Arena.open(estate.pools[name])
        kept.callback(arena.close)
        kept.callback(pool.close)
        weights[name] = layout(measured_llm(name)).views(arena.flat)
        pools[name] = _pool(pool, name, blocks)
    return Models(weights, pools)


def _pool(arena: Arena, name: str, blocks: int) -> torch.Tensor:
    import torch

    llm = measured_llm(name)
    dtype: torch.dtype = getattr(torch, llm.dtype)
    return arena.flat.view(dtype).view(pool_shape(llm, blocks, BLOCK))
