"""Whole runs: real processes on the CPU, held against a plain loop of one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from splitwiser.models.catalogue import llm as llm_named
from splitwiser.models.gpu import gpu
from splitwiser.models.llm import Llm
from splitwiser.sim.deployment import (
    PRESETS,
    Deployment,
    Workers,
    chunked,
    continuous,
    replicas,
    sequential,
    split,
)
from splitwiser.sim.simulate import simulate
from splitwiser.traces.trace import Trace
from splitwiser.validate import execute
from splitwiser.validate.runtime.execute import prompt_tokens
from splitwiser.validate.runtime.kernels import kernels_for
from splitwiser.validate.runtime.numerics import numerics_of
from splitwiser.validate.runtime.owner import pool_shape
from splitwiser.validate.runtime.transformer import ModelBatch, Span, Transformer
from splitwiser.validate.runtime.weights import fill_random, layout

LLAMA, OPT = "tiny-llama", "tiny-opt"
CPU = torch.device("cpu")


def traffic(requests: int = 12, seed: int = 0) -> Trace:
    """Prompts of 5 to 60 tokens and outputs of 1 to 20, some of them at once."""
    draw = np.random.default_rng(seed)
    return Trace(
        np.sort(draw.uniform(0, 0.2, requests).round(2)),
        draw.integers(5, 60, requests),
        draw.integers(1, 20, requests),
    )


def tight() -> Trace:
    """Requests that come at once, and whose sequences need twice the blocks of their prompts."""
    draw = np.random.default_rng(1)
    return Trace(np.zeros(8), draw.integers(26, 32, 8), draw.integers(16, 21, 8))


def crowd() -> Trace:
    """Many short requests at once, so that threads ask for blocks at every moment."""
    draw = np.random.default_rng(2)
    return Trace(np.zeros(150), draw.integers(1, 20, 150), draw.integers(2, 20, 150))


@cache
def expected(model: str, trace_of: Callable[[], Trace] = traffic) -> tuple[tuple[int, ...], ...]:
    """Greedy tokens of every request, each token from a forward pass over all before it."""
    llm = llm_named(model)
    flat = torch.empty(layout(llm).nbytes, dtype=torch.uint8)
    fill_random(flat, llm, 0)
    views = layout(llm).views(flat)
    plain = Transformer(llm, numerics_of(llm, None), views, kernels_for(CPU))
    trace = trace_of()
    return tuple(
        tuple(_greedy(plain, llm, prompt_tokens(trace, llm, 0, request).tolist(), int(count)))
        for request, count in enumerate(trace.output_tokens)
    )


def _greedy(model: Transformer, llm: Llm, tokens: list[int], count: int) -> list[int]:
    given: list[int] = []
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.tensor(tokens + given)
            size = len(ids)
            kv = torch.zeros(pool_shape(llm, 1, 16))
            nothing = torch.zeros(0, dtype=torch.int64)
            batch = ModelBatch(
                ids,
                torch.arange(size),
                torch.full((size,), -1),
                0,
                nothing,
                torch.zeros((1, 1), dtype=torch.int32),
                (Span(0, size, 0, None),),
                torch.tensor([size - 1]),
            )
            given.append(int(model.next_tokens(batch, kv)))
    return given


def processes(prefill: int, decode: int) -> Deployment:
    """A split over so many processes."""
    return Deployment(
        f"split {prefill}+{decode}",
        (Workers("prefill", prefill), Workers("decode", decode)),
        sharing="time_slice",
    )


def threads(sharing: str) -> Deployment:
    """A split whose workers are threads of one process."""
    part = 50.0 if sharing == "green_contexts" else None
    return replace(
        split(),
        name=f"split {sharing}",
        workers=(Workers("prefill", sm_percent=part), Workers("decode", sm_percent=part)),
        sharing=sharing,
    )


DEPLOYMENTS: dict[str, Callable[[], Deployment]] = {
    "sequential": lambda: sequential().override(max_num_seqs=4),
    "continuous": continuous,
    "chunked": lambda: chunked().override(max_num_batched_tokens=24),
    "split": split,
    "replicas": replicas,
    "split 1+2": lambda: processes(1, 2),
    "split 2+1": lambda: processes(2, 1),
    "split 3+3": lambda: processes(3, 3),
    "streams": lambda: threads("streams"),
    "green contexts": lambda: threads("green_contexts"),
    "own pools": lambda: replace(processes(1, 2), kv="separate"),
    "own weights": lambda: replace(replicas(), weights="per_process", routing="shared_queue"),
    # Seven blocks hold three prompts of `tight`, and one sequence with its output.
    "continuous, preempted": lambda: continuous().override(num_gpu_blocks=7),
    "continuous, swapped": lambda: replace(
        continuous().override(num_gpu_blocks=7), preemption="swap"
    ),
    "chunked, preempted": lambda: chunked().override(num_gpu_blocks=7, max_num_batched_tokens=24),
    "sequential, preempted": lambda: sequential().override(num_gpu_blocks=7),
    "split, preempted": lambda: replace(
        split().override(num_gpu_blocks=7), order="shortest_prompt"
    ),
    "split, swapped": lambda: replace(split().override(num_gpu_blocks=7), preemption="swap"),
}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_the_tokens_are_those_of_one_plain_process(name: str) -> None:
    """Whoever computes what, in which batch and over which blocks: greedy tokens are the same."""
    short = name.endswith(("preempted", "swapped"))
    trace_of = tight if short else traffic
    trace = trace_of()
    tokens: dict[int, list[int]] = {}
    result = execute(trace, DEPLOYMENTS[name](), llm_named(LLAMA), "cpu", warmup=2, tokens=tokens)
    assert result.completed.all()
    wanted = expected(LLAMA, trace_of)
    assert {r: tuple(given) for r, given in tokens.items()} == dict(enumerate(wanted))
    assert len(set(sum(wanted, ()))) > 20  # else anything would do
    assert (result.preemptions.sum() > 0) == short


def test_threads_never_share_a_block() -> None:
    """Workers in one process allocate and free at the same time, and every block has one owner."""
    tokens: dict[int, list[int]] = {}
    crowded = threads("streams").override(num_gpu_blocks=40, block_size=2)
    result = execute(crowd(), crowded, llm_named(LLAMA), "cpu", warmup=0, tokens=tokens)
    assert result.completed.all()
    wanted = dict(enumerate(expected(LLAMA, crowd)))
    assert {r: tuple(given) for r, given in tokens.items()} == wanted


@pytest.mark.parametrize("name", ["split", "chunked"])
def test_another_family(name: str) -> None:
    """OPT goes the same way as Llama."""
    tokens: dict[int, list[int]] = {}
    execute(traffic(), PRESETS[name](), llm_named(OPT), "cpu", warmup=0, tokens=tokens)
    assert {r: tuple(given) for r, given in tokens.items()} == dict(enumerate(expected(OPT)))


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_the_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """A folder of the hub's weights gives the tokens that `generate` gives."""
    transformers = pytest.importorskip("transformers")
    from splitwiser.models.config import read_config

    torch.manual_seed(0)
    if family == "opt":
        config = transformers.OPTConfig(
            vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            ffn_dim=64, max_position_embeddings=128, word_embed_proj_dim=32, torch_dtype="float32",
        )  # fmt: skip
    else:
        config = transformers.LlamaConfig(
            vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=64, max_position_embeddings=128,
            tie_word_embeddings=False, torch_dtype="float32",
        )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():  # the usual start is so small that tokens repeat
        parameter.data.mul_(5.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(tmp_path)
    llm = read_config(tmp_path / "config.json").with_dtype("float32")
    trace = traffic(6)
    tokens: dict[int, list[int]] = {}
    execute(trace, split(), llm, "cpu", weights=tmp_path, warmup=0, tokens=tokens)
    for request, count in enumerate(trace.output_tokens):
        prompt = torch.from_numpy(prompt_tokens(trace, llm, 0, request)).long()[None]
        whole = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=int(count),
            min_new_tokens=int(count), do_sample=False,
        )  # fmt: skip
        assert tokens[request] == whole[0, prompt.shape[1] :].tolist()


def test_a_run_says_what_it_was() -> None:
    """The result names device, software, memory and overheads, and its times are causal."""
    trace = traffic()
    result = execute(trace, split(), llm_named(LLAMA), "cpu", warmup=3)
    meta = result.meta
    assert meta["backend"] == "splitwiser-run"
    assert meta["warmup"] == 3
    assert meta["provenance"]["torch"] == torch.__version__
    assert len(meta["granted_sms"]) == 2
    assert (result.scheduled >= result.arrival).all()
    assert (result.first_token >= result.scheduled).all()
    assert (result.finished >= result.first_token).all()
    assert meta["overheads"]["handover_ms"]["p50"] >= 0
    for request in range(len(trace)):
        times = result.token_times(request)
        assert len(times) == trace.output_tokens[request]
        assert (np.diff(times) >= 0).all()


def test_closed_loop_and_rejections() -> None:
    """At most so many requests are in flight, and what can never be served is refused at once."""
    trace = replace(
        traffic(), max_concurrency=2, prompt_tokens=np.r_[20_000, traffic().prompt_tokens[1:]]
    )
    result = execute(trace, continuous(), llm_named(LLAMA), "cpu", warmup=0)
    assert result.completed.sum() == len(trace) - 1
    starts, ends = result.arrival[1:], result.finished[1:]
    inside = [int(((starts <= at) & (ends > at)).sum()) for at in starts]
    assert max(inside) <= 2


def test_until_and_progress_end_a_run() -> None:
    """A run that is told to stop keeps what has finished, and ends."""
    trace = replace(traffic(), arrival=np.linspace(0, 60, 12))
    result = execute(trace, continuous(), llm_named(LLAMA), "cpu", warmup=0, until=1.0)
    assert len(result) == 1
    asked = []
    result = execute(
        trace, continuous(), llm_named(LLAMA), "cpu", warmup=0,
        progress=lambda done, known: asked.append(done) or done < 1,
    )  # fmt: skip
    assert 1 <= result.completed.sum() < 12


def test_the_blocks_of_padding_serve_others() -> None:
    """A batch fits that needs the padding's blocks while prompts are computed, and its rows' own
    contexts alone after that: nobody is preempted, in the simulation either.
    """
    # The first fills the pool by itself, so that the others wait and make one batch.
    trace = Trace(np.zeros(3), np.array([130, 100, 4]), np.array([100, 60, 60]))
    deployment = sequential().override(num_gpu_blocks=15)  # 7 + 7 padded, then 7 + 1 to 10 + 4
    made = execute(trace, deployment, llm_named(LLAMA), "cpu", warmup=0)
    told = simulate(trace, deployment, llm_named(LLAMA), gpu("cpu"))
    for result in (made, told):
        assert result.completed.all()
        assert result.scheduled[0] < result.scheduled[1] == result.scheduled[2]
        assert not result.preemptions.any()


def test_an_ended_row_never_outgrows_its_table() -> None:
    """A long prompt that ends at once computes on beside a long output, within its block table."""
    trace = Trace(np.zeros(2), np.array([200, 5]), np.array([2, 150]))
    result = execute(trace, sequential(), llm_named(LLAMA), "cpu", warmup=0)
    assert result.completed.all()
