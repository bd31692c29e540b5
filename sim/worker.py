"""What all workers have in common: a process on the shared GPU that admits prompts and computes
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from math import inf
from typing import Any, TypeVar

from simpy import Event

from splitwiser.models.cost import StepCost
from splitwiser.models.work import prompt_pairs
from splitwiser.sim.decoding import Decoder
from splitwiser.sim.log import pack_stay

T = TypeVar("T")
Steps = Generator[Event, Any, None]

# Prompts that are computed in one step: of each the request, the KV tokens when it is done, and how
# many of them were found in the prefix cache.
Prompts = list[tuple[int, int, int]]


class Worker(Decoder, ABC):
    """A process that schedules.

    Subclasses say in `run` what they do next; what they wait for brings the time.
    """

    @abstractmethod
    def run(self) -> Steps:
        """The life of the process, for SimPy."""

    def after(self, seconds: float, act: Callable[[T], None], item: T) -> None:
        """Do `act(item)` when `seconds` have passed."""
        timer = self.env.timeout(seconds)
        timer.callbacks.append(lambda _: act(item))

    def admit(self, room: int) -> Prompts:
        """Take what waits, in order, that fits the pool, `room` sequences and `max_tokens` tokens.

        A prompt longer than `max_tokens` runs alone (vLLM without chunking refuses it); the memory
        plan has room for the longest.
        """
        waiting, pool, world = self.queue.waiting, self.pool, self.world
        generated = world.generated
        prompts: Prompts = []
        new_tokens = 0
        while waiting and len(prompts) < room:
            request = waiting[0]
            tokens = world.prompt_tokens[request]
            if generated and request in generated:
                tokens = world.tokens_to_compute(request)
            if prompts and new_tokens + tokens > self.max_tokens:
                break
            if not pool.fits(request, tokens, self.watermark):
                break
            waiting.popleft()
            reused = pool.admit(request, tokens)
            if reused and not (generated and request in generated):
                self.log.reused[request] = reused
            prompts.append((request, tokens, reused))
            new_tokens += tokens - reused
        if prompts and self.queue.is_shared:
            self.queue.head_changed()
        return prompts

    def start_prefill(self, prompts: Prompts, now: float) -> Event:
        """Compute whole prompts in one step."""
        scheduled = self.log.scheduled
        for request, _, _ in prompts:
            if scheduled[request] != scheduled[request]:  # still NaN: it is scheduled first now
                scheduled[request] = now
        request, tokens, reused = prompts[0]
        if len(prompts) > 1 or reused:
            tokens, cost = self._cost_of(prompts)
        else:
            known = self._prompt_costs.get(tokens)
            if known is None:
                known = self._prompt_costs[tokens] = self._cost_of(prompts)[1]
            cost = known
        task = self.task
        task.batch = task.joined = 0
        return self.start_step(cost, 0, tokens, now)

    def _cost_of(self, prompts: Prompts) -> tuple[int, StepCost]:
        """The tokens that prompts have to be computed, and what that costs in one step."""
        new_tokens = 0
        pairs = kv = 0.0
        for _, tokens, reused in prompts:
            causal, read = prompt_pairs(tokens - reused, reused, self.world.window)
            new_tokens += tokens - reused
            pairs += causal
            kv += read
        return new_tokens, self.cost.step(new_tokens, len(prompts), pairs, kv, 0)

    def start_step(self, cost: StepCost, attended: int, tokens: int, now: float) -> Event:
        """Begin a step that computes `tokens` prompt tokens; the task says who decodes in it."""
        task = self.task
        task.first = cost.seconds(attended)
        task.growth = 0.0
        task.steps = 1
        task.tokens = tokens
        task.blocks = self.pool.total - self.pool.free
        task.break_at = inf
        if self._needs_demand:
            task.demand = cost.demand(attended)
        return self.device.start(task, now)

    def end_prefill(self, prompts: Prompts, now: float) -> None:
        """The prompts are computed, and give a token each; `computed` says where they go on."""
        world, pool = self.world, self.pool
        for request, tokens, _ in prompts:
            pool.publish(request)
            if world.generated and request in world.generated:
                # A stay without a step tells of this token.
                step = self.batch.step
                self._write_stay(pack_stay(request, self.index, step, step, now))
            remaining = world.emit_first(request, now)
            if remaining:
                self.computed(request, tokens, remaining, now)
            else:
                pool.release(request, tokens)
                world.finish(request, now)

    def computed(self, request: int, tokens: int, remaining: int, now: float) -> None:
        """A prompt is computed: its sequence decodes here."""
        self.batch.add(request, tokens, remaining, now)
