"""What a worker does where there is no memory for a sequence, and the order in which it decodes."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, TypeVar

import pytest

pytest.importorskip("torch")

import numpy as np
import torch

from splitwiser.models.catalogue import llm as llm_named
from splitwiser.sim.deployment import Workers
from splitwiser.validate.runtime.blocks import BlockAllocator
from splitwiser.validate.runtime.engines import ChunkedEngine
from splitwiser.validate.runtime.kernels import kernels_for
from splitwiser.validate.runtime.mailbox import Mailbox
from splitwiser.validate.runtime.messages import Prompt
from splitwiser.validate.runtime.numerics import numerics_of
from splitwiser.validate.runtime.owner import pool_shape
from splitwiser.validate.runtime.phases import DecodeWorker
from splitwiser.validate.runtime.reporter import Flight, Running
from splitwiser.validate.runtime.runner import Runner
from splitwiser.validate.runtime.transformer import Transformer
from splitwiser.validate.runtime.weights import fill_random, layout
from splitwiser.validate.runtime.worker import Worker

BLOCK, BLOCKS = 16, 8


Kind = TypeVar("Kind", bound=Worker)


def worker(folder: Path, kind: type[Kind]) -> Kind:
    """A worker that swaps, with a pool of random keys and values."""
    llm = llm_named("tiny-llama")
    flat = torch.empty(layout(llm).nbytes, dtype=torch.uint8)
    fill_random(flat, llm, 0)
    kernels = kernels_for(torch.device("cpu"))
    model = Transformer(llm, numerics_of(llm, None), layout(llm).views(flat), kernels)
    kv = torch.randn(pool_shape(llm, BLOCKS, BLOCK))
    runner = Runner(model, kv, block_size=BLOCK, max_seqs=4, max_blocks=BLOCKS, eager=True)
    mailbox = Mailbox(Pipe()[0])
    reporter: Any = None  # nothing is launched here
    pool = BlockAllocator.create(folder / "pool", BLOCKS)
    group = Workers("decode", 1)
    return kind(0, group, runner, pool, mailbox, reporter, order="fcfs", swap=True)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33])
def test_a_sequence_can_be_swapped_out_as_soon_as_it_is_back(tmp_path: Path, length: int) -> None:
    """However often a sequence is swapped out before its next step, its keys and values come back."""
    decoding = worker(tmp_path, DecodeWorker)
    held = decoding.pool.allocate(-(-length // BLOCK))
    assert held is not None
    member = Running(0, [7], length, 5, held.tolist(), None)
    first = decoding.runner.save(np.array(member.blocks, np.int32))
    decoding.join(member)
    for _ in range(3):
        decoding.preempt(member)
        assert decoding.pool.free_count() == BLOCKS
        decoding.swap_in()
        assert decoding.batch == [member]
    now = decoding.runner.save(np.array(member.blocks[: len(held)], np.int32))
    assert torch.equal(now, first)


def seated(runs: Worker, lengths: Sequence[int]) -> None:
    """Sequences of *lengths* join, in this order."""
    for request, length in enumerate(lengths):
        held = runs.pool.allocate(-(-(length + 1) // BLOCK))
        assert held is not None
        running = Running(request, [7], length, 5, held.tolist(), None)
        runs.join(running)
        assert running.slot is not None
        runs.runner.seat(running.slot, 7, length)


def assert_falling(flight: Flight | None, runs: Worker, requests: Sequence[int]) -> None:
    """The step decodes *requests*, in this order, in their slots; the batch keeps its own order."""
    assert flight is not None
    taken = [member for member in flight.decoded if member is not None]
    assert [each.request for each in taken] == requests
    assert runs.runner._batch == [member.slot for member in taken]
    assert [member.request for member in runs.batch[: len(taken)]] == sorted(requests)


def test_a_decode_step_computes_the_longest_sequences_first(tmp_path: Path) -> None:
    """A decode step takes its sequences in falling order of length, whoever joined first."""
    decoding = worker(tmp_path, DecodeWorker)
    seated(decoding, (17, 40, 3, 17))
    assert_falling(decoding.launch(), decoding, [1, 0, 3, 2])


def test_so_does_a_step_with_prompts(tmp_path: Path) -> None:
    """So does a step that computes prompts beside them."""
    engine = worker(tmp_path, ChunkedEngine)
    seated(engine, (3, 40, 17))
    engine.enqueue(Prompt(3, np.zeros(9, np.int32), 4))
    flight = engine.launch()
    assert_falling(flight, engine, [1, 2, 0])
    assert flight is not None
    assert [prompt.request for prompt in flight.prompts] == [3]
