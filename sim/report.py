"""The text that `vllm bench serve` prints: simulated and measured runs compare line by line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

from splitwiser.sim.summary import percentile_word

WIDTH = 50
SECTIONS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}


def serving_block(
    summary: Mapping[str, Any],
    percentile_metrics: Sequence[str] = tuple(SECTIONS),
    metric_percentiles: Sequence[float] = (99,),
) -> str:
    """vLLM's "Serving Benchmark Result" (vllm/benchmarks/serve.py) for a `Result.summary`.

    *percentile_metrics* chooses the sections, *metric_percentiles* the percentiles shown in them,
    which the summary must hold. A line "Unfinished requests" is ours, and shown only if there are
    any. Raises ValueError for an unknown metric or a percentile that the summary lacks.
    """
    lines = [" Serving Benchmark Result ".center(WIDTH, "=")]
    lines += [_line(f"{name}:", value) for name, value in _counts(summary)]
    for metric in percentile_metrics:
        if metric not in SECTIONS:
            near = difflib.get_close_matches(metric, SECTIONS, 1)
            hint = f' (did you mean "{near[0]}"?)' if near else ""
            raise ValueError(f'percentile metric "{metric}"{hint}: one of {", ".join(SECTIONS)}')
    for metric, (short, title) in SECTIONS.items():
        if metric in percentile_metrics:
            lines.append(title.center(WIDTH, "-"))
            for word in ("mean", "median", *map(percentile_word, metric_percentiles)):
                key = f"{word}_{metric}_ms"
                if key not in summary:
                    raise ValueError(f"the summary has no {key}; ask `summary` for that percentile")
                lines.append(_line(f"{word.capitalize()} {short} (ms):", _number(summary[key])))
    lines.append("=" * WIDTH)
    return "\n".join(lines)


def _counts(summary: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The lines above the latencies: name and value."""
    unfinished = summary["running"] + summary["waiting"]
    rate = summary["request_rate"]
    goodput = summary["request_goodput"]
    lines: list[tuple[str, Any] | None] = [
        ("Successful requests", summary["completed"]),
        ("Failed requests", summary["failed"]),
        ("Unfinished requests", unfinished) if unfinished else None,
        ("Maximum request concurrency", summary["max_concurrency"])
        if summary["max_concurrency"] is not None
        else None,
        ("Request rate configured (RPS)", float(rate)) if rate not in (None, "inf") else None,
        ("Benchmark duration (s)", _number(summary["duration"])),
        ("Total input tokens", summary["total_input_tokens"]),
        ("Total generated tokens", summary["total_output_tokens"]),
        ("Request throughput (req/s)", _number(summary["request_throughput"])),
        ("Request goodput (req/s)", _number(goodput)) if goodput is not None else None,
        ("Output token throughput (tok/s)", _number(summary["output_throughput"])),
        ("Peak output token throughput (tok/s)", _number(summary["max_output_tokens_per_s"])),
        ("Peak concurrent requests", float(summary["max_concurrent_requests"])),
        ("Total token throughput (tok/s)", _number(summary["total_token_throughput"])),
    ]
    return [line for line in lines if line is not None]


def _number(value: float | None) -> float:
    """A number of the summary; null, as its JSON file has for what has no sample, is NaN."""
    return nan if value is None else float(value)


def _line(name: str, value: Any) -> str:
    return f"{name:<40} {value:<10.2f}" if isinstance(value, float) else f"{name:<40} {value:<10}"
