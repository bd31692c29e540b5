"""What the device was doing over time, from the stretches of the log: phases, KV blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from splitwiser.sim.log import STRETCH

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

PHASES = ("idle", "prefill", "decode", "both")


def columns(stretches: Floats) -> dict[str, Floats]:
    """The columns of the stretches by name."""
    return dict(zip(STRETCH, stretches.T, strict=True))


def busy(stretches: Floats, edges: Floats) -> dict[str, Floats]:
    """The share of time with "prefill" runs, "decode" runs, "both" or neither ("idle"), in bins.

    *edges* are those of the bins, in seconds.
    A step that computes prompts and decodes at once is "both". The four sum to 1. Raises ValueError
    for edges that do not rise.
    """
    edges = np.asarray(edges, dtype=np.float64)
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"bins need two or more edges that rise, not {edges.tolist()[:5]}")
    row = columns(stretches)
    prefills = _running(row, row["tokens"] > 0)
    decodes = _running(row, row["batch"] > 0)
    times = np.union1d(np.union1d(prefills[0], decodes[0]), edges)
    states = (_at(*prefills, times) > 0) + 2 * (_at(*decodes, times) > 0)
    spans = np.diff(times)
    shares = {}
    for code, phase in enumerate(PHASES):
        total = np.concatenate(([0.0], np.cumsum(spans * (states[:-1] == code))))
        shares[phase] = np.diff(total[np.searchsorted(times, edges)]) / np.diff(edges)
    return shares


def frame(stretches: Floats, edges: Floats) -> pd.DataFrame:
    """The device bin by bin: `start`, `end`, the shares of `busy`, `running`, `kv_blocks_W`.

    `running` is the mean number of sequences in decode runs; `kv_blocks_W` the blocks in use in the
    pool of worker W when its latest run before the bin's end began (workers that share a pool show
    the same blocks).
    """
    import pandas as pd

    edges = np.asarray(edges, dtype=np.float64)
    shares = busy(stretches, edges)
    row = columns(stretches)
    times, running = _running(row, row["batch"] > 0, row["batch"])
    area = np.concatenate(([0.0], np.cumsum(np.diff(times) * running[:-1])))
    integral = np.interp(edges, times, area) if len(times) else np.zeros(len(edges))
    table = {"start": edges[:-1], "end": edges[1:], **shares}
    table["running"] = np.diff(integral) / np.diff(edges)
    for worker in np.unique(row["worker"]).astype(int):
        own = row["worker"] == worker
        table[f"kv_blocks_{worker}"] = _at(row["start"][own], row["blocks"][own], edges[1:])
    return pd.DataFrame(table)


def peak_blocks(stretches: Floats) -> dict[int, int]:
    """The most KV blocks in use in the pool of each worker, when one of its runs began."""
    row = columns(stretches)
    return {
        int(worker): int(row["blocks"][row["worker"] == worker].max())
        for worker in np.unique(row["worker"])
    }


def busy_seconds(stretches: Floats, origin: float) -> Floats:
    """The edges of the whole seconds from *origin* on in which the device did anything."""
    row = columns(stretches)
    begin, end = np.floor(row["start"] - origin), np.floor(row["end"] - origin) + 1
    order = np.argsort(begin, kind="stable")
    begin, reach = begin[order], np.maximum.accumulate(end[order])
    apart = np.ones(len(begin), dtype=bool)  # the first row after an idle second
    apart[1:] = begin[1:] > reach[:-1]
    lows, highs = begin[apart], np.append(reach[:-1][apart[1:]], reach[-1:])
    sizes = (highs - lows).astype(np.int64) + 1
    inner = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    edges: Floats = origin + np.repeat(lows, sizes) + inner
    return edges


def chrome_trace(stretches: Floats, path: str | Path) -> None:
    """Write the stretches as a Chrome trace (Trace Event Format), a row per worker.

    For chrome://tracing or ui.perfetto.dev. Raises OSError where *path* cannot be written; nothing
    is then left behind.
    """
    from splitwiser.sim.atomic import replacing

    with replacing(path) as [temporary], temporary.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        names = [
            {
                "ph": "M",
                "name": "thread_name",
                "pid": 0,
                "tid": int(w),
                "args": {"name": f"worker {w:.0f}"},
            }
            for w in np.unique(columns(stretches)["worker"])
        ]
        file.write(",\n".join(json.dumps(name) for name in names))
        for values in stretches:
            event = _event(dict(zip(STRETCH, values.tolist(), strict=True)))
            file.write(",\n" + json.dumps(event))
        file.write("\n]}\n")


def _event(row: dict[str, float]) -> dict[str, object]:
    mixed = row["tokens"] > 0 and row["batch"] > 0
    return {
        "ph": "X",
        "name": "mixed" if mixed else "prefill" if row["tokens"] > 0 else "decode",
        "pid": 0,
        "tid": int(row["worker"]),
        "ts": row["start"] * 1e6,  # the format counts in microseconds
        "dur": (row["end"] - row["start"]) * 1e6,
        "args": {
            "batch": int(row["batch"]),
            "prompt_tokens": int(row["tokens"]),
            "steps": int(row["steps"]),
            "rate": row["rate"],
            "kv_blocks": int(row["blocks"]),
        },
    }


def _running(
    row: dict[str, Floats], chosen: NDArray[np.bool_], weight: Floats | None = None
) -> tuple[Floats, Floats]:
    """The times at which the number of chosen stretches changes, and the number from then on."""
    start, end = row["start"][chosen], row["end"][chosen]
    one = np.ones(len(start)) if weight is None else weight[chosen]
    times, place = np.unique(np.concatenate((start, end)), return_inverse=True)
    change = np.bincount(place, np.concatenate((one, -one)), minlength=len(times))
    return times, np.rint(np.cumsum(change))


def _at(times: Floats, values: Floats, when: Floats) -> Floats:
    """A step function's value: that of the latest time at or before *when*, 0 before the first."""
    place = np.searchsorted(times, when, side="right")
    return np.concatenate(([0.0], values))[place]
