"""The numbers that `vllm bench serve` reports, from a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from splitwiser.sim.gaps import Floats, Itl
from splitwiser.sim.occupancy import busy_seconds, peak_blocks
from splitwiser.sim.result import OUTCOMES

if TYPE_CHECKING:
    from splitwiser.sim.result import Result


def summarise(
    result: Result, goodput: Mapping[str, float], percentiles: Sequence[float]
) -> dict[str, Any]:
    """What `Result.summary` returns."""
    done = result.completed
    counts = dict(zip(OUTCOMES, np.bincount(result.outcome, minlength=5).tolist(), strict=True))
    duration = result.duration
    inputs, outputs = int(result.prompt_tokens[done].sum()), int(result.output_tokens[done].sum())
    good = None if not goodput else int(result.within(goodput).sum())
    summary: dict[str, Any] = {
        "backend": result.meta.get("backend"),
        "model_id": result.meta.get("model_id"),
        "num_prompts": len(result),
        "request_rate": result.request_rate,
        "burstiness": result.meta.get("burstiness"),
        "max_concurrency": result.meta.get("max_concurrency"),
        "duration": duration,
        "completed": counts["completed"],
        "failed": counts["rejected"] + counts["aborted"],
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": _per(counts["completed"], duration),
        "request_goodput": None if good is None else _per(good, duration),
        "output_throughput": _per(outputs, duration),
        "total_token_throughput": _per(inputs + outputs, duration),
        "max_output_tokens_per_s": _peak_tokens(result),
        "max_concurrent_requests": _peak_requests(result),
    }
    for name in ("ttft", "tpot", "e2el"):
        latency: Floats = getattr(result, name)[done]
        summary |= _statistics(name, latency[~np.isnan(latency)], percentiles)
    summary |= _statistics("itl", result.itl, percentiles)
    summary |= {name: counts[name] for name in OUTCOMES[1:]}
    summary["preemptions"] = int(result.preemptions.sum())
    summary["reused_tokens"] = int(result.reused.sum())
    summary["slo_attainment"] = result.attainment(goodput) if goodput else None
    summary["kv_blocks_peak"] = list(peak_blocks(result.timeline.stretches).values())
    return summary


def _peak_requests(result: Result) -> int:
    """The most completed requests in the system at a time; who leaves makes room for who comes."""
    arrival = np.sort(result.arrival[result.completed])
    gone = np.searchsorted(np.sort(result.finished[result.completed]), arrival, side="right")
    return int((np.arange(1, len(arrival) + 1) - gone).max(initial=0))


def _peak_tokens(result: Result) -> float:
    """The most output tokens in one of the seconds from the first arrival on, or NaN."""
    if isnan(result.duration):
        return nan
    seconds = busy_seconds(result.timeline.stretches, float(result.arrival[0]))
    tokens = result.timeline.tokens_by(seconds, result.first_token, result.finished)
    return float(np.diff(tokens).max(initial=0)) if len(tokens) else nan


def percentile_word(percentile: float) -> str:
    """A percentile as vLLM names it: 99 is "p99", 99.9 is "p99.9"."""
    return f"p{percentile:.0f}" if percentile == int(percentile) else f"p{percentile}"


def _statistics(name: str, sample: Floats | Itl, percentiles: Sequence[float]) -> dict[str, float]:
    """vLLM's keys for a latency, in ms; NaN without a sample."""
    wanted = {"median": 50.0, **{percentile_word(q): float(q) for q in percentiles}}
    for q in wanted.values():
        if not 0 <= q <= 100:
            raise ValueError(f"a percentile is from 0 to 100, not {q:g}")
    if isinstance(sample, Itl):
        mean, std = sample.mean, sample.std
        values = [sample.percentile(q) for q in wanted.values()]
    elif len(sample):
        mean, std = float(sample.mean()), float(sample.std())
        values = np.percentile(sample, list(wanted.values())).tolist()
    else:
        mean = std = nan
        values = [nan] * len(wanted)
    found = {"mean": mean, "median": values[0], "std": std}
    found |= dict(zip(list(wanted)[1:], values[1:], strict=True))
    return {f"{key}_{name}_ms": value * 1e3 for key, value in found.items()}


def _per(amount: float, duration: float) -> float:
    """A rate; NaN where no time passed."""
    return amount / duration if duration > 0 else nan
