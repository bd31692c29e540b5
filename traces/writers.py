"""Writing a trace in Mooncake's format, the one that most serving benchmarks replay."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from splitwiser.traces.jsonl_formats import MOONCAKE_BLOCK_TOKENS
from splitwiser.traces.trace import Trace

CHUNK_ROWS = 10_000


def write_mooncake(trace: Trace, path: str | Path) -> None:
    """Write *trace* as Mooncake JSON lines: all of it or nothing.

    Stamps are in ms, not rounded to whole ones. Smaller prefix blocks (Bailian's) are joined to
    Mooncake's 512 tokens. `session_id` (AIPerf's key) and `adapter` are written where the trace has
    them. `max_concurrency` has no place in the format: give it again when the file is replayed.
    Read back, the trace is the same but for an arrival's last digit, shifted to begin at 0.

    A path that cannot be written, or prefix blocks that do not divide 512 tokens, raise
    :exc:`ValueError`.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a rename would replace a device
        raise ValueError(f"{path} cannot be written: it is not a regular file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    opened = False
    try:
        with temporary.open("x", encoding="utf-8") as file:
            opened = True
            file.writelines(_lines(trace))
        temporary.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        if opened:
            temporary.unlink(missing_ok=True)


def _lines(trace: Trace) -> Iterator[str]:
    blocks = _blocks(trace)
    for start in range(0, len(trace), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        rows = zip(
            (trace.arrival[part] * 1000.0).tolist(),
            trace.prompt_tokens[part].tolist(),
            trace.output_tokens[part].tolist(),
            strict=True,
        )
        for request, (stamp, prompt, output) in enumerate(rows, start):
            row: dict[str, object] = {
                "timestamp": int(stamp) if stamp.is_integer() else stamp,
                "input_length": prompt,
                "output_length": output,
            }
            if blocks is not None:
                row["hash_ids"] = next(blocks)
            if trace.session is not None and trace.session[request] >= 0:
                row["session_id"] = int(trace.session[request])
            if trace.adapter is not None and trace.adapter[request] >= 0:
                row["adapter"] = int(trace.adapter[request])
            yield json.dumps(row) + "\n"


def _blocks(trace: Trace) -> Iterator[list[int]] | None:
    """The hash ids of each request, for blocks of 512 tokens."""
    prefix = trace.prefix
    if prefix is None:
        return None
    joined, rest = divmod(MOONCAKE_BLOCK_TOKENS, prefix.block_tokens)
    if rest:
        raise ValueError(
            f"prefix blocks of {prefix.block_tokens} tokens cannot be written: Mooncake's have "
            f"{MOONCAKE_BLOCK_TOKENS}, which they do not divide"
        )
    rows = (prefix.row(request).tolist() for request in range(len(trace)))
    return rows if joined == 1 else _join(rows, joined)


def _join(rows: Iterator[list[int]], joined: int) -> Iterator[list[int]]:
    """One id for every *joined* blocks, the same only where these and all before are the same."""
    known: dict[tuple[int, ...], int] = {}
    for row in rows:
        ids: list[int] = []
        before = -1
        for start in range(0, len(row), joined):
            before = known.setdefault((before, *row[start : start + joined]), len(known))
            ids.append(before)
        yield ids
