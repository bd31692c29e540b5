"""`simulate`: a trace through a deployment, to a result."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile, profile_for
from splitwiser.sim.build import Progress, Simulation
from splitwiser.sim.deployment import Deployment
from splitwiser.sim.physics import Physics, memory_plan
from splitwiser.sim.result import Result
from splitwiser.traces.trace import Trace


def simulate(
    trace: Trace,
    deployment: Deployment,
    llm: Llm,
    gpu: Gpu,
    profile: Profile | None = None,
    *,
    until: float | None = None,
    physics: Physics | None = None,
    progress: Progress | None = None,
) -> Result:
    """Serve `trace` with `deployment` on one simulated `gpu`; what became of every request.

    `profile` states the costs (None: the GPU's built-in one); `physics` replaces what follows from
    it. `until` ends the simulation at a time in seconds; without it every request runs to its end.
    `progress` is called now and then with the share of the requests that have arrived; where it
    returns False, the simulation ends there. The same arguments give the same result, bit for bit.
    Raises `DoesNotFit` where the deployment does not fit the GPU's memory or SMs.
    """
    profile = profile if profile is not None else profile_for(gpu.name)
    if until is not None and not until > 0:
        raise ValueError(f"until is {until}; accepted: seconds above 0")
    memory = memory_plan(deployment, llm, gpu, profile, trace.longest_prompt(llm.max_context))
    if physics is None:
        physics = Physics.of(deployment, llm, gpu, profile)
    simulation = Simulation(trace, deployment, llm, memory, physics, profile, gpu)
    with _no_garbage_collection():
        until = simulation.run(until, progress)
    notes = [*trace.notes, *simulation.outputs.notes, *simulation.refusals()]
    return Result.from_log(
        simulation.log,
        arrival=simulation.issued,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=simulation.outputs.tokens,
        until=until,
        meta={
            "model_id": llm.name,
            "gpu": gpu.name,
            "profile": profile.name,
            "profile_kind": profile.kind,
            "backend": "splitwiser-sim",
            "deployment": deployment.as_dict(),
            "memory": memory.lines(),
            "num_gpu_blocks": [pool.total for pool in simulation.pools],
            "traffic": trace.name,
            "request_rate": trace.rate if trace.rate < inf else "inf",
            "max_concurrency": trace.max_concurrency,
            "notes": notes,
        },
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A simulation makes no cycles; the collector would walk its live objects for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
