"""`Runner`: the steps of one worker on its device, launched ahead of their ends.

The device keeps what a step needs of each sequence in its *slot*: the last token, its position, and
the block table. So a step can be launched before the host knows the tokens of the one before it:
what changes from step to step (who is in the batch, new blocks) the host knows by counting. Pure
decode steps are CUDA graphs, one for each bucket of batch sizes, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splitwiser.validate.runtime.messages import Ids
from splitwiser.validate.runtime.prompt_attention import Span
from splitwiser.validate.runtime.staging import Staging
from splitwiser.validate.runtime.transformer import ModelBatch, Transformer

BUCKETS = (1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32))
BUCKET_STEP = 64  # beyond the last of them


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens that a step computes: all of a prompt, or a part of it.

    *context* tokens of the sequence are in *blocks* already. *wanted* is the row of the chunk whose
    next token is asked for, None where the prompt goes on; *slot* is where the sequence will decode
    (None: in another process).
    """

    tokens: Ids
    context: int
    blocks: Ids
    wanted: int | None
    slot: int | None


@dataclass(frozen=True, slots=True)
class Pending:
    """A step that was launched: its *tokens* come in the order decode rows, wanted prompt rows."""

    launched: float
    tokens: Tensor
    event: torch.cuda.Event | None
    ended: float | None

    def wait(self) -> tuple[float, NDArray[np.int64]]:
        """Wait for the end of the step; when that was, and the tokens."""
        if self.event is None:
            assert self.ended is not None
            return self.ended, self.tokens.numpy()
        self.event.synchronize()
        return monotonic(), self.tokens.numpy().copy()


class Runner:
    """The device side of one worker: used by one thread, on the current stream of that thread."""

    def __init__(
        self,
        model: Transformer,
        kv: Tensor,
        *,
        block_size: int,
        max_seqs: int,
        max_blocks: int,
        eager: bool,
    ) -> None:
        device = kv.device
        self.kv = kv
        self.block_size = block_size
        self.asynchronous = device.type == "cuda"
        self._model = model
        # Tokens that a sequence can have here: its block table and the model's positions end.
        self.longest = min(max_blocks * block_size, model.llm.max_context)
        self._padding = max_seqs  # the slot of padding rows, whose position stays -1
        self._tokens = torch.zeros(max_seqs + 1, dtype=torch.int64, device=device)
        self._positions = torch.full((max_seqs + 1,), -1, dtype=torch.int64, device=device)
        self._tables = torch.zeros((max_seqs + 1, max_blocks), dtype=torch.int32, device=device)
        self._buckets = _buckets(max_seqs)
        self._rows = torch.full((self._buckets[-1],), max_seqs, dtype=torch.int64, device=device)
        self._next = torch.zeros(self._buckets[-1], dtype=torch.int64, device=device)
        self._staging = Staging(device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._captures = self.asynchronous and not eager
        self._batch: list[int] = []  # the slots that `_rows` holds
        # By place, so that the last word counts: a slot may change hands before anything is launched.
        self._new_blocks: dict[tuple[int, int], int] = {}  # (slot, column): block
        self._seated: dict[int, tuple[int, int]] = {}  # slot: token, position

    def enter_thread(self) -> None:
        """Have a thread that waits for steps know the device."""
        if self.asynchronous:
            torch.cuda.set_device(self.kv.device)

    # Sequences --------------------------------------------------------------------------------

    def seat(self, slot: int, token: int, position: int) -> None:
        """A sequence takes a slot: its last token is at *position*, and has no keys yet."""
        self._seated[slot] = token, position

    def add_blocks(self, slot: int, column: int, blocks: Sequence[int] | Ids) -> None:
        """Write block ids into the block table of a slot, from a column on."""
        for place, block in enumerate(blocks, column):
            self._new_blocks[slot, place] = int(block)

    # Steps ------------------------------------------------------------------------------------

    def decode(self, slots: list[int]) -> Pending:
        """Launch a decode step of the sequences in *slots*."""
        launched = monotonic()
        bucket = self._bucket(slots)
        self._upload(slots)
        graph = self._graphs.get(bucket)
        if graph is not None:
            graph.replay()
        else:
            self._decode(bucket)
        return self._pending(launched, self._next[: len(slots)])

    def compute(self, chunks: Sequence[Chunk], slots: list[int]) -> Pending:
        """Launch a step that computes prompt chunks, and decodes the sequences in *slots* too."""
        launched = monotonic()
        self._upload(slots)
        batch, seats = self._pack(chunks, slots)
        tokens = self._model.next_tokens(batch, self.kv)
        decodes = len(slots)
        if decodes:
            self._advance(self._rows[:decodes], tokens[:decodes], batch.positions[:decodes])
        if seats is not None:
            here, row, positions = seats
            self._tokens.index_copy_(0, here, tokens[decodes:][row])
            self._positions.index_copy_(0, here, positions)
        return self._pending(launched, tokens)

    def warm_up(self, tokens: int, longest: int) -> None:
        """Compile and load every kernel, and capture the graphs; no sequence is touched.

        *tokens* is the size of the largest step, *longest* of the longest prompt in it.
        """
        self._model.prepare(min(tokens, longest))
        nothing = np.zeros(0, np.int32)
        whole, rest = divmod(tokens, longest)
        for sizes in ([1], [longest] * whole + [rest] * (rest > 0)):
            prompts = [
                Chunk(np.zeros(size, np.int32), 0, nothing, size - 1, None) for size in sizes
            ]
            self.compute(prompts, []).wait()
        if not self._captures:
            self._decode(self._buckets[0])
            return
        pool = None
        for bucket in reversed(self._buckets):  # the largest first: the others fit its memory
            self._decode(bucket)
            torch.cuda.current_stream().synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph,
                pool=pool,
                stream=torch.cuda.current_stream(),
                capture_error_mode="thread_local",
            ):
                self._decode(bucket)
            pool = graph.pool()
            self._graphs[bucket] = graph

    # Copies -----------------------------------------------------------------------------------

    def save(self, blocks: Ids) -> Tensor:
        """Copy blocks to host memory, and wait for that: [layers, 2, blocks, ...]."""
        return self.kv[:, :, self._index(blocks)].cpu()

    def restore(self, saved: Tensor, blocks: Ids) -> None:
        """Copy what `save` gave into other blocks."""
        self.kv[:, :, self._index(blocks)] = saved.to(self.kv.device)

    def copy_from(self, source: Tensor, theirs: Ids, ours: Ids) -> None:
        """Copy blocks of another pool into blocks of this one, and wait for that."""
        self.kv[:, :, self._index(ours)] = source[:, :, self._index(theirs)]
        if self.asynchronous:
            torch.cuda.current_stream().synchronize()

    def _index(self, blocks: Ids) -> Tensor:
        return torch.as_tensor(blocks, dtype=torch.int64, device=self.kv.device)

    # Inside -----------------------------------------------------------------------------------

    def _decode(self, bucket: int) -> None:
        """A decode step of the first *bucket* rows; of fixed shape, so that it can be captured."""
        rows = self._rows[:bucket]
        positions = self._positions[rows]
        batch = ModelBatch(
            ids=self._tokens[rows],
            positions=positions,
            slots=self._places(rows, positions),
            decodes=bucket,
            rows=rows,
            block_tables=self._tables,
            spans=(),
            outputs=None,
        )
        tokens = self._model.next_tokens(batch, self.kv)
        self._advance(rows, tokens, positions)
        self._next[:bucket] = tokens

    def _advance(self, rows: Tensor, tokens: Tensor, positions: Tensor) -> None:
        """The sequences in *rows* got a token each."""
        self._tokens.index_copy_(0, rows, tokens)
        self._positions.index_copy_(0, rows, torch.where(positions < 0, positions, positions + 1))

    def _places(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Where in the pool the keys and values of each row go; -1 for padding."""
        block = self._tables[rows, positions.clamp(min=0) // self.block_size]
        place = block.to(torch.int64) * self.block_size + positions % self.block_size
        return torch.where(positions < 0, positions, place)

    def _pack(
        self, chunks: Sequence[Chunk], slots: list[int]
    ) -> tuple[ModelBatch, tuple[Tensor, Tensor, Tensor] | None]:
        """The batch of a step with prompts, and what to write into the slots of its sequences."""
        decodes = len(slots)
        wanted, seats = list(range(decodes)), []
        starts, row = [], decodes
        for chunk in chunks:
            starts.append(row)
            if chunk.wanted is not None:
                if chunk.slot is not None:
                    place = chunk.context + chunk.wanted + 1
                    seats.append((chunk.slot, len(wanted) - decodes, place))
                wanted.append(row + chunk.wanted)
            row += len(chunk.tokens)
        later = [chunk.blocks for chunk in chunks if chunk.context]
        ids, positions, places, outputs, seat_rows, *used = self._staging.send(
            np.concatenate([chunk.tokens for chunk in chunks]),
            np.concatenate([_positions(chunk) for chunk in chunks]),
            np.concatenate([self._slots_of(chunk) for chunk in chunks]),
            np.array(wanted, np.int64),
            np.array(seats, np.int64).T.ravel(),
            *later,
        )
        blocks = iter(used)
        spans = tuple(
            Span(start, start + len(c.tokens), c.context, next(blocks) if c.context else None)
            for start, c in zip(starts, chunks, strict=True)
        )
        rows = self._rows[:decodes]
        if decodes:
            now = self._positions[rows]
            ids = torch.cat((self._tokens[rows], ids))
            places = torch.cat((self._places(rows, now), places))
            positions = torch.cat((now, positions))
        batch = ModelBatch(ids, positions, places, decodes, rows, self._tables, spans, outputs)
        if not seats:
            return batch, None
        slot, given, position = seat_rows.view(3, len(seats))
        return batch, (slot, given, position)

    def _slots_of(self, chunk: Chunk) -> NDArray[np.int64]:
        """Where in the pool a chunk's keys and values go."""
        if not len(chunk.blocks):  # warming up
            return np.full(len(chunk.tokens), -1)
        at = _positions(chunk)
        blocks = chunk.blocks.astype(np.int64)[at // self.block_size]
        return blocks * self.block_size + at % self.block_size

    def _bucket(self, slots: list[int]) -> int:
        return next(size for size in self._buckets if size >= len(slots))

    def _upload(self, slots: list[int]) -> None:
        """Tell the device what changed since the last step."""
        if slots != self._batch:
            # All rows of the bucket; beyond them older ones may stand, until a larger batch comes.
            bucket = self._bucket(slots)
            rows = np.full(bucket, self._padding)
            rows[: len(slots)] = slots
            self._batch = slots.copy()
            (sent,) = self._staging.send(rows)
            self._rows[:bucket] = sent
        if self._seated:
            (seated,) = self._staging.send(
                _columns((slot, *seat) for slot, seat in self._seated.items())
            )
            slot, token, position = seated.view(3, len(self._seated))
            self._tokens.index_copy_(0, slot, token)
            self._positions.index_copy_(0, slot, position)
            self._seated.clear()
        if self._new_blocks:
            (blocks,) = self._staging.send(
                _columns((*place, block) for place, block in self._new_blocks.items())
            )
            slot, column, block = blocks.view(3, len(self._new_blocks))
            self._tables.index_put_((slot, column), block.to(torch.int32))
            self._new_blocks.clear()

    def _pending(self, launched: float, tokens: Tensor) -> Pending:
        if not self.asynchronous:
            return Pending(launched, tokens.clone(), None, monotonic())
        landed = self._staging.fetch(tokens)
        event = torch.cuda.Event()
        event.record()
        return Pending(launched, landed, event, None)


def _columns(rows: Iterable[tuple[int, int, int]]) -> NDArray[np.int64]:
    """The columns of some rows, one after another."""
    return np.array(list(rows), np.int64).T.ravel()


def _positions(chunk: Chunk) -> NDArray[np.int64]:
    return np.arange(chunk.context, chunk.context + len(chunk.tokens))


def _buckets(most: int) -> list[int]:
    """Batch sizes for which a graph is captured, up to the first that holds *most*."""
    sizes = [*BUCKETS, *range(BUCKETS[-1] + BUCKET_STEP, most + BUCKET_STEP, BUCKET_STEP)]
    return [size for size in sizes if size < most] + [most]
