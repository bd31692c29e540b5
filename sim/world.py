"""What the workers of one simulation share: the device, the traffic, and the fate of every request."""

from __future__ import annotations

from dataclasses import dataclass, field

from simpy import Environment

from splitwiser.sim.device import Device
from splitwiser.sim.log import Log
from splitwiser.sim.queues import Source


class Link:
    """A way for copies: PCIe, or one place of the device's memory to another; one copy at a time.

    Copies slow no step beside them: their traffic is small against a step's.
    """

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._free_at = 0.0

    def copy(self, seconds: float) -> float:
        """Begin a copy of so many seconds behind those under way; the time until it has ended."""
        now = self._env.now
        self._free_at = max(now, self._free_at) + seconds
        return self._free_at - now


@dataclass(slots=True)
class World:
    """What the workers of one simulation share."""

    env: Environment
    device: Device
    log: Log
    source: Source
    prompt_tokens: list[int]
    output_tokens: list[int]
    window: int | None
    swap: bool  # preempt by swapping to host memory, not by recomputing
    swap_seconds_per_block: float
    host_link: Link
    generated: dict[int, tuple[int, float]] = field(default_factory=dict)  # of preempted requests

    def tokens_to_compute(self, request: int) -> int:
        """The prompt, and after a preemption also what had been generated."""
        if request in self.generated:
            return self.prompt_tokens[request] + self.generated[request][0]
        return self.prompt_tokens[request]

    def remaining(self, request: int, tokens: int) -> int:
        """Output tokens to come for a sequence with `tokens` KV tokens (the last has none yet)."""
        return self.prompt_tokens[request] + self.output_tokens[request] - tokens - 1

    def emit_first(self, request: int, now: float) -> int:
        """A prompt is computed and gives a token; how many are then still to come."""
        if request in self.generated:
            generated, last_token = self.generated.pop(request)
            self.log.regained.append(now - last_token)
            return self.output_tokens[request] - generated - 1
        self.log.first_token[request] = now
        return self.output_tokens[request] - 1

    def finish(self, request: int, now: float) -> None:
        """A request got its last token."""
        self.log.finished[request] = now
        if self.source.is_closed:
            self.source.complete(now)

    def abort(self, request: int, now: float) -> None:
        """A request that the pool cannot hold even alone leaves unfinished."""
        self.log.outcome[request] = Log.ABORTED
        self.source.complete(now)
