"""`Recorder`: what the workers report, written down as the simulator would have written it.

A step is one row of `splitwiser.sim.log.STRETCH`, and the steps of a worker in which a request was
decoded, one after another, are one stay: so every summary of a `Result` reads both alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwiser.sim.log import STRETCH, Log, pack_stay, pack_stretch
from splitwiser.sim.result import Result
from splitwiser.validate.runtime.messages import Computed, Step

Ints = NDArray[np.int64]


class _Line:
    """What is known of one worker: its decode steps so far, and who is in its batch."""

    __slots__ = ("stays", "step")

    def __init__(self) -> None:
        self.step = 0
        # by request: the step before its first one here, and when it got its token before that
        self.stays: dict[int, tuple[int, float]] = {}


class Recorder:
    """Turns messages of workers into a `Result`.

    *prompts* and *outputs* are the tokens of every request, the outputs as they will be generated.
    Times come as `time.monotonic()` and are kept in seconds after the *epoch*, which `start` sets.
    Before that only warm-up requests run: of them the tokens are kept, and nothing else. Their
    negative numbers count from the end of every list here, behind the requests of the trace.

    `tokens[request]` are the tokens generated so far, `handover` the seconds from the end of the
    step that computed a prompt until a decode worker had its sequence, `finished` the number of
    requests that have all their tokens.
    """

    def __init__(self, prompts: Ints, outputs: Ints) -> None:
        self.prompts = prompts
        self.outputs = outputs
        self.epoch: float | None = None
        self._clear(outputs)

    def _clear(self, outputs: Ints) -> None:
        requests = len(outputs)
        self.tokens: list[list[int]] = [[] for _ in range(requests)]
        self.handover: list[float] = []
        self.finished = 0
        self._log = Log(requests)
        self._lines: dict[int, _Line] = {}
        self._left = outputs.astype(np.int64)  # tokens to come, a copy
        self._arrival = [inf] * requests
        self._latest = [0.0] * requests  # when each got its latest token
        self._handed: dict[int, float] = {}  # when prompts were computed that are on their way
        self._until: float | None = None

    # The clock --------------------------------------------------------------------------------

    def warm_up(self, outputs: Ints) -> None:
        """Expect warm-up requests -1, -2, ... of so many output tokens each."""
        self._clear(np.concatenate((self.outputs, outputs[::-1])))

    def start(self, epoch: float, until: float | None = None) -> None:
        """The clock starts at *epoch* (monotonic); what ends more than *until* s later is ignored."""
        self._clear(self.outputs)
        self.epoch, self._until = epoch, until

    # Messages ---------------------------------------------------------------------------------

    def to_come(self, request: int) -> int:
        """Tokens that a request has still to get."""
        return int(self._left[request])

    def arrived(self, request: int, time: float) -> None:
        """A request has arrived (or was issued), *time* s after the epoch."""
        self._arrival[request] = time

    def rejected(self, request: int) -> None:
        """A request that has arrived can never be served."""
        self._log.outcome[request] = Log.REJECTED

    def aborted(self, request: int) -> None:
        """A request left unfinished."""
        self._close_stays(request)
        self._log.outcome[request] = Log.ABORTED

    def preempted(self, worker: int, request: int) -> None:
        """A request left the batch of a worker before its end."""
        self._log.preemptions[request] += 1
        self._close_stay(self._line(worker), worker, request)

    def step(self, step: Step) -> list[int] | None:
        """A step has ended: note its tokens; the requests that got their last one.

        None where the step is ignored, because it ended too late.
        """
        if self.epoch is None:
            return self._give(step)
        start, end = step.start - self.epoch, step.end - self.epoch
        if self._until is not None and end > self._until:
            return None
        scheduled = self._log.scheduled
        for request in step.scheduled:
            if isnan(scheduled[request]):
                scheduled[request] = start
        line = self._line(step.worker)
        joined = self._follow(line, step)
        batch = len(step.decoded)
        if batch or step.prompt_tokens:
            self._log.stretches += pack_stretch(
                step.worker,
                start,
                end,
                1.0,
                0.0,
                end - start,
                0.0,
                1.0,
                batch,
                joined,
                step.prompt_tokens,
                step.blocks,
            )
        for request, received in step.received:
            if request in self._handed:
                self.handover.append(received - self.epoch - self._handed.pop(request))
        for request in step.decoded.tolist():
            self._latest[request] = end
        for computed in step.computed:
            self._computed(line, step.worker, computed, end)
        finished = self._give(step)
        for request in finished:
            self._log.finished[request] = end
            self._close_stays(request)
        self.finished += len(finished)
        return finished

    def fail(self) -> None:
        """The run ends by a fault: whoever has arrived and not left is aborted."""
        outcome, finished = self._log.outcome, self._log.finished
        for request, arrival in enumerate(self._arrival):
            if arrival < inf and outcome[request] == Log.IN_SYSTEM and isnan(finished[request]):
                self.aborted(request)

    # The result -------------------------------------------------------------------------------

    def result(self, meta: Mapping[str, Any], *, until: float | None = None) -> Result:
        """What became of every request that arrived by *until*, s after the epoch, where it ended.

        A request that has not left the system is running or waiting. Nothing may be recorded after
        this.
        """
        for worker, line in self._lines.items():
            for request, (joined, last_token) in line.stays.items():
                self._log.stays += pack_stay(request, worker, joined, inf, last_token)
            line.stays.clear()
        return Result.from_log(
            self._log,
            arrival=self._arrival,
            prompt_tokens=self.prompts,
            output_tokens=self.outputs,
            until=until,
            meta=meta,
        )

    def check(self) -> None:
        """Assert that no request and no token was lost or made up, and that time ran forward."""
        log = self._log
        for request, arrival in enumerate(self._arrival):
            got, outcome = len(self.tokens[request]), log.outcome[request]
            done = not isnan(log.finished[request])
            assert not (done and outcome != Log.IN_SYSTEM), f"request {request} has two fates"
            assert arrival < inf or not (got or done or outcome), f"request {request} never arrived"
            wanted = self.outputs[request]
            assert got == wanted if done else got < wanted or not got, (
                f"request {request} got {got} of {wanted} tokens, finished: {done}"
            )
            times = [arrival, log.scheduled[request], log.first_token[request]]
            times = [t for t in (*times, log.finished[request]) if not isnan(t)]
            assert times == sorted(times), f"request {request} has times {times}"
        decoded = int(log.stretch_rows()[:, STRETCH.index("batch")].sum())
        computed = sum(not isnan(time) for time in log.first_token) + len(log.regained)
        given = sum(map(len, self.tokens))
        assert given == decoded + computed, (
            f"{given} tokens, but {decoded} decoded and {computed} from prompts"
        )

    # Parts ------------------------------------------------------------------------------------

    def _line(self, worker: int) -> _Line:
        line = self._lines.get(worker)
        if line is None:
            line = self._lines[worker] = _Line()
        return line

    def _follow(self, line: _Line, step: Step) -> int:
        """Keep the stays of a worker in step with its batch; how many joined it."""
        if not len(step.decoded):
            return 0
        members = step.decoded.tolist()
        fresh = [request for request in members if request not in line.stays]
        if len(line.stays) + len(fresh) > len(members):
            for request in line.stays.keys() - members:
                self._close_stay(line, step.worker, request)
        for request in fresh:
            line.stays[request] = (line.step, self._latest[request])
        line.step += 1
        return len(fresh)

    def _close_stay(self, line: _Line, worker: int, request: int) -> None:
        stay = line.stays.pop(request, None)
        if stay is not None:
            joined, last_token = stay
            self._log.stays += pack_stay(request, worker, joined, line.step, last_token)

    def _close_stays(self, request: int) -> None:
        """Wherever a request is in the batch, it leaves."""
        for worker, line in self._lines.items():
            self._close_stay(line, worker, request)

    def _computed(self, line: _Line, worker: int, computed: Computed, end: float) -> None:
        """A prompt gave a token: the first, or after a preemption a later one."""
        request = computed.request
        if isnan(self._log.first_token[request]):
            self._log.first_token[request] = end
        else:
            # A stay without a step tells of this token, as in the simulator.
            self._log.stays += pack_stay(request, worker, line.step, line.step, end)
            self._log.regained.append(end - self._latest[request])
        self._latest[request] = end
        if computed.blocks is not None:
            self._handed[request] = end

    def _give(self, step: Step) -> list[int]:
        """Keep the tokens of a step; the requests that got their last one."""
        tokens = self.tokens
        for request, token in zip(step.decoded.tolist(), step.tokens.tolist(), strict=True):
            tokens[request].append(token)
        self._left[step.decoded] -= 1
        finished: list[int] = step.decoded[self._left[step.decoded] == 0].tolist()
        for request, token, _ in step.computed:
            tokens[request].append(token)
            self._left[request] -= 1
            if not self._left[request]:
                finished.append(request)
        return finished
