"""How well an H200's profile predicts what other code measured on another H200.

Pairs: what each phase needs alone, under the same regime and limits, is the table's; how both slow
each other is the profile's. `generate`: the host's time comes from one process alone and from the
most processes under MPS; the other rows are predicted. The profile saw no row of either table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from splitwiser.models.catalogue import llm
from splitwiser.models.cost import CostModel, Demand
from splitwiser.models.gpu import Gpu, gpu
from splitwiser.models.profile import Profile
from splitwiser.models.sharing import sharing_for
from splitwiser.models.work import prompt_pairs
from splitwiser.validate.calibration.corun_table import GenerateRow, read_corun, read_generate
from splitwiser.validate.calibration.engine_accuracy import AccuracyRow
from splitwiser.validate.calibration.points import Load
from splitwiser.validate.calibration.steps import Predictor, StepRow

CORUN, GENERATE = "h200_llama3_8b_corun.csv", "h200_hf_generate_multiprocess.csv"
GENERATE_LLM = "facebook/opt-125m"
MOST = 20.0  # times one process's host time that a step of many may take its host


def other_implementation(folder: Path, profile: Profile) -> list[AccuracyRow]:
    """Return the held-out rows of both tables in *folder*, in seconds a step, or a batch."""
    sheet = gpu("h200")
    return [
        *pairs(read_corun(folder / CORUN), sheet, profile),
        *generate(read_generate(folder / GENERATE), sheet, profile),
    ]


def pairs(rows: Sequence[StepRow], sheet: Gpu, profile: Profile) -> list[AccuracyRow]:
    """Predict each phase of the pairs among *rows* from the rows of one phase.

    Kernels are taken to run through all of a phase's time alone: the table does not tell its waits
    for the host from slow kernels. ValueError where a phase of a pair was not measured alone.
    """
    alone = {
        (row.sharing, row.loads[0], row.shares[0]): 1.0 / row.rates[0] for row in rows if row.alone
    }
    model = Predictor(sheet, profile)
    found = []

    def demand(load: Load, share: float, sharing: str) -> Demand:
        seconds = alone.get((sharing, load, share))
        if seconds is None:
            raise ValueError(
                f"{load.title} on {share:.0%} under {sharing} was not measured alone; a pair is"
                " predicted from both of its phases alone"
            )
        return model.demand(load, share, sharing)._replace(seconds=seconds, busy=seconds)

    for row in rows:
        if row.alone:
            continue
        lanes = list(zip(row.loads, row.shares, strict=True))
        demands = [demand(load, share, row.sharing) for load, share in lanes]
        law = sharing_for(row.sharing, profile, decode_first=row.decode_first)
        rates = law.rates(demands)
        for load, each, rate, measured in zip(row.loads, demands, rates, row.rates, strict=True):
            case = f"{row.regime.replace('_', ' ')}, {load.phase}"
            found.append(AccuracyRow(case, row.title, 1.0 / measured, each.seconds / rate))
    return found


def generate(rows: Sequence[GenerateRow], sheet: Gpu, profile: Profile) -> list[AccuracyRow]:
    """Predict the seconds of a batch in all rows but those of one process and of most under MPS.

    These two give the host's time after a step, and what each further process adds to the host's
    time of all. ValueError where one of them is missing.
    """
    single = [row for row in rows if row.processes == 1]
    crowds = [row for row in rows if row.regime == "mps" and row.processes > 1]
    if not single or not crowds:
        raise ValueError("generate needs a row of one process and one of several under mps")
    one, many = single[0], max(crowds, key=lambda row: row.processes)
    bare = 1.0 / generate_rate(one, sheet, profile.with_values(step_overhead=0.0))
    between = max(0.0, (1.0 / one.rate - bare) / one.output_tokens)
    known = profile.with_values(step_overhead=between)
    slope = (_host_factor(many, sheet, known) - 1.0) / (many.processes - 1)
    return [
        AccuracyRow(
            "generate",
            f"{row.regime}, {row.title}",
            1.0 / row.rate,
            1.0 / generate_rate(row, sheet, known, 1.0 + slope * (row.processes - 1)),
        )
        for row in rows
        if row is not one and row is not many
    ]


def _host_factor(row: GenerateRow, sheet: Gpu, profile: Profile) -> float:
    """Return how many times its host time alone a process of *row* takes, in [1, MOST]."""
    from scipy.optimize import brentq

    def excess(factor: float) -> float:
        return generate_rate(row, sheet, profile, factor) - row.rate

    if excess(1.0) <= 0.0:
        return 1.0
    return MOST if excess(MOST) >= 0.0 else float(brentq(excess, 1.0, MOST))


def generate_rate(row: GenerateRow, sheet: Gpu, profile: Profile, host: float = 1.0) -> float:
    """Return batches per second over all processes of *row*, each with *host* times its host time.

    Processes are out of step, so that each meets neighbours of average demand: the mean of a
    batch's steps.
    """
    profile = profile.with_values(
        step_overhead=host * profile.value("step_overhead"),
        launch_host=host * profile.value("launch_host"),
    )
    shape, n = llm(GENERATE_LLM), row.batch
    cost = CostModel(shape, sheet, profile, sm_share=row.share, eager=True)
    tokens, read = prompt_pairs(row.prompt_tokens, 0, shape.sliding_window)
    steps = [cost.step(n * row.prompt_tokens, n, n * tokens, n * read).demand(0.0)]
    decode = cost.decode(n)
    for token in range(1, row.output_tokens):
        steps.append(decode.demand(n * (row.prompt_tokens + token)))
    mean = Demand(*(fmean(values) for values in zip(*steps, strict=True)))
    law = sharing_for(row.sharing, profile, decode_first=False)
    rate = law.rates([mean] * row.processes)[0]
    return row.processes * rate / (mean.seconds * len(steps))
