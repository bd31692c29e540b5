"""The models that ship with the package, by their hub names: no network is needed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from splitwiser.models.config import parse_config, read_config
from splitwiser.models.llm import Llm
from splitwiser.models.names import unknown_name

_FILE = Path(__file__).with_name("catalogue.json")


def catalogue() -> tuple[Llm, ...]:
    """Every model that ships with the package, in the file's order."""
    return tuple(_by_name().values())


def llm(name_or_path: str) -> Llm:
    """The model of that name, or of the `config.json` at that path.

    A name is the hub's, in any case, with or without the organisation: "meta-llama/Llama-3.1-8B",
    "opt-125m". The catalogue goes before a folder of the same name.

    Raises ValueError with the nearest names for one that is neither known nor a path, and what
    `read_config` raises for a path.
    """
    key = name_or_path.strip().casefold()
    short = _by_short_name()
    if key in short:
        return short[key]
    if _is_path(name_or_path):
        return read_config(name_or_path)
    names = _by_name()
    if "/" not in name_or_path:
        names = {name.rpartition("/")[2]: model for name, model in names.items()}
    raise unknown_name("model", name_or_path, names)


def _is_path(text: str) -> bool:
    """Whether a file or folder is meant: it exists, or could be nothing else."""
    if text.endswith(".json") or text.startswith((".", "/")):
        return True
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return False


@cache
def _by_name() -> dict[str, Llm]:
    entries = json.loads(_FILE.read_text(encoding="utf-8"))["models"]
    models = {}
    for name, entry in entries.items():
        own = {key: value for key, value in entry.items() if key != "like"}
        config = {**entries[entry["like"]], **own} if "like" in entry else own
        models[name] = parse_config(config, name=name, where=f"{_FILE.name}, {name}")
    return models


@cache
def _by_short_name() -> dict[str, Llm]:
    """Models by folded hub name, and by its last part where no two models share that."""
    full = {name.casefold(): model for name, model in _by_name().items()}
    last_parts = [name.rpartition("/")[2] for name in full]
    short = {name.rpartition("/")[2]: model for name, model in full.items()}
    return {part: short[part] for part in last_parts if last_parts.count(part) == 1} | full
