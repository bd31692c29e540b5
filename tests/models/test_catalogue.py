"""Laws of the models that ship with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitwiser.models.catalogue import catalogue, llm
from splitwiser.models.llm import Llm

PUBLISHED = {  # the totals that the hub shows for each repository's safetensors, shared tables once
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-350m": 331_196_416,
    "facebook/opt-1.3b": 1_315_758_080,
    "facebook/opt-2.7b": 2_651_596_800,
    "facebook/opt-6.7b": 6_658_473_984,
    "facebook/opt-13b": 12_853_473_280,
    "facebook/opt-30b": 29_974_540_288,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,  # the file also stores the shared head: 751,632,384
    "Qwen/Qwen3-1.7B": 1_720_574_976,  # likewise: 2,031,739,904
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
}

TINY = {  # of no repository: tables + layers * (attention + MLP + norms) + final norm, by hand
    "tiny-llama": 2 * 32_768 + 2 * (12_288 + 36_864 + 128) + 64,
    "tiny-opt": 32_768 + 16_386 * 64 + 2 * (16_640 + 33_088 + 256) + 128,
}


@pytest.mark.parametrize(("name", "total"), (PUBLISHED | TINY).items())
def test_parameters_are_the_published_total(name: str, total: int) -> None:
    """Every parameter of every model is counted, to the last one."""
    assert llm(name).parameters == total


def test_every_shape_has_a_published_total() -> None:
    """A model whose count nobody has checked does not ship."""
    checked = {*PUBLISHED.values(), *TINY.values()}
    assert [model.name for model in catalogue() if model.parameters not in checked] == []


@pytest.mark.parametrize("model", catalogue(), ids=lambda model: model.name)
def test_every_model_answers_to_its_name(model: Llm) -> None:
    """A hub name finds its model in any case, and keeps the hub's spelling."""
    assert llm(model.name) is llm(model.name.upper()) is llm(f" {model.name.lower()} ") is model


def test_the_organisation_may_be_left_out() -> None:
    """The last part of a name is enough where no two models share it."""
    assert llm("opt-125m") is llm("facebook/opt-125m")
    assert llm("llama-3.1-8b-instruct").name == "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize(
    ("name", "offer"),
    [
        ("facebook/opt-126m", "did you mean facebook/opt-125m"),
        ("Llama-3.1", "did you mean Llama-3.1-70B"),
        ("Qwen3-8", r"did you mean Qwen3-8B\?"),
        ("zzzz", "known: .* and [0-9]+ more"),
        ("", "known: "),
        ("a\0b", "known: "),
        ("x" * 5_000, "known: "),
    ],
    ids=["typo", "prefix", "short", "far", "empty", "null", "long"],
)
def test_an_unknown_name_offers_the_nearest(name: str, offer: str) -> None:
    """A name that is no model and no path is one line with the nearest names."""
    with pytest.raises(ValueError, match=f"^unknown model .*; {offer}") as caught:
        llm(name)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 700


def test_a_path_is_read(tmp_path: Path) -> None:
    """What exists, or ends in .json, is a config.json; a directory is refused with its name."""
    config = {
        "model_type": "opt",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 256,
        "vocab_size": 100,
        "max_position_embeddings": 32,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert llm(str(path)).learned_positions == 34
    with pytest.raises(ValueError, match="is a directory; name "):
        llm(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such file"):
        llm("nowhere.json")
