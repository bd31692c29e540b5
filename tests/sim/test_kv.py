"""The KV pool: blocks are conserved, and prefixes shared only while they are there."""

from __future__ import annotations

import pytest

from splitwiser.sim.kv import BlockPool, PrefixPool


def prefix_pool(total: int, rows: list[list[int]], prompts: list[int]) -> PrefixPool:
    """Blocks of 4 tokens, hashed in blocks of 8."""
    return PrefixPool(total, 4, lambda request: rows[request], prompts, 8)


def test_blocks_are_whole() -> None:
    """A pool rounds tokens up to blocks, and takes back what it gave."""
    pool = BlockPool(10, 16)
    assert [pool.blocks(tokens) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]
    assert pool.fits(0, 160)
    assert not pool.fits(0, 161)
    assert not pool.fits(0, 160, reserve=1)
    pool.admit(0, 33)
    assert pool.free == 7
    pool.release(0, 33)
    assert pool.free == 10


def test_a_lack_of_blocks_takes_back_reservations() -> None:
    """`available` asks who reserved ahead before it says no."""
    pool = BlockPool(10, 1)
    pool.free -= 8
    pool.reclaim.append(lambda: setattr(pool, "free", pool.free + 5))
    assert pool.available(2)
    assert pool.free == 2
    assert pool.available(7)
    assert pool.free == 7


def test_who_waits_for_memory_is_told() -> None:
    """Giving blocks back calls the listeners."""
    pool, calls = BlockPool(4, 1), []
    pool.on_free.append(lambda: calls.append(pool.free))
    pool.free -= 3
    pool.give(2)
    assert calls == [3]


def test_a_prefix_is_shared_once_it_is_computed() -> None:
    """A second prompt finds the published blocks of the first, but always computes its last token."""
    pool = prefix_pool(100, [[1, 2, 3], [1, 2, 9], [1, 2]], [24, 20, 16])
    assert pool.admit(0, 24) == 0
    assert pool.admit(1, 20) == 0, "nothing is published yet"
    pool.release(1, 20)
    pool.publish(0)
    assert pool.admit(1, 20) == 16
    assert pool.free == 100 - 6 - 1, "the shared blocks count once"
    assert pool.admit(2, 16) == 8, "the last token of a prompt is always computed"
    for request, tokens in ((0, 24), (1, 20), (2, 16)):
        pool.release(request, tokens)
    assert pool.free == 100


def test_idle_blocks_are_lent_until_their_room_is_needed() -> None:
    """Blocks without users count as free, are found again, and go oldest first."""
    pool = prefix_pool(8, [[1], [2], [1], [2]], [9, 9, 9, 9])
    for request in (0, 1):
        pool.admit(request, 9)
        pool.publish(request)
        pool.release(request, 9)
    assert pool.free == 8
    pool.free -= 5  # leaves room for one hashed block: that of request 1
    assert pool.fits(3, 9)
    assert pool.admit(3, 9) == 8
    pool.release(3, 9)
    pool.give(5)
    assert pool.admit(2, 9) == 0, "the older block had to go"


def test_the_hashed_block_must_be_whole_blocks() -> None:
    """A block size that does not divide the trace's prefix blocks is refused with both numbers."""
    with pytest.raises(ValueError, match=r"block_size 5 .* 8 tokens"):
        PrefixPool(10, 5, lambda request: [], [1], 8)
