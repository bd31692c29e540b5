"""`Staging`: small arrays between host and device, without waiting.

A copy without waiting reads pinned memory after the call returns, so the memory must not be used
again before. A ring of buffers does that: a worker has at most `AHEAD` steps under way.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AHEAD = 2  # steps launched and not waited for
UPLOADS = 5  # calls of `send` for one step at most
RING = (AHEAD + 1) * UPLOADS
FIRST = 4096  # elements of a buffer to begin with


class Staging:
    """Pinned buffers of one worker; on the CPU arrays are used in place."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self._buffers: list[Tensor] = []
        if self._pinned:
            self._buffers = [self._buffer(FIRST) for _ in range(2 * RING)]
        self._sent = self._fetched = 0

    def send(self, *arrays: NDArray[np.integer]) -> list[Tensor]:
        """Bring arrays to the device, in one copy: int64 tensors."""
        flat = np.concatenate([np.asarray(array, np.int64) for array in arrays])
        if self._pinned:
            self._sent = (self._sent + 1) % RING
            buffer = self._grown(self._sent, len(flat))[: len(flat)]
            buffer.numpy()[:] = flat
            there = buffer.to(self._device, non_blocking=True)
        else:
            there = torch.from_numpy(flat)
        return list(there.split([len(array) for array in arrays]))

    def fetch(self, values: Tensor) -> Tensor:
        """Begin to bring a tensor to the host; it is there when an event recorded now has passed."""
        self._fetched = (self._fetched + 1) % RING
        buffer = self._grown(RING + self._fetched, len(values))[: len(values)]
        return buffer.copy_(values, non_blocking=True)

    def _grown(self, index: int, size: int) -> Tensor:
        if len(self._buffers[index]) < size:
            self._buffers[index] = self._buffer(2 * size)
        return self._buffers[index]

    def _buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int64, pin_memory=True)
