"""Laws of the weights: where they lie, what fills them, and what is refused."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from splitwiser.models.catalogue import catalogue, llm
from splitwiser.validate.runtime.numerics import Numerics, numerics_of
from splitwiser.validate.runtime.weights import (
    FAMILIES,
    fill_from_folder,
    fill_random,
    hub_views,
    layout,
)

TINY = (llm("tiny-llama"), llm("tiny-opt"))
ODD = replace(TINY[1], name="odd", intermediate=250, vocab=97)  # no size a multiple of 256 bytes
DENSE = [ODD, *(model for model in catalogue() if model.family in FAMILIES)]


def filled(model, seed=0):
    flat = torch.zeros(layout(model).nbytes, dtype=torch.uint8)
    fill_random(flat, model, seed)
    return flat


def saved(model, folder, prefix="model."):
    """Random weights of *model*, written to *folder* as the hub's files have them."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    flat = filled(model)
    tensors = hub_views(layout(model).views(flat), model, prefix)
    if model.tied_embeddings:
        del tensors["lm_head.weight"]
    save_file({name: value.clone() for name, value in tensors.items()}, folder / "a.safetensors")
    return flat


def config_in(folder, **keys):
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "vocab_size": 512,
        "max_position_embeddings": 128,
    }
    (folder / "config.json").write_text(json.dumps(config | keys))
    return folder


@pytest.mark.parametrize("model", DENSE, ids=lambda model: model.name)
def test_the_layout_holds_every_parameter_once(model):
    """The tensors have as many elements as the model has parameters, and none overlaps another."""
    places = sorted(set(layout(model).places.values()))
    assert sum(prod(place.shape) for place in places) == model.parameters
    ends = [place.offset + prod(place.shape) * model.dtype_bytes for place in places]
    starts = [place.offset for place in places[1:]] + [layout(model).nbytes]
    assert all(0 <= start - end < 256 for start, end in zip(starts, ends, strict=True))
    assert all(start % 256 == 0 for start in starts)


@pytest.mark.parametrize("model", TINY, ids=lambda model: model.name)
def test_random_weights_follow_the_seed(model):
    """The same seed gives the same bytes, another seed others, and no tensor is left at zero."""
    assert torch.equal(filled(model, 1), filled(model, 1))
    assert not torch.equal(filled(model, 1), filled(model, 2))
    for name, view in layout(model).views(filled(model)).items():
        expected = 1.0 if name.endswith("norm.weight") else 0.0
        assert abs(view.mean() - expected) < 0.02
        assert 0.01 < view.std() < 0.03


def test_a_tied_head_is_the_embedding():
    """A tied head lies where the embedding lies; one of its own lies elsewhere."""
    for model in TINY:
        views = layout(model).views(filled(model))
        same = views["head.weight"].data_ptr() == views["embed.weight"].data_ptr()
        assert same is model.tied_embeddings


@pytest.mark.parametrize("prefix", ["model.decoder.", "model.", "decoder.", ""])
@pytest.mark.parametrize("model", TINY, ids=lambda model: model.name)
def test_a_folder_gives_back_what_was_saved(model, prefix, tmp_path):
    """Weights saved under the hub's names are read back bit by bit, whatever stands before them."""
    flat = saved(model, tmp_path, prefix)
    read = torch.zeros_like(flat)
    fill_from_folder(read, model, tmp_path)
    assert torch.equal(read, flat)


def test_shards_are_those_of_the_index(tmp_path):
    """Only the files that the index names are read; one that is missing is named."""
    flat = saved(TINY[0], tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    (tmp_path / "other.safetensors").write_text("nothing of the kind")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"any": "b.safetensors"}}))
    read = torch.zeros_like(flat)
    fill_from_folder(read, TINY[0], tmp_path)
    assert torch.equal(read, flat)
    index.write_text(json.dumps({"weight_map": {"any": "c.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"c\.safetensors: no such file; model"):
        fill_from_folder(read, TINY[0], tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="not an index with a weight_map"):
        fill_from_folder(read, TINY[0], tmp_path)


def test_faulty_files_are_named(tmp_path):
    """A tensor that is missing or of another shape is named, and so is a file of another kind."""
    model = TINY[0]
    with pytest.raises(FileNotFoundError, match=r"no .*safetensors file"):
        fill_from_folder(torch.zeros(0), model, tmp_path)
    saved(model, tmp_path)
    deeper, wider = replace(model, layers=3), replace(model, intermediate=200)
    flat = torch.zeros(layout(deeper).nbytes, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"model\.layers\.2\.\S+ is missing \(9 in all\)"):
        fill_from_folder(flat, deeper, tmp_path)
    with pytest.raises(ValueError, match=r"gate_proj.weight has the shape \(192, 64\); tiny-llama"):
        fill_from_folder(flat, wider, tmp_path)
    with pytest.raises(ValueError, match=r"16 elements of torch.uint8 cannot hold the weights"):
        fill_random(torch.zeros(16, dtype=torch.uint8), model, 0)
    (tmp_path / "a.safetensors").write_text("nothing of the kind")
    with pytest.raises(ValueError, match="not a safetensors file"):
        fill_from_folder(flat, model, tmp_path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", "has 8 experts; the runtime has dense models only"),
        ("microsoft/Phi-3-mini-4k-instruct", "family phi3; the runtime has opt, llama"),
    ],
)
def test_other_models_are_refused(name, why):
    """A model that the runtime does not compute is refused in one line that names it."""
    with pytest.raises(ValueError, match=f"^{name} .*{why}"):
        layout(llm(name))
    with pytest.raises(ValueError, match="is in float8_e4m3fn; the runtime has float32"):
        layout(TINY[0].with_dtype("fp8"))


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_numerics_are_those_of_the_config(tmp_path: Path):
    """The norm's epsilon and the rotary angles come from the file, under old and new names."""
    model = TINY[0]
    assert numerics_of(model, None) == Numerics(1e-6)
    assert numerics_of(TINY[1], None) == Numerics(1e-5)
    assert numerics_of(model, config_in(tmp_path)) == Numerics(1e-6)
    plain = {"rms_norm_eps": 1e-5, "rope_theta": 5e5}
    assert numerics_of(model, config_in(tmp_path, **plain)) == Numerics(1e-5, 5e5)
    expected = Numerics(1e-5, 5e5, LLAMA3)
    old = config_in(tmp_path, **plain, rope_scaling=LLAMA3)
    assert numerics_of(model, old) == expected
    new = config_in(tmp_path, rms_norm_eps=1e-5, rope_parameters=LLAMA3 | {"rope_theta": 5e5})
    assert numerics_of(model, new) == expected
    linear = config_in(tmp_path, rope_scaling={"type": "linear", "factor": 2})
    assert numerics_of(model, linear).rope_scaling == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "type 'yarn' is not supported"),
        ({"rope_scaling": {"type": ["linear"]}}, "is not supported; the runtime has default"),
        ({"rope_scaling": {"type": "linear"}}, "factor is None; a positive number is needed"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; an object is needed"),
        ({"rope_theta": -1}, "rope_theta is -1; a positive number is needed"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; the runtime has silu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
    ],
    ids=["yarn", "list", "factor", "text", "theta", "activation", "partial"],
)
def test_numerics_that_the_runtime_has_not_are_refused(keys, why, tmp_path):
    """Rotary positions or an activation of another kind are one line with the file and the key."""
    with pytest.raises(ValueError, match=why) as caught:
        numerics_of(TINY[0], config_in(tmp_path, **keys))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
