"""A deployment by name or from a TOML file, and back to TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitwiser.sim.deployment import PRESETS, Deployment, Workers

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

SHOWN = 40  # characters of an offending value that an error quotes


def deployment(name_or_path: str | Path) -> Deployment:
    """The preset of that name, or the deployment in the TOML file at that path.

    A preset goes before a file of the same name. Raises ValueError with the nearest names for what
    is neither, and what `read_deployment` raises for a file.
    """
    from splitwiser.models.names import unknown_name

    name = str(name_or_path)
    if name.casefold() in PRESETS:
        return PRESETS[name.casefold()]()
    path = Path(name_or_path)
    if path.suffix == ".toml" or len(path.parts) > 1 or _exists(path):
        return read_deployment(path)
    raise unknown_name("deployment", name, PRESETS)


def read_deployment(path: str | Path) -> Deployment:
    """Read a deployment from a TOML file; its name is the key `name`, or else the file's.

    Raises FileNotFoundError for an absent file and ValueError, in one line, for anything else: the
    line and column of bad TOML, or the key path of every fault.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"no deployment file at {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a directory; a deployment is one TOML file") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is not UTF-8 text; a deployment is TOML"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{str(path)!r} cannot be read: {reason}") from None
    return parse_deployment(text, name=path.stem, place=str(path))


def parse_deployment(text: str, *, name: str, place: str) -> Deployment:
    """The deployment that a TOML text says; *place* stands in messages for where the text is from."""
    from pydantic import ValidationError

    from splitwiser.sim.deployment_schema import DeploymentTable

    try:
        document = tomllib.loads(text.replace("\r\n", "\n"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not TOML: {_one_line(error)}") from None
    try:
        table = DeploymentTable.model_validate(document)
    except ValidationError as error:
        faults = [_fault(fault) for fault in error.errors(include_url=False)]
        raise ValueError(f"{place}: {'; '.join(faults)}") from None
    values = table.model_dump(exclude_unset=True)
    try:
        workers = tuple(Workers(**group) for group in values.pop("workers"))
        return Deployment(**{"name": name, **values, "workers": workers})
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def to_toml(deployment: Deployment) -> str:
    """The deployment as a TOML file says it; reading it back gives an equal one."""
    tables = deployment.as_dict()
    groups = tables.pop("workers")
    lines = _lines(tables)
    for group in groups:
        lines += ["", "[[workers]]", *_lines(group)]
    return "\n".join(lines) + "\n"


def _lines(values: dict[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]


def _toml(value: str | bool | float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # A basic string: its control characters, the quote and the backslash are escaped.
        return '"' + "".join(_escaped(character) for character in value) + '"'
    return repr(value)


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x20 or code == 0x7F else character


def _fault(fault: ErrorDetails) -> str:
    """One fault in words: its key path, the value and what is accepted."""
    from splitwiser.sim.deployment_schema import nearest_key

    key = _key_path(fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{key} is not a key here{nearest_key(fault['loc'])}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    shown = _one_line(repr(fault["input"]))
    shown = shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "..."
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key} is {shown}; accepted: {message}"


def _key_path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{_one_line(part)}"
    return path.removeprefix(".")


def _one_line(text: object) -> str:
    """*text* without line breaks or other characters that would move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in str(text)).strip()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False
