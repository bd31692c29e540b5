"""Who is admitted, where and in which order: rules that the simulator and the runtime share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from math import ceil
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from splitwiser.sim.deployment import Deployment

Ints = NDArray[np.int64]

WATERMARK = 0.01  # of the pool stays free when a prompt is admitted (vLLM's default)


# Waiting lines ----------------------------------------------------------------------------------


class Waiting(Protocol):
    """The part of a deque that a scheduler uses; the head is the next to be admitted."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> int: ...
    def __iter__(self) -> Iterator[int]: ...
    def append(self, request: int, /) -> None: ...
    def appendleft(self, request: int, /) -> None: ...
    def popleft(self) -> int: ...


class Lengths(Protocol):
    """The prompt tokens of every request: a sequence, or a mapping."""

    def __getitem__(self, request: int, /) -> int: ...


class ShortestPromptFirst:
    """Waiting requests by prompt length, then arrival; preempted ones come first, as under vLLM."""

    def __init__(self, prompt_tokens: Lengths) -> None:
        self._prompt_tokens = prompt_tokens
        self._heap: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __getitem__(self, index: int) -> int:
        return self._heap[index][1]  # only the head, 0, is in order

    def __iter__(self) -> Iterator[int]:
        return (request for _, request in self._heap)

    def append(self, request: int) -> None:
        heappush(self._heap, (self._prompt_tokens[request], request))

    def appendleft(self, request: int) -> None:
        heappush(self._heap, (-1, request))

    def popleft(self) -> int:
        return heappop(self._heap)[1]


def waiting_line(order: str, prompt_tokens: Lengths) -> Waiting:
    """An empty waiting line for an admission order: "fcfs" or "shortest_prompt"."""
    lines: dict[str, Callable[[], Waiting]] = {
        "fcfs": deque,
        "shortest_prompt": lambda: ShortestPromptFirst(prompt_tokens),
    }
    return lines[order]()


class Routes(NamedTuple):
    """The lines of whole engines: the requests of each, and in which one a request waits."""

    lines: list[range]
    line_of: Callable[[int], int]


def routes(routing: str, engines: int, requests: int) -> Routes:
    """The lines for a `Deployment.routing`; a single line is for all engines."""
    if routing == "shared_queue" or engines == 1:
        return Routes([range(requests)], lambda request: 0)
    if routing == "contiguous":
        ends = [requests * r // engines for r in range(engines + 1)]
        return Routes(
            [range(*ends[r : r + 2]) for r in range(engines)],
            lambda request: (engines * (request + 1) - 1) // requests,
        )
    return Routes(
        [range(r, requests, engines) for r in range(engines)], lambda request: request % engines
    )


# Memory and context -----------------------------------------------------------------------------


class Limits(NamedTuple):
    """What a request may be at most: tokens of the context, and tokens that every pool can admit."""

    context: int
    admitted: int

    @classmethod
    def of(cls, max_context: int, pools: Iterable[int], block_size: int) -> Limits:
        """The limits of a model's context and of KV pools of so many blocks."""
        least = min(blocks - int(WATERMARK * blocks) for blocks in pools)
        return cls(max_context, least * block_size)

    def never(self, prompt_tokens: Ints) -> frozenset[int]:
        """The requests that can never be served: no room in the context, or in a pool."""
        too_long = (prompt_tokens >= self.context) | (prompt_tokens > self.admitted)
        return frozenset(np.flatnonzero(too_long).tolist())

    def refusals(self, rejected: int, aborted: int) -> list[str]:
        """What to say of the requests that were not served, and why."""
        told = []
        if rejected:
            told.append(
                f"{rejected} requests rejected: no room for their prompts in the context of "
                f"{self.context} tokens, or in a KV pool of {self.admitted} tokens"
            )
        if aborted:
            told.append(f"{aborted} requests aborted: they outgrew the KV pool")
        return told


class Outputs(NamedTuple):
    """The output tokens of every request, cut where the context ends, and what to say of that."""

    tokens: Ints
    notes: list[str]

    @classmethod
    def of(cls, prompt_tokens: Ints, output_tokens: Ints, max_context: int) -> Outputs:
        """Cut the outputs of a trace."""
        room = (max_context - prompt_tokens).clip(min=0)
        cut = int((output_tokens > room)[room > 0].sum())
        note = (
            f"{cut} requests would outgrow the context of {max_context} tokens; "
            "their output ends there"
        )
        return cls(output_tokens.clip(max=room), [note] if cut else [])


class PoolBlocks(NamedTuple):
    """The KV blocks of a split: of the prefill side's pool, and of each decode process's own.

    *decode* is None where all use the one pool.
    """

    prefill: int
    decode: int | None


def split_pools(deployment: Deployment, total: int, longest_prompt: int) -> PoolBlocks:
    """Divide *total* KV blocks between the two sides of a split.

    With separate pools the prefill side gets room for two batches of each process (one computed,
    one being copied out), at most half of the memory; the decode processes share the rest equally.
    """
    if deployment.kv == "shared":
        return PoolBlocks(total, None)
    groups = list(deployment.each())
    batches = sum(2 * g.max_num_batched_tokens for g in groups if g.phase == "prefill")
    longest = longest_prompt / (1 - WATERMARK)
    prefill = min(total // 2, ceil(max(batches, longest) / deployment.block_size))
    decoders = sum(1 for g in groups if g.phase == "decode")
    return PoolBlocks(prefill, (total - prefill) // decoders)
