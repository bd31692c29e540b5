"""What a simulation writes down while it runs: flat rows of numbers, read afterwards by numpy.

Packing doubles and appending the bytes is the cheapest record that Python has, and numpy reads it
in place.
"""

from __future__ import annotations

from array import array
from math import nan
from struct import Struct

import numpy as np
from numpy.typing import NDArray

# One stretch of a run at one rate. A run at one rate is one row; a run whose rate changed has
# several.
STRETCH = (
    "worker",
    "start",  # s
    "end",  # s
    "rate",  # seconds-alone of work done per second
    "done",  # seconds-alone done in this run when the stretch began
    "first",  # s alone, the run's first step
    "growth",  # s alone, each further step
    "steps",  # of the run done when the stretch ended; -1 while the run goes on
    "batch",  # sequences that get a token from each step
    "joined",  # of them, those whose first step is the run's first
    "tokens",  # prompt tokens computed
    "blocks",  # KV blocks in use in the worker's pool when the run ends
)

# One stay of a request in a decode batch: it got tokens from steps joined+1 ... left of that
# worker.
STAY = ("request", "worker", "joined", "left", "last_token")


pack_stretch = Struct(f"{len(STRETCH)}d").pack
pack_stay = Struct(f"{len(STAY)}d").pack


class Log:
    """The rows of one simulation, and the fate of every request.

    Times are seconds, NaN until they come. `outcome` is one of the codes below; a request that is
    in the system is waiting or running, which `scheduled` tells.
    """

    IN_SYSTEM, REJECTED, ABORTED = 0, 1, 2

    def __init__(self, requests: int) -> None:
        self.stretches = bytearray()  # of packed rows, as are the stays
        self.stays = bytearray()
        self.regained = array(
            "d"
        )  # gaps between a request's last token and the one its recompute gave
        self.scheduled = [nan] * requests
        self.first_token = [nan] * requests
        self.finished = [nan] * requests
        self.preemptions = array("i", [0]) * requests
        self.reused = array("q", [0]) * requests  # prompt tokens found in the prefix cache
        self.outcome = array("b", [0]) * requests

    def stretch_rows(self) -> NDArray[np.float64]:
        """The stretches as a matrix with the columns `STRETCH`."""
        return _rows(self.stretches, len(STRETCH))

    def stay_rows(self) -> NDArray[np.float64]:
        """The stays as a matrix with the columns `STAY`."""
        return _rows(self.stays, len(STAY))


def _rows(flat: bytearray, width: int) -> NDArray[np.float64]:
    return np.frombuffer(flat, dtype=np.float64).reshape(-1, width)
