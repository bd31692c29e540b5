"""The same deployments on a real device, calibration, and predictions held against measurements.

`execute` runs a deployment for real, in processes; `calibration` fits profiles to measurements and
judges them by others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitwiser.validate.runtime.execute import execute as execute
    from splitwiser.validate.runtime.faults import RunFailed as RunFailed

_HOME = {"execute": "execute", "RunFailed": "faults"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"splitwiser.validate.runtime.{_HOME[name]}"), name)
