"""The raw measurements of a calibration: a file of JSON lines that a later run goes on with.

The first line holds the format's version and the conditions; each other line is one measurement,
written when it was made. One that failed has the reason in `error`, and no numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

VERSION = 2
# Conditions under which measurements may stand in one file: what changes the times.
SAME = ("name", "uuid", "driver", "torch", "plan")


class RawFile:
    """Measurements by key, kept at *path*.

    With *fresh* an older file is replaced; else its measurements are kept, and those that failed
    are forgotten, so that they are made again. Raises ValueError, in one line, where the older file
    is of another device, driver or torch, or no such file.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        self.conditions = dict(conditions)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not fresh:
            before, records = read_raw(path)
            for name in SAME:
                if before.get(name) != conditions.get(name):
                    raise ValueError(
                        f"{path} was measured with {name} = {before.get(name)!r}, and this is "
                        f"{conditions.get(name)!r}; measure all anew (--fresh) or name another folder"
                    )
            self.conditions = before
            self.records = {key: row for key, row in records.items() if "error" not in row}
        lines = [{"version": VERSION, **self.conditions}, *self.records.values()]
        path.write_text("".join(f"{_line(line)}\n" for line in lines), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep one measurement; it is on the disk when this returns."""
        row = {"key": key, **record}
        self.records[key] = row
        self._file.write(f"{_line(row)}\n")
        self._file.flush()


def read_raw(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The conditions and the measurements, by key, of a raw file.

    A last line that was cut off in the middle is left out: the run was killed there. Any other
    fault is a ValueError of one line with file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no file of measurements: it is not UTF-8") from None
    conditions: dict[str, Any] | None = None
    records: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines) and conditions is not None:
                break
            raise ValueError(f"{path}, line {number}: not JSON") from None
        if conditions is None:
            conditions = _conditions(row, path)
        else:
            records[_checked(row, f"{path}, line {number}")] = row
    if conditions is None:
        raise ValueError(f"{path} is empty; a file of measurements begins with its conditions")
    return conditions, records


def _conditions(row: Any, path: Path) -> dict[str, Any]:
    if not isinstance(row, dict) or row.get("version") != VERSION:
        found = row.get("version") if isinstance(row, dict) else None
        raise ValueError(f"{path}, line 1: version {found!r} is not supported; expected {VERSION}")
    return {name: value for name, value in row.items() if name != "version"}


def _checked(row: Any, place: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        raise ValueError(f"{place}: a measurement is an object with a key")  # noqa: TRY004
    if "error" in row:
        return str(row["key"])
    numbers = row["rates"] if "rates" in row else [row.get("seconds")]
    if not (isinstance(numbers, list) and numbers and all(map(_positive, numbers))):
        what = "rates" if "rates" in row else "seconds"
        raise ValueError(f"{place}: {what} is {numbers!r}; expected positive numbers")
    return str(row["key"])


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False, separators=(",", ":"))
