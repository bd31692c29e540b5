"""`execute_pipeline`: a trace through the paper's code as it is, the preset `pipeline`.

The requests are cut into contiguous shards. For each a process tokenises synthetic documents of the
requests' lengths, then a process is started that runs `transformers`' `generate`, batch after
batch: padded to the batch's longest prompt, run to its longest output. A batch waits until its
requests have arrived; they are known, as in the paper, from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from splitwiser.models.llm import Llm
from splitwiser.sim.admission import Outputs, routes
from splitwiser.sim.deployment import Deployment
from splitwiser.sim.result import Result
from splitwiser.traces.trace import Trace
from splitwiser.validate.runtime.device import Device, device_named, notes_for, provenance
from splitwiser.validate.runtime.documents import documents, trained
from splitwiser.validate.runtime.faults import RunFailed
from splitwiser.validate.runtime.generate_stage import Shard, Stage, Staggered
from splitwiser.validate.runtime.generate_worker import Serve
from splitwiser.validate.runtime.messages import Ids, Step
from splitwiser.validate.runtime.recorder import Recorder
from splitwiser.validate.runtime.telemetry import Telemetry
from splitwiser.validate.runtime.unheeded import unheeded

PROGRESS_S = 0.25  # between two calls of progress

Progress = Callable[[int, int], bool]
Say = Callable[[str], None]


def execute_pipeline(
    trace: Trace,
    deployment: Deployment,
    llm: Llm,
    device: str = "cuda:0",
    *,
    weights: Path | None = None,
    seed: int = 0,
    until: float | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
    tokens: dict[int, list[int]] | None = None,
) -> Result:
    """Serve *trace* as the paper's code does; parameters, result and errors are `execute`'s.

    The clock starts with the first tokenising process, so that the start of every process is in the
    times. A token's time is when the host had read it. There is no warm-up, and no block pool: the
    blocks of the result are those that a batch's padded keys and values would fill.
    """
    _refuse(trace, deployment)
    run = _Run(trace, deployment, llm, device_named(device), seed)
    failure: RunFailed | None = None
    with Telemetry(run.device) as telemetry:
        try:
            run.serve(weights, until, progress or (lambda finished, requests: True), say)
        except RunFailed as error:
            failure = error
            run.recorder.fail()
    run.recorder.check()
    if tokens is not None:
        tokens.update(enumerate(run.recorder.tokens))
    begun = run.recorder.epoch is not None
    result = run.recorder.result(run.meta(telemetry), until=run.ended) if begun else None
    if failure is not None:
        failure.result = result
        raise failure
    assert result is not None
    return result


def _refuse(trace: Trace, deployment: Deployment) -> None:
    """Raise ValueError, in one line, for what the paper's code cannot be asked to do."""
    groups = list(deployment.each())
    if any(group.phase != "both" or group.scheduler != "static" for group in groups):
        raise ValueError(
            'start = "staggered" is the paper\'s code: it needs phase = "both" and '
            'scheduler = "static" of every worker'
        )
    if deployment.routing != "contiguous" and len(groups) > 1:
        raise ValueError(
            f'routing = "{deployment.routing}": the paper\'s code takes "contiguous" shards'
        )
    if trace.max_concurrency is not None:
        raise ValueError(
            f"max_concurrency = {trace.max_concurrency}: the paper's code has its batches from the "
            "start; take a trace without"
        )


class _Run:
    """One run: its record, and what is known of it at its end."""

    ended: float | None = None  # s after the epoch; None where all were served

    def __init__(
        self, trace: Trace, deployment: Deployment, llm: Llm, device: Device, seed: int
    ) -> None:
        self.device = device
        outputs = Outputs.of(trace.prompt_tokens, trace.output_tokens, llm.max_context)
        self.recorder = Recorder(trace.prompt_tokens, outputs.tokens)
        self._trace, self._deployment, self._llm, self._seed = trace, deployment, llm, seed
        self._too_long = trace.prompt_tokens >= llm.max_context
        said = [*notes_for(deployment, device), *unheeded(deployment, trace)]
        self._notes = [*trace.notes, *said, *outputs.notes]
        self._here = 0  # requests that have arrived
        self._processes: list[dict[str, Any]] = []
        lines = routes("contiguous", deployment.processes, len(trace)).lines
        self._shards = [np.array([r for r in line if not self._too_long[r]], int) for line in lines]

    def serve(
        self, weights: Path | None, until: float | None, progress: Progress, say: Say | None
    ) -> None:
        """Run to the end of the trace, until *until* (s), or until *progress* says no."""
        tokenizer = trained(self._llm.vocab, self._seed)
        lengths = [self._trace.prompt_tokens[requests].tolist() for requests in self._shards]
        shards = [Shard(documents(n, self._seed + r), n) for r, n in enumerate(lengths)]
        stage = Stage(
            self._llm,
            self.device,
            self._deployment,
            weights,
            self._seed,
            lambda: progress(0, len(self._trace)),
        )
        with stage:
            if say is not None:
                say(f"starting {2 * len(shards)} processes, one after another")
            epoch = monotonic()
            self.recorder.start(epoch, until)
            run = Staggered(stage, tokenizer, shards, self._order)
            try:
                self._follow(run, epoch, until, progress)
                if self.ended is not None:  # what they are at is not wanted
                    stage.children.kill()
            finally:
                self._processes = [
                    {
                        "sms": ready.about["sms"],
                        "tokenised_s": run.tokenised[number] - epoch,
                        "ready_s": run.ready_at[number] - epoch,
                    }
                    for number, ready in sorted(run.ready.items())
                ]
                self._arrive(monotonic() - epoch if self.ended is None else self.ended)

    def _follow(
        self, run: Staggered, epoch: float, until: float | None, progress: Progress
    ) -> None:
        """Write down what the processes say."""
        latest = epoch
        for news in run.messages():
            now = monotonic()
            self._arrive(now - epoch)
            if news is not None and isinstance(news[1], Step):
                self.recorder.step(news[1])
            if until is not None and now - epoch >= until:
                self.ended = until
                return
            if now - latest >= PROGRESS_S:
                latest = now
                if not progress(self.recorder.finished, len(self._trace)):
                    self.ended = now - epoch
                    return

    def _arrive(self, time: float) -> None:
        """Note who has arrived by *time*, s after the epoch."""
        arrival = self._trace.arrival
        last = int(np.searchsorted(arrival, time, side="right"))
        for request in range(self._here, last):
            self.recorder.arrived(request, float(arrival[request]))
            if self._too_long[request]:
                self.recorder.rejected(request)
        self._here = max(self._here, last)

    def _order(self, number: int, ids: list[Ids]) -> Serve:
        """What process *number* shall serve."""
        requests, epoch = self._shards[number], self.recorder.epoch
        assert epoch is not None
        group = list(self._deployment.each())[number]
        return Serve(
            requests.astype(np.int32),
            epoch + self._trace.arrival[requests],
            ids,
            self.recorder.outputs[requests],
            group.max_num_seqs,
            self._deployment.block_size,
        )

    def meta(self, telemetry: Telemetry) -> dict[str, Any]:
        """What was run, where, and what the device did meanwhile; the keys of `execute`."""
        llm, about, epoch = self._llm, provenance(self.device), self.recorder.epoch
        assert epoch is not None
        rejected = int(self._too_long[: self._here].sum())
        if rejected:
            self._notes.append(
                f"{rejected} requests rejected: no room for their prompts in the context of "
                f"{llm.max_context} tokens"
            )
        rate = self._trace.rate
        copies = 1 if self._deployment.weights == "shared" else self._deployment.processes
        held = copies * llm.weight_bytes
        return {
            "model_id": llm.name,
            "device": str(self.device),
            "gpu": about["name"],
            "backend": "splitwiser-run",
            "dtype": llm.dtype,
            "deployment": self._deployment.as_dict(),
            "memory": [f"weights {held / 2**30:.3g} GiB; keys and values as `generate` needs them"],
            "num_gpu_blocks": [],
            "provenance": about,
            "telemetry": telemetry.summary(epoch, monotonic()),
            "granted_sms": [told["sms"] for told in self._processes],
            "processes": self._processes,
            "warmup": 0,
            "overheads": {},
            "traffic": self._trace.name,
            "request_rate": rate if np.isfinite(rate) else "inf",
            "max_concurrency": None,
            "notes": self._notes,
        }
