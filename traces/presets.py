"""Built-in synthetic traffic with the published statistics of public traces; no file is needed.

Lengths follow the quantile tables of `marginals.py`. Arrivals are gamma gaps of the published
variation. What a preset does not have: the slow drift of the rate over hours, and any dependence of
a request on the one before (Mooncake's conversations excepted).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwiser.traces import arrivals, marginals
from splitwiser.traces.conversations import conversations
from splitwiser.traces.marginals import Quantiles, dependent_uniforms
from splitwiser.traces.streams import Purpose, stream
from splitwiser.traces.trace import Trace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Preset:
    """What a public trace looks like. `arrive` takes (count, requests/s, seed)."""

    source: str
    num_prompts: int  # of the source
    request_rate: float  # requests/s
    prompt: Quantiles
    output: Quantiles
    rank_correlation: float  # Spearman's, of prompt and output length
    arrive: Callable[[int, float, int], Floats]
    chats: bool = False  # whether prompts share prefixes
    note: str = ""


def _gamma(cv: float) -> Callable[[int, float, int], Floats]:
    def arrive(count: int, rate: float, seed: int) -> Floats:
        return arrivals.gamma(count, rate, 1 / cv**2, seed=seed)

    return arrive


# Azure code comes in bursts. In an excerpt of 440 rows (the file's characters 100,000 to 116,000)
# the mean gap within a burst is 0.13 s, and two silences part the bursts. The length of a silence
# then follows from the rate: 57 s.
CODE_BURST_REQUESTS = 220.0
CODE_BURST_GAP_S = 0.13
CODE_RATE = 2.567


def _code(count: int, rate: float, seed: int) -> Floats:
    if rate == float("inf"):
        return arrivals.all_at_once(count)
    gap = CODE_BURST_GAP_S * CODE_RATE / rate  # another rate is the same process, played faster
    return arrivals.bursts(count, rate, CODE_BURST_REQUESTS, gap, seed=seed)


_POISSON_NOTE = "the source has no arrival times: Poisson, 1 request/s unless a rate is given"

PRESETS: dict[str, Preset] = {
    "azure-conv": Preset(
        source="Azure/AzurePublicDataset, LLM inference trace 2023, conversation (CC-BY-4.0)",
        num_prompts=19_366,
        request_rate=5.53,
        prompt=marginals.AZURE_CONV_PROMPT,
        output=marginals.AZURE_CONV_OUTPUT,
        rank_correlation=0.073,  # measured on all 19,366 rows of the file
        arrive=_gamma(1.09),
    ),
    "azure-code": Preset(
        source="Azure/AzurePublicDataset, LLM inference trace 2023, code (CC-BY-4.0)",
        num_prompts=8_819,
        request_rate=CODE_RATE,  # 8,819 rows from 18:17:03.98 to 19:14:19.93
        prompt=marginals.AZURE_CODE_PROMPT,
        output=marginals.AZURE_CODE_OUTPUT,
        rank_correlation=0.0,  # not known
        arrive=_code,
        note="bursts of about 220 requests with silences of about a minute (gap CV near 14)",
    ),
    "mooncake-conversation": Preset(
        source="kvcache-ai/Mooncake, FAST25 conversation trace (Apache-2.0)",
        num_prompts=12_031,
        request_rate=3.4,
        prompt=marginals.MOONCAKE_PROMPT,
        output=marginals.MOONCAKE_OUTPUT,
        rank_correlation=0.082,  # measured on the first 3,658 rows
        arrive=_gamma(1.01),  # after spreading the 3 s stamps
        chats=True,
    ),
    "arxiv-summarization": Preset(
        source="microsoft/vidur, arXiv summarisation lengths (MIT)",
        num_prompts=28_257,
        request_rate=1.0,
        prompt=marginals.ARXIV_PROMPT,
        output=marginals.ARXIV_OUTPUT,
        rank_correlation=-0.114,  # measured on all 28,257 rows
        arrive=_gamma(1.0),
        note=_POISSON_NOTE,
    ),
    "sharegpt": Preset(
        source="project-etalon/etalon, ShareGPT lengths with history (Apache-2.0)",
        num_prompts=30_731,
        request_rate=1.0,
        prompt=marginals.SHAREGPT_PROMPT,
        output=marginals.SHAREGPT_OUTPUT,
        rank_correlation=0.051,  # measured on all 30,731 rows
        arrive=_gamma(1.0),
        note=_POISSON_NOTE,
    ),
}


def preset(
    name: str,
    *,
    num_prompts: int | None = None,
    seed: int = 0,
    request_rate: float | None = None,
) -> Trace:
    """Synthetic requests like those of a public trace; the names are the keys of :data:`PRESETS`.

    The number of requests and the rate (requests/s; inf: all at once) are the source's unless
    given. An unknown name raises :exc:`ValueError` with the nearest ones.
    """
    chosen = PRESETS.get(name)
    if chosen is None:
        near = difflib.get_close_matches(name, PRESETS, n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown preset {name!r}{hint} (accepted: {', '.join(PRESETS)})")
    count = chosen.num_prompts if num_prompts is None else num_prompts
    rate = chosen.request_rate if request_rate is None else request_rate
    arrival = chosen.arrive(count, rate, seed)
    u, v = dependent_uniforms(
        count,
        chosen.rank_correlation,
        stream(seed, Purpose.PROMPTS),
        stream(seed, Purpose.OUTPUTS),
    )
    prompt, output = chosen.prompt.at(u), chosen.output.at(v)
    session = prefix = None
    if chosen.chats:
        order, session, prefix = conversations(prompt, stream(seed, Purpose.SESSIONS))
        prompt, output = prompt[order], output[order]
    notes = (f"synthetic, after {chosen.source}",) + ((chosen.note,) if chosen.note else ())
    return Trace(arrival, prompt, output, session=session, prefix=prefix, name=name, notes=notes)
