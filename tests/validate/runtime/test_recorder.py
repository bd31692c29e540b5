"""The recorder against the simulator: the same steps give the same result."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models.catalogue import llm
from splitwiser.models.gpu import gpu
from splitwiser.sim.deployment import PRESETS, Deployment, Workers
from splitwiser.sim.log import STAY, STRETCH
from splitwiser.sim.result import OUTCOMES, Result
from splitwiser.sim.simulate import simulate
from splitwiser.traces.trace import Trace
from splitwiser.validate.runtime.messages import Computed, Preempted, Step
from splitwiser.validate.runtime.recorder import Recorder

EPOCH = 1000.0


class Made(NamedTuple):
    """A step of the simulator: a whole run that computes prompts, or one step that decodes."""

    worker: int
    start: float
    end: float
    tokens: int
    blocks: int
    decoded: list[int]
    computed: list[int]
    scheduled: list[int]


def served(preset: str, seed: int, order: str = "fcfs", preemption: str = "recompute") -> Result:
    """A small trace, in a pool so small that sequences are preempted."""
    rng = np.random.default_rng(seed)
    count = 25
    trace = Trace(
        np.cumsum(rng.exponential(0.004, count)),
        rng.integers(1, 400, count),
        rng.integers(1, 80, count),
        max_concurrency=int(rng.integers(3, 40)),
    )
    deployment = PRESETS[preset]().override(
        num_gpu_blocks=40, startup_s=0.01, order=order, preemption=preemption
    )
    return simulate(trace, deployment, llm("facebook/opt-125m"), gpu("a100-80gb"))


def close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-12 * max(abs(a), abs(b))


def steps_of(result: Result) -> list[Made]:
    """Every step that the simulator made, from its rows."""
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in result.timeline.stays:
        stay = dict(zip(STAY, row, strict=True))
        worker = int(stay["worker"])
        left = int(min(stay["left"], result.timeline.made(worker)))
        for step in range(int(stay["joined"]), left):
            members[worker, step].append(int(stay["request"]))
    made: list[Made] = []
    begun: dict[int, float] = {}  # of the run that a worker has on the device
    done: dict[int, int] = defaultdict(int)  # decode steps of a worker
    for values in result.timeline.stretches:
        row = dict(zip(STRETCH, values.tolist(), strict=True))
        worker, steps = int(row["worker"]), int(row["steps"])
        start = begun.setdefault(worker, row["start"])
        if steps < 0:
            continue  # its rate changed: the run goes on in another row
        del begun[worker]
        ends = [row["end"]]
        if row["batch"]:
            numbers = np.arange(done[worker], done[worker] + steps)
            ends = result.timeline.step_ends(worker, numbers).tolist()
        for begin, end in pairwise([start, *ends]):
            decoded = members[worker, done[worker]] if row["batch"] else []
            done[worker] += bool(row["batch"])
            tokens, blocks = int(row["tokens"]), int(row["blocks"])
            made.append(Made(worker, begin, end, tokens, blocks, decoded, [], []))
    return made


def annotate(result: Result, made: list[Made]) -> None:
    """Find the step that computed each prompt, and the one that began it."""
    decoded: dict[int, list[float]] = defaultdict(list)
    for step in made:
        for request in step.decoded:
            decoded[request].append(step.end)
    for request in range(len(result)):
        left = list(decoded[request])
        for time in result.token_times(request):
            if left and close(left[0], time):
                left.pop(0)
                continue
            step = next(s for s in made if s.tokens and close(s.end, time))
            step.computed.append(request)
        begun = result.scheduled[request]
        if not np.isnan(begun):
            next(s for s in made if s.tokens and close(s.start, begun)).scheduled.append(request)


def messages_of(result: Result) -> list[Step | Preempted]:
    """What the workers of a real run would have said."""
    made = steps_of(result)
    annotate(result, made)
    timed: list[tuple[float, int, Step | Preempted]] = []
    for step in made:
        timed.append((step.end, 0, message(step)))
    preempted = [0] * len(result)
    for row in result.timeline.stays:
        stay = dict(zip(STAY, row, strict=True))
        request, worker, left = int(stay["request"]), int(stay["worker"]), stay["left"]
        if left > stay["joined"] and left <= result.timeline.made(worker):
            end = float(result.timeline.step_ends(worker, np.array([int(left) - 1]))[0])
            if not close(end, result.finished[request]):
                preempted[request] += 1
                timed.append((end, 1, Preempted(worker, request, True)))
    for request, missing in enumerate(result.preemptions - preempted):
        # Before its first step in the batch: it had no stay there that could end.
        first = float(result.first_token[request])
        timed.extend([(first, 1, Preempted(0, request, True))] * int(missing))
    return [said for _, _, said in sorted(timed, key=lambda entry: entry[:2])]


def message(step: Made) -> Step:
    decoded = np.array(step.decoded, np.int32)
    return Step(
        step.worker,
        step.start,
        step.end,
        tuple(step.scheduled),
        decoded,
        decoded,
        tuple(Computed(request, request) for request in step.computed),
        step.tokens,
        step.blocks,
    )


def recorded(result: Result) -> Recorder:
    recorder = Recorder(result.prompt_tokens, result.output_tokens)
    recorder.start(0.0)  # so that no time is rounded
    for request, time in enumerate(result.arrival.tolist()):
        recorder.arrived(request, time)
        if result.outcome[request] == OUTCOMES.index("rejected"):
            recorder.rejected(request)
    for said in messages_of(result):
        if isinstance(said, Step):
            recorder.step(said)
        else:
            recorder.preempted(said.worker, said.request)
    for request in np.flatnonzero(result.outcome == OUTCOMES.index("aborted")).tolist():
        recorder.aborted(request)
    return recorder


def assert_alike(made: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert made.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, int | float):
            value = pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True)
        assert made[key] == value, key


@pytest.mark.parametrize("order", ["fcfs", "shortest_prompt"])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_steps_of_a_simulation_give_its_result(
    preset: str, preemption: str, order: str
) -> None:
    """Told step by step of what the simulator did, the recorder finds the same times."""
    preempted = 0
    for seed in range(2):
        wanted = served(preset, seed, order, preemption)
        preempted += int(wanted.preemptions.sum())
        recorder = recorded(wanted)
        recorder.check()
        made = recorder.result(wanted.meta)
        for name in ("scheduled", "first_token", "finished", "ttft", "tpot", "e2el"):
            ours, theirs = getattr(made, name), getattr(wanted, name)
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9, nan_ok=True), name
        assert made.outcome.tolist() == wanted.outcome.tolist()
        for request in range(len(wanted)):
            assert made.token_times(request) == pytest.approx(
                wanted.token_times(request), rel=1e-9, abs=1e-9
            )
        assert_alike(
            made.summary(percentiles=(50, 90, 99)), wanted.summary(percentiles=(50, 90, 99))
        )
        assert recorder.finished == int(wanted.completed.sum())
    assert preempted or preset == "split"


def step(
    worker: int,
    start: float,
    end: float,
    decoded: list[int] = [],  # noqa: B006 - never changed
    computed: tuple[Computed, ...] = (),
    scheduled: tuple[int, ...] = (),
    received: tuple[tuple[int, float], ...] = (),
) -> Step:
    ids = np.array(decoded, np.int32)
    tokens = 5 * len(computed)
    return Step(
        worker, EPOCH + start, EPOCH + end, scheduled, ids, ids, computed, tokens, 1, received
    )


def small(outputs: list[int]) -> Recorder:
    recorder = Recorder(np.full(len(outputs), 5), np.array(outputs))
    recorder.start(EPOCH)
    for request in range(len(outputs)):
        recorder.arrived(request, 0.0)
    return recorder


def test_who_is_left_out_of_a_step_has_the_longer_gap() -> None:
    """A sequence that a worker passes over for a step leaves its batch and joins it again."""
    recorder = small([4, 3])
    recorder.step(step(0, 0, 1, computed=(Computed(0, 7), Computed(1, 7)), scheduled=(0, 1)))
    recorder.step(step(0, 1, 2, [0, 1]))
    recorder.step(step(0, 2, 3, [0]))
    recorder.step(step(0, 3, 4, [0, 1]))
    recorder.check()
    result = recorder.result({})
    assert result.token_times(0).tolist() == [1, 2, 3, 4]
    assert result.token_times(1).tolist() == [1, 2, 4]
    assert sorted(result.itl.expand().tolist()) == [1, 1, 1, 1, 2]


def test_warm_up_leaves_no_trace() -> None:
    """Requests with negative numbers get their tokens, and are in no row of the result."""
    recorder = Recorder(np.array([5, 6]), np.array([2, 3]))
    recorder.warm_up(np.array([2, 3]))
    assert recorder.to_come(-1) == 2
    assert recorder.to_come(-2) == 3
    both = (Computed(-1, 70), Computed(-2, 80))
    assert recorder.step(step(0, -9, -8, computed=both, scheduled=(-1, -2))) == []
    assert recorder.step(step(0, -8, -7, [-1, -2])) == [-1]
    assert recorder.tokens[-1] == [70, -1]
    assert recorder.step(step(0, -7, -6, [-2])) == [-2]
    recorder.start(EPOCH)
    recorder.check()
    result = recorder.result({})
    assert len(result) == 0
    assert not len(result.timeline.stretches)
    assert recorder.finished == 0
    assert recorder.tokens == [[], []]


def test_a_fault_aborts_whoever_is_in_the_system_and_nobody_else() -> None:
    """Finished requests stay finished, and those that never came are not in the result."""
    recorder = Recorder(np.full(4, 5), np.array([1, 3, 3, 3]))
    recorder.start(EPOCH)
    for request in range(3):
        recorder.arrived(request, 0.0)
    recorder.step(step(0, 0, 1, computed=(Computed(0, 7), Computed(1, 7)), scheduled=(0, 1)))
    recorder.step(step(0, 1, 2, [1]))
    recorder.fail()
    recorder.check()
    result = recorder.result({})
    assert [OUTCOMES[code] for code in result.outcome] == ["completed", "aborted", "aborted"]
    assert result.token_times(1).tolist() == [1, 2]


def test_what_ends_after_the_end_is_ignored() -> None:
    """A step that ends after `until` gives nobody a token; who got some before is running."""
    recorder = Recorder(np.full(2, 5), np.array([3, 3]))
    recorder.start(EPOCH, until=2.5)
    for request in range(2):
        recorder.arrived(request, 0.0)
    recorder.step(step(0, 0, 1, computed=(Computed(0, 7),), scheduled=(0,)))
    recorder.step(step(0, 1, 2, [0]))
    assert recorder.step(step(0, 2, 3, [0])) is None
    recorder.check()
    result = recorder.result({}, until=2.5)
    assert [OUTCOMES[code] for code in result.outcome] == ["running", "waiting"]
    assert result.token_times(0).tolist() == [1, 2]


def test_a_handover_counts_from_the_end_of_the_step_that_computed_the_prompt() -> None:
    """Also a second one, after the sequence was preempted and computed again."""
    recorder = small([9])
    computed = (Computed(0, 7, np.array([3], np.int32)),)
    recorder.step(step(0, 0, 1, computed=computed, scheduled=(0,)))
    recorder.step(step(1, 2, 3, [0], received=((0, EPOCH + 1.25),)))
    recorder.preempted(1, 0)
    recorder.step(step(0, 3, 4, computed=computed))
    recorder.step(step(1, 5, 6, [0], received=((0, EPOCH + 4.5),)))
    recorder.check()
    assert recorder.handover == [0.25, 0.5]
    assert recorder.result({}).token_times(0).tolist() == [1, 3, 4, 6]


def test_every_recompute_gives_a_token() -> None:
    """Also one after which the sequence is preempted again before it decodes."""
    recorder = small([5])
    computed = (Computed(0, 7),)
    recorder.step(step(0, 0, 1, computed=computed, scheduled=(0,)))
    recorder.step(step(0, 1, 2, [0]))
    for start in (3, 5):
        recorder.preempted(0, 0)
        recorder.step(step(0, start, start + 1, computed=computed, scheduled=(0,)))
    recorder.step(step(0, 6, 7, [0]))
    recorder.check()
    result = recorder.result({})
    assert result.token_times(0).tolist() == [1, 2, 4, 6, 7]
    assert result.scheduled.tolist() == [0]
    assert result.preemptions.tolist() == [2]


@pytest.mark.parametrize("fault", ["lost", "twice", "backwards"])
def test_the_check_finds_what_is_wrong(fault: str) -> None:
    """A token that is lost or given twice, and a time that runs backwards, are found."""
    recorder = small([2])
    recorder.step(step(0, 0, 1, computed=(Computed(0, 7),), scheduled=(0,)))
    if fault == "twice":
        recorder.step(step(0, 1, 2, [0]))
        recorder.step(step(0, 2, 3, [0]))
    elif fault == "backwards":
        recorder.step(step(0, -2, -1, [0]))
    else:
        recorder.step(step(0, 1, 2, [0]))
        recorder.tokens[0].pop()
    with pytest.raises(AssertionError, match="request 0"):
        recorder.check()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["continuous", "chunked", "split", "replicas"]))
def test_gaps_are_the_differences_of_the_token_times(seed: int, preset: str) -> None:
    """The pooled inter-token latencies of a recorded run are those of its requests, one by one."""
    made = recorded(served(preset, seed)).result({})
    gaps = [np.diff(made.token_times(request)) for request in range(len(made))]
    assert np.sort(made.itl.expand()) == pytest.approx(np.sort(np.concatenate(gaps)), abs=1e-9)


def test_several_workers_of_each_phase() -> None:
    """Two prefill and two decode processes, as one of each."""
    deployment = Deployment(
        "wide",
        (Workers("prefill", 2, 40.0), Workers("decode", 2, 10.0)),
        sharing="mps",
        num_gpu_blocks=40,
    )
    rng = np.random.default_rng(5)
    trace = Trace(np.linspace(0, 0.08, 40), rng.integers(1, 300, 40), rng.integers(1, 90, 40))
    wanted = simulate(trace, deployment, llm("facebook/opt-125m"), gpu("a100-80gb"))
    assert wanted.preemptions.sum()
    recorder = recorded(wanted)
    recorder.check()
    assert_alike(recorder.result(wanted.meta).summary(), wanted.summary())
