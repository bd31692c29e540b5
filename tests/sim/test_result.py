"""Results: outcomes, vLLM's definitions, files, and the block that vLLM prints."""

import json
import subprocess
import sys
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest

from splitwiser.sim.log import Log, pack_stay, pack_stretch
from splitwiser.sim.report import serving_block
from splitwiser.sim.result import OUTCOMES, Result, plain

META = {
    "model_id": "meta-llama/Llama-3.1-8B",
    "backend": "splitwiser-sim",
    "max_concurrency": None,
    "deployment": {"name": "continuous", "workers": ({"phase": "both"},)},
    "notes": [],
}


def small_log() -> Log:
    """Five requests: 0 and 1 decode together, 2 gets one token, 3 is refused, 4 still waits.

    Steps of 0.1 s: 0 has 6 tokens from 1.0 on; 1 has its first at 1.5 and joins after the second
    step.
    """
    log = Log(5)
    for start, end, steps, batch, joined, tokens in (
        (0.0, 1.0, 1, 0, 0, 100),
        (1.0, 1.2, 2, 1, 1, 0),
        (1.2, 1.5, 1, 0, 0, 200),
        (1.5, 1.8, 3, 2, 1, 0),
        (1.8, 2.0, 2, 1, 0, 0),
        (4.0, 5.0, 1, 0, 0, 50),
    ):
        first = (end - start) / steps
        log.stretches += pack_stretch(
            0, start, end, 1, 0, first, 0, steps, batch, joined, tokens, 10 * batch
        )
    log.stays += pack_stay(0, 0, 0, 5, 1.0) + pack_stay(1, 0, 2, 7, 1.5)
    for request, (scheduled, first_token, finished) in enumerate(
        [(0.0, 1.0, 1.8), (1.2, 1.5, 2.0), (4.0, 5.0, 5.0)]
    ):
        log.scheduled[request] = scheduled
        log.first_token[request] = first_token
        log.finished[request] = finished
    log.outcome[3] = Log.REJECTED
    log.preemptions[1] = 2
    log.reused[1] = 64
    return log


def small() -> Result:
    return Result.from_log(
        small_log(),
        arrival=[0.0, 0.5, 4.0, 4.5, 5.5],
        prompt_tokens=np.array([100, 264, 50, 9999, 10]),
        output_tokens=np.array([6, 6, 1, 5, 7]),
        meta=META,
    )


def none_completed() -> Result:
    ones = np.ones(3, dtype=int)
    return Result.from_log(
        Log(3), arrival=[0.0, 1.0, 2.0], prompt_tokens=ones, output_tokens=ones, meta={}
    )


def test_every_arrived_request_has_one_outcome() -> None:
    """Completed, rejected, aborted, running and waiting follow from what the log says of a request."""
    log = small_log()
    log.outcome[1] = Log.ABORTED
    log.finished[1] = nan
    log.finished[0] = nan
    result = Result.from_log(
        log,
        arrival=[0.0, 0.5, 4.0, 4.5, 5.5],
        prompt_tokens=np.ones(5, dtype=int),
        output_tokens=np.ones(5, dtype=int),
        meta={},
    )
    words = [OUTCOMES[code] for code in result.outcome]
    assert words == ["running", "aborted", "completed", "rejected", "waiting"]


@pytest.mark.parametrize(
    ("until", "infinite", "left"), [(4.2, False, 3), (None, True, 4), (9, True, 4)]
)
def test_who_has_not_arrived_is_left_out(until: float | None, infinite: bool, left: int) -> None:
    """A request after the simulation's end, or never issued, is no part of the result."""
    arrival = [0.0, 0.5, 4.0, 4.5, np.inf if infinite else 5.5]
    ones = np.ones(5, dtype=int)
    result = Result.from_log(
        small_log(), arrival=arrival, prompt_tokens=ones, output_tokens=ones, meta={}, until=until
    )
    assert len(result) == left == result.summary()["num_prompts"]


def test_tokens_of_each_request() -> None:
    """Token times run through the prefill of another request."""
    result = small()
    assert result.token_times(0) == pytest.approx([1.0, 1.1, 1.2, 1.6, 1.7, 1.8])
    assert result.token_times(1) == pytest.approx([1.5, 1.6, 1.7, 1.8, 1.9, 2.0])
    assert result.token_times(2) == pytest.approx([5.0])
    assert len(result.token_times(3)) == 0


def vllm_metrics(result: Result, goodput: dict[str, float]) -> dict[str, float]:
    """The arithmetic of vllm/benchmarks/serve.py on the detailed lists, request by request."""
    lists = result.detailed()
    good, rows = 0, {"ttft": [], "tpot": [], "itl": [], "e2el": []}
    spans, tokens_at, inputs, outputs = [], [], 0, 0
    for start, prompt, output, ttft, itl, error in zip(
        lists["start_times"],
        lists["input_lens"],
        lists["output_lens"],
        lists["ttfts"],
        lists["itls"],
        lists["errors"],
        strict=True,
    ):
        if error:
            continue
        latency = ttft + sum(itl)
        tpot = (latency - ttft) / (output - 1) if output > 1 else 0.0
        inputs, outputs = inputs + prompt, outputs + output
        rows["ttft"].append(ttft)
        rows["e2el"].append(latency)
        rows["itl"] += itl
        if output > 1:
            rows["tpot"].append(tpot)
        found = {"ttft": ttft, "tpot": tpot, "e2el": latency}
        good += all(found[name] <= limit for name, limit in goodput.items())
        spans.append((start, start + latency))
        tokens_at += [start + ttft, *(start + ttft + np.cumsum(itl))]
    duration = max(end for _, end in spans) - lists["start_times"][0]
    metrics = {
        "completed": len(spans),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(spans) / duration,
        "request_goodput": good / duration,
        "output_throughput": outputs / duration,
        "total_token_throughput": (inputs + outputs) / duration,
        "max_output_tokens_per_s": max(np.bincount((np.array(tokens_at) - 1e-9).astype(int))),
        "max_concurrent_requests": max(sum(a <= t < b for a, b in spans) for t, _ in spans),
        "duration": duration,
    }
    for name, values in rows.items():
        metrics[f"mean_{name}_ms"] = np.mean(values) * 1e3
        metrics[f"median_{name}_ms"] = np.median(values) * 1e3
        metrics[f"std_{name}_ms"] = np.std(values) * 1e3
        metrics[f"p99_{name}_ms"] = np.percentile(values, 99) * 1e3
    return metrics


def test_the_summary_has_vllms_definitions() -> None:
    """Every number of the summary is what vLLM's own arithmetic gives for the detailed lists."""
    goodput = {"ttft": 1.0, "tpot": 0.15}
    summary = small().summary(goodput)
    for key, value in vllm_metrics(small(), goodput).items():
        assert summary[key] == pytest.approx(value), key
    assert summary["request_goodput"] == pytest.approx(2 / 5)  # request 0 waits 0.16 s a token


def test_the_summary_has_vllms_keys() -> None:
    """Scripts that read vLLM's file find its keys, and the counts of ours add up."""
    summary = small().summary()
    keys = [*vllm_metrics(small(), {}), "failed", "request_rate", "burstiness", "max_concurrency"]
    keys += ["num_prompts", "model_id", "backend"]
    assert set(keys) <= set(summary)
    parts = ("completed", "failed", "running", "waiting")
    assert summary["num_prompts"] == sum(summary[key] for key in parts)
    assert (summary["preemptions"], summary["reused_tokens"], summary["rejected"]) == (2, 64, 1)
    assert summary["kv_blocks_peak"] == [20]


def test_who_leaves_makes_room() -> None:
    """A request that comes in the instant in which another goes is not beside it."""
    log = small_log()
    arrival = [0.0, 1.8, 5.0, 5.5, 5.5]  # request 0 ends at 1.8
    ones = np.ones(5, dtype=int)
    result = Result.from_log(log, arrival=arrival, prompt_tokens=ones, output_tokens=ones, meta={})
    assert result.summary()["max_concurrent_requests"] == 1


def test_percentiles_are_named_as_vllm_names_them() -> None:
    """99.9 becomes p99.9, and 90 p90."""
    assert {"p90_itl_ms", "p99.9_ttft_ms"} <= set(small().summary(percentiles=(90, 99.9)))


def test_tpot_of_one_token_is_not_defined() -> None:
    """TPOT skips a request with one output token, which meets any TPOT objective, as in vLLM."""
    result = small()
    assert isnan(result.tpot[2])
    assert result.within({"tpot": 0.11}).tolist() == [False, True, True, False, False]


def test_attainment_counts_all_who_arrived() -> None:
    """A rejected or unfinished request does not meet its objectives."""
    assert small().attainment({"e2el": 100.0}) == 3 / 5
    assert small().attainment({"ttft": 1.0}) == 3 / 5  # exactly 1.0 s is within 1.0 s
    assert isnan(
        Result.from_log(
            Log(0), arrival=[], prompt_tokens=np.array([]), output_tokens=np.array([]), meta={}
        ).attainment({})
    )


@pytest.mark.parametrize(
    ("goodput", "says"),
    [
        ({"tftt": 1.0}, r'"tftt" \(did you mean "ttft"\?\)'),
        ({"ttft": 0.0}, "ttft = 0.0"),
        ({"tpot": nan}, "tpot = nan"),
    ],
)
def test_bad_objectives_are_refused(goodput: dict[str, float], says: str) -> None:
    """An unknown objective, or one that is no time, is named, and no number comes."""
    with pytest.raises(ValueError, match=says):
        small().attainment(goodput)


def test_nothing_completed_gives_nan_and_null(tmp_path: Path) -> None:
    """Without samples a metric is NaN in Python and null in JSON, which has no NaN."""
    result = none_completed()
    assert isnan(result.summary()["mean_ttft_ms"])
    assert "nan" in serving_block(result.summary())
    result.save(tmp_path / "none")
    text = (tmp_path / "none.json").read_text()
    assert json.loads(text)["mean_ttft_ms"] is None
    assert "NaN" not in text


def test_a_saved_result_comes_back(tmp_path: Path) -> None:
    """Load returns what was saved: rows, time line, meta, and so every summary."""
    result = small()
    paths = result.save(tmp_path / "run.json", goodput={"ttft": 1.0}, detailed=True)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    again = Result.load(tmp_path / "run")
    assert again == result
    assert again.summary() == result.summary()
    saved = json.loads(paths[0].read_text())
    assert saved["slo_attainment"] == 3 / 5
    assert saved["itls"][1] == pytest.approx([0.1] * 5)
    assert saved["ttfts"][3] is None
    assert saved["errors"] == ["", "", "", "rejected", "waiting"]


def test_results_differ_where_anything_differs() -> None:
    """Equality looks at rows, time line and meta."""
    log = small_log()
    log.stretches[8:16] = np.float64(1e-9).tobytes()  # the first row's start
    columns = {
        "arrival": [0.0, 0.5, 4.0, 4.5, 5.5],
        "prompt_tokens": np.array([100, 264, 50, 9999, 10]),
        "output_tokens": np.array([6, 6, 1, 5, 7]),
    }
    assert Result.from_log(small_log(), **columns, meta=META) == small()
    assert Result.from_log(log, **columns, meta=META) != small()
    assert Result.from_log(small_log(), **columns, meta={}) != small()


def test_saving_is_repeatable(tmp_path: Path) -> None:
    """The same result gives the same bytes."""
    for name in ("a", "b"):
        small().save(tmp_path / name)
    for end in (".json", ".parquet", ".timeline.parquet"):
        assert (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"b{end}").read_bytes()


def test_an_unwritable_place_gets_nothing(tmp_path: Path) -> None:
    """A path that cannot be written is named in one line, and no part of the result is left there."""
    (tmp_path / "run.timeline.parquet").mkdir()  # the last of the three files cannot be put there
    with pytest.raises(OSError, match=r"cannot write .*run\.timeline\.parquet") as error:
        small().save(tmp_path / "run")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run.timeline.parquet"]
    with pytest.raises(OSError, match=r"cannot write .*missing"):
        small().save(tmp_path / "missing" / "run")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"duration": 1}', "\x00\xff"])
def test_what_is_no_result_is_refused(tmp_path: Path, content: str) -> None:
    """A broken, foreign or missing file raises in one line with its path."""
    with pytest.raises(FileNotFoundError, match=r"run\.json: no such file"):
        Result.load(tmp_path / "run")
    small().save(tmp_path / "run")
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json: not a saved result") as error:
        Result.load(tmp_path / "run")
    assert "\n" not in str(error.value)
    small().save(tmp_path / "run")
    (tmp_path / "run.parquet").write_text(content)
    with pytest.raises(ValueError, match=r"run\.parquet .*not a saved result"):
        Result.load(tmp_path / "run")


def test_the_table_has_a_row_per_request() -> None:
    """`requests` shows outcomes as words and latencies in seconds."""
    table = small().requests
    assert table["outcome"].tolist() == [
        "completed",
        "completed",
        "completed",
        "rejected",
        "waiting",
    ]
    assert table["ttft"].tolist()[:3] == [1.0, 1.0, 1.0]
    assert table["e2el"].isna().tolist() == [False, False, False, True, True]


def test_the_block_is_vllms() -> None:
    """Names, order and widths are those that `vllm bench serve` prints."""
    summary = small().summary({"ttft": 1.0, "tpot": 0.15}) | {"max_concurrency": 8}
    lines = serving_block(summary, ("ttft", "e2el"), (99,)).splitlines()
    assert lines == [
        "============ Serving Benchmark Result ============",
        "Successful requests:                     3         ",
        "Failed requests:                         1         ",
        "Unfinished requests:                     1         ",
        "Maximum request concurrency:             8         ",
        "Request rate configured (RPS):           0.91      ",
        "Benchmark duration (s):                  5.00      ",
        "Total input tokens:                      414       ",
        "Total generated tokens:                  13        ",
        "Request throughput (req/s):              0.60      ",
        "Request goodput (req/s):                 0.40      ",
        "Output token throughput (tok/s):         2.60      ",
        "Peak output token throughput (tok/s):    11.00     ",
        "Peak concurrent requests:                2.00      ",
        "Total token throughput (tok/s):          85.40     ",
        "---------------Time to First Token----------------",
        "Mean TTFT (ms):                          1000.00   ",
        "Median TTFT (ms):                        1000.00   ",
        "P99 TTFT (ms):                           1000.00   ",
        "----------------End-to-end Latency----------------",
        "Mean E2EL (ms):                          1433.33   ",
        "Median E2EL (ms):                        1500.00   ",
        "P99 E2EL (ms):                           1794.00   ",
        "==================================================",
    ]


def test_lines_without_meaning_are_left_out() -> None:
    """No goodput line without objectives, no rate line for traffic that comes at once, as in vLLM."""
    block = serving_block(small().summary() | {"request_rate": "inf", "waiting": 0})
    for name in ("goodput", "RPS", "Maximum request concurrency", "Unfinished"):
        assert name not in block


@pytest.mark.parametrize(
    ("metrics", "percentiles", "says"),
    [(["itll"], (99,), r'"itll" \(did you mean "itl"\?\)'), (["itl"], (95,), "no p95_itl_ms")],
)
def test_a_block_of_what_is_not_there_is_refused(metrics, percentiles, says: str) -> None:
    """An unknown metric, or a percentile that was not computed, is named."""
    with pytest.raises(ValueError, match=says):
        serving_block(small().summary(), metrics, percentiles)


def test_plain_values_survive_json() -> None:
    """Infinity becomes the word that vLLM writes, NaN null, tuples lists."""
    value = {"rate": float("inf"), "none": nan, "pair": (1, np.float64(2.5)), "n": np.int64(3)}
    assert plain(value) == {"rate": "inf", "none": None, "pair": [1, 2.5], "n": 3}


def test_results_import_without_pandas() -> None:
    """Importing the result loads no pandas, scipy or pyarrow, which would slow every start."""
    code = (
        "import sys, splitwiser.sim.result, splitwiser.sim.stats, splitwiser.sim.report;"
        "print([m for m in ('pandas', 'scipy', 'pyarrow', 'simpy') if m in sys.modules])"
    )
    source = Path(__file__).parents[2] / "src"
    printed = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(source)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == "[]"
