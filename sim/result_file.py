"""Results as files: one JSON object with vLLM's keys, and parquet tables."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from splitwiser.sim.atomic import replacing
from splitwiser.sim.gaps import Floats
from splitwiser.sim.log import STAY, STRETCH
from splitwiser.sim.result import COLUMNS, OUTCOMES, Result, plain
from splitwiser.sim.timeline import Timeline

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("stretch", "stay", "regained")  # of the rows in the timeline's table


def save(
    result: Result,
    stem: str | Path,
    *,
    goodput: Mapping[str, float] | None = None,
    percentiles: Sequence[float] = (99,),
    detailed: bool = False,
) -> list[Path]:
    """Write STEM.json, STEM.parquet and STEM.timeline.parquet; their paths.

    They hold the summary and `meta`, a row per request, and the rows of the time line.
    A stem that ends with ".json" counts without it. The files come whole or not at all. *goodput*
    (s) and *percentiles* as in `Result.summary`; *detailed* adds vLLM's `--save-detailed` lists.
    Raises OSError where the place cannot be written.
    """
    paths = _paths(stem)
    content = plain(result.summary(goodput, percentiles))
    content["goodput"] = None if not goodput else {f"{k}_ms": v * 1e3 for k, v in goodput.items()}
    content["versions"] = _versions()
    content["meta"] = result.meta
    if detailed:
        content |= plain(result.detailed())
    with replacing(*paths) as (text, requests, timeline):
        text.write_text(json.dumps(content, indent=None if detailed else 2, allow_nan=False) + "\n")
        result.requests.to_parquet(requests, index=False)
        _timeline_table(result.timeline).to_parquet(timeline, index=False)
    return paths


def load(stem: str | Path) -> Result:
    """Read the files of `save`.

    Raises FileNotFoundError where one is missing, ValueError where one is not a saved result.
    """
    import pandas as pd

    text, requests, timeline = _paths(stem)
    for path in (text, requests, timeline):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; a saved result has {text.name}, "
                f"{requests.name} and {timeline.name}"
            )
    try:
        meta = json.loads(text.read_text(encoding="utf-8"))["meta"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{text}: not a saved result: a JSON object with "meta" is needed ({error})'
        ) from None
    try:
        table = pd.read_parquet(requests)
        columns = {name: table[name].to_numpy() for name in COLUMNS if name != "outcome"}
        words = table["outcome"].astype(str)
        codes = (
            words.map({word: code for code, word in enumerate(OUTCOMES)}).to_numpy().astype(np.int8)
        )
        rows = _timeline(pd.read_parquet(timeline))
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{requests} and {timeline.name}: not a saved result ({reason})") from None
    return Result(**columns, outcome=codes, timeline=rows, meta=meta)


def _paths(stem: str | Path) -> list[Path]:
    path = Path(stem)
    if path.suffix == ".json":
        path = path.with_suffix("")
    return [path.with_name(path.name + end) for end in (".json", ".parquet", ".timeline.parquet")]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("splitwiser", "numpy", "simpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            versions[name] = "unknown"
    return versions


def _timeline_table(timeline: Timeline) -> pd.DataFrame:
    """All rows of a time line in one table: `kind` says which, and foreign columns are null."""
    import pandas as pd

    parts = (
        pd.DataFrame(timeline.stretches, columns=list(STRETCH)),
        pd.DataFrame(timeline.stays, columns=list(STAY)),
        pd.DataFrame({"gap": timeline.regained}),
    )
    table = pd.concat(parts, ignore_index=True)
    kinds = np.repeat(KINDS, [len(part) for part in parts])
    table.insert(0, "kind", pd.Series(kinds, dtype="category"))
    return table


def _timeline(table: pd.DataFrame) -> Timeline:
    def rows(kind: str, columns: Sequence[str]) -> Floats:
        return table.loc[table["kind"] == kind, list(columns)].to_numpy(np.float64)

    return Timeline(rows("stretch", STRETCH), rows("stay", STAY), rows("regained", ["gap"])[:, 0])
