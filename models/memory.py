"""What fits on the device: weights, contexts, activations and the KV pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile

GIB = 2**30
# Copies of a step's logits while tokens are sampled (float32 logits, probabilities, sorted values
# and 64-bit indices): vLLM's sampler holds about this many float32 tensors of rows x vocabulary.
LOGIT_COPIES = 6.0


class DoesNotFit(ValueError):  # noqa: N818 - the name says what is wrong, as a planner reads it
    """The deployment needs more memory or SMs than it may use; the message holds the sum."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Who holds the device's memory, in bytes; `blocks` of `block_bytes` in each of `pools`."""

    total: float
    usable: float
    weights: float
    contexts: float
    activations: float
    kv: float
    block_bytes: float
    blocks: int
    pools: int = 1

    def lines(self) -> list[str]:
        """Return the sum written out, in GiB, one term a line."""
        free = self.usable - self.weights - self.contexts - self.activations - self.kv
        pools = f"{self.pools} pools of " if self.pools > 1 else ""
        return [
            f"weights      {self.weights / GIB:8.2f} GiB",
            f"contexts     {self.contexts / GIB:8.2f} GiB",
            f"activations  {self.activations / GIB:8.2f} GiB",
            f"KV pool      {self.kv / GIB:8.2f} GiB  ({pools}{self.blocks} blocks)",
            f"unused       {free / GIB:8.2f} GiB",
            f"usable       {self.usable / GIB:8.2f} GiB  of {self.total / GIB:.2f} GiB",
        ]


def activation_bytes(llm: Llm, tokens: float, rows: float, factor: float) -> float:
    """Return the activation peak of a process, in bytes.

    The larger of two moments: in a layer's MLP, where the residual stream, its norm, the (gate and)
    up projection and the activated product live at once for *tokens* tokens; and at the head,
    where *rows* rows of logits live in float32 several times over beside the hidden states.
    *factor* is the allocator's share on top.
    """
    up = llm.intermediate * (2 if llm.gated_mlp else 1)
    mlp = tokens * (3.0 * llm.hidden + (up + llm.intermediate) * llm.experts_per_token)
    head = LOGIT_COPIES * 4.0 * rows * llm.vocab + 2.0 * tokens * llm.hidden * llm.dtype_bytes
    return factor * max(mlp * llm.dtype_bytes, head)


def plan_memory(
    llm: Llm,
    gpu: Gpu,
    profile: Profile,
    *,
    processes: int,
    weight_copies: int,
    prefill_tokens: Sequence[int],
    max_num_seqs: Sequence[int],
    utilisation: float = 0.9,
    block_size: int = 16,
    num_gpu_blocks: int | None = None,
    pools: int = 1,
) -> MemoryPlan:
    """Return the memory plan of a deployment.

    vLLM's rule: the KV pool gets memory*utilisation less everything else. *prefill_tokens*
    (the most tokens of a step) and *max_num_seqs* have an entry per process. *num_gpu_blocks*
    sets the blocks of each pool instead; it must fit as well. Raises `DoesNotFit` with the sum
    when not one block per pool is left, ValueError for arguments outside their range.
    """
    if not 0.0 < utilisation <= 1.0:
        raise ValueError(f"gpu_memory_utilization ({utilisation}) must lie in (0, 1]")
    counts = {
        "processes": processes,
        "weight_copies": weight_copies,
        "block_size": block_size,
        "pools": pools,
        "num_gpu_blocks": 1 if num_gpu_blocks is None else num_gpu_blocks,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} ({count}) must be at least 1")
    if not len(prefill_tokens) == len(max_num_seqs) == processes:
        raise ValueError(
            f"prefill_tokens ({len(prefill_tokens)}) and max_num_seqs ({len(max_num_seqs)})"
            f" need one entry for each of {processes} processes"
        )
    factor = profile.value("activation_factor")
    usable = gpu.memory * utilisation
    weights = float(llm.weight_bytes) * weight_copies
    contexts = profile.value("context_bytes") * processes
    activations = sum(
        activation_bytes(llm, max(tokens, rows), rows, factor)
        for tokens, rows in zip(prefill_tokens, max_num_seqs, strict=True)
    )
    block_bytes = float(llm.kv_bytes_per_token) * block_size
    left = usable - weights - contexts - activations
    blocks = int(left // (block_bytes * pools)) if num_gpu_blocks is None else num_gpu_blocks
    if blocks < 1 or blocks * block_bytes * pools > left:
        wanted = max(blocks, 1)
        raise DoesNotFit(
            f"{llm.name} does not fit on {gpu.name}: weights {weights / GIB:.2f} GiB"
            f" + contexts {contexts / GIB:.2f} + activations {activations / GIB:.2f}"
            f" + {wanted * pools} KV block{'s' if wanted * pools > 1 else ''}"
            f" {wanted * pools * block_bytes / GIB:.2f}"
            f" = {(usable - left + wanted * pools * block_bytes) / GIB:.2f} GiB"
            f" > {usable / GIB:.2f} GiB usable ({gpu.memory / GIB:.2f} GiB x {utilisation:g})"
        )
    return MemoryPlan(
        total=float(gpu.memory),
        usable=usable,
        weights=weights,
        contexts=contexts,
        activations=activations,
        kv=blocks * block_bytes * pools,
        block_bytes=block_bytes,
        blocks=blocks,
        pools=pools,
    )
