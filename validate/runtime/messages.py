"""What the router and the workers say to each other, over a pipe for each worker.

Times are `time.monotonic()`: on Linux one clock for all processes of a machine. Token ids are
arrays of int32. A request is its index in the trace; warm-up requests have negative numbers.
"""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]

# From the router to a worker -------------------------------------------------------------------


class Prompt(NamedTuple):
    """A prompt to compute; *tokens* end with what had been generated, after a preemption.

    *outputs* counts the tokens to come, with the one that the computed prompt gives. An *urgent*
    prompt goes to the head of the line: it was preempted.
    """

    request: int
    tokens: Ids
    outputs: int
    urgent: bool = False


class Sequence(NamedTuple):
    """A computed prompt for a decode worker, and the blocks that hold its keys and values.

    *length* tokens are in the blocks; *token* came after them and has no keys and values yet.
    *outputs* counts the tokens to come. A worker that cannot keep the sequence gives it back: the
    router knows its tokens.
    """

    request: int
    token: int
    length: int
    outputs: int
    blocks: Ids


class Stop(NamedTuple):
    """End: finish the step that is under way, say `Stopped`, and leave."""


# From a worker to the router -------------------------------------------------------------------


class Ready(NamedTuple):
    """The worker can take its first request. *about*: plain values for the result's provenance."""

    worker: int
    about: dict[str, Any]


class Computed(NamedTuple):
    """A prompt is computed and gave *token*; *blocks* where a decode worker shall go on from it."""

    request: int
    token: int
    blocks: Ids | None = None


class Step(NamedTuple):
    """One step on the device has ended.

    *start* is when the device could begin it (launched, and the worker's step before it ended),
    *end* when the host knew that it had ended. *scheduled* are the requests that a step computes
    for the first time, *decoded* and *tokens* who got which token from decoding, *computed* the
    prompts completed. *prompt_tokens* counts the prompt tokens computed (padding too), *blocks* the
    blocks in use in the worker's pool. *received* says when sequences handed over had arrived.
    """

    worker: int
    start: float
    end: float
    scheduled: tuple[int, ...]
    decoded: Ids
    tokens: Ids
    computed: tuple[Computed, ...]
    prompt_tokens: int
    blocks: int
    received: tuple[tuple[int, float], ...] = ()


class Preempted(NamedTuple):
    """A sequence left the decode batch because memory ran short.

    One that is *kept* waits for its worker to take it up again (swapped out, or in the line of an
    engine); else the router has to send it to a prefill worker anew.
    """

    worker: int
    request: int
    kept: bool


class Aborted(NamedTuple):
    """The pool cannot hold this sequence even alone: it leaves unfinished."""

    worker: int
    request: int


class Failed(NamedTuple):
    """The worker cannot go on: *why*, in one line."""

    worker: int
    why: str


class Stopped(NamedTuple):
    """The worker has left its loop. *about*: what it counted."""

    worker: int
    about: dict[str, Any]


def send(connection: Connection, message: object) -> None:
    """Send a message, which `Connection.recv` reads.

    `Connection.send` can do more, and takes several times as long to set up.
    """
    connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
