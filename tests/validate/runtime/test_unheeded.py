"""What a real run cannot do that was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from splitwiser.sim.deployment import Deployment, chunked, continuous, pipeline
from splitwiser.traces.trace import Trace
from splitwiser.validate.runtime.unheeded import unheeded

TRACE = Trace(np.zeros(1), np.array([8]), np.array([2]))

ASKED = {
    'start = "cold"': replace(continuous(), start="cold"),
    "startup_s = 3": replace(continuous(), startup_s=3.0),
    "async_scheduling = true": replace(chunked(), async_scheduling=True),
    "tokenize_s = 0.001": replace(continuous(), tokenize_s=1e-3),
}


@pytest.mark.parametrize("key", ASKED)
def test_what_has_no_effect_is_said(key: str) -> None:
    """Whatever is asked for and not done gives one note, which names it and its value."""
    (note,) = unheeded(ASKED[key], TRACE)
    assert note.startswith(f"{key} has no effect: ") and "\n" not in note


@pytest.mark.parametrize("deployment", [continuous(), pipeline()])
def test_what_is_done_is_not_said(deployment: Deployment) -> None:
    """A deployment that is run as it stands gives none: the paper's code does tokenise."""
    assert unheeded(deployment, TRACE) == []
