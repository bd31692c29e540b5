"""Tasks of a device, drawn at random and of real steps."""

from __future__ import annotations

from hypothesis import strategies as st

from splitwiser.models.catalogue import llm
from splitwiser.models.cost import CostModel, Demand
from splitwiser.models.gpu import gpu
from splitwiser.models.profile import Profile
from splitwiser.models.work import prompt_pairs


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    """Draw a demand that a real step could have: never beyond the data sheet."""
    busy = draw(st.floats(1e-5, 1.0))
    host = max(busy, draw(st.just(0.0) | st.floats(1e-5, 1.0)))
    overhead = draw(st.just(0.0) | st.floats(0.0, 0.1))
    return Demand(
        seconds=host + overhead,
        busy=busy,
        flops=0.0,
        bytes=0.0,
        kernels=draw(st.just(0.0) | st.integers(1, 2000).map(float)),
        sm_share=draw(st.just(1.0) | st.floats(0.05, 1.0)),
        overhead=overhead,
        compute=busy * draw(st.floats(0.0, 1.0)),
        memory=busy * draw(st.floats(0.0, 1.0)),
    )


def prefill(profile: Profile, tokens: int, share: float = 1.0) -> Demand:
    """Return a Llama-3-8B prefill of one prompt on the H200."""
    cost = CostModel(llm("meta-llama/Meta-Llama-3-8B"), gpu("h200"), profile, sm_share=share)
    return cost.step(tokens, 1, *prompt_pairs(tokens, 0)).demand(0.0)


def decode(profile: Profile, n: int, context: int = 1024, share: float = 1.0) -> Demand:
    """Return a decode step of *n* sequences of the same model."""
    cost = CostModel(llm("meta-llama/Meta-Llama-3-8B"), gpu("h200"), profile, sm_share=share)
    return cost.decode(n).demand(n * context)
