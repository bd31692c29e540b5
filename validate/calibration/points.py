"""What a calibration measures: loops of steps, alone or beside each other, and single kernels.

A plan is a list of *stages*. The lanes of a stage are processes (threads, with `streams` and
`green_contexts`) that stay for all of its points; a point says which lanes run what, at the same
time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Phase = Literal["prefill", "decode"]
BLOCK = 16  # tokens of a KV block, in lanes and kernels
TOGETHER = ("streams", "green_contexts")  # whose lanes are threads of one process


@dataclass(frozen=True, slots=True)
class Load:
    """The step that one lane repeats.

    *prompts* prompts of *tokens* new tokens each, after *cached* tokens that the pool holds, and a
    decode step of *batch* sequences at a mean context of *context* tokens; either may be absent.
    Prompts are always launched kernel by kernel; *eager* says that pure decode steps are too.
    *llm* is a name of the catalogue.
    """

    llm: str
    prompts: int = 0
    tokens: int = 0
    cached: int = 0
    batch: int = 0
    context: int = 0
    eager: bool = False

    @property
    def phase(self) -> Phase:
        """What a stream's priority goes by: a step with prompts is a prefill."""
        return "prefill" if self.prompts else "decode"

    @property
    def title(self) -> str:
        """What runs, such as "P 2048" or "D 16x1024"."""
        parts = []
        if self.prompts:
            count = f"{self.prompts}x" if self.prompts > 1 else ""
            after = f"@{self.cached}" if self.cached else ""
            parts.append(f"P {count}{self.tokens}{after}")
        if self.batch:
            parts.append(f"D {self.batch}x{self.context}" + " eager" * self.eager)
        return " & ".join(parts)


@dataclass(frozen=True, slots=True)
class Lane:
    """One process or thread of a stage: its phase and its limit of the SMs in per cent (None: no
    limit). Lanes of one *group* share a process with `streams` and `green_contexts`, where a group
    is one way to divide the SMs. *equal*: its kernels have no priority, though it decodes.
    """

    phase: Phase
    sm_percent: float | None = None
    group: int = 0
    equal: bool = False

    @property
    def role(self) -> str:
        """The phase of the workers that its stream's priority is of: "both" have none."""
        return "both" if self.equal else self.phase


@dataclass(frozen=True, slots=True)
class Point:
    """Lanes, by their place in the stage, and the load of each; *repeat* tells equal points apart."""

    loads: tuple[tuple[int, Load], ...]
    repeat: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """Lanes under one sharing regime, and the points that they measure, in order."""

    sharing: str
    lanes: tuple[Lane, ...]
    points: tuple[Point, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """The models that its loads name, each once."""
        return tuple(dict.fromkeys(load.llm for point in self.points for _, load in point.loads))


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of the runtime at one size; *sizes* are the columns of its table."""

    table: Literal["gemm", "prompt_attention", "decode_attention", "elementwise"]
    sizes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is measured: kernels in *dtype* alone on the device, then the stages."""

    name: str
    dtype: str
    kernels: tuple[Kernel, ...]
    stages: tuple[Stage, ...]

    def __len__(self) -> int:
        return len(self.kernels) + sum(len(stage.points) for stage in self.stages)


def kernel_key(kernel: Kernel) -> str:
    """What names a kernel's measurement in a raw file."""
    return f"{kernel.table} " + " ".join(f"{k}={v}" for k, v in sorted(kernel.sizes.items()))


def point_key(stage: Stage, point: Point) -> str:
    """What names a point's measurement in a raw file: the regime, and who ran what on which share."""
    parts = []
    for place, load in point.loads:
        lane = stage.lanes[place]
        share = "all" if lane.sm_percent is None else f"{lane.sm_percent:g}%"
        parts.append(f"{load.llm} {load.title} on {share}" + ", equal" * lane.equal)
    return f"{stage.sharing}: {' + '.join(parts)} #{point.repeat}"


def lanes_record(stage: Stage, point: Point, sms: Mapping[int, int | None]) -> list[dict[str, Any]]:
    """The lanes of a point as plain JSON, with the SMs that each was granted."""
    return [
        {
            **asdict(load),
            "phase": stage.lanes[place].phase,
            "sm_percent": stage.lanes[place].sm_percent,
            "equal": stage.lanes[place].equal,
            "sms": sms.get(place),
        }
        for place, load in point.loads
    ]


def pool_tokens(points: Iterable[Point], llm: str) -> int:
    """KV tokens that the decode steps of *llm* need at most, in any one lane."""
    return max(
        (
            load.batch * (load.context + MARGIN + 16)  # a part of a block more
            for point in points
            for _, load in point.loads
            if load.llm == llm
        ),
        default=0,
    )


MARGIN = 64  # tokens that a context may grow beyond its mean while it is measured
