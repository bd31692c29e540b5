"""Length distributions: tokens, whole numbers from 1 on, one per request."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from splitwiser.traces.streams import Purpose, stream
from splitwiser.traces.trace import MAX_TOKENS, Trace

Ints = NDArray[np.int64]
Seed = int | np.random.Generator

Z90 = 1.2815515655446004  # the standard normal distribution's 90 % quantile


def fixed(count: int, tokens: int) -> Ints:
    """The same length for all."""
    return np.full(count, _tokens(tokens, "tokens"), dtype=np.int64)


def uniform_range(
    count: int,
    tokens: int,
    range_ratio: float,
    *,
    seed: Seed = 0,
    purpose: Purpose = Purpose.PROMPTS,
) -> Ints:
    """vLLM's `--random-range-ratio`: uniform over [⌊L(1-r)⌋, ⌈L(1+r)⌉], and at least 1.

    *purpose* picks the random stream of an integer *seed*. Source: `RandomDataset` in vLLM's
    `benchmarks/datasets`. (SGLang's flag of the same name means [L·r, L].)
    """
    _tokens(tokens, "tokens")
    if not 0 <= range_ratio < 1:
        raise ValueError(f"range ratio must be from 0 to below 1, not {range_ratio}")
    low = max(1, math.floor(tokens * (1 - range_ratio)))
    high = max(1, math.ceil(tokens * (1 + range_ratio)))
    return stream(seed, purpose).integers(low, high, size=count, endpoint=True, dtype=np.int64)


def log_normal(
    count: int,
    *,
    p50: float,
    mean: float | None = None,
    p90: float | None = None,
    low: int = 1,
    high: int = MAX_TOKENS,
    seed: Seed = 0,
    purpose: Purpose = Purpose.PROMPTS,
) -> Ints:
    """Log-normal lengths from their median and either their mean or their 90 % quantile.

    With median m the width (sigma) is √(2·ln(mean/m)) or ln(p90/m)/z90. Rounded, then clipped to
    [*low*, *high*]; clipping moves the mean.
    """
    if (mean is None) == (p90 is None):
        raise ValueError("log_normal needs either the mean or p90 beside p50")
    upper = mean if mean is not None else p90
    if upper is None or not 1 <= p50 <= upper <= MAX_TOKENS:
        name = "mean" if mean is not None else "p90"
        raise ValueError(f"log_normal needs 1 <= p50 <= {name}, not {p50} and {upper}")
    if not 1 <= low <= high <= MAX_TOKENS:
        raise ValueError(f"log_normal needs 1 <= low <= high <= {MAX_TOKENS}, not {low}, {high}")
    spread = math.log(upper / p50)
    sigma = math.sqrt(2 * spread) if mean is not None else spread / Z90
    drawn = stream(seed, purpose).lognormal(math.log(p50), sigma, count)
    return np.clip(np.rint(drawn), low, high).astype(np.int64)


def empirical(count: int, trace: Trace, *, seed: Seed = 0) -> tuple[Ints, Ints]:
    """Prompt and output lengths of requests drawn with replacement from *trace*, kept in pairs."""
    rows = stream(seed, Purpose.RESAMPLE).integers(0, len(trace), size=count)
    return trace.prompt_tokens[rows], trace.output_tokens[rows]


def _tokens(tokens: int, name: str) -> int:
    if not 1 <= tokens <= MAX_TOKENS:
        raise ValueError(f"{name} must be from 1 to {MAX_TOKENS}, not {tokens}")
    return tokens
