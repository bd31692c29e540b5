"""Files that come whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(*paths: str | Path) -> Iterator[list[Path]]:
    """Temporary files beside *paths* that take their places if all goes well, and else vanish.

    Raises OSError, in one line, where a path cannot be written.
    """
    targets = [Path(path) for path in paths]
    temporary: list[Path] = []
    try:
        for target in targets:
            if target.is_dir():
                raise IsADirectoryError(0, "it is a directory", str(target))
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
            os.close(handle)
            temporary.append(Path(name))
            Path(name).chmod(0o666 & ~_umask())
        yield temporary
        for source, target in zip(temporary, targets, strict=True):
            source.replace(target)
    except OSError as error:
        place = targets[min(len(temporary), len(targets) - 1)]
        place = targets[min(len(temporary), len(targets) - 1)]
        raise OSError(
            f"cannot write {place}: {error.strerror or error}; "
            "give a path in an existing directory that may be written"
        ) from None
    finally:
        for source in temporary:
            source.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
