"""What a transformer asks of a device beyond matrix products and the attention of prompts."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Kernels(Protocol):
    """The operations that have a Triton form on a CUDA device and a plain torch form anywhere.

    T counts the rows of a packed batch, B those that decode; d is head_dim. No method reads a
    tensor's contents back to the host on a CUDA device, unless its class says so.
    """

    def add_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum; both [T, hidden].

        RMSNorm where *bias* is None, otherwise LayerNorm, over float32; the sum is rounded to the
        dtype before the norm reads it. Without a *residual* the sum is x itself.
        """
        ...

    def rotate_and_store(
        self,
        qkv: Tensor,
        heads: int,
        kv_heads: int,
        head_dim: int,
        cos_sin: Tensor | None,
        positions: Tensor,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        """Rotate queries and keys in place, and store keys and values in the pool.

        *qkv* is [T, (heads + 2 kv_heads) d]. *cos_sin* is float32 [max_context, d], the cosines
        of d/2 angles and then their sines; the pairs are (i, i + d/2), as in Hugging Face's
        models. None: no rotation. *slots* [T] are places in *keys* and *values*
        [blocks, kv_heads, block_size, d]: block * block_size + offset, or -1 to store nothing. A
        row of position -1 is padding: what it holds afterwards is undefined.
        """
        ...

    def gated(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up [T, intermediate], from both side by side [T, 2 intermediate]."""
        ...

    def decode_attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        block_tables: Tensor,
        rows: Tensor,
        positions: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Attention of one query row each over what its sequence has in the pool.

        *q* is [B, heads, d], its last dimension contiguous; the result has that shape and is
        contiguous. Row r attends the positions max(0, p - window + 1) to p = positions[r] of the
        sequence whose blocks are block_tables[rows[r]]; a row of position -1 gives zeros.
        """
        ...


def kernels_for(device: torch.device, sms: int | None = None) -> Kernels:
    """The fastest kernels of a device, or of *sms* of it: Triton's on CUDA, plain torch elsewhere."""
    if device.type == "cuda":
        from splitwiser.validate.runtime.triton_kernels import TritonKernels

        return TritonKernels(sms)
    from splitwiser.validate.runtime.torch_kernels import TorchKernels

    return TorchKernels()
