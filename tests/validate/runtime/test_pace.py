"""When a worker launches its next step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from splitwiser.validate.runtime.pace import LEAST_AHEAD, Pace


def flight(begun: float, seconds: float, prompt_tokens: int = 0, decoded: bool = True) -> Any:
    return SimpleNamespace(
        pending=SimpleNamespace(launched=begun),
        start=begun,
        end=begun + seconds,
        prompt_tokens=prompt_tokens,
        decoded=[None] if decoded else [],
    )


def test_the_next_launch_is_shortly_before_the_expected_end() -> None:
    """A step is expected to take what the last ones did, its prompt tokens on top of decoding."""
    pace = Pace()
    assert pace.next_launch(flight(1.0, 9.0)) == pytest.approx(1.0 - LEAST_AHEAD)  # nothing known
    pace.learn(flight(0.0, 0.020))
    pace.learn(flight(0.020, 0.120, prompt_tokens=100))  # 0.020 s of it were decoding
    for tokens, decoded, expected in ((0, True, 0.02), (50, False, 0.05), (50, True, 0.07)):
        due = pace.next_launch(flight(1.0, 9.0, tokens, decoded))
        assert 1.0 + 0.8 * expected < due < 1.0 + expected


def test_a_step_begins_when_the_one_before_has_ended() -> None:
    """A step that was launched ahead is timed from the end of the step before it."""
    pace = Pace()
    pace.learn(flight(0.0, 0.1))
    assert pace.next_launch(flight(0.05, 9.0)) == pytest.approx(pace.next_launch(flight(0.1, 9.0)))
