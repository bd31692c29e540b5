"""The runtime's kernels one by one, as a decode step runs them: in a row, out of DRAM.

Each is captured in a CUDA graph of several in a row, so that the host's launches do not count. GEMMs
go round enough copies of their weights that none is in the last-level cache when its turn comes
again, and so does decode attention with its keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from multiprocessing.connection import Connection
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from splitwiser.models.catalogue import llm as llm_named
from splitwiser.models.llm import Llm
from splitwiser.validate.calibration.points import BLOCK, Kernel
from splitwiser.validate.runtime.faults import line_of

if TYPE_CHECKING:
    import torch

COLD_BYTES = 3 * 2**26  # three times the last-level cache of an H200: what was read is gone
ROW = 8  # kernels in a row, at least
BURST_S = 3e-3  # of one measured repetition, about
REPEATS = 3
LIKE = "meta-llama/Llama-3.1-8B"  # the family whose kernels are measured, at any size


def bench(device: str, dtype: str, kernels: Sequence[Kernel], connection: Connection) -> None:
    """Measure *kernels* in order: a record each, sent when it is made. The life of a process."""
    import torch

    at = torch.device(device)
    with torch.inference_mode():
        if at.type == "cuda":
            torch.cuda.set_device(at)
            torch.cuda.set_stream(torch.cuda.Stream())
        make = _Makers(at, getattr(torch, dtype))
        for kernel in kernels:
            try:
                row = getattr(make, kernel.table)(**kernel.sizes)
                times = _times(row, at)
            except (RuntimeError, MemoryError, ValueError) as error:
                connection.send({**kernel.sizes, "table": kernel.table, "error": line_of(error)})
                continue
            connection.send(
                {
                    "table": kernel.table,
                    **kernel.sizes,
                    "seconds": median(times),
                    "least": min(times),
                    "most": max(times),
                }
            )


def _times(row: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """Seconds of one kernel, from several repetitions of *row*, which runs some of them."""
    import torch

    if device.type == "cpu":
        return _times_on_cpu(row)
    for kernel in row[:2]:  # compiled and loaded
        kernel()
    torch.cuda.current_stream().synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for kernel in row:
            kernel()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(count: int) -> float:
        start.record()
        for _ in range(count):
            graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / count / len(row)

    seconds(1)
    count = max(1, ceil(BURST_S / (seconds(1) * len(row))))
    return [seconds(count) for _ in range(REPEATS)]


def _times_on_cpu(row: Sequence[Callable[[], Any]]) -> list[float]:
    row[0]()
    times = []
    for _ in range(REPEATS):
        begun = perf_counter()
        for kernel in row:
            kernel()
        times.append((perf_counter() - begun) / len(row))
    return times


class _Makers:
    """What runs a kernel of each table: a row of calls, each on memory of its own."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        from splitwiser.validate.runtime.kernels import kernels_for

        self._device = device
        self._dtype = dtype
        self._kernels = kernels_for(device)
        self._attention: tuple[tuple[int, int, int], Any] | None = None

    def _random(self, *shape: int) -> torch.Tensor:
        import torch

        return torch.randn(shape, device=self._device, dtype=self._dtype).mul_(0.02)

    def _copies(self, nbytes: float) -> int:
        cold = COLD_BYTES if self._device.type == "cuda" else COLD_BYTES / 16
        return max(1, ceil(cold / nbytes))

    def gemm(self, m: int, n: int, k: int) -> list[Callable[[], Any]]:
        """x [m, k] times the transpose of a weight [n, k]."""
        import torch.nn.functional as F  # noqa: N812 - torch's own name for it

        size = self._dtype.itemsize
        count = min(self._copies((n + m) * k * size), 64)
        weights = self._random(count, n, k)
        inputs = self._random(min(count, 4), m, k)

        def call(i: int) -> Callable[[], Any]:
            return lambda: F.linear(inputs[i % len(inputs)], weights[i])

        return [call(i % count) for i in range(max(count, ROW if m < 4096 else 2))]

    def prompt_attention(
        self, batch: int, new: int, cached: int, heads: int, kv_heads: int, head_dim: int
    ) -> list[Callable[[], Any]]:
        """Causal attention of *batch* prompts of *new* tokens, after *cached* ones in the pool."""
        import torch

        from splitwiser.validate.runtime.prompt_attention import Span

        attention = self._prompts((heads, kv_heads, head_dim), new)
        blocks = ceil((cached + new) / BLOCK)
        shape = (1, 2, blocks, kv_heads, BLOCK, head_dim)
        kv = self._random(*shape)
        own = torch.arange(blocks, device=self._device) if cached else None
        spans = [Span(i * new, (i + 1) * new, cached, own) for i in range(batch)]
        rows = attention.rows(spans, batch * new)
        q, k, v = (self._random(rows, h, head_dim) for h in (heads, kv_heads, kv_heads))
        reaches = [attention.reach(span, kv) for span in spans]

        def call() -> None:
            for span, reach in zip(spans, reaches, strict=True):
                attention.attend(q, k, v, kv[0, 0], kv[0, 1], span, reach)

        return [call] * (ROW if new * batch < 4096 else 2)

    def _prompts(self, shape: tuple[int, int, int], longest: int) -> Any:
        from splitwiser.validate.runtime.prompt_attention import LENGTHS, PromptAttention

        if self._attention is None or self._attention[0] != shape:
            made = PromptAttention(_like(*shape), self._device, self._dtype)
            made.prepare(LENGTHS[-1] if self._device.type == "cuda" else longest)
            self._attention = shape, made
        return self._attention[1]

    def decode_attention(
        self, batch: int, context: int, heads: int, kv_heads: int, head_dim: int
    ) -> list[Callable[[], Any]]:
        """Attention of *batch* sequences over *context* tokens each."""
        import torch

        each = ceil(context / BLOCK)
        size = 2 * batch * each * BLOCK * kv_heads * head_dim * self._dtype.itemsize
        layers = min(self._copies(size), 64)
        kv = self._random(layers, 2, batch * each, kv_heads, BLOCK, head_dim)
        order = np.random.default_rng(0).permutation(batch * each).reshape(batch, each)
        tables = torch.as_tensor(order, dtype=torch.int32, device=self._device)
        rows = torch.arange(batch, device=self._device)
        positions = torch.full_like(rows, context - 1)
        q = self._random(batch, heads, head_dim)

        def call(layer: int) -> Callable[[], Any]:
            return lambda: self._kernels.decode_attention(
                q, kv[layer, 0], kv[layer, 1], tables, rows, positions, head_dim**-0.5, None
            )

        return [call(i % layers) for i in range(max(layers, ROW))]

    def elementwise(self, name: str, tokens: int, width: int) -> list[Callable[[], Any]]:
        """One of the kernels beside the GEMMs and attention, on *tokens* rows of *width*."""
        calls = {"norm": self._norm, "rotate": self._rotate, "gated": self._gated}
        calls["argmax"] = self._argmax
        return [calls[name](tokens, width)] * ROW

    def _norm(self, tokens: int, width: int) -> Callable[[], Any]:
        x, residual = self._random(tokens, width), self._random(tokens, width)
        weight = self._random(width)
        return lambda: self._kernels.add_norm(x, residual, weight, None, 1e-6)

    def _rotate(self, tokens: int, width: int) -> Callable[[], Any]:
        """The rotation of queries and keys with the write of keys and values; four heads to one."""
        import torch

        head_dim = min(128, width // 4)
        kv_heads = max(1, width // head_dim // 6)
        heads = width // head_dim - 2 * kv_heads
        qkv = self._random(tokens, width)
        angles = torch.rand(tokens, head_dim, device=self._device)
        at = torch.arange(tokens, device=self._device)
        kv = self._random(2, ceil(tokens / BLOCK), kv_heads, BLOCK, head_dim)
        return lambda: self._kernels.rotate_and_store(
            qkv, heads, kv_heads, head_dim, angles, at, at, kv[0], kv[1]
        )

    def _gated(self, tokens: int, width: int) -> Callable[[], Any]:
        x = self._random(tokens, 2 * width)
        return lambda: self._kernels.gated(x)

    def _argmax(self, tokens: int, width: int) -> Callable[[], Any]:
        x = self._random(tokens, width)
        return lambda: x.argmax(-1)


def _like(heads: int, kv_heads: int, head_dim: int) -> Llm:
    return replace(
        llm_named(LIKE), heads=heads, kv_heads=kv_heads, head_dim=head_dim, max_context=32768
    )


def elementwise_bytes(name: str, tokens: int, width: int, size: int) -> float:
    """The bytes that an element-wise kernel has to move, each input and output once."""
    streams = {"norm": 4.0, "rotate": 2.0, "gated": 3.0, "argmax": 1.0}
    return streams[name] * tokens * width * size
