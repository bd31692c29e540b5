"""The plans: which kernels and which steps a calibration measures, and how they identify a profile.

What identifies which parameter is in docs/calibration.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from splitwiser.validate.calibration.points import Kernel, Lane, Load, Plan, Point, Stage
from splitwiser.validate.calibration.room import fitting, pruned

LARGE, SMALL = "meta-llama/Llama-3.1-8B", "facebook/opt-125m"
LARGE_BY_MEMORY = (
    (60e9, LARGE),
    (30e9, "meta-llama/Llama-3.2-3B"),
    (0.0, "meta-llama/Llama-3.2-1B"),
)
TINY = ("tiny-llama", "tiny-opt")

# GEMMs (n, k): the layers of the two models whose steps are measured, and shapes between and beyond
# them (Qwen2.5-1.5B, Qwen3-4B, Llama-2-13B, Llama-3.1-70B).
GEMMS = (
    *((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)),
    *((2304, 768), (768, 768), (3072, 768), (768, 3072), (50272, 768)),
    *((2048, 1536), (1536, 1536), (17920, 1536), (1536, 8960)),
    *((6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728)),
    *((15360, 5120), (5120, 5120), (27648, 5120), (5120, 13824)),
    *((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)),
)
ROWS = (
    *(1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512),
    *(640, 768, 1024, 1280, 1536, 2048, 3072, 4096, 8192),
)
HEADS = ((32, 8, 128), (12, 12, 64), (12, 2, 128), (40, 40, 128))
NEW = (64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192)
BATCHES, CONTEXTS = (1, 4, 16, 64, 128, 256), (128, 512, 1024, 2048, 4096, 8192)
MOST_KV = 600_000  # tokens of one decode attention
WIDTHS = {"norm": (768, 4096), "rotate": (2304, 6144), "gated": (1536, 14336), "argmax": (128256,)}


def gpu_plan(memory: float) -> Plan:
    """The plan of a GPU with *memory* bytes: about six minutes on an H200.

    Smaller GPUs run a smaller model in fewer processes at a time, and leave out what does not fit.
    """
    large = next(name for least, name in LARGE_BY_MEMORY if memory >= least)
    stages = tuple(part for stage in _gpu_stages(large) for part in fitting(stage, memory))
    return Plan("gpu", "bfloat16", tuple(_kernels()), stages)


def _kernels() -> Iterator[Kernel]:
    for (n, k), m in product(GEMMS, ROWS):
        if m * n <= 2**29:
            yield Kernel("gemm", {"m": m, "n": n, "k": k})
    for heads, new in product(HEADS, NEW):
        yield _prompt(heads, new, 0)
    for new, cached in product((256, 1024, 2048), (512, 2048, 8192)):
        yield _prompt(HEADS[0], new, cached)
    for heads, batch, context in product(HEADS, BATCHES, CONTEXTS):
        if batch * context <= MOST_KV // (4 if heads[1] == 40 else 1):
            sizes = dict(zip(("heads", "kv_heads", "head_dim"), heads, strict=True))
            yield Kernel("decode_attention", {"batch": batch, "context": context, **sizes})
    for name, widths in WIDTHS.items():
        for width, tokens in product(widths, (1, 16, 128, 1024, 4096)):
            if name != "argmax" or tokens <= 256:
                yield Kernel("elementwise", {"name": name, "tokens": tokens, "width": width})


def _prompt(heads: tuple[int, int, int], new: int, cached: int) -> Kernel:
    sizes = dict(zip(("heads", "kv_heads", "head_dim"), heads, strict=True))
    return Kernel("prompt_attention", {"batch": 1, "new": new, "cached": cached, **sizes})


def prefill(llm: str, tokens: int, prompts: int = 1, cached: int = 0) -> Load:
    """A step that computes prompts."""
    return Load(llm, prompts=prompts, tokens=tokens, cached=cached)


def decode(llm: str, batch: int, context: int, *, eager: bool = False) -> Load:
    """A decode step."""
    return Load(llm, batch=batch, context=context, eager=eager)


def _gpu_stages(large: str) -> Iterator[Stage]:
    yield _turns(large)
    yield _mps(large)
    yield _streams(large)
    yield _green(large)


P, D = Lane("prefill"), Lane("decode")
# Not multiples of a GEMM's tile, as requests are: at those a decode step beside waits half as long
# again (measured on an H200, at 512, 2,048 and 8,192 tokens).
PAIR_PROMPTS = (120, 450, 1900, 5000)
PAIR_DECODES = ((1, 1024), (16, 1024), (64, 2048), (128, 4096))


def alone(place: int, loads: Sequence[Load]) -> Iterator[Point]:
    """Points of one lane with each of *loads*."""
    for load in loads:
        yield Point(((place, load),))


def pairs(
    large: str, lanes: tuple[int, int], prompts: Sequence[int], decodes: Sequence[tuple[int, int]]
) -> Iterator[Point]:
    """Points of two lanes: every prompt length beside every decode batch."""
    first, second = lanes
    for tokens, (batch, context) in product(prompts, decodes):
        yield Point(((first, prefill(large, tokens)), (second, decode(large, batch, context))))


def _turns(large: str) -> Stage:
    """Processes without MPS: phases alone on the whole device, and beside each other in turns."""
    lanes = (P, D, D, D, P)
    points = [
        *alone(0, [prefill(large, n) for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192)]),
        *alone(0, [prefill(large, 256, 4), prefill(large, 1024, 4), prefill(large, 512, 8)]),
        *alone(0, [prefill(large, 512, cached=n) for n in (512, 2048, 8192)]),
        *alone(0, [prefill(SMALL, n) for n in (64, 256, 1024, 2000)]),
        *alone(0, [prefill(SMALL, 512, 20)]),
        *alone(0, [Load(large, 1, 448, 0, 64, 1024), Load(large, 1, 1984, 0, 64, 2048)]),
        *alone(
            1, [decode(large, b, c) for b, c in product((1, 4, 16, 64, 128), (256, 1024, 4096))]
        ),
        *alone(1, [decode(large, 256, c) for c in (256, 1024, 2048)]),
        *alone(1, [decode(SMALL, b, c) for b, c in product((1, 16, 64, 256), (256, 1500))]),
        *alone(1, [decode(large, b, 1024, eager=True) for b in (1, 64)]),
        *alone(1, [decode(SMALL, b, 512, eager=True) for b in (1, 20)]),
        *pairs(large, (0, 1), PAIR_PROMPTS, PAIR_DECODES),
        *_crowds(large, (0, 4), (1, 2, 3)),
    ]
    return Stage("time_slice", lanes, tuple(points))


def _crowds(large: str, prefills: Sequence[int], decodes: Sequence[int]) -> Iterator[Point]:
    """Equals beside each other, three and four processes, and work that waits for its host."""
    p, q = prefills[:2]
    d, e, f = decodes[:3]
    batch, small = decode(large, 32, 1024), decode(SMALL, 20, 512, eager=True)
    yield Point(((d, batch), (e, batch)))
    yield Point(((p, prefill(large, 1024)), (q, prefill(large, 1024))))
    yield Point(((d, batch), (e, batch), (p, prefill(large, 512))))
    yield Point(((d, batch), (e, batch), (p, prefill(large, 2048)), (q, prefill(large, 256))))
    yield Point(((d, small), (e, small)))
    yield Point(((d, small), (e, small), (f, small)))
    yield Point(((d, small), (p, prefill(SMALL, 512, 20))))
    yield Point(((d, small), (p, prefill(large, 1024))))
    yield Point(((d, batch), (p, prefill(SMALL, 512, 20))))


PREFILL_SHARES = (None, 90.0, 75.0, 50.0, 25.0)
DECODE_SHARES = (None, 75.0, 50.0, 25.0, 12.0)
SPLITS = (
    (75, 25),
    (50, 50),
    (25, 75),
    (90, 12),
    (75, 50),
    (50, 75),
    (75, 75),
    (None, 25),
    (None, 50),
)


def _mps(large: str) -> Stage:
    """Clients of MPS: every limit alone, then beside each other, limits that overlap among them."""
    lanes = (
        *(Lane("prefill", share) for share in PREFILL_SHARES),
        *(Lane("decode", share) for share in DECODE_SHARES),
        *(P, D, D),
    )
    first = {share: place for place, share in enumerate(PREFILL_SHARES)}
    second = {share: place for place, share in enumerate(DECODE_SHARES, len(PREFILL_SHARES))}
    points: list[Point] = []
    for place in first.values():
        points += alone(place, [prefill(large, n) for n in PAIR_PROMPTS])
    for place in second.values():
        points += alone(place, [decode(large, b, c) for b, c in PAIR_DECODES])
    points += pairs(large, (first[None], second[None]), PAIR_PROMPTS, PAIR_DECODES)
    for p, d in SPLITS:
        points += pairs(large, (first[p], second[d]), PAIR_PROMPTS[:3], ((16, 1024), (64, 2048)))
        points += pairs(large, (first[p], second[d]), (3500,), ((128, 4096),))
    points += _crowds(large, (first[None], 10), (second[None], 11, 12))
    points += _limited_crowds(large, first, second)
    return Stage("mps", lanes, tuple(points))


def _limited_crowds(
    large: str, first: Mapping[float | None, int], second: Mapping[float | None, int]
) -> Iterator[Point]:
    """Two to four limited processes, equals and work that waits for its host among them."""
    batch, small = decode(large, 32, 1024), decode(SMALL, 20, 512, eager=True)
    a, b, c = second[75.0], second[50.0], second[25.0]
    yield Point(((b, batch), (c, batch), (first[25.0], prefill(large, 1024))))
    yield Point(((a, batch), (b, batch), (c, batch)))
    mixed = ((first[75.0], prefill(large, 1024)), (first[50.0], prefill(large, 512)))
    yield Point(((a, batch), (b, batch), *mixed))
    yield Point(((b, small), (c, small)))
    yield Point(((c, small), (first[75.0], prefill(large, 1024))))


def _streams(large: str) -> Stage:
    lanes = (P, D)
    points = [
        *alone(0, [prefill(large, n) for n in PAIR_PROMPTS[1:3]]),
        *alone(1, [decode(large, b, c) for b, c in ((16, 1024), (128, 4096))]),
        *pairs(large, (0, 1), PAIR_PROMPTS, PAIR_DECODES),
    ]
    return Stage("streams", lanes, tuple(points))


GREEN = (12.0, 25.0, 50.0, 75.0)  # per cent of the SMs for decode; prefill has the rest


def _green(large: str) -> Stage:
    lanes: list[Lane] = []
    points: list[Point] = []
    for group, share in enumerate(GREEN):
        first, second = len(lanes), len(lanes) + 1
        lanes += [Lane("prefill", 100.0 - share, group), Lane("decode", share, group)]
        points += alone(first, [prefill(large, n) for n in PAIR_PROMPTS[:3]])
        points += alone(second, [decode(large, b, c) for b, c in ((16, 1024), (64, 2048))])
        points += pairs(large, (first, second), PAIR_PROMPTS[:3], ((16, 1024), (64, 2048)))
    return Stage("green_contexts", tuple(lanes), tuple(points))


def quick(plan: Plan) -> Plan:
    """About a third of a plan's measurements: every third kernel, where there are hundreds, and
    every third point of a stage.
    """
    stages = tuple(pruned(stage, stage.points[::3]) for stage in plan.stages)
    kernels = plan.kernels[::3] if len(plan.kernels) > HUNDREDS else plan.kernels
    return replace(plan, name=f"{plan.name}-quick", kernels=kernels, stages=stages)


HUNDREDS = 200


# On the CPU -------------------------------------------------------------------------------------


def cpu_plan() -> Plan:
    """The plan of a CPU: small sizes, about two minutes; it exercises the code that a GPU runs."""
    llama, opt = TINY
    shapes = ((128, 64), (384, 64), (64, 192), (1024, 512), (512, 1024))
    kernels = [Kernel("gemm", {"m": m, "n": n, "k": k}) for (n, k) in shapes for m in (1, 16, 256)]
    heads = {"heads": 4, "kv_heads": 2, "head_dim": 16}
    kernels += [
        Kernel("prompt_attention", {"batch": 1, "new": n, "cached": 0, **heads})
        for n in (64, 256, 512)
    ]
    kernels += [
        Kernel("decode_attention", {"batch": b, "context": c, **heads})
        for b, c in product((1, 8), (64, 256, 1024))
    ]
    kernels += [
        Kernel("elementwise", {"name": name, "tokens": n, "width": 192})
        for name, n in product(("norm", "gated"), (16, 1024))
    ]
    phases = [prefill(llama, n) for n in (32, 128, 512, 2048)] + [prefill(opt, 256)]
    steps = [decode(llama, b, c) for b, c in product((1, 8, 32), (64, 512))] + [decode(opt, 8, 256)]
    both = [
        Point(((0, prefill(llama, n)), (1, decode(llama, b, 256))))
        for n, b in product((128, 512, 2048), (1, 16))
    ]
    points = (*alone(0, phases), *alone(1, steps), *both)
    return Plan(
        "cpu",
        "float32",
        tuple(kernels),
        (Stage("mps", (P, D), points), Stage("streams", (P, D), tuple(both))),
    )
