"""What a step is made of beyond sizes and sums: the order of its contexts, and both phases at once.

    python benchmarks/steps.py --show benchmarks/h200_steps.json    # what was measured
    python benchmarks/steps.py [--device cuda:0|cpu] [--out FILE]   # under a minute on an H200

Decode steps of sequences as the preset azure-conv has them, on all SMs and on a quarter of them
(a green context): with equal contexts, and with those drawn, in three orders. And what it takes the
host to launch a prompt, a decode step and both in one step, kernel by kernel and by turns, since
hosts differ from one second to the next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

QUARTER = 25.0  # per cent of the SMs


@dataclass(frozen=True)
class Sizes:
    """What is measured on a GPU, and for a trial on a CPU."""

    model: str
    batches: tuple[int, ...]
    longest: int
    blocks: int
    draws: int
    steps: int
    prompt: int
    beside: tuple[int, int]  # sequences, context


GPU = Sizes("meta-llama/Llama-3.1-8B", (16, 48, 96), 7900, 20_000, 3, 20, 300, (64, 1000))
CPU = Sizes("tiny-llama", (4,), 200, 400, 1, 2, 16, (4, 40))
ORDERS: dict[str, Callable[[Any], Any]] = {
    "equal": lambda contexts: np.full_like(contexts, round(contexts.mean())),
    "as drawn": lambda contexts: contexts,
    "shortest first": np.sort,
    "longest first": lambda contexts: np.sort(contexts)[::-1],
}


class Place(NamedTuple):
    """Where steps run: SMs of a green context (None: the whole device), and how to get there."""

    sms: int | None
    on: Callable[[], AbstractContextManager[None]]


def main() -> int:
    """Measure or read, print, and return the exit status."""
    options = _options()
    if options.show:
        found = json.loads(options.show.read_text())
    else:
        found = _measured(options.device)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    _print(found)
    return 0


def _measured(name: str) -> dict[str, Any]:
    import torch

    from splitwiser.validate.calibration.lane import Models, measured_llm
    from splitwiser.validate.calibration.points import BLOCK
    from splitwiser.validate.runtime.device import device_named, provenance
    from splitwiser.validate.runtime.owner import pool_shape
    from splitwiser.validate.runtime.weights import fill_random, layout

    sizes = CPU if name == "cpu" else GPU
    device, llm = torch.device(name), measured_llm(sizes.model)
    with torch.inference_mode():
        flat = torch.empty(layout(llm).nbytes, dtype=torch.uint8, device=device)
        fill_random(flat, llm, seed=0)
        shape = pool_shape(llm, sizes.blocks, BLOCK)
        kv = torch.empty(shape, dtype=getattr(torch, llm.dtype), device=device)
        for layer in kv:
            layer.normal_()
        models = Models({sizes.model: layout(llm).views(flat)}, {sizes.model: kv})
        decodes: list[dict[str, Any]] = []
        for place in _places(device):
            with place.on():
                decodes += _decodes(models, sizes, place.sms)
        with _places(device)[0].on():
            launches = _launches(models, sizes)
    about = {"model": sizes.model, "layers": llm.layers, **provenance(device_named(name))}
    return {"conditions": about, "sizes": asdict(sizes), "decodes": decodes, "launches": launches}


def _places(device: Any) -> list[Place]:
    if device.type == "cpu":
        return [Place(None, nullcontext)]
    from splitwiser.validate.runtime.partition import green_partitions, priority_streams, run_on

    (whole,) = priority_streams(["decode"], device.index or 0)
    _, part = green_partitions([100.0 - QUARTER, QUARTER], device.index or 0)
    return [Place(None, lambda: run_on(whole)), Place(part.sms, lambda: run_on(part))]


def _decodes(models: Any, sizes: Sizes, sms: int | None) -> Iterator[dict[str, Any]]:
    """Seconds of decode steps with contexts in each order, a record for each draw."""
    from splitwiser.traces.presets import preset

    runner = models.runner(sizes.model, sms, max_seqs=max(sizes.batches), eager=False)
    runner.warm_up(1, 1)
    trace = preset("azure-conv", num_prompts=20_000, request_rate=1.0, seed=0)
    weights = trace.output_tokens / trace.output_tokens.sum()  # long outputs are met oftener
    for batch in sizes.batches:
        for seed in range(sizes.draws):
            rng = np.random.default_rng(seed)
            who = rng.choice(len(trace), batch, p=weights)
            made = rng.random(batch) * trace.output_tokens[who]
            drawn = np.clip(trace.prompt_tokens[who] + made, 16, sizes.longest).astype(int)
            seconds = {
                order: _seconds(runner, arrange(drawn), sizes) for order, arrange in ORDERS.items()
            }
            yield {"sms": sms, "contexts": drawn.tolist(), "seconds": seconds}


def _seconds(runner: Any, contexts: Any, sizes: Sizes) -> list[float]:
    """Seconds a step, of several runs of steps that follow each other."""
    slots = list(range(len(contexts)))
    free = np.random.default_rng(0).permutation(sizes.blocks)
    needed = [-(-(int(context) + sizes.steps + 1) // runner.block_size) for context in contexts]
    own = np.split(np.resize(free, sum(needed)), np.cumsum(needed)[:-1])
    for slot, blocks in zip(slots, own, strict=True):
        runner.add_blocks(slot, 0, blocks.tolist())
    found = []
    for _ in range(4):
        for slot, context in zip(slots, contexts, strict=True):
            runner.seat(slot, slot + 1, int(context))
        before = runner.decode(slots)
        begun, _ = before.wait()
        for _ in range(sizes.steps):
            following = runner.decode(slots)  # one ahead
            before.wait()
            before = following
        found.append((before.wait()[0] - begun) / sizes.steps)
    return found[1:]


def _launches(models: Any, sizes: Sizes) -> dict[str, list[float]]:
    """Seconds that launching each kind of step takes the host, the device being idle."""
    from splitwiser.validate.calibration.lane import LaneRunner
    from splitwiser.validate.calibration.points import Load

    batch, context = sizes.beside
    steps = {
        f"prompt of {sizes.prompt}": Load(sizes.model, 1, sizes.prompt, eager=True),
        f"decode {batch} x {context}": Load(sizes.model, batch=batch, context=context, eager=True),
        "both": Load(sizes.model, 1, sizes.prompt, 0, batch, context, eager=True),
    }
    reserve = np.arange(sizes.blocks // 2, sizes.blocks, dtype=np.int32)
    lane = LaneRunner(models, None, None, {sizes.model: reserve}, 0)
    lane.warm_up(list(steps.values()))
    launch = {title: lane.prepare(load)[0] for title, load in steps.items()}
    found: dict[str, list[float]] = {title: [] for title in steps}
    for turn in range(2 * sizes.steps + 3):
        for title, start in launch.items():
            begun = monotonic()
            pending = start()
            host = monotonic() - begun
            pending.wait()
            if turn >= 3:
                found[title].append(host)
    return found


# The tables -------------------------------------------------------------------------------------


def _print(found: dict[str, Any]) -> None:
    about = found["conditions"]
    print(
        f"{about['model']} on {about['name']}; driver {about.get('driver')}, torch {about['torch']}, "
        f"{about['date']}"
    )
    print("decode steps of contexts that differ, against equal ones of the same sum; ms")
    titles = list(ORDERS)
    print(f"{'SMs':>5}{'batch':>7}{'mean':>7}{'longest':>9}" + "".join(f"{t:>19}" for t in titles))
    for record in found["decodes"]:
        times = [1e3 * statistics.median(record["seconds"][title]) for title in titles]
        contexts = record["contexts"]
        cells = [f"{times[0]:.2f}", *(f"{t:.2f} ({t / times[0] - 1.0:+.1%})" for t in times[1:])]
        print(
            f"{record['sms'] or 'all':>5}{len(contexts):>7}{statistics.fmean(contexts):>7.0f}"
            f"{max(contexts):>9}" + "".join(f"{cell:>19}" for cell in cells)
        )
    print("\nlaunching a step kernel by kernel; ms of the host (quartiles)")
    medians = {}
    for title, seconds in found["launches"].items():
        low, medians[title], high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
        print(f"{title:<20}{medians[title]:>8.2f} ({low:.2f}-{high:.2f})")
    _tell_more(list(medians.values()), found)


def _tell_more(medians: Sequence[float], found: dict[str, Any]) -> None:
    from splitwiser.models.catalogue import llm
    from splitwiser.models.work import coefficients

    c = coefficients(llm(found["conditions"]["model"]))
    prompt, _, both = medians
    launch = prompt / (c.dense_kernels + c.layers + 1.0)
    more = (both - prompt) / launch / c.layers
    print(f"both take as long as {more:.1f} launches a layer more than the prompt")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:0 (default) or cpu")
    parser.add_argument("--out", type=Path, help="write the measurements there")
    parser.add_argument("--show", type=Path, help="measure nothing: the tables of such a file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
