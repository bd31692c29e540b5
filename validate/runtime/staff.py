"""What the processes of a run are told when they start: plain values that can be pickled.

The router knows these too, and torch is not loaded in its process: none of them needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from splitwiser.models.llm import Llm
from splitwiser.sim.deployment import Deployment, Workers


@dataclass(frozen=True, slots=True)
class Shared:
    """What holds for every process of a run.

    *seed* is that of the random weights, where no *folder* holds some. *max_blocks* is the length
    of a block table, *pool_blocks* the size of each KV pool.
    """

    llm: Llm
    device: str
    deployment: Deployment
    directory: Path
    folder: Path | None
    seed: int
    pool_blocks: tuple[int, ...]
    max_blocks: int

    def allocator(self, pool: int) -> Path:
        """Where the free list of a pool is."""
        return self.directory / f"pool-{pool}"


class Handle(NamedTuple):
    """What another process needs to open a region of device memory (`arena`).

    *path* is the file of a region in CPU memory, *ipc* CUDA's 64 bytes for one on a GPU.
    """

    device: str
    nbytes: int
    path: str | None
    ipc: bytes | None


class Property(NamedTuple):
    """What the owner holds: handles of the weights (None: every process has its own), KV pools."""

    weights: Handle | None
    pools: tuple[Handle, ...]


@dataclass(frozen=True, slots=True)
class Post:
    """One worker: its pipe, its KV pool, and the pool that it copies from, if it does.

    *longest* is the number of tokens of its largest step.
    """

    index: int
    group: Workers
    connection: Connection
    pool: int
    source: int | None
    longest: int


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of one process, threads where there are several, and torch's threads for each."""

    posts: tuple[Post, ...]
    threads: int
    owner: Connection
