"""A stage at work: its processes, and the rates of its points."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from statistics import fmean, quantiles
from time import monotonic
from types import TracebackType
from typing import Any, Self

from splitwiser.models.catalogue import llm as llm_named
from splitwiser.validate.calibration.lane import Done
from splitwiser.validate.calibration.lane_process import (
    RESERVE,
    Booth,
    Estate,
    Needs,
    Prepare,
    Refused,
    Window,
    attend,
    hold,
)
from splitwiser.validate.calibration.points import (
    BLOCK,
    TOGETHER,
    Point,
    Stage,
    lanes_record,
    pool_tokens,
)
from splitwiser.validate.runtime.children import Child, Children
from splitwiser.validate.runtime.device import Device
from splitwiser.validate.runtime.mps import MpsDaemon
from splitwiser.validate.runtime.scratch import Scratch
from splitwiser.validate.runtime.telemetry import Telemetry

SEND_S = 0.02  # for an order to reach every process
SETTLE_S = 0.1  # all lanes run for so long before anything counts: a GPU that rested is faster
SHORTEST_S, LONGEST_S = 0.2, 3.0  # of a window
STEPS = 3.5  # of the slowest lane that a window should hold, were it alone on its part


class StageRun:
    """The processes of one stage; a context manager. They are warm when it is entered."""

    def __init__(self, stage: Stage, device: Device, telemetry: Telemetry) -> None:
        self._stage = stage
        self._device = device
        self._telemetry = telemetry
        self._kept = ExitStack()
        self._children: dict[int, Child] = {}  # by the place of a lane
        self.sms: dict[int, int | None] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._kept.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kept.__exit__(kind, error, trace)

    def measure(self, point: Point) -> dict[str, Any]:
        """The rates of a point's lanes while all of them run, as a record of the raw file.

        What went wrong is in `error` of the record. Raises `RunFailed` where a process dies.
        """
        record: dict[str, Any] = {
            "sharing": self._stage.sharing,
            "lanes": lanes_record(self._stage, point, self.sms),
            "repeat": point.repeat,
        }
        seconds = self._prepare(point)
        if isinstance(seconds, Refused):
            return {**record, "error": seconds.why}
        wanted = STEPS * max(seconds.values()) * len(point.loads)
        window = min(max(SHORTEST_S, wanted), LONGEST_S)
        begin = monotonic() + SEND_S
        done = self._window(point, Window(begin, begin + SETTLE_S + window))
        opens, closes = begin + SETTLE_S, begin + SETTLE_S + window
        counted = [[each for each in lane if opens < each.end <= closes] for lane in done]
        inside = [[each.end for each in lane] for lane in counted]
        if min(map(len, inside)) < 3:
            counts = ", ".join(str(len(lane)) for lane in inside)
            return {**record, "error": f"only {counts} steps ended in {window:.2f} s"}
        heard = self._telemetry.summary(opens, closes)
        return {
            **record,
            "rates": [(len(lane) - 1) / (lane[-1] - lane[0]) for lane in inside],
            "steps": [len(lane) for lane in inside],
            "quartiles": [_quartiles(lane) for lane in inside],
            **self._host(counted),
            "window": window,
            "power_w": heard["power_w_mean"],
            "sm_clock_mhz": heard["sm_clock_mhz_mean"],
        }

    def _host(self, counted: list[list[Done]]) -> dict[str, list[float]]:
        """What a launch takes the host in the mean, for that is what bounds a rate.

        The first step counts in neither: a rate is of the steps that ended after it. On the CPU a
        launch is the step itself, and tells nothing.
        """
        if self._device.kind == "cpu":
            return {}
        return {"host": [fmean(each.host for each in lane[1:]) for lane in counted]}

    def _prepare(self, point: Point) -> dict[int, float] | Refused:
        """Have the lanes make ready; about how long a step of each takes, by place."""
        found: dict[int, float] = {}
        refused = None
        for child, loads in self._by_child(point):
            self._all.send(child, Prepare(loads))
        for child, _ in self._by_child(point):
            answer = self._all.receive(child)
            if isinstance(answer, Refused):
                refused = answer
            else:
                found |= answer
        return refused or found

    def _window(self, point: Point, window: Window) -> list[list[Done]]:
        for child, _ in self._by_child(point):
            self._all.send(child, window)
        done: dict[int, list[Done]] = {}
        for child, loads in self._by_child(point):
            done |= dict(zip(loads, self._all.receive(child), strict=True))
        return [done[place] for place, _ in point.loads]

    def _by_child(self, point: Point) -> list[tuple[Child, dict[int, Any]]]:
        """The processes that a point needs, each with its loads by place."""
        found: dict[int, tuple[Child, dict[int, Any]]] = {}
        for place, load in point.loads:
            child = self._children[place]
            found.setdefault(id(child), (child, {}))[1][place] = load
        return list(found.values())

    # Start ------------------------------------------------------------------------------------

    def _start(self) -> None:
        stage = self._stage
        blocks = {
            name: -(-pool_tokens(stage.points, name) // BLOCK) + RESERVE * len(stage.lanes)
            for name in stage.models
        }
        scratch = self._kept.enter_context(Scratch(_cpu_bytes(self._device, blocks)))
        mps = None
        if stage.sharing == "mps" and self._device.kind == "cuda":
            mps = self._kept.enter_context(MpsDaemon(scratch))
        daemon_dead = "the MPS daemon died"
        self._all = self._kept.enter_context(
            Children(scratch, lambda: daemon_dead if mps and not mps.alive() else None)
        )
        needs = Needs(str(self._device), scratch.directory, blocks)
        variables = mps.environment(None) if mps else {}
        owner = self._all.start("the owner of the weights", hold, needs, variables=variables)
        booths = list(_booths(stage, needs))
        for booth in booths:
            limit = booth.lanes[0].sm_percent
            child = self._all.start(
                f"the process of lane {booth.places[0]}",
                attend,
                booth,
                variables=mps.environment(limit) if mps else {},
            )
            self._children |= dict.fromkeys(booth.places, child)
        estate: Estate = self._all.receive(owner)
        for booth in booths:
            self._all.send(self._children[booth.places[0]], estate)
        for booth in booths:
            told = self._all.receive(self._children[booth.places[0]])
            for place, share in zip(booth.places, told, strict=True):
                self.sms[place] = share


def _cpu_bytes(device: Device, blocks: dict[str, int]) -> int:
    """Bytes of files that stand for device memory."""
    if device.kind != "cpu":
        return 0
    models = {name: llm_named(name) for name in blocks}
    return sum(
        llm.weight_bytes * 2 + llm.kv_bytes_per_token * BLOCK * blocks[name]
        for name, llm in models.items()
    )


def _booths(stage: Stage, needs: Needs) -> list[Booth]:
    """The processes of a stage: one for each lane, or for each group of lanes."""
    places: list[list[int]] = [[place] for place in range(len(stage.lanes))]
    if stage.sharing in TOGETHER:
        groups = dict.fromkeys(lane.group for lane in stage.lanes)
        places = [[p for p, lane in enumerate(stage.lanes) if lane.group == g] for g in groups]
    cores = len(os.sched_getaffinity(0))
    booths = []
    for members in places:
        lanes = tuple(stage.lanes[place] for place in members)
        percents = tuple(lane.sm_percent or 100.0 for lane in lanes)
        booths.append(
            Booth(
                needs,
                tuple(members),
                lanes,
                tuple(_loads(stage, place) for place in members),
                percents if stage.sharing == "green_contexts" else None,
                max(1, int(cores * min(percents) / 100)),
                len(stage.lanes),
            )
        )
    return booths


def _loads(stage: Stage, place: int) -> tuple[Any, ...]:
    """What the lane at *place* will run, each load once."""
    loads = (load for point in stage.points for at, load in point.loads if at == place)
    return tuple(dict.fromkeys(loads))


def _quartiles(ends: Sequence[float]) -> list[float]:
    """The quartiles of the times between ends, in seconds."""
    gaps = [later - earlier for earlier, later in pairwise(ends)]
    return [round(value, 9) for value in (quantiles(gaps, n=4) if len(gaps) > 1 else gaps * 3)]
