"""Measured runs of a serving engine: what was sent to it, and which latencies and rates came out.

Read are a plain CSV (`engine_csv`), the JSON that `vllm bench serve --save-result` writes, and the
stages of inference-perf (`engine_json`); the format is recognised by content.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitwiser.traces.arrivals import all_at_once, constant, gamma
from splitwiser.traces.trace import MAX_TOKENS, Trace
from splitwiser.validate.calibration.observations import CONTRADICTION

LATENCIES = ("ttft", "tpot", "e2el")
RATES = ("request_throughput", "output_throughput", "total_token_throughput")
QUANTITY = re.compile(rf"(mean|median|p\d{{1,2}})_({'|'.join(LATENCIES)})|{'|'.join(RATES)}")

PERIOD = 60.0  # seconds for which a stated rate is taken to have been sent
TURNS = 10  # requests of each client of a closed loop
MOST_REQUESTS = 20_000  # of a run that does not say how many it had


@dataclass(frozen=True, eq=False)
class EngineRow:
    """One measured run.

    *trace* is what was sent, *measured* what came of it: latencies in seconds by statistic, such as
    "median_ttft" or "mean_tpot" (vLLM's definitions), and rates per second ("request_throughput",
    "output_throughput", "total_token_throughput"). *place* says where the row stands, and *load*
    what tells its traffic from that of the other rows.
    """

    place: str
    load: str
    trace: Trace
    measured: Mapping[str, float]

    def __post_init__(self) -> None:
        """Check the measurements. ValueError for an unknown name, or a value that is no time."""
        if not self.measured:
            raise ValueError(
                f"{self.place}: nothing was measured; accepted: a TTFT, a TPOT, an end-to-end"
                " latency or a throughput"
            )
        for name, value in self.measured.items():
            if not QUANTITY.fullmatch(name):
                raise ValueError(
                    f"{self.place}: {name!r} is no quantity; accepted: such as median_ttft,"
                    f" mean_tpot, p99_e2el, {', '.join(RATES)}"
                )
            if not (isfinite(value) and value > 0.0):
                raise ValueError(f"{self.place}: {name} is {value:g}; accepted: a number above 0")


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of equal length as a table states them.

    `concurrency` is the most requests in flight: without a `rate` (requests/s) each completion
    sends the next. Neither means one request alone. `burstiness` is vLLM's, the shape of the gamma
    gaps; infinite for even ones. `requests` is their number, where it is known.
    """

    prompt_tokens: int
    output_tokens: int
    concurrency: int | None = None
    rate: float | None = None
    burstiness: float = 1.0
    requests: int | None = None

    def trace(self, place: str) -> Trace:
        """The requests; ValueError naming *place* for a number that cannot be."""
        for name in ("prompt_tokens", "output_tokens", "concurrency", "requests"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_TOKENS:
                raise ValueError(f"{place}: {name} is {value}; accepted: a whole number from 1 on")
        for name in ("rate", "burstiness"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{place}: {name} is {value:g}; accepted: a number above 0")
        count = self.requests or self._count()
        return Trace(
            self._arrivals(count),
            np.full(count, self.prompt_tokens),
            np.full(count, self.output_tokens),
            max_concurrency=self.concurrency,
            name=str(self),
        )

    def _count(self) -> int:
        if self.rate is not None and self.rate < inf:
            return int(np.clip(round(PERIOD * self.rate), 1, MOST_REQUESTS))
        return 1 if self.concurrency in (None, 1) else TURNS * (self.concurrency or 1)

    def _arrivals(self, count: int) -> NDArray[np.float64]:
        if self.rate is None or self.rate == inf:
            return all_at_once(count)
        if self.burstiness == inf:
            return constant(count, self.rate)
        return gamma(count, self.rate, self.burstiness, seed=0)

    def __str__(self) -> str:
        """What is sent, in a few words."""
        words = f"{self.prompt_tokens} in, {self.output_tokens} out"
        if self.rate is not None:
            words += f", {self.rate:g}/s"
        if self.concurrency is not None:
            words += f", {self.concurrency} at a time"
        return words


def is_engine_table(path: Path) -> bool:
    """Whether a file holds runs of an engine: JSON, or a CSV with prompt and output tokens.

    A file that cannot be read is none; its reader says why.
    """
    from splitwiser.validate.calibration.engine_csv import names_a_load

    try:
        with path.open(encoding="utf-8-sig") as file:
            line = file.readline(100_000)
    except (OSError, UnicodeDecodeError):
        return False
    return line.lstrip()[:1] in ("{", "[") or names_a_load(line)


def read_engine_tables(paths: Sequence[Path | str]) -> list[EngineRow]:
    """Return the runs in the files *paths*, in their order.

    A file that is missing, of no known format, or holds an impossible value raises in one line that
    names the place; so do two runs of one load whose results differ more than twofold.
    """
    rows = [row for path in paths for row in read_engine_table(path)]
    check_agreement(rows)
    return rows


def read_engine_table(path: Path | str) -> list[EngineRow]:
    """Return the runs in one file."""
    from splitwiser.validate.calibration.engine_csv import read_csv
    from splitwiser.validate.calibration.engine_json import read_json

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"no table at {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a directory; name the files in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the table {path}: {error}") from None
    rows = read_json(path, text) if text.lstrip()[:1] in ("{", "[") else read_csv(path, text)
    if not rows:
        raise ValueError(f"{path} holds no measured run")
    return rows


def check_agreement(rows: Iterable[EngineRow]) -> None:
    """Raise ValueError where two rows of one load measured a quantity more than twofold apart."""
    seen: dict[tuple[str, str], tuple[float, str]] = {}
    for row in rows:
        for name, value in row.measured.items():
            other, place = seen.setdefault((row.load, name), (value, row.place))
            if not 1 / CONTRADICTION <= value / other <= CONTRADICTION:
                raise ValueError(
                    f"{row.place}: {name} of {row.load!r} is {value:g}, but {other:g} at {place};"
                    f" equal runs may differ by a factor of {CONTRADICTION:g}"
                )
