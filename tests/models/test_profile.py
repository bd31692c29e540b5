"""Profiles: their files, their bounds, and which one a GPU gets."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models.gpu import gpus
from splitwiser.models.profile import (
    BUILT_IN,
    PARAMETERS,
    Profile,
    built_in_profiles,
    check_parameter,
    load_profile,
    parse_profile,
    profile_for,
)

DOCUMENT = json.loads((BUILT_IN / "h200.json").read_text())


def changed(**keys: Any) -> dict[str, Any]:
    """Return a valid document with some keys replaced."""
    return copy.deepcopy(DOCUMENT) | keys


def with_entry(name: str, entry: Any) -> dict[str, Any]:
    """Return a valid document with one parameter replaced."""
    document = changed()
    document["parameters"][name] = entry
    return document


def corrected(kind: str = "gemm", **keys: Any) -> dict[str, Any]:
    """Return a document whose correction has some keys replaced."""
    entry = {"shapes": [[4096, 4096]], "axes": [[1, 2]], "factors": [[1.0, 1.1]]} | keys
    return changed(corrections={kind: entry})


def test_a_correction_is_read() -> None:
    """What the faulty documents below are changed from is no fault."""
    assert parse_profile(corrected(), "p.json").corrections["gemm"].factors == ((1.0, 1.1),)


@pytest.mark.parametrize("name", [sheet.name for sheet in gpus()])
def test_every_gpu_has_a_profile_that_says_what_it_is(name: str) -> None:
    """Six GPUs have fits with their origin; the others have assumptions and say so."""
    profile = profile_for(name)
    assert profile.gpu == name
    assert set(profile.parameters) == set(PARAMETERS)
    assert all(parameter.source for parameter in profile.parameters.values())
    fitted = {"a10", "a100-80gb", "h100-sxm", "h200", "l40s", "rtx-pro-6000"}
    assert profile.kind == ("fitted" if name in fitted else "data sheet")
    if profile.kind == "fitted":
        assert {"device", "points", "command"} <= set(profile.provenance)
        assert profile.residuals
        assert any(parameter.stderr for parameter in profile.parameters.values())
    else:
        assert not any(parameter.stderr for parameter in profile.parameters.values())
        assert "borrowed" in profile.parameters["wait_memory"].source


def test_data_sheets_borrow_the_sharing_parameters_of_the_fit() -> None:
    """What a data sheet calls borrowed is the H200's value to three digits, fits of kernels too."""
    fit, sheet = profile_for("h200"), profile_for("l4")
    borrowed = [name for name, p in sheet.parameters.items() if p.source.startswith("borrowed")]
    assert {"quantum", "wait_compute", "passed", "power_compute", "kv_knee"} <= set(borrowed)
    for name in borrowed:
        assert sheet.value(name) == pytest.approx(fit.value(name), rel=5e-3)


def test_some_gpus_have_parameters_of_their_own() -> None:
    """The A100's GEMMs are those of its published tables, not of the common default."""
    assert profile_for("a100-40gb").value("gemm_efficiency") == 0.82
    assert profile_for("l4").value("gemm_efficiency") == 0.62


def test_an_unknown_gpu_gets_no_profile() -> None:
    """A profile is never made up for a device without a data sheet."""
    with pytest.raises(ValueError, match="h200"):
        profile_for("h20")


@pytest.mark.parametrize("profile", built_in_profiles(), ids=lambda profile: profile.name)
def test_saving_and_loading_gives_the_same_profile(profile: Profile, tmp_path: Path) -> None:
    """A profile survives its file."""
    profile.save(tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == profile


def test_values_can_be_replaced_within_their_bounds() -> None:
    """`with_values` changes what it names, says who did, and leaves the original."""
    profile = profile_for("l4")
    other = profile.with_values(step_overhead=0.004)
    assert other.value("step_overhead") == 0.004
    assert other.parameters["step_overhead"].source == "set by the caller"
    assert profile.value("step_overhead") != 0.004
    with pytest.raises(ValueError, match=r"gemm_efficiency = 1\.5 is outside"):
        profile.with_values(gemm_efficiency=1.5)
    with pytest.raises(ValueError, match="step_overhead"):
        profile.with_values(step_overhad=0.001)
    with pytest.raises(ValueError, match="kv_efficiency"):
        profile.value("kv_eficiency")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (changed(version=1), "version 1 is not supported; expected 10"),
        (changed(colour="red"), "colour"),
        (changed(kind="guessed"), "kind"),
        (changed(parameters={}), "parameters.gemm_efficiency is missing"),
        (with_entry("speed", {"value": 1.0, "source": "-"}), "unknown profile parameter 'speed'"),
        (with_entry("sharpness", {"value": 99.0, "source": "-"}), "sharpness = 99.0 is outside"),
        (with_entry("sharpness", {"value": "3", "source": "-"}), "parameters.sharpness.value"),
        (with_entry("sharpness", {"value": 3.0}), "parameters.sharpness.source"),
        (with_entry("switch", {"value": 1e-5, "stderr": -1.0, "source": "-"}), "switch.stderr"),
        ([], "the document"),
        ({}, "version"),
        (corrected(kind="gem"), "unknown kind of correction 'gem'.*gemm"),
        (corrected(axes=[[1, 2], [1]]), r"corrections: gemm.axes must be those of rows"),
        (corrected(factors=[["1", 1.0]]), r"corrections.gemm.factors.0.0"),
        (corrected(shapes=[[4096, 4096, 128]]), r"gemm.shapes must each be \[n, k\]"),
        (corrected(axes=[[2, 1]]), r"corrections.gemm: .*axes.0 must hold .* ascending order"),
        (corrected(axes=[[0, 1]]), r"axes.0 must hold positive numbers"),
        (corrected(axes=[[]]), r"axes.0 must hold positive numbers"),
        (corrected(factors=[[1.0]]), r"corrections.gemm: .*factors.0 has 1 values; .* need 2"),
        (corrected(factors=[]), "0 factors for 1 shapes"),
        (corrected(factors=[[1.0, 0.0]]), r"factors.0 must lie in \[0.01, 100\]"),
        (corrected(factors=[[1.0, "x"]]), r"corrections.gemm.factors.0.1"),
        (corrected(shapes=[[4096, -1]]), "shapes.0 must hold positive sizes"),
        (corrected(shapes=[], factors=[]), "corrections.gemm.shapes"),
    ],
)
def test_a_faulty_document_is_refused_in_one_line(document: Any, message: str) -> None:
    """The message names file and key."""
    with pytest.raises(ValueError, match=message) as refusal:
        parse_profile(document, "p.json")
    assert str(refusal.value).startswith("p.json")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 2.0])
def test_impossible_values_are_refused(value: float) -> None:
    """NaN, infinities and values beyond the bounds are no parameters."""
    with pytest.raises(ValueError, match="memory_efficiency"):
        check_parameter("memory_efficiency", value)


def test_files_that_are_no_profiles(tmp_path: Path) -> None:
    """A missing file, a directory, bytes and broken JSON give one line with the path."""
    with pytest.raises(FileNotFoundError, match="no profile at"):
        load_profile(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="is a directory"):
        load_profile(tmp_path)
    path = tmp_path / "p.json"
    for content in (b"\xff\xfe\x00", b"{", b"", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"p\.json") as refusal:
            load_profile(path)
        assert "\n" not in str(refusal.value)
    path.write_text(json.dumps({**DOCUMENT, "version": float("nan")}))
    with pytest.raises(ValueError, match="version"):
        load_profile(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(
    st.sampled_from([*DOCUMENT, "corrections", "extra"]), JSON, st.sampled_from([*PARAMETERS]), JSON
)
@settings(max_examples=60, deadline=None)
def test_any_document_gives_a_profile_or_one_line(
    key: str, content: Any, name: str, entry: Any
) -> None:
    """Whatever stands in the file, the reader returns a whole profile or a ValueError."""
    for document in (content, changed(**{key: content}), with_entry(name, entry)):
        try:
            profile = parse_profile(document, "p.json")
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert set(PARAMETERS) == set(profile.parameters)
