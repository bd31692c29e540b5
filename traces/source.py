"""Reading a trace file's bytes, and saying where in it a fault is."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
SHOWN = 40  # characters of an offending value that an error quotes


def read_text_bytes(path: Path) -> bytes:
    """The UTF-8 text of a plain or gzipped file, without a byte order mark, not yet decoded.

    An absent file raises :exc:`FileNotFoundError`; a directory, an unreadable file, a broken gzip
    and anything that is not text :exc:`ValueError`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"trace file {path} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a directory; a trace is one CSV or JSONL file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"trace file {str(path)!r} cannot be read: {reason}") from None
    if data.startswith(GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a broken gzip file: {error}") from None
    data = data.removeprefix(BOM)
    if not data.strip():
        raise ValueError(f"{path} is empty; a trace needs at least one request")
    _check_text(data, path)
    return data


def _check_text(data: bytes, path: Path) -> None:
    wrong = data.find(b"\0")
    if wrong < 0 and not data.isascii():
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            wrong = error.start
    if wrong >= 0:
        line = data.count(b"\n", 0, wrong) + 1
        raise ValueError(
            f"{path}, line {line}: byte {data[wrong]:#04x} is not UTF-8 text; accepted are CSV and "
            "JSONL, plain or gzipped"
        )


def quoted(value: object, shown: int = SHOWN) -> str:
    """A value as an error shows it: on one line, cut when it is long."""
    text = repr(value)
    return text if len(text) <= shown else text[: shown - 3] + "..."


def fault(path: Path, line: int, key: str, value: object, accepted: str) -> ValueError:
    """The error for one value: file, line, column or key, the value, and what is accepted."""
    return ValueError(f"{path}, line {line}: {key} is {quoted(value)}; accepted: {accepted}")
