"""The time of single kernels on one GPU: GEMMs, attention, element-wise kernels.

Each is a smooth roofline of the work that the SMs of the share have to do in whole tiles and of the
bytes that the DRAM has to move, plus the time of a kernel that does nothing, times what
measurements say of such shapes (`models/corrections.py`). Whatever a correction says, arithmetic
stays within the peak of the share of the SMs, and traffic that no cache can hold within the
bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitwiser.models.corrections import Surface
from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import DTYPE_BYTES
from splitwiser.models.profile import Profile

# Tiles (rows x columns of the output) and split-K factors among which GEMM libraries choose; the
# tiles are those of CUTLASS's profiled kernels for tensor cores. Libraries of Hopper have others
# between them (cuBLAS 13's kernels are named by tiles such as 128x152): `tile_step` says how near.
TILES = ((32, 64), (64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
BETWEEN = (64, 256, 128)  # rows from and up to which there are such, and their columns
SPLITS = (1, 2, 4, 8)
K_STEP = 32  # a tile is computed in whole steps along k
ATTENTION_ROWS = 64  # queries of one block of prompt attention (FlashAttention-2: 64 or 128)
PARTIAL_BYTES = 4  # partial sums of a split GEMM are float32

_PARTIAL = np.array([split * PARTIAL_BYTES if split > 1 else 0.0 for split in SPLITS])
# How waves of a grid fill all SMs says little of fewer: of a correction measured on the whole device
# a share keeps the power share^CORRECTED: next to nothing below three quarters of them.
CORRECTED = 8.0
_FEW = 1e-9  # rounding of whole numbers that were divided


def saturation(share: float, knee: float, bend: float) -> float:
    """Return the throughput on a *share* of the SMs relative to all of them.

    h(s/knee)/h(1/knee) with h(x) = x/(1+x^bend)^(1/bend): proportional to the SMs far below the
    knee, flat above it; 1 at share 1. See docs/model.md.
    """
    if share >= 1.0:
        return 1.0
    # h(x) = (1 + x^-bend)^(-1/bend); this form cannot overflow for the knees in question.
    below = float((1.0 + (knee / share) ** bend) ** (-1.0 / bend))
    whole = float((1.0 + knee**bend) ** (-1.0 / bend))
    return below / whole


def roofline(compute: float, memory: float, sharpness: float) -> float:
    """Return the p-norm of the seconds for arithmetic and for traffic, p = *sharpness*."""
    if memory > compute:
        compute, memory = memory, compute
    if memory <= 0.0:
        return compute
    # The larger term is taken out, so that small powers of small times do not underflow.
    return float(compute * (1.0 + (memory / compute) ** sharpness) ** (1.0 / sharpness))


@cache
def _choices(step: int) -> tuple[NDArray[np.float64], ...]:
    """Return rows, columns and split of all choices, tiles by *step* rows between `TILES`."""
    low, high, columns = BETWEEN
    between = tuple((rows, columns) for rows in range(low + step, high, step))
    tiles = dict.fromkeys((*TILES, *between))
    choices = [(*tile, split) for tile, split in product(tiles, SPLITS)]
    return tuple(np.array(sizes, dtype=float) for sizes in zip(*choices, strict=True))


class KernelModel:
    """Seconds of single kernels in *dtype*, for a process with a share of the SMs.

    *sm_share* is in (0, 1]. *whole_device_grids* is for green contexts, where libraries size their
    grids for all SMs. Raises ValueError for another share and for a dtype that the GPU lacks.
    """

    def __init__(
        self,
        gpu: Gpu,
        profile: Profile,
        dtype: str,
        *,
        sm_share: float = 1.0,
        whole_device_grids: bool = False,
    ) -> None:
        if not 0.0 < sm_share <= 1.0:
            raise ValueError(f"sm_share ({sm_share}) must lie in (0, 1]")
        value = profile.value
        self.gpu, self.dtype = gpu, dtype
        self.size = DTYPE_BYTES[dtype]
        self.peak, self.bandwidth = float(gpu.peak(dtype)), float(gpu.bandwidth)
        self.sms = gpu.sms * sm_share
        self.share_peak = self.peak * sm_share
        self.whole = sm_share**CORRECTED
        knee, bend = value("compute_knee"), value("compute_bend")
        scale = saturation(sm_share, knee, bend)
        efficiency = value("gemm_efficiency")
        # However little power limits it, a share of the SMs has no more than its share of the peak.
        self.gemm_rate = self.peak * min(efficiency * scale, sm_share)
        self.attention_rate = self.peak * min(value("attention_efficiency") * scale, sm_share)
        # One SM of few, while power limits none: the slope of `saturation` at share 0. For knees
        # at which the power would overflow, it is 1/knee.
        alone = (1.0 + knee**-bend) ** (1.0 / bend) if bend * -math.log(knee) < 700 else 1.0 / knee
        self.sm_rate = self.peak / gpu.sms * min(efficiency * alone, 1.0)
        self.sm_attention_rate = self.peak / gpu.sms * value("attention_efficiency")
        bend = value("bandwidth_bend")
        reach = self.bandwidth * saturation(sm_share, value("bandwidth_knee"), bend)
        self.stream_rate = reach * value("memory_efficiency")
        reach = self.bandwidth * saturation(sm_share, value("kv_knee"), bend)
        self.kv_rate = reach * value("kv_efficiency")
        # Kernels are timed one by one, in bursts; in steps that follow each other GEMMs that the
        # library runs faster than this meet the power limit, however many SMs they run on.
        self.sustained_rate = value("sustained") * self.peak
        # A tile's operands come from the L2, in equal parts to all SMs; where few run, each has more.
        relief = 1.0 + value("tile_relief") * (1.0 - sm_share)
        self.sm_traffic = self.bandwidth * value("tile_traffic") * relief / gpu.sms
        self._choices = _choices(int(value("tile_step")))
        self.tile_overhead = value("tile_overhead")
        self.split_traffic = value("split_traffic")
        split = whole_device_grids and sm_share < 1.0
        self.second_wave = 1.0 + value("second_wave") * sm_share if split else 1.0
        self.sharpness = value("sharpness")
        self.gemm_start = value("gemm_start")
        self.stream_start = value("stream_start")
        self.attention_start = value("attention_start")
        self.decode_block = value("decode_block")
        self.mixed_decode = value("mixed_decode")
        self._corrections = profile.corrections

    def surface(self, kind: str, shape: Sequence[float]) -> Surface | None:
        """Return the correction of a shape (None where the profile has none of its kind)."""
        if kind not in self._corrections:
            return None
        return self._corrections[kind].surface(kind, shape)

    def gemm(self, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
        """Return the seconds of GEMMs of *m* rows: (m x k) times (k x n), weights from DRAM."""
        return np.maximum(self.burst(m, n, k), self.sustained(m, n, k))

    def sustained(self, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
        """Return the seconds that power makes such GEMMs take at least, where they never stop."""
        m, n, k = (np.asarray(size, dtype=float) for size in (m, n, k))
        return np.asarray(2.0 * m * n * k / self.sustained_rate)

    def burst(self, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
        """Return the seconds of such GEMMs after a pause, when the power limit is not met."""
        m, n, k = (np.asarray(size, dtype=float) for size in (m, n, k))
        seconds = self._tiled(m, n, k, 1.0)
        factors = self._gemm_factors(m, n, k)
        if factors is None:
            return seconds
        activations = m * (n + k) * self.size
        moved = n * k * self.size + np.maximum(0.0, activations - self.gpu.l2)
        least = np.maximum(2.0 * m * n * k / self.share_peak, moved / self.bandwidth)
        return np.asarray(np.maximum(seconds * factors, least))

    def _gemm_factors(
        self, m: NDArray[np.float64], n: NDArray[np.float64], k: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Return the corrections of GEMMs, None if the profile has none."""
        if "gemm" not in self._corrections:
            return None
        m, n, k = np.broadcast_arrays(m, n, k)
        places: dict[tuple[float, float], list[int]] = {}
        for place, shape in enumerate(zip(n.ravel().tolist(), k.ravel().tolist(), strict=True)):
            places.setdefault(shape, []).append(place)
        rows, factors = m.ravel(), np.empty(m.size)
        for shape, where in places.items():
            surface = self.surface("gemm", shape)
            assert surface is not None
            factors[where] = surface.along(rows[where])
        return np.asarray(factors.reshape(m.shape) ** self.whole)

    def grouped_gemm(
        self, m: ArrayLike, n: float, k: float, groups: ArrayLike
    ) -> NDArray[np.float64]:
        """Return the seconds of one kernel of *groups* GEMMs of *m* rows each, as experts have.

        Corrections are of single GEMMs and do not enter.
        """
        return self._tiled(m, n, k, groups)

    def _tiled(
        self, m: ArrayLike, n: ArrayLike, k: ArrayLike, groups: ArrayLike
    ) -> NDArray[np.float64]:
        """Return the seconds of the fastest choice of tile and split.

        The blocks of a grid run in waves over the SMs. A block takes the longer (smoothly) of its
        arithmetic and the operands that it reads from the L2; all blocks together no less than
        the device's power allows, nor than the DRAM's traffic.
        """
        rows, n, k, groups = (
            np.asarray(size, dtype=float)[..., None] for size in (m, n, k, groups)
        )
        high, wide, split = self._choices
        tiles = np.ceil(rows / high) * np.ceil(n / wide) * groups
        waves = np.ceil(tiles * split / self.sms - _FEW)
        depth = np.ceil(k / split / K_STEP) * K_STEP
        arithmetic = 2.0 * high * wide * depth / self.sm_rate
        operands = self.size * (np.minimum(rows, high) + wide) * depth / self.sm_traffic
        # The fourth powers by squares, ten times as fast as `**4`.
        both = np.square(np.square(arithmetic)) + np.square(np.square(operands))
        block = np.sqrt(np.sqrt(both)) + self.tile_overhead
        whole = 2.0 * tiles * high * wide * k / self.gemm_rate
        compute = np.maximum(waves * block, whole)
        if self.second_wave > 1.0:
            compute = np.where(waves > 1.0, compute * self.second_wave, compute)
        # The DRAM's traffic is the same for all tiles, so that of each split the fastest counts.
        compute = compute.reshape(*compute.shape[:-1], -1, len(SPLITS)).min(axis=-2)
        outputs = groups * rows * n
        traffic = (groups * n * k + groups * rows * k + outputs) * self.size / self.stream_rate
        larger, smaller = np.maximum(compute, traffic), np.minimum(compute, traffic)
        power = self.sharpness
        seconds = larger * (1.0 + (smaller / larger) ** power) ** (1.0 / power)
        seconds += _PARTIAL * self.split_traffic * outputs / self.stream_rate
        fastest: NDArray[np.float64] = seconds.min(axis=-1)
        return fastest + self.gemm_start

    def stream(self, moved: ArrayLike) -> NDArray[np.float64]:
        """Return the seconds of element-wise kernels that read and write *moved* bytes each."""
        moved = np.asarray(moved, dtype=float)
        seconds = self.stream_start + moved / self.stream_rate
        surface = self.surface("elementwise", ())
        if surface is None:
            return seconds
        # What fits into the L2 need not come from DRAM: the kernel before has just written it.
        least = np.maximum(0.0, moved - self.gpu.l2) / self.bandwidth
        return np.maximum(seconds * surface.along(np.maximum(moved, 1.0)), least)

    def prompt_attention(
        self, heads: int, kv_heads: int, head_dim: int
    ) -> Callable[[float, float, float], float]:
        """Return the seconds of one layer's attention of prompt chunks, as a function.

        Its arguments are the causal query-key pairs of all chunks, their new tokens, and the KV
        tokens that they read. It takes the chunks to be equal: three sums tell their number, size
        and cached tokens. Each head has a block for every `ATTENTION_ROWS` queries of a chunk.
        """
        flop, size = 4.0 * head_dim, self.size
        device = flop * heads / self.attention_rate
        block = flop * ATTENTION_ROWS / self.sm_attention_rate
        kv_bytes, row_bytes = 2.0 * kv_heads * head_dim * size, 2.0 * heads * head_dim * size
        least = flop * heads / self.share_peak
        surface = self.surface("prompt_attention", (heads, kv_heads, head_dim))
        start, sharp, sms = self.attention_start, self.sharpness, self.sms
        stream, bandwidth, l2 = self.stream_rate, self.bandwidth, self.gpu.l2

        def seconds(pairs: float, rows: float, kv: float) -> float:
            chunks = min(max((kv - 0.5 * rows) / max(pairs / rows - 0.5, 0.5), 1.0), rows)
            new, cached = rows / chunks, max(kv - rows, 0.0) / chunks
            tiles = math.ceil(new / ATTENTION_ROWS - _FEW)
            padded = tiles * ATTENTION_ROWS
            all_pairs = chunks * padded * (cached + 0.5 * (padded + ATTENTION_ROWS))
            waves = math.ceil(tiles * chunks * heads / sms - _FEW)
            compute = max(
                device * max(all_pairs, pairs),
                block * (cached + padded),
                block * waves * (cached + ATTENTION_ROWS),
            )
            moved = kv_bytes * kv + row_bytes * rows
            time = start + roofline(compute, moved / stream, sharp)
            if surface is None:
                return time
            time *= surface.at(new, max(kv / new, 1.0))
            return max(time, least * pairs, (moved - l2) / bandwidth)

        return seconds

    def decode_attention(
        self, batch: float, heads: int, kv_heads: int, head_dim: int, *, mixed: bool = False
    ) -> tuple[float, float]:
        """Return (seconds, seconds per attended KV token) of one layer's decode attention.

        The first grows with the blocks of the grid, one for each sequence and KV head. *mixed* is
        for steps with prompts, in which some engines run both through one kernel that is slower
        for decoding sequences.
        """
        fixed = self.decode_block * batch * kv_heads / self.sms
        kv_bytes, flop = 2.0 * kv_heads * head_dim * self.size, 4.0 * heads * head_dim
        slope = roofline(flop / self.attention_rate, kv_bytes / self.kv_rate, self.sharpness)
        if mixed:
            fixed, slope = fixed * self.mixed_decode, slope * self.mixed_decode
        fixed += self.attention_start
        kind, shape = ("mixed" if mixed else "decode"), (heads, kv_heads, head_dim)
        fixed *= self._factor(f"{kind}_fixed", shape, batch)
        slope *= self._factor(f"{kind}_slope", shape, batch)
        return fixed, max(slope, flop / self.share_peak, kv_bytes / self.bandwidth)

    def _factor(self, kind: str, shape: tuple[int, ...], size: float) -> float:
        """Return the factor of a kind with one axis, 1 without a correction."""
        surface = self.surface(kind, shape)
        return 1.0 if surface is None else float(surface.along(size))
