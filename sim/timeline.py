"""`Timeline`: what the device did when, and when every token came, recovered from the log's rows.

A run is one or more stretches at constant rates (`splitwiser.sim.log.STRETCH`). Step j of a run
ends when its work reaches `work_of(j, first, growth)` seconds alone, so the time of any step is a
closed form of its row, and nothing here grows with the tokens generated until they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from splitwiser.sim import occupancy
from splitwiser.sim.gaps import Floats, Ints, Itl
from splitwiser.sim.log import STAY, STRETCH
from splitwiser.sim.step_rows import Steps, whole_steps

if TYPE_CHECKING:
    import pandas as pd

SAME_TOKEN = 1e-12  # relative: two notes of one token's time differ by rounding only


class Tokens(NamedTuple):
    """Token times in seconds: the i-th request's are `times[offsets[i] : offsets[i + 1]]`."""

    offsets: Ints
    times: Floats

    def of(self, index: int) -> Floats:
        """The token times of the *index*-th request asked for."""
        return self.times[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, eq=False)
class Timeline:
    """The rows of a simulation, read.

    `stretches` and `stays` are matrices with the columns of `splitwiser.sim.log`, `regained` the
    gaps in seconds between a request's last token before a preemption and the one that its
    recompute gave. A stay whose `left` lies beyond the steps that were made (infinity, say) is one
    that had not ended. Where *until* is given, what lies after it is cut off.
    """

    stretches: Floats
    stays: Floats
    regained: Floats
    until: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.until is None or not len(self.stretches):
            return
        start, end, steps = (STRETCH.index(name) for name in ("start", "end", "steps"))
        late = self.stretches[:, end] > self.until
        if late.any():
            rows = self.stretches.copy()
            rows[late, end] = self.until
            rows[late, steps] = -1
            object.__setattr__(self, "stretches", rows[rows[:, start] < self.until])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Timeline):
            return NotImplemented
        return (
            np.array_equal(self.stretches, other.stretches, equal_nan=True)
            and np.array_equal(self.stays, other.stays, equal_nan=True)
            and np.array_equal(self.regained, other.regained, equal_nan=True)
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    # Steps ------------------------------------------------------------------------------------

    @cached_property
    def steps(self) -> Steps:
        """The stretches that give tokens."""
        return Steps.of(self.stretches)

    def made(self, worker: Ints | int) -> Ints:
        """How many decode steps a worker (or each of several) made."""
        origin = np.append(self.steps.origin, self.steps.origin[-1])
        index = np.minimum(worker, len(origin) - 2)
        return np.asarray(origin[index + 1] - origin[index])

    def step_ends(self, worker: Ints | int, steps: Ints) -> Floats:
        """When decode steps (numbered from 0) of a worker, or of a worker each, ended, in seconds.

        Raises IndexError for a step that was not made.
        """
        steps = np.asarray(steps)
        if ((steps < 0) | (steps >= self.made(worker))).any():
            raise IndexError(f"worker {worker} made {self.made(worker)} steps; there is no {steps}")
        at = self.steps
        number = at.origin[np.minimum(worker, len(at.origin) - 1)] + steps
        rows = np.searchsorted(at.cumulated, number, side="right")
        # `cumulated` counts to the row's end, at which `after` steps of the run are done.
        return at.time(rows, at.after[rows] - (at.cumulated[rows] - number) + 1)

    # Gaps -------------------------------------------------------------------------------------

    @cached_property
    def _itl(self) -> Itl:
        at = self.steps
        made = at.after - at.before
        rows = np.flatnonzero(made)
        before, made = at.before[rows], made[rows]
        batch, rate = at.batch[rows], at.rate[rows]
        # Inside a stretch.
        rise = at.growth[rows] / rate
        inner = at.first[rows] / rate + rise * (before + 1)
        # From the last token of the worker before the stretch to the first in it. Who joins has
        # another last token; in a worker's first run that is everyone.
        gaps = at.time(rows, before + 1)
        gaps[1:] -= at.closing(rows[:-1])
        watching = np.where(before > 0, batch, batch - at.joined[rows])
        alone = [(gaps, watching)]
        for once in (self._first_gaps(), self.regained):
            alone.append((once, np.ones(len(once), dtype=np.int64)))
        return Itl.of(inner, rise, made - 1, batch, alone)

    def itl(self) -> Itl:
        """The inter-token latencies of all requests, pooled; also of those that never finished."""
        return self._itl

    def _first_gaps(self) -> Floats:
        """The gap of each stay up to the first token in it."""
        stay = self._stays
        some = stay.left > stay.joined
        return self.step_ends(stay.worker[some], stay.joined[some]) - stay.last_token[some]

    @cached_property
    def _stays(self) -> _Stays:
        column = dict(zip(STAY, np.ascontiguousarray(self.stays.T), strict=True))
        worker = column["worker"].astype(np.int64)
        joined = column["joined"].astype(np.int64)
        left = np.minimum(column["left"], self.made(worker)).astype(np.int64)
        return _Stays(
            column["request"].astype(np.int64),
            worker,
            joined,
            left,
            column["last_token"],
        )

    # Tokens -----------------------------------------------------------------------------------

    def token_times(
        self, requests: Sequence[int] | Ints, first_token: Floats, finished: Floats
    ) -> Tokens:
        """When each token of some requests came.

        *first_token* and *finished* are the columns of the result, in seconds, for all requests.
        """
        requests = np.asarray(requests, dtype=np.int64)
        place = np.full(len(first_token), -1)
        place[requests] = np.arange(len(requests))
        chosen = np.flatnonzero(place[self._stays.request] >= 0)
        stays = self._stays.take(chosen)
        whose, times = self._decoded(stays)
        by_prompt, at = self._given_by_prompts(stays, requests, first_token, finished)
        who = place[np.concatenate((whose, by_prompt))]
        time = np.concatenate((times, at))
        order = np.lexsort((time, who))
        counts = np.bincount(who, minlength=len(requests))
        return Tokens(np.concatenate(([0], np.cumsum(counts))), time[order])

    def _decoded(self, stays: _Stays) -> tuple[Ints, Floats]:
        """Every token that decode steps gave: whose, and when."""
        counts = stays.left - stays.joined
        stay = np.repeat(np.arange(len(counts)), counts)
        inner = np.arange(len(stay)) - np.repeat(np.cumsum(counts) - counts, counts)
        return stays.request[stay], self.step_ends(stays.worker[stay], stays.joined[stay] + inner)

    def _given_by_prompts(
        self, stays: _Stays, requests: Ints, first_token: Floats, finished: Floats
    ) -> tuple[Ints, Floats]:
        """Tokens that computed prompts gave, first ones and after a preemption: whose, and when."""
        stays = stays.take(np.argsort(stays.request, kind="stable"))
        end = stays.last_token.copy()
        some = stays.left > stays.joined
        end[some] = self.step_ends(stays.worker[some], stays.left[some] - 1)
        same = np.zeros(len(end), dtype=bool)  # the request has a stay before this one
        same[1:] = stays.request[1:] == stays.request[:-1]
        known = np.where(same, np.roll(end, 1), first_token[stays.request])
        again = stays.last_token > known * (1 + SAME_TOKEN)
        latest = first_token.copy()
        latest[stays.request] = end  # of several the last one counts
        closing = finished[requests] > latest[requests] * (1 + SAME_TOKEN)
        begun = requests[~np.isnan(first_token[requests])]
        return (
            np.concatenate((begun, stays.request[again], requests[closing])),
            np.concatenate(
                (first_token[begun], stays.last_token[again], finished[requests[closing]])
            ),
        )

    def tokens_by(self, times: Floats, first_token: Floats, finished: Floats) -> Ints:
        """How many tokens had been given, over all requests, up to each of some times."""
        at = self.steps
        prompts = first_token[~np.isnan(first_token)]
        if len(self.regained):
            everyone = np.arange(len(first_token))
            prompts = self._given_by_prompts(self._stays, everyone, first_token, finished)[1]
        total = np.searchsorted(np.sort(prompts), times, side="right")
        given = (at.after - at.before) * at.batch
        for worker in range(len(at.origin) - 1):
            rows = slice(*np.searchsorted(at.worker, (worker, worker + 1)))
            before = np.concatenate(([0], np.cumsum(given[rows])))
            if rows.start == rows.stop:
                continue
            row = np.searchsorted(at.start[rows], times, side="right") - 1
            inside = np.maximum(row, 0)
            index = inside + rows.start
            elapsed = np.clip(times, at.start[index], at.end[index]) - at.start[index]
            reached = whole_steps(
                at.done[index] + elapsed * at.rate[index], at.first[index], at.growth[index]
            )
            reached = np.where(times >= at.end[index], at.after[index], reached)
            reached = np.clip(reached, at.before[index], at.after[index]) - at.before[index]
            total = total + np.where(row < 0, 0, before[inside] + reached * at.batch[index])
        return total

    # The device -------------------------------------------------------------------------------

    def busy(self, edges: Floats) -> dict[str, Floats]:
        """The share of time by phase in bins, see `splitwiser.sim.occupancy.busy`."""
        return occupancy.busy(self.stretches, edges)

    def frame(self, edges: Floats) -> pd.DataFrame:
        """The device bin by bin, see `splitwiser.sim.occupancy.frame`."""
        return occupancy.frame(self.stretches, edges)

    def chrome_trace(self, path: str | Path) -> None:
        """Write the runs as a Chrome trace, see `splitwiser.sim.occupancy.chrome_trace`."""
        occupancy.chrome_trace(self.stretches, path)


class _Stays(NamedTuple):
    request: Ints
    worker: Ints
    joined: Ints
    left: Ints
    last_token: Floats

    def take(self, rows: Ints) -> _Stays:
        return _Stays(
            self.request[rows],
            self.worker[rows],
            self.joined[rows],
            self.left[rows],
            self.last_token[rows],
        )
