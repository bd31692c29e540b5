"""A lane: it repeats one step as the runtime's workers do, and says when each repetition ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from time import monotonic, sleep
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from splitwiser.models.catalogue import llm as llm_named
from splitwiser.models.llm import Llm
from splitwiser.validate.calibration.points import BLOCK, MARGIN, Load
from splitwiser.validate.runtime.messages import Ids
from splitwiser.validate.runtime.runner import Chunk, Pending, Runner
from splitwiser.validate.runtime.staging import AHEAD

if TYPE_CHECKING:
    from torch import Tensor

    from splitwiser.validate.runtime.partition import Partition

RESEAT = 32  # decode steps after which the sequences are put back to their context
TRIALS = 2  # steps before a window, of which the last is timed


class Models:
    """The models that a process of a stage can run: weights and KV pools, which the owner holds."""

    def __init__(self, weights: Mapping[str, Mapping[str, Tensor]], pools: Mapping[str, Tensor]):
        self.weights = weights
        self.pools = pools

    def runner(self, name: str, sms: int | None, *, max_seqs: int, eager: bool) -> Runner:
        """A new runner of a model, on the current stream."""
        from splitwiser.validate.runtime.kernels import kernels_for
        from splitwiser.validate.runtime.numerics import numerics_of
        from splitwiser.validate.runtime.transformer import Transformer

        llm, pool = measured_llm(name), self.pools[name]
        kernels = kernels_for(pool.device, sms)
        model = Transformer(llm, numerics_of(llm, None), self.weights[name], kernels)
        return Runner(
            model,
            pool,
            block_size=BLOCK,
            max_seqs=max_seqs,
            max_blocks=-(-llm.max_context // BLOCK),
            eager=eager,
        )


def measured_llm(name: str) -> Llm:
    """A model of the catalogue, its context cut so that tables of positions stay small."""
    llm = llm_named(name)
    return replace(llm, max_context=min(llm.max_context, LONGEST)) if llm.family != "opt" else llm


LONGEST = 16384  # tokens of context in any measurement


class LaneRunner:
    """The device side of one lane. *reserve* are blocks of each pool into which its prompts go."""

    def __init__(
        self,
        models: Models,
        partition: Partition | None,
        sms: int | None,
        reserve: Mapping[str, Ids],
        place: int,
    ) -> None:
        self._models = models
        self._place = place
        self._partition = partition
        self._sms = sms
        self._reserve = reserve
        self._runners: dict[tuple[str, bool], Runner] = {}
        self._batches: dict[tuple[str, bool], int] = {}

    def on(self) -> AbstractContextManager[None]:
        """Within it, this thread launches where the lane runs."""
        if self._partition is None:
            return nullcontext()
        from splitwiser.validate.runtime.partition import run_on

        return run_on(self._partition)

    def warm_up(self, loads: list[Load]) -> None:
        """Compile, load and capture what *loads* will need."""
        for load in loads:
            key = (load.llm, load.eager)
            self._batches[key] = max(self._batches.get(key, 1), load.batch)
        for (name, eager), batch in self._batches.items():
            runner = self._models.runner(name, self._sms, max_seqs=batch, eager=eager)
            longest = max(
                (
                    ld.tokens
                    for ld in loads
                    if (ld.llm, ld.eager) == (name, eager) and not ld.cached
                ),
                default=0,
            )
            runner.warm_up(max(1, longest), max(1, longest))
            self._runners[name, eager] = runner

    def prepare(self, load: Load) -> tuple[Callable[[], Pending], float]:
        """Make ready to repeat a load: what launches its step, and about how long one takes (s)."""
        runner = self._runners[load.llm, load.eager]
        launch = _step(runner, load, self._reserve[load.llm], self._place)
        seconds = 0.0
        for _ in range(TRIALS):
            begun = monotonic()
            launch().wait()
            seconds = monotonic() - begun
        return launch, seconds


class Done(NamedTuple):
    """One repetition: when it ended (`time.monotonic`), and the seconds that its launch took the host."""

    end: float
    host: float


def repeat(launch: Callable[[], Pending], begin: float, end: float) -> list[Done]:
    """Repeat a step from *begin* to *end* (`time.monotonic`), some launched ahead as workers do.

    The last ones end after *end*: whoever measures beside it is not left alone inside the window.
    """
    sleep(max(0.0, begin - monotonic() - 2e-3))
    while monotonic() < begin:
        pass
    done: list[Done] = []
    under_way: deque[tuple[Pending, float]] = deque()

    def wait() -> None:
        pending, host = under_way.popleft()
        done.append(Done(pending.wait()[0], host))

    while (now := monotonic()) < end:
        pending = launch()
        under_way.append((pending, monotonic() - now))
        if len(under_way) >= AHEAD:
            wait()
    while under_way:
        wait()
    return done


def _step(runner: Runner, load: Load, reserve: Ids, seed: int) -> Callable[[], Pending]:
    """What launches one step of a load; by *seed* its sequences have other blocks than others'."""
    slots = list(range(load.batch))
    if load.batch:
        _seat_tables(runner, load, int(reserve[0]), seed)
    chunks = _chunks(load, reserve)
    made = 0

    def launch() -> Pending:
        nonlocal made
        if load.batch and made % RESEAT == 0:
            for slot in slots:
                runner.seat(slot, slot + 1, max(1, load.context - 1 - RESEAT // 2))
        made += 1
        return runner.compute(chunks, slots) if chunks else runner.decode(slots)

    return launch


def _seat_tables(runner: Runner, load: Load, blocks: int, seed: int) -> None:
    """Give each sequence blocks of its own, from anywhere in the first *blocks* of the pool."""
    each = -(-(load.context + MARGIN) // BLOCK)
    order = np.random.default_rng(seed).permutation(blocks)[: load.batch * each]
    for slot, own in enumerate(order.reshape(load.batch, each)):
        runner.add_blocks(slot, 0, own.tolist())


def _chunks(load: Load, reserve: Ids) -> list[Chunk]:
    generator = np.random.default_rng(1)
    each = -(-(load.cached + load.tokens) // BLOCK)
    chunks = []
    for prompt in range(load.prompts):
        # Where prompts are longer than the reserve together, they write over each other.
        own = np.resize(np.roll(reserve, -prompt * each), each).astype(np.int32)
        tokens = generator.integers(0, 512, load.tokens, dtype=np.int32)
        chunks.append(Chunk(tokens, load.cached, own, load.tokens - 1, None))
    return chunks
