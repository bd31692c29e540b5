"""`Profile`: what calibration learned about one GPU and its software, or what a data sheet assumes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from splitwiser.models.corrections import Correction
from splitwiser.models.gpu import gpu
from splitwiser.models.names import quoted, unknown_name
from splitwiser.models.neighbours import Neighbours

if TYPE_CHECKING:
    from splitwiser.models.profile_file import ParameterEntry

VERSION = 10
BUILT_IN = Path(__file__).parent / "profiles"


class Meaning(NamedTuple):
    """What a parameter is, in which unit, and which values are possible."""

    text: str
    unit: str
    lower: float
    upper: float


# Every profile gives every one of these. The bounds are physical (an efficiency cannot exceed 1)
# or the range in which the formulas hold.
PARAMETERS: Mapping[str, Meaning] = {
    "gemm_efficiency": Meaning("share of peak FLOP/s that large GEMMs reach", "1", 0.01, 1.0),
    "attention_efficiency": Meaning("the same for prefill attention", "1", 0.01, 1.0),
    "memory_efficiency": Meaning("share of bandwidth, weights and activations", "1", 0.01, 1.0),
    "kv_efficiency": Meaning("share of bandwidth, decode attention", "1", 0.01, 1.0),
    "sharpness": Meaning("exponent of the smooth roofline", "1", 1.0, 8.0),
    "gemm_start": Meaning("time of a GEMM without work", "s", 0.0, 1e-3),
    "stream_start": Meaning("time of an element-wise kernel without work", "s", 0.0, 1e-3),
    "tile_overhead": Meaning("start and end of one tile of a GEMM", "s", 0.0, 1e-3),
    "tile_traffic": Meaning("bandwidth of the L2 over that of the DRAM", "1", 1.0, 64.0),
    "tile_relief": Meaning("how much more of the L2 an SM draws where few run", "1", 0.0, 1.0),
    "tile_step": Meaning("step in which a library chooses the rows of a tile", "rows", 8.0, 256.0),
    "split_traffic": Meaning("share of split GEMMs' partial sums in DRAM traffic", "1", 0.0, 8.0),
    "attention_start": Meaning("time of an attention kernel without work", "s", 0.0, 1e-3),
    "decode_block": Meaning("decode attention of one sequence and KV head", "s", 0.0, 1e-3),
    "mixed_decode": Meaning("factor on decode attention in steps with prompts", "1", 0.5, 16.0),
    "sustained": Meaning("part of the peak that power lets GEMMs keep up", "1", 0.05, 1.0),
    "sampling_start": Meaning("time of the sampling kernels without work", "s", 0.0, 1e-2),
    "sampling_passes": Meaning("passes of sampling over float32 logits", "1", 0.0, 64.0),
    "kernel_gap": Meaning("device time between two kernels", "s", 0.0, 1e-3),
    "shared_gap": Meaning("how much longer that is under MPS and in streams", "s", 0.0, 1e-3),
    "launch_host": Meaning("host time to launch one kernel eagerly", "s", 0.0, 1e-2),
    "step_overhead": Meaning("GPU idle between two steps: scheduler, sampling", "s", 0.0, 1.0),
    "sequence_overhead": Meaning("more of it for each sequence of a step", "s", 0.0, 1e-2),
    "request_overhead": Meaning("from a request to its scheduler: HTTP, tokens", "s", 0.0, 10.0),
    "decided_ahead": Meaning(
        "part of a step before its end, when the next is decided", "1", 0.0, 1.0
    ),
    "generate_overhead": Meaning("step_overhead of Hugging Face's generate", "s", 0.0, 1.0),
    "compute_knee": Meaning("share of SMs at which power limits the GEMMs", "1", 0.01, 10.0),
    "compute_bend": Meaning("exponent of that saturation", "1", 1.0, 64.0),
    "bandwidth_knee": Meaning("share of SMs that saturates the DRAM", "1", 0.01, 10.0),
    "bandwidth_bend": Meaning("exponent of that saturation", "1", 1.0, 64.0),
    "kv_knee": Meaning("share of SMs that saturates the DRAM, decode attention", "1", 0.01, 10.0),
    "quantum": Meaning("length of a time slice", "s", 1e-6, 1.0),
    "switch": Meaning("time to switch between contexts", "s", 0.0, 1e-1),
    "slice_hold": Meaning("share of launch gaps through which a turn is held", "1", 0.0, 1.0),
    "clock_relief": Meaning("part of a burst's gain, per part of the power left", "1", 0.0, 16.0),
    "wait_memory": Meaning(
        "wait for a memory-bound step's kernels; 1: strict turns", "1", 0.0, 16.0
    ),
    "wait_compute": Meaning("the same for those of a step bound by arithmetic", "1", 0.0, 16.0),
    "passed": Meaning("memory-bound kernels that pass for each of arithmetic", "1", 0.1, 64.0),
    "yielded": Meaning("part of prompts' kernels between which priority passes", "1", 0.0, 1.0),
    "crowding": Meaning(
        "how much oftener decodes come before prompts, per further one", "1", 0.0, 16.0
    ),
    "crowding_prompts": Meaning(
        "part of turns of further prompts at which decodes come too", "1", 0.0, 1.0
    ),
    "contention_memory": Meaning(
        "slow-down of memory-bound steps by such on other SMs", "1", 0.0, 4.0
    ),
    "contention_compute": Meaning(
        "slow-down of memory-bound steps by arithmetic on other SMs", "1", 0.0, 4.0
    ),
    "narrow": Meaning(
        "how far steps slow with SMs, where launched for more; 1: in proportion", "1", 0.0, 1.0
    ),
    "power_memory": Meaning("part of a step's time that a falling clock stretches", "1", 0.0, 4.0),
    "power_compute": Meaning("the same for a step bound by arithmetic", "1", 0.0, 4.0),
    "second_wave": Meaning("compute lost to whole-device grids, times the part", "1", 0.0, 4.0),
    "context_bytes": Meaning("device memory of one process's CUDA context", "B", 0.0, 1e11),
    "activation_factor": Meaning("activation peak over the largest live tensors", "1", 0.0, 16.0),
    "startup": Meaning("start of one process, model loading excluded", "s", 0.0, 1e4),
    "handover": Meaning("passing a sequence between two processes", "s", 0.0, 10.0),
    "pcie_efficiency": Meaning("share of PCIe bandwidth of pinned copies", "1", 0.01, 1.0),
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value in SI units, its standard error (None: assumed, not fitted) and where it is from."""

    value: float
    stderr: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Profile:
    """The parameters of one GPU and software stack (`PARAMETERS` says what each means).

    `kind` is "data sheet" or "fitted"; `provenance` tells device, driver, torch, date, points and
    command of a fit; `residuals` summarises its errors by name, as fractions. `graphed_prefill`
    says that steps with prompt tokens replay CUDA graphs too (vLLM's piecewise graphs). `by_gpu`
    holds the parameters that differ on some GPUs, where a profile serves several. `corrections`
    are measured over modelled kernel times, by kind (`models/corrections.py`); without one of a
    kind, the formulas stand alone. `neighbours` are measured over modelled slow-downs of pairs.
    """

    name: str
    gpu: str
    kind: str
    parameters: Mapping[str, Parameter] = field(hash=False)
    provenance: Mapping[str, str] = field(hash=False)
    residuals: Mapping[str, float] = field(hash=False)
    graphed_prefill: bool = False
    by_gpu: Mapping[str, Mapping[str, Parameter]] = field(default_factory=dict, hash=False)
    corrections: Mapping[str, Correction] = field(default_factory=dict, hash=False)
    neighbours: Neighbours | None = field(default=None, hash=False)

    def value(self, name: str) -> float:
        """Return the value of a parameter in SI units. ValueError names the nearest if unknown."""
        try:
            return self.parameters[name].value
        except KeyError:
            raise unknown_name("profile parameter", name, PARAMETERS) from None

    def with_values(self, **values: float) -> Profile:
        """Return this profile with some values replaced by assumptions of the caller."""
        parameters = dict(self.parameters)
        for name, value in values.items():
            check_parameter(name, value)
            parameters[name] = Parameter(float(value), None, "set by the caller")
        return replace(self, parameters=parameters)

    def save(self, path: Path | str) -> None:
        """Write the profile as JSON."""
        document: dict[str, Any] = {
            "version": VERSION,
            "name": self.name,
            "gpu": self.gpu,
            "kind": self.kind,
            "graphed_prefill": self.graphed_prefill,
            "provenance": dict(self.provenance),
            "residuals": dict(self.residuals),
            "parameters": {name: asdict(p) for name, p in self.parameters.items()},
        }
        if self.by_gpu:
            document["by_gpu"] = {
                gpu_name: {name: asdict(p) for name, p in parameters.items()}
                for gpu_name, parameters in self.by_gpu.items()
            }
        text = json.dumps(document, indent=2, allow_nan=False)
        if self.corrections:
            text = text.removesuffix("\n}") + ',\n  "corrections": ' + self._tables() + "\n}"
        if self.neighbours is not None:
            known = json.dumps(asdict(self.neighbours), allow_nan=False)
            lines = known.replace("], [", "],\n    [").replace(', "', ',\n    "')
            text = text.removesuffix("\n}") + ',\n  "neighbours": ' + lines + "\n}"
        Path(path).write_text(text + "\n")

    def _tables(self) -> str:
        """Return the corrections as JSON, one shape in a line."""
        kinds = []
        for kind, correction in self.corrections.items():
            columns = ",\n      ".join(
                f'"{name}": ' + json.dumps(values, allow_nan=False).replace("], [", "],\n        [")
                for name, values in asdict(correction).items()
            )
            kinds.append(f'    "{kind}": {{\n      {columns}\n    }}')
        return "{\n" + ",\n".join(kinds) + "\n  }"


def check_parameter(name: str, value: float) -> None:
    """Raise ValueError unless *value* is possible for the parameter *name*."""
    if name not in PARAMETERS:
        raise unknown_name("profile parameter", name, PARAMETERS)
    meaning = PARAMETERS[name]
    if not (math.isfinite(value) and meaning.lower <= value <= meaning.upper):
        raise ValueError(
            f"parameter {name} = {value!r} is outside [{meaning.lower:g}, {meaning.upper:g}]"
            f" {meaning.unit}"
        )


def load_profile(path: Path | str) -> Profile:
    """Read a profile from JSON.

    A file that cannot be read, is not JSON, has unknown or missing keys, another version or an
    impossible value raises a ValueError (FileNotFoundError if absent) of one line with the place.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"no profile at {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a directory; name the profile's JSON file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the profile {path}: {error}") from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return parse_profile(document, str(path))


def parse_profile(document: Any, place: str) -> Profile:
    """Check a profile document and return the profile; *place* names it in error messages."""
    from splitwiser.models.profile_file import ProfileFile, checked

    if isinstance(document, dict) and document.get("version") not in (None, VERSION):
        raise ValueError(
            f"{place}: version {quoted(document['version'])} is not supported; expected {VERSION}"
        )
    content = checked(ProfileFile, document, place)
    parameters = _parameters(content.parameters, f"{place}: parameters")
    missing = [name for name in PARAMETERS if name not in parameters]
    if missing:
        raise ValueError(f"{place}: parameters.{missing[0]} is missing")
    known = content.neighbours
    return Profile(
        name=content.name,
        gpu=content.gpu,
        kind=content.kind,
        parameters=parameters,
        provenance=content.provenance,
        residuals=content.residuals,
        graphed_prefill=content.graphed_prefill,
        by_gpu={
            name: _parameters(entries, f"{place}: by_gpu.{quoted(name)}")
            for name, entries in content.by_gpu.items()
        },
        corrections={
            kind: Correction(entry.shapes, entry.axes, entry.factors)
            for kind, entry in content.corrections.items()
        },
        neighbours=None if known is None else Neighbours(known.scales, known.points, known.weights),
    )


def _parameters(entries: Mapping[str, ParameterEntry], place: str) -> dict[str, Parameter]:
    """Return the parameters of a file's table, each checked against its bounds."""
    parameters = {}
    for name, entry in entries.items():
        try:
            check_parameter(name, entry.value)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        parameters[name] = Parameter(entry.value, entry.stderr, entry.source)
    return parameters


@cache
def profile_for(gpu_name: str) -> Profile:
    """Return the built-in profile of a GPU: a fit where one ships, else the data-sheet defaults.

    Raises ValueError with the nearest names for a GPU without a data sheet.
    """
    name = gpu(gpu_name).name
    fitted = BUILT_IN / f"{name}.json"
    return load_profile(fitted) if fitted.is_file() else sheet_profile(name)


def sheet_profile(gpu_name: str) -> Profile:
    """Return the data-sheet defaults for a GPU: where a fit starts, whether or not one ships."""
    name = gpu(gpu_name).name
    sheet = load_profile(BUILT_IN / "datasheet.json")
    parameters = {**sheet.parameters, **sheet.by_gpu.get(name, {})}
    return replace(sheet, name=f"{name}-datasheet", gpu=name, parameters=parameters, by_gpu={})


def built_in_profiles() -> tuple[Profile, ...]:
    """Return the profiles that ship with the package, the data-sheet defaults among them."""
    return tuple(load_profile(path) for path in sorted(BUILT_IN.glob("*.json")))
