"""Measured runs of an engine: what their files say, and what is refused."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwiser.validate.calibration.engine_json import client_settings
from splitwiser.validate.calibration.engine_table import (
    Load,
    is_engine_table,
    read_engine_table,
    read_engine_tables,
)

BENCH = {
    "request_rate": "inf",
    "max_concurrency": 8,
    "completed": 40,
    "total_input_tokens": 40_000,
    "total_output_tokens": 4_000,
    "request_throughput": 2.5,
    "median_ttft_ms": 120.0,
    "median_tpot_ms": 12.5,
    "mean_ttft_ms": 125.0,
}


def stage(**changes: Any) -> dict[str, Any]:
    """A stage of inference-perf of 60 requests, 100 in and about 62 out."""
    return {
        "load_summary": {"count": 60, "requested_rate": 4.0},
        "successes": {
            "count": 60,
            "latency": {
                "request_latency": {"median": 0.66},
                "time_to_first_token": {"median": 0.03},
                "time_per_output_token": {"median": 0.005},
            },
            "throughput": {"requests_per_sec": 3.9},
            "prompt_len": {"mean": 100.2},
            "output_len": {"mean": 62.4},
            **changes,
        },
    }


def saved(folder: Path, name: str, content: str | dict[str, Any]) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_csv_says_what_was_sent_and_what_came_out(tmp_path: Path) -> None:
    """Aliases, units and statistics are those of the columns' names; blank cells were not measured."""
    text = (
        "isl,osl,concurrency,median_ttft_ms,tpot_us,note\n128,16,1,40,9000,x\n512,32,4,,12000,y\n"
    )
    one, four = read_engine_table(saved(tmp_path, "t.csv", text))
    assert one.measured == {"median_ttft": 0.04, "mean_tpot": pytest.approx(0.009)}
    assert (len(one.trace), one.trace.prompt_tokens[0], one.trace.output_tokens[0]) == (1, 128, 16)
    assert list(four.measured) == ["mean_tpot"]
    assert four.trace.max_concurrency == 4
    assert four.trace.rate == inf
    assert four.place.endswith("t.csv, line 3")


def test_a_rate_is_sent_for_a_minute_unless_the_table_counts_requests(tmp_path: Path) -> None:
    """An open loop without a count has 60 s of requests, with vLLM's rescaled gaps."""
    text = "input_len,output_len,qps,requests,mean_ttft_s\n9,9,2.5,,1\n9,9,2.5,7,1\n"
    minute, seven = read_engine_table(saved(tmp_path, "t.csv", text))
    assert (len(minute.trace), len(seven.trace)) == (150, 7)
    assert minute.trace.rate == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("isl,ttft_s\n1,1\n", "no column output_tokens; accepted: output_tokens, osl"),
        ("isl,osl,ttft\n1,1,1\n", "column 'ttft' does not say its unit"),
        ("isl,osl,ttft_s\n1,1,nan\n", "line 2, column ttft_s: 'nan'"),
        ("isl,osl,ttft_s\n1,1,-3\n", "line 2, column ttft_s: '-3'"),
        ("isl,osl,ttft_s\n1,1,2\n\n1,1\n", "line 4: 2 cells under 3 columns"),
        ("isl,osl,ttft_s\n1.5,1,2\n", "line 2, column isl: 1.5; accepted: whole numbers"),
        ("isl,osl,ttft_s\n,1,2\n", "line 2, column isl: empty"),
        ("isl,osl,ttft_s\n1,1,\n", "line 2: nothing was measured"),
        ("isl,osl,isl,ttft_s\n1,1,1,1\n", "two columns are called 'isl'"),
        ("isl,input_len,osl,ttft_s\n1,1,1,1\n", "both say prompt_tokens"),
        ("isl,osl,ttft_s,tp_size\n1,1,1,4\n", "tp_size is 4; accepted: engines on one GPU"),
        ("isl,osl,ttft_s,system\n1,1,1,a\n1,1,1,b\n", "column system holds a, b"),
        ("isl,osl,ttft_s\n", "holds no measured run"),
    ],
)
def test_a_csv_that_is_wrong_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    """The message holds the place, the value and what is accepted."""
    with pytest.raises(ValueError, match=r"t\.csv") as caught:
        read_engine_table(saved(tmp_path, "t.csv", text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_runs_may_not_differ_twofold(tmp_path: Path) -> None:
    """Two files that measured one load apart by more than a factor of 2 contradict each other."""
    first = saved(tmp_path, "a.csv", "isl,osl,ttft_s\n64,8,0.10\n")
    near = saved(tmp_path, "b.csv", "isl,osl,ttft_s\n64,8,0.19\n")
    far = saved(tmp_path, "c.csv", "isl,osl,ttft_s\n64,8,0.21\n")
    assert len(read_engine_tables([first, near])) == 2
    with pytest.raises(
        ValueError, match=r"c\.csv, line 2: mean_ttft .* 0\.21, but 0\.1 at .*a\.csv"
    ):
        read_engine_tables([first, far])


def test_a_summary_of_vllm_bench_is_a_closed_loop_of_mean_lengths(tmp_path: Path) -> None:
    """Its lengths are the totals over what completed."""
    (row,) = read_engine_table(saved(tmp_path, "r.json", BENCH))
    assert len(row.trace) == 40
    assert (row.trace.prompt_tokens[0], row.trace.output_tokens[0]) == (1000, 100)
    assert row.trace.max_concurrency == 8
    assert row.measured == {
        "median_ttft": pytest.approx(0.12),
        "median_tpot": pytest.approx(0.0125),
        "request_throughput": 2.5,
    }


def test_a_detailed_result_sends_its_own_requests_at_their_own_times(tmp_path: Path) -> None:
    """Requests that failed are left out, and times count from the first one."""
    detailed = BENCH | {
        "max_concurrency": None,
        "input_lens": [10, 20, 30],
        "output_lens": [5, 0, 7],
        "start_times": [107.0, 100.5, 100.0],
    }
    (row,) = read_engine_table(saved(tmp_path, "r.json", detailed))
    assert row.trace.arrival.tolist() == [0.0, 7.0]
    assert row.trace.prompt_tokens.tolist() == [30, 10]
    assert row.trace.output_tokens.tolist() == [7, 5]
    assert row.trace.max_concurrency is None
    (closed,) = read_engine_table(saved(tmp_path, "r.json", detailed | {"max_concurrency": 2}))
    assert closed.trace.arrival.tolist() == [0.0, 0.0]
    assert closed.trace.max_concurrency == 2
    assert closed.trace.prompt_tokens.tolist() == [30, 10]


def test_a_stage_takes_its_time_per_token_from_whole_latencies(tmp_path: Path) -> None:
    """inference-perf's own time per token counts stream chunks."""
    (row,) = read_engine_table(saved(tmp_path, "stage_0.json", stage()))
    assert row.measured["median_tpot"] == pytest.approx(0.63 / 61)
    assert row.trace.output_tokens[0] == 62
    assert row.trace.max_concurrency is None


def test_the_client_of_a_stage_is_told_beside_it(tmp_path: Path) -> None:
    """Its limit is workers times their concurrency; ignored ends of text make outputs equal."""
    saved(
        tmp_path,
        "config.yaml",
        "data:\n  output_len: 64  \nload:\n  num_workers: 4\n  worker_max_concurrency: 3\n"
        "server:\n  ignore_eos: true\n",
    )
    (row,) = read_engine_table(saved(tmp_path, "stage_0.json", stage()))
    assert row.trace.max_concurrency == 12
    assert row.trace.output_tokens[0] == 64
    assert row.measured["median_tpot"] == pytest.approx(0.01)
    assert client_settings(tmp_path / "none.yaml") == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "is neither a result of vllm bench serve"),
        (BENCH | {"completed": 0}, "completed is 0; accepted: a number above 0"),
        (BENCH | {"median_ttft_ms": "x"}, "median_ttft_ms is 'x'"),
        (BENCH | {"request_rate": None}, "request_rate is missing"),
        (BENCH | {"input_lens": [1], "output_lens": [1, 2]}, "1 input_lens and 2 output_lens"),
        (BENCH | {"input_lens": [1], "output_lens": [0]}, "no request that was served"),
        (BENCH | {"input_lens": "no", "output_lens": [1]}, "input_lens is no list of numbers"),
        (stage(count=-1), "successes.count is -1"),
        (stage(prompt_len={}), "successes.prompt_len.mean is missing"),
    ],
)
def test_a_json_that_is_wrong_is_refused_in_one_line(
    tmp_path: Path, content: Any, said: str
) -> None:
    """The message holds the file and the key path."""
    with pytest.raises(ValueError, match=r"r\.json") as caught:
        read_engine_table(saved(tmp_path, "r.json", content))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="isl,otf_0123456789.-naN\n\"'", max_size=80))
def test_no_text_is_read_but_for_a_table_or_an_error(text: str) -> None:
    """Whatever stands in a file, it gives rows of positive numbers or a ValueError of one line."""
    from splitwiser.validate.calibration.engine_csv import read_csv

    try:
        rows = read_csv(Path("x.csv"), "isl,osl,ttft_s\n" + text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all(value > 0 for row in rows for value in row.measured.values())


def test_tables_of_engines_are_told_from_those_of_kernels(tmp_path: Path) -> None:
    """By JSON, or columns of prompt and output tokens."""
    assert is_engine_table(saved(tmp_path, "r.json", BENCH))
    assert is_engine_table(saved(tmp_path, "e.csv", "ISL, osl,ttft_s\n"))
    assert not is_engine_table(saved(tmp_path, "k.csv", "m,n,k,seconds\n"))
    assert not is_engine_table(tmp_path)
    assert not is_engine_table(tmp_path / "none")


def test_missing_files_are_named(tmp_path: Path) -> None:
    """A table that is not there, or is a folder, is said to be so."""
    with pytest.raises(FileNotFoundError, match="no table at"):
        read_engine_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="is a directory"):
        read_engine_table(tmp_path)


def test_even_gaps_have_the_rate_that_is_asked_for() -> None:
    """An infinite burstiness spaces requests evenly."""
    trace = Load(8, 8, rate=4.0, burstiness=inf, requests=12).trace("here")
    assert np.allclose(np.diff(trace.arrival), 0.25)
    with pytest.raises(ValueError, match="here: burstiness is 0"):
        Load(8, 8, rate=4.0, burstiness=0.0).trace("here")
