"""The decode steps of a log, numbered by worker, and when each ended."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwiser.sim.gaps import Floats, Ints
from splitwiser.sim.log import STRETCH

STEP_TOLERANCE = 1e-9  # of a step: an end so close to a stretch's end has come


class Steps(NamedTuple):
    """The stretches that give tokens, by worker and time, a column each.

    `before` and `after` are steps of the run done at the ends of the stretch, `cumulated` the
    decode steps of all rows up to and with this one, `origin` those of the workers before this one,
    by worker.
    """

    worker: Ints
    start: Floats
    end: Floats
    rate: Floats
    done: Floats
    first: Floats
    growth: Floats
    batch: Ints
    joined: Ints
    last: NDArray[np.bool_]  # the stretch that ends the run
    before: Ints
    after: Ints
    cumulated: Ints
    origin: Ints

    @classmethod
    def of(cls, stretches: Floats) -> Steps:
        """Read the stretches of a log, whose rows are in order of time for each worker."""
        worker_of, batch_of = STRETCH.index("worker"), STRETCH.index("batch")
        rows = stretches.take(np.flatnonzero(stretches[:, batch_of] > 0), axis=0)
        workers = rows[:, worker_of]
        if (np.diff(workers) < 0).any():
            rows = rows[np.argsort(workers, kind="stable")]
        column = dict(zip(STRETCH, np.ascontiguousarray(rows.T), strict=True))
        worker, steps = column["worker"].astype(np.int64), column["steps"].astype(np.int64)
        last = steps >= 0
        fresh = np.ones(len(rows), dtype=bool)  # the row begins a run
        fresh[1:] = last[:-1] | (worker[1:] != worker[:-1])
        after = steps if last.all() else _steps_after(column, steps, last, fresh)
        before = np.where(fresh, 0, np.roll(after, 1))
        cumulated = np.cumsum(after - before)
        most = int(worker[-1]) + 1 if len(worker) else 0
        origin = np.concatenate(([0], cumulated))[np.searchsorted(worker, np.arange(most + 1))]
        return cls(
            worker,
            column["start"],
            column["end"],
            column["rate"],
            column["done"],
            column["first"],
            column["growth"],
            column["batch"].astype(np.int64),
            column["joined"].astype(np.int64),
            last,
            before,
            after,
            cumulated,
            origin,
        )

    def time(self, rows: Ints, step: Ints) -> Floats:
        """When step `step` (from 1) of a run ended, in a row that holds it."""
        # From the end of the run, where the row has it: the last step is then exact.
        first, growth = self.first[rows], self.growth[rows]
        left = _work_of(self.after[rows], first, growth) - _work_of(step, first, growth)
        times: Floats = self.end[rows] - left / self.rate[rows]
        inner = np.flatnonzero(~self.last[rows])
        if len(inner):
            at = rows[inner]
            work = _work_of(step[inner], self.first[at], self.growth[at])
            times[inner] = self.start[at] + (work - self.done[at]) / self.rate[at]
        return times

    def closing(self, rows: Ints) -> Floats:
        """When the latest step in each row ended."""
        times = self.end[rows]
        inner = np.flatnonzero(~self.last[rows])
        if len(inner):
            times[inner] = self.time(rows[inner], self.after[rows[inner]])
        return times


def _work_of(steps: Ints, first: Floats, growth: Floats) -> Floats:
    """`splitwiser.sim.steps.work_of`, for arrays."""
    return steps * (first + growth * (steps - 1) * 0.5)


def whole_steps(work: Floats, first: Floats, growth: Floats) -> Ints:
    """How many whole steps are done after *work* seconds alone; one that ends just there counts."""
    linear = first - growth * 0.5
    steps = 2.0 * work / (linear + np.sqrt(linear * linear + 2.0 * growth * work))
    return np.floor(steps + STEP_TOLERANCE * np.maximum(1.0, steps)).astype(np.int64)


def _steps_after(
    column: dict[str, Floats], steps: Ints, last: NDArray[np.bool_], fresh: NDArray[np.bool_]
) -> Ints:
    """Steps of its run done at the end of each stretch, where some are not the last of their run."""
    work = column["done"] + (column["end"] - column["start"]) * column["rate"]
    after = np.where(last, steps, whole_steps(work, column["first"], column["growth"]))
    run = np.cumsum(fresh) - 1
    final = np.full(run[-1] + 1, np.iinfo(np.int64).max)
    final[run[last]] = steps[last]
    # The last step ends with the last stretch, whatever rounding says of the stretch before.
    return np.where(last, after, np.minimum(after, final[run] - 1))
