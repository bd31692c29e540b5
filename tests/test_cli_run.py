"""`splitwiser run`: what it refuses, and how it tells what ran; the device's part is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitwiser import validate
from splitwiser.cli import run
from splitwiser.models.gpu import gpu
from splitwiser.sim.result import Result
from splitwiser.sim.simulate import simulate
from splitwiser.validate.runtime import device as devices
from splitwiser.validate.runtime.faults import RunFailed

TRAFFIC = ("--num-prompts", "20", "--request-rate", "4", "--random-input-len", "64")


def asked(deployment: str = "split", model: str = "opt-125m", device: str = "cpu") -> list[str]:
    return ["run", deployment, "--model", model, "--device", device, *TRAFFIC]


RUN = asked()
MEASURED = {
    "device": "cuda:0",
    "backend": "splitwiser-run",
    "warmup": 4,
    "granted_sms": [100, 32],
    "memory": ["weights 0.2 GiB", "KV pool 1.0 GiB"],
    "provenance": {"name": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "torch": "2.11"},
    "telemetry": {
        "samples": 40,
        "power_w_mean": 512.4,
        "power_w_max": 690.0,
        "sm_clock_mhz_mean": 1980.0,
        "sm_clock_mhz_min": 1755.0,
        "memory_bytes_peak": 2.0**37,
        "utilisation_mean": 0.9,
    },
}

Cli = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run a command line in an empty folder: status, stdout, and the lines of stderr but notes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*argv: str) -> tuple[int, str, list[str]]:
        status = run(argv)
        out, err = capsys.readouterr()
        return status, out, [line for line in err.splitlines() if not line.startswith("note: ")]

    return call


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A device that serves as the simulator does; what it was asked, and how it shall end."""
    seen: dict[str, Any] = {"meta": MEASURED, "fault": None, "during": lambda progress: None}

    def execute(trace: Any, deployment: Any, llm: Any, device: str, **options: Any) -> Result:
        seen.update(options, device=device, deployment=deployment, trace=trace)
        options["say"]("starting 2 processes")
        seen["during"](options["progress"])
        result = simulate(trace, deployment, llm, gpu("cpu"))
        result = replace(result, meta={**result.meta, **seen["meta"]})
        if seen["fault"] is not None:
            failure = RunFailed("decode 0 (pid 7) was killed by SIGKILL")
            failure.result = result if seen["fault"] == "late" else None
            raise failure
        return result

    monkeypatch.setitem(vars(validate), "execute", execute)
    monkeypatch.setattr(devices, "check", lambda deployment, device: None)
    return seen


BAD: dict[str, tuple[Sequence[str], str]] = {
    "no device": (("run", "split", "--model", "opt-125m", *TRAFFIC), "--device"),
    "an unknown device": (asked(device="gpu0"), "accepted: cpu, cuda, or cuda:N"),
    "an unknown model": (asked(model="opt-125"), "did you mean"),
    "an unknown deployment": (asked("splitt"), "did you mean split"),
    "no traffic": (RUN[: -len(TRAFFIC)], "no traffic"),
    "a negative warm-up": ((*RUN, "--warmup", "-1"), "--warmup is -1"),
    "no time": ((*RUN, "--until", "0"), "--until is 0"),
    "no weights": ((*RUN, "--weights", "nowhere"), "'nowhere'"),
    "an unknown objective": ((*RUN, "--goodput", "ttfb:3"), "ttfb"),
    "an unknown metric": ((*RUN, "--percentile-metrics", "ttfb"), "ttfb"),
    "a name for nothing": ((*RUN, "--result-filename", "x.json"), "--save-result"),
    "a path that cannot be": (
        (*RUN, "--save-result", "--result-filename", "nowhere/x.json"),
        "cannot be written",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    """Bad input ends with status 2 and one line, before anything ran or was written."""
    argv, told = BAD[case]
    monkeypatch.setattr(devices, "find_spec", lambda name: name)  # it matters not if torch is here
    monkeypatch.setitem(vars(validate), "execute", lambda *_, **__: pytest.fail("it ran"))
    status, out, lines = cli(*argv)
    assert (status, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("splitwiser: ") and told in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["cpu", "cuda:0"])
def test_without_torch_the_extra_is_named(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Where torch cannot be imported, one line says how to install it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    told = "splitwiser: splitwiser run needs torch: pip install 'splitwiser[validate]'"
    assert cli(*asked(device=where)) == (2, "", [told])


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_without_the_paper_s_packages_the_extra_is_named(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """The preset pipeline says in one line what it lacks, and how to install it."""
    monkeypatch.setattr(devices, "find_spec", lambda name: None if name == package else name)
    told = f"splitwiser: splitwiser run needs {package}: pip install 'splitwiser[validate]'"
    assert cli(*asked("pipeline")) == (2, "", [told])


def test_cuda_where_there_is_none_is_refused(cli: Cli) -> None:
    """A CUDA device that this machine does not have is refused in one line."""
    torch = pytest.importorskip("torch")
    absent = f"cuda:{torch.cuda.device_count()}"
    status, out, lines = cli(*asked(device=absent))
    assert (status, out, len(lines)) == (2, "", 1)
    assert absent in lines[0]


def test_the_options_reach_the_run(cli: Cli, device: dict[str, Any], tmp_path: Path) -> None:
    """Device, weights, seed, warm-up, end and engine flags are handed to the runtime."""
    argv = ("--weights", str(tmp_path), "--seed", "3", "--warmup", "7", "--until", "9")
    assert cli(*RUN, *argv, "--block-size", "32")[0] == 0
    expected = {"device": "cpu", "weights": tmp_path, "seed": 3, "warmup": 7, "until": 9.0}
    assert {key: device[key] for key in expected} == expected
    assert device["deployment"].block_size == 32
    assert len(device["trace"]) == 20


def test_the_block_says_on_what_it_was_measured(cli: Cli, device: dict[str, Any]) -> None:
    """Below vLLM's block stand the device, its software, SMs, telemetry, memory and warm-up."""
    status, out, lines = cli(*RUN, "--goodput", "ttft:5000")
    assert (status, lines) == (0, [])
    assert "Serving Benchmark Result" in out
    below = out[out.rindex("=====") :]
    for told in (
        "objectives  ttft:5000 (ms): met by ",
        "verdict     ",
        "device      NVIDIA H200, driver 580.1, CUDA 13.0, torch 2.11\n",
        "SMs         100, 32, worker by worker\n",
        "telemetry   512 W (max 690), SM clock 1980 MHz (min 1755), 128.0 GiB at most, 40 samples\n",
        "memory      split on cuda:0\n            weights 0.2 GiB\n            KV pool 1.0 GiB\n",
        "warm-up     4 requests before the clock started, not in these numbers\n",
    ):
        assert told in below


def test_what_is_not_known_is_left_out(cli: Cli, device: dict[str, Any]) -> None:
    """Without telemetry, SMs and warm-up the block says so, and invents nothing."""
    device["meta"] = {
        **MEASURED,
        "device": "cpu",
        "warmup": 0,
        "granted_sms": [None, None],
        "provenance": {"device": "cpu", "name": None, "cores": 2, "torch": None},
        "telemetry": {"samples": 0, "note": "no telemetry on the CPU"},
    }
    _, out, _ = cli(*RUN)
    assert "device      cpu, 2 cores\n" in out
    assert "telemetry   no telemetry on the CPU\n" in out
    assert "warm-up     none" in out
    assert "SMs" not in out and "threads" not in out


def test_json_is_one_object(cli: Cli, device: dict[str, Any]) -> None:
    """`--json` prints one object with the numbers and the provenance, and nothing else."""
    status, out, _ = cli(*RUN, "--json")
    content = json.loads(out)
    assert status == 0
    assert content["completed"] == 20
    assert content["meta"]["provenance"] == MEASURED["provenance"]


def test_the_result_is_saved(cli: Cli, device: dict[str, Any], tmp_path: Path) -> None:
    """`--save-result` writes a result that loads again, with its traffic."""
    assert cli(*RUN, "--save-result", "--result-filename", "mine.json")[0] == 0
    saved = Result.load(tmp_path / "mine")
    assert len(saved) == 20
    assert saved.meta["backend"] == "splitwiser-run" and saved.meta["seed"] == 0


@pytest.mark.parametrize("fault", ["late", "early"])
def test_a_failed_run_keeps_what_finished(
    cli: Cli, device: dict[str, Any], tmp_path: Path, fault: str
) -> None:
    """A worker's death ends with status 1 and one line; what had finished is printed and saved."""
    device["fault"] = fault
    status, out, lines = cli(*RUN, "--save-result", "--result-filename", "mine.json")
    assert (status, lines) == (1, ["splitwiser: decode 0 (pid 7) was killed by SIGKILL"])
    assert ("Serving Benchmark Result" in out) == (fault == "late")
    assert (tmp_path / "mine.json").exists() == (fault == "late")


def test_an_interrupt_stops_the_run(cli: Cli, device: dict[str, Any]) -> None:
    """Ctrl-C asks the run to stop, prints what finished, and the status is 130."""
    goes_on = []

    def half_way(progress: Callable[[int, int], bool]) -> None:
        goes_on.append(progress(5, 20))
        signal.raise_signal(signal.SIGINT)
        goes_on.append(progress(6, 20))

    device["during"] = half_way
    status, out, lines = cli(*RUN)
    assert (status, lines) == (130, [])
    assert goes_on == [True, False]
    assert "Serving Benchmark Result" in out


def test_a_second_interrupt_ends_at_once(cli: Cli, device: dict[str, Any]) -> None:
    """A second Ctrl-C waits for nothing: one line, status 130."""

    def twice(progress: Callable[[int, int], bool]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    device["during"] = twice
    assert cli(*RUN) == (130, "", ["splitwiser: interrupted"])


def test_the_help_is_narrow_and_names_the_options(cli: Cli) -> None:
    """The help of `run` names what it takes, in lines of at most 100 columns."""
    status, out, _ = cli("run", "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 100
    for option in ("--device", "--weights", "--warmup", "--save-result", "--goodput", "--preset"):
        assert option in out


def test_a_vanished_folder_is_told(cli: Cli, device: dict[str, Any], tmp_path: Path) -> None:
    """Where the result can no longer be saved, it is printed, and one line says so."""
    folder = tmp_path / "there"
    folder.mkdir()
    device["during"] = lambda progress: folder.rmdir()
    status, out, lines = cli(*RUN, "--save-result", "--result-filename", "there/mine.json")
    assert (status, len(lines)) == (2, 1) and "there/mine.json" in lines[0]
    assert "Serving Benchmark Result" in out


def test_a_result_is_saved_where_nobody_reads_stdout(tmp_path: Path) -> None:
    """A reader of stdout that went away costs the printed text, and not the saved files."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = ("simulate", "split", "--model", "opt-125m", "--gpu", "a10", *TRAFFIC)
    saved = ("--save-result", "--result-filename", "mine.json")
    ended = subprocess.run(
        [sys.executable, "-m", "splitwiser", *argv, *saved],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")},
        stdout=writer,
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    assert ended.returncode == 141
    assert (tmp_path / "mine.json").exists()
