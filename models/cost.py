"""The time of one engine step on one GPU, alone on its share of the SMs.

Each operation group takes the smooth roofline ((F/(e*Pi))^p + (M/beta)^p)^(1/p), kernels add a gap
each, and a step launched eagerly takes at least the host's time to launch it. A p-norm is never
below either of its terms, so that no step beats FLOP over peak or bytes over bandwidth.
"""

from __future__ import annotations

from typing import NamedTuple

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile
from splitwiser.models.work import coefficients


class Demand(NamedTuple):
    """What a running step asks of the GPU; the sharing model sees only this.

    `seconds` is the wall time of the step alone on its share, `busy` the part in which kernels
    run, `overhead` the part before the next step in which the GPU certainly idles. `flops`,
    `bytes` and `kernels` are the step's. `compute` and `memory` are the seconds that its FLOP take
    at the peak and its bytes at the bandwidth of the data sheet. `sm_share` is the share of the
    SMs that the process may use, in (0, 1], and `prompt` the prompt tokens of the step: 0 marks a
    pure decode step, which streams give priority.
    """

    seconds: float
    busy: float
    flops: float
    bytes: float
    kernels: float
    sm_share: float
    overhead: float = 0.0
    compute: float = 0.0
    memory: float = 0.0
    prompt: float = 0.0


class StepCost(NamedTuple):
    """The cost of one step, linear in A, the KV tokens that its decoding sequences attend.

    `gpu` are the seconds in which kernels run at A = 0 (gaps between them included) and
    `gpu_per_token` those of each attended token; `host` the least time in which the host launches
    the step (0 under CUDA graphs); `overhead` the GPU's idle seconds between two steps. FLOP and
    bytes likewise at A = 0 and per attended token. `peak` (FLOP/s) and `bandwidth` (bytes/s) are
    the data sheet's.
    """

    gpu: float
    gpu_per_token: float
    host: float
    overhead: float
    flops: float
    flops_per_token: float
    bytes: float
    bytes_per_token: float
    kernels: float
    sm_share: float
    peak: float
    bandwidth: float
    prompt: float = 0.0

    def seconds(self, attended: float) -> float:
        """Return the wall time of the step, overhead included."""
        gpu, gpu_per_token, host, overhead, _, _, _, _, _, _, _, _, _ = self
        return max(host, gpu + gpu_per_token * attended) + overhead

    def demand(self, attended: float) -> Demand:
        """Return what the step asks of the GPU."""
        # Unpacked: fields of a NamedTuple are slow to read, and a simulation asks for every run.
        (
            gpu,
            gpu_per_token,
            host,
            overhead,
            flops,
            flops_per_token,
            moved,
            moved_per_token,
            kernels,
            sm_share,
            peak,
            bandwidth,
            prompt,
        ) = self
        gpu += gpu_per_token * attended
        flops += flops_per_token * attended
        moved += moved_per_token * attended
        seconds = gpu + overhead
        if gpu < host:
            seconds = host + overhead
        return Demand(
            seconds,
            gpu,
            flops,
            moved,
            kernels,
            sm_share,
            overhead,
            flops / peak,
            moved / bandwidth,
            prompt,
        )


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


class CostModel:
    """The cost of steps of one model on one GPU, for a process with a share of its SMs.

    *sm_share* is in (0, 1]. *eager* launches decode steps kernel by kernel too; without it they
    replay CUDA graphs. *whole_device_grids* is for green contexts, where libraries size their
    grids for all SMs and pay a second wave; under MPS they see the smaller device. Raises
    ValueError for a share outside (0, 1] and for a dtype that the GPU's data sheet lacks.
    """

    def __init__(
        self,
        llm: Llm,
        gpu: Gpu,
        profile: Profile,
        *,
        sm_share: float = 1.0,
        eager: bool = False,
        whole_device_grids: bool = False,
    ) -> None:
        if not 0.0 < sm_share <= 1.0:
            raise ValueError(f"sm_share ({sm_share}) must lie in (0, 1]")
        value = profile.value
        self.llm, self.gpu, self.profile = llm, gpu, profile
        self.sm_share, self.eager = sm_share, eager
        peak, bandwidth = float(gpu.peak(llm.dtype)), float(gpu.bandwidth)
        self._peak, self._bandwidth = peak, bandwidth
        scale = saturation(sm_share, value("compute_knee"), value("compute_bend"))
        # However little power limits it, a share of the SMs has no more than its share of the peak.
        gemm = peak * min(value("gemm_efficiency") * scale, sm_share)
        attention = peak * min(value("attention_efficiency") * scale, sm_share)
        reach = bandwidth * saturation(sm_share, value("bandwidth_knee"), value("bandwidth_bend"))
        stream = reach * value("memory_efficiency")
        self._p = p = value("sharpness")
        self._tile = value("tile_rows")
        split = whole_device_grids and sm_share < 1.0
        self._waves = 1.0 + value("second_wave") if split else 1.0
        self._small_tile, self._small_rows = value("small_tile_rows"), value("small_rows")
        # More tokens never compute fewer rows, whatever tiles a profile names.
        self._least_rows = -(-self._small_rows // self._small_tile) * self._small_tile
        self._gap, self._launch = value("kernel_gap"), value("launch_host")
        self._overhead = value("step_overhead")
        self._sequence_overhead = value("sequence_overhead")
        self._prompt_eager = eager or not profile.graphed_prefill

        c = coefficients(llm)
        self._c = c
        # Seconds per row, per KV token and per step, so that a step is a few multiplications.
        self._projection = (c.projection_flops / gemm, c.projection_weights / stream)
        self._projection_row = c.projection_stream / stream
        self._mlp = (c.mlp_flops / gemm, c.expert_weights / stream, c.router_weights / stream)
        self._mlp_row = c.mlp_stream / stream
        self._head = (c.head_flops / gemm, c.head_weights / stream)
        self._head_row = c.head_stream / stream
        self._pair = c.attention_flops / attention
        self._prompt_kv, self._prompt_row = c.kv_bytes / stream, c.attention_stream / stream
        self._elementwise_row = c.elementwise_stream / stream
        self._attended = roofline(
            c.attention_flops / attention, c.kv_bytes / (reach * value("kv_efficiency")), p
        )
        self._miss = 1.0 - c.experts_per_token / c.experts if c.experts > 1 else 0.0
        self._flops_row = c.projection_flops + c.mlp_flops
        self._bytes_row = c.projection_stream + c.mlp_stream + c.elementwise_stream
        self._decodes: dict[int, StepCost] = {}

    def _rows(self, tokens: float) -> float:
        """Return the rows that a GEMM of *tokens* rows computes: whole tiles.

        Grids of more than one row of tiles fill the device; on a part of it they pay the second
        wave as so many more rows.
        """
        if tokens <= self._small_rows:
            return -(-tokens // self._small_tile) * self._small_tile
        rows = max(-(-tokens // self._tile) * self._tile, self._least_rows)
        return rows * self._waves if rows > self._tile else rows

    def step(
        self,
        tokens: float,
        outputs: float,
        pairs: float = 0.0,
        prompt_kv: float = 0.0,
        decodes: float = 0.0,
    ) -> StepCost:
        """Return the cost of a step; the arguments are those of `work.Batch`."""
        c, p = self._c, self._p
        rows = self._rows(tokens)
        prompt = tokens - decodes
        kernels = c.dense_kernels
        touched = 1.0 - self._miss**tokens if self._miss else 1.0

        compute, weights = self._projection
        gpu = roofline(compute * rows, weights + self._projection_row * tokens, p)
        compute, experts, router = self._mlp
        gpu += roofline(compute * rows, experts * touched + router + self._mlp_row * tokens, p)
        gpu += self._elementwise_row * tokens
        flops = self._flops_row * tokens
        moved = (
            c.projection_weights
            + c.router_weights
            + c.expert_weights * touched
            + self._bytes_row * tokens
        )
        if outputs > 0:
            compute, weights = self._head
            gpu += roofline(compute * self._rows(outputs), weights + self._head_row * outputs, p)
            flops += c.head_flops * outputs
            moved += c.head_weights + c.head_stream * outputs
            kernels += 1.0
        if decodes > 0:
            kernels += c.layers
        host = 0.0
        if prompt > 0:
            kernels += c.layers
            gpu += roofline(
                self._pair * pairs, self._prompt_kv * prompt_kv + self._prompt_row * prompt, p
            )
            flops += c.attention_flops * pairs
            moved += c.kv_bytes * prompt_kv + c.attention_stream * prompt
            if self._prompt_eager:
                host = kernels * self._launch
        elif self.eager:
            host = kernels * self._launch
        return StepCost(
            gpu + kernels * self._gap,
            self._attended if decodes > 0 else 0.0,
            host,
            self._overhead + self._sequence_overhead * outputs,
            flops,
            c.attention_flops,
            moved,
            c.kv_bytes,
            kernels,
            self.sm_share,
            self._peak,
            self._bandwidth,
            prompt,
        )

    def decode(self, batch: int) -> StepCost:
        """Return the cost of a pure decode step of *batch* sequences (kept for the next call)."""
        cost = self._decodes.get(batch)
        if cost is None:
            cost = self._decodes[batch] = self.step(batch, batch, decodes=batch)
        return cost
