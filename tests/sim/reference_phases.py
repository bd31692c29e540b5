"""The slow simulator's processes that run one phase each, see `reference`."""

from __future__ import annotations

from functools import partial

from reference_server import Server
from reference_world import (
    Idle,
    Pool,
    Process,
    Sequence,
    Sleep,
)


class Decoder(Server):
    """Decodes what prefill processes hand over."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.inbox: list[Sequence] = []
        self.copying = 0
        self.copied: list[Sequence] = []
        self.sleepers: list[Process] = []
        self.source: Pool | None = None

    @property
    def load(self) -> int:
        arriving = len(self.inbox) + self.copying + len(self.copied)
        return len(self.batch) + len(self.swapped) + arriving

    @property
    def pools(self) -> list[Pool]:
        return [self.pool] if self.source is None else [self.pool, self.source]

    def life(self) -> Process:
        while True:
            copied = self.swap_in()
            if copied:
                yield Sleep(self.world.host_copy(copied * self.model.swap_seconds_per_block))
                continue
            ready = self.inbox if self.source is None else self.copied
            while ready and len(self.batch) < self.max_seqs:
                self.batch.append(ready.pop(0))
            if self.batch:
                yield from self.decode()
            else:
                yield Idle(self.sleepers)

    def receive(self, sequence: Sequence) -> None:
        self.inbox.append(sequence)
        self.copy()
        self.world.wake(self.sleepers)

    def copy(self) -> None:
        """Begin to copy what fits the own pool."""
        while self.source is not None and self.inbox:
            sequence = self.inbox[0]
            if not self.pool.fits(sequence.request, sequence.kv, self.pool.watermark):
                return
            self.inbox.pop(0)
            self.pool.admit(sequence.request, sequence.kv)
            self.copying += 1
            seconds = self.pool.blocks(sequence.kv) * self.model.copy_seconds_per_block
            self.world.at(self.world.device_copy(seconds), partial(self.end_copy, sequence))

    def end_copy(self, sequence: Sequence) -> None:
        assert self.source is not None
        self.copying -= 1
        self.source.release(sequence.request)
        self.copied.append(sequence)
        self.world.wake(self.sleepers)

    def memory_came_free(self) -> None:
        self.copy()
        self.world.wake(self.sleepers)


class Prefiller(Server):
    """Computes prompts and hands them over to the decoder with the fewest sequences."""

    decoders: list[Decoder]

    def life(self) -> Process:
        while True:
            prompts = self.admit(self.max_seqs)
            if prompts:
                yield from self.prefill(prompts)
            else:
                yield self.wait()

    def go_on(self, sequence: Sequence) -> None:
        def hand_over() -> None:
            min(self.decoders, key=lambda decoder: decoder.load).receive(sequence)

        if self.model.handover:
            self.world.at(self.world.now + self.model.handover, hand_over)
        else:
            hand_over()
