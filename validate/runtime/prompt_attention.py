"""Attention of prompts: causal, over a prompt's own rows or over what the pool holds of it too.

On a Hopper GPU cuDNN's kernel takes half the time of FlashAttention 2 (measured on an H200: 85 us
against 170 us for 2,048 tokens of Llama-3.1-8B), but it builds a plan for each new length, 35 ms
each. So prompts are rounded up to a few lengths, whose plans are made beforehand: the rows of a
causal attention do not see what follows them, and the results of rows beyond the prompt are dropped.
Whoever makes q, k and v makes them that much longer (`PromptAttention.rows`): to copy them would
take six more kernels in each layer, a fill and a copy for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from splitwiser.models.llm import Llm

LENGTHS = (*range(128, 2048, 128), *range(2048, 4096, 256), *range(4096, 8193, 512))
CUDNN_FROM = (9, 0)  # compute capability
CUDNN_WIDEST = 128  # head_dim


class Span(NamedTuple):
    """One prompt, or a chunk of one, in a batch: its rows are *start* to *stop*.

    *context* counts the tokens of its sequence that the pool holds already. *blocks* (int64) are
    those that hold context and chunk, in order; None where the context is 0.
    """

    start: int
    stop: int
    context: int
    blocks: Tensor | None


class Reach(NamedTuple):
    """What a span attends to: rows of a layer's flattened pool (None: its own rows), and a mask.

    Without a mask attention is causal, its last query at the last key.
    """

    pool_rows: Tensor | None
    mask: Tensor | None


class PromptAttention:
    """The attention of prompts for a model on a device; a fast kernel where the device has one."""

    def __init__(self, llm: Llm, device: torch.device, dtype: torch.dtype) -> None:
        self._llm = llm
        self._device = device
        self._dtype = dtype
        self._scale = llm.head_dim**-0.5
        # Kernels are called by name: scaled_dot_product_attention would choose for itself.
        self._flash = (
            device.type == "cuda"
            and dtype != torch.float32
            and llm.head_dim % 8 == 0
            and llm.head_dim <= 256
        )
        self._cudnn = (
            self._flash
            and llm.head_dim <= CUDNN_WIDEST
            and llm.sliding_window is None
            and torch.cuda.get_device_capability(device) >= CUDNN_FROM
        )
        self._ready: list[int] = []  # lengths for which cuDNN has a plan

    def prepare(self, longest: int) -> None:
        """Make the plans for prompts of up to *longest* tokens."""
        if not self._cudnn:
            return
        llm = self._llm
        heads = llm.heads + 2 * llm.kv_heads
        for length in LENGTHS:
            shape = (length, heads, llm.head_dim)
            qkv = torch.zeros(shape, dtype=self._dtype, device=self._device)
            self._by_cudnn(*torch.split(qkv, [llm.heads, llm.kv_heads, llm.kv_heads], dim=1))
            self._ready.append(length)
            if length >= longest:
                return

    def reach(self, span: Span, kv: Tensor) -> Reach:
        """What all layers need to know of a span: made once for a forward pass."""
        new = span.stop - span.start
        total = span.context + new
        pool_rows = None
        if span.context:
            if span.blocks is None:
                raise ValueError(f"a chunk after {span.context} tokens needs its blocks")
            kv_heads, block_size = kv.shape[3:5]
            # Row numbers [block, offset, head] of a pool that is laid out [block, head, offset].
            head = torch.arange(kv_heads, device=kv.device) * block_size
            offset = torch.arange(block_size, device=kv.device)[:, None]
            first = span.blocks[:, None, None] * (kv_heads * block_size)
            pool_rows = (first + offset + head).flatten(0, 1)[:total]
        window = self._llm.sliding_window
        if self._flash or (span.context == 0 and (window is None or new <= window)):
            return Reach(pool_rows, None)
        mask = torch.ones(new, total, dtype=torch.bool, device=kv.device).tril_(span.context)
        if window is not None:
            mask.triu_(span.context - window + 1)
        return Reach(pool_rows, mask)

    def rows(self, spans: Sequence[Span], count: int) -> int:
        """How many rows q, k and v must have for a batch of *count* rows: as many, or some more."""
        fresh = (span for span in spans if not span.context)
        ends = (span.start + (self._planned(span.stop - span.start) or 0) for span in fresh)
        return max([count, *ends])

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor,
        values: Tensor,
        span: Span,
        reach: Reach,
    ) -> Tensor:
        """The attention of a span's rows of q [T, heads, d]: [rows, heads * d].

        Over its rows of k and v [T, kv_heads, d], or over those of the layer's pool. T is at least
        what `rows` says, and whatever stands in rows beyond the batch's is finite.
        """
        own, count = slice(span.start, span.stop), span.stop - span.start
        if reach.pool_rows is not None:
            past = _gathered(keys, reach.pool_rows), _gathered(values, reach.pool_rows)
            return self._attend(q[own], *past, reach.mask)
        padded = self._planned(count)
        if padded is None:
            return self._attend(q[own], k[own], v[own], reach.mask)
        wide = slice(span.start, span.start + padded)
        return self._by_cudnn(q[wide], k[wide], v[wide])[:count]

    def _planned(self, count: int) -> int | None:
        """The least length with a plan of cuDNN for *count* rows; None where there is none."""
        return next((length for length in self._ready if length >= count), None)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of q [n, heads, d] over k and v [m, kv_heads, d]: [n, heads * d]."""
        if self._flash:
            return self._by_flash(q, k, v)
        group = self._llm.heads // self._llm.kv_heads
        found = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1).repeat_interleave(group, 0)[None],
            v.transpose(0, 1).repeat_interleave(group, 0)[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scale,
        )
        return found.squeeze(0).transpose(0, 1).reshape(len(q), -1)

    def _by_flash(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        window = self._llm.sliding_window
        found, *_ = torch.ops.aten._flash_attention_forward(
            q[None],
            k[None],
            v[None],
            None,
            None,
            len(q),
            len(k),
            0.0,
            True,
            False,
            scale=self._scale,
            window_size_left=None if window is None else window - 1,
            window_size_right=None if window is None else 0,
        )
        attended: Tensor = found
        return attended.reshape(len(q), -1)

    def _by_cudnn(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            None,
            False,
            0.0,
            True,
            False,
            scale=self._scale,
        )
        attended: Tensor = found
        return attended.squeeze(0).transpose(0, 1).reshape(len(q), -1)


def _gathered(pool: Tensor, rows: Tensor) -> Tensor:
    """The tokens of `Reach.pool_rows` [m, kv_heads] in one layer's pool: [m, kv_heads, d]."""
    head_dim = pool.shape[-1]
    found = pool.view(-1, head_dim).index_select(0, rows.flatten())
    return found.view(*rows.shape, head_dim)
