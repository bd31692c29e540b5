"""The workers that run one phase each: prefill hands sequences over to decode (Splitwiser's split).

A prompt's keys and values stay where prefill wrote them. Its block table is handed over after the
host has waited for the step that wrote them to end, so no reader can be early.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from torch import Tensor

from splitwiser.validate.runtime.blocks import BlockAllocator
from splitwiser.validate.runtime.messages import Sequence
from splitwiser.validate.runtime.reporter import Flight, Running
from splitwiser.validate.runtime.worker import Worker


class PrefillWorker(Worker):
    """Computes prompts, and tells the router the blocks of each."""

    hands_over = True

    def launch(self) -> Flight | None:
        prompts = self.admit(self.max_seqs)
        return self.compute(prompts) if prompts else None


class DecodeWorker(Worker):
    """Decodes the sequences that are handed over; new ones join between two steps.

    With a pool of its own it copies a sequence's blocks out of the *source* pool first, once it has
    room for them.
    """

    source: tuple[BlockAllocator, Tensor] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inbox: deque[Running] = deque()

    def receive(self, message: Any, at: float) -> None:
        if not isinstance(message, Sequence):
            super().receive(message, at)
            return
        self._inbox.append(
            Running(
                message.request,
                [message.token],
                message.length,
                message.outputs,
                message.blocks.tolist(),
                None,
                received=at,
            )
        )

    @property
    def wants_memory(self) -> bool:
        return bool(self._inbox or self.swapped)

    def launch(self) -> Flight | None:
        if self.swapped:
            self.swap_in()
        while self._inbox and len(self.batch) < self.max_seqs and self._fetch(self._inbox[0]):
            running = self._inbox.popleft()
            self.join(running)
            assert running.slot is not None
            self.runner.seat(running.slot, running.tokens[-1], running.length)
        self.make_room()
        return self.decode() if self.batch else None

    def _fetch(self, running: Running) -> bool:
        """Have a sequence's blocks in the own pool; False where there is no room for them."""
        if self.source is None:
            return True
        pool, kv = self.source
        theirs = np.array(running.blocks, np.int32)
        ours = self.pool.allocate(len(theirs), self.watermark)
        if ours is None:
            return False
        self.runner.copy_from(kv, theirs, ours)
        pool.release(theirs)
        running.blocks = ours.tolist()
        return True

    def requeue(self, member: Running) -> bool:
        return False
