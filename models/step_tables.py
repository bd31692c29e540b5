"""`StepTables`: the seconds of the kernels of a model's steps, by numbers of rows."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.gpu import Gpu
from splitwiser.models.kernels import KernelModel
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile
from splitwiser.models.work import STEP_KERNELS, elementwise_bytes, experts_touched

BLOCK = 4  # steps are tabulated for 2**BLOCK token counts at a time
LAST = (1 << BLOCK) - 1
LOGIT_BYTES = 4  # sampling reads float32 logits


class StepTables:
    """Seconds of the kernels of steps, tabulated when a step first needs them.

    They depend on the numbers of tokens, outputs and decoding sequences alone; cost models of one
    model and share of a GPU have them in common (`step_tables`).
    """

    def __init__(self, llm: Llm, profile: Profile, kernels: KernelModel) -> None:
        self.llm, self.kernels = llm, kernels
        self._heads = (llm.heads, llm.kv_heads, llm.head_dim)
        self.prompts = kernels.prompt_attention(*self._heads)
        self._sampling = (profile.value("sampling_start"), profile.value("sampling_passes"))
        self._dense: dict[int, list[float]] = {}
        self._head: dict[int, list[float]] = {}
        self._attention: dict[tuple[float, bool], tuple[float, float]] = {}

    def dense(self, tokens: float) -> float:
        """Return the seconds of the kernels that every step of so many rows runs."""
        row = ceil(tokens)
        block = self._dense.get(row >> BLOCK)
        if block is None:
            block = self._dense[row >> BLOCK] = self._dense_seconds(_rows(row >> BLOCK)).tolist()
        return block[row & LAST]

    def head(self, outputs: float) -> float:
        """Return the seconds of the head and of sampling for so many rows."""
        row = ceil(outputs)
        block = self._head.get(row >> BLOCK)
        if block is None:
            block = self._head[row >> BLOCK] = self._head_seconds(_rows(row >> BLOCK)).tolist()
        return block[row & LAST]

    def attention(self, decodes: float, mixed: bool) -> tuple[float, float]:
        """Return the decode attention of all layers: seconds, and seconds per attended token."""
        found = self._attention.get((decodes, mixed))
        if found is None:
            fixed, slope = self.kernels.decode_attention(decodes, *self._heads, mixed=mixed)
            found = (fixed * self.llm.layers, slope * self.llm.layers)
            self._attention[decodes, mixed] = found
        return found

    def _dense_seconds(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the seconds of the dense kernels: GEMMs and element-wise ones of all layers."""
        llm, kernels = self.llm, self.kernels
        up = llm.intermediate * (2 if llm.gated_mlp else 1)
        layer = kernels.gemm(tokens, llm.query_width + 2 * llm.kv_width, llm.hidden)
        layer = layer + kernels.gemm(tokens, llm.hidden, llm.query_width)
        if llm.experts > 1:
            touched = experts_touched(llm.experts, llm.experts_per_token, tokens)
            rows = tokens * llm.experts_per_token / touched
            layer += kernels.gemm(tokens, llm.experts, llm.hidden)
            layer += kernels.grouped_gemm(rows, up, llm.hidden, touched)
            layer += kernels.grouped_gemm(rows, llm.hidden, llm.intermediate, touched)
            layer += kernels.stream(0.0)  # the permutation, whose traffic is the GEMMs'
        else:
            layer += kernels.gemm(tokens, up, llm.hidden)
            layer += kernels.gemm(tokens, llm.hidden, llm.intermediate)
        light = elementwise_bytes(llm)
        layer += 2.0 * kernels.stream(light.norm * tokens)
        for moved in (light.activation, light.rotary, light.kv_write):
            layer += kernels.stream(moved * tokens)
        return layer * llm.layers + STEP_KERNELS * kernels.stream(0.0)

    def _head_seconds(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        llm, kernels = self.llm, self.kernels
        start, passes = self._sampling
        logits = outputs * llm.vocab * LOGIT_BYTES
        head = kernels.gemm(outputs, llm.vocab, llm.head_parameters / llm.vocab)
        sampling: NDArray[np.float64] = start + passes * logits / kernels.stream_rate
        return head + sampling


def _rows(block: int) -> NDArray[np.float64]:
    """Return the token counts of a block; that of no rows, which no step has, as one row."""
    rows = np.arange(block << BLOCK, (block + 1) << BLOCK, dtype=float)
    return np.asarray(np.maximum(rows, 1.0))


@lru_cache(maxsize=64)
def step_tables(
    llm: Llm, gpu: Gpu, profile: Profile, sm_share: float, whole_device_grids: bool
) -> StepTables:
    """Return the tables of a model on a share of a GPU: a search prices the same steps often."""
    kernels = KernelModel(
        gpu, profile, llm.dtype, sm_share=sm_share, whole_device_grids=whole_device_grids
    )
    return StepTables(llm, profile, kernels)
