"""What a deployment asks of the simulator, and a real run does not do."""

from __future__ import annotations

from splitwiser.sim.deployment import Deployment
from splitwiser.traces.trace import Trace


def unheeded(deployment: Deployment, trace: Trace) -> list[str]:
    """A note for each thing that was asked for and has no effect on a real device."""
    notes = []
    if deployment.start == "cold":
        notes.append('start = "cold" has no effect: every process is up before the clock starts')
    if deployment.startup_s is not None:
        notes.append(
            f"startup_s = {deployment.startup_s:g} has no effect: "
            "a process takes as long as it takes to start"
        )
    if deployment.tokenize_s and deployment.start != "staggered":
        notes.append(
            f"tokenize_s = {deployment.tokenize_s:g} has no effect: "
            "prompts come as tokens, and nothing is tokenised"
        )
    if deployment.async_scheduling:
        notes.append(
            "async_scheduling = true has no effect: every step is planned when the one before it"
            " has ended"
        )
    if trace.prefix is not None and deployment.prefix_caching:
        notes.append("prefix caching is not in the runtime: every prompt is computed whole")
    return notes
