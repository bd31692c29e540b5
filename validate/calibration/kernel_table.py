"""`KernelTable`: measured times of single kernels, as a fit takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.corrections import HEADS

if TYPE_CHECKING:
    import pandas as pd

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

    def where(self, chosen: Callable[[str, pd.DataFrame], NDArray[np.bool_]]) -> KernelTable:
        """Return the table of the rows that *chosen* says of each kind and its frame."""
        frames = {
            kind: frame[np.asarray(chosen(kind, frame))].reset_index(drop=True)
            for kind, frame in self.frames.items()
        }
        return KernelTable(frames, self.dtype, self.provenance)


def groups(
    frame: pd.DataFrame, columns: Sequence[str]
) -> list[tuple[tuple[float, ...], NDArray[np.intp]]]:
    """Return the values of *columns* that occur together, and the rows of each."""
    found = frame.groupby(list(columns)).indices
    return [
        (tuple(float(str(size)) for size in cast(tuple[object, ...], key)), np.asarray(rows))
        for key, rows in found.items()
    ]
