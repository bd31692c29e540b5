"""The paper's arithmetic through the simulator: KV use, the staggered start, the sequential
baseline.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from splitwiser.models.catalogue import llm
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import sheet_profile
from splitwiser.sim.deployment import pipeline
from splitwiser.sim.simulate import simulate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)


def _benchmark(name: str) -> ModuleType:
    spec = spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


runs, reported = _benchmark("paper_runs"), _benchmark("paper_reported")
SHEET = sheet_profile("a10")


@pytest.mark.parametrize("prompt", reported.FIGURE_15)
def test_figure_15_is_exact(prompt: int) -> None:
    """The mean KV use of one request over its decode steps is the paper's, to the printed
    hundredth.
    """
    use = [100 * runs.decode_kv_use(SHEET, prompt, output) for output in reported.OUTPUTS]
    assert tuple(np.round(use, 2)) == reported.FIGURE_15[prompt]


@pytest.mark.parametrize("count", reported.BATCHES)
def test_figure_5_is_read_within_a_plot_s_precision(count: int) -> None:
    """The mean KV use of the prompt phase, the first steps of a batch, is the plotted one within
    0.3 points.
    """
    assert 100 * runs.prompt_kv_use(SHEET, count) == pytest.approx(
        reported.BATCHES[count][0], abs=0.3
    )


def test_one_step_at_a_time_changes_only_the_log() -> None:
    """A worker that makes its runs one step long, to show the pool after each, serves at the same
    times.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runs.ENGINES, "continuous", runs.StepByStep)
        stepwise = runs.llama(SHEET, 15, 1023, 300)
    whole = runs.llama(SHEET, 15, 1023, 300)
    assert stepwise.preemptions.tolist() == whole.preemptions.tolist()
    assert stepwise.preemptions.any()
    np.testing.assert_allclose(stepwise.finished, whole.finished, rtol=1e-9)
    assert len(stepwise.timeline.stretches) > 10 * len(whole.timeline.stretches)


def test_pipeline_processes_start_one_after_another() -> None:
    """Process r of the paper's code starts after r + 1 start-ups and the tokenising of r + 1 parts."""
    documents, deployment = 400, pipeline()
    trace = runs.requests(documents, 512, 20)
    result = simulate(trace, deployment, llm(runs.OPT), gpu("a10"), SHEET)
    starts = result.scheduled.reshape(deployment.processes, -1).min(axis=1)
    part = SHEET.value("startup") + deployment.tokenize_s * documents / deployment.processes
    np.testing.assert_allclose(starts, part * np.arange(1, deployment.processes + 1), rtol=1e-12)


def test_sequential_is_tokenising_then_batches() -> None:
    """The paper's baseline takes A + B: all documents tokenised, then one batch after another."""
    run = runs.generate(SHEET, 1, documents=200)
    assert run.prompt == pytest.approx(200 * runs.TOKENIZE_S, rel=1e-12)
    assert run.token == pytest.approx(10 * runs.batch_seconds(SHEET), rel=1e-9)


def test_tpot_leaves_recomputes_out() -> None:
    """TPOT as vLLM 0.3 logs it is the plain one without preemption, and below it where prompts were
    recomputed.
    """
    calm, full = (runs.llama(SHEET, count, 1023, 300) for count in (5, 15))
    assert runs.token_seconds(calm) == pytest.approx(calm.tpot.mean(), rel=1e-9)
    assert len(full.timeline.regained)
    assert runs.token_seconds(full) < full.tpot.mean()


def test_an_unserved_request_is_an_error() -> None:
    """A run in which a request was refused gives no time."""
    with pytest.raises(RuntimeError, match="1 of 1 requests were not served"):
        runs.llama(SHEET, 1, 4096, 16)
