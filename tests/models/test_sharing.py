"""The laws of sharing a device."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tasks import decode, demands, prefill

from splitwiser.models.cost import Demand
from splitwiser.models.profile import PARAMETERS, Profile, built_in_profiles, profile_for
from splitwiser.models.regimes import water_fill
from splitwiser.models.sharing import REGIMES, sharing_for

SHARED = st.sampled_from([regime for regime in REGIMES if regime != "exclusive"])
SPATIAL = st.sampled_from(["mps", "streams", "green_contexts"])
SHARING = ("quantum", "switch", "slice_hold", "wait_memory", "wait_compute", "passed")
SHARING += ("clock_relief", "contention_memory", "contention_compute", "power_memory")
SHARING += ("power_compute", "compute_knee", "compute_bend", "crowding", "yielded", "narrow")
VALUES = st.fixed_dictionaries(
    {name: st.floats(PARAMETERS[name].lower, PARAMETERS[name].upper) for name in SHARING}
)
PROFILES = st.sampled_from(built_in_profiles()) | VALUES.map(
    lambda values: profile_for("a10").with_values(**values)
)

LAWS = PROFILES.map(lambda profile: replace(profile, neighbours=None))


@given(st.sampled_from(REGIMES), PROFILES, demands())
@settings(max_examples=40, deadline=None)
def test_a_task_alone_runs_at_full_rate(regime: str, profile: Profile, task: Demand) -> None:
    """One task has rate exactly 1 in every regime, and no task has no rate."""
    sharing = sharing_for(regime, profile)
    assert sharing.rates([task]) == [1.0]
    assert sharing.rates([]) == []


def has_room(tasks: list[Demand], rates: list[float]) -> bool:
    """Whether the limits of the device itself, beyond which all slow in proportion, do not bind."""
    return all(used < 1.0 - 1e-6 for used in used_of(tasks, rates))


def used_of(tasks: list[Demand], rates: list[float]) -> list[float]:
    """The parts of the device's FLOP/s and bandwidth that tasks take at these rates."""
    return [
        sum(
            rate * getattr(task, resource) / task.seconds
            for rate, task in zip(rates, tasks, strict=True)
        )
        for resource in ("compute", "memory")
    ]


@given(SHARED, PROFILES, st.lists(demands(), min_size=2, max_size=6))
@settings(max_examples=150, deadline=None)
def test_rates_respect_the_device(regime: str, profile: Profile, tasks: list[Demand]) -> None:
    """Rates lie in (0, 1], and together the tasks move and compute no more than the device can."""
    rates = sharing_for(regime, profile).rates(tasks)
    assert len(rates) == len(tasks)
    assert all(0.0 < rate <= 1.0 for rate in rates)
    assert max(used_of(tasks, rates)) <= 1.0 + 1e-9


@given(SHARED, LAWS, demands(), st.integers(2, 8))
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


@given(SHARED, LAWS, demands(), demands(), st.floats(0.01, 100))
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


def test_however_short_turns_are_time_is_left() -> None:
    """Two processes with steps shorter than a switch leave a third, and each other, some time."""
    tiny = Demand(6e-5, 6e-5, 0.0, 0.0, 10.0, 1.0)
    slow = Demand(0.2, 0.1, 0.0, 0.0, 10.0, 1.0, overhead=0.1)
    for switch in (1e-4, 3e-4, 1e-2):
        profile = profile_for("h200").with_values(switch=switch)
        rates = sharing_for("time_slice", profile).rates([tiny, tiny, slow])
        assert all(rate > 0.0 for rate in rates)
        assert rates[0] == pytest.approx(rates[1])
        assert max(rates[:2]) < 0.5


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


@given(st.floats(1e-6, 1e-5), st.floats(1e-4, 0.1), st.integers(1, 3))
def test_short_steps_share_a_turn_by_twos(busy: float, host: float, others: int) -> None:
    """Beside steps that never end, a short one has twice its length in each round of turns; once,
    if its host waits for its end and so leaves an overhead behind it.
    """
    quantum = 3e-3
    profile = profile_for("h200").with_values(quantum=quantum, switch=0.0, slice_hold=0.0)
    short = Demand(host, busy, 0.0, 0.0, 0.0, 1.0)
    endless = Demand(100.0, 100.0, 0.0, 0.0, 0.0, 1.0)
    rate = sharing_for("time_slice", profile).rates([short, *[endless] * others])[0]
    round_s = 2 * busy + others * quantum
    assert rate == pytest.approx(min(1.0, 2 * host / round_s), rel=0.01)
    waiting = short._replace(overhead=0.5 * (host - busy))
    rate = sharing_for("time_slice", profile).rates([waiting, *[endless] * others])[0]
    assert rate == pytest.approx(min(1.0, host / (round_s - busy)), rel=0.01)


@pytest.mark.parametrize("regime", ["time_slice", "mps", "streams", "green_contexts"])
def test_a_neighbour_that_hardly_uses_the_device_hardly_costs(regime: str) -> None:
    """Beside a task that idles nearly all the time a task runs nearly as fast as alone."""
    profile = profile_for("h200")
    busy = decode(profile, 16)
    idle = busy._replace(seconds=busy.seconds * 1e4, overhead=busy.seconds * (1e4 - 1))
    assert sharing_for(regime, profile).rates([busy, idle])[0] > 0.99


@given(st.floats(0.05, 1.0), st.integers(1, 3))
@settings(deadline=None)
def test_in_turns_the_clock_rises_beside_those_that_draw_less(relief: float, others: int) -> None:
    """Power that others leave speeds up a step bound by arithmetic, the more the less they draw,
    never beyond its own speed alone, and changes no step that draws none itself.
    """
    cold = profile_for("h200").with_values(clock_relief=0.0)
    warm = cold.with_values(clock_relief=relief)
    hot = prefill(cold, 4000)
    light = [decode(cold, 1)._replace(compute=0.0)] * others
    before, after = (sharing_for("time_slice", each).rates([hot, *light]) for each in (cold, warm))
    assert before[0] < after[0] <= 1.0
    assert after[1:] == before[1:]
    like, unlike = (
        [sharing_for("time_slice", each).rates([hot, *rest])[0] for each in (warm, cold)]
        for rest in ([hot] * others, light)
    )
    assert like[0] / like[1] < unlike[0] / unlike[1]


def test_switching_costs_time() -> None:
    """Two busy tasks under time slicing make less progress together than one alone."""
    profile = profile_for("h200")
    task = decode(profile, 16)._replace(overhead=0.0)
    task = task._replace(seconds=task.busy)
    assert 0.8 < sum(sharing_for("time_slice", profile).rates([task, task])) < 1.0


@given(SPATIAL, PROFILES, demands(), demands(), st.floats(1.0, 10.0))
@settings(max_examples=100, deadline=None)
def test_a_host_bound_task_loses_less(
    regime: str, profile: Profile, task: Demand, other: Demand, slower: float
) -> None:
    """Who waits for its host anyway loses no more to a neighbour, which loses less to it, as long as
    the device can move and compute what both ask.
    """
    sharing = sharing_for(regime, profile)
    waits = task._replace(seconds=(task.seconds - task.overhead) * slower + task.overhead)
    (one, two), (held, beside) = sharing.rates([task, other]), sharing.rates([waits, other])
    assume(has_room([task, other], [one, two]) and has_room([waits, other], [held, beside]))
    assert held >= one * (1 - 1e-9)
    assert beside >= two * (1 - 1e-9)


@given(SPATIAL, PROFILES, demands(), demands(), st.floats(1e-3, 10.0))
@settings(max_examples=100, deadline=None)
def test_a_task_that_idles_between_steps_takes_less(
    regime: str, profile: Profile, task: Demand, other: Demand, idle: float
) -> None:
    """Overhead between steps, in which no kernel runs, only helps the neighbour, as long as the
    device can move and compute what both ask.
    """
    sharing = sharing_for(regime, profile)
    idles = task._replace(seconds=task.seconds + idle, overhead=task.overhead + idle)
    beside, before = sharing.rates([idles, other]), sharing.rates([task, other])
    assume(has_room([idles, other], beside) and has_room([task, other], before))
    assert beside[1] >= before[1] * (1 - 1e-9)
