"""What is recovered from rows, against a generator that makes every step one by one."""

import json
import random
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwiser.sim import gaps
from splitwiser.sim.gaps import Itl
from splitwiser.sim.occupancy import busy_seconds
from splitwiser.sim.timeline import Timeline

NAN = float("nan")


@dataclass
class Made:
    """A random log, and what really happened in it."""

    stretches: list[tuple[float, ...]] = field(default_factory=list)
    stays: list[tuple[float, ...]] = field(default_factory=list)
    regained: list[float] = field(default_factory=list)
    tokens: dict[int, list[float]] = field(default_factory=dict)
    ends: dict[int, list[float]] = field(default_factory=dict)  # of decode steps, by worker

    def timeline(self, until: float | None = None) -> Timeline:
        rows = sorted(self.stretches, key=lambda row: row[2])  # as several workers write them
        return Timeline(
            np.array(rows).reshape(-1, 12),
            np.array(self.stays).reshape(-1, 5),
            np.array(self.regained),
            until,
        )

    def gaps(self) -> np.ndarray:
        return np.array([b - a for times in self.tokens.values() for a, b in pairwise(times)])

    @property
    def first_token(self) -> np.ndarray:
        return np.array([self.tokens[request][0] for request in range(len(self.tokens))])

    @property
    def finished(self) -> np.ndarray:
        return np.array([self.tokens[request][-1] for request in range(len(self.tokens))])


class Worker:
    """One worker whose rate changes at given times, and which makes its steps one by one.

    On a grid of binary fractions steps end exactly where rates change; otherwise all numbers are
    arbitrary.
    """

    def __init__(self, made: Made, index: int, rng: random.Random, grid: bool) -> None:
        self.made, self.index, self.rng, self.grid = made, index, rng, grid
        self.now = rng.randrange(4) * 0.25 if grid else rng.random()
        self.changes = [self.now]
        self.rates: list[float] = [1.0]
        for _ in range(rng.choice([0, 40])):
            self.changes.append(
                self.changes[-1] + (rng.randrange(1, 9) * 0.5 if grid else rng.random() * 3)
            )
            self.rates.append(rng.choice([0.5, 1.0, 2.0]) if grid else rng.uniform(0.2, 1))
        self.step = 0
        self.members: dict[int, tuple[int, float]] = {}  # request: (joined, last token before)
        self.fresh: set[int] = set()
        self.swapped: list[int] = []
        self.recompute: list[int] = []
        made.ends[index] = []

    def number(self, low: float, high: float) -> float:
        if self.grid:
            return self.rng.randrange(max(1, int(low * 8)), int(high * 8) + 1) / 8
        return self.rng.uniform(low, high)

    def rate_at(self, time: float) -> tuple[float, float]:
        """The rate at a time, and until when it holds."""
        k = max(i for i, change in enumerate(self.changes) if change <= time)
        return self.rates[k], self.changes[k + 1] if k + 1 < len(self.changes) else float("inf")

    def run(self, steps: int, first: float, growth: float, batch: int, tokens: int) -> list[float]:
        """Make a run, write its rows, and return when each step ended."""
        joined = len(self.fresh) if batch else 0
        begin, done, ends = self.now, 0.0, []

        def write(made: int) -> None:
            row = (self.index, begin, self.now, rate, done, first, growth, made)
            self.made.stretches.append((*row, batch, joined, tokens, 7))

        rate, until = self.rate_at(begin)
        for j in range(steps):
            work = first + growth * j
            while self.now + work / rate > until:  # the rate changes first
                work -= (until - self.now) * rate
                self.now = until
                write(-1)
                done += (until - begin) * rate
                begin = until
                rate, until = self.rate_at(begin)
            self.now += work / rate
            ends.append(self.now)
        write(steps)
        return ends

    def prefill(self) -> None:
        self.run(1, self.number(0.5, 2), 0.0, 0, 9)
        tokens = self.made.tokens
        if self.recompute and self.rng.random() < 0.7:
            request = self.recompute.pop()
            self.made.regained.append(self.now - tokens[request][-1])
        else:
            request = len(tokens)
            tokens[request] = []
        tokens[request].append(self.now)
        if self.rng.random() < 0.8:  # else that was its last token
            self.join(request)

    def join(self, request: int) -> None:
        self.members[request] = (self.step, self.made.tokens[request][-1])
        self.fresh.add(request)

    def leave(self, request: int) -> None:
        joined, last = self.members.pop(request)
        self.fresh.discard(request)
        self.made.stays.append((request, self.index, joined, self.step, last))

    def decode(self) -> None:
        steps = self.rng.randrange(1, 12)
        growth = self.rng.choice([0.0, self.number(0.125, 0.25)])
        tokens = self.rng.choice([0, 0, 5]) if steps == 1 else 0
        for end in self.run(steps, self.number(0.25, 1), growth, len(self.members), tokens):
            self.made.ends[self.index].append(end)
            for request in self.members:
                self.made.tokens[request].append(end)
        self.step += steps
        self.fresh.clear()

    def live(self, actions: int) -> None:
        for _ in range(actions):
            if self.rng.random() < 0.2:
                self.now += self.number(0.25, 1)  # idle
            if self.rng.random() < 0.5 or not self.members:
                self.prefill()
            if self.swapped and self.rng.random() < 0.5:
                self.join(self.swapped.pop())
            if self.members:
                if self.rng.random() < 0.8:
                    self.decode()
                for request in self.rng.sample(list(self.members), len(self.members) // 3):
                    self.leave(request)
                    home = self.rng.choice([None, self.swapped, self.recompute])
                    if home is not None:
                        home.append(request)
        for request in list(self.members):
            self.leave(request)


def make(seed: int, grid: bool = False, workers: int = 3, actions: int = 25) -> Made:
    rng = random.Random(seed)
    made = Made()
    for index in range(workers):
        Worker(made, index, rng, grid).live(actions)
    return made


logs = pytest.mark.parametrize("made", [make(s, s % 2 == 1) for s in range(24)], ids=range(24))


@logs
def test_every_step_ends_when_it_ended(made: Made) -> None:
    """The closed form gives the end of every decode step of every worker, whatever the rates did."""
    timeline = made.timeline()
    for worker, ends in made.ends.items():
        assert timeline.made(worker) == len(ends)
        assert timeline.step_ends(worker, np.arange(len(ends))) == pytest.approx(ends, rel=1e-12)


@logs
def test_every_token_comes_when_it_came(made: Made) -> None:
    """The tokens of all requests are recovered, each once, through joins, swaps and recomputes."""
    tokens = made.timeline().token_times(
        np.arange(len(made.tokens)), made.first_token, made.finished
    )
    for request, times in made.tokens.items():
        assert tokens.of(request) == pytest.approx(times, rel=1e-12)


@logs
def test_pooled_gaps_are_those_of_all_requests(made: Made) -> None:
    """Pooled inter-token latencies equal the gaps written out, one by one and in every statistic."""
    itl, each = made.timeline().itl(), made.gaps()
    assert np.sort(itl.expand()) == pytest.approx(np.sort(each), rel=1e-9, abs=1e-11)
    assert (itl.count, itl.mean, itl.std) == (
        len(each),
        pytest.approx(each.mean(), rel=1e-9),
        pytest.approx(each.std(), rel=1e-9),
    )
    for q in (0, 1, 25, 50, 90, 99, 99.9, 100):
        assert itl.percentile(q) == pytest.approx(np.percentile(each, q), rel=1e-9)


@logs
def test_tokens_up_to_a_time_are_counted(made: Made) -> None:
    """`tokens_by` counts what all requests got up to each time."""
    everything = np.sort(np.concatenate(list(made.tokens.values())))
    times = np.random.default_rng(0).uniform(-1, everything[-1] + 1, 200)
    counted = made.timeline().tokens_by(times, made.first_token, made.finished)
    assert (counted == np.searchsorted(everything, times, side="right")).all()


def test_some_requests_cost_only_their_own_tokens() -> None:
    """Token times of chosen requests come in the order asked for."""
    made = make(3)
    tokens = made.timeline().token_times([5, 2], made.first_token, made.finished)
    assert tokens.of(0) == pytest.approx(made.tokens[5])
    assert tokens.of(1) == pytest.approx(made.tokens[2])


@logs
def test_what_lies_after_the_end_is_cut_off(made: Made) -> None:
    """A time line that ends early has exactly the tokens that came by then."""
    whole = made.timeline()
    some = [ends[len(ends) // 3] for ends in made.ends.values() if ends]  # exactly at a step's end
    for until in (0.05, *some, max(made.finished) / 2):
        done = {w: np.searchsorted(ends, until, "right") for w, ends in made.ends.items()}
        stays = [
            (request, worker, joined, left if left <= done[worker] else np.inf, last)
            for request, worker, joined, left, last in made.stays
            if joined <= done[worker] and last <= until
        ]
        early = Timeline(whole.stretches, np.array(stays).reshape(-1, 5), whole.regained, until)
        assert [early.made(worker) for worker in made.ends] == list(done.values())
        first, finished = made.first_token, made.finished
        first[first > until] = NAN
        finished[finished > until] = NAN
        tokens = early.token_times(np.arange(len(made.tokens)), first, finished)
        for request, times in made.tokens.items():
            # A recompute shows in the log once the stay after it has begun.
            there = [time for time in times if time <= until]
            assert tokens.of(request) == pytest.approx(there, rel=1e-12)


def test_the_last_step_of_a_run_ends_with_its_last_row() -> None:
    """Where rounding has all work done at a change of rate, the run's own end still counts."""
    rows = [
        (0, 0.0, 1.0, 1, 0.0, 0.5, 0, -1, 1, 1, 0, 1),
        (0, 1.0, 1.0 + 1e-13, 0.5, 1.0, 0.5, 0, 2, 1, 1, 0, 1),
    ]
    timeline = Timeline(np.array(rows), np.empty((0, 5)), np.empty(0))
    assert timeline.step_ends(0, np.array([0, 1])).tolist() == [0.5, 1.0 + 1e-13]


@logs
def test_busy_seconds_hold_all_tokens(made: Made) -> None:
    """Counting by the edges of the busy seconds finds every token, in its second."""
    everything = np.concatenate(list(made.tokens.values()))
    edges = busy_seconds(made.timeline().stretches, 0.05)
    counted = np.diff(made.timeline().tokens_by(edges, made.first_token, made.finished))
    bins = np.bincount(np.ceil(everything - 0.05).astype(int) - 1)  # (s, s + 1]
    assert counted[counted > 0].tolist() == bins[bins > 0].tolist()


def test_a_step_that_was_not_made_is_refused() -> None:
    """Asking for a step beyond the last raises, and no neighbour's time is returned."""
    made = make(1)
    with pytest.raises(IndexError, match=r"there is no"):
        made.timeline().step_ends(0, np.array([len(made.ends[0])]))


def test_an_empty_log_has_no_gaps() -> None:
    """Without rows there are no tokens, and statistics of nothing are NaN."""
    itl = Made().timeline().itl()
    assert itl.count == 0
    assert all(np.isnan(value) for value in (itl.mean, itl.std, itl.median))


pieces = st.lists(
    st.tuples(st.floats(1e-6, 10), st.floats(0, 1), st.integers(0, 60), st.integers(0, 5)),
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(pieces, st.lists(st.floats(1e-6, 10), max_size=8), st.floats(0, 100))
def test_percentiles_are_numpys(
    pieces: list[tuple[float, float, int, int]], singles: list[float], q: float
) -> None:
    """A percentile of any pool of progressions and single gaps is numpy's of the pool written out."""
    columns = np.array(pieces, dtype=float).reshape(-1, 4).T
    single = np.array(singles)
    itl = Itl.of(
        columns[0],
        columns[1],
        columns[2].astype(int),
        columns[3].astype(int),
        [(single, np.ones(len(single), dtype=int))],
    )
    written = [low + step * i for low, step, n, w in pieces for i in range(n) for _ in range(w)]
    written += singles
    assert itl.count == len(written)
    if written:
        assert itl.percentile(q) == pytest.approx(np.percentile(written, q), rel=1e-12)
        assert itl.mean == pytest.approx(np.mean(written), rel=1e-12)
        assert itl.std == pytest.approx(np.std(written), rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("shape", ["wide", "equal", "periodic"])
def test_long_pools_are_not_written_out(shape: str) -> None:
    """Order statistics of millions of gaps are exact too, also where pieces repeat each other."""
    rng = np.random.default_rng(1)
    n = 300
    low = rng.uniform(1, 2, n) if shape == "wide" else np.ones(n)
    step = np.full(n, 1e-6) if shape == "periodic" else rng.uniform(1e-7, 1e-4, n)
    if shape == "equal":
        step[:] = 1e-5
    counts = np.full(n, 4096) if shape == "periodic" else rng.integers(1, 10_000, n)
    weights = rng.integers(1, 4, n)
    single = np.full(500, 1.01)
    itl = Itl.of(low, step, counts, weights, [(single, np.full(500, 9))])
    written = itl.expand()
    assert itl.count == len(written) > 1_000_000
    for q in (0, 0.01, 3, 50, 77.7, 99, 99.99, 100):
        assert itl.percentile(q) == pytest.approx(np.percentile(written, q), rel=1e-14)


@pytest.mark.parametrize("seed", range(10))
def test_a_misleading_sample_costs_time_only(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Percentiles are exact also where the sample brackets them wrongly."""
    enclose, rng = gaps._enclose, np.random.default_rng(seed)

    def wrong(sample: np.ndarray, low: float, high: float, spread: float) -> tuple[float, float]:
        if spread > 100:
            return enclose(sample, low, high, spread)
        bottom, top = np.sort(rng.choice(sample, 2))
        return bottom, top

    monkeypatch.setattr(gaps, "_enclose", wrong)
    monkeypatch.setattr(gaps, "EXPANDABLE", 20)
    low, step = rng.pareto(1.0, 40), rng.uniform(1e-3, 1e-1, 40)
    itl = Itl.of(low, step, rng.integers(1, 500, 40), rng.integers(1, 9, 40), [])
    written = itl.expand()
    for q in (0, 0.3, 20, 50, 95, 99.9, 100):
        assert itl.percentile(q) == pytest.approx(np.percentile(written, q), rel=1e-14)


@pytest.mark.parametrize("q", [-1, 101, NAN])
def test_a_percentile_outside_its_range_is_refused(q: float) -> None:
    """Percentiles run from 0 to 100."""
    with pytest.raises(ValueError, match="from 0 to 100"):
        make(2).timeline().itl().percentile(q)


def test_phases_share_the_time() -> None:
    """In each bin the shares of idle, prefill, decode and both are those of the rows, and sum to 1."""
    rows = [
        (0, 0.0, 2.0, 1, 0, 2, 0, 1, 0, 0, 100, 5),  # prefill from 0 to 2
        (1, 1.0, 4.0, 1, 0, 3, 0, 1, 4, 0, 0, 6),  # decode of 4 from 1 to 4
        (0, 6.0, 7.0, 1, 0, 1, 0, 1, 2, 0, 50, 9),  # a mixed step from 6 to 7
    ]
    timeline = Timeline(np.array(rows, dtype=float), np.empty((0, 5)), np.empty(0))
    shares = timeline.busy(np.array([0, 4, 8.0]))
    assert {phase: share.tolist() for phase, share in shares.items()} == {
        "idle": [0, 0.75],
        "prefill": [0.25, 0],
        "decode": [0.5, 0],
        "both": [0.25, 0.25],
    }
    table = timeline.frame(np.array([0, 4, 8.0]))
    assert table["running"].tolist() == [3, 0.5]
    assert table["kv_blocks_0"].tolist() == [5, 9]
    assert table["kv_blocks_1"].tolist() == [6, 6]


@pytest.mark.parametrize("edges", [[0.0], [1.0, 1.0], [2.0, 1.0]])
def test_bins_must_rise(edges: list[float]) -> None:
    """Bins without extent are refused."""
    with pytest.raises(ValueError, match="edges that rise"):
        make(2).timeline().busy(np.array(edges))


def test_the_chrome_trace_holds_every_row(tmp_path) -> None:
    """Each stretch is one complete event at its time in microseconds."""
    made = make(5)
    path = tmp_path / "trace.json"
    made.timeline().chrome_trace(path)
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X"]
    rows = sorted((row[0], row[1]) for row in made.stretches)
    found = sorted((e["tid"], e["ts"] * 1e-6) for e in events)
    assert [worker for worker, _ in found] == [worker for worker, _ in rows]
    assert [start for _, start in found] == pytest.approx([start for _, start in rows])
    assert list(tmp_path.iterdir()) == [path]


def test_a_chrome_trace_that_cannot_be_written_leaves_nothing(tmp_path) -> None:
    """A missing folder is named in one line."""
    path = tmp_path / "missing" / "trace.json"
    with pytest.raises(OSError, match=r"cannot write .*missing") as error:
        make(5).timeline().chrome_trace(path)
    assert "\n" not in str(error.value)
