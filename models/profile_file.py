"""The JSON file of a `Profile`, as pydantic checks it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from splitwiser.models.corrections import KINDS
from splitwiser.models.names import quoted, unknown_name
from splitwiser.models.neighbours import COORDINATES

SHOWN = 4
LEAST = 1e-2  # a formula that is wrong by more than a hundred times is not corrected but wrong
LARGEST = 1e9
FAR = 100.0  # a coordinate is a logarithm or a share
HEAVY = 1e6  # weights are as large as pairs are close and sure: up to 1e5 of what a fit may find


class ParameterEntry(BaseModel):
    """One parameter: value and standard error in SI units, and its source."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    value: float
    stderr: float | None = Field(default=None, ge=0)
    source: str


Number = Annotated[float, Field(strict=True)]
Row = tuple[Number, ...]


class CorrectionEntry(BaseModel):
    """A correction: shapes, ascending axes, and the factors of each shape."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    shapes: tuple[Row, ...] = Field(min_length=1)
    axes: tuple[Row, ...] = Field(min_length=1)
    factors: tuple[Row, ...]

    @model_validator(mode="after")
    def _match(self) -> CorrectionEntry:
        """Hold the sizes of the three to each other, and the values to their ranges."""
        for i, axis in enumerate(self.axes):
            if not axis or axis[0] <= 0 or any(a >= b for a, b in pairwise(axis)):
                raise ValueError(f"axes.{i} must hold positive numbers in ascending order")
        points = math.prod(len(axis) for axis in self.axes)
        if len(self.factors) != len(self.shapes):
            raise ValueError(f"{len(self.factors)} factors for {len(self.shapes)} shapes")
        for i, (shape, factors) in enumerate(zip(self.shapes, self.factors, strict=True)):
            if len(factors) != points:
                raise ValueError(f"factors.{i} has {len(factors)} values; the axes need {points}")
            if not all(LEAST <= factor <= 1.0 / LEAST for factor in factors):
                raise ValueError(f"factors.{i} must lie in [{LEAST:g}, {1.0 / LEAST:g}]")
            if not all(0.0 < size <= LARGEST for size in shape):
                raise ValueError(f"shapes.{i} must hold positive sizes up to {LARGEST:g}")
        return self


class NeighboursEntry(BaseModel):
    """Measured pairs: the scale of each coordinate, the place of each pair, and its weight."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    scales: Row
    points: tuple[Row, ...] = Field(min_length=1)
    weights: Row

    @model_validator(mode="after")
    def _match(self) -> NeighboursEntry:
        """Hold the sizes to each other, and the values to their ranges."""
        if len(self.scales) != len(COORDINATES) or not all(0.0 < s <= LARGEST for s in self.scales):
            raise ValueError(f"scales must be {len(COORDINATES)} positive numbers")
        if len(self.weights) != len(self.points):
            raise ValueError(f"{len(self.weights)} weights for {len(self.points)} points")
        for i, point in enumerate(self.points):
            if len(point) != len(COORDINATES) or not all(abs(x) <= FAR for x in point):
                raise ValueError(
                    f"points.{i} must be {len(COORDINATES)} coordinates between {-FAR:g} and {FAR:g}"
                )
        if not all(abs(weight) <= HEAVY for weight in self.weights):
            raise ValueError(f"weights must lie between {-HEAVY:g} and {HEAVY:g}")
        return self


class ProfileFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    version: Literal[10]
    name: str
    gpu: str
    kind: Literal["data sheet", "fitted"]
    graphed_prefill: bool = False
    provenance: dict[str, str]
    residuals: dict[str, float]
    parameters: dict[str, ParameterEntry]
    by_gpu: dict[str, dict[str, ParameterEntry]] = {}
    corrections: dict[str, CorrectionEntry] = {}
    neighbours: NeighboursEntry | None = None

    @field_validator("corrections")
    @classmethod
    def _kinds(cls, entries: dict[str, CorrectionEntry]) -> dict[str, CorrectionEntry]:
        """Hold each correction to the coordinates and axes of its kind."""
        for name, entry in entries.items():
            if name not in KINDS:
                raise unknown_name("kind of correction", name, KINDS)
            kind = KINDS[name]
            if len(entry.axes) != len(kind.axes):
                raise ValueError(f"{name}.axes must be those of {', '.join(kind.axes)}")
            if any(len(shape) != len(kind.coordinates) for shape in entry.shapes):
                expected = ", ".join(kind.coordinates) or "nothing"
                raise ValueError(f"{name}.shapes must each be [{expected}]")
        return entries


Content = TypeVar("Content", bound=BaseModel)


def checked(model: type[Content], document: Any, place: str) -> Content:
    """Return *document* checked against *model*, or raise a ValueError of one line.

    The line holds the faults with their key paths, the first `SHOWN` of them.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        faults = [
            f"{_path(fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in found[:SHOWN]
        ]
        if len(found) > SHOWN:
            faults.append(f"and {len(found) - SHOWN} more")
        raise ValueError(f"{place}: {'; '.join(faults)}") from None


def _path(keys: tuple[int | str, ...]) -> str:
    """Return a key path as TOML writes it, odd keys quoted."""
    parts = [key if str(key).replace("_", "").isalnum() else quoted(key) for key in keys]
    return ".".join(str(part) for part in parts) or "the document"
