"""Measured rates of phases that share a GPU, and the model's prediction of them.

The measurement: two processes on one GPU, each looping over its own phase. One runs prefills of
one sequence, launched eagerly; the other decode steps of a batch at a fixed context, as a CUDA
graph. A row of the table holds the rates of both, or of one alone. A second table has N processes
that each run whole batches of `generate`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from splitwiser.models.cost import CostModel, Demand
from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile
from splitwiser.models.sharing import sharing_for
from splitwiser.models.work import prompt_pairs

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


@dataclass(frozen=True, slots=True)
class CorunRow:
    """One measurement of a prefill loop, a decode loop, or both; rates per second, None if absent.

    The SM shares are fractions, 1.0 where no limit was set.
    """

    sharing: str
    prefill_share: float
    decode_share: float
    prefill_tokens: int | None
    decode_batch: int | None
    decode_context: int | None
    prefill_rate: float | None
    decode_rate: float | None

    @property
    def alone(self) -> bool:
        """Whether one phase had the device to itself."""
        return self.prefill_rate is None or self.decode_rate is None

    @property
    def regime(self) -> str:
        """The sharing regime as tables name it: limits under MPS are part of it."""
        if self.sharing == "mps" and min(self.prefill_share, self.decode_share) < 1.0:
            return f"{self.sharing} {self.prefill_share:.0%}/{self.decode_share:.0%}"
        return self.sharing

    @property
    def title(self) -> str:
        """What ran, such as "P 2048 + D 16x1024"."""
        phases = []
        if self.prefill_tokens is not None:
            phases.append(f"P {self.prefill_tokens}")
        if self.decode_batch is not None:
            phases.append(f"D {self.decode_batch}x{self.decode_context}")
        split = f" on {self.prefill_share:.0%}/{self.decode_share:.0%}"
        return " + ".join(phases) + (split if self.sharing == "green_contexts" else "")


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


def read_corun(path: Path | str) -> list[CorunRow]:
    """Read a table of `CORUN_COLUMNS`. A fault is a ValueError with file, line and column."""
    rows = []
    for cells in _cells(Path(path), CORUN_COLUMNS):
        row = CorunRow(
            sharing=cells.text("sharing"),
            prefill_share=cells.percent("prefill_sm_pct"),
            decode_share=cells.percent("decode_sm_pct"),
            prefill_tokens=cells.count("prefill_tokens"),
            decode_batch=cells.count("decode_batch"),
            decode_context=cells.count("decode_context"),
            prefill_rate=cells.number("prefill_per_s"),
            decode_rate=cells.number("decode_steps_per_s"),
        )
        if (row.prefill_rate is None) != (row.prefill_tokens is None):
            raise ValueError(f"{cells.place}: prefill_tokens and prefill_per_s belong together")
        decode = (row.decode_rate, row.decode_batch, row.decode_context)
        if len({cell is None for cell in decode}) != 1:
            raise ValueError(
                f"{cells.place}: decode_batch, decode_context and decode_steps_per_s belong together"
            )
        if row.prefill_rate is None and row.decode_rate is None:
            raise ValueError(f"{cells.place}: neither prefill_per_s nor decode_steps_per_s")
        rows.append(row)
    return rows


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


def predict_corun(row: CorunRow, llm: Llm, gpu: Gpu, profile: Profile) -> dict[str, float]:
    """Return the predicted rate of each phase of *row*: {"prefill": 1/s, "decode": 1/s}.

    The loops have no engine around them, so that nothing comes between two steps.
    """
    profile = profile.with_values(step_overhead=0.0)
    grids = row.sharing == "green_contexts"
    demands = {}
    if row.prefill_tokens is not None:
        cost = CostModel(llm, gpu, profile, sm_share=row.prefill_share, whole_device_grids=grids)
        pairs, read = prompt_pairs(row.prefill_tokens, 0, llm.sliding_window)
        demands["prefill"] = cost.step(row.prefill_tokens, 1, pairs, read).demand(0.0)
    if row.decode_batch is not None and row.decode_context is not None:
        cost = CostModel(llm, gpu, profile, sm_share=row.decode_share, whole_device_grids=grids)
        attended = row.decode_batch * row.decode_context
        demands["decode"] = cost.decode(row.decode_batch).demand(attended)
    rates = sharing_for(row.sharing, profile).rates(list(demands.values()))
    return {
        phase: rate / demand.seconds
        for (phase, demand), rate in zip(demands.items(), rates, strict=True)
    }


def predict_generate(row: GenerateRow, llm: Llm, gpu: Gpu, profile: Profile) -> float:
    """Return the predicted rate of *row* in batches per second, over all processes.

    Processes are out of step with each other, so that each meets neighbours of average demand:
    the mean of a batch's steps, with the profile's `generate_overhead` after each. What processes
    take from each other on the host (cores, locks) is outside the model.
    """
    profile = profile.with_values(step_overhead=profile.value("generate_overhead"))
    cost = CostModel(llm, gpu, profile, sm_share=row.share, eager=True)
    pairs, read = prompt_pairs(row.prompt_tokens, 0, llm.sliding_window)
    n = row.batch
    steps = [cost.step(n * row.prompt_tokens, n, n * pairs, n * read).demand(0.0)]
    decode = cost.decode(n)
    for token in range(1, row.output_tokens):
        steps.append(decode.demand(n * (row.prompt_tokens + token)))
    mean = Demand(
        seconds=fmean(step.seconds for step in steps),
        busy=fmean(step.busy for step in steps),
        flops=fmean(step.flops for step in steps),
        bytes=fmean(step.bytes for step in steps),
        kernels=fmean(step.kernels for step in steps),
        sm_share=row.share,
        overhead=fmean(step.overhead for step in steps),
        compute=fmean(step.compute for step in steps),
        memory=fmean(step.memory for step in steps),
        prompt=fmean(step.prompt for step in steps),
    )
    rate = sharing_for(row.sharing, profile).rates([mean] * row.processes)[0]
    return row.processes * rate / (mean.seconds * len(steps))
