"""How should prefill and decode share one GPU, and what will it carry?

The names below are the public interface; each is imported when it is first used. `execute` alone
needs torch, which the extra `validate` brings.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitwiser.models.catalogue import llm as llm
    from splitwiser.models.gpu import gpu as gpu
    from splitwiser.models.profile import load_profile as load_profile
    from splitwiser.models.profile import profile_for as profile_for
    from splitwiser.sim.deployment import Deployment as Deployment
    from splitwiser.sim.deployment import Workers as Workers
    from splitwiser.sim.deployment_file import deployment as deployment
    from splitwiser.sim.objectives import parse_goodput as parse_goodput
    from splitwiser.sim.plan import plan as plan
    from splitwiser.sim.result import Result as Result
    from splitwiser.sim.simulate import simulate as simulate
    from splitwiser.traces.presets import preset as preset
    from splitwiser.traces.readers import read_trace as read_trace
    from splitwiser.traces.trace import Trace as Trace
    from splitwiser.traces.traffic import random_trace as random_trace
    from splitwiser.validate.runtime.execute import execute as execute
    from splitwiser.validate.runtime.faults import RunFailed as RunFailed

_HOME = {
    "Deployment": "sim.deployment",
    "Result": "sim.result",
    "RunFailed": "validate.runtime.faults",
    "Trace": "traces.trace",
    "Workers": "sim.deployment",
    "deployment": "sim.deployment_file",
    "execute": "validate.runtime.execute",
    "gpu": "models.gpu",
    "llm": "models.catalogue",
    "load_profile": "models.profile",
    "parse_goodput": "sim.objectives",
    "plan": "sim.plan",
    "preset": "traces.presets",
    "profile_for": "models.profile",
    "random_trace": "traces.traffic",
    "read_trace": "traces.readers",
    "simulate": "sim.simulate",
}

__version__ = "0.1.0"
__all__ = [
    "Deployment",
    "Result",
    "RunFailed",
    "Trace",
    "Workers",
    "__version__",
    "deployment",
    "execute",
    "gpu",
    "llm",
    "load_profile",
    "parse_goodput",
    "plan",
    "preset",
    "profile_for",
    "random_trace",
    "read_trace",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"splitwiser.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
