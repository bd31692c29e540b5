"""The owner: the process that holds the weights and the KV pools which the workers map."""

from __future__ import annotations

import os
from contextlib import suppress
from math import prod
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from splitwiser.models.llm import Llm
from splitwiser.validate.runtime.faults import line_of
from splitwiser.validate.runtime.staff import Property, Shared

if TYPE_CHECKING:
    import torch

    from splitwiser.validate.runtime.arena import Arena


def pool_shape(llm: Llm, blocks: int, block_size: int) -> tuple[int, ...]:
    """The shape of a KV pool: [layers, keys and values, blocks, kv heads, block size, head dim]."""
    return (llm.layers, 2, blocks, llm.kv_heads, block_size, llm.head_dim)


def pool_bytes(llm: Llm, blocks: int, block_size: int) -> int:
    """Bytes of a KV pool."""
    return prod(pool_shape(llm, blocks, block_size)) * llm.dtype_bytes


def weights_arena(shared: Shared, device: torch.device) -> Arena:
    """The weights in memory of their own, filled."""
    from splitwiser.validate.runtime.arena import Arena
    from splitwiser.validate.runtime.weights import fill_from_folder, fill_random, layout

    path = shared.directory / f"weights-{os.getpid()}"
    arena = Arena.allocate(layout(shared.llm).nbytes, device, path)
    if shared.folder is None:
        fill_random(arena.flat, shared.llm, shared.seed)
    else:
        fill_from_folder(arena.flat, shared.llm, shared.folder)
    return arena


def own(shared: Shared, connection: Connection) -> None:
    """The life of the owner: allocate, tell the handles, and hold them until the pipe closes.

    Where that fails, a line that says why is sent instead of the `Property`.
    """
    import torch

    from splitwiser.validate.runtime.arena import Arena

    try:
        device = torch.device(shared.device)
        weights = None
        if shared.deployment.weights == "shared":
            weights = weights_arena(shared, device)
        pools = [
            Arena.allocate(
                pool_bytes(shared.llm, blocks, shared.deployment.block_size),
                device,
                shared.directory / f"kv-{index}",
            )
            for index, blocks in enumerate(shared.pool_blocks)
        ]
        if device.type == "cuda":
            torch.cuda.synchronize()
        handles = tuple(pool.handle for pool in pools)
        message: Property | str = Property(weights.handle if weights else None, handles)
    except Exception as error:  # noqa: BLE001 - whatever it is, the router tells it
        message = line_of(error)
    with suppress(EOFError, OSError):  # the router has gone
        connection.send(message)
        if isinstance(message, Property):
            connection.recv()
