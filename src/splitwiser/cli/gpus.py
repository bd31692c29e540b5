"""`splitwiser gpus`: the data sheets that ship with the package."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import App

from splitwiser.cli.console import print_json, print_pairs, print_table
from splitwiser.cli.options import Flag
from splitwiser.models.gpu import Gpu, gpu, gpus

app = App(name="gpus")
GIB = 2**30


@app.default
def describe(name: str | None = None, /, *, json: Annotated[bool, Flag] = False) -> None:
    """List the GPUs, or describe one: its data sheet and source.

    Parameters
    ----------
    name
        A GPU, such as h200. Without it, all are listed.
    json
        Print one JSON object.
    """
    if json:
        print_json(asdict(gpu(name)) if name else {"gpus": [asdict(sheet) for sheet in gpus()]})
    elif name:
        print_pairs(_sheet(gpu(name)))
    else:
        print_table(
            ("name", ">SMs", ">TFLOP/s bf16", ">GB/s", ">GiB", ">$/hour", "title"),
            (
                (
                    sheet.name,
                    sheet.sms,
                    f"{sheet.peak('bfloat16') / 1e12:.4g}",
                    f"{sheet.bandwidth / 1e9:,.0f}",
                    f"{sheet.memory / GIB:.1f}",
                    f"{sheet.price_per_hour:.2f}",
                    sheet.title,
                )
                for sheet in gpus()
            ),
        )


def _sheet(sheet: Gpu) -> list[tuple[str, str]]:
    flops = ", ".join(f"{dtype} {peak / 1e12:.4g}" for dtype, peak in sheet.flops.items())
    return [
        ("name", sheet.name),
        ("title", sheet.title),
        ("SMs", f"{sheet.sms}"),
        ("TFLOP/s", f"{flops} (dense)"),
        ("bandwidth", f"{sheet.bandwidth / 1e9:,.0f} GB/s"),
        ("memory", f"{sheet.memory / GIB:.2f} GiB"),
        ("L2", f"{sheet.l2 / 2**20:.0f} MiB"),
        ("power", f"{sheet.power:.0f} W"),
        ("PCIe", f"{sheet.pcie / 1e9:.1f} GB/s one way"),
        ("price", f"{sheet.price_per_hour:.2f} $/hour (an editable default: --price-per-hour)"),
        ("source", sheet.source),
    ]
