"""What a run of the paper's code needs: an owner of the weights, and processes that `generate`.

`Stage` holds them; `Staggered` starts them one after another, as the paper's code does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Self

from splitwiser.models.llm import Llm
from splitwiser.sim.deployment import Deployment
from splitwiser.validate.runtime.children import TURN_S, Child, Children
from splitwiser.validate.runtime.device import GENERATE_PACKAGES, Device, check, cpu_threads, need
from splitwiser.validate.runtime.documents import tokenise
from splitwiser.validate.runtime.generate_worker import Ended, Loop, Seat, Serve, generate
from splitwiser.validate.runtime.messages import Ids, Ready, Stopped
from splitwiser.validate.runtime.mps import MpsDaemon
from splitwiser.validate.runtime.owner import own
from splitwiser.validate.runtime.scratch import Scratch
from splitwiser.validate.runtime.staff import Shared
from splitwiser.validate.runtime.weights import layout

SHARING = ("exclusive", "time_slice", "mps")


class Stage:
    """A context manager: the owner, and the generating processes of a deployment as they start.

    On entering, what cannot be had is refused (ValueError, ImportError, MemoryError) before any
    process starts; then the owner fills the weights: *go_on* is asked meanwhile, and where it says
    no, KeyboardInterrupt is raised. A process or an MPS daemon that dies raises `RunFailed`.
    """

    def __init__(
        self,
        llm: Llm,
        device: Device,
        deployment: Deployment,
        folder: Path | None,
        seed: int,
        go_on: Callable[[], bool] | None = None,
    ) -> None:
        self.llm, self.device, self.deployment = llm, device, deployment
        self._folder, self._seed, self._go_on = folder, seed, go_on
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._refuse()
        copies = self.deployment.processes if self.deployment.weights == "per_process" else 1
        on_cpu = self.device.kind == "cpu"
        need = layout(self.llm).nbytes * copies if on_cpu else 0
        with ExitStack() as stack:
            scratch = stack.enter_context(Scratch(need))
            self._daemon: MpsDaemon | None = None
            if self.deployment.sharing == "mps" and not on_cpu:
                self._daemon = stack.enter_context(MpsDaemon(scratch))
            # The start of every process is part of what is measured: none comes with torch.
            self.children = stack.enter_context(Children(scratch, self._fault, "spawn"))
            self._shared = Shared(
                self.llm,
                str(self.device),
                self.deployment,
                scratch.directory,
                self._folder,
                self._seed,
                (),
                0,
            )
            owner = self.children.start(
                "the owner of the weights", own, self._shared, variables=self._variables(None)
            )
            self._weights = self.children.receive(owner).weights
            self._go_on = None  # from here on the caller looks about between messages
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def start(self, number: int) -> Child:
        """Start generating process *number* of the deployment; it says `Ready`."""
        group = list(self.deployment.each())[number]
        cpu = self.device.kind == "cpu"
        # On a GPU one thread launches; more of them would only take cores from other processes.
        threads = cpu_threads(self.deployment)[number] if cpu else 1
        return self.children.start(
            f"generating process {number}",
            generate,
            self._shared,
            self._weights,
            Seat(number, threads),
            variables=self._variables(group.sm_percent),
        )

    def _refuse(self) -> None:
        if self.deployment.sharing not in SHARING:
            raise ValueError(
                f'sharing = "{self.deployment.sharing}": '
                f"the paper's code runs {', '.join(SHARING)}"
            )
        need(*GENERATE_PACKAGES)
        check(self.deployment, self.device)

    def _variables(self, sm_percent: float | None) -> dict[str, str]:
        return {} if self._daemon is None else self._daemon.environment(sm_percent)

    def _fault(self) -> str | None:
        if self._go_on is not None and not self._go_on():
            raise KeyboardInterrupt
        lost = self._daemon is not None and not self._daemon.alive()
        return "the MPS daemon died" if lost else None


class Shard(NamedTuple):
    """One process's part of the documents, and how many tokens of each are wanted."""

    texts: Sequence[str]
    lengths: Sequence[int]


class Staggered:
    """The start of the paper's code: tokenise a shard, start its process, go on to the next shard.

    *order* says what process r shall do, given its ids. Times are monotonic.
    """

    def __init__(
        self,
        stage: Stage,
        tokenizer: str,
        shards: Sequence[Shard],
        order: Callable[[int, list[Ids]], Loop | Serve],
    ) -> None:
        self.tokenised: list[float] = []  # when each shard's ids had come
        self.ready: dict[int, Ready] = {}
        self.ready_at: dict[int, float] = {}
        self.workers: dict[int, Child] = {}
        self._stage, self._tokenizer, self._shards, self._order = stage, tokenizer, shards, order
        self._orders: dict[int, Loop | Serve] = {}
        self._done: set[int] = set()

    def messages(self) -> Iterator[tuple[int, Any] | None]:
        """What the processes say beside `Ready`, until each has said `Ended` or `Stopped`.

        None comes at least every half a second, so that the caller can look about.
        """
        children = self._stage.children
        tokeniser = self._next()
        while len(self._done) < len(self._shards):
            workers = {c: n for n, c in self.workers.items() if n not in self._done}
            waiting = [*workers] if tokeniser is None else [*workers, tokeniser]
            for child in children.ready(waiting, TURN_S / 2):
                message = children.read(child)
                if child is tokeniser:
                    tokeniser = self._begin(message)
                elif isinstance(message, Ready):
                    self._set_to_work(workers[child], message)
                else:
                    if isinstance(message, Ended | Stopped):
                        self._done.add(workers[child])
                    yield workers[child], message
            yield None

    def _next(self) -> Child | None:
        number = len(self.tokenised)
        if number == len(self._shards):
            return None
        shard = self._shards[number]
        name = f"tokenising process {number}"
        return self._stage.children.start(name, tokenise, self._tokenizer, *shard)

    def _begin(self, ids: list[Ids]) -> Child | None:
        """Start the process of the shard that came, and the tokeniser of the next."""
        number = len(self.tokenised)
        self.tokenised.append(monotonic())
        self._orders[number] = self._order(number, ids)
        self.workers[number] = self._stage.start(number)
        return self._next()

    def _set_to_work(self, number: int, ready: Ready) -> None:
        self.ready[number], self.ready_at[number] = ready, monotonic()
        self._stage.children.send(self.workers[number], self._orders.pop(number))
