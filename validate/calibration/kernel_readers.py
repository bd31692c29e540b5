"""Reading tables of kernel times: which format a file has, and what is wrong with it.

A file's columns tell its format: the parquet tables of NVIDIA's aiconfigurator, the CSV profiles of
LLMServingSim, and CSV files of our own, whose columns are those of `COLUMNS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from splitwiser.models.llm import Llm, dtype_named
from splitwiser.validate.calibration.kernel_formats import FORMATS, NAMED_LAYERS, TEXTS, Part
from splitwiser.validate.calibration.kernel_table import COLUMNS, KernelTable
from splitwiser.validate.calibration.observations import CONTRADICTION

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 8  # rows from which a kind of kernel can be fitted


def read_kernels(
    *paths: Path | str, llm: Llm | None = None, dtype: str = "bfloat16"
) -> KernelTable:
    """Read tables of kernel times from files and folders of them.

    *llm* is the model of LLMServingSim profiles, whose layers have names and no sizes. Rows of
    another dtype than *dtype* are left out. Raises ValueError, or FileNotFoundError, of one line
    with file, row and column.
    """
    import pandas as pd

    dtype = dtype_named(dtype)
    files = [file for path in paths for file in _files(Path(path))]
    parts: list[Part] = []
    provenance = {"tables": ", ".join(file.name for file in files)}
    for file in files:
        found = _read(file, llm, dtype)
        parts += found
        provenance |= {key: text for part in found for key, text in part.provenance.items()}
    frames = {}
    for kind in COLUMNS:
        rows = [part.frame for part in parts if part.kind == kind]
        if rows:
            frames[kind] = _merged(kind, pd.concat(rows, ignore_index=True))
    return KernelTable(frames, dtype, provenance)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"no kernel times at {path}")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in (".csv", ".parquet"))
    if not files:
        raise ValueError(f"{path} holds no .csv or .parquet file")
    return files


def _read(file: Path, llm: Llm | None, dtype: str) -> list[Part]:
    """Return the parts of a file, checked, by the format that its columns tell."""
    import pandas as pd

    try:
        frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (OSError, ValueError, MemoryError) as error:  # pandas and pyarrow raise kinds of these
        reason = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"cannot read {file}: {reason[0]}") from None
    frame.columns = frame.columns.map(str)
    given = set(frame.columns)
    frame["place"] = range(2, len(frame) + 2) if file.suffix == ".csv" else range(len(frame))
    columns = next((columns for columns in FORMATS if given >= set(columns)), None)
    if columns is None:
        known = "; ".join(", ".join(columns) for columns in FORMATS)
        raise ValueError(
            f"{file}: columns {', '.join(sorted(given)[:8])} are no table of kernels; known are {known}"
        )
    read = FORMATS[columns]
    word = "line" if file.suffix == ".csv" else "row"
    for column in set(columns) - TEXTS:
        values = _numbers(frame[column])
        if values.isna().any():
            row = frame[values.isna()].iloc[0]
            raise ValueError(
                f"{file}, {word} {int(row['place'])}: {column} is {row[column]!s};"
                " expected a number"
            )
        frame[column] = values
    if columns in NAMED_LAYERS:
        if llm is None:
            raise ValueError(f"{file}: a profile of named layers needs the model they belong to")
        if llm.dtype != dtype:
            raise ValueError(f"{file}: the model is in {llm.dtype}, the table in {dtype}")
    try:
        parts = read(frame, llm, dtype)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if not parts:
        raise ValueError(f"{file}: no row is of a kernel that the cost model has")
    for part in parts:
        _check(file, part, word)
    return parts


def _check(file: Path, part: Part, word: str) -> None:
    """Raise ValueError for a value that is no size or time, contradictions, and too few rows."""
    frame = part.frame
    for column in (*COLUMNS[part.kind], "seconds"):
        if column == "name":
            continue
        values = frame[column]
        least = 0.0 if column in ("cached", "new", "bytes") else 1e-12
        wrong = ~((values >= least) & (values < 1e15))
        if wrong.any():
            row = frame[wrong].iloc[0]
            expected = "a number from 0" if least == 0.0 else "a positive number"
            raise ValueError(
                f"{file}, {word} {int(row['place'])}: {column} is {row[column]!s}; expected {expected}"
            )
    if len(frame) < FEWEST:
        raise ValueError(f"{file}: {len(frame)} rows of {part.kind}; at least {FEWEST} are needed")
    keys = frame.groupby(list(COLUMNS[part.kind]))["seconds"]
    apart = frame["seconds"] > CONTRADICTION * keys.transform("min")
    if apart.any():
        row = frame[apart].iloc[0]
        raise ValueError(
            f"{file}, {word} {int(row['place'])}: {row['seconds']:.4g} s, but another row of the same "
            f"kernel takes less than half of it"
        )


def _numbers(column: pd.Series) -> pd.Series[float]:
    """Return a column as numbers, NaN where it has none."""
    import pandas as pd

    numbers: pd.Series[float] = pd.to_numeric(column, errors="coerce").astype(float)
    return numbers


def _merged(kind: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each kernel, its median time, in order."""
    columns = list(COLUMNS[kind])
    return frame.groupby(columns)["seconds"].median().reset_index()
