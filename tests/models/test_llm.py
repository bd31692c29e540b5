"""Laws of `Llm` and of the reader of `config.json`."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.models.config import parse_config, read_config
from splitwiser.models.families import FAMILIES
from splitwiser.models.llm import DTYPE_BYTES, Llm

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0},
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN2: dict[str, Any] = LLAMA | {"model_type": "qwen2", "sliding_window": 4096}
QWEN3_MOE: dict[str, Any] = LLAMA | {
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}


def parse(values: dict[str, Any], **changes: Any) -> Llm:
    return parse_config(values | changes, name="m", where="config.json")


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_bytes_follow_the_dtype() -> None:
    """Halving the element halves the weights and the cache, and changes no count."""
    full, half = parse(LLAMA).with_dtype("float32"), parse(LLAMA).with_dtype("bf16")
    assert (half.dtype, half.parameters) == ("bfloat16", full.parameters)
    assert full.weight_bytes == 2 * half.weight_bytes
    assert full.kv_bytes_per_token == 2 * half.kv_bytes_per_token == 4 * 32 * 1024 * 2


def test_a_dtype_is_known_by_its_usual_names() -> None:
    """torch's, vLLM's and short names mean the same dtype; another offers the nearest."""
    model = parse(LLAMA)
    assert model.with_dtype("half") == model.with_dtype("torch.float16") == model.with_dtype("FP16")
    with pytest.raises(ValueError, match=r"unknown dtype 'float61'; did you mean float16"):
        model.with_dtype("float61")


def test_a_token_computes_with_its_own_experts_only() -> None:
    """The idle experts and the table that is only looked up are not active parameters."""
    m = parse(QWEN3_MOE)
    idle = (128 - 8) * 32 * 3 * 4096 * 768
    assert m.parameters - m.active_parameters == idle + 128256 * 4096
    every = replace(m, experts_per_token=m.experts)
    assert every.parameters - every.active_parameters == 128256 * 4096
    assert m.active_mlp_parameters - m.router_parameters == 8 * m.expert_parameters


def test_a_shared_table_is_counted_once() -> None:
    """Tying the embeddings removes one table and leaves the computing parameters as they were."""
    own, tied = parse(LLAMA), parse(LLAMA, tie_word_embeddings=True)
    assert own.parameters - tied.parameters == 128256 * 4096
    assert own.active_parameters == tied.active_parameters


def test_biases_are_counted_where_they_are() -> None:
    """attention_bias adds four vectors per layer, mlp_bias three, Qwen2's own three."""
    plain = parse(LLAMA).parameters
    assert parse(LLAMA, attention_bias=True).parameters - plain == 32 * (4096 + 2 * 1024 + 4096)
    assert parse(LLAMA, mlp_bias=True).parameters - plain == 32 * (2 * 14336 + 4096)
    assert parse(QWEN2).parameters - plain == 32 * (4096 + 2 * 1024)


def test_heads_default_to_their_families_rule() -> None:
    """Absent or null, key-value heads are all heads, and the head's width hidden over heads."""
    for values in (without(LLAMA, "num_key_value_heads"), LLAMA | {"num_key_value_heads": None}):
        assert (parse(values).kv_heads, parse(values).head_dim) == (32, 128)
    assert parse(LLAMA, head_dim=64).head_dim == 64


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"use_sliding_window": False}, None),
        ({"use_sliding_window": True, "max_window_layers": 0}, 4096),
        ({"use_sliding_window": True, "max_window_layers": 32}, None),
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "llama"}, None),
    ],
)
def test_the_window_is_the_familys(changes: dict[str, Any], window: int | None) -> None:
    """Mistral's key counts alone, Qwen's with its switch, Llama has none."""
    assert parse(QWEN2, **changes).sliding_window == window


def test_the_dtype_is_the_files_or_the_familys() -> None:
    """`dtype` and `torch_dtype` are read; without either, the family's usual one holds."""
    assert parse(LLAMA, torch_dtype="float16").dtype == "float16"
    assert parse(without(LLAMA, "torch_dtype"), dtype="float32").dtype == "float32"
    assert parse(without(LLAMA, "torch_dtype")).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (without(LLAMA, "num_hidden_layers"), "key num_hidden_layers or n_layer .* is missing"),
        (without(LLAMA, "model_type"), "key model_type is missing; splitwiser reads opt, llama"),
        (LLAMA | {"model_type": "mamba"}, "'mamba' is not supported; splitwiser reads opt, llama"),
        (LLAMA | {"model_type": ["llama"]}, "is not supported"),
        (LLAMA | {"vocab_size": -1}, "vocab_size is -1; a whole number from 1 to 8,388,608"),
        (LLAMA | {"vocab_size": None}, "key vocab_size is missing"),
        (LLAMA | {"hidden_size": 4096.5}, "hidden_size is 4096.5; a whole number"),
        (LLAMA | {"hidden_size": True}, "hidden_size is True"),
        (LLAMA | {"hidden_size": math.nan}, "hidden_size is nan"),
        (LLAMA | {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; .* to 2,000"),
        (LLAMA | {"num_attention_heads": 30}, "4096 is not a multiple of 30 heads; give head_dim"),
        (LLAMA | {"num_key_value_heads": 5}, "32 attention heads cannot share 5 key-value heads"),
        (LLAMA | {"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; true or false"),
        (LLAMA | {"torch_dtype": "int4"}, "torch_dtype: unknown dtype 'int4'"),
        (LLAMA | {"torch_dtype": 16}, "torch_dtype is 16; the name of a dtype"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantised weights are not modelled"),
        (LLAMA | {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types differ"),
        (QWEN2 | {"use_sliding_window": True}, "max_window_layers is 28 of 32 layers"),
        (without(QWEN2, "num_key_value_heads"), "key num_key_value_heads .* is missing"),
        (QWEN3_MOE | {"num_experts_per_tok": 200}, "200 experts per token of 128 experts"),
        (QWEN3_MOE | {"mlp_only_layers": [3]}, "mlp_only_layers must be empty"),
        (without(QWEN3_MOE, "moe_intermediate_size"), "key moe_intermediate_size is missing"),
    ],
)
def test_a_fault_names_file_key_and_what_would_do(values: dict[str, Any], message: str) -> None:
    """Every fault is one line with the file and the key, and gives no number."""
    with pytest.raises(ValueError, match=f"^config.json: .*{message}") as caught:
        parse(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: not JSON"),
        ('{\n"model_type": }', "line 2: not JSON"),
        ("[1, 2]", "a JSON object is needed, found"),
        ('{"model_type": "llama", "hidden_size": NaN}', "NaN is not a number"),
        (b"\x1f\x8b\x08\x00", "byte 1 is not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        ('{"hidden_size": ' + "9" * 5_000 + "}", "Exceeds the limit"),
    ],
    ids=["empty", "broken", "list", "nan", "gzip", "deep", "digits"],
)
def test_a_file_that_is_no_config_is_refused(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    """What is not a JSON object is a one-line ValueError that names the file."""
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_is_told_which_file_to_name(tmp_path: Path) -> None:
    """A directory is an error that names the config.json inside, if there is one."""
    with pytest.raises(ValueError, match="is a directory; it has no"):
        read_config(tmp_path)
    path = write(tmp_path, "{}")
    with pytest.raises(ValueError, match=f"is a directory; name {path}"):
        read_config(tmp_path)


@pytest.mark.parametrize("path", ["nowhere/config.json", "\0.json"])
def test_a_missing_file_is_said_to_be_missing(path: str) -> None:
    """A path without a file raises FileNotFoundError with the path."""
    with pytest.raises(FileNotFoundError, match=r"no such file; name a model's config\.json"):
        read_config(path)


def test_a_path_that_the_system_refuses_is_one_line() -> None:
    """A name longer than the file system takes is a ValueError, cut to a line."""
    with pytest.raises(ValueError, match="File name too long"):
        read_config("x" * 10_000)


def test_a_model_is_named_after_its_place(tmp_path: Path) -> None:
    """The folder names the model; in the hub's cache, the repository does."""
    plain = tmp_path / "my-llama"
    cached = tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "0e9e39f"
    for folder, name in ((plain, "my-llama"), (cached, "meta-llama/Llama-3.1-8B")):
        folder.mkdir(parents=True)
        assert read_config(write(folder, "\ufeff" + json.dumps(LLAMA))).name == name


def test_reading_a_file_is_parsing_its_keys(tmp_path: Path) -> None:
    """The file gives the shape that its keys give."""
    read = read_config(write(tmp_path, json.dumps(LLAMA)))
    assert replace(read, name="m") == parse(LLAMA)


@pytest.mark.parametrize(
    "changes",
    [{"layers": 0}, {"kv_heads": 3}, {"dtype": "int4"}, {"sliding_window": 0}, {"experts": 0}],
)
def test_no_model_has_an_impossible_shape(changes: dict[str, Any]) -> None:
    """A changed copy is held to the same rules as a file."""
    with pytest.raises(ValueError, match=r"\S"):
        replace(parse(LLAMA), **changes)


_KEYS = sorted(
    set(QWEN3_MOE) | {"ffn_dim", "sliding_window", "use_sliding_window", "max_window_layers"}
    | {"word_embed_proj_dim", "do_layer_norm_before", "num_local_experts", "layer_types"}
    | {"mlp_bias", "attention_bias", "dtype", "decoder_sparse_step", "mlp_only_layers", "n_layer"}
)  # fmt: skip
_TEXT = st.text("a\n\0\ud800é", max_size=4)  # a line break, a null, a lone surrogate
_SCALAR = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 300)
    | st.floats()
    | _TEXT
    | st.sampled_from(["llama", "float16", "full_attention"])
)
_JSON = _SCALAR | st.lists(_SCALAR, max_size=2) | st.dictionaries(_TEXT, _SCALAR, max_size=2)


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    changes=st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=4),
    dropped=st.sets(st.sampled_from(_KEYS), max_size=2),
)
def test_any_config_is_a_model_or_one_line(
    family: str, changes: dict[str, Any], dropped: set[str]
) -> None:
    """A mutated config gives a model with positive counts, or a ValueError of one line."""
    values = QWEN3_MOE | {"model_type": family, "num_local_experts": 8} | changes
    values = {key: value for key, value in values.items() if key not in dropped}
    try:
        m = parse(values)
    except ValueError as error:
        assert str(error).startswith("config.json: ")
        assert len(str(error).splitlines()) == 1
        return
    assert 0 < m.active_parameters <= m.parameters
    assert m.kv_bytes_per_token == 2 * m.layers * m.kv_width * DTYPE_BYTES[m.dtype] > 0
    assert m.heads % m.kv_heads == 0


@given(st.binary(max_size=64))
def test_any_bytes_are_a_model_or_one_line(tmp_path_factory: Any, data: bytes) -> None:
    """Garbage bytes are a ValueError of one line that names the file."""
    path = write(tmp_path_factory.getbasetemp(), data)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        read_config(path)
    assert len(str(caught.value).splitlines()) == 1
