"""Read an `Llm` from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from splitwiser.models.families import FAMILIES, KEYS, LARGEST, Family
from splitwiser.models.llm import Llm, dtype_named
from splitwiser.models.names import quoted

_LONGEST_FILE = 16 * 2**20
"""Bytes beyond which a file is not a model's configuration (the largest known is under 1 MiB)."""


def read_config(path: str | Path) -> Llm:
    """The model that the `config.json` at `path` describes, named after the folder it lies in.

    The numbers are the file's own; a key that transformers lets a family leave out takes
    transformers' default. Without a dtype OPT is float16 and the other families bfloat16.

    Raises FileNotFoundError if there is no such file, and ValueError, with the file, the key and
    what is accepted, for a directory, anything but a JSON object, an unsupported or quantised
    architecture, a missing key, or a number that no model has.
    """
    file = Path(path)
    return parse_config(_load(file), name=_name_of(file), where=str(file))


def parse_config(values: Mapping[str, object], *, name: str, where: str) -> Llm:
    """The model that the keys and `values` of a `config.json` describe.

    `where` is the place that errors name. Raises ValueError as `read_config` does.
    """
    config = _Config(values, where)
    family_name, family = config.family()
    config.refuse_unsupported()
    for field in family.required:
        config.whole(field)
    hidden, heads = config.whole("hidden"), config.whole("heads")
    head_dim = config.optional("head_dim")
    if head_dim is None:
        if hidden % heads:
            config.fail(f"hidden_size {hidden} is not a multiple of {heads} heads; give head_dim")
        head_dim = hidden // heads
    max_context = config.whole("max_context")
    attention_bias = config.flag("attention_bias", False)
    opt = family_name == "opt"
    try:
        return Llm(
            name=name,
            family=family_name,
            layers=config.whole("layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=heads if opt else config.optional("kv_heads") or heads,
            head_dim=head_dim,
            intermediate=config.whole(family.width),
            vocab=config.whole("vocab"),
            max_context=max_context,
            gated_mlp=family.gated_mlp,
            tied_embeddings=config.flag("tie_word_embeddings", family.tied),
            learned_positions=0
            if family.position_rows is None
            else max_context + family.position_rows,
            sliding_window=config.window(family),
            experts=config.whole("experts") if family.moe else 1,
            experts_per_token=config.whole("experts_per_token") if family.moe else 1,
            biases=family.biases,
            dtype=config.dtype(family.dtype),
            qkv_biases=family.qkv_biases or attention_bias,
            out_bias=attention_bias,
            mlp_biases=config.flag("mlp_bias", False),
            qk_norm=family.qk_norm,
            # OPT-350m normalises after each block, and so has no norm before the head.
            final_norm=config.flag("do_layer_norm_before", True) if opt else True,
            embedding=config.integer("word_embed_proj_dim", hidden, 2**18) if opt else None,
        )
    except _ConfigError:
        raise
    except ValueError as error:  # the numbers, each sound alone, make no transformer together
        raise ValueError(f"{where}: {error}") from None


class _ConfigError(ValueError):
    """One key is at fault; the message already names the file."""


@dataclass(frozen=True, slots=True)
class _Config:
    """The keys of one file; every reader raises one line that names the file and the key."""

    values: Mapping[str, object]
    where: str

    def fail(self, message: str) -> NoReturn:
        raise _ConfigError(f"{self.where}: {message}")

    def family(self) -> tuple[str, Family]:
        offer = f"splitwiser reads {', '.join(FAMILIES)}"
        name = self.values.get("model_type")
        if name is None:
            self.fail(f"key model_type is missing; {offer}")
        if not isinstance(name, str) or name not in FAMILIES:
            self.fail(f"model_type {quoted(name)} is not supported; {offer}")
        return name, FAMILIES[name]

    def refuse_unsupported(self) -> None:
        """Reject what would be counted wrongly rather than not at all."""
        if self.values.get("quantization_config") is not None:
            self.fail(
                "quantization_config: quantised weights are not modelled; "
                "give the config.json of the unquantised model"
            )
        for key in ("enable_bias", "layer_norm_elementwise_affine"):
            if not self.flag(key, True):
                self.fail(f"{key} false is not supported; OPT's layers carry both")
        kinds = self.values.get("layer_types")
        if isinstance(kinds, list) and any(kind != kinds[0] for kind in kinds):
            self.fail("layer_types differ; layers that all attend alike are supported")
        if self.values.get("mlp_only_layers") not in (None, []):
            self.fail("mlp_only_layers must be empty: every layer has experts, or none")
        if self.integer("decoder_sparse_step", 1, 2_000) != 1:
            self.fail("decoder_sparse_step must be 1: every layer has experts, or none")

    def whole(self, field: str) -> int:
        """The number behind `field`, under the first of its names that the file has."""
        value = self.optional(field)
        if value is None:
            names = " or ".join(KEYS[field])
            self.fail(f"key {names} is missing; a whole number is needed")
        return value

    def optional(self, field: str) -> int | None:
        """As `whole`, or None where the key is absent or null."""
        for key in KEYS[field]:
            if self.values.get(key) is not None:
                return self.integer(key, 0, LARGEST[field])
        return None

    def integer(self, key: str, default: int, largest: int) -> int:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            self.fail(f"{key} is {quoted(value)}; a whole number from 1 to {largest:,} is needed")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(f"{key} is {quoted(value)}; true or false is needed")
        return value

    def dtype(self, default: str) -> str:
        for key in KEYS["dtype"]:
            value = self.values.get(key)
            if value is None:
                continue
            if not isinstance(value, str):
                self.fail(f"{key} is {quoted(value)}; the name of a dtype is needed")
            try:
                return dtype_named(value)
            except ValueError as error:
                self.fail(f"{key}: {error}")
        return default

    def window(self, family: Family) -> int | None:
        """The sliding window of every layer, or None where all attend to the whole context.

        Qwen switches the window on with use_sliding_window, from layer max_window_layers upwards.
        Layers of both kinds in one model are refused: their KV caches differ in size.
        """
        if family.window == "none":
            return None
        if family.window == "switched" and not self.flag("use_sliding_window", False):
            return None
        default = None if "sliding_window" in self.values else family.default_window
        window = self.optional("window") or default
        if family.window == "key":
            return window
        full, layers = self.values.get("max_window_layers", 28), self.whole("layers")
        if isinstance(full, bool) or not isinstance(full, int) or full < 0:
            self.fail(f"max_window_layers is {quoted(full)}; a number of layers is needed")
        if 0 < full < layers:
            self.fail(
                f"max_window_layers is {full} of {layers} layers; with use_sliding_window, "
                "0 (every layer has the window) or all layers (none has) are supported"
            )
        return window if full == 0 else None


def _load(file: Path) -> Mapping[str, object]:
    values = _parse(_read(file), file)
    if not isinstance(values, dict):
        fault = f"{file}: a JSON object is needed, found {quoted(values)}"
        raise ValueError(fault)  # noqa: TRY004 - the file is at fault, not the caller's type
    return values


def _read(file: Path) -> str:
    """The text of `file`, if it is a regular file of a configuration's length."""
    try:
        if file.is_file():
            if file.stat().st_size > _LONGEST_FILE:
                raise ValueError(
                    f"{file}: too long for a config.json, over {_LONGEST_FILE:,} bytes"
                )
            return file.read_text(encoding="utf-8-sig")
        if file.is_dir():
            inside = file / "config.json"
            hint = f"name {inside}" if inside.is_file() else "it has no config.json to name"
            raise ValueError(f"{file} is a directory; {hint}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a JSON text (byte {error.start} is not UTF-8)") from None
    except OSError as error:
        raise ValueError(f"{str(file)[:200]}: {error.strerror}") from None
    raise FileNotFoundError(f"{file}: no such file; name a model's config.json")


def _parse(text: str, file: Path) -> object:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {error.lineno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"{file}: not a model's configuration (nested too deeply)") from None
    except ValueError as error:  # NaN, Infinity, an integer of thousands of digits
        raise ValueError(f"{file}: {str(error).splitlines()[0]}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON or a model has")


def _name_of(file: Path) -> str:
    """The hub name where the file lies in the hub's cache, otherwise the folder's name."""
    folders = file.absolute().parts[:-1]
    for folder in reversed(folders):
        if folder.startswith("models--"):
            return "/".join(folder.split("--")[1:])
    return folders[-1] if file.name == "config.json" else file.stem
