"""Replications of a capacity: how far would it move if the traffic came again?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from splitwiser.sim.trial import PARTS
from splitwiser.traces.prefix import PrefixBlocks
from splitwiser.traces.trace import Trace

REPLICATIONS = 8


def resampled(trace: Trace, number: int) -> Trace:
    """Replication *number* of a trace: its consecutive parts, drawn with replacement, in a row.

    A block bootstrap (Kuensch, The jackknife and the bootstrap for general stationary observations,
    1989) of 20 parts: requests keep their neighbours, so that bursts stay whole, and the rate of
    the whole moves with theirs. A part that is drawn again brings prefixes of its own, or a cache
    would find all of them. The same number gives the same trace.
    """
    rng = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(number,)))
    parts = np.array_split(np.arange(len(trace)), PARTS)
    drawn = rng.integers(0, PARTS, PARTS)
    rows = np.concatenate([parts[part] for part in drawn])
    gaps = np.diff(trace.arrival, prepend=0.0)[rows]
    again = np.zeros(PARTS, dtype=np.int64)  # how often the part was drawn before
    for place, part in enumerate(drawn):
        again[place] = (drawn[:place] == part).sum()
    copies = np.repeat(again, [len(parts[part]) for part in drawn])
    return replace(
        trace,
        arrival=np.cumsum(gaps),
        prompt_tokens=trace.prompt_tokens[rows],
        output_tokens=trace.output_tokens[rows],
        session=None,
        adapter=None if trace.adapter is None else trace.adapter[rows],
        prefix=None if trace.prefix is None else _renamed(trace.prefix.take(rows), copies),
    )


def _renamed(prefix: PrefixBlocks, copies: NDArray[np.int64]) -> PrefixBlocks:
    span = int(prefix.ids.max(initial=0)) + 1
    return replace(prefix, ids=prefix.ids + span * np.repeat(copies, prefix.lengths))


def limits(rate: float, replications: Sequence[float], confidence: float) -> tuple[float, float]:
    """Confidence limits of a capacity found on one trace, from those of replications of it.

    The point estimate varies as one replication does: rate +- t s, with their standard deviation s
    and Student's t for one degree of freedom less than their number.
    """
    from scipy.special import stdtrit

    spread = float(np.std(replications, ddof=1))
    width = float(stdtrit(len(replications) - 1, (1 + confidence) / 2)) * spread
    return max(0.0, rate - width), rate + width
