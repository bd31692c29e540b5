"""The architectures whose `config.json` is read: one row of `FAMILIES` each.

To add one: its row, any other name of its keys in `KEYS`, a model in `catalogue.json` and that
model's published parameter count in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Family(NamedTuple):
    """What an architecture's `config.json` leaves unsaid: transformers' defaults for its type."""

    gated_mlp: bool = True
    tied: bool = False
    dtype: str = "bfloat16"
    position_rows: int | None = None  # beyond max_context, in a learned table; None: rotary
    biases: bool = False
    qkv_biases: bool = False
    qk_norm: bool = False
    window: str = "none"  # "none" (the key is ignored) | "key" | "switched" by use_sliding_window
    default_window: int | None = None
    moe: bool = False
    width: str = "intermediate"  # the field that holds the width of one MLP
    required: tuple[str, ...] = ()  # fields for which transformers assumes one model's own value


FAMILIES: Mapping[str, Family] = {
    "opt": Family(gated_mlp=False, tied=True, dtype="float16", position_rows=2, biases=True),
    "llama": Family(),
    "mistral": Family(window="key", default_window=4096, required=("kv_heads",)),
    "mixtral": Family(window="key", moe=True, required=("kv_heads",)),
    "phi3": Family(window="key"),
    "qwen2": Family(
        qkv_biases=True, window="switched", default_window=4096, required=("kv_heads",)
    ),
    "qwen3": Family(
        qk_norm=True, window="switched", default_window=4096, required=("kv_heads", "head_dim")
    ),
    "qwen3_moe": Family(
        qk_norm=True,
        window="switched",
        default_window=4096,
        moe=True,
        width="expert_width",
        required=("kv_heads", "head_dim"),
    ),
}
"""Families by `model_type`. From transformers' configuration and modelling files, release 4.57."""

KEYS: Mapping[str, tuple[str, ...]] = {  # the hub's name first, then other families' names
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner"),
    "vocab": ("vocab_size",),
    "max_context": ("max_position_embeddings", "n_positions"),
    "experts": ("num_local_experts", "num_experts"),
    "experts_per_token": ("num_experts_per_tok",),
    "expert_width": ("moe_intermediate_size",),
    "window": ("sliding_window",),
    "dtype": ("dtype", "torch_dtype"),
}

LARGEST: Mapping[str, int] = {  # some ten times the largest model published
    "layers": 2_000,
    "hidden": 2**18,
    "heads": 4_096,
    "kv_heads": 4_096,
    "head_dim": 4_096,
    "intermediate": 2**21,
    "vocab": 2**23,
    "max_context": 2**27,
    "experts": 2**16,
    "experts_per_token": 2**16,
    "expert_width": 2**21,
    "window": 2**27,
}
