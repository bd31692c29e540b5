"""The search for a deployment's capacity."""

from __future__ import annotations

from dataclasses import replace
from math import exp, factorial, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.models.catalogue import llm
from splitwiser.models.cost import StepCost
from splitwiser.models.gpu import gpu
from splitwiser.models.regimes import Exclusive
from splitwiser.sim.deployment import Deployment, Workers, continuous, sequential
from splitwiser.sim.physics import Physics
from splitwiser.sim.search import Unattainable, capacity, narrow
from splitwiser.sim.simulate import simulate
from splitwiser.sim.trial import Saturation
from splitwiser.traces.arrivals import poisson
from splitwiser.traces.presets import preset
from splitwiser.traces.trace import Trace
from splitwiser.traces.traffic import random_trace

OPT = llm("facebook/opt-125m")
LLAMA = llm("meta-llama/Llama-3.1-8B")
H200 = gpu("h200")
SERVICE = 0.1  # s


class Constant:
    """Every step takes the same time."""

    def step(self, *_: float, **__: float) -> StepCost:
        return StepCost(SERVICE, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1)

    def decode(self, batch: int) -> StepCost:
        return self.step()


ONE_BY_ONE = Deployment("one by one", (Workers(max_num_batched_tokens=1),))
M_D_1 = Physics(lambda group: Constant(), Exclusive())


def poisson_trace(count: int, output_tokens: int = 1) -> Trace:
    return Trace(
        arrival=poisson(count, 1.0, seed=1),
        prompt_tokens=np.full(count, 8),
        output_tokens=np.full(count, output_tokens),
        name="poisson",
    )


def waits_less(wait: float, rate: float) -> float:
    """P(wait in queue <= wait) of M/D/1 (Erlang 1909)."""
    terms = [rate * (wait - k * SERVICE) for k in range(int(wait / SERVICE) + 1)]
    return (1 - rate * SERVICE) * sum(
        (-x) ** k / factorial(k) * exp(x) for k, x in enumerate(terms)
    )


def test_capacity_of_one_server_is_that_of_queueing_theory() -> None:
    """With Poisson arrivals, constant service and a TTFT limit, the rate is that of M/D/1."""
    limit = 0.45
    rates = np.linspace(0.1, 9.99, 2000)
    expected = max(rate for rate in rates if waits_less(limit - SERVICE, rate) >= 0.9)
    found = capacity(
        ONE_BY_ONE, poisson_trace(12_000), OPT, H200, goodput={"ttft": limit}, physics=M_D_1
    )
    assert found.rate == pytest.approx(expected, rel=0.03)
    assert found.low <= expected <= found.high
    assert found.saturation == pytest.approx(1 / SERVICE)
    assert not found.saturated


def test_no_capacity_beyond_the_rate_of_completions() -> None:
    """Where a short trace meets loose objectives in spite of overload, completions set the rate."""
    found = capacity(
        ONE_BY_ONE, poisson_trace(500), OPT, H200, goodput={"e2el": 1000.0}, physics=M_D_1
    )
    assert found.saturated
    assert 0.9 / SERVICE <= found.rate <= 1 / SERVICE
    assert found.low <= found.rate <= found.high
    assert found.trial.state == "steady"
    assert found.beyond.attainment == 1.0


def test_the_rate_meets_the_target_and_15_percent_more_does_not() -> None:
    """The answer is a rate that simulates to 90 % or more, and is close to the edge."""
    trace, goodput = preset("azure-conv", num_prompts=600), {"ttft": 0.2, "tpot": 0.03}
    found = capacity(continuous(), trace, LLAMA, H200, goodput=goodput)
    shares = [
        simulate(trace.scale(rate / trace.rate), continuous(), LLAMA, H200).attainment(goodput)
        for rate in (found.rate, 1.15 * found.rate)
    ]
    assert shares[0] >= 0.9 > shares[1]
    assert found.low <= found.rate <= found.high
    assert found.beyond.attainment < 0.9 <= found.trial.attainment


def test_looser_objectives_never_lower_the_rate() -> None:
    """Every request that meets an objective meets a looser one, at every rate."""
    trace = preset("azure-conv", num_prompts=300)
    rates = [
        capacity(continuous(), trace, LLAMA, H200, goodput={"ttft": 0.2 * k, "tpot": 0.02 * k}).rate
        for k in (1, 2, 4)
    ]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]


def test_a_guess_changes_the_way_but_not_the_answer() -> None:
    """Where the search starts moves its answer by no more than its tolerance."""
    trace, goodput = poisson_trace(1000), {"ttft": 0.3}
    rates = [
        capacity(ONE_BY_ONE, trace, OPT, H200, goodput=goodput, guess=guess, physics=M_D_1).rate
        for guess in (None, 1.0, 6.5, 9.9)
    ]
    assert max(rates) <= 1.02 * min(rates)


def test_what_fails_alone_fails_at_every_rate() -> None:
    """An objective below the time of a lone request is named, with how far it is off."""
    with pytest.raises(
        Unattainable, match=r"ttft: even with the GPU to themselves, 100.0% .* 50 ms"
    ):
        capacity(
            ONE_BY_ONE,
            poisson_trace(200),
            OPT,
            H200,
            goodput={"ttft": 0.05, "e2el": 10.0},
            physics=M_D_1,
        )


def test_prompts_that_cannot_be_served_are_told_from_late_ones() -> None:
    """Where too many prompts exceed the context, no rate helps, and that is said."""
    trace = random_trace(num_prompts=100, request_rate=5, random_input_len=5000)
    with pytest.raises(Unattainable, match=r"100.0% of the requests can never be served"):
        capacity(continuous(), trace, OPT, H200, goodput={"ttft": 5.0})


def test_bursts_that_fail_at_any_rate_end_the_search() -> None:
    """Requests that arrive at the same instant cannot be pulled apart by scaling."""
    trace = poisson_trace(300)
    together = trace.retimed(np.repeat(np.arange(1.0, 11.0), 30))
    with pytest.raises(Unattainable, match=r"ttft: even at .* requests/s"):
        capacity(ONE_BY_ONE, together, OPT, H200, goodput={"ttft": 0.15}, physics=M_D_1)


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        (random_trace(num_prompts=100), "all 100 requests arrive at once"),
        (random_trace(num_prompts=100, request_rate=1, max_concurrency=4), "closed loop"),
        (random_trace(num_prompts=5, request_rate=1), "5 requests are too few"),
    ],
)
def test_a_trace_without_a_rate_to_scale_is_refused(trace: Trace, said: str) -> None:
    """One line says why there is nothing to search."""
    with pytest.raises(ValueError, match=said) as error:
        capacity(sequential(), trace, OPT, H200, goodput={"ttft": 1.0})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_target_and_confidence_are_shares(share: float) -> None:
    """A target or confidence outside (0, 1) is refused."""
    for name in ("target", "confidence"):
        with pytest.raises(ValueError, match=name):
            capacity(
                sequential(), poisson_trace(50), OPT, H200, goodput={"ttft": 1.0}, **{name: share}
            )


def test_more_requests_narrow_the_limits() -> None:
    """Nine times the requests make the interval about a third as wide."""
    widths = []
    for count in (1000, 9000):
        found = capacity(
            ONE_BY_ONE, poisson_trace(count), OPT, H200, goodput={"ttft": 0.3}, physics=M_D_1
        )
        widths.append((found.high - found.low) / found.rate)
    assert 1.8 < widths[0] / widths[1] < 5


def test_higher_confidence_is_wider() -> None:
    """The limits at 99 % enclose those at 80 %; the rate is the same."""
    narrow_, wide = (
        capacity(
            ONE_BY_ONE,
            poisson_trace(3000),
            OPT,
            H200,
            goodput={"ttft": 0.3},
            confidence=confidence,
            physics=M_D_1,
        )
        for confidence in (0.8, 0.99)
    )
    assert wide.low < narrow_.low < narrow_.rate < narrow_.high < wide.high
    assert wide.rate == narrow_.rate


@given(
    root=st.floats(0.02, 5e4),
    steep=st.floats(0.1, 200),
    below=st.floats(1.001, 1e3),
    above=st.floats(1.001, 1e3),
)
def test_a_bracket_narrows_onto_the_root(
    root: float, steep: float, below: float, above: float
) -> None:
    """Whatever the curve, the ends keep their signs and come as close as asked, in few steps."""
    tried = []

    def margin(rate: float) -> float:
        tried.append(rate)
        return 1 / (1 + exp(min(500, steep * log(rate / root)))) - 0.5

    low, high = narrow(margin, root / below, root * above)
    assert margin(low) >= 0 > margin(high)
    assert high <= 1.02 * low  # 1 %, or neighbours on the grid of three digits
    assert len(set(tried)) < 40


def test_saturation_is_the_slope_of_the_completions() -> None:
    """Completions at a constant pace have that rate and no error; the ends do not count."""
    finished = np.concatenate(([0.0] * 50, np.arange(900) / 7.0, [1e6] * 50))
    found = Saturation.of(finished)
    assert found.rate == pytest.approx(7.0)
    assert found.standard_error == pytest.approx(0.0, abs=0.02)


def test_memory_that_limits_lowers_the_rate_and_is_seen() -> None:
    """A pool of few KV blocks carries less, and the trial beyond shows that it is full."""
    trace, goodput = preset("azure-conv", num_prompts=300), {"ttft": 0.5, "tpot": 0.05}
    small, large = (
        capacity(deployment, trace, LLAMA, H200, goodput=goodput)
        for deployment in (replace(continuous(), num_gpu_blocks=1000), continuous())
    )
    assert small.rate < 0.8 * large.rate
    assert small.beyond.kv_full > 0.5 or small.beyond.preempted > 0.01
    assert large.beyond.kv_full == large.beyond.preempted == 0
