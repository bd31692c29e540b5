"""The paged KV pool: blocks of a fixed number of tokens, counted; and reuse of prefix blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence


class BlockPool:
    """A pool of KV blocks. `free` + what the sequences hold = `total`, at all times."""

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.free = total
        self.block_size = block_size
        self.reclaim: list[Callable[[], None]] = []  # give back what a running step reserved ahead
        self.on_free: list[Callable[[], None]] = []  # who waits for memory

    def blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def available(self, count: int) -> bool:
        """Whether `count` blocks can be had now, taking back reservations if that helps."""
        if count <= self.free:
            return True
        for reclaim in self.reclaim:
            reclaim()
        return count <= self.free

    def give(self, count: int) -> None:
        """Return `count` blocks."""
        self.free += count
        for notify in self.on_free:
            notify()

    def admit(self, request: int, tokens: int) -> int:
        """Allocate for the first `tokens` tokens of a request; the number that need no computing."""
        self.free -= -(-tokens // self.block_size)
        return 0

    def fits(self, request: int, tokens: int, reserve: int = 0) -> bool:
        """Whether `admit` would find its blocks and leave `reserve` of them free."""
        count = -(-tokens // self.block_size) + reserve
        return count <= self.free or self.available(count)

    def publish(self, request: int) -> None:
        """The prompt of a request is computed: others may share its prefix."""

    def release(self, request: int, tokens: int) -> None:
        """Free what a request of `tokens` tokens holds."""
        self.free += -(-tokens // self.block_size)
        for notify in self.on_free:
            notify()


class PrefixPool(BlockPool):
    """A pool that keeps the hashed blocks of prompts for later prompts with the same prefix.

    A hashed block is `block_tokens` tokens (512 in Mooncake's traces), that is, several blocks of
    the pool. A block that nobody uses stays, counted as free, until its room is needed (least
    recently used first), as in vLLM's automatic prefix caching. Only whole blocks are shared, and
    the last token of a prompt is always computed.
    """

    def __init__(
        self,
        total: int,
        block_size: int,
        hashes: Callable[[int], Sequence[int]],
        prompt_tokens: Sequence[int],
        block_tokens: int,
    ) -> None:
        super().__init__(total, block_size)
        if block_tokens % block_size:
            raise ValueError(
                f"block_size {block_size} does not divide the trace's prefix blocks of "
                f"{block_tokens} tokens; choose one that does, or turn prefix caching off"
            )
        self._hashes = hashes
        self._prompt_tokens = prompt_tokens
        self._block_tokens = block_tokens
        self._ratio = block_tokens // block_size
        self._users: dict[int, int] = {}  # hashed block -> sequences that use it
        self._idle: OrderedDict[int, None] = (
            OrderedDict()
        )  # hashed blocks without user, oldest first
        self._shared: dict[int, list[int]] = {}  # request -> hashed blocks that it uses

    def _hits(self, request: int) -> list[int]:
        whole = (self._prompt_tokens[request] - 1) // self._block_tokens
        hits: list[int] = []
        for block in self._hashes(request)[:whole]:
            if block not in self._users:
                break
            hits.append(block)
        return hits

    def _cost(self, hits: list[int], tokens: int) -> tuple[int, int]:
        """New blocks, and idle blocks brought back to use."""
        new = self.blocks(tokens) - len(hits) * self._ratio
        return new, sum(1 for block in hits if block in self._idle) * self._ratio

    def _evict(self) -> None:
        """Let go of the idle blocks whose room was needed by now.

        Runs reserve ahead, so this waits until somebody looks, and then counts only what they have
        used.
        """
        if self.free < len(self._idle) * self._ratio:
            for reclaim in self.reclaim:
                reclaim()
            while self.free < len(self._idle) * self._ratio:
                block, _ = self._idle.popitem(last=False)
                del self._users[block]

    def fits(self, request: int, tokens: int, reserve: int = 0) -> bool:
        self._evict()
        return self.available(sum(self._cost(self._hits(request), tokens)) + reserve)

    def admit(self, request: int, tokens: int) -> int:
        hits = self._hits(request)
        new, revived = self._cost(hits, tokens)
        for block in hits:
            self._users[block] += 1
            self._idle.pop(block, None)
        self.free -= revived
        self.free -= new
        self._shared[request] = hits
        return len(hits) * self._block_tokens

    def publish(self, request: int) -> None:
        self._evict()
        whole = self._prompt_tokens[request] // self._block_tokens
        shared = self._shared[request]
        for block in self._hashes(request)[len(shared) : whole]:
            if block in self._users:
                break  # somebody computed it meanwhile: this copy stays private
            self._users[block] = 1
            shared.append(block)

    def release(self, request: int, tokens: int) -> None:
        self._evict()
        shared = self._shared.pop(request)
        for block in reversed(shared):  # the deepest blocks go first: nothing can follow them
            self._users[block] -= 1
            if not self._users[block]:
                self._idle[block] = None
        self.give(self.blocks(tokens) - self._kept_in_use(shared))

    def _kept_in_use(self, shared: list[int]) -> int:
        return sum(1 for block in shared if self._users[block]) * self._ratio
