"""The kernels among a raw file's measurements, as a table that a fit takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from splitwiser.models.llm import DTYPE_BYTES
from splitwiser.validate.calibration.kernel_bench import elementwise_bytes
from splitwiser.validate.calibration.kernel_table import COLUMNS, SAMPLER, KernelTable

ARGMAX = "argmax"  # the sampling of the runtime: its bytes are the table's float32 logits


def kernel_table(
    records: Iterable[Mapping[str, Any]], dtype: str, provenance: Mapping[str, str]
) -> KernelTable:
    """Return the kernels that *records* hold; those that failed are left out."""
    import pandas as pd

    rows: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        kind = record.get("table")
        if kind is None or "error" in record:
            continue
        row = dict(record)
        if kind == "elementwise":
            name, tokens, width = row["name"], row["tokens"], row["width"]
            row["bytes"] = elementwise_bytes(name, tokens, width, DTYPE_BYTES[dtype])
            if name == ARGMAX:
                row |= {"name": SAMPLER, "bytes": 4.0 * tokens * width}
        rows.setdefault(kind, []).append(
            {column: row[column] for column in (*COLUMNS[kind], "seconds")}
        )
    frames = {kind: pd.DataFrame(found) for kind, found in rows.items()}
    return KernelTable(frames, dtype, provenance)
