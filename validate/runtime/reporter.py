"""`Reporter`: waits for the ends of a worker's steps, and tells the router of each at once.

It is a thread of its own: launching a prefill takes the worker's Python several milliseconds, and
neither the time of a step's end nor its tokens must wait for that.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING

import numpy as np

from splitwiser.validate.runtime.blocks import BlockAllocator
from splitwiser.validate.runtime.mailbox import Mailbox
from splitwiser.validate.runtime.messages import Computed, Step

if TYPE_CHECKING:
    from splitwiser.validate.runtime.runner import Pending, Runner


@dataclass(slots=True, eq=False)
class Running:
    """A sequence that decodes here, or whose prompt is under way.

    *tokens* are known up to the last step that has ended (of a sequence that was handed over, those
    from then on); *length* (tokens with keys and values) and *outputs* (tokens to come) count the
    launched steps too.
    """

    request: int
    tokens: list[int]
    length: int
    outputs: int
    blocks: list[int]
    slot: int | None
    is_new: bool = True  # computed for the first time, not after a preemption
    received: float | None = None  # when it was handed over, until a step has said so


def slots_of(members: Iterable[Running]) -> list[int]:
    """The slots of sequences that decode here."""
    return [member.slot for member in members if member.slot is not None]


@dataclass(slots=True)
class Flight:
    """A launched step: who gets its tokens, in their order, and who leaves when it has ended.

    *start*, *end* (monotonic) and *failure* are known once it is *done*.
    """

    pending: Pending
    decoded: Items[Running | None] = ()  # None: a row that computes for nothing
    prompts: Items[Running] = ()
    prompt_tokens: int = 0
    scheduled: tuple[int, ...] = ()
    leaving: list[Running] = field(default_factory=list)
    start: float = 0.0
    end: float = 0.0
    failure: Exception | None = None
    done: Event = field(default_factory=Event)


class Reporter:
    """Reports the steps of one worker, in their order.

    *pool* must be an opening of the allocator that nobody else uses: an opening locks out the
    others, and not itself.
    """

    def __init__(
        self, worker: int, runner: Runner, pool: BlockAllocator, mailbox: Mailbox, hands_over: bool
    ) -> None:
        self._worker = worker
        self._pool = pool
        self._mailbox = mailbox
        self._hands_over = hands_over
        self._last_end = 0.0
        self._flights: SimpleQueue[Flight] = SimpleQueue()
        self._runner = runner
        self.steps = 0
        if runner.asynchronous:
            Thread(target=self._watch, name="reporter", daemon=True).start()

    def watch(self, flight: Flight) -> None:
        """Report a step when it has ended: here and now where steps end as they are launched."""
        if self._runner.asynchronous:
            self._flights.put(flight)
        else:
            self._report(flight)
            flight.done.set()

    def _watch(self) -> None:
        self._runner.enter_thread()
        while True:
            flight = self._flights.get()
            try:
                self._report(flight)
            except Exception as error:  # noqa: BLE001 - the worker raises it
                flight.failure = error
            flight.done.set()
            self._mailbox.wake()

    def _report(self, flight: Flight) -> None:
        flight.end, tokens = flight.pending.wait()
        flight.start = max(flight.pending.launched, self._last_end)
        self._last_end = flight.end
        values = tokens.tolist()
        decoded: list[int] = []
        given: list[int] = []
        received: list[tuple[int, float]] = []
        for member, token in zip(flight.decoded, values, strict=False):
            if member is None:
                continue
            member.tokens.append(token)
            decoded.append(member.request)
            given.append(token)
            if member.received is not None:
                received.append((member.request, member.received))
                member.received = None
        computed = []
        for member, token in zip(flight.prompts, values[len(flight.decoded) :], strict=True):
            member.tokens.append(token)
            passed_on = self._hands_over and member.outputs
            blocks = np.array(member.blocks, np.int32) if passed_on else None
            computed.append(Computed(member.request, token, blocks))
        used = self._pool.total - self._pool.free_count()
        self._mailbox.send(
            Step(
                self._worker,
                flight.start,
                flight.end,
                flight.scheduled,
                np.array(decoded, np.int32),
                np.array(given, np.int32),
                tuple(computed),
                flight.prompt_tokens,
                used,
                tuple(received),
            )
        )
        for member in flight.leaving:
            self._pool.release(np.array(member.blocks, np.int32))
            member.blocks = []
        self.steps += 1
