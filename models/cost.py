"""The time of one engine step on one GPU, alone on its share of the SMs.

A step is the sum of its kernels (`models/kernels.py`) with a gap after each, and a step launched
eagerly takes at least the host's time to launch it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile
from splitwiser.models.step_tables import step_tables
from splitwiser.models.work import MIXED_LAUNCHES, coefficients

LOOSE = ("mps", "streams")  # regimes of `shared_gap`


class Demand(NamedTuple):
    """What a running step asks of the GPU; the sharing model sees only this.

    `seconds` is the wall time of the step alone on its share, `busy` the part in which kernels
    run, `overhead` the part before the next step in which the GPU certainly idles. `flops`,
    `bytes` and `kernels` are the step's. `compute` and `memory` are the seconds that its FLOP take
    at the peak and its bytes at the bandwidth of the data sheet. `sm_share` is the share of the
    SMs that the process may use, in (0, 1], `prompt` the prompt tokens of the step, and `gain` how
    much faster, as a part, it is after a pause, when the power limit is not met.
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
    gain: float = 0.0


class StepCost(NamedTuple):
    """The cost of one step, linear in A, the KV tokens that its decoding sequences attend.

    `gpu` are the seconds in which kernels run at A = 0 (gaps between them included) and
    `gpu_per_token` those of each attended token; `host` the least time in which the host launches
    the step (0 under CUDA graphs); `overhead` the GPU's idle seconds between two steps. FLOP and
    bytes likewise at A = 0 and per attended token. `peak` (FLOP/s) and `bandwidth` (bytes/s) are
    the data sheet's; `spared` are the GPU seconds less after a pause, and `gaps` seconds more between
    its kernels in which nothing of the step runs, and kernels of others may.
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
    spared: float = 0.0
    gaps: float = 0.0

    @property
    def alone(self) -> float:
        """The seconds alone at A = 0, without host and overhead: kernels, and gaps between them."""
        return self.gpu + self.gaps

    def seconds(self, attended: float) -> float:
        """Return the wall time of the step, overhead included."""
        return max(self.host, self.alone + self.gpu_per_token * attended) + self.overhead

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
            spared,
            gaps,
        ) = self
        gpu += gpu_per_token * attended
        flops += flops_per_token * attended
        moved += moved_per_token * attended
        alone = gpu + gaps
        seconds = max(host, alone) + overhead
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
            seconds / (max(alone - spared, host) + overhead) - 1.0 if spared > 0.0 else 0.0,
        )


class CostModel:
    """The cost of steps of one model on one GPU, for a process with a share of its SMs.

    *sm_share* is in (0, 1]. *eager* launches decode steps kernel by kernel too; without it they
    replay CUDA graphs. *sharing* is the regime in which the process runs: in green contexts
    libraries size their grids for all SMs and pay a second wave, where under MPS they see the
    smaller device; under MPS and in streams kernels follow each other less closely. Raises
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
        sharing: str = "exclusive",
    ) -> None:
        value = profile.value
        self.llm, self.gpu, self.profile = llm, gpu, profile
        self.sm_share, self.eager = sm_share, eager
        self._tables = step_tables(llm, gpu, profile, sm_share, sharing == "green_contexts")
        kernels = self._tables.kernels
        self._peak, self._bandwidth = kernels.peak, kernels.bandwidth
        self._gap, self._launch = value("kernel_gap"), value("launch_host")
        self._shared_gap = value("shared_gap") if sharing in LOOSE else 0.0
        self._overhead = value("step_overhead")
        self._sequence_overhead = value("sequence_overhead")
        self._prompt_eager = eager or not profile.graphed_prefill

        self._c = c = coefficients(llm)
        self._miss = 1.0 - c.experts_per_token / c.experts if c.experts > 1 else 0.0
        self._flops_row = c.projection_flops + c.mlp_flops
        self._bytes_row = c.projection_stream + c.mlp_stream + c.elementwise_stream
        self._decodes: dict[int, StepCost] = {}

    def prepare(self, steps: Iterable[tuple[float, float]]) -> None:
        """Price at once what *steps*, of so many tokens and outputs each, will ask for."""
        tokens, outputs = zip(*steps, strict=True)
        self._tables.prepare(tokens, outputs)

    def step(
        self,
        tokens: float,
        outputs: float,
        pairs: float = 0.0,
        prompt_kv: float = 0.0,
        decodes: float = 0.0,
    ) -> StepCost:
        """Return the cost of a step; the arguments are those of `work.Batch`."""
        c, tables = self._c, self._tables
        prompt = tokens - decodes
        kernels = c.dense_kernels
        touched = 1.0 - self._miss**tokens if self._miss else 1.0
        gpu, spared = tables.dense(tokens)
        flops = self._flops_row * tokens
        moved = (
            c.projection_weights
            + c.router_weights
            + c.expert_weights * touched
            + self._bytes_row * tokens
        )
        if outputs > 0:
            gpu += tables.head(outputs)
            flops += c.head_flops * outputs
            moved += c.head_weights + c.head_stream * outputs
            kernels += 1.0
        slope = host = 0.0
        if decodes > 0:
            kernels += c.layers
            fixed, slope = tables.attention(decodes, prompt > 0)
            gpu += fixed
        if prompt > 0:
            kernels += c.layers
            gpu += c.layers * tables.prompts(pairs, prompt, prompt_kv)
            flops += c.attention_flops * pairs
            moved += c.kv_bytes * prompt_kv + c.attention_stream * prompt
            if self._prompt_eager:
                more = MIXED_LAUNCHES * c.layers if decodes > 0 else 0.0
                host = (kernels + more) * self._launch
        elif self.eager:
            host = kernels * self._launch
        return StepCost(
            gpu + kernels * self._gap,
            slope,
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
            spared,
            kernels * self._shared_gap,
        )

    def decode(self, batch: int) -> StepCost:
        """Return the cost of a pure decode step of *batch* sequences (kept for the next call)."""
        cost = self._decodes.get(batch)
        if cost is None:
            cost = self._decodes[batch] = self.step(batch, batch, decodes=batch)
        return cost
