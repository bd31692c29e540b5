"""The router over real pipes, with workers that have no device."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from threading import Thread
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in import Habits, prompt_of, token_at, work

from splitwiser.sim.admission import Limits, Outputs
from splitwiser.sim.deployment import Deployment, Workers
from splitwiser.sim.result import OUTCOMES, Result
from splitwiser.traces.trace import Trace
from splitwiser.validate.runtime.faults import RunFailed
from splitwiser.validate.runtime.recorder import Recorder
from splitwiser.validate.runtime.router import Router
from splitwiser.validate.runtime.switchboard import Port

CONTEXT = 200


class ThreadAsProcess:
    """What the router looks at of a process, for a worker that is a thread."""

    exitcode = None
    pid = 7

    def __init__(self, name: str) -> None:
        self.name = name
        self.sentinel, self._writer = os.pipe()

    def join(self, timeout: float | None = None) -> None:
        """Nothing: a thread does not end by itself."""

    def close(self) -> None:
        os.close(self.sentinel)
        os.close(self._writer)


def split(prefills: int, decodes: int) -> Deployment:
    workers = (
        Workers("prefill", prefills, max_num_batched_tokens=64),
        Workers("decode", decodes),
    )
    return Deployment("split", workers, sharing="time_slice")


def engines(count: int, routing: str = "round_robin") -> Deployment:
    workers = (Workers(processes=count, max_num_batched_tokens=64),)
    return Deployment("engines", workers, sharing="time_slice", routing=routing)


def trace_of(count: int = 12, seed: int = 0, limit: int | None = None, span: float = 0.1) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        np.sort(rng.uniform(0, span, count)),
        rng.integers(1, 60, count),
        rng.integers(1, 9, count),
        max_concurrency=limit,
    )


class Run:
    """A router with a stand-in for every worker."""

    def __init__(
        self,
        trace: Trace,
        deployment: Deployment,
        habits: Sequence[Habits] = (),
        *,
        context: int = CONTEXT,
        admitted: int = 10**6,
        processes: bool = False,
        **options: Any,
    ) -> None:
        self.trace = trace
        self.habits = [*habits, *(Habits() for _ in range(deployment.processes - len(habits)))]
        self.outputs = Outputs.of(trace.prompt_tokens, trace.output_tokens, context).tokens
        self.recorder = Recorder(trace.prompt_tokens, self.outputs)
        self._start = self._process if processes else self._thread
        self.ports = [self._port(i, group) for i, group in enumerate(deployment.each())]
        self.router = Router(
            trace,
            deployment,
            self.ports,
            self.recorder,
            prompt_of=lambda request: prompt_of(request, int(trace.prompt_tokens[request])),
            limits=Limits(context, admitted),
            **options,
        )

    def _port(self, index: int, group: Workers) -> Port:
        ours, theirs = Pipe()
        phase = "engine" if group.phase == "both" else group.phase
        arguments = (theirs, index, group.phase, self.habits[index])
        process = self._start(f"{phase} process {index}", arguments)
        return Port(index, group.phase, group, ours, process)

    def _thread(self, name: str, arguments: tuple[Any, ...]) -> Any:
        Thread(target=work, args=arguments, daemon=True).start()
        return ThreadAsProcess(name)

    def _process(self, name: str, arguments: tuple[Any, ...]) -> Any:
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=arguments, name=name, daemon=True
        )
        process.start()
        arguments[0].close()
        return process

    def result(self, until: float | None = None) -> Result:
        """The result, after the checks that hold for every run."""
        self.recorder.check()
        result = self.recorder.result({}, until=until)
        for request in range(len(result)):
            start = int(self.trace.prompt_tokens[request])
            got = self.recorder.tokens[request]
            assert got == [token_at(request, start + place) for place in range(len(got))]
        return result

    def close(self) -> None:
        for port in self.ports:
            port.connection.close()
            if isinstance(port.process, ThreadAsProcess):
                port.process.close()
            else:
                port.process.kill()  # type: ignore[attr-defined]
                port.process.join(5)


@contextmanager
def run(*args: Any, **options: Any) -> Iterator[Run]:
    made = Run(*args, **options)
    try:
        yield made
    finally:
        made.close()


def fates(result: Result) -> list[str]:
    return [OUTCOMES[code] for code in result.outcome]


# Serving ----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 14),
    st.one_of(st.none(), st.integers(1, 4)),
    st.sampled_from(
        [
            engines(1),
            engines(3),
            engines(2, "shared_queue"),
            engines(2, "contiguous"),
            split(1, 1),
            split(3, 2),
        ]
    ),
    st.sampled_from([0.0, 0.2]),
    st.integers(0, 3),
)
def test_every_request_is_served_once(
    seed: int,
    count: int,
    limit: int | None,
    deployment: Deployment,
    preempts: float,
    warmup: int,
) -> None:
    """Whatever is preempted, every request gets its own tokens, in order, and is finished."""
    habits = [Habits(preempts=preempts) for _ in range(deployment.processes)]
    with run(trace_of(count, seed, limit, 0.01), deployment, habits) as made:
        if warmup:
            made.router.warm_up(warmup)
        assert made.router.serve() is None
        result = made.result()
        assert fates(result) == ["completed"] * count
        assert list(map(len, made.recorder.tokens)) == made.outputs.tolist()
        assert made.router.cost.tokens == made.outputs.sum()
        about = made.router.stop(5.0)
        assert about.keys() == set(range(deployment.processes))
        assert sum(a["steps"] for a in about.values()) <= made.router.cost.messages + 50 * warmup


def test_nobody_is_early() -> None:
    """A request reaches its worker when its arrival is past, not before."""
    with run(trace_of(20, span=0.2), engines(1)) as made:
        made.router.serve()
        assert made.recorder.epoch is not None
        came = dict(made.habits[0].seen)
        late = [came[r] - made.recorder.epoch - made.trace.arrival[r] for r in range(20)]
        assert min(late) >= 0
        assert np.median(late) < 0.05


def test_a_closed_loop_keeps_to_its_limit() -> None:
    """No more requests than the limit overlap, and latencies count from the issue."""
    habits = [Habits(seconds=2e-3)]
    with run(trace_of(15, limit=3, span=0.0), engines(1), habits) as made:
        made.router.serve()
        result = made.result()
        inside = [
            ((result.arrival <= time) & (time < result.finished)).sum() for time in result.arrival
        ]
        assert max(inside) == 3
        assert result.arrival[3] == result.finished[:3].min()


def test_what_can_never_be_served_is_rejected_when_it_arrives() -> None:
    """Too long for a pool or for the context; it takes no place in a closed loop."""
    trace = Trace(np.zeros(4), np.array([200, 10, 151, 150]), np.full(4, 60), max_concurrency=1)
    with run(trace, split(1, 1), admitted=150) as made:
        made.router.serve()
        result = made.result()
        assert fates(result) == ["rejected", "completed", "rejected", "completed"]
        assert result.output_tokens.tolist() == [0, 60, 49, 50]


def test_a_sequence_that_outgrew_the_pools_is_aborted() -> None:
    """By the worker that cannot hold it, or by the router where it could not be computed again."""
    trace = Trace(np.zeros(3), np.array([10, 20, 40]), np.full(3, 20))
    with run(trace, split(1, 1), [Habits(), Habits(aborts=1)]) as made:
        made.router.serve()
        assert fates(made.result()) == ["completed", "aborted", "completed"]
    with run(trace, split(1, 1), [Habits(), Habits(preempts=1.0)], admitted=40) as made:
        made.router.serve()
        result = made.result()
        assert result.outcome[2] == OUTCOMES.index("aborted")
        assert result.preemptions[2] == 1
        assert len(made.recorder.tokens[0]) == 20  # a token each time


def test_a_preempted_prompt_is_urgent_and_no_other() -> None:
    """A decode process that preempts has the prompt computed again, before the others."""
    habits = [Habits(), Habits(preempts=0.3)]
    with run(trace_of(12), split(1, 1), habits) as made:
        made.router.serve()
        again = made.result().preemptions
        assert again.any()
        assert np.bincount(habits[0].urgent, minlength=12).tolist() == again.tolist()


def test_the_end_comes_when_it_was_asked_for() -> None:
    """At `until`, or when progress says so; who is in the system by then is running or waiting."""
    trace = Trace(np.array([0.0, 0.0, 9.0]), np.full(3, 10), np.array([2, 180, 3]))
    with run(trace, engines(1), [Habits(seconds=5e-3)]) as made:
        begun = monotonic()
        assert made.router.serve(until=0.3) == 0.3
        assert monotonic() - begun < 2
        result = made.result(0.3)
        assert fates(result) == ["completed", "running"]
        assert (result.token_times(1) <= 0.3).all()
    calls: list[tuple[int, int]] = []
    with run(trace, engines(1), [Habits(seconds=5e-3)]) as made:
        stopped = made.router.serve(
            progress=lambda finished, requests: (
                not calls.append((finished, requests))  # type: ignore[func-returns-value]
                and len(calls) < 3
            )
        )
        assert stopped is not None
        assert calls[-1] == (1, 3)
        assert fates(made.result(stopped)) == ["completed", "running"]


def test_a_long_line_of_long_prompts_does_not_hold_the_router_up() -> None:
    """More than a pipe holds waits with the router, which goes on listening."""
    count = 24
    arrival = np.array([0.0, *[0.05] * (count - 1)])  # the first finds its engine idle
    trace = Trace(arrival, np.full(count, 9000), np.full(count, 1))
    habits = [Habits(seconds=0.5), Habits()]
    with run(trace, engines(2), habits, context=10_000) as made:
        made.router.serve()
        result = made.result()
        # The pipe of the first is full while it computes; the second notices nothing of it.
        assert result.finished[1::2].max() < result.finished[0::2].min()


# Faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("kill", r"decode process 1 \(pid \d+\) was killed by SIGKILL"),
        ("exit", r"decode process 1 \(pid \d+\) ended too early, with exit code 3"),
        ("memory", r"decode process 1 \(pid \d+\) ran out of memory: 7 bytes wanted"),
    ],
)
def test_a_process_that_dies_ends_the_run(fault: str, line: str) -> None:
    """At once, with a line that says who and how; what had finished is kept, the rest aborted."""
    trace = Trace(np.zeros(4), np.full(4, 10), np.array([2, 2, 180, 180]))
    habits = [Habits(), Habits(fault=fault, steps=5)]
    with run(trace, split(1, 1), habits, processes=True) as made:
        with pytest.raises(RunFailed, match=f"^{line}; 2 of 4 requests had finished$"):
            made.router.serve()
        assert fates(made.result()) == ["completed", "completed", "aborted", "aborted"]


def test_a_worker_that_fails_says_why() -> None:
    """Its reason stands in the line, also while it warms up."""
    for warm in (False, True):
        with run(trace_of(), engines(1), [Habits(fault="fail", steps=1)]) as made:
            expected = r"engine process 0 \(pid 7\) failed: ValueError: no such block; \d+ of 12"
            with pytest.raises(RunFailed, match=expected):
                made.router.warm_up(2) if warm else made.router.serve()


def test_a_worker_that_stalls_counts_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that holds work and is silent; not one that has nothing to do, or waits for memory."""
    monkeypatch.setattr("splitwiser.validate.runtime.router.CHECK_S", 0.0)
    trace = Trace(np.array([0.0, 0.0]), np.full(2, 10), np.array([60, 60]))
    habits = [Habits(), Habits(seconds=0.05), Habits(fault="stall", steps=2)]
    with run(trace, split(1, 2), habits, stall_s=0.6) as made:
        expected = (
            r"decode process 2 \(pid 7\) has not answered for \d s; it holds 1 requests; 0 of 2"
        )
        with pytest.raises(RunFailed, match=expected):
            made.router.serve()
    late = Trace(np.array([0.0, 1.2]), np.full(2, 10), np.array([3, 3]))
    with run(late, split(1, 1), stall_s=0.6) as made:
        made.router.serve()
        assert made.recorder.finished == 2


def test_time_in_which_the_router_was_stopped_is_not_a_worker_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After Ctrl-Z longer than `stall_s` and `fg` the run goes on: nobody could be heard."""
    clock = SimpleNamespace(jump=0.0)
    monkeypatch.setattr(
        "splitwiser.validate.runtime.router.monotonic", lambda: monotonic() + clock.jump
    )
    trace = Trace(np.array([0.0]), np.array([10]), np.array([3]))

    def stopped(finished: int, requests: int) -> bool:
        clock.jump += 100.0 if not clock.jump else 0.0
        return True

    with run(trace, engines(1), [Habits(seconds=0.7)], stall_s=10.0) as made:
        made.router.serve(progress=stopped)
        assert clock.jump and made.recorder.finished == 1


def test_bad_health_ends_the_run() -> None:
    """What somebody else finds wrong is the line."""
    late = Trace(np.array([0.0, 60.0]), np.full(2, 10), np.array([3, 3]))
    ill = pytest.raises(RunFailed, match=r"^the MPS daemon died; [01] of 2 requests")
    with run(late, engines(1), health=lambda: "the MPS daemon died") as made, ill:
        made.router.serve()


def test_a_worker_that_hangs_up_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its process goes on."""
    monkeypatch.setattr("splitwiser.validate.runtime.switchboard.PATIENCE_S", 0.05)
    late = Trace(np.array([0.0, 60.0]), np.full(2, 10), np.array([3, 3]))
    with run(late, engines(1)) as made:
        ours, theirs = Pipe()
        theirs.close()
        ports = [Port(0, "both", made.ports[0].group, ours, made.ports[0].process)]
        made.router._board = type(made.router._board)(ports)
        with pytest.raises(RunFailed, match=r"^engine process 0 \(pid 7\) closed its connection"):
            made.router.serve()
        ours.close()


def test_a_known_cause_stands_before_what_a_worker_felt_of_it() -> None:
    """A worker that fails because the daemon has died is not the one to name."""
    told = r"^the MPS daemon died; \d+ of 12"
    habits = [Habits(fault="fail", steps=1)]
    with run(trace_of(), engines(1), habits, health=lambda: "the MPS daemon died") as made:
        made.router._checked = monotonic() + 60  # nobody has looked yet
        with pytest.raises(RunFailed, match=told):
            made.router.serve()


def _slow(finished: int, requests: int) -> bool:
    sleep(0.35)
    return True


def test_what_was_told_before_the_end_counts() -> None:
    """Steps that ended before `until` are in the result, though the router was late to read them."""
    trace = Trace(np.array([0.0, 9.0]), np.full(2, 10), np.array([500, 3]))
    with run(trace, engines(1), [Habits(seconds=5e-3)]) as made:
        made.router.serve(until=0.6, progress=_slow)
        assert made.result(0.6).token_times(0).max() > 0.5
