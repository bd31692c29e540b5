"""Conversations for synthetic prompts: which requests share how much of a prefix.

Prompts keep the lengths that were drawn. They are only dealt out to conversations so that each
turn is longer than the one before, as a prompt that repeats the history is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitwiser.traces.prefix import PrefixBlocks

Ints = NDArray[np.int64]

BLOCK_TOKENS = 512  # Mooncake's
# Measured on the first 3,658 requests of Mooncake's conversation trace: 32 % continue an earlier
# prompt beyond the common first block, half of them within 336 requests (mean 518).
THINK_REQUESTS = 518.0
# Chosen together so that 37 % of the prompt tokens are prefix hits, which Mooncake's FAST'25 trace
# is published with. Growth is in ranks: a turn's prompt stands that share of all prompts higher.
FOLLOW_UP_SHARE = 0.35
GROWTH = 0.05


def conversations(prompt_tokens: Ints, rng: np.random.Generator) -> tuple[Ints, Ints, PrefixBlocks]:
    """Deal *prompt_tokens* to conversations.

    Returns the order in which the requests come (row numbers), and for that order the conversation
    of each and its prefix blocks. All prompts share the first block (a system prompt), and a turn
    has the whole blocks of the turn before it. A block that is not full belongs to its prompt only.
    """
    count = len(prompt_tokens)
    first = rng.random(count) >= FOLLOW_UP_SHARE
    first[0] = True
    session = np.cumsum(first) - 1
    starts = np.flatnonzero(first)
    turn = np.arange(count) - starts[session]
    by_rank = _lengths_that_grow(session, turn, len(starts), rng)
    rows = np.empty(count, dtype=np.int64)  # of prompt_tokens, for each (session, turn)
    rows[by_rank] = np.argsort(prompt_tokens, kind="stable")
    order = _interleave(session, starts, rng)
    return rows[order], session[order], _blocks(prompt_tokens[rows], session, starts).take(order)


def _lengths_that_grow(session: Ints, turn: Ints, sessions: int, rng: np.random.Generator) -> Ints:
    """The requests ordered by the length they get: at random, but a later turn comes later."""
    score = rng.random(sessions)[session] + GROWTH * turn
    return np.argsort(score, kind="stable")


def _interleave(session: Ints, starts: Ints, rng: np.random.Generator) -> Ints:
    """The order of arrival: conversations start evenly, turns follow after a time to think."""
    think = rng.exponential(THINK_REQUESTS, len(session))
    think[starts] = 0.0
    elapsed = np.cumsum(think)
    begin = rng.uniform(0, len(session), len(starts)) - elapsed[starts]
    return np.argsort(begin[session] + elapsed, kind="stable")


def _blocks(prompt_tokens: Ints, session: Ints, starts: Ints) -> PrefixBlocks:
    """Ids: 0 for the common block, then a run for each conversation, then the blocks not full."""
    whole = prompt_tokens // BLOCK_TOKENS
    part = (prompt_tokens % BLOCK_TOKENS > 0).astype(np.int64)
    longest = np.maximum.reduceat(whole, starts)
    base = np.cumsum(longest) - longest  # place 1 of the conversation gets the id base + 1
    lengths = whole + part
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    ids = np.repeat(base[session], lengths) + place
    ids[place == 0] = 0
    last = offsets[1:][part > 0] - 1
    ids[last] = longest.sum() + 1 + np.arange(len(last))
    return PrefixBlocks(offsets, ids, BLOCK_TOKENS)
