"""From a file's raw columns to a trace: checked with line numbers, failures dropped, sorted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitwiser.traces.prefix import PrefixBlocks
from splitwiser.traces.source import fault
from splitwiser.traces.streams import Purpose, stream
from splitwiser.traces.trace import MAX_SECONDS, MAX_TOKENS, Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STAMP_STEP_S = 3.0  # Mooncake's public traces round their stamps to this
STAMP_JITTER_S = 0.0015  # some of them are 1 ms short


@dataclass(frozen=True)
class Column:
    """One numeric column as read: NaN where it is no number. *raw* tells what a row says."""

    key: str
    values: Floats
    raw: Callable[[int], object]

    def check(self, path: Path, lines: Ints, bad: NDArray[np.bool_], accepted: str) -> None:
        """Raise the error of the first row in *bad*, if there is one."""
        if bad.any():
            row = int(bad.argmax())
            raise fault(path, int(lines[row]), self.key, self.raw(row), accepted)

    def whole(self, path: Path, lines: Ints, low: int, high: int = MAX_TOKENS) -> Ints:
        """The values as whole numbers in [*low*, *high*], or the error of the first that is not."""
        values = self.values
        bad = ~((values >= low) & (values <= high)) | (values != np.floor(values))
        self.check(path, lines, bad, f"a whole number from {low} to {high}")
        return values.astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """What a format's reader found. *lines* are line numbers in the file, from 1."""

    path: Path
    format: str
    lines: Ints
    stamp: Column | None  # seconds; None where the file has no times
    prompt: Column
    output: Column
    session: Ints | None = None
    adapter: Ints | None = None
    prefix: PrefixBlocks | None = None
    notes: tuple[str, ...] = ()
    times: str = "seconds from 0 on"  # what the stamps' column accepts

    def trace(self, *, spread: bool, seed: int) -> Trace:
        """Check, drop, sort and shift; the notes of the trace tell what was done."""
        output = self.output.whole(self.path, self.lines, 0)
        kept = np.flatnonzero(output)
        notes = list(self.notes)
        if len(kept) < len(output):
            notes.append(f"dropped {len(output) - len(kept)} failed requests (0 output tokens)")
        if not len(kept):
            raise ValueError(f"{self.path}: no request generated a token; nothing is left")
        prompt = self._prompts(kept)
        stamps = self._stamps(kept, notes)
        order, arrival = self._arrivals(stamps, notes, spread=spread, seed=seed)
        rows = kept[order]
        return Trace(
            arrival,
            prompt[order],
            output[rows],
            session=None if self.session is None else self.session[rows],
            adapter=None if self.adapter is None else self.adapter[rows],
            prefix=None if self.prefix is None else self.prefix.take(rows),
            name=self.path.name,
            notes=(f"read as {self.format}", *notes),
        )

    def _prompts(self, kept: Ints) -> Ints:
        """The prompts of the rows that are kept: a failed request may have none."""
        column = self.prompt
        alive = Column(column.key, column.values[kept], lambda row: column.raw(int(kept[row])))
        return alive.whole(self.path, self.lines[kept], 1)

    def _stamps(self, kept: Ints, notes: list[str]) -> Floats:
        if self.stamp is None:
            notes.append("the file has no arrival times: all requests arrive at 0")
            return np.zeros(len(kept))
        values = self.stamp.values
        bad = ~(np.isfinite(values) & (values >= 0))
        self.stamp.check(self.path, self.lines, bad, self.times)
        values = values[kept]
        late = np.zeros(len(bad), dtype=np.bool_)
        late[kept] = values - values.min() > MAX_SECONDS
        self.stamp.check(self.path, self.lines, late, "times within ten years of the first")
        return values

    def _arrivals(
        self, stamps: Floats, notes: list[str], *, spread: bool, seed: int
    ) -> tuple[Ints, Floats]:
        """The order of the rows, and their arrivals from 0."""
        order = np.argsort(stamps, kind="stable")
        moved = int((order != np.arange(len(order))).sum())
        if moved:
            notes.append(f"sorted by arrival ({moved} rows moved)")
        arrival = stamps[order]
        if spread and self.format == "mooncake" and _is_rounded(arrival):
            arrival = _spread(arrival, seed)
            notes.append(
                f"spread the arrivals evenly in their {STAMP_STEP_S:.0f} s bins (seed {seed})"
            )
        return order, arrival - arrival[0]


def _is_rounded(stamps: Floats) -> bool:
    """Whether sorted stamps stand on a 3 s grid, with several on one point and several points."""
    nearest = np.rint(stamps / STAMP_STEP_S) * STAMP_STEP_S
    points = len(np.unique(nearest))
    on_grid = (np.abs(stamps - nearest) <= STAMP_JITTER_S).all()
    return bool(on_grid and 1 < points < len(stamps))


def _spread(stamps: Floats, seed: int) -> Floats:
    """Uniform within each stamp's bin. Rows keep their order: those of one bin get sorted times."""
    start = np.rint(stamps / STAMP_STEP_S) * STAMP_STEP_S
    return np.sort(start + stream(seed, Purpose.SPREAD).uniform(0, STAMP_STEP_S, len(start)))
