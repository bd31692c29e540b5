"""What one step of an engine computes: FLOPs, bytes and kernel launches by operation group.

The counts are those of a decoder-only transformer with fused projections (one GEMM for Q, K and V,
one for the gate and the up projection), a flash-style attention that never stores the score matrix,
and a head that is computed only for the rows that yield a token. A multiply-add is two FLOP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.llm import Llm


class Group(NamedTuple):
    """The work of one operation group in one step: FLOP, bytes of DRAM traffic, kernel launches."""

    flops: float
    bytes: float
    kernels: float


class Batch(NamedTuple):
    """What one step of the engine computes.

    `tokens` counts all rows of the dense layers (new prompt tokens and one per decoding sequence),
    `outputs` the rows of the head (sequences that get a token). `pairs` are the causal query-key
    pairs of the prompt chunks, per layer and head, and `prompt_kv` the KV tokens that these chunks
    read (`prompt_pairs` gives both for one chunk). `decodes` is the number of decoding sequences
    and `attended` the KV tokens that they read: the sum of min(context, window), where a context
    counts the token being processed.
    """

    tokens: float
    outputs: float
    pairs: float = 0.0
    prompt_kv: float = 0.0
    decodes: float = 0.0
    attended: float = 0.0


Work = Mapping[str, Group]

GROUPS = (
    "projections",
    "attention_prefill",
    "attention_decode",
    "mlp",
    "head",
    "elementwise",
)

# Launches per layer besides the GEMMs and attention: two norms with their residual additions, the
# rotary embedding, the KV write and the activation function (`elementwise_bytes`).
ELEMENTWISE_KERNELS = 5.0
# Launches per step outside the layers: embedding, last norm and sampling.
STEP_KERNELS = 4.0
# What launching a layer of both phases kernel by kernel takes the host beyond the kernels counted, in
# launches: decode attention comes in two parts, and the rows of both phases are joined (4.6 launches
# more than for the prompt alone on the H200 of `benchmarks/steps.py`, of which one is counted, and 4.9
# on another, whose rows were not kept).
MIXED_LAUNCHES = 3.7


def prompt_pairs(new: float, cached: float, window: int | None = None) -> tuple[float, float]:
    """Return (query-key pairs, KV tokens read) of a chunk of *new* tokens after *cached* ones.

    Token number c of the context (counted from 1) sees min(c, window) keys, so that without a
    window the pairs are new*cached + new*(new+1)/2. Of the cached tokens those count as read that
    lie in the window of some token of the chunk.
    """
    if new < 0 or cached < 0:
        raise ValueError(f"a prompt chunk has at least 0 tokens, not new={new}, cached={cached}")
    if window is None or cached + new <= window:
        return new * cached + 0.5 * new * (new + 1.0), cached + new
    # Tokens up to the position `window` still see their whole past; the others see `window` keys.
    growing = max(0.0, window - cached)
    pairs = growing * cached + 0.5 * growing * (growing + 1.0) + (new - growing) * window
    return pairs, min(cached, window - 1.0) + new


class Coefficients(NamedTuple):
    """The work of a model per row, per KV token and per step, summed over its layers.

    `work` and the cost model read these; they are all that the cost of a step depends on.
    FLOP and bytes; `*_weights` are bytes of weights read by a step, `*_stream` bytes per token.
    """

    projection_flops: float  # per token
    projection_weights: float
    projection_stream: float
    mlp_flops: float  # per token
    expert_weights: float  # of all experts
    router_weights: float
    mlp_stream: float
    head_flops: float  # per output row
    head_weights: float
    head_stream: float
    attention_flops: float  # per query-key pair of every layer
    attention_stream: float  # per prompt token: queries in, results out
    kv_bytes: float  # per KV token read, all layers
    elementwise_stream: float  # per token, the KV write included
    layers: float
    experts: float
    experts_per_token: float
    dense_kernels: float  # launches of every step: attention and head come on top


class ElementwiseBytes(NamedTuple):
    """Bytes that the element-wise kernels of one layer read and write for each token.

    `norm` is that of each of the two norms, which read the residual and the branch and write both.
    The activation function reads the up (and gate) projection and writes its result, the rotary
    embedding reads and writes queries and keys, the KV write reads and writes keys and values.
    """

    norm: float
    activation: float
    rotary: float
    kv_write: float


def elementwise_bytes(llm: Llm) -> ElementwiseBytes:
    """Return what each element-wise kernel of a layer moves for a token."""
    size = float(llm.dtype_bytes)
    up = llm.intermediate * (2 if llm.gated_mlp else 1)
    return ElementwiseBytes(
        norm=4.0 * llm.hidden * size,
        activation=(up + llm.intermediate) * llm.experts_per_token * size,
        rotary=2.0 * (llm.query_width + llm.kv_width) * size,
        kv_write=4.0 * llm.kv_width * size,
    )


def coefficients(llm: Llm) -> Coefficients:
    """Return what each token, KV token and step costs *llm*, at its own dtype."""
    size = llm.dtype_bytes
    layers, hidden = float(llm.layers), float(llm.hidden)
    queries, keys = float(llm.query_width), float(llm.kv_width)
    projection = float(llm.projection_parameters)
    up = llm.intermediate * (2.0 if llm.gated_mlp else 1.0)
    chosen = float(llm.experts_per_token)
    head = float(llm.head_parameters)
    light = elementwise_bytes(llm)
    return Coefficients(
        projection_flops=2.0 * projection * layers,
        projection_weights=projection * layers * size,
        projection_stream=(2.0 * hidden + 2.0 * queries + 2.0 * keys) * layers * size,
        mlp_flops=2.0 * llm.active_mlp_parameters * layers,
        expert_weights=float(llm.experts * llm.expert_parameters) * layers * size,
        router_weights=float(llm.router_parameters) * layers * size,
        mlp_stream=(2.0 * hidden + up + llm.intermediate) * chosen * layers * size,
        head_flops=2.0 * head,
        head_weights=head * size,
        head_stream=(hidden + llm.vocab) * size,
        attention_flops=4.0 * queries * layers,
        attention_stream=2.0 * queries * layers * size,
        kv_bytes=float(llm.kv_bytes_per_token),
        elementwise_stream=(light.norm * 2.0 + light.activation + light.rotary + light.kv_write)
        * layers,
        layers=layers,
        experts=float(llm.experts),
        experts_per_token=chosen,
        dense_kernels=(4.0 + ELEMENTWISE_KERNELS + (2.0 if llm.experts > 1 else 0.0)) * layers
        + STEP_KERNELS,
    )


Counts = TypeVar("Counts", float, NDArray[np.float64])


def experts_touched(experts: float, per_token: float, tokens: Counts) -> Counts:
    """Return the expected number of distinct experts that *tokens* choose, uniformly at random.

    E*(1-(1-k/E)^n), as each token misses a given expert with probability 1-k/E.
    """
    missed: Counts = (1.0 - min(per_token / experts, 1.0)) ** tokens
    return experts * (1.0 - missed)


def work(llm: Llm, batch: Batch) -> dict[str, Group]:
    """Return the work of one step by operation group (`GROUPS`).

    Weights are read once per step, activations go in and out of each GEMM, and the KV cache is
    written once and read once per sequence. The element-wise group has no FLOP: it does not run on
    the units whose peak the data sheet gives, and its time is its traffic. The group
    `attention_decode` is proportional to `batch.attended` in FLOP and bytes.
    """
    c = coefficients(llm)
    tokens, outputs, pairs, prompt_kv, decodes, attended = batch
    if min(batch) < 0 or decodes > tokens:
        raise ValueError(f"a batch has no negative counts and decodes <= tokens: {batch}")
    some = 1.0 if tokens > 0 else 0.0
    prompt = tokens - decodes
    share = experts_touched(c.experts, c.experts_per_token, tokens) / c.experts
    moe_kernels = 2.0 if c.experts > 1 else 0.0  # the router's GEMM and the permutation
    return {
        "projections": Group(
            c.projection_flops * tokens,
            some * c.projection_weights + c.projection_stream * tokens,
            some * 2.0 * c.layers,
        ),
        "attention_prefill": Group(
            c.attention_flops * pairs,
            c.kv_bytes * prompt_kv + c.attention_stream * prompt,
            c.layers if prompt > 0 else 0.0,
        ),
        "attention_decode": Group(
            c.attention_flops * attended,
            c.kv_bytes * attended,
            c.layers if decodes > 0 else 0.0,
        ),
        "mlp": Group(
            c.mlp_flops * tokens,
            some * (c.expert_weights * share + c.router_weights) + c.mlp_stream * tokens,
            some * (2.0 + moe_kernels) * c.layers,
        ),
        "head": Group(
            c.head_flops * outputs,
            c.head_weights + c.head_stream * outputs if outputs > 0 else 0.0,
            1.0 if outputs > 0 else 0.0,
        ),
        "elementwise": Group(
            0.0,
            c.elementwise_stream * tokens,
            some * (ELEMENTWISE_KERNELS * c.layers + STEP_KERNELS),
        ),
    }
