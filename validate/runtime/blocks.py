"""The free blocks of a KV pool, handed out to several processes by way of one small shared file.

The file holds a header (a mark, the blocks in all, how many are free), a stack of block ids whose
first entries are the free ones, and a byte for each block that says whether it is held.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

import numpy as np

from splitwiser.validate.runtime.messages import Ids

_MARK = 0x53574B56  # "SWKV"
_HEADER = 3 * 8
_FREE = 2  # the header's entry that counts the free blocks
_PER_BLOCK = 4 + 1  # bytes: an id in the stack, and whether it is held


class BlockAllocator:
    """Hands out the blocks 0..*total* - 1 of a pool; safe among processes and threads.

    Each user opens the file for itself (threads too): the lock belongs to the opened file, and
    the kernel drops it when its holder dies. A change counts from the one store that sets the
    number of free blocks, so that a holder killed in the middle leaves a sound file. What a dead
    process had been given stays held.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        if size < _HEADER:
            self._file.close()
            raise ValueError(f"{path} is no block file: {size} bytes")
        mapping = mmap.mmap(self._file.fileno(), size)  # unmapped with the last array on it
        self._header = np.frombuffer(mapping, np.int64, 3)
        self.total = int(self._header[1])
        if self._header[0] != _MARK or size != _HEADER + self.total * _PER_BLOCK:
            self._file.close()
            raise ValueError(f"{path} is no block file: its header does not fit its {size} bytes")
        self._stack = np.frombuffer(mapping, np.int32, self.total, _HEADER)
        self._held = np.frombuffer(mapping, np.uint8, self.total, _HEADER + 4 * self.total)

    @classmethod
    def create(cls, path: Path, blocks: int) -> BlockAllocator:
        """A new file at *path* in which all *blocks* are free; FileExistsError where one stands."""
        if not 1 <= blocks <= np.iinfo(np.int32).max:
            raise ValueError(f"a pool has 1 to 2**31 - 1 blocks, not {blocks}")
        stack = np.arange(blocks - 1, -1, -1, dtype=np.int32)  # block 0 on top
        with path.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(np.array([_MARK, blocks, blocks], np.int64).tobytes())
            file.write(stack.tobytes())
            file.write(bytes(blocks))
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> BlockAllocator:
        """The pool whose file stands at *path*; ValueError where that is something else."""
        return cls(path)

    def free_count(self) -> int:
        """How many blocks are free now; takes no lock, so it may be out of date at once."""
        return int(self._header[_FREE])

    def allocate(self, count: int, reserve: int = 0) -> Ids | None:
        """*count* blocks, or None where fewer than *count* + *reserve* are free."""
        if count < 0 or reserve < 0:
            raise ValueError(f"cannot allocate {count} blocks with {reserve} in reserve")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            free = int(self._header[_FREE])
            if count + reserve > free:
                return None
            ids = self._stack[free - count : free][::-1].copy()
            self._held[ids] = 1
            self._header[_FREE] = free - count
            return ids
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def release(self, ids: Ids) -> None:
        """Gives blocks back; ValueError, and nothing happens, where one of them is not held."""
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.total:
            raise ValueError(f"block ids run from 0 to {self.total - 1}, not {ids.tolist()}")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            if not self._held[ids].all() or np.unique(ids).size != ids.size:
                raise ValueError(f"released blocks that are not held, or twice: {ids.tolist()}")
            free = int(self._header[_FREE])
            self._stack[free : free + ids.size] = ids[::-1]
            self._held[ids] = 0
            self._header[_FREE] = free + ids.size
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leaves the pool; the file and the blocks held stay as they are."""
        self._file.close()
