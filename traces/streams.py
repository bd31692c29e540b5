"""Random streams: one seed, and one independent stream for each purpose.

Two quantities drawn from one stream depend on each other's count: a longer trace would get other
lengths for its first requests. Streams by purpose keep them apart.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of every seeded result: add, never renumber."""

    ARRIVALS = 0
    PROMPTS = 1
    OUTPUTS = 2
    SESSIONS = 3
    SPREAD = 4
    RESAMPLE = 5


def stream(seed: int | np.random.Generator, purpose: Purpose) -> np.random.Generator:
    """The stream of *seed* for *purpose*: PCG64 on `SeedSequence(seed, spawn_key=(purpose,))`.

    A generator is returned as it is, for a caller that keeps its own streams. A seed that is not a
    whole number of 0 or more raises :exc:`ValueError`.
    """
    if isinstance(seed, np.random.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a whole number of 0 or more, not {seed!r}")
    sequence = np.random.SeedSequence(int(seed), spawn_key=(int(purpose),))
    return np.random.Generator(np.random.PCG64(sequence))
