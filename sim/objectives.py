"""Service-level objectives in vLLM's syntax, and which requests meet them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from splitwiser.sim.result import OBJECTIVES

Floats = NDArray[np.float64]

ACCEPTED = "objectives are METRIC:MILLISECONDS, such as ttft:500 tpot:50 e2el:20000"

# Outside these a value was not meant in milliseconds: whoever writes "ttft:0.5" thinks of half a
# second, and nobody waits a day.
LEAST_MS, MOST_MS = 1.0, 86_400_000.0
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf)(\D*)", re.ASCII)


class Latencies(Protocol):
    """The columns of a result that objectives look at: seconds per request, NaN where undefined."""

    @property
    def ttft(self) -> Floats: ...
    @property
    def tpot(self) -> Floats: ...
    @property
    def e2el(self) -> Floats: ...


def parse_goodput(texts: Iterable[str]) -> dict[str, float]:
    """The objectives of vLLM's `--goodput`: "ttft:500" is a time to first token of 500 ms at most.

    Returns seconds by metric ("ttft", "tpot", "e2el"). "500ms" is the same as "500". ValueError,
    in one line, for an unknown metric (the nearest is offered), another unit, a number that is not
    above 0, one that cannot be meant in milliseconds, and a metric given twice.
    """
    objectives: dict[str, float] = {}
    for text in texts:
        metric, colon, value = (part.strip() for part in str(text).partition(":"))
        if not colon:
            raise ValueError(f"objective {_shown(text)} has no colon; {ACCEPTED}")
        if metric not in OBJECTIVES:
            near = difflib.get_close_matches(metric.lower(), OBJECTIVES, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"objective {_shown(text)}: unknown metric {_shown(metric)}; {hint}"
                f"known: {', '.join(OBJECTIVES)}"
            )
        if metric in objectives:
            raise ValueError(f"objective {_shown(text)}: {metric} is given twice")
        objectives[metric] = _milliseconds(value, text) / 1e3
    if not objectives:
        raise ValueError(f"no objective is given; {ACCEPTED}")
    return objectives


def check_goodput(goodput: Mapping[str, float]) -> None:
    """Raise ValueError, in one line, unless *goodput* holds seconds by metric."""
    if not isinstance(goodput, Mapping) or not goodput:
        raise ValueError(
            f"goodput is {_shown(goodput)}; a mapping of metrics ({', '.join(OBJECTIVES)}) to seconds is needed"
        )
    for metric, seconds in goodput.items():
        if metric not in OBJECTIVES:
            raise ValueError(
                f"goodput: unknown metric {_shown(metric)}; known: {', '.join(OBJECTIVES)}"
            )
        most = MOST_MS / 1e3
        if not isinstance(seconds, (int, float)) or not LEAST_MS / 1e3 <= seconds <= most:
            raise ValueError(
                f"goodput: {metric} is {_shown(seconds)}; accepted: seconds, {LEAST_MS / 1e3:g} to {most:g}"
            )


def _milliseconds(value: str, text: str) -> float:
    match = _NUMBER.fullmatch(value.lower())
    if match is None:
        raise ValueError(f"objective {_shown(text)}: {_shown(value)} is no number; {ACCEPTED}")
    number, unit = float(match[1]), match[2].strip()
    if unit not in ("", "ms"):
        raise ValueError(
            f"objective {_shown(text)}: the unit {_shown(unit)} is not accepted; {ACCEPTED}"
        )
    if not (isfinite(number) and number > 0):
        raise ValueError(f"objective {_shown(text)}: {value} is not above 0; {ACCEPTED}")
    if not LEAST_MS <= number <= MOST_MS:
        raise ValueError(
            f"objective {_shown(text)}: {number:g} ms is beyond sense; the unit is milliseconds "
            f"({LEAST_MS:g} to {MOST_MS:g})"
        )
    return number


def _shown(text: object) -> str:
    shown = repr(str(text))
    return shown if len(shown) <= 40 else shown[:37] + "..."


def misses(result: Latencies, objectives: Mapping[str, float]) -> dict[str, NDArray[np.bool_]]:
    """Which requests miss each objective (seconds by metric).

    A request that was rejected or has not finished misses every one. One output token has no time
    per output token, and so cannot miss that.
    """
    unfinished = np.isnan(result.e2el)
    # NaN compares as false: only what is known to be late is late.
    return {
        metric: unfinished | (getattr(result, metric) > limit)
        for metric, limit in objectives.items()
    }
