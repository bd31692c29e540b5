"""What fits on a device."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models.catalogue import catalogue, llm
from splitwiser.models.gpu import gpu, gpus
from splitwiser.models.memory import DoesNotFit, MemoryPlan, plan_memory
from splitwiser.models.profile import profile_for

LLAMA, OPT, A10 = llm("meta-llama/Llama-2-7b-hf"), llm("facebook/opt-125m"), gpu("a10")


def plan(model=OPT, device=A10, **options: Any) -> MemoryPlan:
    """Plan one process with vLLM's defaults, or with *options*."""
    arguments: dict[str, Any] = {"processes": 1, "weight_copies": 1}
    arguments |= {"prefill_tokens": [4096], "max_num_seqs": [256]} | options
    return plan_memory(model, device, profile_for(device.name), **arguments)


def test_llama_2_on_a10_has_the_blocks_that_vllm_found() -> None:
    """Llama-2-7B fp16 on an A10 at 0.9: vLLM 0.3 had 817 blocks of 16."""
    assert plan(LLAMA.with_dtype("float16")).blocks == pytest.approx(817, rel=0.03)


@given(
    st.sampled_from(catalogue()),
    st.sampled_from(gpus()),
    st.integers(1, 4),
    st.floats(0.05, 1.0),
    st.integers(1, 4),
)
@settings(deadline=None)
def test_the_sum_is_what_is_usable(model, device, processes, utilisation, pools) -> None:
    """The terms fill the usable memory to within a block per pool, or the plan is refused."""
    try:
        found = plan(
            model,
            device,
            processes=processes,
            prefill_tokens=[2048] * processes,
            max_num_seqs=[64] * processes,
            utilisation=utilisation,
            pools=pools,
        )
    except DoesNotFit as error:
        assert "\n" not in str(error)
        assert "GiB usable" in str(error)
        return
    used = found.weights + found.contexts + found.activations + found.kv
    assert found.usable == device.memory * utilisation
    assert used <= found.usable < used + pools * found.block_bytes * 1.000001
    assert found.kv == found.blocks * found.block_bytes * pools
    assert found.blocks >= 1


def test_another_process_costs_a_context_and_its_activations() -> None:
    """Sharing the weights leaves only context and activations of a second process to pay."""
    one = plan()
    two = plan(processes=2, prefill_tokens=[4096] * 2, max_num_seqs=[256] * 2)
    copies = plan(processes=2, weight_copies=2, prefill_tokens=[4096] * 2, max_num_seqs=[256] * 2)
    assert two.weights == one.weights
    assert copies.weights == 2 * one.weights
    assert two.contexts == 2 * one.contexts
    assert two.activations == 2 * one.activations
    assert one.blocks > two.blocks > copies.blocks


def test_a_refusal_shows_the_sum() -> None:
    """The message of a deployment that does not fit names every term."""
    with pytest.raises(DoesNotFit) as refusal:
        plan(llm("meta-llama/Llama-3.1-70B"))
    message = str(refusal.value)
    for word in ("weights", "contexts", "activations", "KV block", "usable", "a10"):
        assert word in message


def test_a_number_of_blocks_is_taken_if_it_fits() -> None:
    """`num_gpu_blocks` sets the pool, and is refused where memory lacks."""
    assert plan(num_gpu_blocks=100).blocks == 100
    with pytest.raises(DoesNotFit, match="1000000 KV blocks"):
        plan(num_gpu_blocks=1_000_000)


def test_lines_write_the_sum_out() -> None:
    """The lines end with what is usable, and the pools appear."""
    lines = plan(pools=2).lines()
    assert [line.split()[0] for line in lines[:3]] == ["weights", "contexts", "activations"]
    assert "2 pools of" in lines[3]
    assert lines[-1].startswith("usable")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"utilisation": 0.0}, r"gpu_memory_utilization \(0.0\) must lie in \(0, 1\]"),
        ({"utilisation": 1.1}, r"gpu_memory_utilization \(1.1\)"),
        ({"utilisation": float("nan")}, "gpu_memory_utilization"),
        ({"block_size": 0}, r"block_size \(0\) must be at least 1"),
        ({"pools": 0}, "pools"),
        ({"processes": 2}, "one entry for each of 2 processes"),
        ({"num_gpu_blocks": 0}, "num_gpu_blocks"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    """An impossible argument is named with its value."""
    with pytest.raises(ValueError, match=message):
        plan(**options)
