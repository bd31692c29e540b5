"""`KernelTable`: measured times of single kernels, and the readers of the formats they come in.

A file's columns tell its format: the parquet tables of NVIDIA's aiconfigurator, the CSV profiles of
LLMServingSim, and CSV files of our own, whose columns are those of `COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from splitwiser.models.llm import Llm, dtype_named
from splitwiser.models.work import elementwise_bytes

if TYPE_CHECKING:
    import pandas as pd

HEADS = ("heads", "kv_heads", "head_dim")
# The columns that tell one kernel from another; `seconds` comes last in every frame.
# `new` and `cached` are tokens of each of `batch` prompt chunks, `context` the tokens that each of
# `batch` decoding sequences attends, `bytes` what an element-wise kernel reads and writes.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "prompt_attention": ("batch", "new", "cached", *HEADS),
    "decode_attention": ("batch", "context", *HEADS),
    "mixed_attention": ("new", "cached", "batch", "context", *HEADS),
    "elementwise": ("name", "tokens", "bytes"),
}
SAMPLER = "sampler"  # the element-wise kernels whose bytes are float32 logits
FEWEST = 8  # rows from which a kind of kernel can be fitted
CONTRADICTION = 2.0  # times of one kernel further apart than this are an error of the table


@dataclass(frozen=True, slots=True)
class KernelTable:
    """Frames of measured kernels by kind (`COLUMNS` and `seconds`); any may be empty.

    `dtype` is that of weights, activations and KV cache; `provenance` tells device, software and
    files. Rows of the same kernel are merged to their median.
    """

    frames: Mapping[str, pd.DataFrame]
    dtype: str
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, kind: str) -> pd.DataFrame:
        """Return the frame of a kind of kernel, empty where nothing was measured."""
        import pandas as pd

        if kind in self.frames:
            return self.frames[kind]
        return pd.DataFrame({column: [] for column in (*COLUMNS[kind], "seconds")}, dtype=float)

    def where(self, chosen: Callable[[str, pd.DataFrame], pd.Series[bool]]) -> KernelTable:
        """Return the table of the rows that *chosen* says of each kind and its frame."""
        frames = {
            kind: frame[chosen(kind, frame)].reset_index(drop=True)
            for kind, frame in self.frames.items()
        }
        return KernelTable(frames, self.dtype, self.provenance)


class _Part(NamedTuple):
    """What one file holds: the rows of a kind, with `place` as the number of line or row."""

    kind: str
    frame: pd.DataFrame
    provenance: Mapping[str, str]


def read_kernels(
    *paths: Path | str, llm: Llm | None = None, dtype: str = "bfloat16"
) -> KernelTable:
    """Read tables of kernel times from files and folders of them.

    *llm* is the model of LLMServingSim profiles, whose layers have names and no sizes. Rows of
    another dtype than *dtype* are left out. Raises ValueError, or FileNotFoundError, of one line
    with file, row and column.
    """
    import pandas as pd

    dtype = dtype_named(dtype)
    files = [file for path in paths for file in _files(Path(path))]
    parts: list[_Part] = []
    provenance = {"tables": ", ".join(file.name for file in files)}
    for file in files:
        found = _read(file, llm, dtype)
        parts += found
        provenance |= {key: text for part in found for key, text in part.provenance.items()}
    frames = {}
    for kind in COLUMNS:
        rows = [part.frame for part in parts if part.kind == kind]
        if rows:
            frames[kind] = _merged(kind, pd.concat(rows, ignore_index=True))
    return KernelTable(frames, dtype, provenance)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"no kernel times at {path}")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in (".csv", ".parquet"))
    if not files:
        raise ValueError(f"{path} holds no .csv or .parquet file")
    return files


def _read(file: Path, llm: Llm | None, dtype: str) -> list[_Part]:
    """Return the parts of a file, checked, by the format that its columns tell."""
    import pandas as pd

    try:
        frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (OSError, ValueError, MemoryError) as error:  # pandas and pyarrow raise kinds of these
        reason = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"cannot read {file}: {reason[0]}") from None
    frame.columns = frame.columns.map(str)
    given = set(frame.columns)
    frame["place"] = range(2, len(frame) + 2) if file.suffix == ".csv" else range(len(frame))
    for columns, read in FORMATS.items():
        if given >= set(columns):
            break
    else:
        known = "; ".join(", ".join(columns) for columns in FORMATS)
        raise ValueError(
            f"{file}: columns {', '.join(sorted(given)[:8])} are no table of kernels; known are {known}"
        )
    if read in (_profiled_layers, _profiled_sequences, _profiled_attention):
        if llm is None:
            raise ValueError(f"{file}: a profile of named layers needs the model they belong to")
        if llm.dtype != dtype:
            raise ValueError(f"{file}: the model is in {llm.dtype}, the table in {dtype}")
    parts = read(frame, llm, dtype)
    for part in parts:
        _check(file, part)
    return parts


def _check(file: Path, part: _Part) -> None:
    """Raise ValueError for a missing column, a value that is no size or time, or too few rows."""
    word = "line" if file.suffix == ".csv" else "row"
    frame = part.frame
    for column in (*COLUMNS[part.kind], "seconds"):
        if column == "name":
            continue
        values = _numbers(frame[column])
        least = 0.0 if column in ("cached", "new", "bytes") else 1e-12
        wrong = ~((values >= least) & (values < 1e15))
        if wrong.any():
            row = frame[wrong].iloc[0]
            expected = "a number from 0" if least == 0.0 else "a positive number"
            raise ValueError(
                f"{file}, {word} {row['place']}: {column} is {row[column]!s}; expected {expected}"
            )
        frame[column] = values
    if len(frame) < FEWEST:
        raise ValueError(f"{file}: {len(frame)} rows of {part.kind}; at least {FEWEST} are needed")
    keys = frame.groupby(list(COLUMNS[part.kind]))["seconds"]
    apart = frame["seconds"] > CONTRADICTION * keys.transform("min")
    if apart.any():
        row = frame[apart].iloc[0]
        raise ValueError(
            f"{file}, {word} {row['place']}: {row['seconds']:.4g} s, but another row of the same "
            f"kernel takes less than half of it"
        )


def _numbers(column: pd.Series) -> pd.Series[float]:
    """Return a column as numbers, NaN where it has none."""
    import pandas as pd

    numbers: pd.Series[float] = pd.to_numeric(column, errors="coerce").astype(float)
    return numbers


def _merged(kind: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each kernel, its median time, in order."""
    columns = list(COLUMNS[kind])
    return frame.groupby(columns, as_index=False)["seconds"].median()


def _part(kind: str, frame: pd.DataFrame, provenance: Mapping[str, str] | None = None) -> _Part:
    return _Part(kind, frame[[*COLUMNS[kind], "seconds", "place"]].copy(), provenance or {})


def _own(kind: str) -> Callable[[pd.DataFrame, Llm | None, str], list[_Part]]:
    """Return the reader of our own CSV of a kind."""
    return lambda frame, llm, dtype: [_part(kind, frame)]


def _configured(frame: pd.DataFrame, name: str, dtype: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return an aiconfigurator table's rows of a dtype with SI times, and where they are from."""
    frame = frame[frame[name] == dtype]
    if "kv_cache_dtype" in frame:
        frame = frame[frame["kv_cache_dtype"] == dtype]
    if frame.empty:
        raise ValueError(f"no rows whose {name} is {dtype}")
    frame = frame.assign(seconds=_numbers(frame["latency"]) * 1e-3)
    origin = {
        title: str(frame[column].iloc[0])
        for title, column in (("device", "device"), ("engine", "framework"), ("engine version", "version"))
        if column in frame
    }
    return frame, origin


def _configured_gemm(frame: pd.DataFrame, llm: Llm | None, dtype: str) -> list[_Part]:
    return [_part("gemm", *_configured(frame, "gemm_dtype", dtype))]


def _configured_attention(frame: pd.DataFrame, llm: Llm | None, dtype: str) -> list[_Part]:
    """Read both attention tables; `step` is the context before the token of a decode row."""
    frame, origin = _configured(frame, "attn_dtype", dtype)
    frame = frame.rename(
        columns={"num_heads": "heads", "num_key_value_heads": "kv_heads", "batch_size": "batch"}
    )
    frame = frame.assign(cached=frame["step"], context=_numbers(frame["step"]) + 1.0)
    decoding = frame["op_name"] == "generation_attention"
    prompts, tokens = frame[~decoding].rename(columns={"isl": "new"}), frame[decoding]
    parts = (_part("prompt_attention", prompts, origin), _part("decode_attention", tokens, origin))
    return [part for part in parts if len(part.frame)]


def _profiled_layers(frame: pd.DataFrame, llm: Llm, dtype: str) -> list[_Part]:
    """Read LLMServingSim's dense layers: GEMMs by their names, element-wise kernels by bytes.

    Layers that the cost model does not have (the embedding) are left out.
    """
    import pandas as pd

    up = llm.intermediate * (2 if llm.gated_mlp else 1)
    gemms = {
        "qkv_proj": (llm.query_width + 2 * llm.kv_width, llm.hidden),
        "o_proj": (llm.hidden, llm.query_width),
        "gate_up_proj": (up, llm.hidden),
        "down_proj": (llm.hidden, llm.intermediate),
    }
    per_token = elementwise_bytes(llm)
    streams = {
        "layernorm": per_token.norm,
        "act_fn": per_token.activation,
        "rotary_emb": per_token.rotary,
    }
    frame = frame.assign(seconds=_numbers(frame["time_us"]) * 1e-6)
    rows = frame[frame["layer"].isin(list(gemms))].rename(columns={"tokens": "m"})
    rows = rows.assign(
        n=rows["layer"].map({name: size[0] for name, size in gemms.items()}),
        k=rows["layer"].map({name: size[1] for name, size in gemms.items()}),
    )
    light = frame[frame["layer"].isin(list(streams))].rename(columns={"layer": "name"})
    moved = light["name"].map(streams).astype(float) * _numbers(light["tokens"])
    light = light.assign(bytes=moved)
    parts: Sequence[tuple[str, pd.DataFrame]] = (("gemm", rows), ("elementwise", light))
    return [_part(kind, part, {"model": llm.name}) for kind, part in parts if len(part)]


def _profiled_sequences(frame: pd.DataFrame, llm: Llm, dtype: str) -> list[_Part]:
    """Read LLMServingSim's kernels of rows that yield a token: the head and the sampler."""
    frame = frame.assign(seconds=_numbers(frame["time_us"]) * 1e-6)
    head = frame[frame["layer"] == "lm_head"].rename(columns={"sequences": "m"})
    sampler = frame[frame["layer"] == "sampler"].rename(columns={"sequences": "tokens"})
    sampler = sampler.assign(name=SAMPLER, bytes=_numbers(sampler["tokens"]) * llm.vocab * 4.0)
    parts = (
        _part("gemm", head.assign(n=llm.vocab, k=llm.hidden)),
        _part("elementwise", sampler),
    )
    return [part for part in parts if len(part.frame)]


def _profiled_attention(frame: pd.DataFrame, llm: Llm, dtype: str) -> list[_Part]:
    """Read LLMServingSim's attention of one prompt chunk, of decoding sequences, and of both."""
    frame = frame.rename(
        columns={
            "prefill_chunk": "new",
            "kv_prefill": "cached",
            "n_decode": "batch",
            "kv_decode": "context",
        }
    )
    frame = frame.assign(
        seconds=_numbers(frame["time_us"]) * 1e-6,
        heads=llm.heads,
        kv_heads=llm.kv_heads,
        head_dim=llm.head_dim,
    )
    prompts, decodes = frame["new"] > 0, frame["batch"] > 0
    parts = (
        _part("prompt_attention", frame[prompts & ~decodes].assign(batch=1)),
        _part("decode_attention", frame[decodes & ~prompts]),
        _part("mixed_attention", frame[prompts & decodes]),
    )
    return [part for part in parts if len(part.frame)]


# The columns that a format's files have, and its reader.
FORMATS: Mapping[tuple[str, ...], Callable[..., list[_Part]]] = {
    ("gemm_dtype", "m", "n", "k", "latency"): _configured_gemm,
    (
        "op_name",
        "attn_dtype",
        "kv_cache_dtype",
        "batch_size",
        "isl",
        "step",
        "num_heads",
        "num_key_value_heads",
        "head_dim",
        "latency",
    ): _configured_attention,
    ("layer", "tokens", "time_us"): _profiled_layers,
    ("layer", "sequences", "time_us"): _profiled_sequences,
    ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"): _profiled_attention,
    (*COLUMNS["mixed_attention"], "seconds"): _own("mixed_attention"),
    (*COLUMNS["prompt_attention"], "seconds"): _own("prompt_attention"),
    (*COLUMNS["decode_attention"], "seconds"): _own("decode_attention"),
    (*COLUMNS["elementwise"], "seconds"): _own("elementwise"),
    (*COLUMNS["gemm"], "seconds"): _own("gemm"),
}
