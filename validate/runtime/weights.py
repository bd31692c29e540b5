"""The weights of a dense transformer: their places in one region of memory, and what fills it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from splitwiser.models.llm import Llm

FAMILIES = ("opt", "llama", "mistral", "qwen2", "qwen3")
"""The families that the runtime computes, by `model_type`."""

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_ALIGNMENT = 256
_STD = 0.02  # Hugging Face's initializer_range of every family


class Place(NamedTuple):
    """Where one tensor lies: its first byte and its shape."""

    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of a model's tensors in *nbytes* bytes, each on a multiple of 256.

    Queries, keys and values are one tensor, `layers.{i}.qkv.weight`, and so are gate and up,
    `layers.{i}.gate_up.weight`. A tied head has the place of the embedding.
    """

    dtype: torch.dtype
    places: Mapping[str, Place]
    nbytes: int

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Every tensor by name, as a view of *flat*: uint8, at least *nbytes* long."""
        if flat.dtype != torch.uint8 or flat.numel() < self.nbytes:
            raise ValueError(
                f"{flat.numel()} elements of {flat.dtype} cannot hold the weights; "
                f"{self.nbytes} bytes of torch.uint8 are needed"
            )
        return {
            name: flat[offset : offset + prod(shape) * self.dtype.itemsize]
            .view(self.dtype)
            .view(shape)
            for name, (offset, shape) in self.places.items()
        }


def layout(llm: Llm) -> Layout:
    """Where the tensors of *llm* lie. Raises ValueError for a model that the runtime has not."""
    if llm.experts > 1:
        raise ValueError(f"{llm.name} has {llm.experts} experts; the runtime has dense models only")
    if llm.family not in FAMILIES:
        raise ValueError(
            f"{llm.name} is of the family {llm.family}; the runtime has {', '.join(FAMILIES)}"
        )
    if llm.dtype not in _DTYPES:
        raise ValueError(f"{llm.name} is in {llm.dtype}; the runtime has {', '.join(_DTYPES)}")
    dtype = _DTYPES[llm.dtype]
    places: dict[str, Place] = {}
    end = 0
    for name, shape in _shapes(llm):
        places[name] = Place(end, shape)
        end += -(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    if llm.tied_embeddings:
        places["head.weight"] = places["embed.weight"]
    return Layout(dtype, places, end)


def _shapes(llm: Llm) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor once, in the order of the computation."""
    width = llm.embedding or llm.hidden
    yield "embed.weight", (llm.vocab, width)
    if llm.learned_positions:
        yield "positions.weight", (llm.learned_positions, llm.hidden)
    if width != llm.hidden:
        yield "project_in.weight", (llm.hidden, width)
    for layer in range(llm.layers):
        for name, shape in _layer_shapes(llm):
            yield f"layers.{layer}.{name}", shape
    if llm.final_norm:
        yield from _norm("final_norm", llm)
    if width != llm.hidden:
        yield "project_out.weight", (width, llm.hidden)
    if not llm.tied_embeddings:
        yield "head.weight", (llm.vocab, width)


def _layer_shapes(llm: Llm) -> Iterator[tuple[str, tuple[int, ...]]]:
    qkv, up = llm.query_width + 2 * llm.kv_width, llm.intermediate * (2 if llm.gated_mlp else 1)
    mlp_bias = llm.biases or llm.mlp_biases
    yield from _norm("attn_norm", llm)
    yield from _linear("qkv", qkv, llm.hidden, llm.biases or llm.qkv_biases)
    if llm.qk_norm:
        yield "q_norm.weight", (llm.head_dim,)
        yield "k_norm.weight", (llm.head_dim,)
    yield from _linear("out", llm.hidden, llm.query_width, llm.biases or llm.out_bias)
    yield from _norm("mlp_norm", llm)
    yield from _linear("gate_up" if llm.gated_mlp else "up", up, llm.hidden, mlp_bias)
    yield from _linear("down", llm.hidden, llm.intermediate, mlp_bias)


def _norm(name: str, llm: Llm) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (llm.hidden,)
    if llm.biases:
        yield f"{name}.bias", (llm.hidden,)


def _linear(
    name: str, outputs: int, inputs: int, bias: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def fill_random(flat: Tensor, llm: Llm, seed: int) -> None:
    """Fill *flat* with weights of std 0.02, and norms of about 1.

    Nothing is exactly 0 or 1, so that a weight left out shows. The same seed gives the same
    weights on devices of one kind.
    """
    generator = torch.Generator(flat.device).manual_seed(seed)
    for name, view in _distinct(flat, llm).items():
        view.normal_(1.0 if name.endswith("norm.weight") else 0.0, _STD, generator=generator)


def _distinct(flat: Tensor, llm: Llm) -> dict[str, Tensor]:
    """The views, without the head where it is the embedding."""
    views = layout(llm).views(flat)
    if llm.tied_embeddings:
        del views["head.weight"]
    return views


_LLAMA_NAMES = {
    "embed": ("embed_tokens",),
    "attn_norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "out": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
    "final_norm": ("norm",),
}
_OPT_NAMES = {
    "embed": ("embed_tokens",),
    "positions": ("embed_positions",),
    "project_in": ("project_in",),
    "attn_norm": ("self_attn_layer_norm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.out_proj",),
    "mlp_norm": ("final_layer_norm",),
    "up": ("fc1",),
    "down": ("fc2",),
    "final_norm": ("final_layer_norm",),
    "project_out": ("project_out",),
}
_PREFIXES = ("model.decoder.", "model.", "decoder.", "")


def fill_from_folder(flat: Tensor, llm: Llm, folder: Path) -> None:
    """Fill *flat* from the `*.safetensors` of *folder*, under the hub's names of the family.

    The shards are those of `model.safetensors.index.json` where there is one. Values are converted
    to the dtype of *llm*. Raises ImportError without safetensors, FileNotFoundError where a file
    is missing, and ValueError that names the first tensor that is missing or of another shape.
    """
    stored = _stored(folder)
    prefix = next((text for text in _PREFIXES if f"{text}embed_tokens.weight" in stored), None)
    if prefix is None:
        raise ValueError(f"{folder}: tensor embed_tokens.weight is missing")
    wanted = hub_views(_distinct(flat, llm), llm, prefix)
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise ValueError(f"{folder}: tensor {missing[0]} is missing ({len(missing)} in all)")
    for name, view in wanted.items():
        value = stored[name]()
        if value.shape != view.shape:
            raise ValueError(
                f"{folder}: tensor {name} has the shape {tuple(value.shape)}; "
                f"{llm.name} needs {tuple(view.shape)}"
            )
        view.copy_(value)


def hub_views(weights: Mapping[str, Tensor], llm: Llm, prefix: str) -> dict[str, Tensor]:
    """The *weights* (`Layout.views`) by the hub's names: views, for a fused tensor of its rows.

    *prefix* stands before every name but that of the head, "model." for instance.
    """
    names = _OPT_NAMES if llm.family == "opt" else _LLAMA_NAMES
    heights = {
        "qkv": [llm.query_width, llm.kv_width, llm.kv_width],
        "gate_up": [llm.intermediate, llm.intermediate],
    }
    found = {}
    for name, view in weights.items():
        if name == "head.weight":
            found["lm_head.weight"] = view
            continue
        *place, part, kind = name.split(".")
        stem = prefix + "".join(f"{step}." for step in place)
        pieces = torch.split(view, heights.get(part, [len(view)]))
        found |= {
            f"{stem}{hub}.{kind}": piece for hub, piece in zip(names[part], pieces, strict=True)
        }
    return found


def _stored(folder: Path) -> dict[str, Callable[[], Tensor]]:
    """The tensors that the files of *folder* hold, by name, to be read when called."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError("reading weights needs safetensors: pip install safetensors") from None
    stored: dict[str, Callable[[], Tensor]] = {}
    for file in _shards(folder):
        try:
            shard: Any = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{file}: not a safetensors file ({error})") from None
        stored |= {name: partial(shard.get_tensor, name) for name in shard.keys()}  # noqa: SIM118
    return stored


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{folder}: no *.safetensors file")
        return files
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({folder / shard for shard in shards})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index}: not an index with a weight_map of tensors to files") from None
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; {index.name} names it")
    return files
