"""Traffic from vLLM's benchmark flags."""

from __future__ import annotations

from splitwiser.traces import arrivals, lengths
from splitwiser.traces.streams import Purpose
from splitwiser.traces.trace import Trace


def random_trace(
    num_prompts: int = 1000,
    request_rate: float = float("inf"),
    burstiness: float = 1.0,
    random_input_len: int = 1024,
    random_output_len: int = 128,
    random_range_ratio: float = 0.0,
    seed: int = 0,
    max_concurrency: int | None = None,
) -> Trace:
    """The load of `vllm bench serve --dataset-name random`; flags and defaults are vLLM's.

    *request_rate* is in requests/s; inf sends all at once, and with *max_concurrency* that is a
    closed loop. The distributions are vLLM's, the draws are not (vLLM uses numpy's global state).
    """
    return Trace(
        arrival=arrivals.gamma(num_prompts, request_rate, burstiness, seed=seed),
        prompt_tokens=lengths.uniform_range(
            num_prompts, random_input_len, random_range_ratio, seed=seed, purpose=Purpose.PROMPTS
        ),
        output_tokens=lengths.uniform_range(
            num_prompts, random_output_len, random_range_ratio, seed=seed, purpose=Purpose.OUTPUTS
        ),
        max_concurrency=max_concurrency,
        name=f"random {random_input_len}/{random_output_len}",
    )
