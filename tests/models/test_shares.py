"""Laws of shares of the SMs: what limits leave, and how much of them two tasks have in common."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.models.shares import Growth, Shares, overlap


@given(st.floats(0.3, 1.0), st.floats(0.05, 0.95), st.floats(0.0, 0.99))
@settings(max_examples=50, deadline=None)
def test_kernels_launched_for_more_sms_lose_up_to_the_ratio(
    own: float, part: float, narrow: float
) -> None:
    """On a part of its SMs a step takes between what its traffic or arithmetic reach there and its
    time over that part, and longer the less its grids fit.
    """
    found = [
        Shares(Growth((1.0, 2.8), (0.2, 4.0), n)).escape(own, own * part)
        for n in (0.0, narrow, narrow + 0.01, 1.0)
    ]
    for longer in map(list, zip(*found, strict=True)):
        assert longer == pytest.approx(sorted(longer), rel=1e-12)
        assert longer[0] >= -1e-12
        assert longer[-1] == pytest.approx(1.0 / part - 1.0)


@given(st.floats(0.05, 1), st.floats(0.05, 1))
def test_overlap_of_two_shares(own: float, other: float) -> None:
    """Shares that fit side by side do not overlap; a whole device overlaps with everything."""
    part = overlap(own, other, own + other)
    assert 0.0 <= part <= 1.0 + 1e-12
    assert (part == 0.0) == (own + other <= 1.0)
    assert overlap(own, 1.0, own + 1.0) == pytest.approx(1.0)


@given(st.floats(0.05, 1), st.floats(0.05, 1))
def test_of_two_prompts_each_meets_the_other_as_often(own: float, other: float) -> None:
    """Prompts meet equally often whatever the limits of each, between what either's own SMs tell."""
    ways = [overlap(a, b, own + other) for a, b in ((own, other), (other, own))]
    met, back = (overlap(a, b, own + other, prompts=True) for a, b in ((own, other), (other, own)))
    assert met == pytest.approx(back, abs=1e-12)
    assert min(ways) - 1e-12 <= met <= max(ways) + 1e-12
