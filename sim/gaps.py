"""`Itl`: the pooled inter-token latencies of a simulation, without a number per token.

Within a run at one rate the gaps between tokens form an arithmetic progression, and every sequence
of the batch sees each of them. So a run of any length is four numbers here, and statistics of the
pool are taken from those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import floor, nan, sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SAMPLE = 4096  # gaps drawn to bracket an order statistic
SPREAD = 4.0  # half width of that bracket in standard errors of the sample's rank
GOLDEN = (sqrt(5) - 1) / 2  # its multiples modulo 1 fill the unit interval most evenly (Weyl)
ROUNDS = 64  # of bracketing at most; two or three are usual
EXPANDABLE = 20_000  # gaps that are cheaper to sort than to bracket further


@dataclass(frozen=True, eq=False)
class Itl:
    """A weighted set of progressions of gaps, in seconds.

    Piece p holds the gaps `lows[p] + steps[p] * i` for i = 0 ... `counts[p]` - 1, each `weights[p]`
    times. `steps` must be above 0, also where the count is 1.
    """

    lows: Floats
    steps: Floats
    counts: Ints
    weights: Ints

    @classmethod
    def of(
        cls,
        lows: Floats,
        steps: Floats,
        counts: Ints,
        weights: Ints,
        singles: Iterable[tuple[Floats, Ints]],
    ) -> Itl:
        """Pool progressions (some perhaps empty or flat) and weighted groups of single gaps."""
        rising = (counts > 1) & (lows + steps * (counts - 1) > lows)
        flat = ~rising & (counts > 0)
        ones = [(lows[flat], weights[flat] * counts[flat])]
        for values, weight in singles:
            some = weight > 0
            ones.append((values, weight) if some.all() else (values[some], weight[some]))
        single = np.concatenate([values for values, _ in ones])
        one = np.ones(len(single), dtype=np.int64)
        return cls(
            np.concatenate((lows[rising], single)),
            np.concatenate((steps[rising], one)),
            np.concatenate((counts[rising], one)),
            np.concatenate((weights[rising], *(weight for _, weight in ones))),
        )

    @cached_property
    def count(self) -> int:
        """How many gaps there are."""
        return int((self.counts * self.weights).sum())

    @cached_property
    def mean(self) -> float:
        """Their mean in seconds; NaN if there is none."""
        if not self.count:
            return nan
        middles = self.lows + self.steps * ((self.counts - 1) * 0.5)
        return float((self.counts * self.weights * middles).sum() / self.count)

    @cached_property
    def std(self) -> float:
        """Their standard deviation in seconds (numpy's, of a population); NaN if there is none."""
        if not self.count:
            return nan
        n, d = self.counts.astype(np.float64), self.steps
        u = self.lows - self.mean
        # The sum of (u + d i)^2 over i = 0 ... n-1.
        squares = n * (u * u + (n - 1) * d * (u + d * (2 * n - 1) / 6))
        return sqrt(max(0.0, float((self.weights * squares).sum()) / self.count))

    @property
    def median(self) -> float:
        """The 50th percentile."""
        return self.percentile(50)

    def percentile(self, q: float) -> float:
        """The *q*-th percentile in seconds: what `numpy.percentile` gives for the gaps written out.

        NaN if there is no gap. Raises ValueError for a *q* outside 0 to 100.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"a percentile is from 0 to 100, not {q}")
        if not self.count:
            return nan
        position = q / 100 * (self.count - 1)
        rank = floor(position)
        lower, upper = self._order_statistics(rank, min(rank + 1, self.count - 1))
        return lower + (upper - lower) * (position - rank)

    def expand(self) -> Floats:
        """Every gap, in no order: for small sets and tests."""
        values, weights = _expand(
            self.lows, self.steps, np.zeros_like(self.counts), self.counts, self.weights
        )
        return np.repeat(values, weights)

    def _order_statistics(self, low_rank: int, high_rank: int) -> tuple[float, float]:
        """The gaps at two adjoining ranks (from 0) of the sorted pool.

        Selection after Floyd and Rivest (Comm. ACM 18, 1975): a sample gives two gaps that very
        likely enclose the ranks, counting (in closed form for a progression) makes it certain, and
        only what lies between is kept.
        """
        lows, steps, counts, weights = self.lows, self.steps, self.counts, self.weights
        begin = np.zeros_like(counts)  # the first term of each piece that is still in question
        below = 0
        spread = SPREAD
        for attempt in range(ROUNDS):
            if counts.sum() <= EXPANDABLE + 2 * len(counts):
                break
            sample = _sample(attempt, lows, steps, begin, counts, weights)
            total = int((counts * weights).sum())
            bottom, top = _enclose(
                sample, (low_rank - below) / total, (high_rank - below) / total, spread
            )
            under = np.clip(np.ceil((bottom - lows) / steps) - begin, 0, counts).astype(np.int64)
            upto = np.clip(np.floor((top - lows) / steps) + 1 - begin, 0, counts).astype(np.int64)
            cut_low = below + int((under * weights).sum()) <= low_rank
            cut_high = below + int((upto * weights).sum()) > high_rank
            if not (cut_low and cut_high):
                spread *= 2
            if cut_high:
                counts = upto
            if cut_low:
                below += int((under * weights).sum())
                begin = begin + under
                counts = counts - under
            kept = counts > 0
            lows, steps, begin = lows[kept], steps[kept], begin[kept]
            counts, weights = counts[kept], weights[kept]
        values, masses = _expand(lows, steps, begin, counts, weights)
        order = np.argsort(values)
        cumulated = np.cumsum(masses[order])
        found = np.searchsorted(cumulated, [low_rank - below, high_rank - below], side="right")
        return float(values[order[found[0]]]), float(values[order[found[1]]])


def _expand(
    lows: Floats, steps: Floats, begin: Ints, counts: Ints, weights: Ints
) -> tuple[Floats, Ints]:
    """The terms of all pieces, and the weight of each."""
    piece = np.repeat(np.arange(len(counts)), counts)
    inner = np.arange(len(piece)) - np.repeat(np.cumsum(counts) - counts, counts)
    return lows[piece] + steps[piece] * (begin[piece] + inner), weights[piece]


def _sample(
    attempt: int,
    lows: Floats,
    steps: Floats,
    begin: Ints,
    counts: Ints,
    weights: Ints,
) -> Floats:
    """A sorted sample, spread evenly over the gaps without period; another for each attempt."""
    mass = counts * weights
    ends = np.cumsum(mass)
    shares = (np.arange(attempt * SAMPLE, (attempt + 1) * SAMPLE) * GOLDEN) % 1.0
    shares.sort()
    drawn = (shares * ends[-1]).astype(np.int64)
    piece = np.searchsorted(ends, drawn, side="right")
    inner = begin[piece] + (drawn - (ends[piece] - mass[piece])) // weights[piece]
    sample: Floats = lows[piece] + steps[piece] * inner
    sample.sort()
    return sample


def _enclose(sample: Floats, low: float, high: float, spread: float) -> tuple[float, float]:
    """Two values that very likely enclose what lies at the shares *low* and *high* of the pool."""
    size = len(sample)
    bottom = floor(size * low - spread * sqrt(size * low * (1 - low)) - 2)
    top = floor(size * high + spread * sqrt(size * max(0.0, high * (1 - high))) + 2)
    return (
        float(sample[bottom]) if bottom >= 0 else -np.inf,
        float(sample[top]) if top < size else np.inf,
    )
