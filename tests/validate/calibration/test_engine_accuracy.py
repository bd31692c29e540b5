"""Predictions of public engines from a part of their measurements, held to what is promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from splitwiser.validate.calibration.engine_accuracy import (
    LIGHT_REQUESTS,
    a10,
    h100,
    read_request_log,
    rtx_pro_6000,
)

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "measured"
LOG = DATA / "llmservingsim_vllm_RTXPRO6000_Llama-3.1-8B" / "requests.jsonl"
measured = pytest.mark.skipif(not DATA.is_dir(), reason="no measurements in ../shared/data")


@measured
def test_a_log_counts_from_when_the_engine_saw_a_request() -> None:
    """Arrivals start at 0 and do not fall; TTFT and the tokens after it make up the whole."""
    log = read_request_log(LOG)
    assert len(log.trace) == 300
    assert log.trace.arrival[0] == 0.0
    whole = log.ttft + log.tpot * (log.trace.output_tokens - 1)
    np.testing.assert_allclose(whole, log.e2el)
    assert (log.ttft[:LIGHT_REQUESTS] < 0.5).all()  # the fitted part is before the queue


@measured
def test_later_requests_of_an_rtx_pro_6000_follow_from_its_kernels_and_the_first_ones() -> None:
    """Mean TPOT within 1.7 %, end-to-end within 2.2 %, TTFT within 5 % in mean and percentiles."""
    limits = {"tpot mean": 0.017, "e2el mean": 0.022}
    limits |= {f"ttft {name}": 0.05 for name in ("mean", "p50", "p90", "p99")}
    rows = [row for row in rtx_pro_6000(LOG).rows if row.case == "later requests"]
    errors = {row.quantity: row.error for row in rows}
    assert {name for name, limit in limits.items() if abs(errors[name]) > limit} == set()


@measured
def test_light_loads_of_an_h100_predict_its_saturation() -> None:
    """Throughput and median TPOT of the stages that were not fitted within 5 %."""
    rows = h100(DATA / "inference-perf_h100_vllm").rows
    judged = [r for r in rows if r.quantity in ("median_tpot", "request_throughput")]
    assert len(judged) == 8
    assert {(r.case, r.quantity) for r in judged if abs(r.error) > 0.05} == set()


@measured
def test_a_few_runs_of_an_a10_predict_the_others() -> None:
    """TPOT within 1 %; TTFT within 3 % on average: one prompt's own runs differ by 7 %."""
    rows = a10(DATA / "splitwiser_a10_llama2_7b_vllm.csv").rows
    tpot = [abs(row.error) for row in rows if row.quantity == "mean_tpot"]
    ttft = [abs(row.error) for row in rows if row.quantity == "mean_ttft"]
    assert len(tpot) == len(ttft) == 15
    assert max(tpot) < 0.01
    assert sum(ttft) / len(ttft) < 0.03
