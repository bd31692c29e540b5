"""Workers without a device: they speak the messages of the runtime, and generate by a rule."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from time import monotonic

import numpy as np

from splitwiser.validate.runtime.messages import (
    Aborted,
    Computed,
    Failed,
    Preempted,
    Prompt,
    Sequence,
    Step,
    Stop,
    Stopped,
)


def token_at(request: int, position: int) -> int:
    """The token that a request generates at a position of its sequence."""
    return (request * 7919 + position * 31) % 50_000


def prompt_of(request: int, tokens: int) -> np.ndarray:
    """The token ids of a request's prompt."""
    return ((np.arange(tokens) + request) % 50_000).astype(np.int32)


@dataclass
class Habits:
    """How a stand-in behaves: steps of so many seconds; now and then it preempts, or worse.

    After *steps* steps it does as *fault* says: "kill", "exit", "fail", "memory" or "stall".
    """

    seconds: float = 0.0
    preempts: float = 0.0
    aborts: int = -(10**9)  # this request
    fault: str = ""
    steps: int = 0
    seen: list[tuple[int, float]] = field(default_factory=list)  # requests, and when they came
    urgent: list[int] = field(default_factory=list)  # of them, those of urgent prompts


class StandIn:
    def __init__(self, connection: Connection, index: int, phase: str, habits: Habits) -> None:
        self.connection, self.index, self.phase, self.habits = connection, index, phase, habits
        self.random = random.Random(index)
        self.waiting: deque[Prompt] = deque()
        self.batch: dict[int, tuple[list[int], int]] = {}  # tokens, and how many are to come
        self.received: list[tuple[int, float]] = []
        self.steps = 0

    def run(self) -> None:
        """Work until the router says stop, or has gone."""
        try:
            while self.listen():
                if self.waiting:
                    self.compute()
                else:
                    self.preempt()
                    if self.batch:
                        self.decode()
        except (EOFError, OSError):
            return
        self.connection.send(Stopped(self.index, {"steps": self.steps}))

    def listen(self) -> bool:
        while self.connection.poll(0 if self.waiting or self.batch else None):
            message = self.connection.recv()
            self.habits.seen.append((getattr(message, "request", 0), monotonic()))
            match message:
                case Stop():
                    return False
                case Prompt(urgent=True):
                    self.habits.urgent.append(message.request)
                    self.waiting.appendleft(message)
                case Prompt():
                    self.waiting.append(message)
                case Sequence(request, token, length, outputs, blocks):
                    assert blocks.tolist() == [request % 100, 3]
                    self.batch[request] = ([0] * length + [token], outputs)
                    self.received.append((request, monotonic()))
        return True

    def compute(self) -> None:
        begun = monotonic()
        prompts = [self.waiting.popleft() for _ in range(min(4, len(self.waiting)))]
        computed = []
        for request, tokens, outputs, _ in prompts:
            token = token_at(request, len(tokens))
            blocks = None
            if outputs > 1 and self.phase == "prefill":
                blocks = np.array([request % 100, 3], np.int32)
            elif outputs > 1:
                self.batch[request] = ([*tokens.tolist(), token], outputs - 1)
            computed.append(Computed(request, token, blocks))
        scheduled = tuple(p.request for p in prompts if not p.urgent)
        self.tell(begun, scheduled, [], tuple(computed), sum(len(p.tokens) for p in prompts))

    def decode(self) -> None:
        begun = monotonic()
        members = list(self.batch)
        for request in members:
            tokens, outputs = self.batch[request]
            tokens.append(token_at(request, len(tokens)))
            self.batch[request] = (tokens, outputs - 1)
        self.tell(begun, (), members, (), 0)
        self.batch = {r: member for r, member in self.batch.items() if member[1]}

    def tell(
        self,
        begun: float,
        scheduled: tuple[int, ...],
        members: list[int],
        computed: tuple[Computed, ...],
        prompt_tokens: int,
    ) -> None:
        time.sleep(self.habits.seconds)
        tokens = [self.batch[request][0][-1] for request in members]
        received, self.received = tuple(self.received), []
        step = Step(
            self.index,
            begun,
            monotonic(),
            scheduled,
            np.array(members, np.int32),
            np.array(tokens, np.int32),
            computed,
            prompt_tokens,
            len(self.batch),
            received,
        )
        self.connection.send(step)
        self.steps += 1
        if self.habits.fault and self.steps == self.habits.steps:
            self.go_wrong()

    def preempt(self) -> None:
        for request in list(self.batch):
            tokens, outputs = self.batch[request]
            if request == self.habits.aborts:
                del self.batch[request]
                self.connection.send(Aborted(self.index, request))
            elif self.random.random() < self.habits.preempts:
                del self.batch[request]
                kept = self.phase == "both"
                if kept:
                    again = Prompt(request, np.array(tokens, np.int32), outputs, True)
                    self.waiting.appendleft(again)
                self.connection.send(Preempted(self.index, request, kept))

    def go_wrong(self) -> None:
        match self.habits.fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "fail":
                self.connection.send(Failed(self.index, "ValueError: no such block"))
            case "memory":
                self.connection.send(Failed(self.index, "out of memory: 7 bytes wanted"))
                os._exit(1)
            case "stall":
                time.sleep(60)


def work(connection: Connection, index: int, phase: str, habits: Habits) -> None:
    """The life of a stand-in."""
    StandIn(connection, index, phase, habits).run()


def surroundings(connection: Connection) -> None:
    """The work of a process: tell its environment, and what it does about Ctrl-C."""
    connection.send((dict(os.environ), signal.getsignal(signal.SIGINT)))
