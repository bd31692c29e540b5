"""The block allocator that several processes share."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from splitwiser.validate.runtime.blocks import BlockAllocator

BLOCKS = 12

HAMMER = """
import sys, random
from pathlib import Path
import numpy as np
from splitwiser.validate.runtime.blocks import BlockAllocator
path, owners, mine, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
pool, chance, held = BlockAllocator.open(path), random.Random(mine), []
owner = np.memmap(owners, np.int32, "r+")  # who holds a block: each writes at its own blocks only
print("ready", flush=True)
sys.stdin.readline()
while rounds:
    rounds -= 1
    ids = pool.allocate(chance.randint(1, 6)) if len(held) < 4 else None
    if ids is not None:
        assert (owner[ids] == 0).all(), "a block was handed out twice"
        owner[ids] = mine
        held.append(ids)
    elif held:
        ids = held.pop(chance.randrange(len(held)))
        assert (owner[ids] == mine).all(), "another process took a block of ours"
        owner[ids] = 0
        pool.release(ids)
for ids in held:
    owner[ids] = 0
    pool.release(ids)
"""

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
"""


def script(source: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that runs *source*, ready when it has said its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


class Pool(RuleBasedStateMachine):
    """Two openers of one pool, against a set of free ids."""

    def __init__(self) -> None:
        super().__init__()
        path = Path(tempfile.mkdtemp(dir=self.directory)) / "pool"
        self.pools = [BlockAllocator.create(path, BLOCKS), BlockAllocator.open(path)]
        self.free = set(range(BLOCKS))
        self.held: list[np.ndarray] = []

    directory: Path

    @rule(who=st.integers(0, 1), count=st.integers(0, BLOCKS + 1), reserve=st.integers(0, 4))
    def allocate(self, who: int, count: int, reserve: int) -> None:
        ids = self.pools[who].allocate(count, reserve)
        assert (ids is None) == (count + reserve > len(self.free))
        if ids is not None:
            assert ids.dtype == np.int32
            assert len(ids) == count
            assert set(ids.tolist()) <= self.free
            self.free -= set(ids.tolist())
            self.held.append(ids)

    @precondition(lambda self: self.held)
    @rule(who=st.integers(0, 1), which=st.integers(0, 99))
    def release(self, who: int, which: int) -> None:
        ids = self.held.pop(which % len(self.held))
        self.pools[who].release(ids)
        self.free |= set(ids.tolist())

    @precondition(lambda self: self.free)
    @rule(who=st.integers(0, 1))
    def release_what_is_free(self, who: int) -> None:
        with pytest.raises(ValueError, match="not held"):
            self.pools[who].release(np.array([min(self.free)], np.int32))

    @invariant()
    def conserves_blocks(self) -> None:
        assert len(self.free) + sum(map(len, self.held)) == BLOCKS
        assert [pool.free_count() for pool in self.pools] == [len(self.free)] * 2

    def teardown(self) -> None:
        for pool in self.pools:
            pool.close()


def test_blocks_are_conserved_and_never_handed_out_twice(tmp_path: Path) -> None:
    """Whatever two openers do, a block is either free or held by exactly one allocation."""

    class Here(Pool):
        directory = tmp_path

    machine = Here.TestCase
    machine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
    machine().runTest()


def test_processes_at_once_never_hold_the_same_block(tmp_path: Path) -> None:
    """Four processes that allocate and release at once meet on no block, and give all back."""
    path, owners = tmp_path / "pool", tmp_path / "owners"
    pool = BlockAllocator.create(path, 40)
    np.zeros(40, np.int32).tofile(owners)
    users = [script(HAMMER, path, owners, mine, 4000) for mine in (1, 2, 3, 4)]
    for user in users:
        assert user.stdin is not None
        user.stdin.write("go\n")
        user.stdin.flush()
    assert [user.wait(60) for user in users] == [0, 0, 0, 0]
    assert pool.free_count() == 40


def test_a_user_killed_at_any_moment_leaves_a_sound_pool(tmp_path: Path) -> None:
    """After SIGKILL of a busy user what is free can be allocated, each block once."""
    path, owners = tmp_path / "pool", tmp_path / "owners"
    pool = BlockAllocator.create(path, 40)
    for delay in (0.002, 0.011, 0.023):
        np.zeros(40, np.int32).tofile(owners)
        user = script(HAMMER, path, owners, 1, -1)
        assert user.stdin is not None
        user.stdin.write("go\n")
        user.stdin.flush()
        threading.Event().wait(delay)
        user.send_signal(signal.SIGKILL)
        user.wait(5)
        ids = pool.allocate(pool.free_count())
        assert ids is not None
        assert len(set(ids.tolist())) == len(ids)
        pool.release(ids)


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """A process killed while it holds the lock stops the others only until it is dead."""
    pool = BlockAllocator.create(tmp_path / "pool", 4)
    holder = script(HOLDER, tmp_path / "pool")
    got: list[object] = []
    waiter = threading.Thread(target=lambda: got.append(pool.allocate(1)))
    waiter.start()
    waiter.join(0.1)
    assert waiter.is_alive(), "the lock did not exclude us"
    holder.send_signal(signal.SIGKILL)
    holder.wait(5)
    waiter.join(5)
    assert not waiter.is_alive()
    assert pool.free_count() == 3


def test_the_first_blocks_go_first(tmp_path: Path) -> None:
    """A new pool hands its blocks out from 0 upwards, and the reserve stays free."""
    pool = BlockAllocator.create(tmp_path / "pool", 8)
    ids = pool.allocate(3)
    assert ids is not None
    assert ids.tolist() == [0, 1, 2]
    assert pool.allocate(4, reserve=2) is None
    ids = pool.allocate(3, reserve=2)
    assert ids is not None
    assert ids.tolist() == [3, 4, 5]
    assert pool.free_count() == 2


@pytest.mark.parametrize(
    ("ids", "says"),
    [([8], "0 to 7, not \\[8\\]"), ([-1], "0 to 7"), ([0, 0], "twice: \\[0, 0\\]")],
)
def test_a_wrong_release_changes_nothing(tmp_path: Path, ids: list[int], says: str) -> None:
    """Releasing an id outside the pool, or one twice, is refused by name and frees nothing."""
    pool = BlockAllocator.create(tmp_path / "pool", 8)
    assert pool.allocate(4) is not None
    with pytest.raises(ValueError, match=says):
        pool.release(np.array(ids, np.int32))
    assert pool.free_count() == 4


def test_bad_pools_are_refused(tmp_path: Path) -> None:
    """A pool without blocks, a path that is taken, and a file of something else are refused."""
    with pytest.raises(ValueError, match="not 0"):
        BlockAllocator.create(tmp_path / "none", 0)
    BlockAllocator.create(tmp_path / "pool", 8).close()
    with pytest.raises(FileExistsError):
        BlockAllocator.create(tmp_path / "pool", 8)
    for size in (3, 200):
        (tmp_path / "other").write_bytes(b"x" * size)
        with pytest.raises(ValueError, match="is no block file"):
            BlockAllocator.open(tmp_path / "other")
    pool = BlockAllocator.open(tmp_path / "pool")
    with pytest.raises(ValueError, match="-1 blocks"):
        pool.allocate(-1)
