"""A dense decoder-only transformer over a paged KV pool: OPT, Llama, Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

from collections.abc import Mapping
from math import tau
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from splitwiser.models.llm import Llm
from splitwiser.validate.runtime.kernels import Kernels
from splitwiser.validate.runtime.numerics import Numerics
from splitwiser.validate.runtime.prompt_attention import PromptAttention, Reach, Span


class ModelBatch(NamedTuple):
    """T rows to compute: *decodes* rows of one sequence each, then prompts without padding.

    *ids*, *positions* and *slots* are int64 [T]; see `Kernels.rotate_and_store` for slots. A row
    of position -1 is padding, its id any valid one. Decode row r reads the blocks
    block_tables[rows[r]] (int32 [., max_blocks]; rows int64 [decodes]). The *spans* cover the
    other rows in order. *outputs* (int64) are the rows whose next token is wanted; None: the
    decode rows.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    decodes: int
    rows: Tensor
    block_tables: Tensor
    spans: tuple[Span, ...]
    outputs: Tensor | None


class _Layer(NamedTuple):
    attn_norm: Tensor
    attn_norm_bias: Tensor | None
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    mlp_norm_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class Transformer:
    """The forward pass of *llm* on the device that holds the *weights* (`Layout.views`).

    A KV pool is one tensor [layers, 2, blocks, kv_heads, block_size, head_dim], keys before
    values. Every method stores the batch's keys and values in it. A batch without spans launches
    the same operations for the same T and reads nothing back, so a CUDA graph can capture it as
    far as the *kernels* allow.

    Beside the weights it keeps max_context * head_dim * 4 bytes of rotary angles.
    """

    def __init__(
        self, llm: Llm, numerics: Numerics, weights: Mapping[str, Tensor], kernels: Kernels
    ) -> None:
        self.llm = llm
        self.numerics = numerics
        self._kernels = kernels
        self.weights = weights
        self._scale = llm.head_dim**-0.5
        self._layers = [_layer(weights, f"layers.{i}", llm.gated_mlp) for i in range(llm.layers)]
        embed = weights["embed.weight"]
        self._cos_sin = None if llm.learned_positions else rotation(llm, numerics, embed.device)
        self._prompts = PromptAttention(llm, embed.device, embed.dtype)

    def prepare(self, longest: int) -> None:
        """Load what prompts of up to *longest* tokens will need, before there are any."""
        self._prompts.prepare(longest)

    def hidden(self, batch: ModelBatch, kv: Tensor) -> Tensor:
        """The hidden states after the last layer, before the final norm: [T, hidden]."""
        x, residual = self._run(batch, kv)
        return x if residual is None else x + residual

    def logits(self, batch: ModelBatch, kv: Tensor) -> Tensor:
        """The logits of the rows wanted: [len(outputs), vocab], in the model's dtype."""
        x, residual = self._run(batch, kv)
        weights, rows = self.weights, batch.outputs
        x = x[: batch.decodes] if rows is None else x[rows]
        if residual is not None:
            residual = residual[: batch.decodes] if rows is None else residual[rows]
            norm, bias = weights["final_norm.weight"], weights.get("final_norm.bias")
            x, _ = self._kernels.add_norm(x, residual, norm, bias, self.numerics.norm_eps)
        if "project_out.weight" in weights:
            x = F.linear(x, weights["project_out.weight"])
        return F.linear(x, weights["head.weight"])

    def next_tokens(self, batch: ModelBatch, kv: Tensor) -> Tensor:
        """The likeliest next token of each row wanted: int64 [len(outputs)]."""
        return self.logits(batch, kv).argmax(-1)

    def _run(self, batch: ModelBatch, kv: Tensor) -> tuple[Tensor, Tensor | None]:
        """The last layer's output and the residual still to be added to it, if any."""
        x = self._embed(batch)
        reaches = [self._prompts.reach(span, kv) for span in batch.spans]
        room = self._room(batch, x) if batch.spans else None
        add_norm, eps = self._kernels.add_norm, self.numerics.norm_eps
        residual: Tensor | None = None
        for layer, (keys, values) in zip(self._layers, kv, strict=True):
            norm, norm_bias = layer.attn_norm, layer.attn_norm_bias
            if self.llm.final_norm:
                x, residual = add_norm(x, residual, norm, norm_bias, eps)
                x = self._attention(layer, x, batch, reaches, room, keys, values)
                x, residual = add_norm(x, residual, layer.mlp_norm, layer.mlp_norm_bias, eps)
                x = self._mlp(layer, x)
            else:  # a model without a final norm has its norms after the blocks (OPT-350m)
                attended = self._attention(layer, x, batch, reaches, room, keys, values)
                x, _ = add_norm(attended, x, norm, norm_bias, eps)
                x, _ = add_norm(self._mlp(layer, x), x, layer.mlp_norm, layer.mlp_norm_bias, eps)
        return x, residual

    def _embed(self, batch: ModelBatch) -> Tensor:
        x = F.embedding(batch.ids, self.weights["embed.weight"])
        if "project_in.weight" in self.weights:
            x = F.linear(x, self.weights["project_in.weight"])
        if self.llm.learned_positions:
            # OPT's first rows are unused: two of them, so that padding at -1 stays in the table.
            first = self.llm.learned_positions - self.llm.max_context
            x = x + F.embedding(batch.positions + first, self.weights["positions.weight"])
        return x

    def _mlp(self, layer: _Layer, x: Tensor) -> Tensor:
        x = F.linear(x, layer.up, layer.up_bias)
        x = self._kernels.gated(x) if self.llm.gated_mlp else x.relu_()
        return F.linear(x, layer.down, layer.down_bias)

    def _attention(
        self,
        layer: _Layer,
        x: Tensor,
        batch: ModelBatch,
        reaches: list[Reach],
        room: Tensor | None,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        llm = self.llm
        if room is None:
            qkv = room = F.linear(x, layer.qkv, layer.qkv_bias)
        else:
            qkv = _linear_into(room[: len(x)], x, layer.qkv, layer.qkv_bias)
        parts = room.view(len(room), -1, llm.head_dim)
        q, k, v = torch.split(parts, [llm.heads, llm.kv_heads, llm.kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            for own, norm in ((q[: len(x)], layer.q_norm), (k[: len(x)], layer.k_norm)):
                own.copy_(F.rms_norm(own, norm.shape, norm, self.numerics.norm_eps))
        self._kernels.rotate_and_store(
            qkv,
            llm.heads,
            llm.kv_heads,
            llm.head_dim,
            self._cos_sin,
            batch.positions,
            batch.slots,
            keys,
            values,
        )
        attended = [self._decode_attention(q, batch, keys, values)] if batch.decodes else []
        for span, reach in zip(batch.spans, reaches, strict=True):
            attended.append(self._prompts.attend(q, k, v, keys, values, span, reach))
        joined = attended[0] if len(attended) == 1 else torch.cat(attended)
        return F.linear(joined, layer.out, layer.out_bias)

    def _room(self, batch: ModelBatch, x: Tensor) -> Tensor:
        """Where every layer puts its queries, keys and values; rows behind the batch's are zeros."""
        llm = self.llm
        width = (llm.heads + 2 * llm.kv_heads) * llm.head_dim
        room = x.new_empty(self._prompts.rows(batch.spans, len(x)), width)
        room[len(x) :].zero_()
        return room

    def _decode_attention(
        self, q: Tensor, batch: ModelBatch, keys: Tensor, values: Tensor
    ) -> Tensor:
        attended = self._kernels.decode_attention(
            q[: batch.decodes],
            keys,
            values,
            batch.block_tables,
            batch.rows,
            batch.positions[: batch.decodes],
            self._scale,
            self.llm.sliding_window,
        )
        return attended.flatten(1)


def _linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` with its result in *out*."""
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _layer(weights: Mapping[str, Tensor], place: str, gated: bool) -> _Layer:
    up = "gate_up" if gated else "up"
    return _Layer(
        weights[f"{place}.attn_norm.weight"],
        weights.get(f"{place}.attn_norm.bias"),
        weights[f"{place}.qkv.weight"],
        weights.get(f"{place}.qkv.bias"),
        weights.get(f"{place}.q_norm.weight"),
        weights.get(f"{place}.k_norm.weight"),
        weights[f"{place}.out.weight"],
        weights.get(f"{place}.out.bias"),
        weights[f"{place}.mlp_norm.weight"],
        weights.get(f"{place}.mlp_norm.bias"),
        weights[f"{place}.{up}.weight"],
        weights.get(f"{place}.{up}.bias"),
        weights[f"{place}.down.weight"],
        weights.get(f"{place}.down.bias"),
    )


def rotation(llm: Llm, numerics: Numerics, device: torch.device) -> Tensor:
    """Cosines, then sines, of the rotary angles: float32 [max_context, head_dim].

    The frequencies are theta^(-2i/d), divided by the factor of linear scaling, or as Llama 3.1
    scales them: wavelengths beyond the low bound are stretched, those below the high bound kept,
    and what lies between is interpolated (transformers, `modeling_rope_utils`).
    """
    exponents = torch.arange(0, llm.head_dim, 2, device=device).float() / llm.head_dim
    frequencies = 1.0 / numerics.rope_theta**exponents
    scaling = numerics.rope_scaling
    if scaling is not None and scaling["rope_type"] == "linear":
        frequencies = frequencies / scaling["factor"]
    elif scaling is not None:
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequencies / tau
        kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        frequencies = frequencies * (kept + (1.0 - kept) / scaling["factor"])
    positions = torch.arange(llm.max_context, device=device).float()
    angles = torch.outer(positions, frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
