"""Options that several commands share: the traffic, the engine and the cost profile."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from splitwiser.cli.console import note

if TYPE_CHECKING:
    from splitwiser.models.gpu import Gpu
    from splitwiser.models.profile import Profile
    from splitwiser.traces.trace import Trace

Flag = Parameter(negative=(), show_default=False)  # a switch without a --no- form
Several = Parameter(consume_multiple=True, negative=(), show_default=False)
TRAFFIC = Group("Traffic", sort_key=2)
ENGINE = Group("Engine (instead of the deployment's own values)", sort_key=3)

# What vLLM's random requests take; with another source they would have no effect.
_RANDOM_ONLY = ("random_input_len", "random_output_len", "random_range_ratio")


@Parameter(name="*", group=TRAFFIC)
@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Which requests arrive: a file, a preset, or vLLM's random requests."""

    trace: Path | None = None
    """A trace file; its format is recognised by content."""
    trace_format: str | None = None
    """The format of --trace, where it shall not be guessed."""
    preset: str | None = None
    """Synthetic traffic like a public trace: azure-conv and others (`splitwiser traces`)."""
    num_prompts: int | None = None
    """How many requests; the first ones of a trace. vLLM's default for random requests: 1000."""
    request_rate: float | None = None
    """Requests per second; scales the arrivals of a trace. "inf": all at once."""
    burstiness: float | None = None
    """Shape of the gamma gaps between arrivals; 1 is Poisson, less is burstier."""
    max_concurrency: int | None = None
    """Most requests in the system: a closed loop."""
    random_input_len: int | None = None
    """Prompt tokens of a random request (vLLM's default: 1024)."""
    random_output_len: int | None = None
    """Output tokens of a random request (vLLM's default: 128)."""
    random_range_ratio: float | None = None
    """Random lengths are uniform within this share on either side."""
    seed: int = 0
    """Seed of everything random in the traffic."""

    def load(self) -> Trace:
        """The trace that these options describe.

        Raises ValueError where they contradict each other or name no traffic at all, and what the
        readers and presets raise.
        """
        from dataclasses import replace

        self._check()
        if self.trace is not None:
            trace = self._from_file(self.trace)
        elif self.preset is not None:
            trace = self._from_preset(self.preset)
        else:
            trace = self._random()
        if self.max_concurrency is not None:
            trace = replace(trace, max_concurrency=self.max_concurrency)
        return trace

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given, by field name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def _check(self) -> None:
        given = self.given
        sources: list[str] = [name for name in ("trace", "preset") if name in given]
        sources += [name for name in _RANDOM_ONLY if name in given][:1]
        if len(sources) > 1:
            raise ValueError(
                f"{flag_of(sources[0])} and {flag_of(sources[1])} name two kinds of traffic"
            )
        if not given.keys() - {"seed", "trace_format"}:
            raise ValueError(
                "no traffic: give --trace FILE, --preset NAME (such as azure-conv), or --request-rate "
                "with --random-input-len and --random-output-len"
            )
        if self.trace_format is not None and self.trace is None:
            raise ValueError("--trace-format needs --trace FILE")
        if self.preset is not None and self.burstiness is not None:
            raise ValueError("--burstiness has no effect on --preset, which has its own arrivals")
        for name in ("num_prompts", "max_concurrency", "random_input_len", "random_output_len"):
            value = given.get(name)
            if value is not None and value < 1:
                raise ValueError(f"{flag_of(name)} is {value}; accepted: a whole number from 1 on")
        if self.request_rate is not None and not self.request_rate > 0:
            raise ValueError(
                f"--request-rate is {self.request_rate:g}; accepted: requests per second above 0, or inf"
            )
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}; accepted: a whole number from 0 on")

    def _from_file(self, path: Path) -> Trace:
        from splitwiser.traces import arrivals, read_trace

        trace = read_trace(path, format=self.trace_format, seed=self.seed)
        if self.num_prompts is not None:
            trace = trace.head(self.num_prompts)
        if (
            self.burstiness is not None
            or trace.rate == float("inf")
            or self.request_rate == float("inf")
        ):
            return self._retimed(trace, arrivals.gamma)
        return trace if self.request_rate is None else trace.scale(self.request_rate / trace.rate)

    def _retimed(self, trace: Trace, gamma: Any) -> Trace:
        """New arrival times for a trace that has none, or that shall not keep its own."""
        if self.request_rate is None:
            if self.burstiness is not None:
                raise ValueError(
                    "--burstiness makes new arrivals for --trace: it needs --request-rate"
                )
            return trace  # it has no arrival times, and is sent at once
        burstiness = 1.0 if self.burstiness is None else self.burstiness
        return trace.retimed(gamma(len(trace), self.request_rate, burstiness, seed=self.seed))

    def _from_preset(self, name: str) -> Trace:
        from splitwiser.traces import preset

        return preset(
            name, num_prompts=self.num_prompts, seed=self.seed, request_rate=self.request_rate
        )

    def _random(self) -> Trace:
        from splitwiser.traces import random_trace

        return random_trace(
            **{name: value for name, value in self.given.items() if name != "max_concurrency"}
        )


@Parameter(name="*", group=ENGINE)
@dataclass(frozen=True, kw_only=True)
class Engine:
    """vLLM's engine flags; each replaces the deployment's own value."""

    max_num_seqs: int | None = None
    """Most sequences in one process's batch."""
    max_num_batched_tokens: int | None = None
    """Token budget of one step."""
    gpu_memory_utilization: float | None = None
    """Share of the GPU's memory that may be used, in (0, 1]."""
    block_size: int | None = None
    """Tokens in one KV block."""
    num_gpu_blocks: int | None = None
    """KV blocks of a pool, instead of what memory allows."""
    enforce_eager: Annotated[bool | None, Flag] = None
    """Launch kernels one by one: no CUDA graphs."""
    async_scheduling: Annotated[bool | None, Flag] = None
    """Plan a step while the one before it runs (chunked)."""

    @property
    def changes(self) -> dict[str, Any]:
        """The flags that were given, as `Deployment.override` takes them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def profile_option(path: Path | None, gpu: Gpu) -> Profile:
    """The profile in the file *path*, or the built-in one of *gpu*; says so where it is another
    GPU's.
    """
    from splitwiser.models.profile import load_profile, profile_for

    if path is None:
        return profile_for(gpu.name)
    profile = load_profile(path)
    if profile.gpu not in (gpu.name, "any"):
        note(f"profile {profile.name} was made for {profile.gpu}, and is used for {gpu.name}")
    return profile


def flag_of(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")
