"""Measure what no calibration sees: other models, other sizes, other splits, drawn at random.

    python benchmarks/heldout.py --device cuda:0 --out benchmarks/h200/heldout.jsonl [--seed 0]

Phases alone of three models that the calibration never measured, and of Llama-3.1-8B between its
sizes; random pairs, triples and quadruples under every regime, at prompt lengths and on shares of
the SMs that are drawn too, and that the calibration does not have; and some of the pairs three
times, for the noise of a repetition.
Interrupted, the same command goes on. `accuracy.py` judges the H200 profile by the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from measured import progress

from splitwiser.validate.calibration.measure import measure
from splitwiser.validate.calibration.plans import LARGE, gpu_plan
from splitwiser.validate.calibration.points import Lane, Load, Plan, Point, Stage
from splitwiser.validate.calibration.room import fitting
from splitwiser.validate.calibration.step_plans import (
    DECODE_SHARES,
    GREEN,
    PREFILL_SHARES,
    alike,
    alone,
    crowds,
    decode,
    prefill,
)
from splitwiser.validate.runtime.device import device_named, provenance

UNSEEN = ("facebook/opt-1.3b", "meta-llama/Llama-3.2-3B", "Qwen/Qwen2.5-7B")
MOST_KV = {"facebook/opt-1.3b": 110_000}  # tokens, where a token takes much
APART, GREEN_APART = 2, 4  # per cent from every share of the calibration: of 132 SMs, others
LIMITS, GROUPS = 6, 5  # how many are drawn for each phase, and of green contexts
REPEATED, REPEATS = 3, 3


def plan(seed: int, memory: float) -> Plan:
    """The whole plan; equal for equal seeds."""
    generator = np.random.default_rng(seed)
    stages = [_turns(generator), _mps(generator), _together(generator, "green_contexts")]
    stages += [*_unseen(), _together(generator, "streams"), _other_model(generator)]
    return Plan(
        "heldout", "bfloat16", (), tuple(part for s in stages for part in fitting(s, memory))
    )


def _unseen() -> Iterator[Stage]:
    """Each model alone on the device."""
    for llm in UNSEEN:
        longest = 2000 if "opt" in llm else 6000
        most = MOST_KV.get(llm, 300_000)
        steps = [(1, 512), (8, 1900), (24, 700), (48, 1500), (96, 900), (160, 600), (224, 1300)]
        points = [
            *alone(0, [prefill(llm, n) for n in (96, 300, 700, 1500, 3000, 6000) if n <= longest]),
            *alone(1, [decode(llm, b, c) for b, c in steps if b * c <= most]),
            *alone(1, [decode(llm, 12, 700, eager=True)]),
        ]
        yield Stage("time_slice", (Lane("prefill"), Lane("decode")), tuple(points))


def _sizes(generator: np.random.Generator) -> tuple[int, int, int]:
    """A prompt length that the calibration does not have, a batch and a context."""
    while True:
        tokens = int(np.exp(generator.uniform(np.log(96), np.log(6000))))
        batch = int(np.exp(generator.uniform(np.log(1), np.log(160))))
        context = int(np.exp(generator.uniform(np.log(300), np.log(5000))))
        if tokens not in _calibrated() and batch * context <= 350_000:
            return tokens, batch, context


@cache
def _calibrated() -> frozenset[int]:
    """The prompt lengths of the calibration of a large GPU."""
    plan = gpu_plan(1e12)
    points = (point for stage in plan.stages for point in stage.points)
    return frozenset(load.tokens for point in points for _, load in point.loads)


def _pair(generator: np.random.Generator, first: int, second: int, llm: str = LARGE) -> Point:
    tokens, batch, context = _sizes(generator)
    return Point(((first, prefill(llm, tokens)), (second, decode(llm, batch, context))))


def _repeated(points: Sequence[Point]) -> Iterator[Point]:
    """The first few once more, and again."""
    for repeat in range(1, REPEATS):
        for point in points[:REPEATED]:
            yield replace(point, repeat=repeat)


def _turns(generator: np.random.Generator) -> Stage:
    lanes = (Lane("prefill"), Lane("decode"), Lane("decode"), Lane("prefill"))
    between = [(2, 600), (8, 3000), (24, 1500), (48, 700), (96, 1200), (200, 800), (100, 3000)]
    some = [_pair(generator, 0, 1) for _ in range(38)]
    points = [
        *alone(0, [prefill(LARGE, n) for n in (96, 200, 384, 700, 1000, 1500, 3000, 6000)]),
        *alone(0, [Load(LARGE, 1, 300, 0, 40, 900), prefill(LARGE, 400, 3)]),
        *alone(1, [decode(LARGE, b, c) for b, c in between]),
        *some,
        *_alike(generator, (0, 3), (1, 2), 4),
        *_crowds(generator, (0, 3), (1, 2), 6),
        *_repeated(some),
    ]
    return Stage("time_slice", lanes, tuple(points))


def _alike(
    generator: np.random.Generator, prefills: tuple[int, int], decodes: tuple[int, int], count: int
) -> Iterator[Point]:
    """Two prefills and two decodes in turn."""
    sizes = iter(partial(_sizes, generator), None)
    return alike(LARGE, prefills, decodes, sizes, count)


def _limits(
    generator: np.random.Generator, known: Iterable[float | None], apart: float, count: int
) -> list[float]:
    """Shares of the SMs in per cent among those *known*, none close to one: one drawn at random
    from each of *count* equal parts.
    """
    taken = [share for share in known if share is not None]
    between = range(round(min(taken)), round(max(taken)))
    free = [share for share in between if min(abs(share - other) for other in taken) >= apart]
    return [float(generator.choice(part)) for part in np.array_split(free, count)]


def _crowds(
    generator: np.random.Generator, prefills: Sequence[int], decodes: Sequence[int], count: int
) -> Iterator[Point]:
    """Triples and quadruples in turn; now and then one that waits for its host."""
    sizes = iter(partial(_sizes, generator), None)
    return crowds(LARGE, (prefills, decodes), sizes, count)


def _mps(generator: np.random.Generator) -> Stage:
    prefills = _limits(generator, PREFILL_SHARES, APART, LIMITS)
    decodes = _limits(generator, DECODE_SHARES, APART, LIMITS)
    lanes = (
        *(Lane("prefill", share) for share in (None, *prefills)),
        *(Lane("decode", share) for share in (None, *decodes)),
        Lane("prefill"),
        Lane("decode"),
        Lane("decode", equal=True),
    )
    first, second = range(LIMITS + 1), range(LIMITS + 1, 2 * LIMITS + 2)
    *others, equal = range(second[-1] + 1, len(lanes))
    p, d = (first[0], others[0]), (second[0], others[1])  # without limits
    free = [_pair(generator, p[0], d[0]) for _ in range(44)]
    level = [_pair(generator, p[0], equal) for _ in range(24)]
    limited = [
        _pair(generator, int(generator.choice(first)), int(generator.choice(second)))
        for _ in range(76)
    ]
    limited = [point for point in limited if {place for place, _ in point.loads} != {p[0], d[0]}]
    points = [*free, *level, *limited, *_alike(generator, p, d, 8), *_crowds(generator, p, d, 6)]
    for _ in range(4):
        some = _two(generator, first[1:]), _two(generator, second[1:])
        points += [*_alike(generator, *some, 2), *_crowds(generator, *some, 2)]
    points += [*_repeated(free), *_repeated(limited)]
    return Stage("mps", lanes, tuple(points))


def _two(generator: np.random.Generator, places: range) -> tuple[int, int]:
    """Two of some lanes."""
    one, two = generator.choice(places, 2, replace=False)
    return int(one), int(two)


def _together(generator: np.random.Generator, sharing: str) -> Stage:
    """Threads of one process."""
    if sharing == "streams":
        some = [_pair(generator, 0, 1) for _ in range(40)]
        lanes: tuple[Lane, ...] = (Lane("prefill"), Lane("decode"))
        return Stage(sharing, lanes, (*some, *_repeated(some)))
    shares = _limits(generator, GREEN, GREEN_APART, GROUPS)
    lanes = tuple(
        lane
        for group, share in enumerate(shares)
        for lane in (Lane("prefill", 100 - share, group), Lane("decode", share, group))
    )
    groups = generator.integers(0, GROUPS, 40)
    some = [_pair(generator, 2 * int(group), 2 * int(group) + 1) for group in groups]
    return Stage(sharing, lanes, (*some, *_repeated(some)))


def _other_model(generator: np.random.Generator) -> Stage:
    """Pairs of a model that was never measured beside anything."""
    lanes = (Lane("prefill"), Lane("decode"), Lane("prefill", 70.0), Lane("decode", 30.0))
    llm = UNSEEN[1]
    some = [_pair(generator, 2 * (i % 2), 2 * (i % 2) + 1, llm) for i in range(10)]
    return Stage("mps", lanes, tuple(some))


def main() -> int:
    """Measure, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, required=True, help="the file of raw measurements")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    device = device_named(options.device)
    memory = float(provenance(device).get("memory_bytes") or 0.0)
    seconds = measure(plan(options.seed, memory), device, options.out, progress=progress)
    print(f"measured in {seconds:.0f} s: {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
