"""The kernels in plain torch: for devices without CUDA, and to check the others against."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor


class TorchKernels:
    """`Kernels` on any device. On CUDA they wait for the device, so no graph can capture them."""

    def add_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels.add_norm`."""
        total = x if residual is None else x + residual
        if bias is not None:
            return F.layer_norm(total, weight.shape, weight, bias, eps), total
        wide = total.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return weight * scaled.to(x.dtype), total

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
        """See `Kernels.rotate_and_store`."""
        rows = qkv.view(len(qkv), heads + 2 * kv_heads, head_dim)
        if cos_sin is not None:
            cos, sin = cos_sin[positions.clamp(min=0)].unsqueeze(1).chunk(2, dim=-1)
            turned = rows[:, : heads + kv_heads]
            first, second = turned.float().chunk(2, dim=-1)
            turned.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), -1))
        stored = (slots >= 0).nonzero().squeeze(1)
        block_size = keys.shape[2]
        places = slots[stored]
        blocks, offsets = places // block_size, places % block_size
        kept = rows[stored]
        keys[blocks, :, offsets] = kept[:, heads : heads + kv_heads]
        values[blocks, :, offsets] = kept[:, heads + kv_heads :]

    def gated(self, gate_up: Tensor) -> Tensor:
        """See `Kernels.gated`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

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
        """See `Kernels.decode_attention`."""
        batch, heads, head_dim = q.shape
        kv_heads, block_size = keys.shape[1:3]
        longest = int(positions.max()) // block_size + 1  # blocks; 0 where all rows are padding
        tables = block_tables[rows, :longest].clamp(min=0).long()
        length = longest * block_size
        places = torch.arange(length, device=q.device)
        seen = places <= positions[:, None]
        if window is not None:
            seen &= places > positions[:, None] - window

        # A block's part for one head is a row of the flattened pool: gathered so, the copies come
        # out in the order of the sequence without a second pass over them.
        parts = torch.arange(kv_heads, device=q.device)[:, None]
        chosen = (tables[:, None] * kv_heads + parts).flatten()

        def gather(pool: Tensor) -> Tensor:
            flat = pool.view(-1, block_size * head_dim).index_select(0, chosen)
            return flat.view(batch, kv_heads, length, head_dim).float()

        grouped = q.reshape(batch, kv_heads, heads // kv_heads, head_dim).float()
        scores = grouped @ gather(keys).transpose(2, 3) * scale
        weights = scores.masked_fill_(~seen[:, None, None], -torch.inf).softmax(-1)
        # Unwritten memory may hold NaN, which a weight of zero would not silence.
        attended = gather(values).masked_fill_(~seen[:, None, :, None], 0.0)
        found = (weights @ attended).view(batch, heads, head_dim)
        return found.masked_fill_((positions < 0)[:, None, None], 0.0).to(q.dtype)
