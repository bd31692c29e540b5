"""What a profile says of the kernels of a table, and which rows a cache served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.corrections import HEADS
from splitwiser.models.gpu import Gpu
from splitwiser.models.kernels import KernelModel
from splitwiser.models.llm import DTYPE_BYTES
from splitwiser.models.profile import Profile
from splitwiser.models.work import prompt_pairs
from splitwiser.validate.calibration.kernel_table import SAMPLER, KernelTable, groups

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


def predict_kernels(table: KernelTable, gpu: Gpu, profile: Profile) -> dict[str, Array]:
    """Return the predicted seconds of every row of a table, by kind of kernel."""
    model = KernelModel(gpu, profile, table.dtype)
    predictions = {
        "gemm": predict_gemm,
        "prompt_attention": predict_prompts,
        "decode_attention": predict_decodes,
        "mixed_attention": predict_mixed,
    }
    seconds = {
        kind: predict(model, table[kind])
        for kind, predict in predictions.items()
        if len(table[kind])
    }
    light = table["elementwise"]
    if len(light):
        sampling = profile.value("sampling_passes") / model.stream_rate
        seconds["elementwise"] = np.where(
            light["name"] == SAMPLER,
            profile.value("sampling_start") + light["bytes"] * sampling,
            model.stream(light["bytes"]),
        )
    return seconds


def predict_gemm(model: KernelModel, frame: pd.DataFrame) -> Array:
    """Return the seconds of the rows of a GEMM frame."""
    m, n, k = (frame[column].to_numpy(float) for column in "mnk")
    return model.gemm(m, n, k)


def predict_prompts(model: KernelModel, frame: pd.DataFrame) -> Array:
    """Return the seconds of the rows of a frame of prompt attention."""
    seconds = np.empty(len(frame))
    batch, new, cached = (frame[column].to_numpy(float) for column in ("batch", "new", "cached"))
    for (heads, kv_heads, head_dim), rows in groups(frame, HEADS):
        attention = model.prompt_attention(int(heads), int(kv_heads), int(head_dim))
        for row in rows:
            pairs, kv = prompt_pairs(new[row], cached[row])
            n = batch[row]
            seconds[row] = attention(n * pairs, n * new[row], n * kv)
    return seconds


def predict_decodes(model: KernelModel, frame: pd.DataFrame, *, mixed: bool = False) -> Array:
    """Return the seconds of the rows of a frame of decode attention."""
    seconds = np.empty(len(frame))
    attended = frame["batch"].to_numpy(float) * frame["context"].to_numpy(float)
    for (batch, *shape), rows in groups(frame, ("batch", *HEADS)):
        heads, kv_heads, head_dim = map(int, shape)
        fixed, slope = model.decode_attention(batch, heads, kv_heads, head_dim, mixed=mixed)
        seconds[rows] = fixed + slope * attended[rows]
    return seconds


def predict_mixed(model: KernelModel, frame: pd.DataFrame) -> Array:
    """Return the seconds of prompt and decode attention of the rows of a mixed frame."""
    prompts = frame.assign(batch=1)
    return predict_prompts(model, prompts) + predict_decodes(model, frame, mixed=True)


def cached(kind: str, frame: pd.DataFrame, gpu: Gpu, dtype: str) -> NDArray[np.bool_]:
    """Return which rows the L2 served: a benchmark that repeats one kernel finds there what fits.

    A model's step does not, because its other kernels come between. Such a GEMM takes less than
    the DRAM needs for its bytes. Of decode attention, whose start hides much of its traffic, the
    largest row that is faster than the DRAM tells how much the L2 keeps: two thirds of it on an
    L40S, nothing on an A100. Up to there, rows count as served whose traffic would show beside a
    quarter of the fastest kernel like them.
    """
    size = DTYPE_BYTES[dtype]
    seconds = frame["seconds"].to_numpy(float)
    if kind == "gemm":
        m, n, k = (frame[column].to_numpy(float) for column in "mnk")
        traffic = (n * k + m * (n + k)) * size / gpu.bandwidth
        return np.asarray(seconds < traffic)
    elif kind == "decode_attention":
        width = frame["kv_heads"].to_numpy(float) * frame["head_dim"].to_numpy(float)
        tokens = (frame["batch"] * frame["context"]).to_numpy(float)
        traffic = 2.0 * width * size * tokens / gpu.bandwidth
        start = frame.groupby(["batch", *HEADS])["seconds"].transform("min").to_numpy(float)
        served = traffic <= traffic[seconds < traffic].max(initial=0.0)
    else:
        return np.zeros(len(frame), dtype=bool)
    result: NDArray[np.bool_] = served & (traffic > 0.25 * start)
    return result
