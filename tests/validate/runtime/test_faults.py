"""Faults of whole runs, with real processes: how a run ends, what it keeps, and what it leaves."""

from __future__ import annotations

import json
import os
import random
import resource
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from test_execute import LLAMA, expected
from test_mps import STAND_IN
from whole_run import ENDS_S, STARTS_S, Run

from splitwiser.validate.runtime import guardian

if sys.platform != "linux":
    pytest.skip("processes are watched by /proc", allow_module_level=True)

PROMPT_S = 4.0  # one that is stopped early ends within so many
COMMAND = (sys.executable, "-m", "splitwiser", "run")
DEVICE = ("--model", "tiny-llama", "--device", "cpu", "--json")
LENGTHS = ("--random-input-len", "32", "--random-output-len", "40")
ENDLESS = (*DEVICE, *LENGTHS, "--request-rate", "20", "--num-prompts", "2000")
SHORT = (*DEVICE, *LENGTHS, "--request-rate", "20", "--num-prompts", "10")

THREADS = """
sharing = "streams"
[[workers]]
phase = "prefill"
[[workers]]
phase = "decode"
"""

AGAIN = """
import sys
from splitwiser.models.catalogue import llm
from splitwiser.sim.deployment import continuous
from splitwiser.traces.arrivals import constant
from splitwiser.traces.trace import Trace
from splitwiser.validate import RunFailed, execute

def say(line):
    print("note:", line, file=sys.stderr, flush=True)

def served(requests):
    trace = Trace(constant(requests, 20.0), [32] * requests, [40] * requests)
    return execute(trace, continuous(), llm("tiny-llama"), "cpu", say=say)

if __name__ == "__main__":
    try:
        served(2000)
    except RunFailed as error:
        result = error.result
        print(error)
        print(result.meta["backend"], result.completed.sum(), len(result))
    print(served(5).completed.sum())
"""
TOKENS = """
import json
from splitwiser.models.catalogue import llm
from splitwiser.sim.deployment import split
from splitwiser.validate import execute
from test_execute import LLAMA, traffic

if __name__ == "__main__":
    tokens = {}
    execute(traffic(), split(), llm(LLAMA), "cpu", tokens=tokens)
    print(json.dumps([tokens[request] for request in sorted(tokens)]))
"""
WITH_MPS = """
from splitwiser.cli import main
from splitwiser.validate.runtime.cast import Cast
from splitwiser.validate.runtime.mps import MpsDaemon

def start(cast, *arguments, original=Cast.start):
    cast._mps = cast._kept.enter_context(MpsDaemon(cast._scratch))
    original(cast, *arguments)

if __name__ == "__main__":
    Cast.start = start
    main()
"""


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts runs; at the end not one has left a process, a directory or shared memory."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # runs inherit "ignore"
    shared = memory()
    runs: list[Run] = []

    def begin(*command: str) -> Run:
        runs.append(Run(tmp_path, *command))
        return runs[-1]

    yield begin
    signal.signal(signal.SIGINT, before)
    for run in runs:
        if run.main.poll() is None:
            run.main.kill()
        run.main.wait()
        run.vanish(ENDS_S)
        assert run.directory is None or not run.directory.exists()
    assert memory() <= shared


def memory() -> set[Path]:
    """What lies in shared memory that torch or multiprocessing put there."""
    kinds = ("torch_*", "psm_*")  # semaphores too may be those of other programs
    return {path for kind in kinds for path in Path("/dev/shm").glob(kind)}


def program(folder: Path, text: str) -> tuple[str, str]:
    """The command that runs a Python program."""
    path = folder / f"program-{secrets.token_hex(4)}.py"
    path.write_text(text)
    return sys.executable, str(path)


def command(deployment: str, *options: str) -> tuple[str, ...]:
    """The command line of a run."""
    return (*COMMAND, deployment, *options)


def check_fates(out: str, lines: list[str]) -> None:
    """A run printed what had finished, marked the others, and said in one line how many."""
    told: dict[str, Any] = json.loads(out)
    assert told["completed"] >= 1
    assert told["completed"] + told["aborted"] == told["num_prompts"] < 2000
    assert len(lines) == 1
    assert lines[0].endswith(f"; {told['completed']} of 2000 requests had finished")


VICTIMS = {
    "owner": ("split", "owner", "owner"),
    "decode": ("split", "host 1", "decode process 1"),
    "threads": ("threads.toml", "host 0", "the process of prefill worker 0 and decode worker 1"),
    "fork server": ("split", "fork server", "the fork server"),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_process_ends_the_run(start: Start, tmp_path: Path, victim: str) -> None:
    """Whoever is killed, one line says so, what had finished is kept and the rest is aborted."""
    (tmp_path / "threads.toml").write_text(THREADS)
    deployment, child, name = VICTIMS[victim]
    run = start(*command(deployment, *ENDLESS))
    run.serve()
    pid = run.child(child)
    os.kill(pid, signal.SIGKILL)
    status, out, lines = run.end()
    assert status == 1
    assert lines[0].startswith(f"splitwiser: {name} (pid {pid}) was killed by SIGKILL; ")
    check_fates(out, lines)


@pytest.mark.parametrize(
    ("seed", "victims"),
    [(0, ("owner", "host 0", "host 1")), (1, ("owner", "host 0", "host 1")), (2, ("fork server",))],
)
def test_a_process_killed_at_the_start_ends_the_run(
    start: Start, seed: int, victims: Sequence[str]
) -> None:
    """A process killed at a random moment of the start or warm-up is named in one line."""
    draw = random.Random(seed)
    run = start(*command("split", *ENDLESS))
    run.child("owner")  # a server that dies before it has started anybody is only started anew
    pid = run.child(draw.choice(victims))
    time.sleep(draw.uniform(0, 2))
    os.kill(pid, signal.SIGKILL)
    status, _, lines = run.end()
    assert (status, len(lines)) == (1, 1)
    assert f"(pid {pid}) was killed by SIGKILL" in lines[0]


def test_a_killed_run_leaves_nothing(start: Start) -> None:
    """Where the main process is killed, its children and their directory are gone soon."""
    run = start(*command("split", *ENDLESS))
    run.serve()
    assert set(run.children()) == {"guardian", "fork server", "owner", "host 0", "host 1"}
    assert run.directory is not None and run.directory.exists()
    run.main.kill()
    run.main.wait()
    run.vanish(ENDS_S)
    assert not run.directory.exists()


def test_a_run_outlives_its_guardian(start: Start) -> None:
    """Without its guardian a run goes on to its end, and cleans up itself."""
    run = start(*command("continuous", *SHORT))
    run.await_note("note: serving ")
    os.kill(run.child("guardian"), signal.SIGKILL)
    status, out, lines = run.end(30.0)
    assert (status, lines) == (0, [])
    assert json.loads(out)["completed"] == 10


@pytest.mark.parametrize(
    ("child", "name"), [("host 0", "engine process 0"), ("fork server", "the fork server")]
)
def test_after_a_failed_run_the_next_works(
    start: Start, tmp_path: Path, child: str, name: str
) -> None:
    """`RunFailed` carries the result so far, and the same process can run again."""
    run = start(*program(tmp_path, AGAIN))
    run.serve()
    pid = run.child(child)
    os.kill(pid, signal.SIGKILL)
    status, out, lines = run.end(STARTS_S)
    assert (status, lines) == (0, [])
    first, kept, second = out.splitlines()
    assert first.startswith(f"{name} (pid {pid}) was killed by SIGKILL; ")
    backend, completed, arrived = kept.split()
    assert backend == "splitwiser-run" and 1 <= int(completed) <= int(arrived) < 2000
    assert second == "5"


def test_a_worker_without_memory_ends_the_run(start: Start, tmp_path: Path) -> None:
    """A worker that gets no more memory says so in one line, and what had finished is kept."""
    rows = [f"{place / 20},{32 if place < 60 else 900},20" for place in range(2000)]
    trace = tmp_path / "grows.csv"
    trace.write_text("\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *rows]))
    run = start(*command("split", *DEVICE, "--trace", str(trace)))
    run.serve()
    pid = run.child("host 0")
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
    status, out, lines = run.end()
    assert status == 1
    assert lines[0].startswith(f"splitwiser: prefill process 0 (pid {pid}) ran out of memory: ")
    check_fates(out, lines)


def test_a_stopped_worker_ends_the_run(start: Start) -> None:
    """A worker that a signal has stopped is noticed long before it would count as stalled."""
    run = start(*command("split", *ENDLESS))
    run.serve()
    pid = run.child("host 1")
    os.kill(pid, signal.SIGSTOP)
    status, out, lines = run.end()
    assert status == 1
    assert lines[0].startswith(f"splitwiser: decode process 1 (pid {pid}) was stopped, ")
    check_fates(out, lines)


@pytest.mark.parametrize("at", ["starting", "loading", "warming up"])
def test_an_interrupt_before_serving_ends_the_run(start: Start, at: str) -> None:
    """Ctrl-C while a run starts or warms up: one line, status 130, no traceback of anybody."""
    lengths = ("--random-input-len", "32", "--random-output-len", "8000")  # for a long warm-up
    run = start(*command("continuous", *DEVICE, *lengths, "--request-rate", "1"))
    run.await_note(f"note: {at}")
    if at == "starting":
        run.child("owner")
    run.interrupt()
    assert run.end() == (130, "", ["splitwiser: interrupted"])


def test_an_interrupt_keeps_what_finished(start: Start, tmp_path: Path) -> None:
    """Ctrl-C while a run serves: what finished is printed and saved, and the status is 130."""
    saved = ("--save-result", "--result-filename", "part.json")
    run = start(*command("continuous", *ENDLESS, *saved))
    run.serve()
    time.sleep(3)  # on a busy machine too somebody has finished by then
    run.interrupt()
    status, out, lines = run.end()
    assert (status, lines) == (130, [])
    told = json.loads(out)
    assert 1 <= told["completed"] <= told["num_prompts"] < 2000
    assert json.loads((tmp_path / "part.json").read_text())["completed"] == told["completed"]


@pytest.mark.parametrize("after", [0.0, 4.0])
def test_an_interrupt_ends_the_paper_s_code(start: Start, after: float) -> None:
    """Ctrl-C while processes of `pipeline` start or work: none is waited for, and the status is 130."""
    pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    run = start(*command("pipeline", *ENDLESS))
    run.await_note("note: starting")
    time.sleep(after)
    run.interrupt()
    status, out, lines = run.end(PROMPT_S)
    assert (status, lines) == (130, [])
    assert json.loads(out)["num_prompts"] < 2000


def test_a_second_interrupt_ends_at_once(start: Start) -> None:
    """The second Ctrl-C waits for nobody, not even for a worker that does not answer."""
    run = start(*command("continuous", *ENDLESS))
    run.serve()
    os.kill(run.child("host 0"), signal.SIGSTOP)
    run.interrupt()
    time.sleep(0.5)
    run.interrupt()
    assert run.end(3.0) == (130, "", ["splitwiser: interrupted"])


def test_two_runs_do_not_meet(start: Start, tmp_path: Path) -> None:
    """Two runs at once give the tokens of a plain loop, each from a directory of its own."""
    runs = [start(*program(tmp_path, TOKENS)) for _ in range(2)]
    for run in runs:
        run.child("owner")
    assert runs[0].directory != runs[1].directory
    for run in runs:
        status, out, lines = run.end(STARTS_S)
        assert (status, lines) == (0, [])
        assert json.loads(out) == [list(tokens) for tokens in expected(LLAMA)]


def test_a_dead_mps_daemon_ends_the_run(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An MPS daemon that dies (a stand-in for it, beside a run on the CPU) ends the run."""
    binary = tmp_path / guardian.MPS_CONTROL
    binary.write_text(STAND_IN)
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    run = start(*program(tmp_path, WITH_MPS), "run", "continuous", *ENDLESS)
    run.serve()
    run.child("guardian")
    assert run.directory is not None
    found = guardian.mps_processes(run.directory / "mps" / "pipe")  # and perhaps a fork of it
    os.kill(min(found, key=lambda process: process.birth).pid, signal.SIGKILL)
    status, out, lines = run.end()
    assert status == 1
    assert lines[0].startswith("splitwiser: the MPS daemon died; ")
    check_fates(out, lines)
