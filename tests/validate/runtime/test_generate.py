import os
import signal
from itertools import pairwise
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import torch

from splitwiser.models.catalogue import llm
from splitwiser.sim.deployment import Deployment, pipeline, split
from splitwiser.traces.trace import Trace
from splitwiser.validate.runtime.documents import documents, tokenised, trained
from splitwiser.validate.runtime.faults import RunFailed
from splitwiser.validate.runtime.generate import GenerateTimes, Load, Pool, run_generate
from splitwiser.validate.runtime.generate_worker import Serve, _batch_end
from splitwiser.validate.runtime.hugging_face import model_on
from splitwiser.validate.runtime.numerics import numerics_of
from splitwiser.validate.runtime.pipeline import execute_pipeline
from splitwiser.validate.runtime.weights import fill_random, layout

LOAD = Load(batch=3, prompt_tokens=24, output_tokens=5)
BATCHES, SEED = 3, 7


def reference(name: str, prompts: list[np.ndarray], outputs: int) -> np.ndarray:
    """Greedy tokens of one plain process, one prompt at a time and without a cache."""
    model_shape = llm(name)
    flat = torch.empty(layout(model_shape).nbytes, dtype=torch.uint8)
    fill_random(flat, model_shape, SEED)
    model = model_on(model_shape, numerics_of(model_shape, None), layout(model_shape).views(flat))
    rows = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        with torch.inference_mode():
            for _ in range(outputs):
                ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), 1)
        rows.append(ids[0, len(prompt) :].numpy())
    return np.array(rows, np.int32)


def prompts_of(lengths: list[int], seed: int) -> list[np.ndarray]:
    return tokenised(trained(llm("tiny-opt").vocab, SEED), documents(lengths, seed), lengths)


def test_every_document_fills_its_prompt() -> None:
    """A document of n words has at least n tokens, so that no batch of equal prompts is padded."""
    lengths = [1, 30, 512]
    assert list(map(len, prompts_of(lengths, 3))) == lengths
    ids = np.concatenate(prompts_of(lengths, 3))
    assert ids.min() >= 0
    assert ids.max() < llm("tiny-opt").vocab


def test_documents_are_determined_by_their_seed() -> None:
    """The same seed gives the same documents, another one others."""
    assert documents([40, 9], 1) == documents([40, 9], 1) != documents([40, 9], 2)


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_generate_what_one_plain_process_would(processes: int) -> None:
    """N processes on one copy of the weights give the tokens of a plain one; A + B is the total."""
    sharing = "exclusive" if processes == 1 else "time_slice"
    start = monotonic()
    times = run_generate(
        llm("tiny-opt"),
        "cpu",
        processes=processes,
        sharing=sharing,
        batches=BATCHES,
        load=LOAD,
        seed=SEED,
    )
    wall = monotonic() - start
    documents_in = BATCHES * LOAD.batch
    prompts = prompts_of([LOAD.prompt_tokens] * documents_in, SEED)
    assert np.array_equal(times.tokens, reference("tiny-opt", prompts, LOAD.output_tokens))
    cuts = [documents_in * r // processes for r in range(processes + 1)]
    assert times.batches == tuple(-(-(b - a) // LOAD.batch) for a, b in pairwise(cuts))
    assert times.total_s == times.tokenise_s + times.generate_s
    assert 0 < times.tokenise_s < max(ended[-1] for ended in times.ended_s) <= times.total_s < wall
    for ready, ended in zip(times.ready_s, times.ended_s, strict=True):
        assert [ready, *ended] == sorted([ready, *ended])


def test_the_steady_rate_counts_only_while_all_run() -> None:
    """Batches before the last process began, or after the first one ended, do not count."""
    ended = ((1.0, 2.0, 3.0, 4.0), (2.5, 3.5, 4.5, 6.0))
    times = GenerateTimes(0.0, 6.0, (0.0, 1.5), ended, np.empty((0, 0), np.int32))
    assert times.batches_per_s == pytest.approx(5 / 2.5)
    apart = GenerateTimes(0.0, 6.0, (0.0, 5.0), ended, np.empty((0, 0), np.int32))
    assert np.isnan(apart.batches_per_s)


def test_a_killed_process_ends_the_run() -> None:
    """SIGKILL of a process ends the run within 10 s, with one line, and nothing is left behind."""
    with (
        pytest.raises(RunFailed, match=r"^generating process 1 \(pid \d+\) was killed by SIGKILL$"),
        Pool(llm("tiny-opt"), "cpu", (None, None), sharing="time_slice", load=LOAD) as pool,
    ):
        steady = pool.window((0, 1), 0.4)
        assert all(steady.counts)
        assert steady.batches_per_s == pytest.approx(sum(steady.counts) / 0.4)
        assert pool.window((1,), 0.2).counts[0] > 0
        directory = pool._stage._shared.directory
        assert directory.is_dir()
        pids = [worker.process.pid or 0 for worker in pool._workers]
        killed: list[float] = []

        def kill() -> None:
            sleep(0.8)
            killed.append(monotonic())
            os.kill(pids[1], signal.SIGKILL)

        Thread(target=kill).start()
        pool.window((0, 1), 60.0)
    assert monotonic() - killed[0] < 10
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not directory.exists()


def test_a_trace_is_served_as_the_code_would() -> None:
    """The preset pipeline loses no request, keeps the order of time, and gives the right tokens."""
    model = llm("tiny-llama")
    lengths, outputs = np.array([9, 30, 5, 17, 12, 8]), np.array([4, 1, 6, 3, 2, 5])
    trace = Trace(np.array([0.0, 0.1, 0.2, 0.3, 0.4, 9.0]), lengths, outputs)
    deployment = pipeline().override(processes=2, max_num_seqs=2)
    tokens: dict[int, list[int]] = {}
    result = execute_pipeline(trace, deployment, model, "cpu", seed=SEED, tokens=tokens)
    assert result.completed.all()
    assert (result.scheduled >= result.arrival).all()
    assert (
        np.diff(np.stack((result.scheduled, result.first_token, result.finished)), 0) >= 0
    ).all()
    for request, output in enumerate(outputs):
        times = result.token_times(request)
        assert len(times) == output
        assert (np.diff(times) > 0).all()
    for shard in (0, 1):
        mine = slice(3 * shard, 3 * shard + 3)
        prompts = prompts_of(lengths[mine].tolist(), SEED + shard)
        wanted = reference("tiny-llama", prompts, int(outputs.max()))
        for row, request in enumerate(range(*mine.indices(6))):
            assert tokens[request] == wanted[row, : outputs[request]].tolist()


@pytest.mark.parametrize(
    ("deployment", "line"),
    [
        (split().override(start="staggered"), 'scheduler = "static"'),
        (pipeline().override(routing="round_robin"), 'routing = "round_robin"'),
        (pipeline().override(sharing="streams"), 'sharing = "streams"'),
    ],
)
def test_what_the_code_cannot_do_is_refused(deployment: Deployment, line: str) -> None:
    """A deployment that the paper's code has not is refused in one line, before it starts."""
    trace = Trace(np.zeros(2), np.full(2, 5), np.full(2, 2))
    with pytest.raises(ValueError, match=line) as refusal:
        execute_pipeline(trace, deployment, llm("tiny-opt"), "cpu")
    assert "\n" not in str(refusal.value)


def test_too_many_tokens_are_refused() -> None:
    """A prompt and its output have to fit the context, and every process needs a batch."""
    with pytest.raises(ValueError, match="context of 2048"):
        run_generate(llm("opt-125m"), "cpu", load=Load(20, 2040, 20))
    with pytest.raises(ValueError, match="2 batches for 3 processes"):
        run_generate(llm("tiny-opt"), "cpu", processes=3, sharing="time_slice", batches=2)


def test_a_batch_fits_the_context() -> None:
    """A batch ends before its longest prompt and longest output together outgrow the context."""
    tokens = [np.zeros(n, np.int32) for n in (10, 20, 60, 30)]
    order = Serve(np.arange(4, dtype=np.int32), np.zeros(4), tokens, np.array([30, 5, 5, 5]), 3, 16)
    assert _batch_end(order, 0, 100) == 3
    assert _batch_end(order, 0, 89) == 2
    assert _batch_end(order, 3, 89) == 4
