"""The CSV formats: Azure, BurstGPT, and lengths (Vidur's)."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from splitwiser.traces.rows import Column, Rows
from splitwiser.traces.source import quoted

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file as text, by lower-case column name, without its blank lines."""

    path: Path
    lines: Ints
    cells: Mapping[str, pd.Series[str]]
    header: Mapping[str, str]  # lower case -> as written

    def column(self, name: str) -> Column:
        """A column of numbers; what is none becomes NaN."""
        import pandas as pd

        text = self.cells[name]
        values = _floats(pd.to_numeric(text, errors="coerce"))
        return Column(self.header[name], values, lambda row: text.iloc[row])

    def times(self, name: str) -> Column:
        """A column of ISO 8601 times in UTC (or naive, taken as such), in seconds of the epoch."""
        import pandas as pd

        text = self.cells[name]
        times = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
        # 1970 to 2200: nanoseconds overflow beyond, and a mere number may pass for a year
        known = times.dt.year.between(1970, 2200) & (text.str.len() >= len("2023-11-16"))
        ticks = times.where(known).dt.as_unit("ns")
        start = ticks.min()
        values = _floats((ticks - start).dt.total_seconds())
        return Column(self.header[name], values, lambda row: text.iloc[row])

    def sessions(self, name: str) -> Ints | None:
        """Sessions numbered in the order in which they appear; -1 where the cell is blank."""
        import pandas as pd

        if name not in self.cells:
            return None
        text = self.cells[name]
        codes, _ = pd.factorize(text.where(text != ""))
        return np.asarray(codes, dtype=np.int64)


def _floats(column: pd.Series[Any]) -> Floats:
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)


def _azure(table: Table) -> Rows:
    return Rows(
        table.path,
        "azure",
        table.lines,
        table.times("timestamp"),
        table.column("contexttokens"),
        table.column("generatedtokens"),
        times="an ISO 8601 time such as 2023-11-16 18:17:03.9799600",
    )


def _burstgpt(table: Table) -> Rows:
    return Rows(
        table.path,
        "burstgpt",
        table.lines,
        table.column("timestamp"),
        table.column("request tokens"),
        table.column("response tokens"),
        session=table.sessions("session id"),
    )


def _lengths(table: Table) -> Rows:
    return Rows(
        table.path,
        "lengths",
        table.lines,
        table.column("arrived_at") if "arrived_at" in table.cells else None,
        table.column("num_prefill_tokens"),
        table.column("num_decode_tokens"),
    )


@dataclass(frozen=True)
class CsvFormat:
    """A format: the columns that a file must have, and how its table becomes rows."""

    columns: tuple[str, ...]
    rows: Callable[[Table], Rows]


CSV_FORMATS = {
    "azure": CsvFormat(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure),
    "burstgpt": CsvFormat(("Timestamp", "Request tokens", "Response tokens"), _burstgpt),
    "lengths": CsvFormat(("num_prefill_tokens", "num_decode_tokens"), _lengths),
}


def csv_format(header: str, path: Path) -> str:
    """The format whose columns the header line has; the nearest one is named if one is missing."""
    found = {name.lower(): name for name in _names(header)}
    shared = {
        name: sum(column.lower() in found for column in format_.columns)
        for name, format_ in CSV_FORMATS.items()
    }
    best = max(shared, key=lambda name: shared[name])
    wanted = CSV_FORMATS[best].columns
    alone = list(shared.values()).count(shared[best]) == 1
    if shared[best] == len(wanted):
        return best
    if shared[best] and alone:
        raise _missing(best, found, path)
    known = "; ".join(",".join(format_.columns) for format_ in CSV_FORMATS.values())
    raise ValueError(
        f"{path}, line 1: {quoted(header)} is no known trace; accepted: JSON lines with timestamp, "
        f"input_length, output_length, or a CSV header with {known}"
    )


def read_csv(data: bytes, path: Path, format_name: str) -> Rows:
    """The rows of a CSV file in the format of that name."""
    format_ = CSV_FORMATS[format_name]
    table = _table(data, path)
    if any(column.lower() not in table.cells for column in format_.columns):
        raise _missing(format_name, dict(table.header), path)
    return format_.rows(table)


def _missing(format_name: str, found: Mapping[str, str], path: Path) -> ValueError:
    wanted = CSV_FORMATS[format_name].columns
    absent = next(column for column in wanted if column.lower() not in found)
    near = difflib.get_close_matches(absent.lower(), found, n=1)
    hint = f"; is it {found[near[0]]!r}?" if near else ""
    return ValueError(
        f"{path}, line 1: no column {absent!r} ({format_name} CSV needs {', '.join(wanted)}), "
        f"only {quoted(', '.join(found.values()), 160)}{hint}"
    )


def _names(header: str) -> list[str]:
    return [name.strip().strip('"').strip() for name in header.split(",")]


def _table(data: bytes, path: Path) -> Table:
    """Parse without quoting rules, so that a row is a line and line numbers stay true."""
    import csv

    import pandas as pd

    lead = len(data) - len(data.lstrip())
    above = data.count(b"\n", 0, lead)
    header, _, body = data[lead:].partition(b"\n")
    names = _names(header.decode())
    if len({name.lower() for name in names}) < len(names):
        raise ValueError(f"{path}, line {above + 1}: a column name stands twice in {quoted(names)}")
    if not body.strip():
        raise ValueError(f"{path} has a header and no rows; a trace needs at least one request")
    _check_width(body, len(names), above + 2, path)
    frame = pd.read_csv(
        io.BytesIO(body),
        names=names,
        index_col=False,
        dtype=str,
        keep_default_na=False,
        skip_blank_lines=False,
        lineterminator="\n",
        quoting=csv.QUOTE_NONE,
    )
    frame = frame.fillna("")
    for name in frame.columns:
        frame[name] = frame[name].str.strip(' \t\r"')
    filled = (frame != "").any(axis=1).to_numpy()
    lines = np.flatnonzero(filled) + above + 2
    frame = frame[filled]
    cells = {name.lower(): frame[name] for name in names}
    return Table(path, lines, cells, {name.lower(): name for name in names})


def _check_width(body: bytes, width: int, first: int, path: Path) -> None:
    """A row with more cells than the header has is an error; pandas would drop some of them."""
    text = np.frombuffer(body, dtype=np.uint8)
    commas, ends = np.flatnonzero(text == ord(",")), np.flatnonzero(text == ord("\n"))
    cells = np.bincount(np.searchsorted(ends, commas)) + 1
    if cells.size and cells.max() > width:
        row = int((cells > width).argmax())
        raise ValueError(
            f"{path}, line {first + row}: {cells[row]} cells where the header has {width}"
        )
