"""The laws of sharing a device."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models.catalogue import llm
from splitwiser.models.cost import CostModel, Demand
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import PARAMETERS, Profile, built_in_profiles, profile_for
from splitwiser.models.sharing import REGIMES, overlap, sharing_for, water_fill
from splitwiser.models.work import prompt_pairs

SHARED = st.sampled_from([regime for regime in REGIMES if regime != "exclusive"])
SHARING = ("quantum", "switch", "slice_hold", "contention_memory", "contention_compute")
SHARING += ("wait_memory", "wait_compute", "stream_priority")
VALUES = st.fixed_dictionaries(
    {name: st.floats(PARAMETERS[name].lower, PARAMETERS[name].upper) for name in SHARING}
)
PROFILES = st.sampled_from(built_in_profiles()) | VALUES.map(
    lambda values: profile_for("a10").with_values(**values)
)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    """Draw a demand that a real step could have: never beyond the data sheet."""
    busy = draw(st.floats(1e-5, 1.0))
    host = max(busy, draw(st.just(0.0) | st.floats(1e-5, 1.0)))
    overhead = draw(st.just(0.0) | st.floats(0.0, 0.1))
    return Demand(
        seconds=host + overhead,
        busy=busy,
        flops=0.0,
        bytes=0.0,
        kernels=draw(st.just(0.0) | st.integers(1, 2000).map(float)),
        sm_share=draw(st.just(1.0) | st.floats(0.05, 1.0)),
        overhead=overhead,
        compute=busy * draw(st.floats(0.0, 1.0)),
        memory=busy * draw(st.floats(0.0, 1.0)),
    )


def prefill(profile: Profile, tokens: int, share: float = 1.0) -> Demand:
    """Return a Llama-3-8B prefill of one prompt on the H200."""
    cost = CostModel(llm("meta-llama/Meta-Llama-3-8B"), gpu("h200"), profile, sm_share=share)
    return cost.step(tokens, 1, *prompt_pairs(tokens, 0)).demand(0.0)


def decode(profile: Profile, n: int, context: int = 1024, share: float = 1.0) -> Demand:
    """Return a decode step of *n* sequences of the same model."""
    cost = CostModel(llm("meta-llama/Meta-Llama-3-8B"), gpu("h200"), profile, sm_share=share)
    return cost.decode(n).demand(n * context)


@given(st.sampled_from(REGIMES), PROFILES, demands())
@settings(max_examples=40, deadline=None)
def test_a_task_alone_runs_at_full_rate(regime: str, profile: Profile, task: Demand) -> None:
    """One task has rate exactly 1 in every regime, and no task has no rate."""
    sharing = sharing_for(regime, profile)
    assert sharing.rates([task]) == [1.0]
    assert sharing.rates([]) == []


@given(SHARED, PROFILES, st.lists(demands(), min_size=2, max_size=6))
@settings(max_examples=150, deadline=None)
def test_rates_respect_the_device(regime: str, profile: Profile, tasks: list[Demand]) -> None:
    """Rates lie in (0, 1], and together the tasks move and compute no more than the device can."""
    rates = sharing_for(regime, profile).rates(tasks)
    assert len(rates) == len(tasks)
    assert all(0.0 < rate <= 1.0 for rate in rates)
    for resource in ("compute", "memory"):
        used = [
            rate * getattr(task, resource) / task.seconds
            for rate, task in zip(rates, tasks, strict=True)
        ]
        assert sum(used) <= 1.0 + 1e-9


@given(SHARED, PROFILES, demands(), st.integers(2, 8))
@settings(max_examples=50, deadline=None)
def test_symmetric_tasks_run_at_equal_rates(
    regime: str, profile: Profile, task: Demand, n: int
) -> None:
    """Equal tasks get equal rates, and one more never helps the others."""
    sharing = sharing_for(regime, profile)
    rates = sharing.rates([task] * n)
    assert rates == pytest.approx([rates[0]] * n, rel=1e-12)
    assert sharing.rates([task] * (n + 1))[0] <= rates[0] * (1 + 1e-9)


@given(SHARED, PROFILES, st.lists(demands(), min_size=2, max_size=5), st.randoms())
@settings(max_examples=50, deadline=None)
def test_order_does_not_matter(regime: str, profile: Profile, tasks: list[Demand], random) -> None:
    """Rates belong to tasks, not to places in the list."""
    sharing = sharing_for(regime, profile)
    order = list(range(len(tasks)))
    random.shuffle(order)
    rates, shuffled = sharing.rates(tasks), sharing.rates([tasks[i] for i in order])
    assert shuffled == pytest.approx([rates[i] for i in order], rel=1e-9)


@given(SHARED, PROFILES, demands(), demands(), st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_rates_have_no_unit_of_time(
    regime: str, profile: Profile, one: Demand, two: Demand, factor: float
) -> None:
    """Scaling every time, the quantum included, leaves the rates alone."""

    def scaled(task: Demand) -> Demand:
        times = ("seconds", "busy", "overhead", "compute", "memory")
        return task._replace(**{name: getattr(task, name) * factor for name in times})

    # Inside the bounds of both parameters whatever the factor.
    slow = profile.with_values(quantum=3e-4, switch=1e-5)
    fast = profile.with_values(quantum=3e-4 * factor, switch=1e-5 * factor)
    rates = sharing_for(regime, slow).rates([one, two])
    assert sharing_for(regime, fast).rates([scaled(one), scaled(two)]) == pytest.approx(rates)


def test_exclusive_has_one_process() -> None:
    """Two tasks cannot run at once on a device that belongs to one."""
    profile = profile_for("h200")
    with pytest.raises(ValueError, match="runs one process, not 2"):
        sharing_for("exclusive", profile).rates([prefill(profile, 128), decode(profile, 1)])


def test_an_unknown_regime_offers_the_nearest() -> None:
    """A misspelt regime is named with those that exist."""
    with pytest.raises(ValueError, match="time_slice"):
        sharing_for("timeslice", profile_for("h200"))


@given(st.lists(st.floats(1e-3, 1), min_size=2, max_size=6), st.floats(0.1, 1))
def test_time_slices_add_up(wanted: list[float], capacity: float) -> None:
    """Water-filling gives all of the capacity or all that is wanted, and nobody more than that."""
    given_parts = water_fill(wanted, [1.0] * len(wanted), capacity)
    assert sum(given_parts) == pytest.approx(min(capacity, sum(wanted)))
    assert all(part <= want for part, want in zip(given_parts, wanted, strict=True))
    level = max(given_parts)
    for part, want in zip(given_parts, wanted, strict=True):
        assert part == pytest.approx(want) or part == pytest.approx(level)


def test_a_waiting_side_yields_its_turn() -> None:
    """Under time slicing a task that idles between steps leaves its neighbour more than half."""
    profile = profile_for("h200")
    busy = decode(profile, 16)
    idle = busy._replace(seconds=busy.seconds * 4, overhead=busy.seconds * 3)
    slices = sharing_for("time_slice", profile)
    assert slices.rates([busy, idle])[0] > slices.rates([busy, busy])[0] * 1.3


@pytest.mark.parametrize("regime", ["time_slice", "mps", "streams", "green_contexts"])
def test_a_neighbour_that_hardly_uses_the_device_hardly_costs(regime: str) -> None:
    """Beside a task that idles nearly all the time a task runs nearly as fast as alone."""
    profile = profile_for("h200")
    busy = decode(profile, 16)
    idle = busy._replace(seconds=busy.seconds * 1e4, overhead=busy.seconds * (1e4 - 1))
    assert sharing_for(regime, profile).rates([busy, idle])[0] > 0.99


def test_switching_costs_time() -> None:
    """Two busy tasks under time slicing make less progress together than one alone."""
    profile = profile_for("h200")
    task = decode(profile, 16)._replace(overhead=0.0)
    task = task._replace(seconds=task.busy)
    assert 0.9 < sum(sharing_for("time_slice", profile).rates([task, task])) < 1.0


def test_longer_prefill_kernels_starve_decode_under_mps_without_limits() -> None:
    """A decode kernel queues behind a prefill kernel, so that longer prompts slow it more."""
    profile = profile_for("h200")
    mps = sharing_for("mps", profile)
    rates = [mps.rates([prefill(profile, n), decode(profile, 16)])[1] for n in (512, 2048, 8192)]
    assert rates == sorted(rates, reverse=True)
    assert rates[2] < 0.1  # measured 0.06 beside a prefill of 8192


def test_a_limit_protects_decode() -> None:
    """With 75 % and 25 % of the SMs decode steps beside a long prefill come faster than without."""
    profile = profile_for("h200")
    mps = sharing_for("mps", profile)
    free, limited = decode(profile, 16), decode(profile, 16, share=0.25)
    without = mps.rates([prefill(profile, 2048), free])[1] / free.seconds
    within = mps.rates([prefill(profile, 2048, 0.75), limited])[1] / limited.seconds
    assert within > 2 * without


def test_stream_priority_helps_decode_at_the_cost_of_prefill() -> None:
    """The decode side of two streams waits less than under MPS, the prefill side more."""
    profile = profile_for("h200")
    tasks = [prefill(profile, 2048), decode(profile, 16)]
    mps = sharing_for("mps", profile).rates(tasks)
    streams = sharing_for("streams", profile).rates(tasks)
    assert streams[1] > mps[1]
    assert streams[0] < mps[0]


@given(st.floats(0.05, 1), st.floats(0.05, 1))
def test_overlap_of_two_shares(own: float, other: float) -> None:
    """Shares that fit side by side do not overlap; a whole device overlaps with everything."""
    part = overlap(own, other, own + other)
    assert 0.0 <= part <= 1.0 + 1e-12
    assert (part == 0.0) == (own + other <= 1.0)
    assert overlap(own, 1.0, own + 1.0) == pytest.approx(1.0)


@given(demand=demands(), count=st.integers(2, 6), profile=PROFILES)
def test_streams_of_one_phase_have_no_priority(
    demand: Demand, count: int, profile: Profile
) -> None:
    """Tasks of the same phase wait for one another under streams as under MPS without limits."""
    tasks = [demand._replace(sm_share=1.0)] * count
    streams, mps = (sharing_for(regime, profile).rates(tasks) for regime in ("streams", "mps"))
    assert streams == pytest.approx(mps, rel=1e-12)
