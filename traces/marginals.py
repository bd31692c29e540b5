"""Length distributions of the public traces, as quantile tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Quantiles:
    """A distribution given by its quantile function, straight between (probability, tokens)."""

    points: tuple[tuple[float, float], ...]

    @property
    def mean(self) -> float:
        """The mean in tokens: the area under the quantile function, exact for straight pieces."""
        probability, tokens = np.array(self.points).T
        return float(np.trapezoid(tokens, probability))

    def at(self, uniform: Floats) -> Ints:
        """The lengths at the given probabilities, rounded to whole tokens, at least 1."""
        probability, tokens = np.array(self.points).T
        tokens_at = np.rint(np.interp(uniform, probability, tokens))
        return np.asarray(np.maximum(1, tokens_at), dtype=np.int64)


def dependent_uniforms(
    count: int, rank_correlation: float, first: np.random.Generator, second: np.random.Generator
) -> tuple[Floats, Floats]:
    """Two uniform samples with Spearman's rank correlation *rank_correlation*, within ±1/3.

    The Farlie-Gumbel-Morgenstern copula C(u, v) = uv(1 + θ(1-u)(1-v)), whose rank correlation is
    θ/3, drawn by inverting the conditional distribution (Nelsen, An Introduction to Copulas, ex.
    3.23). The measured correlations are small, and this copula needs no special functions.
    """
    if not -1 / 3 <= rank_correlation <= 1 / 3:
        raise ValueError(f"rank correlation must be within ±1/3, not {rank_correlation}")
    u, p = first.random(count), second.random(count)
    lean = 3 * rank_correlation * (1 - 2 * u)
    return u, 2 * p / (1 + lean + np.sqrt((1 + lean) ** 2 - 4 * lean * p))


# The 50, 90 and 99 % points of each table are the public trace's (presets.py names the sources),
# and its mean is the trace's within 1.1 %. The other points are quantiles of the public file where
# it was at hand, as many as the mean asks for. "Chosen" marks tables for which only the published
# four are known: there the other points take the sibling's or an excerpt's shape, and the least
# certain of them was moved to meet the mean.

AZURE_CONV_PROMPT = Quantiles(
    (
        (0.0, 2), (0.01, 29), (0.05, 181), (0.1, 207), (0.16, 375), (0.25, 396), (0.35, 414),
        (0.45, 984), (0.5, 1020), (0.6, 1071), (0.75, 1189), (0.8, 1315), (0.82, 1368),
        (0.85, 1876), (0.9, 2735), (0.92, 4073), (0.99, 4142), (0.999, 6179), (1.0, 14050),
    )
)  # fmt: skip
AZURE_CONV_OUTPUT = Quantiles(
    (
        (0.0, 7), (0.01, 16), (0.05, 41), (0.1, 54), (0.25, 85), (0.5, 129), (0.6, 177),
        (0.65, 217), (0.7, 384), (0.9, 424), (0.95, 451), (0.99, 601), (0.999, 954), (1.0, 1000),
    )
)  # fmt: skip
AZURE_CODE_PROMPT = Quantiles(  # chosen; the service cuts prompts at 7,437 tokens
    (
        (0.0, 3), (0.1, 130), (0.25, 680), (0.5, 1469), (0.75, 2490), (0.9, 5188), (0.99, 7436),
        (1.0, 7437),
    )
)  # fmt: skip
AZURE_CODE_OUTPUT = Quantiles(  # chosen
    (
        (0.0, 6), (0.25, 9), (0.5, 13), (0.75, 19), (0.9, 55), (0.95, 80), (0.99, 251),
        (0.999, 450), (1.0, 1000),
    )
)  # fmt: skip
MOONCAKE_PROMPT = Quantiles(  # chosen, after the shape of the trace's first 20 minutes
    (
        (0.0, 890), (0.1, 980), (0.25, 2400), (0.5, 6909), (0.75, 13900), (0.9, 27367),
        (0.95, 38000), (0.97, 50000), (0.99, 85400), (1.0, 123192),
    )
)  # fmt: skip
MOONCAKE_OUTPUT = Quantiles(  # chosen, after the shape of the trace's first 20 minutes
    (
        (0.0, 1), (0.05, 9), (0.1, 24), (0.25, 155), (0.5, 350), (0.75, 470), (0.9, 597),
        (0.95, 690), (0.99, 1119), (1.0, 2000),
    )
)  # fmt: skip
ARXIV_PROMPT = Quantiles(
    (
        (0.0, 1), (0.01, 73), (0.05, 749), (0.1, 1242), (0.25, 1986), (0.5, 2730), (0.75, 3370),
        (0.9, 3702), (0.95, 3813), (0.99, 3933), (0.999, 4012), (1.0, 4054),
    )
)  # fmt: skip
ARXIV_OUTPUT = Quantiles(
    (
        (0.0, 5), (0.01, 36), (0.05, 60), (0.1, 78), (0.25, 115), (0.5, 167), (0.75, 242),
        (0.84, 296), (0.9, 372), (0.93, 463), (0.95, 736), (0.96, 1323), (0.97, 2200),
        (0.98, 2775), (0.99, 3271), (0.999, 3844), (1.0, 4056),
    )
)  # fmt: skip
SHAREGPT_PROMPT = Quantiles(
    (
        (0.0, 1), (0.05, 29), (0.1, 74), (0.15, 180), (0.25, 580), (0.4, 1203), (0.5, 1730),
        (0.6, 2401), (0.7, 3235), (0.8, 4278), (0.9, 5696), (0.95, 6563), (0.99, 7434), (1.0, 8141),
    )
)  # fmt: skip
SHAREGPT_OUTPUT = Quantiles(
    (
        (0.0, 2), (0.01, 6), (0.05, 44), (0.1, 84), (0.25, 228), (0.5, 415), (0.75, 628),
        (0.9, 834), (0.95, 920), (0.99, 998), (1.0, 1024),
    )
)  # fmt: skip
