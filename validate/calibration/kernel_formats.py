"""The formats that kernel times come in: how their columns become those of a `KernelTable`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from splitwiser.models.llm import Llm
from splitwiser.models.work import elementwise_bytes
from splitwiser.validate.calibration.kernel_table import COLUMNS, SAMPLER

if TYPE_CHECKING:
    import pandas as pd

# Columns that hold no numbers.
TEXTS = {"layer", "name", "op_name", "gemm_dtype", "attn_dtype", "kv_cache_dtype"}


class Part(NamedTuple):
    """What one file holds: the rows of a kind, with `place` as the number of line or row."""

    kind: str
    frame: pd.DataFrame
    provenance: Mapping[str, str]


def _part(kind: str, frame: pd.DataFrame, provenance: Mapping[str, str] | None = None) -> Part:
    return Part(kind, frame[[*COLUMNS[kind], "seconds", "place"]].copy(), provenance or {})


def _own(kind: str) -> Callable[[pd.DataFrame, Llm | None, str], list[Part]]:
    """Return the reader of our own CSV of a kind."""
    return lambda frame, llm, dtype: [_part(kind, frame)]


def _configured(frame: pd.DataFrame, name: str, dtype: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return an aiconfigurator table's rows of a dtype with SI times, and where they are from."""
    frame = frame[frame[name] == dtype]
    if "kv_cache_dtype" in frame:
        frame = frame[frame["kv_cache_dtype"] == dtype]
    if frame.empty:
        raise ValueError(f"no rows whose {name} is {dtype}")
    frame = frame.assign(seconds=frame["latency"] * 1e-3)
    origin = {
        title: str(frame[column].iloc[0])
        for title, column in (
            ("device", "device"),
            ("engine", "framework"),
            ("engine version", "version"),
        )
        if column in frame
    }
    return frame, origin


def _configured_gemm(frame: pd.DataFrame, llm: Llm | None, dtype: str) -> list[Part]:
    return [_part("gemm", *_configured(frame, "gemm_dtype", dtype))]


def _configured_attention(frame: pd.DataFrame, llm: Llm | None, dtype: str) -> list[Part]:
    """Read both attention tables; `step` is the context before the token of a decode row."""
    frame, origin = _configured(frame, "attn_dtype", dtype)
    frame = frame.rename(
        columns={"num_heads": "heads", "num_key_value_heads": "kv_heads", "batch_size": "batch"}
    )
    frame = frame.assign(cached=frame["step"], context=frame["step"] + 1.0)
    decoding = frame["op_name"] == "generation_attention"
    prompts, tokens = frame[~decoding].rename(columns={"isl": "new"}), frame[decoding]
    parts = (_part("prompt_attention", prompts, origin), _part("decode_attention", tokens, origin))
    return [part for part in parts if len(part.frame)]


def _profiled_layers(frame: pd.DataFrame, llm: Llm, dtype: str) -> list[Part]:
    """Read LLMServingSim's dense layers: GEMMs by their names, element-wise kernels by bytes.

    Layers that the cost model does not have (the embedding) are left out.
    """
    up = llm.intermediate * (2 if llm.gated_mlp else 1)
    gemms = {
        "qkv_proj": (llm.query_width + 2 * llm.kv_width, llm.hidden),
        "o_proj": (llm.hidden, llm.query_width),
        "gate_up_proj": (up, llm.hidden),
        "down_proj": (llm.hidden, llm.intermediate),
    }
    per_token = elementwise_bytes(llm)
    streams = {
        "layernorm": per_token.norm,
        "act_fn": per_token.activation,
        "rotary_emb": per_token.rotary,
    }
    frame = frame.assign(seconds=frame["time_us"] * 1e-6)
    rows = frame[frame["layer"].isin(list(gemms))].rename(columns={"tokens": "m"})
    rows = rows.assign(
        n=rows["layer"].map({name: size[0] for name, size in gemms.items()}),
        k=rows["layer"].map({name: size[1] for name, size in gemms.items()}),
    )
    light = frame[frame["layer"].isin(list(streams))].rename(columns={"layer": "name"})
    moved = light["name"].map(streams).astype(float) * light["tokens"]
    light = light.assign(bytes=moved)
    parts: Sequence[tuple[str, pd.DataFrame]] = (("gemm", rows), ("elementwise", light))
    return [_part(kind, part, {"model": llm.name}) for kind, part in parts if len(part)]


def _profiled_sequences(frame: pd.DataFrame, llm: Llm, dtype: str) -> list[Part]:
    """Read LLMServingSim's kernels of rows that yield a token: the head and the sampler."""
    frame = frame.assign(seconds=frame["time_us"] * 1e-6)
    head = frame[frame["layer"] == "lm_head"].rename(columns={"sequences": "m"})
    sampler = frame[frame["layer"] == "sampler"].rename(columns={"sequences": "tokens"})
    sampler = sampler.assign(name=SAMPLER, bytes=sampler["tokens"] * llm.vocab * 4.0)
    parts = (
        _part("gemm", head.assign(n=llm.vocab, k=llm.hidden)),
        _part("elementwise", sampler),
    )
    return [part for part in parts if len(part.frame)]


def _profiled_attention(frame: pd.DataFrame, llm: Llm, dtype: str) -> list[Part]:
    """Read LLMServingSim's attention of one prompt chunk, of decoding sequences, and of both."""
    frame = frame.rename(
        columns={
            "prefill_chunk": "new",
            "kv_prefill": "cached",
            "n_decode": "batch",
            "kv_decode": "context",
        }
    )
    frame = frame.assign(
        seconds=frame["time_us"] * 1e-6,
        heads=llm.heads,
        kv_heads=llm.kv_heads,
        head_dim=llm.head_dim,
    )
    prompts, decodes = frame["new"] > 0, frame["batch"] > 0
    parts = (
        _part("prompt_attention", frame[prompts & ~decodes].assign(batch=1)),
        _part("decode_attention", frame[decodes & ~prompts]),
        _part("mixed_attention", frame[prompts & decodes]),
    )
    return [part for part in parts if len(part.frame)]


# The columns that a format's files have, and its reader.
FORMATS: Mapping[tuple[str, ...], Callable[..., list[Part]]] = {
    ("gemm_dtype", "m", "n", "k", "latency"): _configured_gemm,
    (
        "op_name",
        "attn_dtype",
        "kv_cache_dtype",
        "batch_size",
        "isl",
        "step",
        "num_heads",
        "num_key_value_heads",
        "head_dim",
        "latency",
    ): _configured_attention,
    ("layer", "tokens", "time_us"): _profiled_layers,
    ("layer", "sequences", "time_us"): _profiled_sequences,
    ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"): _profiled_attention,
    (*COLUMNS["mixed_attention"], "seconds"): _own("mixed_attention"),
    (*COLUMNS["prompt_attention"], "seconds"): _own("prompt_attention"),
    (*COLUMNS["decode_attention"], "seconds"): _own("decode_attention"),
    (*COLUMNS["elementwise"], "seconds"): _own("elementwise"),
    (*COLUMNS["gemm"], "seconds"): _own("gemm"),
}
# The formats whose layers have names, and no sizes without their model.
NAMED_LAYERS = tuple(columns for columns in FORMATS if "time_us" in columns)
