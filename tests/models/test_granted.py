"""What limits in per cent grant: whole groups of SMs, near what was asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from splitwiser.models.gpu import Gpu, gpu, gpus
from splitwiser.models.granted import TPC, granularity, group_sizes, sm_shares
from splitwiser.models.memory import DoesNotFit

GPUS = st.sampled_from([(132, 9), (108, 8), (72, 8), (84, 7), (56, 6)])
MEASURED = Path(__file__).parents[2] / "benchmarks" / "h200" / "calibration.jsonl"
PERCENTS = st.none() | st.floats(1, 100)


def sizes_of(percents: list[float], sms: int, major: int) -> list[int]:
    try:
        return group_sizes(percents, sms, granularity(major))
    except DoesNotFit:
        assume(False)
        raise


@given(GPUS, st.lists(st.floats(1, 100), min_size=1, max_size=5))
def test_groups_are_what_can_be_had(gpu: tuple[int, int], percents: list[float]) -> None:
    """Groups fit the GPU, are multiples of the step, and each is nearest to what was asked."""
    assume(sum(percents) < 99)
    sms, major = gpu
    grain = granularity(major)
    sizes = sizes_of(percents, sms, major)
    assert sum(sizes) <= sms
    for percent, size in zip(percents, sizes, strict=True):
        assert size % grain.step == 0
        assert size == grain.least or abs(size - sms * percent / 100) <= grain.step / 2 + 1e-9


@given(GPUS, st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_a_hundred_percent_leaves_no_sm_idle(gpu: tuple[int, int], parts: list[int]) -> None:
    """Where the percents sum to 100 the groups use every SM, and the largest has the rest."""
    sms, major = gpu
    grain = granularity(major)
    percents = [100 * part / sum(parts) for part in parts]
    sizes = sizes_of(percents, sms, major)
    assert sum(sizes) == sms
    odd = [place for place, size in enumerate(sizes) if size % grain.step]
    assert all(percents[place] == max(percents) for place in odd) and len(odd) <= 1


def test_an_h200_splits_as_measured() -> None:
    """On 132 SMs in steps of 8, 75 and 25 % are 100 and 32 SMs, whichever comes first."""
    assert group_sizes([75, 25], 132, granularity(9)) == [100, 32]
    assert group_sizes([25, 75], 132, granularity(9)) == [32, 100]
    assert group_sizes([100], 132, granularity(9)) == [132]


def test_groups_that_do_not_fit_are_refused() -> None:
    """More groups than there is room for are refused in one line with the granularity."""
    with pytest.raises(DoesNotFit, match="groups of 8 or more") as error:
        group_sizes([5.0] * 20, 132, granularity(9))
    assert "\n" not in str(error.value)


def test_mps_grants_an_h200_what_was_measured() -> None:
    """Limits under MPS are whole TPCs, rounded down, as an H200 granted them."""
    records = [json.loads(line) for line in MEASURED.read_text().splitlines()]
    lanes = [
        lane for record in records if record.get("sharing") == "mps" for lane in record["lanes"]
    ]
    granted = {lane["sm_percent"]: lane["sms"] for lane in lanes if lane["sm_percent"]}
    assert len(granted) >= 10
    shares = sm_shares("mps", list(granted), gpu("h200"))
    assert [132 * share for share in shares] == pytest.approx(list(granted.values()))


@given(st.sampled_from(gpus()), st.lists(PERCENTS, min_size=1, max_size=6))
def test_mps_grants_at_most_what_was_asked(device: Gpu, limits: list[float | None]) -> None:
    """A limit grants no more SMs than it says, but one TPC, and less than one TPC fewer."""
    shares = sm_shares("mps", limits, device)
    for limit, share in zip(limits, shares, strict=True):
        asked = 1.0 if limit is None else limit / 100
        tpc = min(1.0, TPC / device.sms) if device.compute_capability else 0.0
        assert 0.0 < share <= max(asked, tpc) + 1e-9
        assert share > asked - tpc - 1e-9


def test_a_cpu_grants_what_was_asked() -> None:
    """Shares of a CPU are those of its time, and not rounded."""
    assert sm_shares("mps", [33.0, None], gpu("cpu")) == [0.33, 1.0]


def test_green_contexts_are_granted_disjoint_groups() -> None:
    """Green contexts have the shares of their groups; ones that do not fit are refused."""
    assert sm_shares("green_contexts", [75.0, 25.0], gpu("h200")) == [100 / 132, 32 / 132]
    with pytest.raises(DoesNotFit, match="do not fit 72 SMs"):
        sm_shares("green_contexts", [1.0] * 20, gpu("a10"))
