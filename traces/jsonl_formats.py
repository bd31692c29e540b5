"""The JSON lines formats: Mooncake and Bailian."""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwiser.traces.prefix import PrefixBlocks
from splitwiser.traces.rows import Column, Rows
from splitwiser.traces.source import fault, quoted

Ints = NDArray[np.int64]
Row = Mapping[str, Any]

MOONCAKE_BLOCK_TOKENS = 512
BAILIAN_BLOCK_TOKENS = 16
BAILIAN_KEYS = ("chat_id", "parent_chat_id")
NONE = -1  # no session, no adapter, no parent


def jsonl_format(line: bytes, path: Path, number: int) -> str:
    """The format of a file whose first object is *line*."""
    row = _object(line, path, number)
    return "bailian" if any(key in row for key in BAILIAN_KEYS) else "mooncake"


def read_mooncake(data: bytes, path: Path) -> Rows:
    """Mooncake's rows: stamps in ms, 512-token blocks; also `session_id` and `adapter`."""
    columns = _Columns(path, MOONCAKE_BLOCK_TOKENS)
    sessions, adapters = _Labels(path, "session_id"), _Labels(path, "adapter")
    for line, row in _objects(data, path):
        for labels in (sessions, adapters):
            if labels.key in row:
                labels.add(len(columns), line, row[labels.key])
        columns.add(line, row)
    return columns.rows(
        "mooncake",
        1000.0,
        session=sessions.column(len(columns)),
        adapter=adapters.column(len(columns)),
    )


def read_bailian(data: bytes, path: Path) -> Rows:
    """Bailian's rows: stamps in seconds, 16-token blocks; a session is named by its first chat."""
    columns, chats = _Columns(path, BAILIAN_BLOCK_TOKENS), _Chats(path)
    for line, row in _objects(data, path):
        columns.add(line, row)
        chats.add(line, row)
    return columns.rows("bailian", 1.0, session=chats.column(), notes=chats.notes())


READERS = {"mooncake": read_mooncake, "bailian": read_bailian}


class _Columns:
    """The columns that both formats have, growing line by line in flat arrays."""

    def __init__(self, path: Path, block_tokens: int) -> None:
        self._path = path
        self._block_tokens = block_tokens
        self._lines = array("q")
        self._stamps, self._prompts, self._outputs = array("d"), array("d"), array("d")
        self._numbers = (
            ("timestamp", self._stamps),
            ("input_length", self._prompts),
            ("output_length", self._outputs),
        )
        self._ends, self._ids = array("q", [0]), array("q")

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: int, row: Row) -> None:
        """Take one object in; its values' ranges are checked later, all at once."""
        self._lines.append(line)
        for key, column in self._numbers:
            value = row.get(key)
            if type(value) is not int and type(value) is not float:  # bool is a kind of int
                if key not in row:
                    raise ValueError(f"{self._path}, line {line}: no key {key!r}")
                raise fault(self._path, line, key, value, "a number")
            try:
                column.append(value)
            except OverflowError:
                raise fault(self._path, line, key, value, "a number below 1e308") from None
        ids = row.get("hash_ids")
        if ids is not None:
            self._add_blocks(line, ids)
        self._ends.append(len(self._ids))

    def _add_blocks(self, line: int, ids: object) -> None:
        if type(ids) is not list or not set(map(type, ids)) <= {int}:
            raise fault(self._path, line, "hash_ids", ids, "a list of whole numbers")
        size, prompt = self._block_tokens, self._prompts[-1]
        if (len(ids) - 1) * size >= prompt > 0:
            wanted = f"no more than the {size}-token blocks of a prompt of {prompt:.0f} tokens"
            raise fault(self._path, line, "the length of hash_ids", len(ids), wanted)
        try:
            self._ids.extend(ids)
        except OverflowError:
            raise fault(self._path, line, "hash_ids", ids, "64-bit whole numbers") from None

    def rows(
        self,
        format_name: str,
        stamps_per_second: float,
        *,
        session: Ints | None,
        adapter: Ints | None = None,
        notes: tuple[str, ...] = (),
    ) -> Rows:
        """All that was taken in."""
        if not self._lines:
            raise ValueError(f"{self._path} holds no request")
        prefix = None
        if self._ids:
            # array("q") holds 64-bit numbers: taken over as they lie, not number by number
            ends, ids = np.frombuffer(self._ends, np.int64), np.frombuffer(self._ids, np.int64)
            prefix = PrefixBlocks(ends, ids, self._block_tokens)
        return Rows(
            self._path,
            format_name,
            np.array(self._lines, np.int64),
            _column("timestamp", self._stamps, stamps_per_second),
            _column("input_length", self._prompts),
            _column("output_length", self._outputs),
            session=session,
            adapter=adapter,
            prefix=prefix,
            notes=notes,
            times="seconds from 0 on" if stamps_per_second == 1 else "milliseconds from 0 on",
        )


class _Labels:
    """An optional column of labels: whole numbers as they are, or strings, numbered."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self.key = path, key
        self._codes: dict[int | str, int] = {}
        self._rows, self._column = array("q"), array("q")

    def add(self, row: int, line: int, label: object) -> None:
        """Take the label of a row in; null is none."""
        if label is None:
            return
        if type(label) is not str and (type(label) is not int or abs(label) >= 2**63):
            raise fault(self._path, line, self.key, label, "a 64-bit whole number or a string")
        self._rows.append(row)
        self._column.append(self._codes.setdefault(label, len(self._codes)))

    def column(self, rows: int) -> Ints | None:
        """The labels of that many rows, -1 for none; `None` where no row has one."""
        if not self._codes:
            return None
        labels = np.array(self._column, np.int64)
        numbers = [label for label in self._codes if isinstance(label, int)]
        if len(numbers) == len(self._codes):
            labels = np.array(numbers, np.int64)[labels]
        column = np.full(rows, NONE, dtype=np.int64)
        column[np.array(self._rows, np.int64)] = labels
        return column


class _Chats:
    """Bailian's conversations, followed from each chat to its parent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._root: dict[int, int] = {}
        self._column = array("q")
        self._orphans = 0

    def add(self, line: int, row: Row) -> None:
        """Take one object in."""
        chat = self._number(line, "chat_id", row.get("chat_id"))
        parent = self._number(line, "parent_chat_id", row.get("parent_chat_id", NONE))
        self._orphans += parent != NONE and parent not in self._root
        root = self._root[chat] = self._root.get(parent, chat)
        self._column.append(root)

    def _number(self, line: int, key: str, value: object) -> int:
        if type(value) is not int or abs(value) >= 2**63:
            raise fault(self._path, line, key, value, "a 64-bit whole number")
        return value

    def column(self) -> Ints:
        """The first chat of each row's conversation."""
        return np.array(self._column, np.int64)

    def notes(self) -> tuple[str, ...]:
        """What there is to say."""
        if not self._orphans:
            return ()
        return (f"{self._orphans} chats continue one that the file does not hold",)


def _column(key: str, numbers: array[float], per_unit: float = 1.0) -> Column:
    values = np.array(numbers, np.float64)

    def raw(row: int) -> object:
        number = numbers[row]
        return int(number) if number.is_integer() else number

    return Column(key, values / per_unit, raw)


_DECODER = json.JSONDecoder()


def _objects(data: bytes, path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(io.BytesIO(data), 1):
        if not line.isspace():
            yield number, _object(line, path, number)


def _object(line: bytes, path: Path, number: int) -> Row:
    try:
        row = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "not JSON that can be read"
        raise ValueError(
            f"{path}, line {number}: {quoted(line.decode().strip())} is not a JSON object: {reason}"
        ) from None
    if type(row) is not dict:
        raise ValueError(
            f"{path}, line {number}: {quoted(row)} is not a JSON object; accepted is one object a "
            "line, with timestamp, input_length and output_length"
        )
    return row
