"""`Mailbox`: a worker's end of its pipe to the router."""

from __future__ import annotations

from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import Any

from splitwiser.validate.runtime.messages import Stop, send

Letter = tuple[float, Any]  # when a message came, and the message


class Mailbox:
    """Receives in a thread, so that a message's time is known while the worker waits for a step.

    Where the router has gone, the mailbox says `Stop`; where there was no memory for a message, it
    gives the MemoryError.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._letters: SimpleQueue[Letter] = SimpleQueue()
        self._sending = Lock()
        self.send_seconds = 0.0  # spent in `send`
        Thread(target=self._receive, name="mailbox", daemon=True).start()

    def send(self, message: object) -> None:
        """Send a message to the router; without effect where the router has gone."""
        begun = monotonic()
        with self._sending:
            try:
                send(self._connection, message)
            except OSError:
                self._letters.put((begun, Stop()))
            self.send_seconds += monotonic() - begun

    def wake(self) -> None:
        """Have `take` return, with nothing if nothing has come."""
        self._letters.put((monotonic(), None))

    def take(self, timeout: float | None) -> list[Letter]:
        """What has come; waits for something, *timeout* seconds at most (None: as long as it takes)."""
        letters: list[Letter] = []
        try:
            if timeout is None or timeout > 0:
                letters.append(self._letters.get(timeout=timeout))
            while True:
                letters.append(self._letters.get_nowait())
        except Empty:
            return [letter for letter in letters if letter[1] is not None]

    def _receive(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                self._letters.put((monotonic(), message))
        except (EOFError, OSError):
            self._letters.put((monotonic(), Stop()))
        except MemoryError as error:  # the worker raises it
            self._letters.put((monotonic(), error))
