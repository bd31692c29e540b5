"""`execute`: a trace through a deployment on a real device, to a result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from splitwiser.models.llm import Llm
from splitwiser.models.memory import MemoryPlan
from splitwiser.sim.admission import Limits, Outputs
from splitwiser.sim.deployment import Deployment
from splitwiser.sim.result import OUTCOMES, Result, plain
from splitwiser.traces.trace import Trace
from splitwiser.validate.runtime.cast import STOP_S, Cast
from splitwiser.validate.runtime.device import (
    Device,
    check,
    device_named,
    notes_for,
    provenance,
)
from splitwiser.validate.runtime.faults import RunFailed
from splitwiser.validate.runtime.messages import Ids
from splitwiser.validate.runtime.process import prepare
from splitwiser.validate.runtime.recorder import Recorder
from splitwiser.validate.runtime.room import room
from splitwiser.validate.runtime.router import Router
from splitwiser.validate.runtime.scratch import Scratch
from splitwiser.validate.runtime.telemetry import Telemetry
from splitwiser.validate.runtime.unheeded import unheeded

Progress = Callable[[int, int], bool]
Say = Callable[[str], None]


def execute(
    trace: Trace,
    deployment: Deployment,
    llm: Llm,
    device: str = "cuda:0",
    *,
    weights: Path | None = None,
    seed: int = 0,
    warmup: int = 4,
    until: float | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
    tokens: dict[int, list[int]] | None = None,
) -> Result:
    """Serve *trace* with *deployment* on a real *device* ("cuda:0", "cpu"); what became of it.

    The arrivals are replayed in real time. The tokens of the prompts are random by *seed*, and so
    are the weights, unless *weights* names a folder with safetensors of the hub. The first *warmup*
    requests are served once before the clock starts, and are not in the result. *until* ends the
    run so many seconds after its first arrival could come. *progress* is called with the number of
    finished requests and of all; where it returns False, the run ends, and what has finished is
    kept. *say* hears what is going on, in lines. *tokens* is filled with what every request generated.

    Raises ValueError for what the device cannot do, `DoesNotFit` where memory is short, and
    `RunFailed`, with what had finished, where a process dies or cannot go on.
    """
    if until is not None and not until > 0:
        raise ValueError(f"until is {until}; accepted: seconds above 0")
    if warmup < 0:
        raise ValueError(f"warmup is {warmup}; accepted: a number of requests, 0 or more")
    there = device_named(device)
    check(deployment, there)
    if deployment.start == "staggered":
        from splitwiser.validate.runtime.pipeline import execute_pipeline

        return execute_pipeline(
            trace,
            deployment,
            llm,
            device,
            weights=weights,
            seed=seed,
            until=until,
            progress=progress,
            say=say,
            tokens=tokens,
        )
    about = provenance(there)
    plan = room(deployment, llm, about["name"], about.get("memory_bytes"), trace)
    prepare()
    outputs = Outputs.of(trace.prompt_tokens, trace.output_tokens, llm.max_context)
    recorder = Recorder(trace.prompt_tokens, outputs.tokens)
    run = _Run(trace, deployment, llm, there, plan, recorder, about)
    failure: RunFailed | None = None
    with Telemetry(there) as telemetry:
        try:
            run.serve(weights, seed, warmup, until, progress, say or (lambda line: None))
        except RunFailed as error:
            if not run.begun:
                raise  # nothing is recorded that is worth keeping
            failure = error
            run.failed = True
    recorder.check()
    result = recorder.result({}, until=run.ended)
    notes = [*outputs.notes, *run.refusals(result)]
    result = replace(result, meta=plain(run.meta(telemetry, warmup, notes)))
    if tokens is not None:
        tokens.update(enumerate(recorder.tokens))
    if failure is not None:
        failure.result = result
        raise failure
    return result


def prompt_tokens(trace: Trace, llm: Llm, seed: int, request: int) -> Ids:
    """The tokens of a request's prompt: random, and the same in every run with this seed."""
    generator = np.random.Generator(np.random.Philox(key=[seed, request]))
    count = trace.prompt_tokens[request]
    tokens: Ids = generator.integers(0, llm.vocab, count, dtype=np.int32)
    return tokens


class _Run:
    """One run, from the first process to the last."""

    begun = False
    failed = False
    _until = inf  # when the last request left, on the monotonic clock
    ended: float | None = None

    def __init__(
        self,
        trace: Trace,
        deployment: Deployment,
        llm: Llm,
        device: Device,
        plan: MemoryPlan,
        recorder: Recorder,
        about: dict[str, Any],
    ) -> None:
        self._trace = trace
        self._deployment = deployment
        self._llm = llm
        self._device = device
        self._plan = plan
        self._recorder = recorder
        self._about = about
        self._told: list[dict[str, Any]] = []
        self._overheads: dict[str, Any] = {}
        self._pools: tuple[int, ...] = ()
        self._limits: Limits | None = None

    def serve(
        self,
        folder: Path | None,
        seed: int,
        warmup: int,
        until: float | None,
        progress: Progress | None,
        say: Say,
    ) -> None:
        with ExitStack() as stack:
            in_memory = self._plan.kv + self._plan.weights if self._device.kind == "cpu" else 0
            scratch = stack.enter_context(Scratch(int(in_memory)))
            cast = stack.enter_context(
                Cast(self._trace, self._deployment, self._llm, self._device, self._plan, scratch)
            )
            self._pools = cast.pools
            say(f"starting {cast.count} processes")
            cast.start(folder, seed)
            self._told = cast.ready(say, progress)
            self._limits = Limits.of(self._llm.max_context, cast.pools, self._deployment.block_size)
            router = Router(
                self._trace,
                self._deployment,
                cast.ports,
                self._recorder,
                prompt_of=partial(prompt_tokens, self._trace, self._llm, seed),
                limits=self._limits,
                health=partial(self._health, cast, progress),
            )
            if warmup:
                say(f"warming up with {min(warmup, len(self._trace))} requests")
                router.warm_up(warmup)
            self.begun = True  # what is recorded from here on is worth keeping
            say(f"serving {len(self._trace)} requests")
            self.ended = router.serve(until, progress)
            self._until = monotonic()
            counts = router.stop(STOP_S)
            if self.ended is None and len(counts) == len(cast.ports):  # else some were cut off
                held = cast.blocks_in_use
                assert not held, f"{held} KV blocks were never freed"
            self._overheads = self._costs(router, counts)

    def _health(self, cast: Cast, progress: Progress | None) -> str | None:
        """What is wrong with the processes; in the warm-up also whether to go on."""
        if not self.begun and progress is not None and not progress(0, len(self._trace)):
            raise KeyboardInterrupt
        return cast.health()

    def _costs(self, router: Router, counts: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """What the runtime itself took, for the result."""
        waited = np.array(self._recorder.handover)
        return {
            "router_s": router.cost.seconds,
            "router_tokens": router.cost.tokens,
            "router_messages": router.cost.messages,
            "handover_ms": {f"p{p}": float(np.percentile(waited, p) * 1e3) for p in (50, 99, 100)}
            if len(waited)
            else {},
            "workers": [counts.get(index, {}) for index in range(self._deployment.processes)],
        }

    def refusals(self, result: Result) -> list[str]:
        """What to say of the requests that could not be served."""
        if self._limits is None:
            return []
        rejected, aborted = (
            int((result.outcome == OUTCOMES.index(fate)).sum()) for fate in ("rejected", "aborted")
        )
        return self._limits.refusals(rejected, 0 if self.failed else aborted)

    def meta(self, telemetry: Telemetry, warmup: int, told: list[str]) -> dict[str, Any]:
        """What was run, where, and what the device did meanwhile."""
        trace, deployment = self._trace, self._deployment
        notes = [*trace.notes, *notes_for(deployment, self._device), *unheeded(deployment, trace)]
        rate = trace.rate
        return {
            "model_id": self._llm.name,
            "device": str(self._device),
            "gpu": self._about["name"],
            "backend": "splitwiser-run",
            "dtype": self._llm.dtype,
            "deployment": deployment.as_dict(),
            "memory": self._plan.lines(),
            "num_gpu_blocks": list(self._pools),
            "provenance": self._about,
            "telemetry": telemetry.summary(self._recorder.epoch or inf, self._until),
            "granted_sms": [told.get("sms") for told in self._told],
            "processes": self._told,
            "warmup": min(warmup, len(trace)),
            "overheads": self._overheads,
            "traffic": trace.name,
            "request_rate": rate if np.isfinite(rate) else "inf",
            "max_concurrency": trace.max_concurrency,
            "notes": [*notes, *told],
        }
