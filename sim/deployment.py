"""`Deployment`: which processes share the GPU, and how; the presets."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

SHARING = ("exclusive", "time_slice", "mps", "streams", "green_contexts")
PHASES = ("prefill", "decode", "both")
SCHEDULERS = ("static", "continuous", "chunked")
WEIGHTS = ("shared", "per_process")
KV = ("shared", "separate")
ORDERS = ("fcfs", "shortest_prompt")
PREEMPTION = ("recompute", "swap")
ROUTING = ("round_robin", "shared_queue", "contiguous")
START = ("ready", "cold", "staggered")


@dataclass(frozen=True, slots=True)
class Workers:
    """A group of equal processes (a `[[workers]]` table).

    `scheduler` says how a process with `phase = "both"` makes its batches: "static" (the batch runs
    to its end, its prompts padded), "continuous" (prefill first, vLLM v0) or "chunked" (decodes and
    prompt chunks in one step under a token budget, Sarathi and vLLM v1). `sm_percent` limits each
    process to that part of the SMs (None: no limit). `max_num_batched_tokens` is the token budget
    of a step, `max_num_seqs` the most sequences at a time, as in vLLM.
    """

    phase: str = "both"
    processes: int = 1
    sm_percent: float | None = None
    scheduler: str = "continuous"
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256

    def __post_init__(self) -> None:
        _one_of("workers.phase", self.phase, PHASES)
        _one_of("workers.scheduler", self.scheduler, SCHEDULERS)
        _whole("workers.processes", self.processes)
        _whole("workers.max_num_batched_tokens", self.max_num_batched_tokens)
        _whole("workers.max_num_seqs", self.max_num_seqs)
        if self.sm_percent is not None and not 1 <= self.sm_percent <= 100:
            raise ValueError(
                f"workers.sm_percent = {self.sm_percent}: a percentage of the SMs from 1 to 100"
            )


@dataclass(frozen=True, slots=True)
class Deployment:
    """Which processes share one GPU, and how.

    - `sharing`: "exclusive" (one process), "time_slice", "mps", "streams" or "green_contexts".
    - `weights`: "shared" (one copy, CUDA IPC) or "per_process".
    - `kv`: "shared" (prefill and decode processes use one pool; a block table is handed over) or
      "separate" (a pool per process; the blocks of a prompt are copied).
    - `gpu_memory_utilization`, `block_size`, `num_gpu_blocks` (per engine, or of a split's
      pools together, instead of what memory allows), `enforce_eager`: as in vLLM.
    - `async_scheduling`: as in vLLM, for the scheduler "chunked": a step is planned while the one
      before it runs, so that requests that come and places that come free wait a step longer.
    - `order`: who is admitted first, "fcfs" or "shortest_prompt". `preemption`: "recompute" or
      "swap".
    - `prefix_caching`: reuse prompt blocks where the trace carries their hashes.
    - `routing`: how whole engines get their requests: "round_robin", "contiguous" (each an equal
      part of the trace) or "shared_queue" (whichever engine has room takes the next).
    - `start`: "ready" (processes run already), "cold" (all start at time 0) or "staggered" (one
      after another, each once its part of the prompts is tokenised: the paper's code). `startup_s`:
      seconds to start a process (None: the profile's); `tokenize_s`: CPU seconds to tokenise a
      prompt and hand it over.
    """

    name: str
    workers: tuple[Workers, ...]
    sharing: str = "exclusive"
    weights: str = "shared"
    kv: str = "shared"
    gpu_memory_utilization: float = 0.9
    block_size: int = 16
    num_gpu_blocks: int | None = None
    enforce_eager: bool = False
    async_scheduling: bool = False
    order: str = "fcfs"
    preemption: str = "recompute"
    prefix_caching: bool = True
    routing: str = "round_robin"
    start: str = "ready"
    startup_s: float | None = None
    tokenize_s: float = 0.0

    def __post_init__(self) -> None:
        for key, value, accepted in (
            ("sharing", self.sharing, SHARING),
            ("weights", self.weights, WEIGHTS),
            ("kv", self.kv, KV),
            ("order", self.order, ORDERS),
            ("preemption", self.preemption, PREEMPTION),
            ("routing", self.routing, ROUTING),
            ("start", self.start, START),
        ):
            _one_of(key, value, accepted)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization = {self.gpu_memory_utilization}: a share in (0, 1]"
            )
        _whole("block_size", self.block_size)
        if self.num_gpu_blocks is not None:
            _whole("num_gpu_blocks", self.num_gpu_blocks)
        for key, seconds in (("startup_s", self.startup_s), ("tokenize_s", self.tokenize_s)):
            if seconds is not None and not 0 <= seconds < 1e6:
                raise ValueError(f"{key} = {seconds}: seconds, 0 or more")
        self._check_roles()

    @property
    def decode_first(self) -> bool:
        """Whether decode's kernels have priority: where it has processes of its own."""
        return all(group.phase != "both" for group in self.workers)

    def _check_roles(self) -> None:
        phases = {group.phase for group in self.workers}
        if not self.workers:
            raise ValueError("workers: at least one [[workers]] table is needed")
        if "both" in phases and len(phases) > 1:
            raise ValueError(
                'workers.phase: "both" cannot stand beside "prefill" or "decode"; '
                "a request would have two ways to go"
            )
        for phase, other in (("prefill", "decode"), ("decode", "prefill")):
            if phase in phases and other not in phases:
                raise ValueError(
                    f'workers.phase: there is a {phase} worker but no {other} worker; add one, or use "both"'
                )
        if self.async_scheduling:
            self._check_async()
        if self.sharing == "exclusive" and self.processes > 1:
            raise ValueError(
                f'sharing = "exclusive" is for one process, but there are {self.processes}; '
                f"choose one of {', '.join(SHARING[1:])}"
            )
        limited = any(group.sm_percent is not None for group in self.workers)
        if limited and self.sharing not in ("mps", "green_contexts"):
            raise ValueError(
                f'workers.sm_percent needs sharing = "mps" or "green_contexts", not "{self.sharing}"'
            )
        if self.sharing == "green_contexts":
            parts = [group.sm_percent for group in self.workers for _ in range(group.processes)]
            if any(part is None for part in parts):
                raise ValueError('sharing = "green_contexts" needs workers.sm_percent everywhere')
            if sum(part or 0 for part in parts) > 100:
                raise ValueError(
                    f"workers.sm_percent: the parts sum to {sum(part or 0 for part in parts):g} %; "
                    "green contexts are disjoint, at most 100 %"
                )

    def _check_async(self) -> None:
        if not all(g.phase == "both" and g.scheduler == "chunked" for g in self.workers):
            raise ValueError('async_scheduling needs workers.scheduler = "chunked" everywhere')
        if self.processes > 1 and self.routing == "shared_queue":
            raise ValueError(
                'async_scheduling needs routing = "round_robin" or "contiguous": an engine plans '
                "ahead what is in a line of its own"
            )

    @property
    def processes(self) -> int:
        """Processes on the GPU."""
        return sum(group.processes for group in self.workers)

    def each(self) -> Iterable[Workers]:
        """The group of every process, process by process."""
        return (group for group in self.workers for _ in range(group.processes))

    def as_dict(self) -> dict[str, Any]:
        """The deployment as TOML would say it; a None stands for a key that is left out."""
        return asdict(self)

    def override(self, **changes: Any) -> Deployment:
        """A copy with engine flags changed; those of a worker change in every group."""
        of_workers = {f.name for f in fields(Workers)}
        mine = {key: value for key, value in changes.items() if key not in of_workers}
        theirs = {key: value for key, value in changes.items() if key in of_workers}
        if theirs:
            mine["workers"] = tuple(replace(group, **theirs) for group in self.workers)
        return replace(self, **mine)


def _one_of(key: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        near = difflib.get_close_matches(str(value), accepted, 1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(f'{key} = "{value}"{hint}: one of {", ".join(accepted)}')


def _whole(key: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} = {value}: a whole number, 1 or more")


def sequential() -> Deployment:
    """Static batches, one after another: the paper's baseline."""
    return Deployment("sequential", (Workers(scheduler="static", max_num_seqs=20),))


def continuous() -> Deployment:
    """Continuous batching, prefill first: vLLM v0."""
    return Deployment("continuous", (Workers(),))


def chunked() -> Deployment:
    """Mixed batches under a token budget: Sarathi and vLLM v1."""
    return Deployment("chunked", (Workers(scheduler="chunked", max_num_batched_tokens=2048),))


def split() -> Deployment:
    """Splitwiser as drawn: a prefill and a decode process over one KV pool, SMs 75 to 25 under MPS."""
    return Deployment(
        "split",
        (
            Workers(phase="prefill", sm_percent=75),
            Workers(phase="decode", sm_percent=25),
        ),
        sharing="mps",
    )


def replicas() -> Deployment:
    """Two whole engines, one copy of the weights, under MPS: the paper's vLLM MPS x 2."""
    return Deployment("replicas", (Workers(processes=2),), sharing="mps")


def pipeline() -> Deployment:
    """The paper's Hugging Face code: four staggered processes, each tokenise, then `generate`."""
    return Deployment(
        "pipeline",
        (Workers(processes=4, scheduler="static", max_num_seqs=20),),
        sharing="time_slice",
        enforce_eager=True,
        routing="contiguous",
        start="staggered",
        # A document of 512 tokens: 0.48 ms to tokenise, the rest to hand it over. The paper's Fig.
        # 8 has its last process start after 27 + 5.4 N s with about 30,000 documents.
        tokenize_s=0.9e-3,
    )


PRESETS = {
    preset.__name__: preset
    for preset in (sequential, continuous, chunked, split, replicas, pipeline)
}
