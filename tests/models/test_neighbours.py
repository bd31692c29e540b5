"""What measured pairs say beyond the law of sharing."""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import decode, prefill

from splitwiser.models.catalogue import llm
from splitwiser.models.cost import CostModel, Demand
from splitwiser.models.gpu import gpu
from splitwiser.models.neighbours import COORDINATES, Kind, Neighbours, coordinates
from splitwiser.models.profile import load_profile, profile_for
from splitwiser.models.sharing import sharing_for
from splitwiser.models.spatial import Spatial
from splitwiser.models.work import prompt_pairs
from splitwiser.validate.calibration.neighbours_fit import (
    Pair,
    Process,
    unlikely,
    with_neighbours,
)

H200 = profile_for("h200")
LAW = replace(H200, neighbours=None)
LLAMA, SHEET = llm("meta-llama/Llama-3.1-8B"), gpu("h200")
SIDES = st.tuples(
    st.integers(60, 8000), st.integers(1, 190), st.sampled_from([(1.0, 1.0), (0.7, 0.5)])
)


def demands(tokens: int, batch: int, shares: tuple[float, float]) -> list[Demand]:
    """A prefill and a decode step, each on its share."""
    first, second = (CostModel(LLAMA, SHEET, LAW, sm_share=share) for share in shares)
    return [
        first.step(tokens, 1, *prompt_pairs(tokens, 0)).demand(0),
        second.decode(batch).demand(batch * 1000.0),
    ]


def spatial(profile: object, sharing: str = "mps") -> Spatial:
    """The law of sharing of a profile."""
    law = sharing_for(sharing, profile)  # type: ignore[arg-type]
    assert isinstance(law, Spatial)
    return law


@given(st.tuples(*[st.floats(-1e4, 1e4)] * len(COORDINATES)))
def test_far_from_every_pair_the_law_stands_alone(place: tuple[float, ...]) -> None:
    """A factor is never wilder than all weights together, and fades to 1 with the distance."""
    known = H200.neighbours
    assert known is not None
    assert abs(known.log_factor(place)) <= sum(map(abs, known.weights))
    away = (place[0] + 1e6, *place[1:])
    assert known.log_factor(away) == pytest.approx(0.0, abs=1e-12)


@given(SIDES)
@settings(max_examples=50, deadline=None)
def test_rates_of_the_law_say_nothing_beyond_it(side: tuple[int, int, tuple[float, float]]) -> None:
    """Solving the balance for rates, and rates for the slow-down, are inverse to each other; a host
    that holds a step back hides a part of what slows it, and the bound is above that.
    """
    asked = demands(*side)
    law = spatial(LAW)
    told = law.implied(asked, law._shared(asked))
    assert min(each.log_factor for each in told) > -1e-6
    assert [each.log_factor for each in told if not each.at_most] == pytest.approx(
        [0.0 for each in told if not each.at_most], abs=1e-6
    )


@given(SIDES)
@settings(max_examples=30, deadline=None)
def test_a_cell_is_smaller_than_what_it_tells(side: tuple[int, int, tuple[float, float]]) -> None:
    """The factor of a cell is that of the pair itself, within 2 %."""
    asked = demands(*side)
    known = H200.neighbours
    assert known is not None
    law = spatial(H200)
    slow = {
        profile: spatial(profile)._coupling(*map(law._running, asked), sum(side[2]))
        for profile in (H200, LAW)
    }
    kinds = [
        Kind.of(task.tau, task.mix, prompts)
        for task, prompts in zip(map(law._running, asked), (True, False), strict=True)
    ]
    met = max(0.0, sum(side[2]) - 1.0)
    exact = known.log_factor(coordinates(kinds[0], kinds[1], (*side[2], met), False))
    assert (1 + slow[H200][0]) / (1 + slow[LAW][0]) == pytest.approx(exp(exact), rel=0.02)


def test_what_pairs_say_is_learnt_and_told_of_pairs_between() -> None:
    """A device on which decode waits longer beside long prompts is predicted at sizes not seen."""

    def slower(tokens: int) -> float:
        return exp(0.4 * np.tanh(log(tokens / 1000)))

    def measured(tokens: int, batch: int) -> Pair:
        asked = demands(tokens, batch, (1.0, 1.0))
        rates = spatial(LAW).rates(asked)
        return Pair("mps", True, asked, [rates[0], rates[1] / slower(tokens)])

    sizes = [(t, b) for t in (100, 200, 400, 800, 1600, 3200, 6400) for b in (1, 8, 32, 128)]
    learnt, process = with_neighbours(LAW, [measured(*size) for size in sizes])
    assert process is not None
    errors = {"law": [], "learnt": []}
    for tokens, batch in ((150, 4), (600, 16), (1200, 64), (2500, 100), (5000, 3)):
        pair = measured(tokens, batch)
        for name, profile in (("law", LAW), ("learnt", learnt)):
            predicted = spatial(profile).rates(pair.demands)[1]
            errors[name].append(abs(predicted / pair.rates[1] - 1.0))
    assert np.mean(errors["learnt"]) < 0.25 * np.mean(errors["law"])


@given(st.floats(0.1, 1.0), st.floats(0.1, 1.0), st.sampled_from(["PP", "PD", "DD"]))
@settings(max_examples=30, deadline=None)
def test_what_a_pair_tells_is_found_where_it_is_asked_for(
    one: float, two: float, phases: str
) -> None:
    """Whatever its limits and phases, a pair measured is looked up at the place where it was noted."""
    law = replace(profile_for("h200"), neighbours=None)
    asked = [
        prefill(law, 900, share) if phase == "P" else decode(law, 16, share=share)
        for phase, share in zip(phases, (one, two), strict=True)
    ]
    before = sharing_for("mps", law)
    assert isinstance(before, Spatial)
    place = before.implied(asked, [0.5, 0.5])[0].place
    narrow = (1.0,) * 6 + (0.01,) * 3 + (1.0,)  # of limits it tells that one alone
    known = replace(law, neighbours=Neighbours(narrow, (place,), (0.3,)))
    after = sharing_for("mps", known)
    assert isinstance(after, Spatial)
    slow, more = (
        each._coupling(*(each._running(task) for task in asked), one + two)[0]
        for each in (before, after)
    )
    assert log((1.0 + more) / (1.0 + slow)) == pytest.approx(0.3, abs=0.01)


def test_who_hardly_runs_teaches_little() -> None:
    """What a step tells of a neighbour counts by the time in which that neighbour ran."""

    def told(idle: float, factor: float) -> Pair:
        """Pairs of one place: the prefill's host lets it run for a part of the time only."""
        first, second = demands(400, 16, (1.0, 1.0))
        asked = [first._replace(seconds=first.busy * idle), second]
        rates = spatial(LAW).rates(asked)
        return Pair("mps", True, asked, [rates[0], rates[1] * factor])

    others = [
        Pair("mps", True, asked, spatial(LAW).rates(asked))
        for asked in (demands(t, b, (1.0, 1.0)) for t in (100, 1600, 6400) for b in (1, 8, 64, 150))
    ]
    sure = [told(1.0, 1.0)] * 8
    process = Process(np.array([2.7] * 4 + [1.8, 1.8, 0.9, 0.9, 1.4, 1.8]), 0.2, 0.05, 0.01)
    learnt, _ = with_neighbours(LAW, [*others, *sure, *[told(30.0, 0.97)] * 8], process)
    asked = told(1.0, 1.0).demands
    assert spatial(learnt).rates(asked)[1] == pytest.approx(spatial(LAW).rates(asked)[1], rel=0.02)


@pytest.mark.parametrize(("slower", "moved"), [(0.7, False), (1.4, True)])
def test_a_step_that_its_host_holds_back_tells_a_bound(slower: float, moved: bool) -> None:
    """It teaches that its neighbour slows it less than others say, and never that it does more."""

    def told(factor: float) -> Pair:
        """A prefill beside a decode that slows it by *factor* more than the law says."""
        asked = demands(400, 16, (1.0, 1.0))
        rates = spatial(LAW).rates(asked)
        return Pair("mps", True, asked, [rates[0] / factor, rates[1]])

    held = told(1.0)
    first, second = held.demands
    waiting = first._replace(seconds=first.busy / held.rates[0])
    bound = Pair("mps", True, [waiting, second], [1.0, held.rates[1]])
    process = Process(np.full(len(COORDINATES), 3.0), 0.4, 0.02, 0.02)
    before, _ = with_neighbours(LAW, [told(slower)] * 45, process)
    after, _ = with_neighbours(LAW, [*[told(slower)] * 45, *[bound] * 20], process)
    rates = [spatial(profile).rates(held.demands)[0] for profile in (before, after)]
    assert (rates[1] > 1.02 * rates[0]) is moved
    assert rates[1] >= rates[0] * (1 - 1e-9)


def test_prompts_and_decode_of_equal_kernels_are_told_apart() -> None:
    """What was learnt of a prefill is not carried in full to a decode step with kernels like its own."""
    first, second = demands(400, 16, (1.0, 1.0))
    rates = spatial(LAW).rates([first, second])
    pairs = [Pair("mps", True, [first, second], [rates[0] * 0.8, rates[1]])] * 20
    process = Process(np.full(len(COORDINATES), 1.0), 0.3, 0.02, 0.02)
    learnt, _ = with_neighbours(LAW, pairs, process)
    slowed, spared = (
        spatial(learnt).rates(asked)[0] / spatial(LAW).rates(asked)[0]
        for asked in ([first, second], [first._replace(prompt=0.0), second])
    )
    assert slowed < 0.85 < 0.95 * spared


def test_what_jumps_from_pair_to_pair_is_not_carried_on() -> None:
    """The more of what a pair says is its own, the less is told of one at the same place."""
    asked = demands(1500, 16, (1.0, 1.0))
    rates = spatial(LAW).rates(asked)
    pairs = [Pair("mps", True, asked, [rates[0], rates[1] * 0.8])] * 20
    found = []
    for jumps in (0.0, 0.2, 2.0):
        process = Process(np.full(len(COORDINATES), 3.0), 0.3, 0.02, jumps)
        learnt, _ = with_neighbours(LAW, pairs, process)
        found.append(spatial(learnt).rates(asked)[1] / rates[1])
    assert 0.8 * (1 - 1e-3) < found[0] < found[1] < found[2] < 1.0


def test_the_slope_of_the_likelihood_is_its_own() -> None:
    """What the search for a process goes down by is the derivative of what it minimises."""
    draw = np.random.default_rng(3)
    places, factors = draw.normal(size=(30, len(COORDINATES))), draw.normal(0.0, 0.2, 30)
    apart = (places[:, None, :] - places[None, :, :]) ** 2
    logs = draw.normal(0.0, 0.3, len(COORDINATES) + 3) - 0.5
    squares = draw.uniform(1.0, 4.0, 30)
    _, slope = unlikely(logs, apart, factors, squares)
    for place, step in enumerate(1e-5 * np.eye(len(logs))):
        up, down = (unlikely(logs + sign * step, apart, factors, squares)[0] for sign in (1, -1))
        assert slope[place] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-5)


def test_a_fit_can_be_read_again(tmp_path: Path) -> None:
    """However sure and close pairs are, the weights that they are given pass as a profile's."""
    asked = [demands(t, b, (1.0, 1.0)) for t in range(500, 540) for b in (16, 17)]
    rates = [spatial(LAW).rates(each) for each in asked]
    pairs = [
        Pair("mps", True, each, [rate[0], rate[1] * (0.7, 1.1)[place % 2]])
        for place, (each, rate) in enumerate(zip(asked, rates, strict=True))
    ]
    sure = Process(np.full(len(COORDINATES), 10.0), 1.0, 0.02, 0.0)
    learnt, _ = with_neighbours(LAW, pairs, sure)
    assert learnt.neighbours is not None
    assert max(map(abs, learnt.neighbours.weights)) > 10
    learnt.save(tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json").neighbours == learnt.neighbours


def test_too_few_pairs_teach_nothing() -> None:
    """From a handful of pairs no process is learnt, and the law stands alone; nor from bounds only."""
    asked = demands(500, 16, (1.0, 1.0))
    assert with_neighbours(H200, [Pair("mps", True, asked, [0.5, 0.5])]) == (LAW, None)
    waiting = [each._replace(seconds=2.0 * each.seconds) for each in asked]
    assert with_neighbours(H200, [Pair("mps", True, waiting, [1.0, 1.0])] * 60) == (LAW, None)


def test_taking_turns_has_no_neighbours() -> None:
    """Pairs of a regime in which one process runs at a time are refused."""
    asked = demands(500, 16, (1.0, 1.0))
    with pytest.raises(ValueError, match="'time_slice' has no neighbours"):
        with_neighbours(LAW, [Pair("time_slice", True, asked, [0.5, 0.5])])


def test_a_file_gives_the_same_pairs_back(tmp_path: Path) -> None:
    """Saving and loading loses nothing; the rates are the same to the last bit."""
    path = tmp_path / "profile.json"
    H200.save(path)
    again = load_profile(path)
    assert again.neighbours == H200.neighbours
    asked = demands(700, 20, (1.0, 1.0))
    assert spatial(again).rates(asked) == spatial(H200).rates(asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [0.1, 0.2]}, "neighbours: 2 weights for 1 points"),
        ({"scales": [1.0]}, "neighbours: scales must be 10 positive numbers"),
        ({"points": [[1.0] * 8]}, "points.0 must be 10 coordinates"),
        ({"points": [[1e9] * 11]}, "points.0 must be 10 coordinates between -100 and 100"),
        ({"weights": [1e9]}, r"weights must lie between -1e\+06 and 1e\+06"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """One line tells what is wrong with the pairs of a profile."""
    path = tmp_path / "profile.json"
    place = (1.0,) * len(COORDINATES)
    replace(LAW, neighbours=Neighbours(place, (place,), (0.1,))).save(path)
    document = json.loads(path.read_text())
    document["neighbours"] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message) as raised:
        load_profile(path)
    assert "\n" not in str(raised.value)
