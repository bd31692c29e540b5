"""The sharing regimes by name: how fast running tasks progress beside each other on one GPU."""

from __future__ import annotations

from functools import lru_cache

from splitwiser.models.names import unknown_name
from splitwiser.models.power import Power
from splitwiser.models.profile import Profile
from splitwiser.models.regimes import Exclusive, Sharing, TimeSlice
from splitwiser.models.shares import Growth
from splitwiser.models.spatial import Beside, Spatial

REGIMES = ("exclusive", "time_slice", "mps", "streams", "green_contexts")


@lru_cache(maxsize=16)
def sharing_for(regime: str, profile: Profile, *, decode_first: bool = True) -> Sharing:
    """Return the regime called *regime* with the parameters of *profile*.

    *decode_first* says whether the kernels of decode steps have the priority of their streams over
    those of prompts, as in workers of one phase each; in turns and alone it makes no difference.
    The regime is kept, with what it has looked up: a search asks for the same one for each
    simulation.
    """
    value = profile.value
    if regime == "exclusive":
        return Exclusive()
    if regime == "time_slice":
        return TimeSlice(
            value("quantum"),
            value("switch"),
            value("slice_hold"),
            Power.of(profile),
        )
    if regime in ("mps", "streams", "green_contexts"):
        return Spatial(
            regime,
            Beside(
                (value("wait_memory"), value("wait_compute")),
                value("passed"),
                value("yielded") if decode_first else 0.0,
                (value("contention_memory"), value("contention_compute")),
                Growth(
                    (value("compute_knee"), value("compute_bend")),
                    (value("bandwidth_knee"), value("bandwidth_bend")),
                    value("narrow"),
                ),
                (value("power_memory"), value("power_compute")),
                value("crowding"),
                value("crowding_prompts"),
                profile.neighbours,
            ),
        )
    raise unknown_name("sharing", regime, REGIMES)
