"""A plain CSV of measured runs, one a line.

Its columns, in any order and case; a blank cell is a value that was not measured:

- `prompt_tokens`, `output_tokens`: of each request.
- `concurrency`: most requests in flight; `request_rate`: requests per second, with `burstiness`
  (vLLM's; "inf": evenly spaced). Without both, requests come one at a time.
- `num_prompts`: how many were sent.
- `ttft_s`, `tpot_ms`, ...: a latency (ttft, tpot, e2el) and its unit (s, ms, us), with `mean_`,
  `median_` or `p99_` before it; the mean if it does not say.
- `request_throughput`, `output_throughput`, `total_token_throughput`: per second.

`ALIASES` are other names of these. Other columns are left alone.
"""

from __future__ import annotations

import csv
import re
from math import inf, isfinite, nan
from pathlib import Path

from splitwiser.models.names import quoted
from splitwiser.validate.calibration.engine_table import RATES, EngineRow, Load

ALIASES = {
    "prompt_tokens": ("isl", "input_tokens", "input_len", "prompt_len", "random_input_len"),
    "output_tokens": ("osl", "output_len", "random_output_len"),
    "concurrency": ("max_concurrency", "batch_size", "batch"),
    "request_rate": ("rate", "qps", "rps"),
    "num_prompts": ("num_requests", "requests"),
    "burstiness": (),
}
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
# "silicon_ttft_ms" is what aiconfigurator calls a measured TTFT.
LATENCY = re.compile(r"(?:silicon_)?(?:(mean|median|p50|p\d{1,2})_)?(ttft|tpot|e2el|e2e)_(s|ms|us)")
BARE = re.compile(r"(?:(?:mean|median|p\d{1,2})_)?(?:ttft|tpot|e2el|e2e)")
# Of one engine on one GPU each of these has one value; they are not columns of a load.
SAME = ("model_path", "model", "system", "gpu")


def names_a_load(line: str) -> bool:
    """Whether a header has columns of prompt and output tokens, by any of their names."""
    header = {cell.strip().strip('"').casefold() for cell in line.split(",")}
    return all(header & {name, *ALIASES[name]} for name in ("prompt_tokens", "output_tokens"))


def read_csv(path: Path, text: str) -> list[EngineRow]:
    """Return the runs of a table; ValueError with line and column where it is wrong."""
    try:
        lines = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV: {error}") from None
    if not lines or not any(cell.strip() for cell in lines[0]):
        raise ValueError(f"{path} is empty; its first line names the columns")
    header = [cell.strip().casefold() for cell in lines[0]]
    columns = _columns(path, header)
    _one_engine(path, header, lines[1:])
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(cells)} cells under {len(header)} columns"
            )
        rows.append(_row(f"{path}, line {number}", dict(zip(header, cells, strict=True)), columns))
    return rows


def _columns(path: Path, header: list[str]) -> dict[str, str]:
    """Return which column holds what: a part of the load, or a measured quantity."""
    repeated = [name for name in header if name and header.count(name) > 1]
    if repeated:
        raise ValueError(f"{path}: two columns are called {quoted(repeated[0])}")
    found: dict[str, str] = {}
    for name, aliases in ALIASES.items():
        present = [column for column in (name, *aliases) if column in header]
        if len(present) > 1:
            raise ValueError(
                f"{path}: columns {quoted(present[0])} and {quoted(present[1])} both say {name}"
            )
        if present:
            found[name] = present[0]
    for name in ("prompt_tokens", "output_tokens"):
        if name not in found:
            names = ", ".join((name, *ALIASES[name]))
            raise ValueError(f"{path}: no column {name}; accepted: {names}")
    measured = [column for column in header if LATENCY.fullmatch(column) or column in RATES]
    if not measured:
        bare = [column for column in header if BARE.fullmatch(column)]
        hint = f"; column {quoted(bare[0])} does not say its unit" if bare else ""
        raise ValueError(
            f"{path}: no measured column{hint}; accepted: such as ttft_s, median_tpot_ms,"
            f" p99_e2el_s, {', '.join(RATES)}"
        )
    return found | {column: column for column in measured}


def _one_engine(path: Path, header: list[str], lines: list[list[str]]) -> None:
    """Refuse a table of several models or GPUs, and engines on more than one GPU."""
    for name in (*SAME, "tp_size", "pp_size"):
        if name not in header:
            continue
        place = header.index(name)
        values = {line[place].strip() for line in lines if len(line) == len(header)}
        if len(values) > 1:
            some = ", ".join(sorted(values)[:3])
            raise ValueError(f"{path}: column {name} holds {some}; keep the rows of one of them")
        if name.endswith("_size") and values - {"1", "1.0", ""}:
            raise ValueError(f"{path}: {name} is {values.pop()}; accepted: engines on one GPU, 1")


def _row(place: str, cells: dict[str, str], columns: dict[str, str]) -> EngineRow:
    def number(name: str) -> float | None:
        column = columns.get(name)
        if column is None or not cells[column].strip():
            return None
        return _number(cells[column], f"{place}, column {column}", name)

    def whole(name: str) -> int | None:
        value = number(name)
        if value is None:
            return None
        if not isfinite(value) or value != int(value):
            raise ValueError(f"{place}, column {columns[name]}: {value:g}; accepted: whole numbers")
        return int(value)

    prompt, output = whole("prompt_tokens"), whole("output_tokens")
    if prompt is None or output is None:
        missing = "prompt_tokens" if prompt is None else "output_tokens"
        raise ValueError(f"{place}, column {columns[missing]}: empty; accepted: a whole number")
    burstiness = number("burstiness")
    load = Load(
        prompt,
        output,
        concurrency=whole("concurrency"),
        rate=number("request_rate"),
        burstiness=1.0 if burstiness is None else burstiness,
        requests=whole("num_prompts"),
    )
    measured = {}
    for column in columns:
        value = number(column)
        if value is None or column in ALIASES:
            continue
        if column in RATES:
            measured[column] = value
        elif latency := LATENCY.fullmatch(column):
            statistic, name, unit = latency.groups()
            statistic = "median" if statistic == "p50" else statistic or "mean"
            name = "e2el" if name == "e2e" else name
            measured[f"{statistic}_{name}"] = value * SECONDS[unit]
    return EngineRow(place, str(load), load.trace(place), measured)


def _number(text: str, place: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = nan
    unbounded = name in ("request_rate", "burstiness") and value == inf
    if not (isfinite(value) or unbounded) or value <= 0:
        raise ValueError(f"{place}: {quoted(text.strip())}; accepted: a number above 0")
    return value
