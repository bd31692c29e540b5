"""The kernels of a transformer step in Triton: `Kernels` for CUDA devices of cc 8.0 and later.

All of them can be captured in a CUDA graph: grids and scratch follow from shapes alone, nothing
waits for the device, and scratch comes from torch's allocator, so from the graph's own pool. A
kernel is compiled and loaded at its first launch: run each batch size once before its capture.

Triton reads the environment variable TRITON_INTERPRET when this module is imported; with it, the
kernels run on CPU tensors, slowly, for checking.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from splitwiser.validate.runtime.triton_attention import decode_attention

_HEADS_PER_PROGRAM = 16  # of rotation: 4 KiB of 128 dimensions in 16 bits
_GATED_BLOCK = 1024


@triton.jit
def _add_norm(
    x,
    residual,
    weight,
    bias,
    normed,
    summed,
    eps,
    hidden,
    x_row,
    residual_row,
    width: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    dim = tl.arange(0, width)
    mask = dim < hidden
    dtype = normed.dtype.element_ty
    value = tl.load(x + row * x_row + dim, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        other = tl.load(residual + row * residual_row + dim, mask=mask, other=0.0)
        rounded = (value + other.to(tl.float32)).to(dtype)
        tl.store(summed + row * hidden + dim, rounded, mask=mask)
        value = rounded.to(tl.float32)
    gain = tl.load(weight + dim, mask=mask, other=0.0).to(tl.float32)
    if bias is None:
        square = tl.sum(value * value, 0) / hidden
        result = (value * tl.rsqrt(square + eps)).to(dtype).to(tl.float32) * gain
    else:
        centred = tl.where(mask, value - tl.sum(value, 0) / hidden, 0.0)
        variance = tl.sum(centred * centred, 0) / hidden
        shift = tl.load(bias + dim, mask=mask, other=0.0).to(tl.float32)
        result = centred * tl.rsqrt(variance + eps) * gain + shift
    tl.store(normed + row * hidden + dim, result.to(dtype), mask=mask)


@triton.jit
def _rotate_and_store(
    qkv,
    cos_sin,
    positions,
    slots,
    keys,
    values,
    qkv_row,
    pool_block,
    pool_head,
    pool_token,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    half_pad: tl.constexpr,
    block_size: tl.constexpr,
    first: tl.constexpr,  # the first head to touch
    tile: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = first + tl.program_id(1) * tile + tl.arange(0, tile)[:, None]
    dim = tl.arange(0, half_pad)[None, :]
    half: tl.constexpr = head_dim // 2
    mask = (head < heads + 2 * kv_heads) & (dim < half)
    here = qkv + row * qkv_row + head * head_dim + dim
    low = tl.load(here, mask=mask, other=0.0)
    high = tl.load(here + half, mask=mask, other=0.0)
    if cos_sin is not None:
        position = tl.maximum(tl.load(positions + row), 0)
        angle = cos_sin + position * head_dim + dim
        cos = tl.load(angle, mask=dim < half, other=0.0)
        sin = tl.load(angle + half, mask=dim < half, other=0.0)
        turned = mask & (head < heads + kv_heads)
        x = low.to(tl.float32)
        y = high.to(tl.float32)
        low = tl.where(turned, x * cos - y * sin, x).to(low.dtype)
        high = tl.where(turned, y * cos + x * sin, y).to(high.dtype)
        tl.store(here, low, mask=turned)
        tl.store(here + half, high, mask=turned)
    slot = tl.load(slots + row)
    if slot >= 0:
        at = (slot // block_size) * pool_block + (slot % block_size) * pool_token + dim
        is_key = mask & (head >= heads) & (head < heads + kv_heads)
        key = keys + at + (head - heads) * pool_head
        tl.store(key, low, mask=is_key)
        tl.store(key + half, high, mask=is_key)
        is_value = mask & (head >= heads + kv_heads)
        value = values + at + (head - heads - kv_heads) * pool_head
        tl.store(value, low, mask=is_value)
        tl.store(value + half, high, mask=is_value)


@triton.jit
def _gated(gate_up, out, width, gate_up_row, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    mask = column < width
    here = gate_up + row * gate_up_row + column
    gate = tl.load(here, mask=mask, other=0.0)
    up = tl.load(here + width, mask=mask, other=0.0).to(tl.float32)
    x = gate.to(tl.float32)
    silu = (x / (1.0 + tl.exp(-x))).to(gate.dtype).to(tl.float32)
    tl.store(out + row * width + column, (silu * up).to(gate.dtype), mask=mask)


class TritonKernels:
    """`Kernels` on a CUDA device, launched on torch's current stream.

    *sms*: the SMs that this stream can use (its partition's), by default all of the current
    device. The first launch of each shape compiles and must not be inside a graph capture.
    """

    def __init__(self, sms: int | None = None) -> None:
        if sms is None:
            sms = torch.cuda.get_device_properties().multi_processor_count
        self.sms = sms

    def add_norm(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and the sum: RMSNorm where *bias* is None, else LayerNorm.

        x and residual [tokens, hidden]. The sum is rounded to x's dtype before the norm reads it,
        and RMSNorm rounds before its weight, as Hugging Face's models do.
        """
        tokens, hidden = x.shape
        normed = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device)
        summed = x if residual is None else torch.empty_like(normed)
        width = triton.next_power_of_2(hidden)
        _add_norm[(tokens,)](
            x,
            residual,
            weight,
            bias,
            normed,
            summed,
            eps,
            hidden,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            width=width,
            num_warps=min(16, max(4, width // 512)),
        )
        return normed, summed

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
        """Rotate queries and keys of *qkv* in place; store keys and values at their slots."""
        first = heads if cos_sin is None else 0  # queries need nothing but rotation
        groups = triton.cdiv(heads + 2 * kv_heads - first, _HEADS_PER_PROGRAM)
        _rotate_and_store[(len(qkv), groups)](
            qkv,
            cos_sin,
            positions,
            slots,
            keys,
            values,
            qkv.stride(0),
            keys.stride(0),
            keys.stride(1),
            keys.stride(2),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            half_pad=triton.next_power_of_2(head_dim // 2),
            block_size=keys.shape[2],
            first=first,
            tile=_HEADS_PER_PROGRAM,
        )

    def gated(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of [tokens, 2 * intermediate]: [tokens, intermediate]."""
        tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
        _gated[(tokens, triton.cdiv(width, _GATED_BLOCK))](
            gate_up, out, width, gate_up.stride(0), block=_GATED_BLOCK
        )
        return out

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
        """Attention of each row to its sequence's pool; zeros where its position is -1."""
        return decode_attention(
            q, keys, values, block_tables, rows, positions, scale, window, self.sms
        )
