"""The numbers of a forward pass that are no part of a model's shape, from its `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from splitwiser.models.config import read_config
from splitwiser.models.llm import Llm
from splitwiser.models.names import quoted

_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


class Numerics(NamedTuple):
    """The numbers of a forward pass that are no part of a model's shape.

    *rope_scaling* is None for plain rotary positions, otherwise a mapping with the keys of a
    `config.json`: `rope_type` is "linear" or "llama3".
    """

    norm_eps: float
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None


def numerics_of(llm: Llm, folder: Path | None) -> Numerics:
    """What the `config.json` in *folder* says; without a folder, transformers' defaults.

    Raises FileNotFoundError without that file, and ValueError, with the file and the key, for
    rotary positions or an activation that the runtime does not compute.
    """
    eps = 1e-5 if llm.biases else 1e-6
    if folder is None:
        return Numerics(eps)
    file = folder / "config.json"
    read_config(file)  # refuses what is no model's configuration
    config = json.loads(file.read_text(encoding="utf-8-sig"))
    key, supported = ("activation_function", "relu") if llm.biases else ("hidden_act", "silu")
    if config.get(key, supported) != supported:
        raise ValueError(f"{file}: {key} is {quoted(config[key])}; the runtime has {supported}")
    if llm.biases:
        return Numerics(eps)
    if config.get("partial_rotary_factor") not in (None, 1):
        raise ValueError(f"{file}: partial_rotary_factor is not supported by the runtime")
    eps = _positive(config, "rms_norm_eps", file, eps)
    return Numerics(eps, *_rotary(config, file))


def _rotary(config: Mapping[str, Any], file: Path) -> tuple[float, Mapping[str, Any] | None]:
    """The base of the rotary angles and their scaling; transformers 5 keeps both in one key."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(key) or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{file}: {key} is {quoted(rope)}; an object is needed")  # noqa: TRY004
    theta = _positive({**config, **rope}, "rope_theta", file, 10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise ValueError(
            f"{file}: {key} of type {quoted(kind)} is not supported; "
            f"the runtime has {', '.join(_ROPE_KEYS)}"
        )
    if kind == "default":
        return theta, None
    return theta, {"rope_type": kind} | {
        name: _positive(rope, name, file, None) for name in _ROPE_KEYS[kind]
    }


def _positive(values: Mapping[str, Any], key: str, file: Path, default: float | None) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{file}: {key} is {quoted(value)}; a positive number is needed")
    return float(value)
