"""The counts of `models/work.py`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.models.catalogue import catalogue, llm
from splitwiser.models.work import GROUPS, Batch, experts_touched, prompt_pairs, work

MODELS = st.sampled_from(catalogue())
COUNTS = st.integers(0, 20_000)


def counted_pairs(new: int, cached: int, window: int | None) -> tuple[int, int]:
    """Count the pairs and the keys seen of a chunk, token by token."""
    pairs, seen = 0, set()
    for position in range(cached, cached + new):
        first = 0 if window is None else max(0, position + 1 - window)
        pairs += position + 1 - first
        seen.update(range(first, position + 1))
    return pairs, len(seen)


@given(st.integers(1, 60), st.integers(0, 60), st.none() | st.integers(1, 80))
def test_prompt_pairs_agrees_with_counting(new: int, cached: int, window: int | None) -> None:
    """The closed form equals a count of every causal pair and every key inside the window."""
    assert prompt_pairs(new, cached, window) == counted_pairs(new, cached, window)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 4000), st.integers(1, 4096))
def test_splitting_a_prompt_keeps_its_pairs(one: int, two: int, cached: int, window: int) -> None:
    """Two chunks of a prompt attend the same pairs as one."""
    whole = prompt_pairs(one + two, cached, window)[0]
    parts = prompt_pairs(one, cached, window)[0] + prompt_pairs(two, cached + one, window)[0]
    assert whole == pytest.approx(parts, rel=1e-12)


def test_prompt_pairs_refuses_negative_counts() -> None:
    """A chunk cannot have fewer than no tokens."""
    with pytest.raises(ValueError, match="new=-1"):
        prompt_pairs(-1, 0)


def test_flops_are_two_per_active_matrix_weight() -> None:
    """A token costs two FLOP per matrix weight that it meets (Llama-2-7B: 6.607e9 of them)."""
    groups = work(llm("meta-llama/Llama-2-7b-hf"), Batch(1, 1))
    dense = sum(groups[name].flops for name in ("projections", "mlp", "head"))
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008
    assert dense == 2 * (32 * layer + 4096 * 32000)


@given(MODELS)
def test_a_step_reads_every_matrix_weight_once(model) -> None:
    """With one token a dense model's bytes cover its active parameters, norms aside."""
    groups = work(model, Batch(1, 1, decodes=1))
    read = sum(groups[name].bytes for name in ("projections", "mlp", "head"))
    weights = model.active_parameters * model.dtype_bytes
    assert 0.98 * weights < read < 1.1 * weights


@given(MODELS, st.integers(1, 512), st.integers(1, 10**7), st.integers(2, 9))
def test_decode_attention_is_proportional_to_attended(model, n, attended, factor) -> None:
    """FLOP and bytes of the decode attention scale exactly with the KV tokens attended."""
    one = work(model, Batch(n, n, decodes=n, attended=attended))["attention_decode"]
    more = work(model, Batch(n, n, decodes=n, attended=factor * attended))["attention_decode"]
    assert more.flops == pytest.approx(factor * one.flops, rel=1e-15)
    assert more.bytes == pytest.approx(factor * one.bytes, rel=1e-15)
    assert more.bytes == factor * attended * model.kv_bytes_per_token


@given(MODELS, COUNTS, COUNTS, COUNTS, COUNTS)
def test_no_count_is_negative_and_groups_are_complete(model, prompt, n, outputs, attended) -> None:
    """Every group is there, and no work is negative; an empty batch is no work."""
    groups = work(model, Batch(prompt + n, outputs, 0.5 * prompt, prompt, n, attended))
    assert tuple(groups) == GROUPS
    assert all(min(group) >= 0 for group in groups.values())
    assert not any(any(group) for group in work(model, Batch(0, 0)).values())


def test_a_batch_cannot_decode_more_than_its_tokens() -> None:
    """Each decoding sequence has a token in the step."""
    with pytest.raises(ValueError, match="decodes <= tokens"):
        work(llm("facebook/opt-125m"), Batch(1, 1, decodes=2))


def test_experts_touched() -> None:
    """One token touches its own experts, many touch all, and more tokens never touch fewer."""
    touched = [experts_touched(8, 2, n) for n in (0, 1, 2, 8, 1000)]
    assert touched[:2] == pytest.approx([0, 2])
    assert touched == sorted(touched)
    assert touched[-1] == pytest.approx(8)
    assert experts_touched(1, 1, 5) == 1
