"""How well a fit to kernel times predicts model shapes that it never saw."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.gpu import Gpu
from splitwiser.models.profile import Profile
from splitwiser.validate.calibration.kernel_fit import LEAST_SIDE, fit_kernels
from splitwiser.validate.calibration.kernel_predict import cached, predict_kernels
from splitwiser.validate.calibration.kernel_table import KernelTable

if TYPE_CHECKING:
    import pandas as pd

# Widths (hidden, intermediate, query and key-value widths) and head counts left out together: those
# of models that a reader may plan for. Each fold's rows are predicted by a fit to all other rows.
WIDTHS: tuple[frozenset[int], ...] = (
    frozenset({2560, 5120, 10240}),  # OPT-2.7B, Qwen3-14B, Llama-2-13B
    frozenset({3584, 7168}),  # Qwen2.5-7B, DeepSeek-V3
    frozenset({4096, 16384}),  # Llama-3-8B, OPT-6.7B, Llama-3-405B
)
HEAD_COUNTS: tuple[frozenset[int], ...] = (
    frozenset({40}),
    frozenset({64}),
    frozenset({32}),
)


class HeldOut(NamedTuple):
    """Errors of held-out rows: |predicted/measured - 1|, its mean and 95th percentile, as fractions.

    `scope` says which rows count, `errors` holds the size of each row's.
    """

    kind: str
    scope: str
    rows: int
    mape: float
    p95: float
    errors: NDArray[np.float64]


def held_out(
    table: KernelTable,
    gpu: Gpu,
    start: Profile,
    *,
    widths: Collection[frozenset[int]] = WIDTHS,
    head_counts: Collection[frozenset[int]] = HEAD_COUNTS,
) -> list[HeldOut]:
    """Return the errors on rows whose model shape was left out of the fit.

    A GEMM is left out where n or k is one of a fold's *widths*, an attention row where its heads
    are one of the *head_counts*; folds are taken in pairs, one fit for each. Scopes: all rows that
    were left out; those that the DRAM served, as it serves a model's steps; and of those the GEMMs
    whose sides are a layer's (`LEAST_SIDE` or more).
    """
    found: dict[str, list[pd.DataFrame]] = {}
    for width, heads in zip(widths, head_counts, strict=True):
        for kind, frame in _fold(table, gpu, start, width, heads).items():
            found.setdefault(kind, []).append(frame)
    return [
        row for kind, frames in found.items() for row in _scopes(kind, frames, gpu, table.dtype)
    ]


def _fold(
    table: KernelTable, gpu: Gpu, start: Profile, widths: frozenset[int], heads: frozenset[int]
) -> Mapping[str, pd.DataFrame]:
    """Return the rows of a fold with the `error` of a fit to all others."""

    def left_out(kind: str, frame: pd.DataFrame) -> NDArray[np.bool_]:
        if kind == "gemm":
            return (frame["n"].isin(widths) | frame["k"].isin(widths)).to_numpy(bool)
        if "heads" in frame:
            return frame["heads"].isin(heads).to_numpy(bool)
        return np.zeros(len(frame), dtype=bool)  # element-wise kernels have no shape to leave out

    fit = fit_kernels(table.where(lambda kind, frame: ~left_out(kind, frame)), gpu, start)
    held = table.where(left_out)
    return {
        kind: held[kind].assign(error=np.abs(seconds / held[kind]["seconds"] - 1.0))
        for kind, seconds in predict_kernels(held, gpu, fit.profile).items()
    }


def _scopes(kind: str, frames: list[pd.DataFrame], gpu: Gpu, dtype: str) -> list[HeldOut]:
    """Return the errors of a kind's rows, by scope."""
    import pandas as pd

    warm = np.concatenate([cached(kind, frame, gpu, dtype) for frame in frames])
    frame = pd.concat(frames, ignore_index=True)
    scopes: list[tuple[str, NDArray[np.bool_]]] = [("all rows", np.ones(len(frame), dtype=bool))]
    if warm.any():
        scopes.append(("served by DRAM", ~warm))
    if kind == "gemm":
        layers = (frame[["n", "k"]].min(axis=1) >= LEAST_SIDE).to_numpy(bool)
        scopes.append(("n, k >= 512", layers))
        if warm.any():
            scopes.append(("n, k >= 512, served by DRAM", layers & ~warm))
    errors = frame["error"].to_numpy(float)
    return [
        HeldOut(
            kind,
            title,
            int(rows.sum()),
            errors[rows].mean(),
            float(np.quantile(errors[rows], 0.95)),
            errors[rows],
        )
        for title, rows in scopes
    ]
