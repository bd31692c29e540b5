"""`Result`: what became of every request, and the summaries that the field reads."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitwiser.sim.gaps import Floats, Ints, Itl
from splitwiser.sim.log import Log
from splitwiser.sim.timeline import Timeline

if TYPE_CHECKING:
    import pandas as pd

OUTCOMES = ("completed", "rejected", "aborted", "running", "waiting")
OBJECTIVES = ("ttft", "tpot", "e2el")  # what `goodput` may limit, as in vLLM
COLUMNS = (
    "arrival",
    "prompt_tokens",
    "output_tokens",
    "scheduled",
    "first_token",
    "finished",
    "preemptions",
    "reused",
    "outcome",
)


class Detailed(TypedDict):
    """vLLM's `--save-detailed`: seconds, an entry per request, None for what never came."""

    input_lens: list[int]
    output_lens: list[int]
    ttfts: list[float | None]
    itls: list[list[float]]
    start_times: list[float]
    errors: list[str]


@dataclass(frozen=True, eq=False)
class Result:
    """A row per request that arrived, the device's time line, and what was simulated or measured.

    Times are seconds, NaN until they come; *outcome* holds indices into `OUTCOMES`. *reused* are
    prompt tokens found in the prefix cache. *meta* is plain JSON: model, GPU, profile, deployment,
    memory, traffic, notes.
    """

    arrival: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    scheduled: Floats
    first_token: Floats
    finished: Floats
    preemptions: Ints
    reused: Ints
    outcome: NDArray[np.int8]
    timeline: Timeline
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_log(
        cls,
        log: Log,
        *,
        arrival: ArrayLike,
        prompt_tokens: Ints,
        output_tokens: Ints,
        meta: Mapping[str, Any],
        until: float | None = None,
    ) -> Result:
        """Read the log of a simulation; its rows are not copied.

        A request whose arrival is infinite or after *until* (s), where the simulation ended, has
        not arrived, and is left out; requests arrive in order.
        """
        arrival = np.asarray(arrival, dtype=np.float64)
        there = np.isfinite(arrival) if until is None else arrival <= until
        count = len(arrival) if there.all() else int(there.argmin())
        scheduled = np.asarray(log.scheduled, dtype=np.float64)[:count]
        finished = np.asarray(log.finished, dtype=np.float64)[:count]
        codes = np.asarray(log.outcome)[:count]
        outcome = np.full(count, OUTCOMES.index("waiting"), dtype=np.int8)
        outcome[~np.isnan(scheduled)] = OUTCOMES.index("running")
        outcome[~np.isnan(finished)] = OUTCOMES.index("completed")
        outcome[codes == Log.REJECTED] = OUTCOMES.index("rejected")
        outcome[codes == Log.ABORTED] = OUTCOMES.index("aborted")
        return cls(
            arrival[:count],
            np.asarray(prompt_tokens, dtype=np.int64)[:count],
            np.asarray(output_tokens, dtype=np.int64)[:count],
            scheduled,
            np.asarray(log.first_token, dtype=np.float64)[:count],
            finished,
            np.asarray(log.preemptions, dtype=np.int64)[:count],
            np.asarray(log.reused, dtype=np.int64)[:count],
            outcome,
            Timeline(log.stretch_rows(), log.stay_rows(), np.asarray(log.regained), until),
            plain(dict(meta)),
        )

    def __len__(self) -> int:
        return len(self.arrival)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        return (
            all(
                np.array_equal(getattr(self, name), getattr(other, name), equal_nan=True)
                for name in COLUMNS
            )
            and self.timeline == other.timeline
            and self.meta == other.meta
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    # Latencies --------------------------------------------------------------------------------

    @cached_property
    def completed(self) -> NDArray[np.bool_]:
        """Which requests got all their tokens."""
        return np.equal(self.outcome, OUTCOMES.index("completed"))

    @cached_property
    def ttft(self) -> Floats:
        """Time to first token of each request, from its arrival (so with its queueing), in seconds."""
        return self.first_token - self.arrival

    @cached_property
    def e2el(self) -> Floats:
        """End-to-end latency of each request, in seconds."""
        return self.finished - self.arrival

    @cached_property
    def tpot(self) -> Floats:
        """Seconds per output token after the first; NaN for a request with one output token."""
        after_first = np.where(self.output_tokens > 1, self.output_tokens - 1, nan)
        return (self.finished - self.first_token) / after_first

    @property
    def itl(self) -> Itl:
        """The pooled inter-token latencies."""
        return self.timeline.itl()

    @cached_property
    def duration(self) -> float:
        """Seconds from the first arrival to the last completion; NaN if nothing completed."""
        if not self.completed.any():
            return nan
        return float(self.finished[self.completed].max() - self.arrival[0])

    # Objectives -------------------------------------------------------------------------------

    def within(self, goodput: Mapping[str, float]) -> NDArray[np.bool_]:
        """Which requests completed within every objective (seconds, `<=`).

        The TPOT of a single token counts as 0, as in vLLM. Raises ValueError for an objective that
        is not one of `OBJECTIVES`, or no number of seconds above 0.
        """
        good = self.completed.copy()
        for name, limit in goodput.items():
            if name not in OBJECTIVES:
                near = difflib.get_close_matches(name, OBJECTIVES, 1)
                hint = f' (did you mean "{near[0]}"?)' if near else ""
                raise ValueError(f'objective "{name}"{hint}: one of {", ".join(OBJECTIVES)}')
            if not (limit > 0 and isfinite(limit)):
                raise ValueError(f"objective {name} = {limit}: seconds, above 0")
            latency: Floats = getattr(self, name)
            good &= ~(latency > limit) if name == "tpot" else latency <= limit
        return good

    def attainment(self, goodput: Mapping[str, float]) -> float:
        """The share of arrived requests that completed within every objective (s), or NaN.

        A request that is rejected, aborted or unfinished does not meet its objectives (SLO
        attainment, DistServe, OSDI 2024).
        """
        return float(self.within(goodput).mean()) if len(self) else nan

    # Summaries --------------------------------------------------------------------------------

    def summary(
        self, goodput: Mapping[str, float] | None = None, percentiles: Sequence[float] = (99,)
    ) -> dict[str, Any]:
        """The keys of `vllm bench serve`'s JSON file, with its definitions, and some of ours.

        *goodput* are objectives in seconds. Latencies are in ms, as their names say; what has no
        sample is NaN. Ours: `rejected, aborted, running, waiting, preemptions, reused_tokens,
        slo_attainment, kv_blocks_peak`.
        """
        from splitwiser.sim.summary import summarise

        return summarise(self, goodput or {}, percentiles)

    @property
    def request_rate(self) -> float | str | None:
        """Requests/s as *meta* has it, else of the arrivals; "inf" if all come at once."""
        if "request_rate" in self.meta:
            stated: float | str | None = self.meta["request_rate"]
            return stated
        if not len(self):
            return None
        last = float(self.arrival[-1])
        return len(self) / last if last > 0 else "inf"

    def token_times(self, request: int) -> Floats:
        """When each token of a request came, in seconds."""
        times = self.timeline.token_times([request], self.first_token, self.finished)
        return times.of(0)

    def detailed(self) -> Detailed:
        """What vLLM's `--save-detailed` adds to the JSON file; its cost grows with the tokens."""
        tokens = self.timeline.token_times(np.arange(len(self)), self.first_token, self.finished)
        return {
            "input_lens": self.prompt_tokens.tolist(),
            "output_lens": np.diff(tokens.offsets).tolist(),
            "ttfts": [None if isnan(value) else value for value in self.ttft.tolist()],
            "itls": [np.diff(tokens.of(request)).tolist() for request in range(len(self))],
            "start_times": self.arrival.tolist(),
            "errors": ["" if code == 0 else OUTCOMES[code] for code in self.outcome.tolist()],
        }

    @property
    def requests(self) -> pd.DataFrame:
        """A row per request, with its latencies in seconds and its outcome as a word."""
        import pandas as pd

        table: dict[str, Any] = {name: getattr(self, name) for name in COLUMNS[:-1]}
        table["outcome"] = pd.Categorical.from_codes(self.outcome, categories=pd.Index(OUTCOMES))
        table |= {name: getattr(self, name) for name in ("ttft", "tpot", "e2el")}
        return pd.DataFrame(table)

    # Files ------------------------------------------------------------------------------------

    def save(
        self,
        stem: str | Path,
        *,
        goodput: Mapping[str, float] | None = None,
        percentiles: Sequence[float] = (99,),
        detailed: bool = False,
    ) -> list[Path]:
        """Write the result to three files, see `splitwiser.sim.result_file.save`."""
        from splitwiser.sim.result_file import save

        return save(self, stem, goodput=goodput, percentiles=percentiles, detailed=detailed)

    @classmethod
    def load(cls, stem: str | Path) -> Result:
        """Read what `save` wrote; an equal result."""
        from splitwiser.sim.result_file import load

        return load(stem)


def plain(value: Any) -> Any:
    """*value* as JSON can hold it: tuples as lists, infinity as "inf", NaN as None (null)."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not isfinite(value):
        return None if isnan(value) else "inf" if value > 0 else "-inf"
    return value
