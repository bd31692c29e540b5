"""Measured rates of steps, alone and beside each other, and a profile's predictions of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

from splitwiser.models.catalogue import llm as llm_named
from splitwiser.models.cost import CostModel, Demand
from splitwiser.models.gpu import Gpu
from splitwiser.models.profile import Profile
from splitwiser.models.sharing import sharing_for
from splitwiser.models.work import prompt_pairs
from splitwiser.validate.calibration.points import Load

LOAD_FIELDS = tuple(field.name for field in fields(Load))


@dataclass(frozen=True, slots=True)
class StepRow:
    """Lanes that ran at the same time: what each repeated, its share of the SMs, steps per second.

    Shares are fractions of the SMs as the device granted them, 1.0 where there was no limit.
    *repeat* tells repetitions of one measurement apart. *hosts* are the seconds that a launch of
    each lane's step took its host, None where they were not measured. *decode_first*: whether
    decode's kernels had priority.
    """

    sharing: str
    loads: tuple[Load, ...]
    shares: tuple[float, ...]
    rates: tuple[float, ...]
    repeat: int = 0
    hosts: tuple[float, ...] | None = None
    decode_first: bool = True

    @property
    def alone(self) -> bool:
        """Whether one lane had the device to itself."""
        return len(self.loads) == 1

    @property
    def regime(self) -> str:
        """The sharing regime as tables name it: MPS with limits, or without priorities, is another."""
        if self.sharing != "mps":
            return self.sharing
        limited = ", limited" if min(self.shares) < 1.0 else ""
        return f"mps{limited}" + ("" if self.decode_first else ", equals")

    @property
    def title(self) -> str:
        """What ran, such as "P 2048 (74%) + D 16x1024 (24%)"."""
        parts = []
        for load, share in zip(self.loads, self.shares, strict=True):
            parts.append(load.title + (f" ({share:.0%})" if share < 1.0 else ""))
        return " + ".join(parts)


def rows_of(records: Iterable[Mapping[str, Any]], sms: int) -> list[StepRow]:
    """The steps among a raw file's measurements, those that failed left out; *sms* of the device."""
    rows = []
    for record in records:
        if "lanes" not in record or "error" in record:
            continue
        lanes = record["lanes"]
        hosts = record.get("host")
        rows.append(
            StepRow(
                record["sharing"],
                tuple(Load(**{name: lane[name] for name in LOAD_FIELDS}) for lane in lanes),
                tuple(_share(lane, sms) for lane in lanes),
                tuple(record["rates"]),
                record["repeat"],
                hosts and tuple(hosts),
                not any(lane["equal"] for lane in lanes),
            )
        )
    return rows


def _share(lane: Mapping[str, Any], sms: int) -> float:
    if lane["sm_percent"] is None:
        return 1.0
    return min(1.0, float(lane["sms"] / sms if lane["sms"] else lane["sm_percent"] / 100))


class Predictor:
    """The rates that a profile predicts for rows; its cost models are made once for each share.

    The loops have no engine around them, so that nothing comes between two steps. The steps of
    *rows* are priced at once, in less time than one by one; others may be asked for as well.
    """

    def __init__(self, gpu: Gpu, profile: Profile, rows: Iterable[StepRow] = ()) -> None:
        self._gpu = gpu
        self._profile = profile.with_values(step_overhead=0.0)
        self._cost = cache(self._make_cost)
        self._sharing = cache(partial(sharing_for, profile=self._profile))
        steps = defaultdict[CostModel, list[tuple[int, int]]](list)
        for row in rows:
            for load, share in zip(row.loads, row.shares, strict=True):
                steps[self._cost_of(load, share, row.sharing)].append(_size(load))
        for cost, sizes in steps.items():
            cost.prepare(sizes)

    def _make_cost(self, name: str, share: float, eager: bool, sharing: str) -> CostModel:
        return CostModel(
            llm_named(name),
            self._gpu,
            self._profile,
            sm_share=share,
            eager=eager,
            sharing=sharing,
        )

    def _cost_of(self, load: Load, share: float, sharing: str) -> CostModel:
        return self._cost(load.llm, share, load.eager, sharing)

    def demand(self, load: Load, share: float, sharing: str, host: float | None = None) -> Demand:
        """What a step of *load* asks of its share of the device; *host*: see `demands`."""
        cost = self._cost_of(load, share, sharing)
        if load.prompts:
            pairs, read = prompt_pairs(load.tokens, load.cached, cost.llm.sliding_window)
            step = cost.step(*_size(load), load.prompts * pairs, load.prompts * read, load.batch)
        else:
            step = cost.decode(load.batch)
        if host is not None:
            step = step._replace(host=host)
        return step.demand(load.batch * load.context)

    def demands(self, row: StepRow, hosts: Sequence[float | None] | None = None) -> list[Demand]:
        """What each lane of *row* asks; *hosts* are known seconds of its launches (None: modelled)."""
        told = hosts or [None] * len(row.loads)
        return [
            self.demand(load, share, row.sharing, host)
            for load, share, host in zip(row.loads, row.shares, told, strict=True)
        ]

    def rates(self, row: StepRow, hosts: Sequence[float | None] | None = None) -> list[float]:
        """Steps per second of each lane of *row*."""
        demands = self.demands(row, hosts)
        law = self._sharing(row.sharing, decode_first=row.decode_first)
        shared: Sequence[float] = law.rates(demands)
        return [rate / each.seconds for rate, each in zip(shared, demands, strict=True)]


def _size(load: Load) -> tuple[int, int]:
    """The tokens of a step, and the sequences that it gives a token."""
    return load.prompts * load.tokens + load.batch, load.prompts + load.batch


def read_steps(path: Path, sms: int) -> list[StepRow]:
    """The steps of a raw file."""
    from splitwiser.validate.calibration.raw import read_raw

    return rows_of(read_raw(path)[1].values(), sms)
