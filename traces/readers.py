"""Reading a trace file of any known format, recognised by its content."""

from __future__ import annotations

import difflib
from pathlib import Path

from splitwiser.traces.csv_formats import CSV_FORMATS, csv_format, read_csv
from splitwiser.traces.jsonl_formats import READERS, jsonl_format
from splitwiser.traces.source import quoted, read_text_bytes
from splitwiser.traces.trace import Trace

FORMATS: dict[str, str] = {
    "azure": "CSV: TIMESTAMP, ContextTokens, GeneratedTokens (Azure LLM inference, 2023 and 2024)",
    "mooncake": "JSON lines: timestamp in ms, input_length, output_length, hash_ids (512 tokens)",
    "bailian": "JSON lines: chat_id, parent_chat_id, timestamp in s, lengths, hash_ids (16 tokens)",
    "burstgpt": "CSV: Timestamp in s, [Session ID], Request tokens, Response tokens",
    "lengths": "CSV: num_prefill_tokens, num_decode_tokens, [arrived_at in s] (Vidur's)",
}


def read_trace(
    path: str | Path, *, format: str | None = None, spread: bool = True, seed: int = 0
) -> Trace:
    """Read a trace file, plain or gzipped, in one of :data:`FORMATS`.

    The format is recognised by content unless *format* names it. Requests are sorted by arrival and
    shifted so that the first arrives at 0; requests without output tokens (failures, in every
    format) are dropped. Mooncake's stamps, where they are rounded to 3 s, are spread uniformly in
    their bins by *seed* unless *spread* is false: left alone, they are bursts that never were
    (the gaps' coefficient of variation is 3.0 and not 1.01). The trace's notes tell all of this.

    The first fault raises :exc:`ValueError`, in one line that names the file, line, column, value
    and what is accepted; an absent file raises :exc:`FileNotFoundError`.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown trace format {format!r}{hint} (accepted: {', '.join(FORMATS)})")
    data = read_text_bytes(path)
    name = format or _sniff(data, path)
    rows = read_csv(data, path, name) if name in CSV_FORMATS else READERS[name](data, path)
    return rows.trace(spread=spread, seed=seed)


def sniff(path: str | Path) -> str:
    """The format of a trace file, by its content: a key of :data:`FORMATS`."""
    path = Path(path)
    return _sniff(read_text_bytes(path), path)


def _sniff(data: bytes, path: Path) -> str:
    lead = len(data) - len(data.lstrip())
    number = data.count(b"\n", 0, lead) + 1
    line = data[lead : end if (end := data.find(b"\n", lead)) >= 0 else len(data)].strip()
    if line.startswith(b"{"):
        return jsonl_format(line, path, number)
    if line.startswith(b"["):
        raise ValueError(
            f"{path}, line {number}: {quoted(line.decode())} opens a JSON array; accepted is one "
            "JSON object a line"
        )
    return csv_format(line.decode(), path)
