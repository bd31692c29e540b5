"""The experiments of the Splitwiser paper (arXiv 2505.03763), as the simulator runs them.

`benchmarks/paper.py` prints them beside what the paper reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from splitwiser.models.catalogue import llm
from splitwiser.models.cost import CostModel, Demand
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import Profile
from splitwiser.models.work import prompt_pairs
from splitwiser.sim.build import ENGINES
from splitwiser.sim.deployment import continuous, pipeline, replicas, sequential
from splitwiser.sim.device import Task
from splitwiser.sim.log import STRETCH
from splitwiser.sim.result import Result
from splitwiser.sim.schedulers import ContinuousWorker
from splitwiser.sim.simulate import simulate
from splitwiser.traces.arrivals import all_at_once
from splitwiser.traces.trace import Trace

OPT, LLAMA = "facebook/opt-125m", "meta-llama/Llama-2-7b-hf"
DOCUMENTS, PROMPT, OUTPUT, BATCH = 30_000, 512, 20, 20  # Hugging Face
# Figure 8, one process: 14.3 s for 30,000 documents.
TOKENIZE_S = 0.48e-3
# Figure 8's prompt times are 27 + 5.4 N s: the slope is the start of a process (two spawns and
# their imports), the constant 30,000 documents tokenised and handed over by pickle.
SHARD_S, STARTUP_S = 27.0 / 30_000, 5.4
LLAMA_BLOCKS = 817  # the authors' log
ENGINE_BLOCKS = {1: 14_546, 2: 6_948}  # at 0.45 and 0.225 of the A10's memory, per engine


def requests(count: int, prompt: int, output: int) -> Trace:
    """`count` equal requests, all there at the start."""
    return Trace(all_at_once(count), np.full(count, prompt), np.full(count, output))


def served(result: Result) -> Result:
    """The result, if every request was served; RuntimeError otherwise: its times would mean
    nothing.
    """
    if not result.completed.all():
        raise RuntimeError(f"{(~result.completed).sum()} of {len(result)} requests were not served")
    return result


@dataclass(frozen=True, slots=True)
class Generate:
    """A run of the Hugging Face code, in seconds: until the last process starts, from then on, and
    batches/s while all run.
    """

    prompt: float
    token: float
    steady: float

    @property
    def total(self) -> float:
        """Until the last process has ended."""
        return self.prompt + self.token


def generate(
    profile: Profile, processes: int, sharing: str = "time_slice", documents: int = DOCUMENTS
) -> Generate:
    """OPT-125m, 512 tokens in and 20 out, batches of 20: N staggered processes, or one after all is
    tokenised.
    """
    if processes == 1:
        deployment = sequential().override(
            start="staggered", startup_s=0.0, tokenize_s=TOKENIZE_S, enforce_eager=True
        )
    else:
        deployment = pipeline().override(
            processes=processes, sharing=sharing, startup_s=STARTUP_S, tokenize_s=SHARD_S
        )
    trace = requests(documents, PROMPT, OUTPUT)
    result = served(simulate(trace, deployment, llm(OPT), gpu(profile.gpu), profile))
    bounds = [documents * r // processes for r in range(processes + 1)]
    shards = [slice(a, b) for a, b in pairwise(bounds)]
    all_run = max(result.scheduled[shard].min() for shard in shards)
    one_ends = min(result.finished[shard].max() for shard in shards)
    within = (result.finished > all_run) & (result.finished <= one_ends)
    return Generate(
        float(all_run),
        float(result.finished.max() - all_run),
        float(within.sum() / BATCH / (one_ends - all_run)),
    )


def batch_seconds(profile: Profile) -> float:
    """Seconds of one batch of `generate` alone; a sequential run is these, one after another."""
    deployment = sequential().override(enforce_eager=True)
    trace = requests(BATCH, PROMPT, OUTPUT)
    result = served(simulate(trace, deployment, llm(OPT), gpu(profile.gpu), profile))
    return float(result.finished.max())


def engines(profile: Profile, count: int, processes: int, sharing: str = "exclusive") -> float:
    """Seconds in which vLLM engines serve `count` requests of OPT-125m (1024 in and out), their
    start included.

    The engines start together and load the same host, which makes a start of N engines N times as
    long.
    """
    base = continuous() if processes == 1 else replicas()
    deployment = base.override(
        processes=processes,
        sharing=sharing,
        num_gpu_blocks=ENGINE_BLOCKS[processes],
        max_num_batched_tokens=2048,  # vLLM 0.3: the context of the model
        routing="contiguous",
        start="cold",
        startup_s=starting(processes),
    )
    trace = requests(count, 1024, 1024)
    result = served(simulate(trace, deployment, llm(OPT), gpu(profile.gpu), profile))
    return float(result.finished.max())


def starting(processes: int) -> float:
    """Seconds until that many engines have started."""
    return STARTUP_S * processes


def engine_batch(profile: Profile, count: int, processes: int, sharing: str) -> float:
    """Seconds in which each engine serves its `count` requests, once all engines have started."""
    return engines(profile, count * processes, processes, sharing) - starting(processes)


def llama(profile: Profile, count: int, prompt: int, output: int) -> Result:
    """Llama-2-7B on vLLM 0.3 with 817 blocks; the authors add one request per step, so each prompt
    has a step.
    """
    deployment = continuous().override(num_gpu_blocks=LLAMA_BLOCKS, max_num_batched_tokens=prompt)
    trace = requests(count, prompt, output)
    return served(simulate(trace, deployment, llm(LLAMA), gpu(profile.gpu), profile))


def token_seconds(result: Result) -> float:
    """TPOT as vLLM 0.3 logs it: the mean of the gaps between tokens, but for those in which a
    prompt was recomputed.

    The token that a recompute gives counts there as a first token.
    """
    gaps, recomputed = result.itl, result.timeline.regained
    return float((gaps.mean * gaps.count - recomputed.sum()) / (gaps.count - len(recomputed)))


class StepByStep(ContinuousWorker):
    """A continuous worker that runs one step at a time, so that the log shows the pool after every
    step.
    """

    def _plan(self, task: Task) -> None:
        super()._plan(task)
        task.steps = 1


def kv_use(
    profile: Profile, count: int, prompt: int, output: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The share of the 817 blocks in use in every step of `llama`, and which steps decode."""
    with patch.dict(ENGINES, continuous=StepByStep):
        stretches = llama(profile, count, prompt, output).timeline.stretches
    blocks, batch = (stretches[:, STRETCH.index(name)] for name in ("blocks", "batch"))
    return blocks / LLAMA_BLOCKS, batch > 0


def decode_kv_use(profile: Profile, input_length: int, output_length: int) -> float:
    """Figure 15: the mean KV use over the decode steps of one request, as the authors' log counts
    it.

    Its prompt has a token less than its name says, and the last step counts 0: its request is gone
    when it is logged.
    """
    use, decodes = kv_use(profile, 1, input_length - 1, output_length)
    return float(use[decodes][:-1].sum() / decodes.sum())


def prompt_kv_use(profile: Profile, count: int) -> float:
    """Figure 5: the mean KV use over the prompt phase, which the authors' script takes to be the
    first `count` steps.
    """
    return float(kv_use(profile, count, 1023, 1024)[0][:count].mean())


def shares_of_peak(profile: Profile) -> tuple[Demand, Demand]:
    """What a prefill of 1024 tokens of Llama-2-7B and its decode steps ask of the GPU."""
    cost = CostModel(llm(LLAMA), gpu(profile.gpu), profile)
    pairs, read = prompt_pairs(1024, 0)
    return cost.step(1024, 1, pairs, read).demand(0), cost.decode(1).demand(1024 + 512)
