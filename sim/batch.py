"""The sequences that decode together, kept so that k steps cost as much as one."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

# A sequence's stay in a decode batch: request, KV tokens when it joined, step number of the batch
# at which it joined, that at which it ends, and the time of its token before the stay. (A plain
# tuple: there is one a request.)
Member = tuple[int, int, int, int, float]


class DecodeBatch:
    """The running set of a decode worker.

    Every step gives each member one token and one KV slot. The batch knows, without walking its
    members: the KV tokens that the next step attends to, how many of the contexts still grow (all,
    but for a sliding window), the step at which the first member ends, and the blocks that the next
    k steps will take. The last comes from counting the members by the step, modulo the block size,
    at which they begin a new block.

    The world knows when a member ends (`ends`); schedulers must not ask.
    """

    def __init__(self, block_size: int, window: int | None) -> None:
        self.size = 0
        self.attended = 0
        self.growing = 0
        self.step = 0
        self.newly_joined = 0  # members whose first step is the next one
        self.members: dict[int, Member] = {}  # by request, in order of admission
        self._window = window
        self._block_size = block_size
        self._new_block_at = [0] * block_size  # members by (step of a new block) mod block size
        self._ends: list[tuple[int, int]] = []  # (step, request), the top one a member's
        self._removed = 0  # entries there of members that were removed
        self._full_windows: list[tuple[int, int]] = []

    def add(self, request: int, tokens: int, remaining: int, last_token: float) -> None:
        """Take in a sequence with `tokens` KV tokens and `remaining` output tokens to come."""
        step = self.step
        ends = step + remaining
        self.members[request] = (request, tokens, step, ends, last_token)
        self.size += 1
        self.newly_joined += 1
        self._new_block_at[(step - tokens) % self._block_size] += 1
        heappush(self._ends, (ends, request))
        attended, window = tokens + 1, self._window
        if window is not None:
            if attended >= window:
                self.attended += window
                return
            if step + window - attended <= ends:
                heappush(self._full_windows, (step + window - attended, request))
        self.attended += attended
        self.growing += 1

    def steps_to_change(self) -> int:
        """Steps until a member ends or fills its window; the batch must not be empty."""
        steps = self._ends[0][0] - self.step
        if self._full_windows:
            steps = min(steps, self._full_windows[0][0] - self.step)
        return steps

    def blocks_for(self, steps: int) -> int:
        """KV blocks that the next `steps` steps will take from the pool."""
        block_size, counts = self._block_size, self._new_block_at
        start = self.step % block_size
        end = start + steps % block_size
        blocks = self.size * (steps // block_size) + sum(counts[start:end])
        if end > block_size:
            blocks += sum(counts[: end - block_size])
        return blocks

    def steps_with(self, blocks: int, at_most: int) -> int:
        """The most steps, up to `at_most`, that `blocks` blocks suffice for."""
        low, high = 0, at_most
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks_for(middle) <= blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def advance(self, steps: int) -> Sequence[Member]:
        """Make `steps` steps, and take out and return the members that ended."""
        self.step = now = self.step + steps
        self.attended += steps * self.growing
        self.newly_joined = 0
        full = self._full_windows
        while full and full[0][0] <= now:
            heappop(full)
            self.growing -= 1
        ends = self._ends
        if ends[0][0] > now:
            return ()
        ended = []
        window, counts, block_size = self._window, self._new_block_at, self._block_size
        while ends and ends[0][0] <= now:
            end, request = heappop(ends)
            if self._removed and self._is_removed(end, request):
                self._removed -= 1
                continue
            member = self.members.pop(request)
            ended.append(member)
            if window is not None:
                self._forget(member)
                continue
            _, tokens, joined, _, _ = member
            self.attended -= tokens + now - joined + 1
            self.growing -= 1
            self.size -= 1
            counts[(joined - tokens) % block_size] -= 1
        if self._removed:
            self._expose()
        return ended

    def remove(self, request: int) -> Member:
        """Take out a member before its end (preempted)."""
        member = self.members.pop(request)
        if member[2] == self.step:
            self.newly_joined -= 1
        # Its entry stays in the heap: to find it would cost as much as the batch is large.
        self._removed += 1
        self._expose()
        if self._full_windows:
            self._full_windows = [entry for entry in self._full_windows if entry[1] != request]
            heapify(self._full_windows)
        self._forget(member)
        return member

    def _is_removed(self, end: int, request: int) -> bool:
        """Whether an entry of `_ends` is that of a member that was removed."""
        member = self.members.get(request)
        return member is None or member[3] != end

    def _expose(self) -> None:
        """Bring a member's entry to the top of `_ends`."""
        ends = self._ends
        while ends and self._is_removed(*ends[0]):
            heappop(ends)
            self._removed -= 1

    def _forget(self, member: Member) -> None:
        """Take a member out of the sums, its window entry being gone."""
        _, tokens, joined, _, _ = member
        attended, window = tokens + self.step - joined + 1, self._window
        if window is not None and attended >= window:
            self.attended -= window
        else:
            self.attended -= attended
            self.growing -= 1
        self.size -= 1
        self._new_block_at[(joined - tokens) % self._block_size] -= 1
