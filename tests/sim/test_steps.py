"""The closed form of a run against adding its steps up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.sim.steps import steps_for, work_of

FIRST = st.floats(1e-6, 1.0)
SHARE = st.one_of(
    st.just(0.0), st.floats(1e-9, 1.0)
)  # of the first step: a step attends its growth
STEPS = st.integers(1, 300)
REPEATABLE = settings(derandomize=True, deadline=None)


@given(STEPS, FIRST, SHARE)
@REPEATABLE
def test_the_work_of_a_run_is_the_sum_of_its_steps(steps: int, first: float, share: float) -> None:
    """Step j takes first + growth * (j - 1) seconds."""
    growth = share * first
    total = sum(first + growth * j for j in range(steps))
    assert work_of(steps, first, growth) == pytest.approx(total, rel=1e-12)


@given(st.floats(0.0, 50.0), FIRST, SHARE)
@REPEATABLE
def test_steps_for_is_the_least_number_that_suffices(
    work: float, first: float, share: float
) -> None:
    """So many steps take the work or more, one less does not; at least one step is made."""
    growth = share * first
    steps = steps_for(work, first, growth)
    assert steps >= 1
    assert work_of(steps, first, growth) >= work
    assert steps == 1 or work_of(steps - 1, first, growth) < work


@given(STEPS, FIRST, SHARE)
@REPEATABLE
def test_a_break_at_a_step_boundary_ends_the_run_there(
    steps: int, first: float, share: float
) -> None:
    """The work of k steps is worth k steps, in spite of rounding."""
    growth = share * first
    assert steps_for(work_of(steps, first, growth), first, growth) == steps
