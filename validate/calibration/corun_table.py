"""Tables of rates of processes that share one GPU, measured by other code than this package's.

One has pairs, and each of their phases alone: a process that repeats the prefill of one sequence,
launched kernel by kernel, and one that repeats the decode step of a batch at a fixed context, as a
CUDA graph. The other has N processes that each run whole batches of Hugging Face `generate`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitwiser.validate.calibration.points import Load
from splitwiser.validate.calibration.steps import StepRow

CORUN_COLUMNS = (
    "sharing",
    "prefill_sm_pct",
    "decode_sm_pct",
    "prefill_tokens",
    "decode_batch",
    "decode_context",
    "prefill_per_s",
    "decode_steps_per_s",
)
GENERATE_COLUMNS = (
    "sharing",
    "sm_pct",
    "model",
    "processes",
    "batch",
    "prompt_tokens",
    "output_tokens",
    "batches_per_s",
)


LLM = "meta-llama/Meta-Llama-3-8B"  # whose shape the pairs have: the table does not say


@dataclass(frozen=True, slots=True)
class GenerateRow:
    """Rate of whole batches of `generate`, over all processes, in batches per second."""

    sharing: str
    share: float
    processes: int
    batch: int
    prompt_tokens: int
    output_tokens: int
    rate: float

    @property
    def regime(self) -> str:
        """The sharing regime as tables name it."""
        return self.sharing if self.share == 1.0 else f"{self.sharing} {self.share:.0%}"

    @property
    def title(self) -> str:
        """What ran, such as "4 processes"."""
        return f"{self.processes} process{'es' if self.processes > 1 else ''}"


def read_corun(path: Path | str) -> list[StepRow]:
    """Read a table of `CORUN_COLUMNS`. A fault is a ValueError with file, line and column.

    In a pair the prefill comes first. None has priority: such code seldom gives its streams any.
    """
    return [_steps(cells) for cells in _cells(Path(path), CORUN_COLUMNS)]


def _steps(cells: _Cells) -> StepRow:
    sharing = cells.text("sharing")
    shares = (cells.percent("prefill_sm_pct"), cells.percent("decode_sm_pct"))
    tokens, prefill_rate = cells.count("prefill_tokens"), cells.number("prefill_per_s")
    batch, context = cells.count("decode_batch"), cells.count("decode_context")
    decode_rate = cells.number("decode_steps_per_s")
    lanes = []
    if tokens is not None and prefill_rate is not None:
        lanes.append((Load(LLM, prompts=1, tokens=tokens), shares[0], prefill_rate))
    elif tokens is not None or prefill_rate is not None:
        raise ValueError(f"{cells.place}: prefill_tokens and prefill_per_s belong together")
    if batch is not None and context is not None and decode_rate is not None:
        lanes.append((Load(LLM, batch=batch, context=context), shares[1], decode_rate))
    elif (batch, context, decode_rate) != (None, None, None):
        raise ValueError(
            f"{cells.place}: decode_batch, decode_context and decode_steps_per_s belong together"
        )
    if not lanes:
        raise ValueError(f"{cells.place}: neither prefill_per_s nor decode_steps_per_s")
    loads, granted, rates = zip(*lanes, strict=True)
    return StepRow(sharing, loads, granted, rates, decode_first=False)


def read_generate(path: Path | str) -> list[GenerateRow]:
    """Read a table of `GENERATE_COLUMNS`. A fault is a ValueError with file, line and column."""
    rows = []
    for cells in _cells(Path(path), GENERATE_COLUMNS):
        rows.append(
            GenerateRow(
                sharing=cells.text("sharing"),
                share=cells.percent("sm_pct"),
                processes=cells.needed_count("processes"),
                batch=cells.needed_count("batch"),
                prompt_tokens=cells.needed_count("prompt_tokens"),
                output_tokens=cells.needed_count("output_tokens"),
                rate=cells.needed_number("batches_per_s"),
            )
        )
    return rows


class _Cells:
    """The cells of one line, by column; faults carry the place."""

    def __init__(self, path: Path, line: int, cells: Mapping[str, str | None]) -> None:
        self.place = f"{path}, line {line}"
        self._cells = cells

    def text(self, column: str) -> str:
        text = (self._cells[column] or "").strip()
        if not text:
            raise ValueError(f"{self.place}: {column} is empty")
        return text

    def number(self, column: str) -> float | None:
        text = (self._cells[column] or "").strip()
        if not text:
            return None
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0.0):
            raise ValueError(f"{self.place}: {column} is {text!r}; expected a positive number")
        return number

    def needed_number(self, column: str) -> float:
        number = self.number(column)
        if number is None:
            raise ValueError(f"{self.place}: {column} is empty")
        return number

    def count(self, column: str) -> int | None:
        number = self.number(column)
        if number is None:
            return None
        if number != int(number):
            raise ValueError(f"{self.place}: {column} is {number:g}; expected a whole number")
        return int(number)

    def needed_count(self, column: str) -> int:
        self.needed_number(column)
        return self.count(column) or 0

    def percent(self, column: str) -> float:
        number = self.number(column)
        if number is not None and number > 100.0:
            raise ValueError(f"{self.place}: {column} is {number:g}; expected at most 100")
        return 1.0 if number is None else number / 100.0


def _cells(path: Path, columns: Sequence[str]) -> Iterable[_Cells]:
    """Yield the lines of a CSV file that has all *columns*."""
    if not path.is_file():
        raise FileNotFoundError(f"no measurements at {path}")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}, line 1: no column {missing[0]!r}")
        for cells in reader:
            yield _Cells(path, reader.line_num, cells)
