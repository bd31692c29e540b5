"""What a generating process of the paper's code does; `owner` holds the weights that it maps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from math import ceil
from multiprocessing.connection import Connection
from time import monotonic, sleep
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splitwiser.validate.runtime.arena import Arena
from splitwiser.validate.runtime.hugging_face import model_on
from splitwiser.validate.runtime.messages import Computed, Ids, Ready, Step, Stopped
from splitwiser.validate.runtime.numerics import numerics_of
from splitwiser.validate.runtime.owner import weights_arena
from splitwiser.validate.runtime.staff import Handle, Shared
from splitwiser.validate.runtime.weights import layout

POLL_S = 0.05  # how soon a process that waits for an arrival sees that it should leave


class Seat(NamedTuple):
    """A generating process: its number, and how many threads torch has in it."""

    number: int
    threads: int


class Loop(NamedTuple):
    """Generate, batch after batch: *tokens* [documents, prompt] in groups of *batch*.

    Begins at *begin* (monotonic). Without *stop* each document is generated once; with it, the
    batches come round again until one has ended at *stop* or later.
    """

    tokens: Ids
    batch: int
    outputs: int
    begin: float
    stop: float | None


class Ended(NamedTuple):
    """When each batch of a `Loop` began and ended, and the last round's tokens [n, outputs]."""

    begin: float
    times: tuple[float, ...]
    tokens: Ids


class Serve(NamedTuple):
    """Serve these requests in order, in batches of at most *batch*; *arrival* is monotonic time."""

    requests: Ids
    arrival: NDArray[np.float64]
    tokens: list[Ids]
    outputs: NDArray[np.int64]
    batch: int
    block_size: int


def generate(shared: Shared, weights: Handle | None, seat: Seat, connection: Connection) -> None:
    """Map the weights, say `Ready`, then do each `Loop` and `Serve` until told to leave.

    Where *weights* is None, the process fills a copy of its own.
    """
    device = _take(shared.device, seat)
    arena = weights_arena(shared, device) if weights is None else Arena.open(weights)
    try:
        model = model_on(
            shared.llm,
            numerics_of(shared.llm, shared.folder),
            layout(shared.llm).views(arena.flat),
        )
        connection.send(Ready(seat.number, _about(device)))
        while True:
            order = connection.recv()
            if isinstance(order, Loop):
                connection.send(_loop(model, order))
            else:
                _serve(model, order, connection, seat.number)
    finally:
        model = None
        arena.close()


def _take(name: str, seat: Seat) -> torch.device:
    """The device of that name, made this process's own."""
    torch.set_num_threads(seat.threads)
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _about(device: torch.device) -> dict[str, Any]:
    """What the device grants this process."""
    if device.type != "cuda":
        return {"sms": None}
    return {"sms": torch.cuda.get_device_properties(device).multi_processor_count}


def _tokens(
    model: Any, prompts: Sequence[Ids], outputs: int, criteria: Sequence[Any] = ()
) -> Tensor:
    """Copy a batch to the device, padded on the left, and generate; int64 [batch, outputs]."""
    longest = max(map(len, prompts))
    ids = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    generated: Tensor = model.generate(
        torch.from_numpy(ids).to(model.device),
        attention_mask=torch.from_numpy(mask).to(model.device),
        max_new_tokens=outputs,
        stopping_criteria=list(criteria),
    )
    return generated[:, longest:]


def _loop(model: Any, order: Loop) -> Ended:
    """Batch after batch; a batch has ended when its tokens are on the host."""
    sleep(max(0.0, order.begin - monotonic()))
    begin = monotonic()
    cuts = range(0, len(order.tokens), order.batch)
    last: dict[int, Ids] = {}
    times: list[float] = []
    for cut in cuts if order.stop is None else cycle(cuts):
        prompts = order.tokens[cut : cut + order.batch]
        last[cut] = _tokens(model, list(prompts), order.outputs).cpu().numpy().astype(np.int32)
        times.append(monotonic())
        if order.stop is not None and times[-1] >= order.stop:
            break
    return Ended(begin, tuple(times), np.concatenate([last[cut] for cut in cuts if cut in last]))


def _serve(model: Any, order: Serve, connection: Connection, worker: int) -> None:
    """Batch after batch as requests have arrived, until all are served or the parent wants none."""
    context = model.config.max_position_embeddings
    first = 0
    while first < len(order.requests):
        last = _batch_end(order, first, context)
        while (early := order.arrival[last - 1] - monotonic()) > 0:
            if connection.poll(min(early, POLL_S)):
                return
        record = _Record(order, slice(first, last), connection, worker)
        _tokens(model, order.tokens[first:last], int(order.outputs[first:last].max()), [record])
        if record.stopped:
            return
        first = last
    connection.send(Stopped(worker, {}))


def _batch_end(order: Serve, first: int, context: int) -> int:
    """Where the batch that begins with *first* ends.

    A row runs on, padded, to the batch's longest output: longest prompt and longest output must
    fit the context together, so that a batch may be cut short.
    """
    longest = outputs = 0
    for last in range(first, min(first + order.batch, len(order.requests))):
        longest = max(longest, len(order.tokens[last]))
        outputs = max(outputs, int(order.outputs[last]))
        if last > first and longest + outputs > context:
            return last
    return min(first + order.batch, len(order.requests))


class _Record:
    """A stopping criterion that tells the parent of every step; it stops where the parent speaks.

    transformers asks it after each token. Reading the tokens waits for the step's end, which
    `generate` itself does right after.
    """

    def __init__(self, order: Serve, rows: slice, connection: Connection, worker: int) -> None:
        self.stopped = False
        self._requests = order.requests[rows]
        self._outputs = order.outputs[rows]
        self._longest = max(map(len, order.tokens[rows]))
        self._block_size = order.block_size
        self._connection = connection
        self._worker = worker
        self._steps = 0
        self._start = monotonic()

    def __call__(self, ids: Tensor, scores: object, **_: object) -> Tensor:
        tokens = np.asarray(ids[:, -1].tolist(), np.int32)
        end = monotonic()
        gains = self._outputs > self._steps
        first = self._steps == 0
        computed = zip(self._requests.tolist(), tokens.tolist(), strict=True) if first else ()
        rows, none = len(tokens), np.empty(0, np.int32)
        self._connection.send(
            Step(
                self._worker,
                self._start,
                end,
                scheduled=tuple(self._requests.tolist()) if first else (),
                decoded=none if first else self._requests[gains],
                tokens=none if first else tokens[gains],
                computed=tuple(Computed(request, token) for request, token in computed),
                prompt_tokens=rows * self._longest if first else 0,
                blocks=rows * ceil((self._longest + self._steps) / self._block_size),
            )
        )
        self._steps += 1
        self._start = end
        self.stopped = self._connection.poll()
        return torch.full((rows,), self.stopped, dtype=torch.bool, device=ids.device)
