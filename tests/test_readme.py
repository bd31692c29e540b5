"""The README: its commands run as they stand, and print what it shows.

A real run takes its time and never gives the same numbers twice: it is made with fewer requests, and
only what the numbers are of is compared. `python tests/test_readme.py` writes the outputs anew.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitwiser.cli import run

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = "$ "
REAL = "$ splitwiser run "


@contextlib.contextmanager
def reader_s_folder() -> Iterator[None]:
    """An empty folder with the README's files, and lines of 100 columns."""
    columns, home = os.environ.get("COLUMNS"), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["COLUMNS"] = "100"
        try:
            for text in blocks("toml"):
                Path(text.split()[1]).write_text(text, encoding="utf-8")
            yield
        finally:
            os.chdir(home)
            os.environ.pop("COLUMNS")
            if columns is not None:
                os.environ["COLUMNS"] = columns


def blocks(language: str, file: Path = README) -> list[str]:
    return [text for kind, text in BLOCK.findall(file.read_text("utf-8")) if kind == language]


def output_of(line: str) -> str:
    """What a command line prints on stdout; `| head -N` and `| tail -N` are understood."""
    command, _, cut = line.removeprefix(COMMAND).partition(" | ")
    program, *argv = shlex.split(command)
    assert program == "splitwiser"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
        status = run(argv)
    assert status == 0, err.getvalue()
    lines = out.getvalue().splitlines()
    if cut:
        end, count = cut.split(" -")
        lines = lines[: int(count)] if end == "head" else lines[-int(count) :]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def fresh(block: str) -> str:
    """A console block with its outputs made anew."""
    commands = [line for line in block.splitlines() if line.startswith(COMMAND)]
    return "".join(f"{line}\n{output_of(line)}" for line in commands)


def labels(block: str) -> list[str]:
    """What stands before the numbers, line by line."""
    return [re.split(r":|  ", line.strip())[0] for line in block.splitlines()]


@pytest.mark.skipif(not README.is_file(), reason="the README is not here")
def test_the_commands_print_what_is_shown() -> None:
    """Each command of the README prints exactly what stands below it."""
    with reader_s_folder():
        for block in blocks("console"):
            if not block.startswith(REAL):
                assert fresh(block) == block


@pytest.mark.skipif(not README.is_file(), reason="the README is not here")
def test_a_real_run_prints_what_is_shown() -> None:
    """A real run of the README serves all its requests, and prints the lines that stand below it."""
    pytest.importorskip("torch")
    (block,) = (block for block in blocks("console") if block.startswith(REAL))
    command, shown = block.split("\n", 1)
    fewer = re.sub(r"(?<=--num-prompts )[0-9]+", "5", command)
    with reader_s_folder():
        printed = output_of(fewer)
    assert re.search(r"^Successful requests: +5$", printed, re.MULTILINE)
    assert labels(printed) == labels(shown)


@pytest.mark.parametrize(
    "command",
    [
        "limits.py --show benchmarks/h200_limits.json",
        "hf_generate.py --show benchmarks/h200_hf_generate.json",
        "deployments.py",
        "steps.py --show benchmarks/h200_steps.json",
    ],
)
def test_the_measured_tables_are_those_of_the_raw_data(command: str) -> None:
    """Each table of docs/runtime.md is what its benchmark makes of the committed measurements."""
    script, *options = command.split()
    printed = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.rstrip() in (ROOT / "docs/runtime.md").read_text("utf-8")


def test_the_first_commands_are_those_that_are_shown_and_tested() -> None:
    """The plan of the first screen is the one whose output is checked; the test command names an
    extra that exists.
    """
    first, second = re.findall(r"^```\n(.*?)\n```$", README.read_text("utf-8"), re.MULTILINE)[:2]
    plan = first.removeprefix("pip install . && ")
    assert f"$ {plan} | head" in README.read_text("utf-8")
    assert second == "pip install -e '.[test]' && pytest -n 2 --dist loadfile"
    assert "\ntest = [" in (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize("file", ["README.md", "docs/practice.md"])
def test_the_python_examples_run(file: str) -> None:
    """Each Python example runs, and its assertions hold."""
    examples = blocks("python", ROOT / file)
    assert examples
    for text in examples:
        exec(compile(text, file, "exec"), {})  # noqa: S102 - they are the project's own


@pytest.mark.parametrize(
    "file", ["README.md", "CONTRIBUTING.md", "docs/model.md", "docs/runtime.md"]
)
def test_the_paths_that_are_named_exist(file: str) -> None:
    """Every path of the repository in backticks, and every link, leads somewhere."""
    text = (ROOT / file).read_text("utf-8")
    named = re.findall(
        r"`((?:models|sim|traces|validate|src|tests|benchmarks|docs)/[\w./]*)`", text
    )
    named += re.findall(r"\]\((?!http)([^)]+)\)", text)
    assert named
    for path in named:
        assert (ROOT / path).exists() or path.endswith("NAME.json"), path


def write() -> None:
    """Put fresh outputs into the README."""
    with reader_s_folder():

        def replace(match: re.Match[str]) -> str:
            if match[1] != "console":
                return match[0]
            return f"```console\n{fresh(match[2])}```"

        text = BLOCK.sub(replace, README.read_text("utf-8"))
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
