"""`plan`: which deployment carries the most traffic within the objectives, and what limits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.memory import DoesNotFit, MemoryPlan
from splitwiser.models.profile import Profile, profile_for
from splitwiser.sim.answer import Limit, Plan, Row, Skipped
from splitwiser.sim.candidates import candidates
from splitwiser.sim.deployment import Deployment
from splitwiser.sim.objectives import check_goodput
from splitwiser.sim.parallel import Progress, Question, Searches, Task
from splitwiser.sim.physics import granted, memory_plan
from splitwiser.sim.replications import REPLICATIONS, limits, resampled
from splitwiser.sim.search import TOLERANCE, Capacity, check_scalable
from splitwiser.traces.trace import Trace

WINDOW = 3000  # requests of the part of a long trace on which all deployments are screened
WHOLE = 1.5  # windows: a trace no longer than this is searched whole
COARSE = 0.02  # tolerance of the rate there
CLOSE = 0.05  # of the best rate: what comes so near on the window may win on the whole trace
LONG_ENOUGH = 10  # p90 end-to-end latencies that a trace should last
FIRST, MOST = 2, 6  # deployments that are searched on the whole trace


def plan(
    trace: Trace,
    llm: Llm,
    gpu: Gpu,
    profile: Profile | None = None,
    *,
    goodput: Mapping[str, float],
    deployments: Sequence[Deployment] | None = None,
    target: float = 0.9,
    confidence: float = 0.95,
    jobs: int | None = None,
    backend: str | None = None,
    window: int = WINDOW,
    progress: Progress | None = None,
) -> Plan:
    """Rank *deployments* (None: `candidates`) by the rate at which they serve *trace* in *goodput*.

    *goodput* holds seconds by metric (`parse_goodput`); *target* and *confidence* are those of
    `capacity`. A trace longer than 1.5 times *window* requests is searched in two stages: every
    deployment on a window in its middle; then the whole trace for the best two, those within 5 %
    of them (6 in all), and any other that still looks better. The rates of the rest are carried
    over to the whole trace by the ratio that the leaders show.

    The winner's confidence limits come from replications (`splitwiser.sim.replications`), those of
    the others from batch means of their one trace (`capacity`).

    *jobs*, *backend* and *progress* are those of `splitwiser.sim.parallel.Searches`; the plan does
    not depend on them. Ctrl-C ends the search, and the plan holds what was found.

    Prompts that leave no room in the model's context are left out, and `Plan.notes` counts them:
    no deployment could serve them, and the rates are those of the others. What only a deployment's
    KV pool cannot hold counts as missed.

    Raises `DoesNotFit` where no deployment fits the GPU, with the sum of the one that comes
    nearest, and ValueError for a trace that has no rate to scale.
    """
    profile = profile if profile is not None else profile_for(gpu.name)
    check_goodput(goodput)
    trace, notes = _servable(trace, llm)
    check_scalable(trace)
    asked = list(candidates(llm, gpu) if deployments is None else deployments)
    if any(deployment.start != "ready" for deployment in asked):
        notes = (*notes, "planned with processes that run already: start-up does not count")
        asked = [replace(deployment, start="ready") for deployment in asked]
    memories, skipped = _fitting(asked, llm, gpu, profile, trace)
    question = Question(llm, gpu, profile, dict(goodput), target, confidence)
    searches = Searches(question, jobs, backend, progress)
    part = trace if len(trace) <= WHOLE * window else middle(trace, window)
    tolerance = TOLERANCE if part is trace else COARSE
    found = searches.run([Task(index, asked[index], part, None, tolerance) for index in memories])
    screened = _capacities(found)
    final: dict[int, Capacity | str] = dict(screened)
    if part is not trace:
        final = _finals(searches, asked, trace, screened)
    for index, answer in (found | final).items():
        if isinstance(answer, str):
            skipped[index] = Skipped(asked[index].name, asked[index], answer, memories[index])
    ratio = _ratio(screened, final)
    rows = []
    for index, capacity in screened.items():
        whole = final.get(index)
        if isinstance(whole, Capacity):
            rows.append(_row(asked[index], memories[index], trace, trace, gpu, whole, 1.0))
        elif whole is None:
            rows.append(_row(asked[index], memories[index], trace, part, gpu, capacity, ratio))
    rows.sort(key=lambda row: (-row.rate, row.estimated))
    if rows and not rows[0].estimated:
        rows[0] = _replicated(searches, rows[0], trace, confidence)
        notes = (*notes, *_too_short(rows[0], trace))
    return Plan(
        rows=tuple(rows),
        skipped=tuple(skipped[index] for index in sorted(skipped)),
        goodput=dict(goodput),
        target=target,
        confidence=confidence,
        model=llm.name,
        gpu=gpu.name,
        price_per_hour=gpu.price_per_hour,
        profile=profile.name,
        profile_kind=profile.kind,
        traffic=trace.name,
        requests=len(trace),
        notes=notes,
        partial=searches.interrupted,
    )


def _servable(trace: Trace, llm: Llm) -> tuple[Trace, tuple[str, ...]]:
    """The requests whose prompts the model can take, and what to say about the others."""
    room = trace.prompt_tokens < llm.max_context
    few = int(room.sum())
    if few == len(trace):
        return trace, tuple(trace.notes)
    longer = (
        f"{len(trace) - few} of {len(trace)} prompts leave no room in the context of {llm.name}"
    )
    if not few:
        raise ValueError(f"{trace.name}: {longer} ({llm.max_context} tokens); no request is left")
    note = f"{longer} ({llm.max_context} tokens): left out, the rates are those of the others"
    return trace.take(np.flatnonzero(room)), (*trace.notes, note)


def _fitting(
    deployments: Sequence[Deployment], llm: Llm, gpu: Gpu, profile: Profile, trace: Trace
) -> tuple[dict[int, MemoryPlan], dict[int, Skipped]]:
    """The memory plans of the deployments that fit, by number, and why the others do not."""
    memories: dict[int, MemoryPlan] = {}
    skipped: dict[int, Skipped] = {}
    for index, deployment in enumerate(deployments):
        try:
            granted(deployment, gpu)
            memories[index] = memory_plan(
                deployment, llm, gpu, profile, trace.longest_prompt(llm.max_context)
            )
        except DoesNotFit as reason:
            skipped[index] = Skipped(deployment.name, deployment, str(reason))
    if not deployments:
        raise ValueError("a plan needs at least one deployment; none was given")
    if not memories:
        reasons = {entry.reason: entry.deployment.processes for entry in skipped.values()}
        raise DoesNotFit(f"no deployment fits: {min(reasons, key=lambda text: reasons[text])}")
    return memories, skipped


def middle(trace: Trace, count: int) -> Trace:
    """*count* consecutive requests from the middle, the gap before the first included."""
    start = (len(trace) - count) // 2
    part = trace.take(np.arange(start, start + count))
    return part.retimed(part.arrival - trace.arrival[start - 1])


def _finals(
    searches: Searches, asked: Sequence[Deployment], trace: Trace, screened: Mapping[int, Capacity]
) -> dict[int, Capacity | str]:
    """What the leaders do on the whole trace."""
    order = sorted(screened, key=lambda index: -screened[index].rate)
    final: dict[int, Capacity | str] = {}

    def search(indices: Sequence[int]) -> None:
        ratio = _ratio(screened, final)
        final.update(
            searches.run(
                [Task(i, asked[i], trace, ratio * screened[i].rate, TOLERANCE) for i in indices]
            )
        )

    def challengers(closeness: float) -> list[int]:
        best = max((found.rate for found in _capacities(final).values()), default=0.0)
        ratio = _ratio(screened, final)
        bar = (1 - closeness) * best
        return [i for i in order if i not in final and ratio * screened[i].rate > bar]

    search(order[:FIRST])  # their ratio gives the others a better guess
    search(challengers(CLOSE)[: MOST - FIRST])
    while not searches.interrupted and (better := challengers(0.0)):
        search(better)
    return final


def _replicated(searches: Searches, row: Row, trace: Trace, confidence: float) -> Row:
    """The row with confidence limits from replications of its search."""
    tasks = [
        Task(number, row.deployment, resampled(trace, number), row.rate, COARSE)
        for number in range(REPLICATIONS)
    ]
    rates = tuple(found.rate for found in _capacities(searches.run(tasks)).values())
    if len(rates) < REPLICATIONS:  # interrupted, or some resampled trace cannot be served
        return row
    low, high = limits(row.rate, rates, confidence)
    return replace(row, low=low, high=high, replications=rates)


def _too_short(row: Row, trace: Trace) -> tuple[str, ...]:
    """What to say of a trace that ends before its queues have formed: it flatters."""
    lasts, latency = len(trace) / row.rate, row.latencies["e2el"]["p90"]
    if lasts >= LONG_ENOUGH * latency:
        return ()
    note = (
        f"{len(trace)} requests last {lasts:.3g} s at that rate, {lasts / latency:.2g} times the p90 of "
        "e2el: too short for queues to form, so the rates are not to be trusted; give more requests"
    )
    return (note,)


def _capacities(found: Mapping[int, Capacity | str]) -> dict[int, Capacity]:
    """The answers that are rates."""
    return {index: answer for index, answer in found.items() if isinstance(answer, Capacity)}


def _ratio(screened: Mapping[int, Capacity], final: Mapping[int, Capacity | str]) -> float:
    """Capacity on the whole trace over that on the window: the median of who has both."""
    both = _capacities(final)
    ratios = [both[index].rate / screened[index].rate for index in both]
    return float(np.median(ratios)) if ratios else 1.0


def _row(
    deployment: Deployment,
    memory: MemoryPlan,
    trace: Trace,
    part: Trace,
    gpu: Gpu,
    found: Capacity,
    ratio: float,
) -> Row:
    """A deployment's row, from its capacity on *part* of the trace, carried over by *ratio*."""
    rate = ratio * found.rate
    throughput = rate * found.trial.served * float(trace.output_tokens.mean())
    limit = Limit.of(found, deployment)
    first = (len(trace) - len(part)) // 2
    return Row(
        name=deployment.name,
        deployment=deployment,
        memory=memory,
        rate=rate,
        low=ratio * found.low,
        high=ratio * found.high,
        attainment=found.trial.attainment,
        latencies=found.trial.latencies,
        state=found.trial.state,
        output_throughput=throughput,
        cost=gpu.price_per_hour / 3600 / throughput * 1e6,
        limit=replace(limit, rate=ratio * limit.rate),
        saturation=ratio * found.saturation,
        basis=f"all {len(trace)} requests"
        if part is trace
        else f"requests {first + 1}-{first + len(part)}",
        estimated=part is not trace,
        simulations=found.simulations,
    )
