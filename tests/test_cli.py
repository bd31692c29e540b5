"""The command line: what each command prints, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.cli import run
from splitwiser.cli.progress import Progress
from splitwiser.models.catalogue import catalogue
from splitwiser.models.gpu import gpus
from splitwiser.models.profile import PARAMETERS, profile_for
from splitwiser.sim.deployment import PRESETS, Workers
from splitwiser.sim.deployment_file import deployment, to_toml

SRC = Path(__file__).parents[1] / "src"
ON_H200 = ("--model", "meta-llama/Llama-3.1-8B", "--gpu", "h200")
FEW = ("--num-prompts", "60", "--request-rate", "4", "--random-input-len", "100")
SIMULATE = ("simulate", "continuous", *ON_H200, *FEW)
PLAN = ("plan", "meta-llama/Llama-3.1-8B", "--gpu", "h200", *FEW)
GOODPUT = ("--goodput", "ttft:500", "tpot:50")
# Two quick candidates stand for all in the tests of what is printed.
RANKED = (*PLAN, *GOODPUT, "--deployment", "continuous", "chunked", "--jobs", "1")

COMMANDS = ("plan", "simulate", "run", "calibrate", "traces", "gpus", "llms", "profiles")

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Cli]:
    """Run a command line in an empty folder: its status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*argv: str) -> tuple[int, str, str]:
        status = run(argv)
        out, err = capsys.readouterr()
        return status, out, err

    yield call


def json_of(cli: Cli, *argv: str) -> dict[str, Any]:
    """The one JSON object on stdout."""
    status, out, _ = cli(*argv, "--json")
    assert status == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    value: dict[str, Any] = json.loads(out, parse_constant=refuse)
    assert isinstance(value, dict)
    return value


# Lists --------------------------------------------------------------------------------------------


def test_help_names_every_command(cli: Cli) -> None:
    """`--help`, and no command at all, list the commands on stdout."""
    for argv in ([], ["--help"]):
        status, out, err = cli(*argv)
        assert status == 0
        assert not err
        for command in COMMANDS:
            assert f"\n│ {command} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(cli: Cli, command: str) -> None:
    """The help of each command is there, in lines of at most 100 columns."""
    status, out, _ = cli(command, "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 100


def test_gpus_lists_and_describes_every_data_sheet(cli: Cli) -> None:
    """Each data sheet is listed by name, and described with its source."""
    _, listed, _ = cli("gpus")
    for sheet in gpus():
        assert sheet.name in listed
        status, described, _ = cli("gpus", sheet.name)
        assert status == 0
        assert sheet.source.split()[0] in described
    assert [sheet["name"] for sheet in json_of(cli, "gpus")["gpus"]] == [g.name for g in gpus()]
    assert json_of(cli, "gpus", "H200")["sms"] == 132


def test_llms_lists_and_describes_every_model(cli: Cli) -> None:
    """Each model of the catalogue is listed in full, and described with its parameters."""
    _, listed, _ = cli("llms")
    for model in catalogue():
        assert model.name in listed
    _, described, _ = cli("llms", "facebook/opt-125m")
    assert "125,239,296" in described
    assert json_of(cli, "llms", "opt-125m")["parameters"] == 125_239_296
    assert len(json_of(cli, "llms")["llms"]) == len(catalogue())


def test_a_narrow_terminal_cuts_no_name(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """However narrow the terminal, each model and its context stand whole on one line."""
    monkeypatch.setenv("COLUMNS", "40")
    _, listed, _ = cli("llms")
    lines = listed.splitlines()
    for model in catalogue():
        assert any(model.name in line and f"{model.max_context}" in line for line in lines)


def test_profiles_tells_the_source_of_every_constant(cli: Cli, tmp_path: Path) -> None:
    """A profile is described by its GPU or its file, each parameter with its source."""
    _, listed, _ = cli("profiles")
    assert all(profile_for(sheet.name).name in listed for sheet in gpus())
    _, described, _ = cli("profiles", "h200")
    assert all(name in described for name in PARAMETERS)
    file = tmp_path / "mine.json"
    profile_for("h200").with_values(switch=1e-3).save(file)
    parameters = json_of(cli, "profiles", str(file))["parameters"]
    assert parameters["switch"]["value"] == 1e-3
    assert all(parameters[name]["source"] for name in PARAMETERS)


def test_traces_lists_describes_and_converts(cli: Cli, tmp_path: Path) -> None:
    """A preset converted to Mooncake's format is a file with the same statistics."""
    _, listed, _ = cli("traces")
    assert "azure-conv" in listed and "bailian" in listed
    status, out, err = cli(
        "traces",
        "convert",
        "azure-conv",
        "--num-prompts",
        "50",
        "--to",
        "mooncake",
        "-o",
        "t.jsonl",
    )
    assert (status, out) == (0, "")
    assert "wrote 50 requests to t.jsonl" in err
    file = json_of(cli, "traces", "t.jsonl")
    preset = json_of(cli, "traces", "azure-conv", "--num-prompts", "50")
    assert file["requests"] == 50
    assert file["prompt_tokens"] == preset["prompt_tokens"]
    assert json_of(cli, "traces")["formats"].keys() >= {"azure", "mooncake"}
    _, described, err = cli("traces", "t.jsonl")
    assert "prompt" in described
    assert "note: read as mooncake" in err


# simulate -----------------------------------------------------------------------------------------


def test_simulate_prints_the_block_and_what_it_rests_on(cli: Cli) -> None:
    """vLLM's block comes first, then the verdict, the profile and the memory sum."""
    status, out, err = cli(*SIMULATE, *GOODPUT)
    assert (status, err) == (0, "")
    assert out.startswith("============ Serving Benchmark Result ============\n")
    assert "Successful requests:                     60" in out
    for line in ("objectives  ttft:500 tpot:50", "verdict ", "profile     h200", "KV pool"):
        assert line in out


def test_simulate_json_has_vllm_s_keys(cli: Cli) -> None:
    """`--json` is one object with vLLM's keys and the conditions of the run."""
    found = json_of(cli, *SIMULATE, *GOODPUT, "--metric-percentiles", "50,99.9", "--seed", "3")
    assert found["completed"] == 60
    assert found["request_rate"] == 4
    assert found["burstiness"] == 1
    assert found["p99.9_ttft_ms"] >= found["p50_ttft_ms"] > 0
    assert found["goodput"] == {"ttft_ms": 500, "tpot_ms": 50}
    assert found["meta"]["profile"] == "h200"
    assert found["meta"]["seed"] == 3


def test_simulate_says_inf_as_vllm_does(cli: Cli) -> None:
    """Requests that all arrive at once have the request rate "inf" in JSON."""
    assert json_of(cli, *SIMULATE[:6], "--num-prompts", "5")["request_rate"] == "inf"


def test_the_same_command_prints_the_same_bytes(cli: Cli) -> None:
    """A seed gives one result, and another seed another."""
    first, second = cli(*SIMULATE, "--seed", "1"), cli(*SIMULATE, "--seed", "1")
    assert first == second
    assert cli(*SIMULATE, "--seed", "2") != first


def test_simulate_writes_json_and_parquet(cli: Cli, tmp_path: Path) -> None:
    """`--save-result` writes vLLM's keys, and with `--save-detailed` every latency."""
    import pandas as pd

    name = ("--result-filename", "out.json")
    status, _, err = cli(*SIMULATE, "--save-result", "--save-detailed", *name)
    assert status == 0
    assert "note: wrote out.json, out.parquet" in err
    saved = json.loads((tmp_path / "out.json").read_text())
    assert saved["completed"] == len(saved["ttfts"]) == 60
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == 60


def test_the_files_have_a_name_of_their_own(cli: Cli, tmp_path: Path) -> None:
    """Without `--result-filename` the files are named for deployment and model."""
    assert cli(*SIMULATE, "--save-result")[0] == 0
    assert (tmp_path / "continuous-Llama-3.1-8B.json").is_file()


def test_engine_flags_replace_the_preset_s(cli: Cli) -> None:
    """Each engine flag reaches the deployment, in every worker group where it is a worker's."""
    flags = {
        "max_num_seqs": 7,
        "max_num_batched_tokens": 640,
        "gpu_memory_utilization": 0.5,
        "block_size": 32,
        "num_gpu_blocks": 99,
    }
    argv = [part for key, value in flags.items() for part in (option(key), str(value))]
    meta = json_of(cli, "simulate", "split", *SIMULATE[2:], *argv, "--enforce-eager")["meta"]
    made = meta["deployment"]
    of_workers = flags.keys() & set(Workers.__dataclass_fields__)
    assert of_workers == {"max_num_seqs", "max_num_batched_tokens"}
    for key, value in flags.items():
        holders = made["workers"] if key in of_workers else [made]
        assert all(holder[key] == value for holder in holders)
    assert made["enforce_eager"] is True


def option(key: str) -> str:
    return "--" + key.replace("_", "-")


def test_simulate_takes_a_toml_file(cli: Cli, tmp_path: Path) -> None:
    """A preset written as TOML simulates as the preset does."""
    (tmp_path / "mine.toml").write_text(to_toml(deployment("split")))
    rest = (*SIMULATE[2:],)
    assert cli("simulate", "mine.toml", *rest) == cli("simulate", "split", *rest)


def test_another_gpu_s_profile_is_said(cli: Cli, tmp_path: Path) -> None:
    """A profile that was made for another GPU is used, and that is told on stderr."""
    profile_for("h200").save(tmp_path / "p.json")
    argv = (*SIMULATE[:5], "h100-sxm", *FEW, "--profile", "p.json")
    status, _, err = cli(*argv)
    assert status == 0
    assert "note: profile h200 was made for h200, and is used for h100-sxm" in err


# Traffic ------------------------------------------------------------------------------------------


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    """Ten requests, one a second."""
    file = tmp_path / "trace.csv"
    rows = "".join(f"{i},64,4\n" for i in range(10))
    file.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    return file


def test_a_trace_is_cut_and_scaled(cli: Cli, trace_file: Path) -> None:
    """With a trace, `--num-prompts` takes the first requests and `--request-rate` scales arrivals."""
    argv = ("traces", str(trace_file))
    assert json_of(cli, *argv)["requests"] == 10
    assert json_of(cli, *argv, "--num-prompts", "4")["duration_s"] == 3
    assert json_of(cli, *argv, "--request-rate", "20")["duration_s"] == pytest.approx(0.5)
    assert json_of(cli, *argv, "--request-rate", "inf")["duration_s"] == 0


def test_a_closed_loop_keeps_to_its_concurrency(cli: Cli) -> None:
    """`--max-concurrency` bounds the requests in the system."""
    found = json_of(cli, *SIMULATE[:6], "--num-prompts", "30", "--max-concurrency", "3")
    assert found["max_concurrent_requests"] <= 3
    assert found["completed"] == 30


# plan ---------------------------------------------------------------------------------------------


def test_plan_gives_the_answer_first(cli: Cli) -> None:
    """The first line names the winner and its rate; the rest follows in order."""
    status, out, err = cli(*RANKED)
    assert (status, err) == (0, "")
    first = out.splitlines()[0]
    assert first.partition(" carries ")[0] in ("continuous", "chunked")
    assert "requests/s" in first and "on one h200" in first
    places = [
        out.index(part)
        for part in (
            "confidence",
            "beyond it",
            "cost",
            "Ranked",
            "Memory, GiB",
            "Constants",
            "gemm_",
        )
    ]
    assert places == sorted(places)
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("columns", [80, 120])
def test_plan_fits_the_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """No table is wider than the terminal, and no name of a deployment or constant is cut."""
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = cli(*RANKED)
    tables = out[out.index("Ranked") :]
    assert max(map(len, tables.splitlines())) <= columns
    assert all(name in tables for name in (*PARAMETERS, "continuous", "chunked"))


def test_plan_json_has_winner_rows_and_constants(cli: Cli) -> None:
    """The JSON object ranks by falling rate, and a price scales the cost."""
    found = json_of(cli, *RANKED)
    rates = [row["rate"] for row in found["rows"]]
    assert rates == sorted(rates, reverse=True)
    assert found["rows"][0]["low"] <= rates[0] <= found["rows"][0]["high"]
    assert found["constants"].keys() == PARAMETERS.keys()
    dear = json_of(cli, *RANKED, "--price-per-hour", "38")["rows"][0]["cost"]
    assert dear == pytest.approx(found["rows"][0]["cost"] * 38 / found["price_per_hour"])


def test_progress_is_told_without_a_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stderr is no terminal, a line now and then tells how far the plan is."""
    monkeypatch.setattr("splitwiser.cli.progress.QUIET_S", 0.0)
    _, _, err = cli(*RANKED)
    assert "note: planning: 1 of 2 searches done" in err


def test_plan_saves_the_winner(cli: Cli, tmp_path: Path) -> None:
    """`--save-deployment` writes a file that `simulate` takes."""
    status, out, _ = cli(*RANKED, "--save-deployment", "best.toml")
    assert status == 0
    assert out.startswith(deployment(tmp_path / "best.toml").name)
    assert cli("simulate", "best.toml", *SIMULATE[2:])[0] == 0


def test_a_plan_says_which_requests_it_leaves_out(cli: Cli) -> None:
    """Prompts beyond the model's context are counted in the answer."""
    traffic = ("--preset", "azure-conv", "--num-prompts", "100")
    argv = ("plan", "facebook/opt-125m", "--gpu", "a10", *traffic, *RANKED[10:])
    status, out, _ = cli(*argv)
    assert status == 0
    assert "of 100 prompts leave no room in the context" in out[: out.index("Ranked")]


def test_objectives_that_nobody_meets_have_no_winner(cli: Cli) -> None:
    """Where no rate meets the objectives, that is the answer, and the status is 1."""
    status, out, _ = cli(*PLAN, "--goodput", "ttft:1", "--deployment", "continuous", "--jobs", "1")
    assert status == 1
    assert out.startswith("No deployment of meta-llama/Llama-3.1-8B on h200 meets ttft 1 ms")
    assert "Left out" in out


def test_a_plan_without_arrival_times_uses_poisson_ones(cli: Cli) -> None:
    """Requests without a rate of their own are planned with Poisson arrivals, and that is said."""
    argv = ("plan", *RANKED[1:4], "--random-input-len", "100", "--num-prompts", "60", *RANKED[10:])
    status, _, err = cli(*argv)
    assert status == 0
    assert "note: the traffic has no arrival times: planned with Poisson arrivals" in err


# Bad input ----------------------------------------------------------------------------------------

BAD = {
    "an unknown command": (("simulat",), "simulate"),
    "an unknown flag": ((*SIMULATE, "--request-rat", "4"), "--request-rate"),
    "a flag that is not a number": ((*SIMULATE[:-2], "--seed", "x"), '"x"'),
    "a missing flag": (("simulate", "split", "--gpu", "h200"), "--model"),
    "a value too many": (("gpus", "h200", "a10"), "a10"),
    "an unknown GPU": (("gpus", "h20"), "did you mean h200"),
    "an unknown model": (("llms", "Llama-3.1-8C"), "Llama-3.1-8B"),
    "a model that is a directory": (("llms", "."), "config.json"),
    "an unknown deployment": (("simulate", "splitt", *SIMULATE[2:]), "did you mean split"),
    "an absent profile": ((*SIMULATE, "--profile", "no.json"), "no profile at no.json"),
    "an unknown preset": ((*SIMULATE[:6], "--preset", "azure-con"), "azure-conv"),
    "an absent trace": ((*SIMULATE[:6], "--trace", "no.csv"), "no.csv does not exist"),
    "a trace that is a directory": ((*SIMULATE[:6], "--trace", "."), "directory"),
    "an unknown trace format": (
        (*SIMULATE[:6], "--trace", "no.csv", "--trace-format", "azur"),
        "azur",
    ),
    "a format without a trace": ((*SIMULATE, "--trace-format", "azure"), "needs --trace"),
    "no traffic": (SIMULATE[:6], "--preset NAME"),
    "two sources": (
        (*SIMULATE[:6], "--trace", "a.csv", "--preset", "azure-conv"),
        "--trace and --preset",
    ),
    "a preset and random lengths": (
        (*SIMULATE, "--preset", "azure-conv"),
        "--preset and --random-input-len",
    ),
    "a preset and a burstiness": (
        (*SIMULATE[:6], "--preset", "azure-conv", "--burstiness", "2"),
        "--burstiness",
    ),
    "no prompts": ((*SIMULATE[:6], "--num-prompts", "0"), "--num-prompts is 0"),
    "a negative rate": ((*SIMULATE[:6], "--request-rate=-1"), "--request-rate is -1"),
    "a rate that is NaN": ((*SIMULATE[:6], "--request-rate", "nan"), "--request-rate is nan"),
    "a burstiness of 0": ((*SIMULATE, "--burstiness", "0"), "burstiness"),
    "a range beyond all": ((*SIMULATE, "--random-range-ratio", "2"), "2"),
    "a negative seed": ((*SIMULATE, "--seed=-1"), "--seed is -1"),
    "a misspelt objective": ((*SIMULATE, "--goodput", "tft:500"), "did you mean ttft"),
    "an objective in seconds": ((*SIMULATE, "--goodput", "ttft:0.5s"), "MILLISECONDS"),
    "a utilisation in percent": ((*SIMULATE, "--gpu-memory-utilization", "90"), "(0, 1]"),
    "a batch of none": ((*SIMULATE, "--max-num-seqs", "0"), "max_num_seqs = 0"),
    "a pool beyond the memory": ((*SIMULATE, "--num-gpu-blocks", "9999999"), "GiB >"),
    "an end before the beginning": ((*SIMULATE, "--until=-1"), "--until is -1"),
    "an unknown metric": ((*SIMULATE, "--percentile-metrics", "tppt"), "tpot"),
    "a percentile beyond 100": ((*SIMULATE, "--metric-percentiles", "50,101"), "0 to 100"),
    "a percentile that is a word": ((*SIMULATE, "--metric-percentiles", "all"), "0 to 100"),
    "a name without saving": ((*SIMULATE, "--result-filename", "x"), "--save-result"),
    "an output in no folder": (
        (*SIMULATE, "--save-result", "--result-filename", "no/x"),
        "no/x.json cannot be written",
    ),
    "a conversion into a folder": (
        ("traces", "convert", "azure-conv", "-o", "."),
        "not a regular file",
    ),
    "an unknown target format": (
        ("traces", "convert", "azure-conv", "--to", "azure", "-o", "x"),
        "mooncake",
    ),
    "neither preset nor file": (("traces", "azure-cov"), "did you mean azure-conv"),
    "a plan without objectives": (PLAN, "--goodput"),
    "a model that does not fit": (
        ("plan", "meta-llama/Llama-2-70b-hf", "--gpu", "a10", *FEW, *GOODPUT),
        "weights 128.48 GiB",
    ),
    "a plan for all at once": (
        (*PLAN[:4], "--num-prompts", "50", "--request-rate", "inf", *GOODPUT),
        "no rate to scale",
    ),
    "a closed loop to plan": ((*PLAN, *GOODPUT, "--max-concurrency", "3"), "max_concurrency"),
    "a negative price": ((*PLAN, *GOODPUT, "--price-per-hour=-1"), "--price-per-hour is -1"),
    "no jobs": ((*PLAN, *GOODPUT, "--jobs", "0"), "--jobs is 0"),
    "a target in percent": ((*PLAN, *GOODPUT, "--target", "90"), "--target is 90"),
    "a plan to nowhere": ((*PLAN, *GOODPUT, "--save-deployment", "no/b.toml"), "no/b.toml cannot"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(cli: Cli, tmp_path: Path, case: str) -> None:
    """Every fault is one line on stderr that says what helps; stdout stays empty, nothing is
    written.
    """
    argv, told = BAD[case]
    status, out, err = cli(*argv)
    assert status == 2
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    assert lines[0].startswith("splitwiser: ")
    assert told in lines[0]
    assert not list(tmp_path.iterdir())


TINY = ("simulate", "continuous", "--model", "opt-125m", "--gpu", "h200", "--num-prompts", "3")
FLAGS = [
    "--request-rate",
    "--burstiness",
    "--max-concurrency",
    "--random-input-len",
    "--seed",
    "--trace",
    "--preset",
    "--until",
    "--goodput",
    "--profile",
    "--max-num-seqs",
    "--block-size",
    "--metric-percentiles",
    "--json",
    "-x",
    "--",
]
VALUES = ["", "-1", "0", "1", "0.5", "nan", "inf", "1e400", "x", "é", "\0", "/", "ttft:500"]


@given(
    st.sampled_from([TINY, ("gpus",), ("llms",), ("profiles",), ("traces",)]),
    st.lists(st.tuples(st.sampled_from(FLAGS), st.sampled_from(VALUES)), max_size=3),
)
def test_any_words_are_an_answer_or_one_line(
    command: tuple[str, ...], words: list[tuple[str, str]]
) -> None:
    """No command line ends in a traceback: it is answered, or refused in one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([*command, *(word for pair in words for word in pair)])
    if status:
        told = [line for line in err.getvalue().splitlines() if not line.startswith("note: ")]
        assert (status, len(told), out.getvalue()) == (2, 1, "")


def test_bad_input_prints_no_json(cli: Cli) -> None:
    """With `--json` a fault leaves stdout empty."""
    assert cli("gpus", "h20", "--json")[:2] == (2, "")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"model_type": "llama", "hidden_size": 64}', "is missing"),
    ],
)
def test_a_bad_config_json_is_refused(cli: Cli, tmp_path: Path, config: str, told: str) -> None:
    """A `config.json` that is no JSON, or lacks a key, is refused by name."""
    (tmp_path / "config.json").write_text(config)
    status, out, err = cli("llms", "config.json")
    assert (status, out) == (2, "")
    assert told in err and err.count("\n") == 1


# The process --------------------------------------------------------------------------------------


def process(*argv: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "splitwiser", *argv],
        text=True,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SRC)},
        **options,
    )


def test_a_reader_that_leaves_is_no_error() -> None:
    """A closed pipe ends the command without a word, with the status of SIGPIPE."""
    read, write = os.pipe()
    os.close(read)
    with process("llms", stdout=write) as child:
        os.close(write)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (141, "")


def test_an_interrupt_ends_with_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a simulation in one line."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("splitwiser.sim.simulate.simulate", interrupted)
    assert cli(*SIMULATE) == (130, "", "splitwiser: interrupted\n")


def test_an_interrupted_plan_prints_what_it_found(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends a plan with the deployments that were done, and status 130."""
    from splitwiser.sim import parallel

    answer, calls = parallel.answer, []

    def once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return answer(*args)

    monkeypatch.setattr(parallel, "answer", once)
    status, out, _ = cli(*RANKED)
    assert status == 130
    assert out.startswith("Interrupted")
    assert "continuous carries" in out


def test_every_preset_is_named_in_the_help(cli: Cli) -> None:
    """The help of `simulate` names the presets that there are."""
    _, out, _ = cli("simulate", "--help")
    words = set(out.replace(",", " ").replace("(", " ").replace(")", " ").split())
    assert set(PRESETS) <= words


def test_an_interrupted_simulation_keeps_what_it_has(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C half way prints the result of the first half, and the status is 130."""

    def half_way(self: Progress, done: int, known: int, name: str = "") -> None:
        if done == known // 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "__call__", half_way)
    status, out, err = cli(*SIMULATE, "--json")
    found = json.loads(out)
    assert status == 130
    assert "interrupted" in err
    assert 20 <= found["completed"] <= 30
    assert found["completed"] + found["running"] + found["waiting"] == 30


def test_traffic_that_comes_at_once_can_be_saved(cli: Cli, tmp_path: Path) -> None:
    """An infinite rate is written as vLLM writes it: JSON has no infinity."""
    name = ("--save-result", "--result-filename", str(tmp_path / "r.json"))
    at_once = [*SIMULATE]
    at_once[at_once.index("--request-rate") + 1] = "inf"
    assert cli(*at_once, *name)[0] == 0
    assert json.loads((tmp_path / "r.json").read_text())["request_rate"] == "inf"
