"""What of a stage fits the memory of a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from splitwiser.validate.calibration.lane import measured_llm
from splitwiser.validate.calibration.lane_process import RESERVE
from splitwiser.validate.calibration.points import BLOCK, TOGETHER, Point, Stage, pool_tokens

USED = 0.88  # share of the memory that a stage may take
CONTEXT_BYTES = 0.5e9  # of a lane's process: CUDA's context, libraries, graphs
LIVE_BYTES = 8192 * 8.0  # of activations for each element of the MLP's width: 8,192 tokens, 16 bits


def fitting(stage: Stage, memory: float) -> Iterator[Stage]:
    """The stage, in parts of as many lanes as fit *memory* bytes at a time.

    Points whose KV caches do not fit beside weights and processes are left out.
    """
    for most in range(len(stage.lanes), 1, -1):
        if _room(stage, most, memory) > LEAST_SHARE * memory or most == 2:
            break
    for part in _parts(stage, most):
        room = _room(part, len(part.lanes), memory)
        kept = tuple(point for point in part.points if _pool_bytes([point], part.models) <= room)
        # The pools of all models are there at once, each as large as its largest point.
        while kept and _pool_bytes(kept, part.models) > room:
            largest = max(kept, key=lambda point: _pool_bytes([point], part.models))
            kept = tuple(point for point in kept if point is not largest)
        if kept:
            yield pruned(stage=part, points=kept)


LEAST_SHARE = 0.3  # of the memory that should be left for KV caches


def _room(stage: Stage, lanes: int, memory: float) -> float:
    """Bytes that weights, *lanes* processes and their reserves leave."""
    models = [measured_llm(name) for name in stage.models]
    process = CONTEXT_BYTES + LIVE_BYTES * max(llm.intermediate for llm in models)
    reserve = RESERVE * BLOCK * sum(llm.kv_bytes_per_token for llm in models)
    weights = sum(llm.weight_bytes for llm in models)
    return USED * memory - weights - lanes * (process + reserve)


def _pool_bytes(points: Sequence[Point], models: Sequence[str]) -> float:
    return sum(pool_tokens(points, name) * measured_llm(name).kv_bytes_per_token for name in models)


def _parts(stage: Stage, most: int) -> Iterator[Stage]:
    """The points in order, in runs that need at most *most* lanes."""
    run: list[Point] = []
    used: set[int] = set()
    for point in stage.points:
        need = _lanes(stage, point)
        if run and len(used | need) > most:
            yield pruned(stage, run)
            run, used = [], set()
        run.append(point)
        used |= need
    if run:
        yield pruned(stage, run)


def _lanes(stage: Stage, point: Point) -> set[int]:
    """The lanes that a point needs; where lanes share a process, the others of it too."""
    used = {place for place, _ in point.loads}
    if stage.sharing not in TOGETHER:
        return used
    groups = {stage.lanes[place].group for place in used}
    return {place for place, lane in enumerate(stage.lanes) if lane.group in groups}


def pruned(stage: Stage, points: Sequence[Point]) -> Stage:
    """The stage with these points only, and the lanes that they need."""
    kept = sorted(set().union(*(_lanes(stage, point) for point in points)))
    places = {old: new for new, old in enumerate(kept)}
    moved = tuple(
        replace(point, loads=tuple((places[place], load) for place, load in point.loads))
        for point in points
    )
    return replace(stage, lanes=tuple(stage.lanes[place] for place in kept), points=moved)
