"""The presets, held against the statistics that their traces are published with."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from splitwiser.traces import PRESETS, Trace, preset, read_trace

DATA = Path(__file__).parents[2].parent / "shared" / "data"
N = 100_000

# Published: mean, 50, 90 and 99 % of prompt and output tokens; requests/s; CV of the gaps.
PUBLISHED: dict[str, tuple[tuple[float, ...], tuple[float, ...], float | None, float | None]] = {
    "azure-conv": ((1155, 1020, 2735, 4142), (211, 129, 424, 601), 5.53, 1.09),
    "azure-code": ((2048, 1469, 5188, 7436), (28, 13, 55, 251), None, None),
    "mooncake-conversation": ((12035, 6909, 27367, 85400), (343, 350, 597, 1119), 3.4, 1.01),
    "arxiv-summarization": ((2588, 2730, 3702, 3933), (291, 167, 372, 3271), None, None),
    "sharegpt": ((2340, 1730, 5696, 7434), (439, 415, 834, 998), None, None),
}


def statistics(values: np.ndarray) -> list[float]:
    return [float(values.mean()), *np.quantile(values, (0.5, 0.9, 0.99)).tolist()]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_lengths(name: str) -> None:
    """Mean and 50, 90 and 99 % of prompt and output are the published ones within 3 %."""
    made = preset(name, num_prompts=N)
    prompt, output, _, _ = PUBLISHED[name]
    assert statistics(made.prompt_tokens) == pytest.approx(prompt, rel=0.03)
    assert statistics(made.output_tokens) == pytest.approx(output, rel=0.03)


@pytest.mark.parametrize("name", ["azure-conv", "mooncake-conversation"])
def test_published_arrivals(name: str) -> None:
    """The rate is the published one, and the gaps vary as published, within 3 %."""
    made = preset(name, num_prompts=N)
    _, _, rate, variation = PUBLISHED[name]
    assert made.rate == pytest.approx(rate)
    assert made.gap_cv == pytest.approx(variation, rel=0.03)


def test_mooncake_prefix_hits() -> None:
    """37 % of the prompt tokens are prefix hits, within 2 points, at any length of the trace."""
    for count in (5_000, N):
        assert preset("mooncake-conversation", num_prompts=count).prefix_hit_share == pytest.approx(
            0.37, abs=0.02
        )


def test_mooncake_conversations_grow() -> None:
    """A conversation's prompts come in order of length, each with the blocks of the one before."""
    made = preset("mooncake-conversation", num_prompts=2_000)
    assert made.session is not None and made.prefix is not None
    lengths = -(-made.prompt_tokens // made.prefix.block_tokens)
    assert made.prefix.lengths.tolist() == lengths.tolist()
    for session in np.unique(made.session):
        turns = np.flatnonzero(made.session == session)
        assert (np.diff(made.prompt_tokens[turns]) >= 0).all()
        for before, after in pairwise(turns.tolist()):
            whole = made.prompt_tokens[before] // made.prefix.block_tokens
            assert (
                made.prefix.row(after)[:whole].tolist() == made.prefix.row(before)[:whole].tolist()
            )


def test_azure_code_comes_in_bursts() -> None:
    """The code trace's gaps vary ten times more than a Poisson process's, at its own rate."""
    made = preset("azure-code", num_prompts=N)
    assert made.rate == pytest.approx(2.567)
    assert made.gap_cv is not None and made.gap_cv > 10


@pytest.mark.parametrize("name", PRESETS)
def test_rate_and_count(name: str) -> None:
    """The number of requests and the rate are the source's unless given; inf is all at once."""
    assert len(preset(name)) == PRESETS[name].num_prompts
    made = preset(name, num_prompts=500, request_rate=20.0)
    assert len(made) == 500
    assert made.rate == pytest.approx(20.0)
    assert not preset(name, num_prompts=3, request_rate=float("inf")).arrival.any()


@pytest.mark.parametrize("name", PRESETS)
def test_one_seed_one_result(name: str) -> None:
    """The same seed gives the same bytes; another one does not."""

    def columns(made: Trace) -> list[bytes]:
        return [made.arrival.tobytes(), made.prompt_tokens.tobytes(), made.output_tokens.tobytes()]

    first, again, other = (columns(preset(name, num_prompts=300, seed=s)) for s in (5, 5, 6))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_unknown_name() -> None:
    """An unknown preset is refused, with the nearest names."""
    with pytest.raises(ValueError, match="azure-conv"):
        preset("azure-convo")


def test_against_azure_file() -> None:
    """The Azure preset has the real file's statistics: quantiles, rate, CV and rank correlation."""
    file = DATA / "traces" / "AzureLLMInferenceTrace_conv.csv"
    if not file.exists():
        pytest.skip(f"no {file}")
    real, made = read_trace(file), preset("azure-conv", num_prompts=N)
    points = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    for column in ("prompt_tokens", "output_tokens"):
        expected = np.quantile(getattr(real, column), points)
        assert np.quantile(getattr(made, column), points) == pytest.approx(expected, rel=0.03)
    assert made.rate == pytest.approx(real.rate, rel=0.001)
    assert made.gap_cv == pytest.approx(real.gap_cv, rel=0.03)
    assert rank_correlation(made) == pytest.approx(rank_correlation(real), abs=0.02)


def rank_correlation(made: Trace) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(made.prompt_tokens, made.output_tokens).statistic)


def test_import_is_light() -> None:
    """Importing traces, and making a preset, loads no pandas, pyarrow or scipy."""
    code = (
        "import sys; from splitwiser.traces import preset; preset('sharegpt', num_prompts=9);"
        "print([m for m in ('pandas', 'pyarrow', 'scipy', 'simpy', 'torch') if m in sys.modules])"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"
