"""`Router`: replays a trace in real time over worker processes, and collects what they tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import Any, NamedTuple, NoReturn

import numpy as np

from splitwiser.sim.admission import Limits
from splitwiser.sim.deployment import Deployment
from splitwiser.traces.trace import Trace
from splitwiser.validate.runtime import messages
from splitwiser.validate.runtime.dispatch import Arrivals, Dispatch
from splitwiser.validate.runtime.faults import RunFailed
from splitwiser.validate.runtime.messages import (
    Aborted,
    Ids,
    Preempted,
    Prompt,
    Step,
    Stop,
    Stopped,
)
from splitwiser.validate.runtime.recorder import Recorder
from splitwiser.validate.runtime.switchboard import Gone, Port, Switchboard

TICK_S = 0.25  # between two reports of progress
CHECK_S = 1.0  # between two looks at the health of all
LEAD_S = 2e-3  # before the clock starts, so that a first arrival at 0 is not late

Progress = Callable[[int, int], bool]


class Cost(NamedTuple):
    """What the router itself took while it served: seconds in which it did not wait for workers.

    Reports of progress, and looks at everybody's health, are not in it.
    """

    seconds: float
    tokens: int
    messages: int


class Router:
    """Serves a trace with the workers behind some ports, which are ready.

    *prompt_of* gives the token ids of a request, as many as the trace says. A request
    beyond the *limits* is rejected when it arrives. *health* is asked about once a second, and says
    in a line why the run cannot go on. A worker that holds work and tells of no step for *stall_s*
    seconds counts as dead.

    Whatever dies, `RunFailed` says who; the *recorder* then has what finished before.
    """

    def __init__(
        self,
        trace: Trace,
        deployment: Deployment,
        ports: Sequence[Port],
        recorder: Recorder,
        *,
        prompt_of: Callable[[int], Ids],
        limits: Limits,
        health: Callable[[], str | None] = lambda: None,
        stall_s: float = 60.0,
    ) -> None:
        self.cost = Cost(0.0, 0, 0)
        self._trace = trace
        self._ports = ports
        self._recorder = recorder
        self._prompt_of = prompt_of
        self._limits = limits
        self._health = health
        self._stall_s = stall_s
        self._never = limits.never(trace.prompt_tokens)
        self._dispatch = Dispatch(deployment, len(trace))
        self._board = Switchboard(ports)
        self._arrivals = Arrivals(trace.arrival.tolist(), trace.max_concurrency)
        self._prompts: dict[int, Ids] = {}  # of the requests in the system
        self._left = 0  # requests of the trace that have their fate
        self._warming: set[int] = set()
        self._epoch = 0.0
        self._heard = [monotonic()] * len(ports)  # when each worker last told of something
        self._looked = self._checked = 0.0
        self._messages = 0

    # Serving ----------------------------------------------------------------------------------

    def warm_up(self, count: int) -> None:
        """Serve *count* requests like the trace's first ones, all at once, before the clock starts.

        Raises RunFailed where a worker dies.
        """
        first = [r for r in range(len(self._trace)) if r not in self._never][:count]
        self._recorder.warm_up(self._recorder.outputs[first])
        for number, request in enumerate(first, start=1):
            self._warming.add(-number)
            self._submit(-number, self._prompt_of(request))
        self._looked = monotonic()
        while self._warming:
            self._turn(monotonic() + TICK_S)
            self._watch(monotonic())

    def serve(self, until: float | None = None, progress: Progress | None = None) -> float | None:
        """Replay the trace to its end, or to *until* s, or until *progress* returns False.

        *progress* is called a few times a second with the requests finished and those of the trace.
        Returns when the run was stopped, in seconds of its clock, if it was. Raises RunFailed where
        a worker dies.
        """
        requests = len(self._trace)
        self._epoch = epoch = monotonic() + LEAD_S
        self._recorder.start(epoch, until)
        end = inf if until is None else epoch + until
        begun, tick, aside = monotonic(), epoch, self._board.waited
        self._looked = begun
        self._messages = 0
        try:
            while self._left < requests:
                now = monotonic()
                if now >= end:
                    self._take_rest()
                    return until
                self._issue(now - epoch)
                if now >= tick:
                    tick = now + TICK_S
                    going = progress is None or progress(self._recorder.finished, requests)
                    self._watch(now)
                    aside -= monotonic() - now
                    if not going:
                        self._take_rest()
                        return monotonic() - epoch
                self._turn(min(epoch + self._arrivals.next_at, tick, end))
        finally:
            seconds = monotonic() - begun - (self._board.waited - aside)
            self.cost = Cost(seconds, sum(map(len, self._recorder.tokens)), self._messages)
        if progress is not None:
            progress(self._recorder.finished, requests)
        return None

    def stop(self, seconds: float) -> dict[int, dict[str, Any]]:
        """Have all workers leave; what each counted. Who does not answer in time is left out."""
        self._board.broadcast(Stop())
        deadline = monotonic() + seconds
        waiting = {port.index for port in self._ports}
        about: dict[int, dict[str, Any]] = {}
        while waiting and monotonic() < deadline:
            for worker, message in self._board.turn(deadline - monotonic()):
                if isinstance(message, Stopped):
                    about[worker] = message.about
                    self._board.dismiss(worker)
                if isinstance(message, Stopped | Gone):
                    waiting.discard(worker)
        return about

    # Requests ---------------------------------------------------------------------------------

    def _issue(self, now: float) -> None:
        """Take in the requests that are due, *now* s after the epoch."""
        while (issued := self._arrivals.issue(now)) is not None:
            request, time = issued
            self._recorder.arrived(request, time)
            if request in self._never:
                self._recorder.rejected(request)
                self._leave(request, time)
            else:
                self._submit(request, self._prompt_of(request))

    def _submit(self, request: int, prompt: Ids) -> None:
        self._prompts[request] = prompt
        self._dispatch.submit(request, len(prompt))

    def _tokens(self, request: int) -> Ids:
        """The prompt of a request, and what it has generated."""
        prompt, generated = self._prompts[request], self._recorder.tokens[request]
        if not generated:
            return prompt
        return np.concatenate((prompt, np.array(generated, np.int32)))

    def _leave(self, request: int, time: float) -> None:
        """A request has its fate, *time* s after the epoch."""
        self._prompts.pop(request, None)
        if request < 0:
            self._warming.remove(request)
        else:
            self._left += 1
            self._arrivals.complete(time)

    # Messages ---------------------------------------------------------------------------------

    def _turn(self, deadline: float) -> None:
        """Send what can go out, and take what comes, waiting for it until *deadline* (monotonic)."""
        for request, worker in self._dispatch.assign():
            tokens, outputs = self._tokens(request), self._recorder.to_come(request)
            urgent = len(tokens) > len(self._prompts[request])
            self._board.post(worker, Prompt(request, tokens, outputs, urgent))
        for worker, message in self._board.turn(deadline - monotonic()):
            if isinstance(message, Gone):
                self._fail(self._health() or message.line)  # what it died of, if that is known
            self._take(worker, message)

    def _take(self, worker: int, message: object) -> None:
        self._messages += 1
        self._heard[worker] = monotonic()
        match message:
            case Step():
                self._stepped(message)
            case Preempted(_, request, kept):
                self._recorder.preempted(worker, request)
                if not kept:
                    self._recompute(request)
            case Aborted(_, request):
                self._dispatch.leave(request)
                self._abort(request)
            case _:
                self._fail(f"{self._board.who(worker)} said {type(message).__name__} unasked")

    def _take_rest(self) -> None:
        """Take what the workers have told already."""
        for worker, message in self._board.remaining():
            if isinstance(message, Step | Preempted | Aborted):
                self._take(worker, message)

    def _stepped(self, step: Step) -> None:
        for request, token, blocks in step.computed:  # first: decode workers wait for them
            if blocks is not None:
                self._hand_over(request, token, blocks)
        finished = self._recorder.step(step)
        if finished is None:
            return
        for request in step.scheduled:
            self._dispatch.scheduled(request)
        for request, _, blocks in step.computed:
            if blocks is None:
                self._dispatch.scheduled(request)
        for request in finished:
            self._dispatch.leave(request)
            self._leave(request, step.end - self._epoch)

    def _hand_over(self, request: int, token: int, blocks: Ids) -> None:
        """A prompt is computed: its sequence goes on in a decode worker."""
        length = len(self._prompts[request]) + len(self._recorder.tokens[request])
        outputs = self._recorder.to_come(request) - 1
        worker = self._dispatch.hand_over(request)
        self._board.post(worker, messages.Sequence(request, token, length, outputs, blocks))

    def _recompute(self, request: int) -> None:
        """A sequence lost its blocks: its prompt, with all that it generated, is urgent."""
        self._dispatch.leave(request)
        tokens = len(self._tokens(request))
        if tokens > self._limits.admitted:
            self._abort(request)
        else:
            self._dispatch.submit(request, tokens, urgent=True)

    def _abort(self, request: int) -> None:
        self._recorder.aborted(request)
        self._leave(request, monotonic() - self._epoch)

    # Faults -----------------------------------------------------------------------------------

    def _watch(self, now: float) -> None:
        """Once in a while: whether all that should be is alive."""
        missed = now - self._looked - TICK_S
        self._looked = now
        if missed > CHECK_S:  # this process was stopped (Ctrl-Z), and in that time heard nobody
            self._heard = [min(now, heard + missed) for heard in self._heard]
        if now < self._checked + CHECK_S:
            return
        self._checked = now
        if (ill := self._health()) is not None:
            self._fail(ill)
        held_by = self._dispatch.held
        self._heard = [
            heard if held else now for heard, held in zip(self._heard, held_by, strict=True)
        ]
        busy = [port for port in self._ports if held_by[port.index]]
        latest = max((self._heard[port.index] for port in busy), default=now)
        for port in busy:
            # A prefill worker may have to wait for memory that decode workers hold.
            heard = latest if port.phase == "prefill" else self._heard[port.index]
            if now - heard > self._stall_s:
                self._fail(
                    f"{self._board.who(port.index)} has not answered for {now - heard:.0f} s; "
                    f"it holds {held_by[port.index]} requests"
                )

    def _fail(self, line: str) -> NoReturn:
        """End the run; what the other workers have told by now still counts."""
        self._take_rest()
        self._recorder.fail()
        finished, requests = self._recorder.finished, len(self._trace)
        raise RunFailed(f"{line}; {finished} of {requests} requests had finished")
