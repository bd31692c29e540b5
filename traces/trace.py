"""The trace: what arrives, and when. Columns, so that a million requests fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from splitwiser.traces.prefix import PrefixBlocks, frozen

MAX_TOKENS = 10_000_000  # no model has a longer context: a larger count is a fault of the file
MAX_SECONDS = 10 * 366 * 86_400.0  # ten years: a larger span is a mistaken unit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in the order of their arrival. Nothing in it changes: its arrays are read-only.

    *arrival* holds seconds, never falling, from 0 on; *prompt_tokens* and *output_tokens* whole
    numbers from 1 on (the output is what the request will generate: a scheduler may not read it).
    *session* numbers the conversation that a request belongs to (-1: none), *adapter* its adapter
    (-1: none), and *prefix* its prompt's hashed blocks; each is `None` where the source has none.

    With *max_concurrency* the load is a closed loop, as vLLM's `--max-concurrency`: a request is
    issued when its arrival is past and fewer than that many are in the system. *name* says where
    the trace comes from, *notes* what was done to it on the way.

    A column with a bad value, or of another length, raises :exc:`ValueError`.
    """

    arrival: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints | None = None
    adapter: Ints | None = None
    prefix: PrefixBlocks | None = None
    max_concurrency: int | None = None
    name: str = "trace"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrival", frozen(self.arrival, np.float64))
        for name in ("prompt_tokens", "output_tokens", "session", "adapter"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, _whole(values, name))
        object.__setattr__(self, "notes", tuple(self.notes))
        self._check_lengths()
        _check_arrivals(self.arrival)
        for name in ("prompt_tokens", "output_tokens"):
            _check_tokens(getattr(self, name), name)
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(f"max_concurrency must be 1 or more, not {self.max_concurrency}")

    def _check_lengths(self) -> None:
        count = len(self.arrival)
        if not count:
            raise ValueError("a trace needs at least one request; this one has none")
        for name in ("prompt_tokens", "output_tokens", "session", "adapter", "prefix"):
            column = getattr(self, name)
            if column is not None and len(column) != count:
                raise ValueError(f"{name} has {len(column)} rows where arrival has {count}")

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def duration(self) -> float:
        """Seconds from time 0 to the last arrival."""
        return float(self.arrival[-1])

    @property
    def rate(self) -> float:
        """Requests per second: number over last arrival (vLLM's rule); inf if that is 0."""
        return len(self) / self.duration if self.duration else float("inf")

    def scale(self, rate_factor: float) -> Trace:
        """The same requests at *rate_factor* times the rate: 2.0 halves every arrival time."""
        if not 0 < rate_factor < float("inf"):
            raise ValueError(f"rate_factor must be a number above 0, not {rate_factor}")
        return replace(self, arrival=self.arrival / rate_factor)

    def slice(self, start_s: float = 0.0, stop_s: float | None = None) -> Trace:
        """The requests that arrive in [*start_s*, *stop_s*), with *start_s* as the new time 0."""
        stop = float("inf") if stop_s is None else stop_s
        if not 0 <= start_s < stop:
            raise ValueError(f"a slice needs 0 <= start < stop, not {start_s} and {stop_s}")
        first, last = np.searchsorted(self.arrival, (start_s, stop))
        if first == last:
            raise ValueError(
                f"no request arrives from {start_s} s to {stop} s; the trace spans 0 to "
                f"{self.duration:.6g} s"
            )
        part = self.take(np.arange(first, last))
        return replace(part, arrival=part.arrival - start_s)

    def head(self, count: int) -> Trace:
        """The first *count* requests, or all if there are fewer."""
        if count < 1:
            raise ValueError(f"head needs a count of 1 or more, not {count}")
        return self if count >= len(self) else self.take(np.arange(count))

    def take(self, requests: Ints) -> Trace:
        """The given requests (row numbers, so ordered that arrivals do not fall)."""
        return replace(
            self,
            arrival=self.arrival[requests],
            prompt_tokens=self.prompt_tokens[requests],
            output_tokens=self.output_tokens[requests],
            session=None if self.session is None else self.session[requests],
            adapter=None if self.adapter is None else self.adapter[requests],
            prefix=None if self.prefix is None else self.prefix.take(requests),
        )

    def retimed(self, arrival: Floats) -> Trace:
        """The same requests with other arrival times, such as those of :func:`arrivals.gamma`."""
        return replace(self, arrival=arrival)

    @property
    def gap_cv(self) -> float | None:
        """Coefficient of variation of the gaps between arrivals; `None` where it has no meaning."""
        gaps = np.diff(self.arrival)
        mean = float(gaps.mean()) if len(gaps) > 1 else 0.0
        return float(gaps.std()) / mean if mean else None

    @property
    def prefix_hit_share(self) -> float | None:
        """Share of prompt tokens that an endless prefix cache would save; `None` without hashes."""
        if self.prefix is None:
            return None
        return float(self.prefix.hit_tokens(self.prompt_tokens).sum() / self.prompt_tokens.sum())

    def longest_prompt(self, below: int) -> int:
        """Tokens of the longest prompt that has fewer than *below*; 0 where none has."""
        return int(self.prompt_tokens[self.prompt_tokens < below].max(initial=0))

    def describe(self) -> dict[str, object]:
        """The statistics that traces are published with, as plain values for a table or JSON.

        `request_rate` is the string `"inf"` where all requests arrive at once (vLLM's convention).
        """
        return {
            "name": self.name,
            "requests": len(self),
            "duration_s": self.duration,
            "request_rate": self.rate if self.duration else "inf",
            "gap_cv": self.gap_cv,
            "prompt_tokens": _distribution(self.prompt_tokens),
            "output_tokens": _distribution(self.output_tokens),
            "prefix_hit_share": self.prefix_hit_share,
            "sessions": _distinct(self.session),
            "adapters": _distinct(self.adapter),
            "max_concurrency": self.max_concurrency,
        }


def _distinct(labels: Ints | None) -> int | None:
    return None if labels is None else len(np.unique(labels[labels >= 0]))


def _distribution(values: Ints) -> dict[str, float]:
    p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99))
    summary = {"mean": values.mean(), "p50": p50, "p90": p90, "p99": p99, "max": values.max()}
    return {name: float(value) for name, value in summary.items()}


def _whole(values: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        return frozen(values, np.int64)
    numbers = array.astype(np.float64)
    bad = ~(numbers == np.floor(numbers)) | ~np.isfinite(numbers)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{name}[{row}] is {numbers[row]}; it must be a whole number")
    return frozen(numbers.astype(np.int64), np.int64)


def _check_arrivals(arrival: Floats) -> None:
    bad = ~((arrival >= 0) & (arrival <= MAX_SECONDS))  # also true for NaN
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"arrival[{row}] is {arrival[row]}; arrivals are seconds from 0 to "
            f"{MAX_SECONDS:.0f} (ten years)"
        )
    falls = np.diff(arrival) < 0
    if falls.any():
        row = int(falls.argmax()) + 1
        raise ValueError(
            f"arrival[{row}] is {arrival[row]}, before the {arrival[row - 1]} of the request "
            "ahead of it; arrivals must not fall"
        )


def _check_tokens(tokens: Ints, name: str) -> None:
    bad = (tokens < 1) | (tokens > MAX_TOKENS)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{name}[{row}] is {tokens[row]}; accepted are 1 to {MAX_TOKENS}")
