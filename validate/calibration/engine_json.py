"""The JSON files of `vllm bench serve --save-result` and of inference-perf's stages, as runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from splitwiser.models.names import quoted
from splitwiser.traces.arrivals import gamma
from splitwiser.traces.trace import Trace
from splitwiser.validate.calibration.engine_table import EngineRow, Load


class Document:
    """A JSON object whose values are asked for by key path, with errors that name it."""

    def __init__(self, content: Mapping[str, Any], place: str) -> None:
        self.content = content
        self.place = place

    def has(self, path: str) -> bool:
        """Whether there is something at *path*."""
        return self._at(path) is not None

    def number(self, path: str, *, unbounded: bool = False) -> float:
        """The number above 0 at *path*; with *unbounded* also "inf"."""
        value = self._at(path)
        if unbounded and value in ("inf", inf):
            return inf
        if value is None:
            raise ValueError(f"{self.place}: {path} is missing; accepted: a number above 0")
        if type(value) not in (int, float) or not (isfinite(value) and value > 0):
            raise ValueError(f"{self.place}: {path} is {quoted(value)}; accepted: a number above 0")
        return float(value)

    def numbers(self, path: str) -> list[float]:
        """The list of numbers, none negative, at *path*."""
        values = self._at(path)
        sound = isinstance(values, list) and all(
            type(value) in (int, float) and isfinite(value) and value >= 0 for value in values
        )
        if not sound or not isinstance(values, list):
            raise ValueError(f"{self.place}: {path} is no list of numbers from 0 on")
        return [float(value) for value in values]

    def _at(self, path: str) -> Any:
        value: Any = self.content
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_json(path: Path, text: str) -> list[EngineRow]:
    """Return the run that a JSON file holds; ValueError with its key path where it is wrong."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    keys = content.keys() if isinstance(content, dict) else set()
    if "load_summary" in keys:
        return [inference_perf(Document(content, str(path)), path)]
    if "request_throughput" in keys:
        return [vllm_bench(Document(content, str(path)))]
    raise ValueError(
        f"{path} is neither a result of vllm bench serve (request_throughput) nor a stage of"
        " inference-perf (load_summary)"
    )


def vllm_bench(document: Document) -> EngineRow:
    """A result of `vllm bench serve`: its medians and its throughput.

    With `--save-detailed` the requests' own lengths are sent, in the order of their `start_times`
    if the file has them, and at these unless they waited for a client; else requests of the mean
    lengths.
    """
    closed = document.has("max_concurrency")
    concurrency = int(document.number("max_concurrency")) if closed else None
    rate = document.number("request_rate", unbounded=True)
    burstiness = document.number("burstiness") if document.has("burstiness") else 1.0
    if document.has("input_lens"):
        trace = _detailed(document, rate, burstiness, concurrency)
        load = f"{document.place}: {len(trace)} requests"
    else:
        count = document.number("completed")
        stated = Load(
            max(1, round(document.number("total_input_tokens") / count)),
            max(1, round(document.number("total_output_tokens") / count)),
            concurrency,
            rate,
            burstiness,
            int(count),
        )
        trace, load = stated.trace(document.place), str(stated)
    measured = {
        f"median_{name}": document.number(f"median_{name}_ms") * 1e-3
        for name in ("ttft", "tpot")
        if document.has(f"median_{name}_ms")
    }
    measured["request_throughput"] = document.number("request_throughput")
    return EngineRow(document.place, load, trace, measured)


def _detailed(document: Document, rate: float, burstiness: float, concurrency: int | None) -> Trace:
    inputs, outputs = (np.array(document.numbers(name)) for name in ("input_lens", "output_lens"))
    if len(inputs) != len(outputs):
        raise ValueError(
            f"{document.place}: {len(inputs)} input_lens and {len(outputs)} output_lens"
        )
    done = (inputs > 0) & (outputs > 0)  # a failed request has no output
    if not done.any():
        raise ValueError(f"{document.place}: output_lens has no request that was served")
    starts = gamma(len(inputs), rate, burstiness, seed=0)
    if document.has("start_times"):
        starts = np.array(document.numbers("start_times"))
        if len(starts) != len(inputs):
            raise ValueError(
                f"{document.place}: {len(inputs)} input_lens and {len(starts)} start_times"
            )
    order = np.argsort(starts[done], kind="stable")
    arrival = starts[done][order]
    if concurrency is not None and rate == inf:  # each went when another had come back
        arrival = np.zeros(len(arrival))
    return Trace(
        arrival - arrival[0],
        inputs[done][order].astype(np.int64),
        outputs[done][order].astype(np.int64),
        max_concurrency=concurrency,
        name=document.place,
    )


def inference_perf(document: Document, path: Path) -> EngineRow:
    """A stage of inference-perf: its medians and its throughput.

    Its "constant" rate sends at exponential gaps, scaled to the stage's duration
    (`ConstantLoadTimer` in its `loadgen/load_timer.py`): vLLM's rule with burstiness 1.

    The file's own time per token counts stream chunks, not tokens: it is taken from the end-to-end
    latency and the TTFT instead. Nor does a stage tell of the client: `client_settings` reads that
    beside it.
    """
    settings = client_settings(path.with_name("config.yaml"))
    output = settings.get("output_len") or round(document.number("successes.output_len.mean"))
    concurrency = None
    if {"num_workers", "worker_max_concurrency"} <= settings.keys():
        concurrency = settings["num_workers"] * settings["worker_max_concurrency"]
    load = Load(
        round(document.number("successes.prompt_len.mean")),
        output,
        concurrency,
        document.number("load_summary.requested_rate"),
        1.0,
        int(document.number("successes.count")),
    )
    latency = "successes.latency"
    ttft = document.number(f"{latency}.time_to_first_token.median")
    whole = document.number(f"{latency}.request_latency.median")
    measured = {"median_ttft": ttft}
    if output > 1:
        measured["median_tpot"] = (whole - ttft) / (output - 1)
    measured["request_throughput"] = document.number("successes.throughput.requests_per_sec")
    return EngineRow(document.place, str(load), load.trace(document.place), measured)


def client_settings(path: Path) -> dict[str, int]:
    """The whole numbers of inference-perf's `config.yaml` that a stage's traffic depends on.

    The client's limit is `num_workers` times `worker_max_concurrency`. `output_len` is taken where
    `ignore_eos` makes every output that long: the stages count tokens by tokenising the text anew,
    and come out lower. No file, no settings.
    """
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines)
    leaves = {key.strip(): value.strip() for key, _, value in pairs}
    wanted = ["num_workers", "worker_max_concurrency"]
    if leaves.get("ignore_eos") == "true":
        wanted.append("output_len")
    return {name: int(leaves[name]) for name in wanted if leaves.get(name, "").isdecimal()}
