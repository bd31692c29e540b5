"""The steps that a calibration of a GPU measures: alone, on shares of the SMs, beside each other.

Sizes of steps beside each other are spread evenly over logarithms, not put on a grid: what kernels
a library picks jumps with every size, and neighbours on a grid would all be struck or all be spared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, product

import numpy as np

from splitwiser.validate.calibration.points import Lane, Load, Point, Stage

SMALL = "facebook/opt-125m"

P, D = Lane("prefill"), Lane("decode")
TOKENS, BATCHES, CONTEXTS = (80, 6500), (1, 190), (256, 6000)  # of steps beside each other
MOST_KV = 350_000  # tokens of one decode step
WHOLE_PROMPTS = (64, 131, 259, 420, 523, 820, 1031, 1450, 2053, 4099, 8111)
SHARE_PROMPTS = (130, 270, 560, 1150, 2300, 4700)
SHARE_DECODES = (
    *((1, 1024), (8, 2000), (16, 1024), (40, 600)),
    *((64, 2048), (128, 2600), (176, 700), (160, 1900)),
)

CROWDS = ((1, 2), (2, 2), (2, 1))  # prefills and decodes of a crowd

Sizes = tuple[int, int, int]
"""Tokens of a prompt; sequences and mean context of a decode step."""


def prefill(llm: str, tokens: int, prompts: int = 1, cached: int = 0) -> Load:
    """A step that computes prompts."""
    return Load(llm, prompts=prompts, tokens=tokens, cached=cached)


def decode(llm: str, batch: int, context: int, *, eager: bool = False) -> Load:
    """A decode step."""
    return Load(llm, batch=batch, context=context, eager=eager)


def alone(place: int, loads: Sequence[Load]) -> Iterator[Point]:
    """Points of one lane with each of *loads*."""
    for load in loads:
        yield Point(((place, load),))


def spread(seed: int) -> Iterator[Sizes]:
    """Sizes that cover their ranges evenly, however many are taken; equal for equal seeds.

    Roberts' additive sequence: steps of the powers of the root of x^4 = x + 1, modulo 1
    ("The unreasonable effectiveness of quasirandom sequences", 2018).
    """
    root = 1.2207440846057596
    steps = np.array([root**-1, root**-2, root**-3])
    place = np.random.default_rng(seed).random(3)
    low, high = np.log([TOKENS, BATCHES, CONTEXTS]).T
    while True:
        place = (place + steps) % 1.0
        tokens, batch, context = np.exp(low + place * (high - low)).astype(int).tolist()
        yield tokens, batch, min(context, MOST_KV // batch)


def pairs(llm: str, lanes: tuple[int, int], sizes: Iterator[Sizes], count: int) -> Iterator[Point]:
    """Points of two lanes, a prefill and a decode: the next *count* of *sizes*."""
    first, second = lanes
    for tokens, batch, context in islice(sizes, count):
        yield Point(((first, prefill(llm, tokens)), (second, decode(llm, batch, context))))


def alike(
    llm: str,
    prefills: tuple[int, int],
    decodes: tuple[int, int],
    sizes: Iterator[Sizes],
    count: int,
) -> Iterator[Point]:
    """Points of two lanes of one phase: two prefills and two decodes by turns."""
    for number in range(count):
        (one, batch, context), (two, more, longer) = islice(sizes, 2)
        if number % 2:
            loads = (decode(llm, batch, context), decode(llm, more, longer))
        else:
            loads = (prefill(llm, one), prefill(llm, two))
        yield Point(tuple(zip(decodes if number % 2 else prefills, loads, strict=True)))


def crowds(
    llm: str, lanes: tuple[Sequence[int], Sequence[int]], sizes: Iterator[Sizes], count: int
) -> Iterator[Point]:
    """Points of three and four lanes by turns: `CROWDS` of two prefills and two decodes.

    In every fourth the decodes are of a small model and wait for their host.
    """
    prefills, decodes = lanes
    for number in range(count):
        more, most = CROWDS[number % len(CROWDS)]
        places = (*prefills[:more], *decodes[:most])
        loads: list[tuple[int, Load]] = []
        for place, (tokens, batch, context) in zip(places, sizes, strict=False):
            load = decode(llm, batch, context)
            if place in prefills:
                load = prefill(llm, tokens)
            elif number % 4 == 3:
                load = decode(SMALL, 1 + batch % 48, 300 + context % 1200, eager=True)
            loads.append((place, load))
        yield Point(tuple(loads))


def gpu_stages(large: str) -> Iterator[Stage]:
    """The stages of a GPU, with *large* as the model whose phases share it."""
    yield _turns(large)
    yield _mps(large)
    yield _streams(large)
    yield _green(large)


def _turns(large: str) -> Stage:
    """Processes without MPS: phases alone on the whole device, and beside each other in turns."""
    lanes = (P, D, D, D, P)
    sizes = spread(1)
    points = [
        *alone(0, [prefill(large, n) for n in WHOLE_PROMPTS]),
        *alone(0, [prefill(large, 250, 4), prefill(large, 1010, 4), prefill(large, 510, 8)]),
        *alone(0, [prefill(large, 530, cached=n) for n in (512, 2048, 8192)]),
        *alone(0, [prefill(SMALL, n) for n in (64, 256, 1024, 2000)]),
        *alone(0, [prefill(SMALL, 512, 20)]),
        *alone(0, [Load(large, 1, 448, 0, 64, 1024), Load(large, 1, 1984, 0, 64, 2048)]),
        *alone(1, [decode(large, b, c) for b, c in product((1, 16, 64, 128), (256, 1024, 4096))]),
        *alone(1, [decode(large, 256, c) for c in (256, 1024, 2048)]),
        *alone(1, [decode(SMALL, b, c) for b, c in product((1, 64, 256), (256, 1500))]),
        *alone(1, [decode(large, b, 1024, eager=True) for b in (1, 64)]),
        *alone(1, [decode(SMALL, b, 512, eager=True) for b in (1, 20)]),
        *pairs(large, (0, 1), sizes, 24),
        *_equals(large, (0, 4), (1, 2, 3)),
        *crowds(large, ((0, 4), (1, 2)), sizes, 4),
    ]
    return Stage("time_slice", lanes, tuple(points))


def _equals(large: str, prefills: Sequence[int], decodes: Sequence[int]) -> Iterator[Point]:
    """Equals beside each other, and work that waits for its host."""
    p, q = prefills[:2]
    d, e, f = decodes[:3]
    batch, small = decode(large, 32, 1024), decode(SMALL, 20, 512, eager=True)
    yield Point(((d, batch), (e, batch)))
    yield Point(((d, decode(large, 4, 900)), (e, decode(large, 100, 1800))))
    yield Point(((p, prefill(large, 1000)), (q, prefill(large, 1000))))
    yield Point(((p, prefill(large, 300)), (q, prefill(large, 3000))))
    yield Point(((d, small), (e, small)))
    yield Point(((d, small), (e, small), (f, small)))
    yield Point(((d, small), (p, prefill(SMALL, 512, 20))))
    yield Point(((d, small), (p, prefill(large, 1000))))
    yield Point(((d, batch), (p, prefill(SMALL, 512, 20))))


# Limits that a plan proposes (sim/candidates.py) are among them: kernels jump from one to the next.
PREFILL_SHARES = (None, 90.0, 75.0, 60.0, 50.0, 37.0, 24.0)
DECODE_SHARES = (None, 90.0, 70.0, 50.0, 40.0, 25.0, 10.0)


def _mps(large: str) -> Stage:
    """Clients of MPS: every limit alone, then beside each other, limits that overlap among them.

    Decode has the higher priority, as its workers have, but for two lanes: it has none where
    workers compute both phases.
    """
    lanes = (
        *(Lane("prefill", share) for share in PREFILL_SHARES),
        *(Lane("decode", share) for share in DECODE_SHARES),
        *(P, D, D, Lane("decode", equal=True), Lane("decode", DECODE_SHARES[4], equal=True)),
    )
    first = range(len(PREFILL_SHARES))
    second = range(len(first), len(first) + len(DECODE_SHARES))
    p, d = first[0], second[0]  # without limits, as the three behind all are
    *others, equal, limited_equal = range(second[-1] + 1, len(lanes))
    free, limited, crowded, twofold = spread(2), spread(3), spread(4), spread(7)
    level = spread(8)
    points: list[Point] = []
    for place in first:
        points += alone(place, [prefill(large, n) for n in SHARE_PROMPTS[place % 2 :: 2]])
    for place in second:
        points += alone(place, [decode(large, b, c) for b, c in SHARE_DECODES[place % 2 :: 2]])
    points += pairs(large, (p, d), free, 80)
    points += pairs(large, (p, equal), level, 28)
    points += pairs(large, (first[2], limited_equal), level, 6)  # 75 and 40 %
    for both in product(first, second):
        if both != (p, d):
            points += pairs(large, both, limited, 3)
    points += _equals(large, (p, others[0]), (d, *others[1:]))
    points += alike(large, (p, others[0]), (d, others[1]), twofold, 12)
    for one, two in ((2, 4), (3, 5), (4, 5)):  # 75 and 50, 60 and 37, 50 and 37 % for prefills
        points += alike(large, (first[one], first[two]), (second[one], second[two]), twofold, 4)
    points += crowds(large, ((p, others[0]), (d, others[1])), crowded, 15)
    points += crowds(large, (first[2:4], second[2:4]), crowded, 9)  # 75, 60 and 70, 50 %
    points += crowds(large, (first[4::2], second[4:6]), crowded, 9)  # 50, 24 and 40, 25 %
    points += _limited_equals(large, second[2], second[3], second[5], first[2])
    return Stage("mps", lanes, tuple(points))


def _limited_equals(large: str, d: int, e: int, f: int, p: int) -> Iterator[Point]:
    """Decodes on three limits (*d*, *e*, *f*), and work that waits for its host."""
    batch, small = decode(large, 32, 1024), decode(SMALL, 20, 512, eager=True)
    yield Point(((d, batch), (e, batch), (f, batch)))
    yield Point(((e, small), (f, small)))
    yield Point(((f, small), (p, prefill(large, 1000))))


def _streams(large: str) -> Stage:
    points = [
        *alone(0, [prefill(large, n) for n in SHARE_PROMPTS[1::2]]),
        *alone(1, [decode(large, b, c) for b, c in SHARE_DECODES[::3]]),
        *pairs(large, (0, 1), spread(5), 54),
    ]
    return Stage("streams", (P, D), tuple(points))


# Per cent of the SMs for decode (prefill has the rest), and pairs: few where prefills take longest.
GREEN = {12.0: 19, 25.0: 19, 44.0: 19, 54.0: 19, 70.0: 9}


def _green(large: str) -> Stage:
    lanes: list[Lane] = []
    points: list[Point] = []
    sizes = spread(6)
    for group, (share, count) in enumerate(GREEN.items()):
        first, second = len(lanes), len(lanes) + 1
        lanes += [Lane("prefill", 100.0 - share, group), Lane("decode", share, group)]
        points += alone(first, [prefill(large, n) for n in SHARE_PROMPTS[group % 2 :: 2]])
        points += alone(second, [decode(large, b, c) for b, c in SHARE_DECODES[group % 2 :: 2]])
        points += pairs(large, (first, second), sizes, count)
    return Stage("green_contexts", tuple(lanes), tuple(points))
