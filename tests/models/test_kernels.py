"""The laws of single kernels: physical limits, tiles, corrections."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models.corrections import Correction
from splitwiser.models.gpu import gpu
from splitwiser.models.kernels import KernelModel, roofline, saturation
from splitwiser.models.profile import PARAMETERS, Profile, built_in_profiles, profile_for
from splitwiser.models.work import prompt_pairs

A100 = gpu("a100-80gb")
PLAIN = profile_for("l4")
SIZES = st.integers(1, 20_000)
SHARES = st.just(1.0) | st.floats(0.02, 1.0)
VALUES = st.fixed_dictionaries(
    {name: st.floats(meaning.lower, meaning.upper) for name, meaning in PARAMETERS.items()}
)
PROFILES = st.sampled_from(built_in_profiles()) | VALUES.map(
    lambda values: PLAIN.with_values(**values)
)


def corrected(**corrections: Correction) -> Profile:
    """Return the data sheet's profile with corrections."""
    return replace(PLAIN, corrections=corrections)


def constant(factor: float, shape: tuple[float, ...], axes: int = 1) -> Correction:
    """Return a correction by one factor, measured for one shape."""
    return Correction((shape,), ((1.0, 1e6),) * axes, ((factor,) * 2**axes,))


@given(SIZES, SIZES, SIZES, PROFILES, SHARES)
@settings(deadline=None)
def test_a_gemm_stays_within_the_data_sheet(
    m: int, n: int, k: int, profile: Profile, share: float
) -> None:
    """However it is corrected, a GEMM computes at most the share's peak and reads its weights."""
    model = KernelModel(A100, profile, "bfloat16", sm_share=share)
    seconds = float(model.gemm(m, n, k))
    assert seconds >= 2.0 * m * n * k / (A100.peak("bfloat16") * share) * (1 - 1e-9)
    assert seconds >= n * k * 2.0 / A100.bandwidth * (1 - 1e-9)


@given(SIZES, st.integers(0, 50_000), st.integers(1, 64), PROFILES, SHARES)
@settings(deadline=None)
def test_prompt_attention_stays_within_the_peak(
    new: int, cached: int, chunks: int, profile: Profile, share: float
) -> None:
    """Prompt attention computes every causal pair at no more than the share's peak."""
    model = KernelModel(A100, profile, "bfloat16", sm_share=share)
    pairs, kv = prompt_pairs(new, cached)
    seconds = model.prompt_attention(32, 8, 128)(chunks * pairs, chunks * new, chunks * kv)
    flops = 4.0 * 128 * 32 * chunks * pairs
    assert seconds >= flops / (A100.peak("bfloat16") * share) * (1 - 1e-9)


@given(st.integers(1, 2048), PROFILES, SHARES, st.booleans())
@settings(deadline=None)
def test_decode_attention_reads_its_cache(
    batch: int, profile: Profile, share: float, mixed: bool
) -> None:
    """A token of context takes at least its bytes over the bandwidth, and the start is no gift."""
    model = KernelModel(A100, profile, "bfloat16", sm_share=share)
    fixed, slope = model.decode_attention(batch, 32, 8, 128, mixed=mixed)
    assert slope >= 2 * 8 * 128 * 2 / A100.bandwidth
    assert fixed >= 0.0


@given(st.integers(1, 5000), st.integers(0, 3000), st.sampled_from([64, 512, 4096]))
def test_more_rows_are_never_faster(m: int, more: int, n: int) -> None:
    """Without corrections a GEMM of more rows takes at least as long."""
    few, many = KernelModel(A100, PLAIN, "bfloat16").gemm([m, m + more], n, 4096)
    assert few <= many * (1 + 1e-12)


@given(SIZES, SIZES, st.sampled_from((8, 16, 32)), SHARES)
@settings(deadline=None)
def test_a_library_with_more_tiles_is_never_slower(m: int, n: int, step: int, share: float) -> None:
    """Tiles between the powers of two are choices more; a step of 256 rows adds none."""
    many, few, none = (
        float(KernelModel(A100, profile, "bfloat16", sm_share=share).gemm(m, n, 4096))
        for profile in (PLAIN.with_values(tile_step=s) for s in (step, 2 * step, 256))
    )
    assert many <= few * (1 + 1e-12)
    assert few <= none * (1 + 1e-12)


@given(st.floats(0.02, 1.0), st.floats(0.02, 1.0), st.floats(0.0, 1.0))
def test_fewer_sms_draw_more_each_and_less_together(a: float, b: float, relief: float) -> None:
    """Of the L2 an SM draws more where fewer run, and yet more SMs never draw less."""
    low, high = sorted((a, b))
    profile = PLAIN.with_values(tile_relief=relief)
    few, many = (
        KernelModel(A100, profile, "bfloat16", sm_share=share).sm_traffic for share in (low, high)
    )
    assert few >= many * (1 - 1e-12)
    assert few * low <= many * high * (1 + 1e-12)
    rigid = PLAIN.with_values(tile_relief=0.0)
    alone = KernelModel(A100, rigid, "bfloat16", sm_share=low).sm_traffic
    assert few > alone or relief * (1.0 - low) < 1e-9  # less is lost in rounding


def test_tiles_past_a_full_wave_take_another() -> None:
    """Tiles that fill the SMs once run at the peak; one row more takes a wave, if of smaller tiles."""
    profile = PLAIN.with_values(
        gemm_efficiency=1.0, tile_overhead=0.0, gemm_start=0.0, tile_traffic=64.0, sharpness=8.0
    )
    model = KernelModel(A100, profile, "bfloat16")
    rows, n, k = 256.0 * 12, 128.0 * 9, 16_384.0
    full, over = model.gemm([rows, rows + 1], n, k)
    assert full == pytest.approx(2 * rows * n * k / A100.peak("bfloat16"), rel=0.02)
    assert over > 1.04 * full


def test_a_small_grid_does_not_fill_the_device() -> None:
    """A tile on every SM takes as long as one tile, and two on one of them twice as long."""
    profile = PLAIN.with_values(gemm_efficiency=0.01, gemm_start=0.0, tile_overhead=0.0)
    model = KernelModel(A100, profile, "bfloat16")
    one, all_sms, more = model.gemm([32, 32, 32], [64, 64 * 108, 64 * 109], 32)
    assert all_sms == pytest.approx(one, rel=0.5)
    assert more > 1.8 * one


@given(st.integers(1, 64), st.integers(1, 3000), st.integers(0, 3000))
def test_equal_chunks_are_recognised_by_their_sums(chunks: int, new: int, cached: int) -> None:
    """The sums over equal chunks stand for them: n chunks take n times the arithmetic of one."""
    profile = PLAIN.with_values(attention_start=0.0, sharpness=8.0)
    model = KernelModel(replace(A100, sms=1), profile, "bfloat16")
    attention = model.prompt_attention(32, 32, 128)
    pairs, kv = prompt_pairs(new, cached)
    together = attention(chunks * pairs, float(chunks * new), chunks * kv)
    assert together == pytest.approx(chunks * attention(pairs, float(new), kv), rel=0.05)


@given(st.floats(0.5, 3.0), st.integers(1, 1000))
def test_a_correction_holds_at_its_shape(factor: float, m: int) -> None:
    """A shape that was measured takes its factor, wherever the limits let it."""
    profile = corrected(gemm=constant(factor, (1000, 1000)))
    plain = KernelModel(A100, PLAIN, "bfloat16").gemm(m, 1000, 1000)
    model = KernelModel(A100, profile, "bfloat16")
    assert model.gemm(m, 1000, 1000) == pytest.approx(factor * plain, rel=1e-6)


@given(st.lists(st.integers(1, 8192), min_size=1, max_size=8), st.integers(64, 9000))
@settings(max_examples=30, deadline=None)
def test_a_shape_is_priced_alike_alone_and_among_others(rows: list[int], n: int) -> None:
    """GEMMs of one shape take as long as each among GEMMs of several, corrections included."""
    model = KernelModel(gpu("h200"), profile_for("h200"), "bfloat16")
    one = model.gemm(rows, n, 4096)
    several = model.gemm([*rows, 16], [n] * len(rows) + [300], 4096)
    assert one == pytest.approx(several[:-1], rel=1e-12)


def test_a_correction_fades_far_from_its_shape() -> None:
    """Nearer shapes take more of a correction, and far ones none."""
    model = KernelModel(A100, corrected(gemm=constant(2.0, (4096, 4096))), "bfloat16")
    plain = KernelModel(A100, PLAIN, "bfloat16")
    ratios = [
        float(model.gemm(64, n, 4096) / plain.gemm(64, n, 4096))
        for n in (4096, 5120, 8192, 16_384, 2_000_000)
    ]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] == pytest.approx(2.0)
    assert ratios[-1] == pytest.approx(1.0, abs=0.01)


def test_between_sizes_a_correction_is_linear_in_the_logarithms() -> None:
    """Halfway between two measured sizes, the factor is their geometric mean."""
    grid = Correction(((32, 8, 128),), ((16, 1024), (1, 64)), ((1.0, 4.0, 1.0, 4.0),))
    model = KernelModel(A100, corrected(prompt_attention=grid), "bfloat16")
    surface = model.surface("prompt_attention", (32, 8, 128))
    assert surface is not None
    assert surface.at(128, 8) == pytest.approx(2.0)
    assert surface.at(1, 1e9) == pytest.approx(4.0)
    line = Correction(((),), ((1, 100),), ((1.0, 9.0),))
    elementwise = KernelModel(A100, corrected(elementwise=line), "bfloat16")
    surface = elementwise.surface("elementwise", ())
    assert surface is not None
    np.testing.assert_allclose(surface.along([1, 10, 100, 1e6]), [1, 3, 9, 9])


def test_a_correction_of_all_sms_fades_on_a_share() -> None:
    """What was measured on the whole device holds there, and next to nothing of it on a half."""
    plain, slower = PLAIN, corrected(gemm=constant(1.5, (4096.0, 4096.0)))

    def factor(share: float) -> float:
        """How much the correction lengthens a GEMM on a share."""
        first, second = (KernelModel(A100, p, "bfloat16", sm_share=share) for p in (slower, plain))
        return float(first.gemm(512, 4096, 4096) / second.gemm(512, 4096, 4096))

    assert factor(1.0) == pytest.approx(1.5, rel=0.01)
    assert 1.0 < factor(0.9) < 1.25
    assert factor(0.5) == pytest.approx(1.0, abs=0.01)


def test_a_mixed_step_may_slow_decoding() -> None:
    """`mixed_decode` and the mixed corrections hold only in steps with prompts."""
    profile = replace(
        PLAIN.with_values(mixed_decode=2.0),
        corrections={"mixed_slope": constant(1.5, (32, 8, 128))},
    )
    model = KernelModel(A100, profile, "bfloat16")
    slope = model.decode_attention(8, 32, 8, 128)[1]
    assert model.decode_attention(8, 32, 8, 128, mixed=True)[1] == pytest.approx(3.0 * slope)


def test_whole_device_grids_pay_for_their_second_wave() -> None:
    """On a part s of the SMs as a green context a grid of several waves takes s `second_wave` longer."""
    profile = PLAIN.with_values(second_wave=0.5, gemm_start=0.0)
    mps, green = (
        KernelModel(A100, profile, "bfloat16", sm_share=0.5, whole_device_grids=grids)
        for grids in (False, True)
    )
    assert green.gemm(8192, 8192, 8192) == pytest.approx(
        1.25 * mps.gemm(8192, 8192, 8192), rel=0.02
    )
    assert green.gemm(1, 64, 4096) == mps.gemm(1, 64, 4096)


@given(st.floats(0, 1e3), st.floats(0, 1e3), st.floats(1, 8))
def test_roofline_lies_between_the_larger_and_the_sum(a: float, b: float, p: float) -> None:
    """A p-norm is at least its larger term and at most the sum."""
    assert max(a, b) <= roofline(a, b, p) <= (a + b) * (1 + 1e-12)


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 10), st.floats(1, 64))
def test_saturation_rises_to_one(a: float, b: float, knee: float, bend: float) -> None:
    """Throughput rises with the SMs, is 1 on all of them, and never less than their share."""
    low, high = sorted((a, b))
    assert saturation(low, knee, bend) <= saturation(high, knee, bend) * (1 + 1e-9)
    assert saturation(1.0, knee, bend) == 1.0
    assert low * (1 - 1e-9) <= saturation(low, knee, bend) <= 1.0 + 1e-9
