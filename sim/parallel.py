"""Searches for several deployments at once, reported as they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from splitwiser.models.gpu import Gpu
from splitwiser.models.llm import Llm
from splitwiser.models.profile import Profile
from splitwiser.sim.deployment import Deployment
from splitwiser.sim.search import Capacity, Unattainable, capacity
from splitwiser.traces.trace import Trace

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every deployment: see `splitwiser.sim.search.capacity`."""

    llm: Llm
    gpu: Gpu
    profile: Profile
    goodput: Mapping[str, float]
    target: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Task:
    """A deployment (by its number) and the traffic to search with, as a worker gets it."""

    index: int
    deployment: Deployment
    trace: Trace
    guess: float | None
    tolerance: float


class Searches:
    """Runs tasks in processes, and counts them for *progress*: (ended, known of, name).

    *jobs* is the number of processes (None: one per core; 1: this process alone), *backend*
    joblib's name of another way to run them ("dask", "ray", "threading").
    """

    def __init__(
        self,
        question: Question,
        jobs: int | None = None,
        backend: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        if jobs is not None and jobs < 1:
            raise ValueError(f"jobs = {jobs}: the number of processes, 1 or more")
        self._question = question
        self._jobs = jobs
        self._backend = backend
        self._progress = progress
        self._ended = self._known = 0
        self.interrupted = False

    def run(self, tasks: Sequence[Task]) -> dict[int, Capacity | str]:
        """What each task found, by its index: a capacity, or why there is none.

        After an interrupt (Ctrl-C) the answers are those that had come, and `interrupted` is true.
        """
        found: dict[int, Capacity | str] = {}
        if self.interrupted:
            return found
        self._known += len(tasks)
        names = {task.index: task.deployment.name for task in tasks}
        try:
            for index, answer in self._answers(tasks):
                found[index] = answer
                self._ended += 1
                if self._progress is not None:
                    self._progress(self._ended, self._known, names[index])
        except KeyboardInterrupt:
            self.interrupted = True
        return {index: found[index] for index in sorted(found)}

    def _answers(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Capacity | str]]:
        """The answers in the order in which they come."""
        if self._backend is None and (self._jobs == 1 or len(tasks) == 1):
            yield from (answer(self._question, task) for task in tasks)
            return
        import joblib

        with joblib.parallel_config(backend=self._backend or "loky", n_jobs=self._jobs or -1):
            try:
                parallel = joblib.Parallel(return_as="generator_unordered")
            except ValueError:  # a backend that gives its answers only all at once
                parallel = joblib.Parallel()
            yield from parallel(joblib.delayed(answer)(self._question, task) for task in tasks)


def answer(question: Question, task: Task) -> tuple[int, Capacity | str]:
    """Do one task; an objective that no rate meets is an answer too."""
    try:
        return task.index, capacity(
            task.deployment,
            task.trace,
            question.llm,
            question.gpu,
            question.profile,
            goodput=question.goodput,
            target=question.target,
            confidence=question.confidence,
            guess=task.guess,
            tolerance=task.tolerance,
        )
    except Unattainable as reason:
        return task.index, str(reason)
