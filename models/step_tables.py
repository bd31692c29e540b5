"""`StepTables`: the seconds of the kernels of a model's steps, by numbers of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.gpu import Gpu
from splitwiser.models.kernels import KernelModel
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile
from splitwiser.models.work import STEP_KERNELS, elementwise_bytes, experts_touched

BLOCK = 16  # rows that are tabulated together
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
        self._dense = _Tabulated(self._dense_seconds)
        self._head = _Tabulated(self._head_seconds)
        self._attention: dict[tuple[float, bool], tuple[float, float]] = {}

    def prepare(self, tokens: Iterable[float], outputs: Iterable[float]) -> None:
        """Work out at once what steps of so many tokens, and of so many outputs, will ask for."""
        self._dense.fill(tokens)
        self._head.fill(outputs)

    def dense(self, tokens: float) -> tuple[float, float]:
        """Return the seconds of the kernels that every step of so many rows runs, and how many of
        them it is spared after a pause, when power does not limit its GEMMs.
        """
        seconds, spared = self._dense[ceil(tokens)]
        return seconds, spared

    def head(self, outputs: float) -> float:
        """Return the seconds of the head and of sampling for so many rows."""
        return self._head[ceil(outputs)][0]

    def attention(self, decodes: float, mixed: bool) -> tuple[float, float]:
        """Return the decode attention of all layers: seconds, and seconds per attended token."""
        found = self._attention.get((decodes, mixed))
        if found is None:
            fixed, slope = self.kernels.decode_attention(decodes, *self._heads, mixed=mixed)
            found = (fixed * self.llm.layers, slope * self.llm.layers)
            self._attention[decodes, mixed] = found
        return found

    def _dense_seconds(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the seconds of the dense kernels, GEMMs and element-wise ones of all layers, and
        what a pause spares them.
        """
        llm, kernels = self.llm, self.kernels
        up = llm.intermediate * (2 if llm.gated_mlp else 1)
        gemms = [(llm.query_width + 2 * llm.kv_width, llm.hidden), (llm.hidden, llm.query_width)]
        light = elementwise_bytes(llm)
        streams = [light.norm, light.norm, light.activation, light.rotary, light.kv_write]
        layer = np.zeros(len(tokens))
        if llm.experts > 1:
            gemms.append((llm.experts, llm.hidden))
            touched = experts_touched(llm.experts, llm.experts_per_token, tokens)
            rows = tokens * llm.experts_per_token / touched
            layer += kernels.grouped_gemm(rows, up, llm.hidden, touched)
            layer += kernels.grouped_gemm(rows, llm.hidden, llm.intermediate, touched)
            streams.append(0.0)  # the permutation, whose traffic is the GEMMs'
        else:
            gemms += [(up, llm.hidden), (llm.hidden, llm.intermediate)]
        each = tokens[:, None]
        sizes = (each, *np.transpose(gemms))
        burst = kernels.burst(*sizes)
        kept_up = np.maximum(burst, kernels.sustained(*sizes))
        layer += kept_up.sum(axis=1)
        layer += kernels.stream(each * streams).sum(axis=1)
        seconds = layer * llm.layers + STEP_KERNELS * kernels.stream(0.0)
        return np.stack([seconds, (kept_up - burst).sum(axis=1) * llm.layers], axis=1)

    def _head_seconds(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        llm, kernels = self.llm, self.kernels
        start, passes = self._sampling
        logits = outputs * llm.vocab * LOGIT_BYTES
        head = kernels.gemm(outputs, llm.vocab, llm.head_parameters / llm.vocab)
        sampling: NDArray[np.float64] = start + passes * logits / kernels.stream_rate
        return (head + sampling)[:, None]


class _Tabulated(dict[int, list[float]]):
    """Seconds of steps by their number of rows, one kind and more; no rows, which no step has, take
    what one does.

    Of a block of rows the first is worked out alone, and all with the second: a simulation prices
    steps of every size, and sixteen rows take little longer than one. A fit prices a few for each
    profile that it tries, and knows them beforehand (`fill`).
    """

    def __init__(self, seconds: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
        super().__init__()
        self._seconds, self._begun = seconds, set[int]()

    def __missing__(self, row: int) -> list[float]:
        block = row // BLOCK
        rows = range(block * BLOCK, (block + 1) * BLOCK) if block in self._begun else [row]
        self._begun.add(block)
        self._work_out(rows)
        return self[row]

    def fill(self, rows: Iterable[float]) -> None:
        """Work out all of *rows*, rounded up, that are not known."""
        missing = {ceil(row) for row in rows} - self.keys()
        if missing:
            self._work_out(sorted(missing))

    def _work_out(self, rows: Sequence[int]) -> None:
        seconds = self._seconds(np.maximum(np.array(rows, dtype=float), 1.0))
        self.update(zip(rows, seconds.tolist(), strict=True))


@lru_cache(maxsize=64)
def step_tables(
    llm: Llm, gpu: Gpu, profile: Profile, sm_share: float, whole_device_grids: bool
) -> StepTables:
    """Return the tables of a model on a share of a GPU: a search prices the same steps often."""
    kernels = KernelModel(
        gpu, profile, llm.dtype, sm_share=sm_share, whole_device_grids=whole_device_grids
    )
    return StepTables(llm, profile, kernels)
