"""How far long work is, on stderr; and how it is told to stop."""

from __future__ import annotations

import signal
import sys
from time import monotonic
from typing import Any, Self

from splitwiser.cli.console import note

INTERRUPTED = 130  # exit status: 128 + SIGINT, as a shell reports it
QUIET_S = 10.0  # seconds between two lines of progress, where there is no terminal


class Progress:
    """Progress on stderr: a bar where that is a terminal, else a line every `QUIET_S`."""

    def __init__(self, label: str, done: str) -> None:
        self._label = label
        self._done = done

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn(self._label),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._told = self._began = monotonic()
        self._bar.start()
        self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, known: int, name: str = "") -> None:
        """Show that *done* of *known* parts are over, the last that of *name*."""
        self._bar.update(self._task, completed=done, total=known, description=name)
        if self._bar.disable and monotonic() - self._told >= QUIET_S:
            self._told = monotonic()
            note(f"{self._label}: {done} of {known} {self._done}{self._left(done, known)}")

    def _left(self, done: int, known: int) -> str:
        """About how long the rest takes, as long as what is done did for each part."""
        if not 0 < done < known:
            return ""
        seconds = (monotonic() - self._began) * (known - done) / done
        return f", about {seconds:.0f} s left"


class Stop:
    """Within it, Ctrl-C only asks the work to stop (`asked`); a second one ends it at once."""

    asked = False

    def __enter__(self) -> Self:
        try:
            self._before = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not the main thread: no signal comes here
            self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
