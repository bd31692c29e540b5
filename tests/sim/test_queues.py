"""Where requests wait: arrival, order, concurrency limit."""

from __future__ import annotations

from collections.abc import Generator
from math import inf

from simpy import Environment, Event

from splitwiser.sim.admission import waiting_line
from splitwiser.sim.queues import Queue, Source

Life = Generator[Event, None, None]


def line(
    arrival: list[float], limit: int | None = None, never: frozenset[int] = frozenset()
) -> tuple[Environment, Source, Queue]:
    env = Environment()
    source = Source(env, arrival, limit)
    queue = Queue(env, source, range(len(arrival)), waiting_line("fcfs", []))
    source.queues.append(queue)
    source.never = never
    source.begin()
    return env, source, queue


def test_shortest_prompt_first() -> None:
    """The shortest prompt is served first, the earlier of equal ones, and preempted requests before
    all.
    """
    waiting = waiting_line("shortest_prompt", [30, 10, 20, 10])
    for request in range(4):
        waiting.append(request)
    waiting.appendleft(2)
    assert waiting[0] == 2
    assert [waiting.popleft() for _ in range(5)] == [2, 1, 3, 2, 0]


def test_requests_are_pulled_when_they_have_arrived() -> None:
    """A line holds what has arrived, and knows when the next one comes."""
    _, _, queue = line([1.0, 2.0, 5.0])
    queue.pull(2.0)
    assert list(queue.waiting) == [0, 1]
    assert queue.next_at == 5.0
    queue.pull(9.0)
    assert queue.next_at == inf


def test_a_closed_loop_issues_on_completion() -> None:
    """With two in flight the third request arrives when one of them leaves, and not before its own
    time.
    """
    _, source, queue = line([0.0, 0.0, 0.0, 7.0], limit=2)
    queue.pull(0.0)
    assert list(queue.waiting) == [0, 1]
    assert queue.next_at == inf
    source.complete(3.0)
    assert queue.next_at == 3.0
    queue.pull(3.0)
    source.complete(4.0)
    assert queue.next_at == 7.0
    assert source.arrival == [0.0, 0.0, 3.0, 7.0]


def test_a_closed_loop_sees_a_request_once_the_frontend_has_handed_it_on() -> None:
    """A completion issues the next request, which reaches the scheduler the frontend's time later."""
    env = Environment()
    source = Source(env, [0.5, 0.5], 1, frontend=0.5)
    source.queues.append(Queue(env, source, range(2), waiting_line("fcfs", [])))
    source.begin()
    source.complete(3.0)
    assert source.arrival == [0.5, 3.5]


def test_a_request_that_can_never_be_served_frees_its_place_when_it_arrives() -> None:
    """Also if nobody looks at its line then."""
    env, source, queue = line([0.0, 2.0, 0.0], limit=2, never=frozenset({1}))
    env.run()
    assert env.now == 2.0
    assert source.arrival[2] == 2.0
    queue.pull(2.0)
    assert list(queue.waiting) == [0, 2]


def test_an_idle_worker_wakes_at_the_next_arrival_and_earlier_when_called() -> None:
    """Waiting ends with the arrival; `wake` ends it at once, for everybody, and loses nobody."""
    env, _, queue = line([4.0, 9.0])
    seen: list[tuple[str, float]] = []

    def worker(name: str) -> Life:
        while len(seen) < 6:
            yield queue.wait()
            seen.append((name, env.now))
            queue.pull(env.now)

    def caller() -> Life:
        yield env.timeout(1.0)
        queue.wake()

    for name in "ab":
        env.process(worker(name))
    env.process(caller())
    env.run(10.0)
    assert seen == [("a", 1.0), ("b", 1.0), ("a", 4.0), ("b", 4.0), ("a", 9.0), ("b", 9.0)]


def test_who_waits_anew_before_a_wake_arrives_is_woken_by_the_next() -> None:
    """A wake that is under way does not forget those who come to wait after it."""
    env, _, queue = line([50.0])
    queue.pull(50.0)  # nothing more arrives: only calls wake
    seen: list[float] = []

    def sleeper() -> Life:
        yield queue.wait()
        seen.append(env.now)

    def busy() -> Life:
        yield env.timeout(1.0)
        queue.wake()
        yield queue.wait()  # before the wake has come
        seen.append(env.now)

    def caller() -> Life:
        yield env.timeout(2.0)
        queue.wake()

    for life in (sleeper(), busy(), caller()):
        env.process(life)
    env.run()
    assert seen == [1.0, 2.0]
