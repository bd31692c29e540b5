"""Where output goes: tables and JSON to stdout, notes to stderr; and checks of output paths."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPED_WIDTH = 100  # columns, where stdout is no terminal and COLUMNS is not set
GAP = 2  # spaces between the columns of a table
LAST = 20  # columns of a terminal that the last column of a table gets at least
Cell = str | int | float | None


def width() -> int:
    """The columns of the terminal, or of COLUMNS; `PIPED_WIDTH` where neither is known."""
    return shutil.get_terminal_size((PIPED_WIDTH, 24)).columns


def show(renderable: RenderableType, *, least: int = 0) -> None:
    """Print to stdout as wide as the terminal, at least *least* columns; without markup."""
    from rich.console import Console

    console = Console(width=max(width(), least), markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(renderable)
    # rich pads every line to its table's width.
    lines = [line.rstrip() for line in captured.get().splitlines()]
    print("\n".join(lines).strip("\n"))


def print_json(value: object) -> None:
    """Print *value* as one JSON object: NaN as null, infinity as "inf"."""
    from splitwiser.sim.result import plain

    sys.stdout.write(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, cut: bool = False
) -> None:
    """Print a plain table; a column whose title begins with ">" is aligned to the right.

    A cell of the last column that is too wide is folded, or with *cut* ends in an ellipsis. The
    other columns are whole however narrow the terminal is.
    """
    from rich import box
    from rich.table import Table

    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    others = zip(columns[:-1], *(row[:-1] for row in cells), strict=True)
    taken = sum(max(len(text.removeprefix(">")) for text in column) + GAP for column in others)
    if cut:
        _cut_last(cells, max(LAST, width() - taken))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns, 1):
        table.add_column(
            column.removeprefix(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
            no_wrap=place < len(columns),
        )
    for row in cells:
        table.add_row(*row)
    show(table, least=taken + LAST)


def _cut_last(cells: list[list[str]], room: int) -> None:
    for row in cells:
        if len(row[-1]) > room:
            row[-1] = row[-1][: room - 1] + "…"


def print_pairs(pairs: Iterable[tuple[str, Cell]]) -> None:
    """Print names and values, one pair a line."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, "" if value is None else str(value))
    show(grid)


def note(text: str) -> None:
    """Print one line of diagnostics on stderr."""
    print("note:", text, file=sys.stderr)


def complain(message: str) -> None:
    """Print *message* as one line on stderr, whatever it holds: why the command ended."""
    print("splitwiser:", " ".join(message.split()), file=sys.stderr)


def check_writable(path: Path) -> None:
    """Raise ValueError unless a file can be written at *path*: to be told before long work.

    The folder is tried by writing to it; nothing is left behind.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} cannot be written: it is not a regular file")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} cannot be written: permission denied")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from None
