"""The JSON file of a `Profile`, as pydantic checks it."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitwiser.models.names import quoted

SHOWN = 4


class ParameterEntry(BaseModel):
    """One parameter: value and standard error in SI units, and its source."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    value: float
    stderr: float | None = Field(default=None, ge=0)
    source: str


class ProfileFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    version: Literal[1]
    name: str
    gpu: str
    kind: Literal["data sheet", "fitted"]
    graphed_prefill: bool = False
    provenance: dict[str, str]
    residuals: dict[str, float]
    parameters: dict[str, ParameterEntry]
    by_gpu: dict[str, dict[str, ParameterEntry]] = {}


Content = TypeVar("Content", bound=BaseModel)


def checked(model: type[Content], document: Any, place: str) -> Content:
    """Return *document* checked against *model*, or raise a ValueError of one line.

    The line holds the faults with their key paths, the first `SHOWN` of them.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        faults = [f"{_path(fault['loc'])}: {fault['msg']}" for fault in found[:SHOWN]]
        if len(found) > SHOWN:
            faults.append(f"and {len(found) - SHOWN} more")
        raise ValueError(f"{place}: {'; '.join(faults)}") from None


def _path(keys: tuple[int | str, ...]) -> str:
    """Return a key path as TOML writes it, odd keys quoted."""
    parts = [key if str(key).replace("_", "").isalnum() else quoted(key) for key in keys]
    return ".".join(str(part) for part in parts) or "the document"
