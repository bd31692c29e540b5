"""Laws of the data sheets."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from splitwiser.models.gpu import Gpu, gpu, gpus

NAMES = ["a10", "a100-40gb", "a100-80gb", "l4", "l40s", "rtx-4090", "rtx-pro-6000"]
NAMES += ["h100-sxm", "h200", "cpu"]
EVERY = pytest.mark.parametrize("sheet", gpus(), ids=lambda sheet: sheet.name)


def test_the_sheets_are_those_promised() -> None:
    """Ten devices ship, under these names."""
    assert [sheet.name for sheet in gpus()] == NAMES


@EVERY
def test_every_number_is_positive_and_sourced(sheet: Gpu) -> None:
    """No figure is missing, and each sheet says where its figures stand."""
    numbers = [getattr(sheet, field.name) for field in fields(sheet)]
    assert all(number > 0 for number in numbers if isinstance(number, int | float))
    assert all(peak > 0 for peak in sheet.flops.values())
    assert len(sheet.source) > 20


@EVERY
def test_narrower_types_are_never_slower(sheet: Gpu) -> None:
    """float8, where there is one, >= bfloat16 = float16 >= float32."""
    assert sheet.peak("bfloat16") == sheet.peak("float16") >= sheet.peak("float32")
    assert sheet.flops.get("float8_e4m3fn", sheet.peak("bfloat16")) >= sheet.peak("bfloat16")


@EVERY
def test_the_ridge_is_where_devices_have_it(sheet: Gpu) -> None:
    """Peak over bandwidth is 5 to 30 FLOP per byte on a CPU, 100 to 500 on a GPU (bfloat16)."""
    low, high = (5, 30) if sheet.name == "cpu" else (100, 500)
    assert low < sheet.peak("bfloat16") / sheet.bandwidth < high


@EVERY
def test_memory_is_what_the_driver_leaves(sheet: Gpu) -> None:
    """The bytes are fewer than the title's gigabytes as GiB, and more than 90 % of them."""
    title = sheet.title.rpartition(" ")[2].removesuffix("GB")
    nominal = float(title) * 2**30 if title.isdecimal() else sheet.memory
    assert 0.9 * nominal < sheet.memory <= nominal


@pytest.mark.parametrize(
    ("name", "flop_per_cycle", "clock"),
    [
        ("a10", 1024, 1.695e9),
        ("a100-40gb", 2048, 1.410e9),
        ("a100-80gb", 2048, 1.410e9),
        ("l4", 1024, 2.040e9),
        ("l40s", 1024, 2.520e9),
        ("rtx-4090", 512, 2.520e9),
        ("rtx-pro-6000", 1024, 2.617e9),
        ("h100-sxm", 4096, 1.830e9),
        ("h200", 4096, 1.830e9),
        ("cpu", 32, 3.0e9),
    ],
)
def test_peaks_are_dense(name: str, flop_per_cycle: int, clock: float) -> None:
    """A bfloat16 peak is SMs x dense FLOP a cycle of the architecture's SM x boost clock."""
    sheet = gpu(name)
    assert sheet.peak("bfloat16") == pytest.approx(sheet.sms * flop_per_cycle * clock, rel=0.02)


def test_the_h200_is_an_h100_with_more_memory() -> None:
    """One chip, two memories: equal compute, more bytes and more of them per second."""
    old, new = gpu("h100-sxm"), gpu("h200")
    assert (new.flops, new.sms) == (old.flops, old.sms)
    assert new.bandwidth > old.bandwidth
    assert new.memory > old.memory


@EVERY
def test_a_sheet_answers_to_its_name(sheet: Gpu) -> None:
    """A name counts in any case, with blanks or underscores for hyphens."""
    assert gpu(sheet.name) is gpu(sheet.name.upper()) is gpu(sheet.name.replace("-", " "))
    assert gpu(sheet.name.replace("-", "_")) is sheet


@pytest.mark.parametrize(
    ("name", "offer"),
    [
        ("h100", r"did you mean h100-sxm\?"),
        ("a100", "did you mean a100-40gb or a100-80gb"),
        ("rtx4090", "did you mean rtx-4090"),
        ("tpu-v5e", "known: a10, .*, rtx-pro-6000$"),
        ("", "known: a10, .*, rtx-pro-6000$"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name: str, offer: str) -> None:
    """An unknown device is one line with the nearest names, or all of them."""
    with pytest.raises(ValueError, match=f"^unknown GPU '{name}'; {offer}"):
        gpu(name)


def test_a_dtype_without_units_is_refused() -> None:
    """A device that has no float8 units says so and names what it has."""
    with pytest.raises(ValueError, match="a10 does not compute in 'float8_e4m3fn'; it has bfloat1"):
        gpu("a10").peak("float8_e4m3fn")


def test_the_price_is_the_readers() -> None:
    """A copy with another price is another sheet; the shipped one stays."""
    assert replace(gpu("a10"), price_per_hour=9.0) != gpu("a10")
