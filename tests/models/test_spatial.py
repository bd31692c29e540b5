"""The laws of kernels that run at once: MPS, streams and green contexts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import decode, demands, prefill

from splitwiser.models.balance import free
from splitwiser.models.cost import Demand
from splitwiser.models.kernels import saturation
from splitwiser.models.profile import Profile, built_in_profiles, profile_for
from splitwiser.models.sharing import sharing_for
from splitwiser.models.spatial import Spatial

SPATIAL = st.sampled_from(["mps", "streams", "green_contexts"])
# What pairs say beyond the law knows kernels by their seconds, and need not fall with the SMs.
FITTED = st.sampled_from([replace(p, neighbours=None) for p in built_in_profiles()])

# On SMs of their own, steps slow each other by nothing.
APART = dict.fromkeys(
    ("contention_memory", "contention_compute", "power_memory", "power_compute"), 0.0
)
PROMPT = prefill(profile_for("h200"), 1500)


@given(FITTED, st.floats(0.02, 0.89), st.floats(0.05, 0.1))
def test_the_fewer_sms_others_leave_the_longer_a_step_waits(
    profile: Profile, left: float, less: float
) -> None:
    """What slows a step grows as others take of the SMs on which it does not meet a neighbour."""
    law = sharing_for("mps", profile)
    assert isinstance(law, Spatial)
    one, two = (
        law._running(task) for task in (decode(profile, 8, 1024, 0.6), prefill(profile, 900, 0.7))
    )
    slow, slower = (law._coupling(one, two, 1.3, part)[0] for part in (left + less, left))
    assert law._coupling(one, two, 1.3)[0] < slow < slower


def test_who_runs_beside_them_takes_of_the_way_out() -> None:
    """Where a third step always runs on the SMs that it meets, two others have none to themselves;
    where it meets nobody, they have as many as without it.
    """
    profile = replace(profile_for("h200"), neighbours=None)
    law = sharing_for("mps", profile)
    assert isinstance(law, Spatial)
    tasks = [
        law._running(task)
        for task in (decode(profile, 8, 1024, 0.6), prefill(profile, 900, 0.7), decode(profile, 4))
    ]
    for part, left in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        meet = [[0.0, 0.0, part], [0.0, 0.0, part], [0.0, 0.0, 0.0]]
        slower = law._slowed(tasks, 1.3, [1.0] * 3, meet)
        for i, j in ((0, 1), (1, 0)):
            assert slower[i][j] == law._coupling(tasks[i], tasks[j], 1.3, left)[0]


@pytest.mark.parametrize("third", [0.6, 1.0])
def test_of_three_each_loses_some_of_its_way_out(third: float) -> None:
    """Under limits that overlap, each of three steps is slower than its waits for the two others, each
    as in their pair, would make it: the third is on the SMs on which it does not meet the second.
    """
    alike = {"crowding": 0.0, "crowding_prompts": 0.0, "yielded": 0.0}
    profile = profile_for("h200").with_values(**alike, **APART)
    law = sharing_for("mps", replace(profile, neighbours=None))
    assert isinstance(law, Spatial)
    asked = [decode(profile, 8, 1024, 0.6), decode(profile, 64, 512, 0.7), decode(profile, 4)]
    asked[2] = asked[2]._replace(sm_share=third)
    asked = [task._replace(overhead=0.0, seconds=task.busy) for task in asked]
    tasks, shares = [law._running(task) for task in asked], 1.3 + third
    for i, rate in enumerate(law._shared(asked)):
        waits = 0.0
        for j in range(3):
            if j != i:
                slow, slows = (
                    law._coupling(tasks[a], tasks[b], shares)[0] for a, b in ((i, j), (j, i))
                )
                waits += slow * free(1.0, slow, 1.0, slows)[1]
        assert rate < 0.99 / (1.0 + waits)


@pytest.mark.parametrize("share", [0.75, 0.85, 0.95])
@pytest.mark.parametrize("tokens", [300, 2000, 8000])
def test_what_a_neighbour_may_not_use_is_a_way_out(share: float, tokens: int) -> None:
    """Beside a limited prefill decode keeps at least what its kernels, launched for all SMs, reach on
    those that are left to it alone.
    """
    profile = replace(profile_for("h200"), neighbours=None)
    profile = profile.with_values(**APART)
    alone = decode(profile, 1)._replace(compute=0.0)  # bound by memory altogether
    rate = sharing_for("mps", profile).rates([alone, prefill(profile, tokens, share)])[0]
    knee, bend = profile.value("bandwidth_knee"), profile.value("bandwidth_bend")
    narrow, left = profile.value("narrow"), 1.0 - share
    least = saturation(left, knee, bend) ** (1.0 - narrow) * left**narrow
    assert rate >= least * (1 - 1e-9)
    assert rate < 1.0


@given(SPATIAL, demands(), demands(), st.floats(0.05, 0.95), st.floats(0.0, 16.0))
@settings(max_examples=50, deadline=None)
def test_who_shares_no_sm_waits_for_no_kernel(
    regime: str, one: Demand, two: Demand, share: float, wait: float
) -> None:
    """Beside each other on SMs of their own, tasks run the same however long kernels would wait."""
    profile = profile_for("h200")
    tasks = [one._replace(sm_share=share), two._replace(sm_share=1.0 - share)]
    waiting = profile.with_values(wait_memory=wait, wait_compute=wait)
    assert sharing_for(regime, waiting).rates(tasks) == pytest.approx(
        sharing_for(regime, profile).rates(tasks), rel=1e-12
    )


@given(SPATIAL, FITTED, demands(), st.floats(1.1, 10.0))
@settings(max_examples=50, deadline=None)
def test_behind_longer_kernels_a_kernel_waits_longer(
    regime: str, profile: Profile, task: Demand, longer: float
) -> None:
    """The fewer kernels a neighbour's work comes in, the slower a task on the same SMs."""
    task = task._replace(sm_share=1.0, kernels=100.0, overhead=0.0, seconds=task.busy)
    task = task._replace(compute=0.0, memory=0.0)  # the device's limits are not what is asked here
    sharing = sharing_for(regime, profile)
    short, long = (sharing.rates([task, task._replace(kernels=n)]) for n in (100, 100 / longer))
    assert long[0] < short[0]
    assert long[1] > short[1]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("profile", built_in_profiles(), ids=lambda profile: profile.name)
def test_one_more_prefill_never_speeds_decode_up(profile: Profile, share: float) -> None:
    """By the law, beside more and more prefills on a share decode runs ever slower, and so do they."""
    mps = sharing_for("mps", replace(profile, neighbours=None))
    one, many = decode(profile, 16, share=0.25), prefill(profile, 1024, share)
    rates = [mps.rates([one] + [many] * n) for n in range(1, 9)]
    for fewer, more in pairwise(rates):
        assert more[0] <= fewer[0] * (1 + 1e-9)
        assert more[1] <= fewer[1] * (1 + 1e-9)


@given(st.integers(2, 8), st.floats(0.2, 1.0), st.floats(1e-6, 1e-3))
def test_equal_tasks_take_strict_turns(n: int, use: float, tau: float) -> None:
    """Where one kernel runs at a time, n equal tasks have the n-th part of the device each, or what
    their hosts let them have.
    """
    strict = {"wait_memory": 1.0, "wait_compute": 1.0}
    law = sharing_for("mps", profile_for("a10").with_values(**strict, **APART))
    task = Demand(100 * tau / use, 100 * tau, 0.0, 0.0, 100.0, 1.0)
    assert law.rates([task] * n) == pytest.approx([min(1.0, 1.0 / (n * use))] * n)


@given(
    st.floats(0.0, 0.3),
    st.floats(1.0, 8.0),
    st.floats(0.0, 1.0),
    st.lists(st.floats(1.0, 30.0), min_size=2, max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_decode_passes_in_what_all_prompts_yield(
    yielded: float, passed: float, between: float, longer: list[float]
) -> None:
    """Where one kernel runs at a time, all prompts get a kernel each by turns, and in a round of turns
    decode's pass by their number, again at a part of each further turn, and in the part that yields of
    the time of all of these.
    """
    values = {"wait_memory": 1.0, "wait_compute": 1.0, "passed": passed, "yielded": yielded}
    profile = profile_for("a10").with_values(crowding_prompts=between, **values, **APART)
    law = sharing_for("mps", profile)
    light = Demand(1e-2, 1e-2, 0.0, 0.0, 100.0, 1.0)
    prompts = [
        light._replace(seconds=1e-2 * x, busy=1e-2 * x, compute=1e-9, prompt=1.0) for x in longer
    ]
    decodes, *turns = (
        rate / task.seconds
        for rate, task in zip(law.rates([light, *prompts]), [light, *prompts], strict=True)
    )
    assert turns == pytest.approx([turns[0]] * len(turns))
    rounds = passed * (1.0 + between * (len(longer) - 1)) + yielded * sum(longer)
    assert decodes / turns[0] == pytest.approx(rounds)


@given(st.floats(1.0, 64.0), st.floats(0.1, 10.0), st.integers(1, 4))
def test_light_kernels_pass_by_their_number(passed: float, longer: float, prefills: int) -> None:
    """Where one kernel runs at a time, *passed* kernels bound by memory run for each that arithmetic
    binds, whatever their lengths; those of one kind run equally often.
    """
    values = {"wait_memory": 1.0, "wait_compute": 1.0, "passed": passed}
    law = sharing_for("mps", profile_for("a10").with_values(**values, **APART))
    light = Demand(1e-2, 1e-2, 0.0, 0.0, 100.0, 1.0)
    heavy = light._replace(seconds=longer, busy=longer, compute=1e-9)
    rates = law.rates([light, *[heavy] * prefills])
    often = [100 * rate / task.seconds for rate, task in zip(rates, (light, heavy), strict=False)]
    assert often[0] / often[1] == pytest.approx(passed)
    busy = rates[0] + sum(rates[1:])
    assert busy == pytest.approx(1.0)


@given(st.floats(0.0, 4.0), st.floats(0.0, 4.0))
def test_contention_is_by_what_the_neighbour_is_bound_by(memory: float, compute: float) -> None:
    """On SMs of its own a memory-bound step loses `contention_memory` of what another such runs, and
    `contention_compute` of what a step bound by arithmetic runs, which itself loses nothing.
    """
    values = {**APART, "contention_memory": memory, "contention_compute": compute}
    law = sharing_for("mps", profile_for("a10").with_values(**values))
    light = Demand(1e-2, 1e-2, 0.0, 0.0, 100.0, 0.5)
    heavy = light._replace(compute=1e-2)
    one, two = law.rates([light, light])
    assert one == pytest.approx(two)
    assert one * (1.0 + memory * one) == pytest.approx(1.0)
    assert law.rates([light, heavy]) == pytest.approx([1.0 / (1.0 + compute), 1.0])


@given(st.integers(500, 8000), st.integers(1, 64), st.floats(0.01, 1.0))
@settings(max_examples=50, deadline=None)
def test_priority_is_of_the_kernels_that_yield(tokens: int, batch: int, part: float) -> None:
    """With priority decode is faster beside a prompt, and the prompt no faster, where kernels of
    prompts yield; two prompts, two decodes, and all where nothing yields run as without priority.
    """
    base = replace(profile_for("h200").with_values(yielded=part), neighbours=None)
    first, equal = (sharing_for("mps", base, decode_first=each) for each in (True, False))
    long, step = prefill(base, tokens), decode(base, batch)
    for pair in ([long, long], [step, step]):
        assert first.rates(pair) == equal.rates(pair)
    before, after = equal.rates([long, step]), first.rates([long, step])
    assert after[0] <= before[0] * (1 + 1e-9)
    assert after[1] > before[1]
    none = sharing_for("mps", base.with_values(yielded=0.0))
    assert none.rates([long, step]) == before


def test_limits_that_overlap_only_together_make_kernels_wait() -> None:
    """Of four tasks any two fit side by side and all do not: the waits of all cost them time, most
    where SMs are fewest, and cost two of them none.
    """
    profile = replace(profile_for("h200").with_values(**APART), neighbours=None)
    never, always = (
        sharing_for("mps", profile.with_values(wait_memory=wait)) for wait in (0.0, 2.0)
    )
    tasks = [Demand(1e-2, 1e-2, 0.0, 0.0, 100.0, share) for share in (0.5, 0.41, 0.26, 0.23)]
    assert never.rates(tasks) == pytest.approx([1.0] * 4)
    rates = always.rates(tasks)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.95
    assert always.rates(tasks[:2]) == pytest.approx([1.0] * 2)


@pytest.mark.parametrize("prefills", [1, 2, 3])
def test_crowding_is_of_decodes_among_themselves(prefills: int) -> None:
    """Beside prefills, a second decode lets decodes come oftener, and one alone no oftener."""
    easy = profile_for("h200").with_values(crowding=0.0)
    hard = profile_for("h200").with_values(crowding=1.0)
    for decodes in (1, 2, 3):
        tasks = [*[prefill(easy, 1500)] * prefills, *[decode(easy, 16)] * decodes]
        before, after = (sharing_for("mps", profile).rates(tasks) for profile in (easy, hard))
        if decodes == 1:
            assert after == pytest.approx(before, rel=1e-12)
        else:
            assert after[0] < before[0] * 0.99
            assert after[-1] > before[-1] * 1.01


def test_prompts_that_do_not_meet_have_no_turns() -> None:
    """Between prompts on SMs of their own there are no turns for a decode that meets both to come at,
    and the more of their SMs they share, the oftener it comes.
    """
    law = sharing_for("mps", profile_for("h200").with_values(yielded=0.0, crowding_prompts=0.5))
    assert isinstance(law, Spatial)
    tasks = [law._running(task) for task in (decode(profile_for("h200"), 4), *[PROMPT] * 2)]
    often = [law._oftener(3.0, tasks, 1, [0.0, 1.0, 1.0], [1.0, 0.0, x]) for x in (0.0, 0.4, 1.0)]
    assert often == pytest.approx([1.0, 1.2, 1.5])


@pytest.mark.parametrize("decodes", [1, 2, 3])
def test_decodes_come_between_the_turns_of_prompts(decodes: int) -> None:
    """A second prefill of the same length costs decodes less where they pass at some of its turns,
    and nothing where they pass at all of them; beside one prefill there are no further turns.
    """
    base = replace(profile_for("h200"), neighbours=None).with_values(yielded=0.0)
    never, often, always = (base.with_values(crowding_prompts=c) for c in (0.0, 0.5, 1.0))
    task, prompt = decode(base, 16), prefill(base, 1500)
    tasks = [task._replace(overhead=0.0, seconds=task.busy)] * decodes
    beside = [
        [sharing_for("mps", profile).rates([*tasks, *[prompt] * n]) for n in (1, 2)]
        for profile in (never, often, always)
    ]
    one, two = zip(*((few[0], more[0]) for few, more in beside), strict=True)
    assert one == pytest.approx([one[0]] * 3, rel=1e-12)
    assert two[0] < two[1] * 0.95 and two[1] < two[2] * 0.95
    assert two[2] == pytest.approx(one[2], rel=1e-9)
    assert beside[0][1][-1] > beside[1][1][-1] > beside[2][1][-1]


def test_what_a_neighbours_power_costs_is_paid_on_sms_of_ones_own() -> None:
    """Apart from each other, tasks slow down by the power of their neighbour, and alone by none."""
    free = profile_for("h200").with_values(power_memory=0.0, power_compute=0.0)
    paid = free.with_values(power_memory=0.5, power_compute=0.5)
    tasks = [prefill(free, 1500, 0.75), decode(free, 16, share=0.25)]
    before, after = (sharing_for("mps", profile).rates(tasks) for profile in (free, paid))
    assert after[0] < before[0] * 0.99
    assert after[1] < before[1] * 0.99
    assert sharing_for("mps", paid).rates(tasks[:1]) == sharing_for("mps", free).rates(tasks[:1])


def test_longer_prefill_kernels_starve_decode_under_mps_without_limits() -> None:
    """A decode kernel queues behind a prefill kernel, so that longer prompts slow it more."""
    profile = profile_for("h200")
    mps = sharing_for("mps", profile)
    rates = [mps.rates([prefill(profile, n), decode(profile, 16)])[1] for n in (512, 2048, 8192)]
    assert rates == sorted(rates, reverse=True)
    assert rates[2] < 0.16


def test_a_limit_protects_decode() -> None:
    """With 75 % and 25 % of the SMs decode steps beside a long prefill come faster than without."""
    profile = profile_for("h200")
    mps = sharing_for("mps", profile)
    free, limited = decode(profile, 16), decode(profile, 16, share=0.25)
    without = mps.rates([prefill(profile, 2048), free])[1] / free.seconds
    within = mps.rates([prefill(profile, 2048, 0.75), limited])[1] / limited.seconds
    assert within > 1.5 * without


@given(st.sampled_from(built_in_profiles()), st.lists(demands(), min_size=2, max_size=4))
@settings(max_examples=50, deadline=None)
def test_every_spatial_regime_follows_one_law(profile: Profile, tasks: list[Demand]) -> None:
    """By the law, on the same shares MPS, streams and green contexts give the same rates."""
    mps, *others = (
        sharing_for(name, replace(profile, neighbours=None)).rates(tasks)
        for name in ("mps", "streams", "green_contexts")
    )
    assert others == [mps, mps]
