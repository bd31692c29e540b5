"""The house: its links, its imports and what they cost."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import splitwiser

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "sim", "traces", "validate")
FORBIDDEN = {"models": {"simpy", "torch"}, "traces": {"simpy", "torch"}, "sim": {"torch"}}

checkout = pytest.mark.skipif(
    not (ROOT / "models").is_dir(), reason="no checkout: the rooms stand under src/ only"
)


@checkout
@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_linked_into_the_package(room: str) -> None:
    """A room at the root and the package's subpackage are the same folder."""
    assert (ROOT / "src" / "splitwiser" / room).is_symlink()
    assert (ROOT / room).samefile(ROOT / "src" / "splitwiser" / room)


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """The first part of every absolute import in a file, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("room", [*ROOMS, "cli"])
def test_nothing_imports_a_room_by_its_bare_name(room: str) -> None:
    """`splitwiser.sim` is the one name of `sim`: a bare one would be another distribution's."""
    for file in sources(ROOT / "src" / "splitwiser" / room):
        assert not imported(file) & set(ROOMS), file


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_not_import_what_it_must_not_know(room: str) -> None:
    """Costs and traces know no simulator, and planning no torch, not even inside a function."""
    for file in sources(ROOT / "src" / "splitwiser" / room):
        assert not imported(file) & FORBIDDEN[room], file


@checkout
def test_no_module_is_a_drawer() -> None:
    """No module is named for holding what has no better place."""
    names = {file.stem for room in (*ROOMS, "src") for file in sources(ROOT / room)}
    assert not names & {"utils", "helpers", "common", "base", "misc"}


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        timeout=60,
    )
    return done.stdout


def test_help_loads_nothing_heavy() -> None:
    """`splitwiser --help` starts without torch, pandas, numpy, scipy, pydantic or the simulator."""
    loaded = python(
        "import sys\n"
        "from splitwiser.cli import run\n"
        "assert run(['--help']) == 0\n"
        "print('LOADED', *sys.modules)"
    )
    modules = {name.partition(".")[0] for name in loaded.partition("LOADED")[2].split()}
    assert not modules & {"torch", "pandas", "pyarrow", "numpy", "scipy", "pydantic", "simpy"}


@pytest.mark.parametrize(
    "module",
    [
        "sim.simulate",
        "sim.plan",
        "traces",
        "models.catalogue",
        "validate",
        "validate.runtime.cast",
        "validate.runtime.execute",
        "cli.calibrate",
        "cli.execute",
    ],
)
def test_a_module_loads_tables_and_torch_late(module: str) -> None:
    """Importing a room does not import pandas, pyarrow or torch."""
    loaded = python(f"import sys, splitwiser.{module}\nprint(*sys.modules)")
    modules = {name.partition(".")[0] for name in loaded.split()}
    assert not modules & {"torch", "pandas", "pyarrow"}


@pytest.mark.parametrize("name", splitwiser.__all__)
def test_a_public_name_is_there(name: str) -> None:
    """Every name of the public interface can be imported, and has a docstring if it has code."""
    if name == "execute":
        pytest.importorskip("torch")
    value = getattr(splitwiser, name)
    assert name in dir(splitwiser)
    assert not callable(value) or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that the package does not have is refused as Python does."""
    with pytest.raises(AttributeError, match="'splitwiser' has no attribute 'simulated'"):
        splitwiser.simulated  # noqa: B018


def test_the_version_is_the_distribution_s() -> None:
    """`splitwiser.__version__` is the version under which the package is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("splitwiser")
    except PackageNotFoundError:
        pytest.skip("not installed: run from the source tree")
    assert splitwiser.__version__ == installed


def test_the_types_are_declared() -> None:
    """The package carries `py.typed`, so that type checkers read its annotations."""
    assert (Path(splitwiser.__file__).parent / "py.typed").is_file()
