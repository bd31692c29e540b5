"""The decode batch, which jumps, against one that walks over its members."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from splitwiser.sim.batch import DecodeBatch

WINDOW, BLOCK = 12, 4


class Walk(RuleBasedStateMachine):
    """Joins, steps and removals in any order; `model` holds (KV tokens, tokens to come) by request."""

    def __init__(self) -> None:
        super().__init__()
        self.batch = DecodeBatch(BLOCK, self.window)
        self.model: dict[int, tuple[int, int]] = {}
        self.requests = 0

    window: int | None = None

    @rule(tokens=st.integers(1, 30), remaining=st.integers(1, 40))
    def join(self, tokens: int, remaining: int) -> None:
        self.requests += 1
        self.batch.add(self.requests, tokens, remaining, 0.0)
        self.model[self.requests] = (tokens, remaining)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        """Any number of steps up to the next change."""
        most = self.batch.steps_to_change()
        assert 1 <= most <= min(left for _, left in self.model.values())
        steps = data.draw(st.integers(1, most))
        ended = {member[0] for member in self.batch.advance(steps)}
        self.model = {r: (kv + steps, left - steps) for r, (kv, left) in self.model.items()}
        assert ended == {r for r, (_, left) in self.model.items() if not left}
        self.model = {r: state for r, state in self.model.items() if state[1]}

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.model)))
        _, tokens, joined, ends, _ = self.batch.remove(request)
        kv, left = self.model.pop(request)
        assert (tokens + self.batch.step - joined, ends - self.batch.step) == (kv, left)

    @invariant()
    def sums_agree(self) -> None:
        """Size, attended tokens, and the blocks of the next steps, are those of the members."""
        lengths = [kv + 1 for kv, _ in self.model.values()]
        window = math.inf if self.window is None else self.window
        assert self.batch.size == len(lengths)
        assert self.batch.attended == sum(min(length, window) for length in lengths)
        assert self.batch.growing == sum(length < window for length in lengths)
        for steps in (1, 3, 4, 9):
            blocks = sum(
                math.ceil((kv + steps) / BLOCK) - math.ceil(kv / BLOCK)
                for kv, _ in self.model.values()
            )
            assert self.batch.blocks_for(steps) == blocks
            assert self.batch.blocks_for(self.batch.steps_with(blocks, steps)) <= blocks


class WalkWithWindow(Walk):
    """The same under a sliding window."""

    window = WINDOW


BRIEF = settings(derandomize=True, deadline=None, max_examples=40, stateful_step_count=30)
TestBatch = Walk.TestCase
TestBatch.settings = BRIEF
TestBatchWithWindow = WalkWithWindow.TestCase
TestBatchWithWindow.settings = BRIEF
