"""Partitions: how many SMs are asked for, that they are disjoint, and that streams work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from splitwiser.models.granted import granularity, group_sizes
from splitwiser.validate.runtime.partition import (
    green_partitions,
    priority_streams,
    run_on,
    split_sms,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Driver:
    """What cuda.bindings does with SMs: groups are ranges of them, and leftovers cannot be split."""

    CUdevResourceType = SimpleNamespace(CU_DEV_RESOURCE_TYPE_SM=1)
    CUgreenCtxCreate_flags = SimpleNamespace(CU_GREEN_CTX_DEFAULT_STREAM=1)

    @staticmethod
    def resource(first: int, last: int, whole: bool) -> SimpleNamespace:
        sm = SimpleNamespace(smCount=last - first)
        return SimpleNamespace(sm=sm, first=first, last=last, whole=whole)

    def cuDevSmResourceSplitByCount(  # noqa: N802 - the driver's name
        self, groups: int, source: Any, flags: int, count: int
    ) -> tuple[Any, ...]:
        if not source.whole or count > source.sm.smCount:
            return 915, None, 0, None
        cut = source.first + count
        found = self.resource(source.first, cut, False)
        return 0, [found], groups, self.resource(cut, source.last, False)

    def cuDevResourceGenerateDesc(self, resources: list[Any], count: int) -> tuple[int, Any]:  # noqa: N802
        return 0, resources[0]

    def cuGreenCtxCreate(self, described: Any, device: int, flags: int) -> tuple[int, Any]:  # noqa: N802
        return 0, described

    def cuGreenCtxGetDevResource(self, green: Any, kind: int) -> tuple[int, Any]:  # noqa: N802
        return 0, self.resource(green.first, green.last, True)


@given(st.permutations([8, 16, 24, 40]), st.integers(1, 4), st.booleans())
def test_groups_are_disjoint(order: list[int], count: int, all_used: bool) -> None:
    """The groups have the sizes asked for, in their order, and no SM is in two of them."""
    sizes = order[:count]
    whole = Driver.resource(0, sum(sizes) + (0 if all_used else 4), True)
    groups, _ = split_sms(Driver(), 0, whole, sizes)
    assert [group.sm.smCount for group in groups] == sizes
    taken = [sm for group in groups for sm in range(group.first, group.last)]
    assert len(taken) == len(set(taken)) == sum(sizes)


def test_a_refusal_of_the_driver_is_one_line() -> None:
    """A split that the driver refuses says what was asked, and the driver's status."""
    with pytest.raises(RuntimeError, match="cannot split 64 of 32 SMs off: 915"):
        split_sms(Driver(), 0, Driver.resource(0, 32, True), [64])


def doubled_on(partitions: list[Any]) -> None:
    """Compute on every partition's stream, and check the answers."""
    answers = []
    for partition in partitions:
        with run_on(partition):
            assert torch.cuda.current_stream() == partition.stream
            answers.append(2 * torch.arange(1000, device="cuda"))
    torch.cuda.synchronize()
    for answer in answers:
        assert answer.cpu().tolist() == list(range(0, 2000, 2))


@needs_cuda
def test_decode_has_the_higher_priority() -> None:
    """A decode worker's stream goes before others, and all streams compute."""
    partitions = priority_streams(["prefill", "decode"], 0)
    assert partitions[1].stream.priority < partitions[0].stream.priority
    doubled_on(partitions)


@needs_cuda
@pytest.mark.parametrize("percents", [[75, 25], [50, 25, 25], [25, 25], [20, 20, 20]])
def test_green_contexts_hold_what_was_granted(percents: list[float]) -> None:
    """Granted SMs are near those asked for, no more in sum than the GPU has, and all compute."""
    pytest.importorskip("cuda.bindings")
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    partitions = green_partitions(percents, 0)
    major, _ = torch.cuda.get_device_capability(0)
    granted = [partition.sms for partition in partitions]
    assert sum(granted) <= sms
    grain = granularity(major)
    for count, asked in zip(granted, group_sizes(percents, sms, grain), strict=True):
        assert abs(count - asked) <= grain.step
    doubled_on(partitions)
