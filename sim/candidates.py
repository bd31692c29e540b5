"""The deployments that a plan asks about unless it is told others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.sim.deployment import Deployment, Workers, chunked, continuous, sequential

MAX_NUM_SEQS = (128, 256, 512)
TOKEN_BUDGETS = (512, 1024, 2048, 4096, 8192)
# Prefill's percentage of the SMs, and decode's: apart, and overlapping.
SM_PERCENT = ((50, 50), (60, 40), (75, 25), (80, 20), (90, 10), (100, 50), (100, 25))
PROCESSES = ((2, 1), (1, 2))  # prefill's and decode's, without limits
GREEN_PERCENT = ((60, 40), (75, 25))  # of green contexts: what SMs they get, `granted` says
SMALL_MODEL = 3e9  # parameters: below, a step leaves SMs idle, and four engines may gain


def candidates(llm: Llm, gpu: Gpu, **overrides: Any) -> list[Deployment]:
    """The deployments worth asking about, each with a name that tells it from the others.

    *overrides* are engine flags for all of them (`Deployment.override`); deployments that become
    equal by them are asked once. One that does not fit the memory is listed all the same: a plan
    says why it is skipped. The CPU has no MPS and no partitions.
    """
    chosen: dict[Deployment, Deployment] = {}
    for deployment in _all(llm, gpu):
        changed = deployment.override(**overrides) if overrides else deployment
        chosen.setdefault(replace(changed, name=""), replace(changed, name=_name(changed)))
    return list(chosen.values())


def _all(llm: Llm, gpu: Gpu) -> Iterator[Deployment]:
    yield sequential()
    for seqs in MAX_NUM_SEQS:
        yield continuous().override(max_num_seqs=seqs)
    for budget in TOKEN_BUDGETS:
        yield chunked().override(max_num_batched_tokens=budget)
    engines = (2, 4) if llm.parameters < SMALL_MODEL else (2,)
    if gpu.name != "cpu":
        yield _split("mps")
        yield from (_split("mps", processes=processes) for processes in PROCESSES)
        for prefill, decode in SM_PERCENT:
            yield _split("mps", prefill, decode)
        for prefill, decode in GREEN_PERCENT:
            yield _split("green_contexts", prefill, decode)
        yield _split("streams")
        yield from (_replicas(count, "mps") for count in engines)
    yield _split("time_slice")
    yield from (_replicas(count, "time_slice") for count in engines)


def _split(
    sharing: str,
    prefill: float | None = None,
    decode: float | None = None,
    processes: tuple[int, int] = (1, 1),
) -> Deployment:
    workers = (
        Workers(phase="prefill", processes=processes[0], sm_percent=prefill),
        Workers(phase="decode", processes=processes[1], sm_percent=decode),
    )
    return Deployment("split", workers, sharing=sharing)


def _replicas(count: int, sharing: str) -> Deployment:
    return Deployment("replicas", (Workers(processes=count),), sharing=sharing)


def _name(deployment: Deployment) -> str:
    """A name from what sets the deployment apart: "split mps 75/25", "chunked 1024"."""
    first, sharing = deployment.workers[0], deployment.sharing.removesuffix("_contexts")
    if deployment.name == "split":
        parts = [group.sm_percent for group in deployment.workers]
        limits = "" if None in parts else " " + "/".join(f"{part:.0f}" for part in parts)
        counts = "+".join(str(group.processes) for group in deployment.workers)
        return f"split {sharing}{limits}" + (f" {counts}" if counts != "1+1" else "")
    if deployment.name == "replicas":
        return f"replicas {first.processes} {sharing}"
    if deployment.name == "chunked":
        return f"chunked {first.max_num_batched_tokens}"
    return f"{deployment.name} {first.max_num_seqs}"
