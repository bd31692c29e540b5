"""`Pace`: how long a worker's steps take, so that the next one is launched in time, and not sooner."""

from __future__ import annotations

from splitwiser.validate.runtime.reporter import Flight

AHEAD = 0.15  # of a step's expected time: so long before its end the next one is launched,
LEAST_AHEAD = 0.5e-3  # and at least so many seconds


class Pace:
    """What one worker's last steps took: a decode step, and a prompt token."""

    def __init__(self) -> None:
        self._decode = 0.0  # s
        self._prompt = 0.0  # s for a token
        self._last_end = 0.0

    def next_launch(self, flight: Flight) -> float:
        """When (monotonic) to launch the step after *flight*, which is under way."""
        expected = self._share_of_decode(flight) + flight.prompt_tokens * self._prompt
        begun = max(flight.pending.launched, self._last_end)
        return begun + expected - max(AHEAD * expected, LEAST_AHEAD)

    def learn(self, flight: Flight) -> None:
        """Take note of a step that has ended."""
        self._last_end = flight.end
        seconds = flight.end - flight.start
        if flight.prompt_tokens:
            alone = seconds - self._share_of_decode(flight)
            self._prompt = max(alone, 0.0) / flight.prompt_tokens
        else:
            self._decode = seconds

    def _share_of_decode(self, flight: Flight) -> float:
        return self._decode if flight.decoded else 0.0
