"""Which request comes when, and who gets it."""

from __future__ import annotations

from collections import Counter
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.models.catalogue import llm
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import profile_for
from splitwiser.sim.admission import WATERMARK, Limits, Outputs, routes, split_pools
from splitwiser.sim.deployment import Deployment, Workers, continuous, replicas, split
from splitwiser.sim.kv import BlockPool
from splitwiser.sim.simulate import simulate
from splitwiser.traces.trace import Trace
from splitwiser.validate.runtime.dispatch import Arrivals, Dispatch


def wide(prefills: int, decodes: int, **options: object) -> Deployment:
    workers = (
        Workers("prefill", prefills, max_num_batched_tokens=100, max_num_seqs=8),
        Workers("decode", decodes),
    )
    return Deployment("wide", workers, sharing="time_slice", **options)  # type: ignore[arg-type]


# Arrivals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1, 3, 1000])
def test_requests_are_issued_when_the_simulator_issues_them(limit: int | None) -> None:
    """Told of the completions of a simulation, the closed loop issues at the same times."""
    rng = np.random.default_rng(3)
    trace = Trace(
        np.cumsum(rng.exponential(0.01, 60)),
        rng.integers(1, 3000, 60),  # some are too long for the context, and are refused
        rng.integers(1, 40, 60),
        max_concurrency=limit,
    )
    model = llm("facebook/opt-125m")
    # A refusal too takes an engine's `request_overhead`, which no runtime's router has.
    at_once = profile_for("a10").with_values(request_overhead=0.0)
    wanted = simulate(trace, continuous(), model, gpu("a10"), at_once)
    arrivals = Arrivals(trace.arrival.tolist(), limit)
    issued: dict[int, float] = {}
    refused = wanted.outcome == 1
    assert refused.any()
    ends = sorted(wanted.finished[wanted.completed].tolist())
    while len(issued) < len(trace):
        now = min(arrivals.next_at, ends[0] if ends else inf)
        while (due := arrivals.issue(now)) is not None:
            request, issued[request] = due
            if refused[request]:
                arrivals.complete(issued[request])
        while ends and ends[0] <= now:
            arrivals.complete(ends.pop(0))
    assert list(issued.values()) == pytest.approx(wanted.arrival.tolist(), abs=1e-12)


@given(
    st.lists(st.floats(0, 5), min_size=1, max_size=30),
    st.integers(1, 5),
    st.data(),
)
def test_a_closed_loop_never_exceeds_its_limit(
    gaps: list[float], limit: int, data: st.DataObject
) -> None:
    """Nobody is early, the order is kept, and no more than the limit are in the system."""
    arrival = np.cumsum(gaps).tolist()
    arrivals = Arrivals(arrival, limit)
    now, inside, latest = 0.0, 0, 0.0
    issued: list[int] = []
    while len(issued) < len(arrival):
        now += data.draw(st.floats(0, 4))
        while (due := arrivals.issue(now)) is not None:
            request, time = due
            assert max(arrival[request], latest) <= time <= now
            latest = time
            issued.append(request)
            inside += 1
        assert inside <= limit
        if inside == limit:
            assert arrivals.next_at == inf
            inside -= 1
            arrivals.complete(now - data.draw(st.floats(0, 1)))
    assert issued == list(range(len(arrival)))


# Who gets what ----------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", ["round_robin", "contiguous"])
def test_engines_get_what_the_simulator_gives_them(routing: str) -> None:
    """A line of one engine is passed on at once, however long; each engine has its own part."""
    deployment = replicas().override(routing=routing, processes=3)
    dispatch = Dispatch(deployment, 10)
    for request in range(10):
        dispatch.submit(request, 10**6)
    lines = routes(routing, 3, 10).lines
    assert {(r, w) for w, line in enumerate(lines) for r in line} == set(dispatch.assign())


@pytest.mark.parametrize("deployment", [replicas(), wide(3, 2), replicas().override(processes=4)])
@pytest.mark.parametrize("routing", ["round_robin", "contiguous", "shared_queue"])
def test_warm_up_finds_a_worker(deployment: Deployment, routing: str) -> None:
    """Requests with negative numbers go to every line."""
    dispatch = Dispatch(deployment.override(routing=routing), 7)
    for request in range(-8, 0):
        dispatch.submit(request, 50)
    takers = [index for index, g in enumerate(deployment.each()) if g.phase != "decode"]
    assert {worker for _, worker in dispatch.assign()} == set(takers)


def test_a_shared_line_keeps_every_worker_busy_and_no_more() -> None:
    """A worker gets a batch to compute and one to wait, and more when it tells of the first."""
    dispatch = Dispatch(wide(2, 1), 100)
    for request in range(40):
        dispatch.submit(request, 25)
    first = dict(dispatch.assign())
    depth = 8  # two batches of 100 tokens
    assert Counter(first.values()) == {0: depth, 1: depth}
    assert not list(dispatch.assign())
    for request in range(4):
        dispatch.scheduled(request)
    again = list(dispatch.assign())
    assert [request for request, _ in again] == list(range(2 * depth, 2 * depth + 4))
    assert Counter(worker for _, worker in again) == Counter(first[r] for r in range(4))


def test_a_worker_of_a_shared_line_never_has_too_many_sequences() -> None:
    """However short the prompts, what a worker has is at most two times its `max_num_seqs`."""
    dispatch = Dispatch(wide(2, 1), 100)
    for request in range(40):
        dispatch.submit(request, 1)
    assert len(list(dispatch.assign())) == 2 * 2 * 8


def test_preempted_prompts_go_first_and_then_the_order_holds() -> None:
    """Under "shortest_prompt" the line is by length, but for the urgent ones."""
    dispatch = Dispatch(wide(1, 1, order="shortest_prompt"), 10)
    for request, tokens in enumerate((30, 10, 20)):
        dispatch.submit(request, tokens)
    dispatch.submit(7, 99, urgent=True)
    assert [request for request, _ in dispatch.assign()] == [7, 1, 2, 0]


def test_a_sequence_goes_to_the_decode_worker_with_the_fewest() -> None:
    """Sequences that leave count no more."""
    dispatch = Dispatch(wide(1, 3), 20)
    for request in range(7):
        dispatch.submit(request, 1)
    assert len(list(dispatch.assign())) == 7
    assert dispatch.held == [7, 0, 0, 0]
    assert [dispatch.hand_over(request) for request in range(6)] == [1, 2, 3, 1, 2, 3]
    dispatch.leave(4)
    assert dispatch.hand_over(6) == 2
    assert dispatch.held == [0, 2, 2, 2]


@given(
    st.lists(st.integers(1, 150), min_size=1, max_size=40),
    st.integers(1, 3),
    st.integers(1, 3),
    st.data(),
)
def test_every_request_passes_through_once(
    tokens: list[int], prefills: int, decodes: int, data: st.DataObject
) -> None:
    """Whatever the order in which workers tell of steps, nobody is lost, and nobody has two."""
    dispatch = Dispatch(wide(prefills, decodes), len(tokens))
    for request, count in enumerate(tokens):
        dispatch.submit(request, count)
    computing: list[int] = []
    decoding: list[int] = []
    left = 0
    while left < len(tokens):
        computing += [request for request, _ in dispatch.assign()]
        assert computing or decoding
        assert sum(dispatch.held) == len(computing) + len(decoding)
        if computing and (not decoding or data.draw(st.booleans())):
            request = computing.pop(data.draw(st.integers(0, len(computing) - 1)))
            dispatch.hand_over(request)
            decoding.append(request)
        else:
            dispatch.leave(decoding.pop())
            left += 1
    assert not any(dispatch.held)


# Limits -----------------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.integers(1, 64))
def test_the_longest_prompt_is_the_longest_that_the_pool_admits(blocks: int, size: int) -> None:
    """A prompt is refused exactly where an empty pool would not admit it above its watermark."""
    limits = Limits.of(10**9, [blocks, blocks + 7], size)
    pool, watermark = BlockPool(blocks, size), int(WATERMARK * blocks)
    assert pool.fits(0, limits.admitted, watermark)
    assert not pool.fits(0, limits.admitted + 1, watermark)
    prompts = np.array([limits.admitted, limits.admitted + 1])
    assert limits.never(prompts) == {1}


def test_outputs_end_with_the_context() -> None:
    """What is cut is told of; a prompt as long as the context has no output at all."""
    outputs = Outputs.of(np.array([10, 95, 100, 120]), np.array([90, 6, 5, 5]), 100)
    assert outputs.tokens.tolist() == [90, 5, 0, 0]
    assert outputs.notes == [
        "1 requests would outgrow the context of 100 tokens; their output ends there"
    ]
    assert Limits(100, 110).never(np.array([99, 100, 120])) == {1, 2}


@given(st.integers(2, 10**5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 10**4))
def test_the_pools_of_a_split_use_the_memory_once(
    total: int, prefills: int, decodes: int, longest: int
) -> None:
    """Separate pools sum to all blocks but a rest, and the prefill side has at most half."""
    separate = wide(prefills, decodes, kv="separate")
    prefill, decode = split_pools(separate, total, longest)
    assert decode is not None
    assert 0 <= total - prefill - decodes * decode < decodes
    assert prefill <= total // 2
    assert split_pools(split(), total, longest) == (total, None)
