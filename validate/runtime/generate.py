"""The paper's experiment as coded: N processes that tokenise, then run `transformers`' `generate`.

The processes use one copy of the weights. `run_generate` measures what the paper's Figures 6, 8 and
9 show (times of a whole run), `Pool` what Figure 7 shows (batches/s while all processes run).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from splitwiser.models.llm import Llm
from splitwiser.sim.deployment import Deployment, Workers
from splitwiser.validate.runtime.children import Child
from splitwiser.validate.runtime.device import device_named
from splitwiser.validate.runtime.documents import documents, tokenised, trained
from splitwiser.validate.runtime.generate_stage import Shard, Stage, Staggered
from splitwiser.validate.runtime.generate_worker import Ended, Loop
from splitwiser.validate.runtime.messages import Ids

POOL_BATCHES = 4  # different ones that a process of a pool goes round
LEAD_S = 0.5  # all processes run for so long before a window opens
SEND_S = 0.1  # for an order to reach every process


class Load(NamedTuple):
    """One batch of the experiment: documents in it, tokens in and out of each."""

    batch: int = 20
    prompt_tokens: int = 512
    output_tokens: int = 20


@dataclass(frozen=True, eq=False)
class GenerateTimes:
    """A whole run of the paper's code, in seconds from its start.

    *tokenise_s* is the paper's A: until the last shard was tokenised; *generate_s* its B: from then
    until every process had left; *total_s* is their sum. Of each process, *ready_s* says when it
    could begin and *ended_s* when each of its batches had ended. *tokens* int32 [documents, output]
    are those generated, in the order of the documents.
    """

    tokenise_s: float
    generate_s: float
    ready_s: tuple[float, ...]
    ended_s: tuple[tuple[float, ...], ...]
    tokens: Ids

    @property
    def total_s(self) -> float:
        """A + B."""
        return self.tokenise_s + self.generate_s

    @property
    def batches(self) -> tuple[int, ...]:
        """Batches of each process."""
        return tuple(map(len, self.ended_s))

    @property
    def batches_per_s(self) -> float:
        """Batches that ended while all processes ran, per second; NaN where they never all did."""
        begin, end = max(self.ready_s), min(ended[-1] for ended in self.ended_s)
        inside = sum(begin < time <= end for ended in self.ended_s for time in ended)
        return inside / (end - begin) if end > begin else nan


class Steady(NamedTuple):
    """Batches of each process that ended inside one common window of *seconds*."""

    seconds: float
    counts: tuple[int, ...]

    @property
    def batches_per_s(self) -> float:
        """All processes together."""
        return sum(self.counts) / self.seconds


def run_generate(
    llm: Llm,
    device: str,
    *,
    processes: int = 1,
    sharing: str = "exclusive",
    sm_percent: float | None = None,
    batches: int = 20,
    load: Load | None = None,
    weights: Path | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> GenerateTimes:
    """Run the paper's code once over *batches* batches of synthetic documents.

    With one process everything is tokenised, then generated batch by batch; its process is up
    before the clock starts. With N the documents are cut into N contiguous shards: for each a
    process tokenises, and when its ids have come the process that generates is started, so that
    starts are staggered and in the times. Raises ValueError for a deployment or device that cannot
    be had, and `RunFailed`, in one line, where a process dies.
    """
    load = load or Load()
    percents = (sm_percent,) * processes
    deployment = _deployment(percents, sharing, load)
    count = batches * load.batch
    if batches < processes:
        raise ValueError(f"{batches} batches for {processes} processes: at least one for each")
    _check_fits(llm, load)
    tokenizer = trained(llm.vocab, seed)
    texts = documents([load.prompt_tokens] * count, seed)
    cuts = [count * r // processes for r in range(processes + 1)]
    shards = [
        Shard(texts[first:last], [load.prompt_tokens] * (last - first))
        for first, last in pairwise(cuts)
    ]
    with Stage(llm, device_named(device), deployment, weights, seed) as stage:
        if say:
            say(f"generating with {processes} {'process' if processes == 1 else 'processes'}")
        if processes == 1:
            return _sequential(stage, tokenizer, shards[0], load)
        return _staggered(stage, tokenizer, shards, load)


def _sequential(stage: Stage, tokenizer: str, shard: Shard, load: Load) -> GenerateTimes:
    """Tokenise everything here, then have it generated."""
    worker = stage.start(0)
    stage.children.receive(worker)
    start = monotonic()
    ids = np.stack(tokenised(tokenizer, *shard))
    middle = monotonic()
    stage.children.send(worker, _once(ids, load))
    ended: Ended = stage.children.receive(worker)
    end = monotonic()
    times = tuple(time - start for time in ended.times)
    return GenerateTimes(middle - start, end - middle, (middle - start,), (times,), ended.tokens)


def _staggered(stage: Stage, tokenizer: str, shards: Sequence[Shard], load: Load) -> GenerateTimes:
    """Shard by shard, as the paper's code starts its processes."""
    start = monotonic()
    run = Staggered(stage, tokenizer, shards, lambda _, ids: _once(np.stack(ids), load))
    found: dict[int, Ended] = {}
    for news in run.messages():
        if news is not None:
            found[news[0]] = news[1]
            run.workers[news[0]].connection.close()  # it may leave while others work
    stage.children.join(list(run.workers.values()))
    end = monotonic()
    order = range(len(shards))
    return GenerateTimes(
        run.tokenised[-1] - start,
        end - run.tokenised[-1],
        tuple(run.ready_at[r] - start for r in order),
        tuple(tuple(time - start for time in found[r].times) for r in order),
        np.concatenate([found[r].tokens for r in order]),
    )


class Pool:
    """Processes that `generate`, kept for several windows; a context manager.

    There is one for each of *percents* (None: no limit). They are warm when it is entered.
    """

    def __init__(
        self,
        llm: Llm,
        device: str,
        percents: Sequence[float | None],
        *,
        sharing: str,
        load: Load | None = None,
        weights: Path | None = None,
        seed: int = 0,
    ) -> None:
        self._load = load or Load()
        _check_fits(llm, self._load)
        deployment = _deployment(percents, sharing, self._load)
        self._stage = Stage(llm, device_named(device), deployment, weights, seed)
        count = POOL_BATCHES * self._load.batch
        lengths = [self._load.prompt_tokens] * count
        texts = documents(lengths, seed)
        self._ids = np.stack(tokenised(trained(llm.vocab, seed), texts, lengths))
        self._workers: list[Child] = []

    def __enter__(self) -> Self:
        self._stage.__enter__()
        try:
            self._workers = [self._stage.start(n) for n in range(self._stage.deployment.processes)]
            self.sms: list[int | None] = [
                self._stage.children.receive(worker).about["sms"] for worker in self._workers
            ]
            self._run(range(len(self._workers)), monotonic(), None)
        except BaseException as error:
            self._stage.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stage.__exit__(kind, error, trace)

    def window(self, members: Sequence[int], seconds: float) -> Steady:
        """Let *members* loop over batches in one common window; the others are idle.

        Only what ends inside the window counts: a batch that overruns it would look like a gain.
        """
        begin = monotonic() + SEND_S
        opens = begin + LEAD_S
        ended = self._run(members, begin, opens + seconds)
        counts = [sum(opens < t <= opens + seconds for t in each.times) for each in ended]
        return Steady(seconds, tuple(counts))

    def _run(self, members: Sequence[int], begin: float, stop: float | None) -> list[Ended]:
        children = self._stage.children
        workers = [self._workers[member] for member in members]
        order = Loop(self._ids, self._load.batch, self._load.output_tokens, begin, stop)
        for worker in workers:
            children.send(worker, order)
        return [children.receive(worker) for worker in workers]


def steady(
    llm: Llm,
    device: str,
    *,
    processes: int = 1,
    sharing: str = "exclusive",
    sm_percent: float | None = None,
    seconds: float = 6.0,
    load: Load | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> Steady:
    """Batches/s of N processes while all of them run; a `Pool` for one window."""
    percents = (sm_percent,) * processes
    pool = Pool(llm, device, percents, sharing=sharing, load=load, weights=weights, seed=seed)
    with pool:
        return pool.window(range(processes), seconds)


def _deployment(percents: Sequence[float | None], sharing: str, load: Load) -> Deployment:
    workers = [Workers(scheduler="static", max_num_seqs=load.batch, sm_percent=p) for p in percents]
    return Deployment("generate", tuple(workers), sharing=sharing, enforce_eager=True)


def _once(ids: Ids, load: Load) -> Loop:
    return Loop(ids, load.batch, load.output_tokens, begin=0.0, stop=None)


def _check_fits(llm: Llm, load: Load) -> None:
    tokens = load.prompt_tokens + load.output_tokens
    if min(load) < 1 or tokens > llm.max_context:
        raise ValueError(
            f"batches of {load.batch} with {load.prompt_tokens} tokens in and "
            f"{load.output_tokens} out: 1 or more each, and {llm.name} has a context of "
            f"{llm.max_context}"
        )
