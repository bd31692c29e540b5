"""How far the runtime is from what its device can do.

    python benchmarks/limits.py --show benchmarks/h200_limits.json    # what was measured
    python benchmarks/limits.py [--device cuda:0|cpu] [--model NAME] [--quick] [--json] [--out FILE]

The ceilings are measured first: a large matrix product in the model's dtype, and a large copy
(bytes read and written). Then, with the runtime's own kernels and graphs: a prefill of one prompt
against the first (FLOP counted by `splitwiser.models.work`), a decode step against the second
(weights and keys and values, read once). Last, traffic through a split, for what a hand-over from
prefill to decode takes, and what the router takes for a token.

A row is the median of its repeats, with the least and the most beside it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

OWED = {"prefill": 0.75, "decode": 0.75, "hand-over p99": 1e-3, "router": 0.02}


@dataclass(frozen=True)
class Sizes:
    """What is measured: the issue's sizes on a GPU, small ones for a trial."""

    model: str
    prompt: int
    batch: int
    context: int
    square: int
    copy: int
    repeats: int
    requests: int
    rate: float


FULL = Sizes("meta-llama/Llama-3.1-8B", 2048, 64, 2048, 8192, 2**32, 20, 240, 8.0)
SMALL = Sizes("tiny-llama", 256, 8, 256, 512, 2**24, 5, 20, 10.0)


@dataclass(frozen=True)
class Row:
    """One quantity: its value beside its limit, and what is owed of it."""

    name: str
    median: float
    least: float
    most: float
    unit: str
    share: float | None
    owed: str
    met: bool | None


def main() -> int:
    """Measure, print the table, and say by the exit status whether all that is owed is met."""
    options = _options()
    if options.show:
        found = json.loads(options.show.read_text())
        _print(found, [Row(**row) for row in found["rows"]])
        return 0
    sizes = SMALL if options.device == "cpu" or options.quick else FULL
    model = options.model or sizes.model
    # In a process of its own: the memory that it takes must be free again for the traffic.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        rows, ceilings = alone.submit(_alone, options.device, model, sizes).result()
    if not options.alone:
        rows += _together(options.device, model, sizes)
    found = {
        "conditions": {"model": model, **_conditions(options.device)},
        "ceilings": ceilings,
        "rows": [asdict(row) for row in rows],
    }
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found, rows)
    return int(any(row.met is False for row in rows))


# Alone on the device ----------------------------------------------------------------------------


def _alone(device_name: str, model: str, sizes: Sizes) -> tuple[list[Row], dict[str, float]]:
    import torch

    from splitwiser.models.catalogue import llm as llm_named
    from splitwiser.validate.runtime.kernels import kernels_for
    from splitwiser.validate.runtime.numerics import numerics_of
    from splitwiser.validate.runtime.owner import pool_shape
    from splitwiser.validate.runtime.runner import Runner
    from splitwiser.validate.runtime.transformer import Transformer
    from splitwiser.validate.runtime.weights import fill_random, layout

    device = torch.device(device_name)
    llm = llm_named(model)
    dtype = getattr(torch, llm.dtype)
    with torch.inference_mode():
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.cuda.set_stream(torch.cuda.Stream())
        rate, copy = _ceilings(torch, device, dtype, sizes)
        flat = torch.empty(layout(llm).nbytes, dtype=torch.uint8, device=device)
        fill_random(flat, llm, seed=0)
        size = 16
        each = (max(sizes.context, sizes.prompt) + 64) // size
        kv = torch.empty(pool_shape(llm, sizes.batch * each, size), dtype=dtype, device=device)
        for layer in kv:
            layer.normal_()
        runner = Runner(
            Transformer(llm, numerics_of(llm, None), layout(llm).views(flat), kernels_for(device)),
            kv,
            block_size=size,
            max_seqs=sizes.batch,
            max_blocks=each,
            eager=False,
        )
        runner.warm_up(sizes.prompt, llm.max_context)
        blocks = np.random.default_rng(0).permutation(sizes.batch * each).astype(np.int32)
        tables = blocks.reshape(sizes.batch, each)
        rows = [
            _prefill(torch, runner, llm, tables[0], sizes, rate),
            _decode(torch, runner, llm, tables, sizes, copy),
        ]
    return rows, {"gemm_flops": rate, "copy_bytes_per_s": copy}


def _ceilings(torch: Any, device: Any, dtype: Any, sizes: Sizes) -> tuple[float, float]:
    """FLOP/s of a large matrix product of random numbers, bytes/s of a large copy."""
    a, b = (torch.randn(sizes.square, sizes.square, device=device, dtype=dtype) for _ in range(2))
    product = _times(torch, device, lambda: a @ b, sizes.repeats)
    source = torch.randint(0, 255, (sizes.copy,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = _times(torch, device, lambda: target.copy_(source), sizes.repeats)
    return 2 * sizes.square**3 / statistics.median(product), 2 * sizes.copy / statistics.median(
        copied
    )


def _prefill(torch: Any, runner: Any, llm: Any, blocks: Any, sizes: Sizes, rate: float) -> Row:
    from splitwiser.models.work import Batch, prompt_pairs, work
    from splitwiser.validate.runtime.runner import Chunk

    tokens = np.random.default_rng(1).integers(0, llm.vocab, sizes.prompt, dtype=np.int32)
    chunk = Chunk(tokens, 0, blocks, sizes.prompt - 1, None)
    times = _times(torch, runner.kv.device, lambda: runner.compute([chunk], []), sizes.repeats)
    pairs, read = prompt_pairs(sizes.prompt, 0)
    step = work(llm, Batch(sizes.prompt, 1, pairs, read))
    flops = sum(group.flops for group in step.values())
    share = flops / statistics.median(times) / rate
    return _row(
        f"prefill {sizes.prompt}",
        times,
        share,
        f">= {OWED['prefill']:.0%} of GEMM",
        share >= OWED["prefill"],
    )


def _decode(torch: Any, runner: Any, llm: Any, tables: Any, sizes: Sizes, copy: float) -> Row:
    slots = list(range(sizes.batch))
    for slot in slots:
        runner.add_blocks(slot, 0, tables[slot])

    def seat() -> None:
        for slot in slots:
            runner.seat(slot, slot, sizes.context - 1)

    seat()
    times = _times(torch, runner.kv.device, lambda: runner.decode(slots), sizes.repeats, seat)
    weights = llm.active_parameters * llm.dtype_bytes
    cached = sizes.batch * sizes.context * llm.kv_bytes_per_token
    share = (weights + cached) / statistics.median(times) / copy
    return _row(
        f"decode {sizes.batch} x {sizes.context}",
        times,
        share,
        f">= {OWED['decode']:.0%} of copy",
        share >= OWED["decode"],
    )


def _times(
    torch: Any,
    device: Any,
    act: Callable[[], Any],
    repeats: int,
    before: Callable[[], None] = lambda: None,
) -> list[float]:
    """Seconds of each repeat on the device, the first few left out; each begins on an idle queue."""
    seconds = []
    for _ in range(repeats + 3):
        before()
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            act()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        else:
            begun = perf_counter()
            act()
            seconds.append(perf_counter() - begun)
    return seconds[3:]


# In a deployment --------------------------------------------------------------------------------


def _together(device: str, model: str, sizes: Sizes) -> list[Row]:
    """Hand-over and router, from traffic through the preset split."""
    from splitwiser.models.catalogue import llm as llm_named
    from splitwiser.sim.deployment import split
    from splitwiser.traces.traffic import random_trace
    from splitwiser.validate import execute

    trace = random_trace(
        num_prompts=sizes.requests,
        request_rate=sizes.rate,
        random_input_len=sizes.prompt // 4,
        random_output_len=64,
        seed=0,
    )
    result = execute(trace, split(), llm_named(model), device, say=_say)
    overheads = result.meta["overheads"]
    waited = {name: value / 1e3 for name, value in overheads["handover_ms"].items()}
    handover = Row(
        "hand-over p99", waited["p99"], waited["p50"], waited["p100"], "s", None, "<= 1 ms",
        waited["p99"] <= OWED["hand-over p99"],
    )  # fmt: skip
    sending = sum(worker.get("send_seconds", 0.0) for worker in overheads["workers"])
    token = (overheads["router_s"] + sending) / overheads["router_tokens"]
    step = result.summary()["median_itl_ms"] / 1e3
    share = token / step
    router = Row(
        "router per token", token, token, token, "s", share,
        f"<= {OWED['router']:.0%} of a decode step", share <= OWED["router"],
    )  # fmt: skip
    return [handover, router]


def _say(line: str) -> None:
    print(line, file=sys.stderr)


# The table --------------------------------------------------------------------------------------


def _row(name: str, times: list[float], share: float, owed: str, met: bool) -> Row:
    return Row(name, statistics.median(times), min(times), max(times), "s", share, owed, met)


def _conditions(device: str) -> dict[str, Any]:
    from splitwiser.validate.runtime.device import device_named, provenance

    return provenance(device_named(device))


def _print(found: dict[str, Any], rows: list[Row]) -> None:
    conditions, ceilings = found["conditions"], found["ceilings"]
    print(
        f"{conditions['model']} on {conditions['name']}; driver {conditions.get('driver')}, "
        f"torch {conditions['torch']}, {conditions['date']}"
    )
    print(
        f"ceilings: {ceilings['gemm_flops'] / 1e12:.1f} TFLOP/s in a large matrix product, "
        f"{ceilings['copy_bytes_per_s'] / 1e12:.3f} TB/s in a large copy"
    )
    print(f"{'':<20}{'median':>11}{'(min-max)':>21}  {'of limit':>8}  owed")
    for row in rows:
        spread = f"({row.least * 1e3:.3f}-{row.most * 1e3:.3f})"
        share = "" if row.share is None else f"{row.share:.1%}"
        verdict = {True: "ok", False: "MISS", None: ""}[row.met]
        print(
            f"{row.name:<20}{row.median * 1e3:>8.3f} ms{spread:>21}  {share:>8}  {row.owed}  {verdict}"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:0 (default) or cpu")
    parser.add_argument("--model", help="instead of Llama-3.1-8B (on the CPU: tiny-llama)")
    parser.add_argument("--quick", action="store_true", help="small sizes, which prove nothing")
    parser.add_argument("--alone", action="store_true", help="no traffic: prefill and decode only")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    parser.add_argument("--out", type=Path, help="write them there too")
    parser.add_argument("--show", type=Path, help="measure nothing: the table of such a file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
