"""The plans: which kernels and which steps a calibration measures, and how they identify a profile.

What identifies which parameter is in docs/calibration.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product

from splitwiser.validate.calibration.points import Kernel, Plan, Point, Stage
from splitwiser.validate.calibration.room import fitting, pruned
from splitwiser.validate.calibration.step_plans import D, P, alone, decode, gpu_stages, prefill

LARGE = "meta-llama/Llama-3.1-8B"
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
)
WIDE_GEMMS = ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672))  # of every third of ROWS
# Above 256 rows none is a multiple of a tile: for those libraries pick other kernels, and
# prompts seldom are.
ROWS = (
    *(1, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256),
    *(275, 306, 341, 379, 421, 469, 521, 579, 643, 715, 795, 883, 981, 1091, 1213, 1347, 1497),
    *(1663, 1847, 2053, 2281, 2817, 3479, 4295, 5303, 6547, 8087),
)
# More rows for the layers of the model whose steps share the device: between two sizes of ROWS the
# library picks yet other kernels, and up to some 1,100 rows every few per cent of them.
BETWEEN = (
    *(176, 208, 240),
    *sorted({int(257 * 1.02**step) | 1 for step in range(75)} - set(ROWS)),
    *(1151, 1279, 1421, 1579, 1753, 1949, 2165, 2541, 3137, 3877, 4781, 5903, 7283),
)
HEADS = ((32, 8, 128), (12, 12, 64), (12, 2, 128), (40, 40, 128))
NEW = (64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192)
BATCHES, CONTEXTS = (1, 4, 16, 64, 128, 256), (128, 512, 2048, 8192)
MOST_KV = 600_000  # tokens of one decode attention
WIDTHS = {"norm": (768, 4096), "rotate": (2304, 6144), "gated": (1536, 14336), "argmax": (128256,)}


def gpu_plan(memory: float) -> Plan:
    """The plan of a GPU with *memory* bytes: about ten minutes on an H200.

    Smaller GPUs run a smaller model in fewer processes at a time, and leave out what does not fit.
    """
    large = next(name for least, name in LARGE_BY_MEMORY if memory >= least)
    stages = tuple(part for stage in gpu_stages(large) for part in fitting(stage, memory))
    return Plan("gpu", "bfloat16", tuple(_kernels()), stages)


def _kernels() -> Iterator[Kernel]:
    gemms = product(GEMMS, ROWS), product(GEMMS[:4], BETWEEN), product(WIDE_GEMMS, ROWS[::3])
    for (n, k), m in chain(*gemms):
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
