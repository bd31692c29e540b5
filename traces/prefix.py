"""The hashed prefix blocks of a trace's prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


def frozen(values: ArrayLike, dtype: type[np.float64 | np.int64]) -> NDArray[np.generic]:
    """*values* as a read-only array; copied unless it is one already."""
    if isinstance(values, np.ndarray) and values.dtype == dtype and not values.flags.writeable:
        return values
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class PrefixBlocks:
    """The hash ids of every prompt's blocks, row after row (compressed sparse rows).

    Request *i* has the ids `ids[offsets[i]:offsets[i + 1]]`, one for each *block_tokens* tokens of
    its prompt from the first token on; the last may stand for a block that is not full. A row may
    be shorter than its prompt: the rest has no hash. Two prompts share a prefix as far as their
    rows agree from the start. Faults raise :exc:`ValueError`.
    """

    offsets: Ints
    ids: Ints
    block_tokens: int

    def __post_init__(self) -> None:
        for name in ("offsets", "ids"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.int64))
        if self.block_tokens < 1:
            raise ValueError(f"block_tokens must be 1 or more, not {self.block_tokens}")
        ends = self.offsets
        if not len(ends) or ends[0] != 0 or ends[-1] != len(self.ids) or (np.diff(ends) < 0).any():
            raise ValueError(
                f"prefix offsets must rise from 0 to the number of ids, {len(self.ids)}"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Blocks of each request."""
        return np.diff(self.offsets)

    def row(self, request: int) -> Ints:
        """The ids of one request's blocks, in order."""
        return self.ids[self.offsets[request] : self.offsets[request + 1]]

    def take(self, requests: Ints) -> PrefixBlocks:
        """The rows of *requests*, in that order."""
        if np.array_equal(requests, np.arange(len(self))):
            return self
        lengths = self.lengths[requests]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        shift = np.repeat(self.offsets[:-1][requests] - offsets[:-1], lengths)
        return PrefixBlocks(offsets, self.ids[np.arange(offsets[-1]) + shift], self.block_tokens)

    def hit_tokens(self, prompt_tokens: Ints) -> Ints:
        """Tokens of each prompt that an endless prefix cache would hold when the request arrives.

        These are the leading blocks that an earlier request had too, in whole blocks, and never the
        prompt's last token: an engine computes that one to get the first output token.
        """
        if not len(self.ids):
            return np.zeros(len(self), dtype=np.int64)
        rows = np.repeat(np.arange(len(self)), self.lengths)
        place = np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], self.lengths)
        hits = self.lengths.copy()  # up to the first block that is new
        new = _first_seen(self.ids, rows) == rows
        np.minimum.at(hits, rows[new], place[new])
        whole = (prompt_tokens - 1) // self.block_tokens
        return np.minimum(hits, whole) * self.block_tokens


def _first_seen(ids: Ints, rows: Ints) -> Ints:
    """For each entry of *ids*, the first of the ascending *rows* in which that id stands."""
    low, high = int(ids.min()), int(ids.max())
    if high - low < 4 * len(ids) + 1024:  # dense ids, as all public traces have: no sorting
        first = np.empty(high - low + 1, dtype=np.int64)
        first[ids[::-1] - low] = rows[::-1]  # the last assignment stays, that is, the first row
        return first[ids - low]
    _, index, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return rows[index[inverse]]
