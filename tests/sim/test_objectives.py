"""Objectives in vLLM's syntax."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.sim.objectives import check_goodput, misses, parse_goodput


def test_milliseconds_become_seconds() -> None:
    """Objectives are given in milliseconds and kept in seconds, with or without the unit."""
    assert parse_goodput(["ttft:500", "tpot:50ms", "e2el: 2e4"]) == {
        "ttft": 0.5,
        "tpot": 0.05,
        "e2el": 20.0,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tttf:500", "did you mean ttft?"),
        ("TTFT:500", "did you mean ttft?"),
        ("itl:50", "known: ttft, tpot, e2el"),
        ("ttft", "no colon"),
        ("ttft=500", "no colon"),
        ("ttft:", "no number"),
        ("ttft:fast", "no number"),
        ("ttft:0.5s", "unit 's' is not accepted"),
        ("ttft:500us", "unit 'us' is not accepted"),
        ("ttft:0", "not above 0"),
        ("ttft:-5", "not above 0"),
        ("ttft:nan", "not above 0"),
        ("ttft:inf", "not above 0"),
        ("ttft:1e999", "not above 0"),
        ("ttft:0.5", "the unit is milliseconds"),
        ("ttft:1e12", "the unit is milliseconds"),
    ],
)
def test_what_is_no_objective_is_refused_with_its_reason(text: str, said: str) -> None:
    """A bad objective raises one line that quotes it and says what is wrong."""
    with pytest.raises(ValueError, match=r"objective '") as error:
        parse_goodput([text])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_objective_is_given_once() -> None:
    """Two limits for one metric contradict each other."""
    with pytest.raises(ValueError, match="ttft is given twice"):
        parse_goodput(["ttft:500", "ttft:400"])


def test_some_objective_is_needed() -> None:
    """Without an objective there is nothing to meet."""
    with pytest.raises(ValueError, match="no objective is given"):
        parse_goodput([])


@given(st.text() | st.from_regex(r"(ttft|tpot|e2el):\s*[-+0-9.eE]{1,8}[a-z]{0,3}"))
def test_any_text_is_an_objective_or_an_error_of_one_line(text: str) -> None:
    """Whatever is typed yields a positive finite number of seconds, or a one-line ValueError."""
    try:
        objectives = parse_goodput([text])
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert all(0 < seconds < 1e6 for seconds in objectives.values())


def test_a_request_misses_what_it_exceeds_and_everything_if_it_never_finished() -> None:
    """The limit itself is met; one token has no TPOT to miss; an unfinished request misses all."""
    nan = float("nan")
    result = SimpleNamespace(
        ttft=np.array([0.5, 0.6, 0.1, 0.1]),
        tpot=np.array([0.05, 0.01, nan, nan]),
        e2el=np.array([1.0, 1.0, 0.1, nan]),
    )
    late = misses(result, {"ttft": 0.5, "tpot": 0.05})
    assert late["ttft"].tolist() == [False, True, False, True]
    assert late["tpot"].tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    "goodput",
    [{}, {"ttft": -1.0}, {"ttft": float("nan")}, {"foo": 1.0}, ["ttft:500"], {"tpot": 1e6}],
)
def test_objectives_from_python_are_checked(goodput: Any) -> None:
    """What is no mapping of known metrics to sensible seconds is refused in one line."""
    with pytest.raises(ValueError, match="goodput") as caught:
        check_goodput(goodput)
    assert "\n" not in str(caught.value)
