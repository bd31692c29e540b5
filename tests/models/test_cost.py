"""The cost of a step: physical limits, monotony, agreement with `work`."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models.catalogue import catalogue, llm
from splitwiser.models.cost import CostModel, StepCost
from splitwiser.models.gpu import Gpu, gpu, gpus
from splitwiser.models.kernels import KernelModel
from splitwiser.models.llm import Llm
from splitwiser.models.profile import PARAMETERS, Profile, built_in_profiles, profile_for
from splitwiser.models.step_tables import BLOCK, StepTables
from splitwiser.models.work import MIXED_LAUNCHES, Batch, coefficients, prompt_pairs, work

VALUES = st.fixed_dictionaries(
    {name: st.floats(meaning.lower, meaning.upper) for name, meaning in PARAMETERS.items()}
)
# Measured kernels are not monotone: corrections keep the laws of a data sheet and no others.
FORMULAS = st.sampled_from([p for p in built_in_profiles() if not p.corrections]) | VALUES.map(
    lambda values: profile_for("a10").with_values(**values)
)
PROFILES = FORMULAS | st.sampled_from(built_in_profiles())
SHARES = st.just(1.0) | st.floats(0.01, 1.0)
SHARINGS = st.sampled_from(("exclusive", "mps", "green_contexts"))


@st.composite
def batches(draw: st.DrawFn, window: int | None) -> Batch:
    """Draw a prefill, decode or mixed batch."""
    new, cached = draw(st.integers(0, 16_384)), draw(st.integers(0, 32_768))
    decodes = draw(st.integers(0, 1024))
    context = draw(st.integers(1, 32_768))
    attended = decodes * min(context, window or context)
    pairs, prompt_kv = prompt_pairs(new, cached, window) if new else (0.0, 0.0)
    new += decodes == 0 and new == 0
    return Batch(new + decodes, decodes + (new > 0), pairs, prompt_kv, decodes, attended)


def priced(model: CostModel, batch: Batch) -> StepCost:
    """Return the cost of *batch* at A = 0."""
    return model.step(*batch[:5])


@given(st.data(), st.sampled_from(catalogue()), st.sampled_from(gpus()), PROFILES, SHARES)
@settings(max_examples=120, deadline=None)
def test_no_step_beats_the_data_sheet(
    data: st.DataObject, model: Llm, device: Gpu, profile: Profile, share: float
) -> None:
    """No step, nor any group of it, is faster than FLOP over peak or bytes over bandwidth.

    Where measurements correct it, the bytes are those that no cache keeps between two kernels:
    weights, and the KV cache of decoding sequences.
    """
    batch = data.draw(batches(model.sliding_window))
    cost = CostModel(model, device, profile, sm_share=share)
    step = priced(cost, batch)
    by_name = work(model, batch)
    groups = by_name.values()
    peak, bandwidth = device.peak(model.dtype), device.bandwidth
    if profile.corrections:
        c = coefficients(model)
        read = {
            "projections": c.projection_weights,
            "mlp": by_name["mlp"].bytes - c.mlp_stream * batch.tokens,
            "head": c.head_weights if batch.outputs else 0.0,
            "attention_decode": by_name["attention_decode"].bytes,
        }
    else:
        read = {name: group.bytes for name, group in by_name.items()}
    limit = sum(
        max(group.flops / peak, read.get(name, 0.0) / bandwidth) for name, group in by_name.items()
    )
    gpu_seconds = step.gpu + step.gpu_per_token * batch.attended
    assert gpu_seconds >= limit * (1 - 1e-12)
    assert step.seconds(batch.attended) >= gpu_seconds
    in_peak_of_share = sum(group.flops for group in groups) / (peak * share)
    assert gpu_seconds >= in_peak_of_share * (1 - 1e-12)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_a_share_has_no_more_than_its_share_of_the_peak(share: float) -> None:
    """Even where power limits the whole device, s of the SMs give at most s of the peak."""
    profile = profile_for("h200").with_values(gemm_efficiency=1.0, compute_knee=0.01)
    cost = CostModel(llm("facebook/opt-125m"), gpu("h200"), profile, sm_share=share)
    step = cost.step(8192, 1, *prompt_pairs(8192, 0))
    assert step.gpu >= step.flops / (gpu("h200").peak("float16") * share)


@given(FORMULAS | st.just(profile_for("h200")), SHARES, st.floats(0.05, 1.0), st.integers(1, 8192))
@settings(max_examples=50, deadline=None)
def test_gemms_keep_up_no_more_than_power_sustains(
    profile: Profile, share: float, sustained: float, rows: int
) -> None:
    """However many SMs they run on, GEMMs of steps take at least their FLOP at the sustained part
    of the peak, and exactly as long as without that limit where that is longer.
    """
    device = gpu("h200")
    limited, free = (
        float(
            KernelModel(
                device, profile.with_values(sustained=part), "bfloat16", sm_share=share
            ).gemm(rows, 4096, 4096)
        )
        for part in (sustained, 1.0)
    )
    least = 2.0 * rows * 4096 * 4096 / (sustained * device.peak("bfloat16"))
    assert limited == pytest.approx(max(free, least), rel=1e-12)


@given(st.data(), st.sampled_from(catalogue()))
@settings(max_examples=50, deadline=None)
def test_a_step_counts_what_work_counts(data: st.DataObject, model: Llm) -> None:
    """FLOP, bytes and kernels of a step are the sums over `work`'s groups."""
    batch = data.draw(batches(model.sliding_window))
    demand = priced(CostModel(model, gpu("h200"), profile_for("h200")), batch).demand(
        batch.attended
    )
    groups = work(model, batch).values()
    assert demand.flops == pytest.approx(sum(group.flops for group in groups), rel=1e-9)
    assert demand.bytes == pytest.approx(sum(group.bytes for group in groups), rel=1e-9)
    assert demand.kernels == sum(group.kernels for group in groups)


@given(st.data(), st.sampled_from(gpus()), FORMULAS, st.floats(1, 4), SHARES, SHARINGS)
@settings(max_examples=50, deadline=None)
def test_more_of_the_device_is_never_slower(
    data: st.DataObject, device: Gpu, profile: Profile, factor: float, share: float, sharing: str
) -> None:
    """More bandwidth, more FLOP/s or a larger share of the SMs never lengthens a step.

    What more SMs cost is left out of the last: the L2 that each then has less of, and a second wave
    of whole-device grids.
    """
    free = profile.with_values(second_wave=0.0, tile_relief=0.0)
    model = llm("meta-llama/Meta-Llama-3-8B")
    batch = data.draw(batches(None))

    def seconds(device: Gpu, share: float, profile: Profile = profile) -> float:
        cost = CostModel(model, device, profile, sm_share=share, sharing=sharing)
        return priced(cost, batch).seconds(batch.attended)

    now = seconds(device, share) * (1 + 1e-12)
    faster = {dtype: peak * factor for dtype, peak in device.flops.items()}
    assert seconds(replace(device, bandwidth=device.bandwidth * factor), share) <= now
    assert seconds(replace(device, flops=faster), share) <= now
    now = seconds(device, share, free) * (1 + 1e-12)
    assert seconds(device, min(1.0, share * factor), free) <= now


@given(st.integers(1, 9000), st.integers(1, 500), FORMULAS)
@settings(max_examples=50, deadline=None)
def test_more_tokens_are_never_faster(tokens: int, more: int, profile: Profile) -> None:
    """A longer prompt and a larger decode batch never take less time."""
    cost = CostModel(llm("mistralai/Mixtral-8x7B-v0.1"), gpu("h200"), profile)
    short = cost.step(tokens, 1, *prompt_pairs(tokens, 0)).seconds(0)
    long = cost.step(tokens + more, 1, *prompt_pairs(tokens + more, 0)).seconds(0)
    assert short <= long * (1 + 1e-12)
    assert cost.decode(more).seconds(0) <= cost.decode(more + 1).seconds(0) * (1 + 1e-12)


@given(st.integers(1, 512), st.floats(0, 1e7), st.floats(0, 1e7))
def test_a_step_is_linear_in_attended(n: int, a: float, b: float) -> None:
    """Where kernels, not the host, bound the step, its time is linear in the tokens attended."""
    cost = CostModel(llm("facebook/opt-125m"), gpu("a10"), profile_for("a10")).decode(n)
    assert cost.host == 0.0
    middle = cost.seconds((a + b) / 2)
    assert middle == pytest.approx((cost.seconds(a) + cost.seconds(b)) / 2, rel=1e-12)
    assert cost.seconds(a) == pytest.approx(cost.demand(a).seconds, rel=1e-15)


@given(
    st.lists(st.integers(0, 3 * BLOCK), min_size=2, max_size=20),
    st.sets(st.integers(0, 3 * BLOCK), max_size=5),
    st.integers(0, 600),
    st.sampled_from(catalogue()),
    SHARES,
)
@settings(max_examples=50, deadline=None)
def test_a_step_costs_what_it_does_whatever_was_asked_before(
    rows: list[int], known: set[int], first: int, model: Llm, share: float
) -> None:
    """Rows priced with the block that they lie in, alone, again, or beforehand with any others take
    the same seconds.
    """
    profile = profile_for("h200")
    kernels = KernelModel(gpu("h200"), profile, model.dtype, sm_share=share)
    tables = StepTables(model, profile, kernels)
    beforehand = [first * BLOCK + row for row in known]
    tables.prepare(beforehand, beforehand)
    for row in (first * BLOCK + row for row in rows):
        fresh = StepTables(model, profile, kernels)
        assert tables.dense(row) == fresh.dense(row)
        assert tables.head(row) == fresh.head(row)


@given(st.sets(st.integers(1, 4096), min_size=1, max_size=8), st.sampled_from(catalogue()))
@settings(max_examples=25, deadline=None)
def test_what_was_prepared_is_not_worked_out_again(rows: set[int], model: Llm) -> None:
    """Steps that were priced beforehand ask the kernels nothing more."""
    kernels = KernelModel(gpu("h200"), profile_for("h200"), model.dtype)
    tables = StepTables(model, profile_for("h200"), kernels)
    tables.prepare(rows, [row + 0.5 for row in rows])
    del tables.kernels
    for row in rows:
        assert tables.dense(row)[0] > 0.0
        assert tables.head(row + 1) > 0.0


def test_graphs_remove_the_host_floor() -> None:
    """Eager steps wait for the host, graphed decode steps do not, prefill does unless graphed."""
    model, device, profile = llm("facebook/opt-125m"), gpu("h200"), profile_for("h200")
    graphed = CostModel(model, device, profile)
    eager = CostModel(model, device, profile, eager=True)
    assert graphed.decode(1).host == 0.0
    assert eager.decode(1).host == eager.decode(1).kernels * profile.value("launch_host")
    assert eager.decode(1).seconds(512) > graphed.decode(1).seconds(512)
    prompt = (64, 1, *prompt_pairs(64, 0))
    assert graphed.step(*prompt).host > 0.0
    piecewise = CostModel(model, device, replace(profile, graphed_prefill=True))
    assert piecewise.step(*prompt).host == 0.0


def test_green_contexts_pay_for_whole_device_grids() -> None:
    """On a part of the SMs a long prompt takes longer in a green context than under MPS by what
    second waves cost, and on all SMs no longer.
    """
    model, profile = llm("meta-llama/Llama-3.1-8B"), profile_for("a10").with_values(shared_gap=0.0)

    def gpu_seconds(sharing: str, share: float, second_wave: float) -> float:
        each = profile.with_values(second_wave=second_wave)
        cost = CostModel(model, gpu("h200"), each, sm_share=share, sharing=sharing)
        return cost.step(4096, 1, *prompt_pairs(4096, 0)).gpu

    assert gpu_seconds("green_contexts", 0.5, 0.5) > 1.1 * gpu_seconds("mps", 0.5, 0.5)
    assert gpu_seconds("green_contexts", 0.5, 0.0) == gpu_seconds("mps", 0.5, 0.0)
    assert gpu_seconds("green_contexts", 1.0, 0.5) == gpu_seconds("mps", 1.0, 0.5)


@pytest.mark.parametrize("sharing", ["mps", "streams"])
@given(st.data(), PROFILES, SHARES)
@settings(max_examples=40, deadline=None)
def test_kernels_follow_each_other_less_closely_where_others_may_run(
    sharing: str, data: st.DataObject, profile: Profile, share: float
) -> None:
    """Alone under MPS and in streams a step that its host does not bind takes `shared_gap` longer
    for each kernel, and asks for the same time of kernels.
    """
    model, batch = llm("meta-llama/Llama-3.1-8B"), data.draw(batches(None))
    plain, loose = (
        priced(CostModel(model, gpu("h200"), profile, sm_share=share, sharing=each), batch)
        for each in ("time_slice", sharing)
    )
    before, after = (cost._replace(host=0.0).demand(batch.attended) for cost in (plain, loose))
    longer = plain.kernels * profile.value("shared_gap")
    assert after.seconds - before.seconds == pytest.approx(
        longer, rel=1e-6, abs=1e-9 * after.seconds
    )
    assert after.seconds == pytest.approx(loose._replace(host=0.0).seconds(batch.attended))
    assert after.busy == before.busy


def test_both_phases_in_one_eager_step_take_the_host_longer() -> None:
    """Launched kernel by kernel, decodes beside prompts add `MIXED_LAUNCHES` to each layer's."""
    model, device, profile = llm("meta-llama/Llama-3.1-8B"), gpu("h200"), profile_for("h200")
    cost, launch = CostModel(model, device, profile), profile.value("launch_host")
    prompt = cost.step(300, 1, *prompt_pairs(300, 0))
    both = cost.step(364, 65, *prompt_pairs(300, 0), 64)
    assert prompt.host == pytest.approx(prompt.kernels * launch)
    further = both.kernels - prompt.kernels + MIXED_LAUNCHES * model.layers
    assert both.host - prompt.host == pytest.approx(further * launch)
    graphed = CostModel(model, device, replace(profile, graphed_prefill=True))
    assert graphed.step(364, 65, *prompt_pairs(300, 0), 64).host == 0.0


def test_decode_is_the_pure_decode_step() -> None:
    """`decode(n)` is `step(n, n, decodes=n)`, and is kept."""
    cost = CostModel(llm("facebook/opt-125m"), gpu("a10"), profile_for("a10"))
    assert cost.decode(7) == cost.step(7, 7, decodes=7)
    assert cost.decode(7) is cost.decode(7)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_a_share_outside_the_device_is_refused(share: float) -> None:
    """A process cannot have none of the SMs or more than all."""
    with pytest.raises(ValueError, match=r"sm_share .* must lie in \(0, 1\]"):
        CostModel(llm("facebook/opt-125m"), gpu("a10"), profile_for("a10"), sm_share=share)


def test_a_dtype_without_units_is_refused() -> None:
    """A GPU whose data sheet has no peak for the model's dtype says so."""
    model = llm("facebook/opt-125m").with_dtype("float8_e4m3fn")
    with pytest.raises(ValueError, match="a10"):
        CostModel(model, gpu("a10"), profile_for("a10"))


def test_llama_2_on_a10_is_in_the_measured_range() -> None:
    """The data-sheet profile is within 25 % of vLLM 0.3's TTFT and TPOT on an A10."""
    cost = CostModel(llm("meta-llama/Llama-2-7b-hf"), gpu("a10"), profile_for("a10"))
    for tokens, measured in ((128, 0.0425), (512, 0.117), (2048, 0.463)):
        predicted = cost.step(tokens, 1, *prompt_pairs(tokens, 0)).seconds(0)
        assert predicted == pytest.approx(measured, rel=0.25)
    assert cost.decode(1).seconds(0) == pytest.approx(0.0298, rel=0.15)
    assert cost.decode(1).gpu_per_token == pytest.approx(1.1e-6, rel=0.15)


@pytest.mark.parametrize("device", ["h100-sxm", "h200", "a100-80gb", "l40s"])
def test_a_tuned_engine_reaches_a_believable_part_of_the_ideal(device: str) -> None:
    """Data-sheet predictions of saturated serving lie at 0.55 to 0.85 of the additive ideal."""
    model, sheet = llm("meta-llama/Llama-3.1-8B"), gpu(device)
    profile = replace(profile_for("l4"), gpu=device)
    cost = CostModel(model, sheet, profile)
    n, prompt, output = 128, 1024, 256
    step = cost.step(8 * prompt, 8, *(8 * x for x in prompt_pairs(prompt, 0)))
    decode = cost.decode(n).demand(n * (prompt + output / 2))
    ideal = n / 8 * step.demand(0).flops / sheet.peak(model.dtype)
    ideal += output * decode.bytes / sheet.bandwidth
    predicted = n / 8 * step.seconds(0) + output * decode.seconds
    assert 0.55 < ideal / predicted < 0.85
