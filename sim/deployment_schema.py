"""The keys of a deployment's TOML file, as pydantic checks them.

Every key is optional here but `workers`: what a file leaves out is the default of `Deployment`.
Rules that tie two keys together are `Deployment`'s own.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from splitwiser.sim import deployment as keys

MAX_PROCESSES = 48  # clients of one MPS server, since Volta (NVIDIA's MPS documentation)


def _one_of(*accepted: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in accepted:
            near = get_close_matches(value, accepted, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"{', '.join(accepted)}{hint}")
        return value

    return AfterValidator(check)


Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
Seconds = Annotated[float, Field(ge=0, lt=1e6)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class WorkersTable(_Table):
    """A `[[workers]]` table: `splitwiser.sim.deployment.Workers` says what each key means."""

    phase: Annotated[str, _one_of(*keys.PHASES)] | None = None
    processes: Annotated[int, Field(ge=1, le=MAX_PROCESSES)] | None = None
    sm_percent: Annotated[float, Field(ge=1, le=100)] | None = None
    scheduler: Annotated[str, _one_of(*keys.SCHEDULERS)] | None = None
    max_num_batched_tokens: Tokens | None = None
    max_num_seqs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class DeploymentTable(_Table):
    """The whole file: `splitwiser.sim.deployment.Deployment` says what each key means."""

    workers: Annotated[list[WorkersTable], Field(min_length=1)]
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    sharing: Annotated[str, _one_of(*keys.SHARING)] | None = None
    weights: Annotated[str, _one_of(*keys.WEIGHTS)] | None = None
    kv: Annotated[str, _one_of(*keys.KV)] | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    block_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    num_gpu_blocks: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    enforce_eager: bool | None = None
    async_scheduling: bool | None = None
    order: Annotated[str, _one_of(*keys.ORDERS)] | None = None
    preemption: Annotated[str, _one_of(*keys.PREEMPTION)] | None = None
    prefix_caching: bool | None = None
    routing: Annotated[str, _one_of(*keys.ROUTING)] | None = None
    start: Annotated[str, _one_of(*keys.START)] | None = None
    startup_s: Seconds | None = None
    tokenize_s: Seconds | None = None


def nearest_key(location: tuple[int | str, ...]) -> str:
    """A hint for an unknown key: the nearest one of its table, or all of them."""
    table: type[BaseModel] = WorkersTable if len(location) > 1 else DeploymentTable
    known: dict[str, Any] = dict(table.model_fields)
    near = get_close_matches(str(location[-1]), known, 1)
    return f" (did you mean {near[0]}?)" if near else f"; accepted: {', '.join(known)}"
