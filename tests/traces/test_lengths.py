"""Length distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.traces import Trace, lengths
from splitwiser.traces.marginals import Quantiles, dependent_uniforms

N = 50_000


@given(tokens=st.integers(1, 5000), ratio=st.floats(0, 0.999))
def test_range_ratio_bounds(tokens: int, ratio: float) -> None:
    """Lengths lie within [⌊L(1-r)⌋, ⌈L(1+r)⌉], and are at least 1."""
    drawn = lengths.uniform_range(200, tokens, ratio)
    assert drawn.min() >= max(1, np.floor(tokens * (1 - ratio)))
    assert drawn.max() <= np.ceil(tokens * (1 + ratio))


def test_range_ratio_is_uniform() -> None:
    """Both ends of the range come, and the mean is the length asked for."""
    drawn = lengths.uniform_range(N, 10, 0.5)
    assert set(drawn) == set(range(5, 16))
    assert drawn.mean() == pytest.approx(10, rel=0.01)


def test_fixed() -> None:
    """A fixed length is the same for all."""
    assert lengths.fixed(3, 7).tolist() == [7, 7, 7]


def test_log_normal_from_mean() -> None:
    """A log-normal from its median and mean has them."""
    drawn = lengths.log_normal(N, p50=1020, mean=1500)
    assert np.median(drawn) == pytest.approx(1020, rel=0.03)
    assert drawn.mean() == pytest.approx(1500, rel=0.03)


def test_log_normal_from_p90() -> None:
    """A log-normal from its median and 90 % quantile has them, within its clip."""
    drawn = lengths.log_normal(N, p50=129, p90=424, high=1000)
    assert np.quantile(drawn, (0.5, 0.9)) == pytest.approx((129, 424), rel=0.04)
    assert drawn.max() == 1000 and drawn.min() >= 1


def test_empirical_keeps_pairs() -> None:
    """Resampled requests are pairs of the trace, each as often as any other."""
    source = Trace(np.zeros(3), np.array([1, 2, 3]), np.array([10, 20, 30]))
    prompt, output = lengths.empirical(N, source, seed=1)
    assert (output == 10 * prompt).all()
    assert np.bincount(prompt)[1:] / N == pytest.approx([1 / 3] * 3, rel=0.05)


@pytest.mark.parametrize("rank_correlation", [-0.3, 0.0, 0.2])
def test_dependent_uniforms(rank_correlation: float) -> None:
    """The pair is uniform in each, with the rank correlation asked for."""
    u, v = dependent_uniforms(
        N, rank_correlation, np.random.default_rng(1), np.random.default_rng(2)
    )
    deciles = np.linspace(0.1, 0.9, 9)
    for sample in (u, v):
        assert np.quantile(sample, deciles) == pytest.approx(deciles, abs=0.01)
    assert np.corrcoef(u, v)[0, 1] == pytest.approx(rank_correlation, abs=0.02)


def test_quantiles_mean() -> None:
    """The mean of a quantile table is that of its samples."""
    table = Quantiles(((0.0, 1), (0.5, 100), (0.9, 200), (1.0, 2000)))
    sample = table.at(np.random.default_rng(0).random(N))
    assert sample.mean() == pytest.approx(table.mean, rel=0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda: lengths.fixed(3, 0),
        lambda: lengths.uniform_range(3, 10, 1.0),
        lambda: lengths.uniform_range(3, 10, float("nan")),
        lambda: lengths.log_normal(3, p50=10),
        lambda: lengths.log_normal(3, p50=10, mean=20, p90=30),
        lambda: lengths.log_normal(3, p50=10, mean=5),
        lambda: lengths.log_normal(3, p50=10, mean=20, low=9, high=8),
    ],
)
def test_refuses(make) -> None:  # type: ignore[no-untyped-def]
    """Parameters that describe no distribution are refused in one line."""
    with pytest.raises(ValueError) as caught:
        make()
    assert "\n" not in str(caught.value)
