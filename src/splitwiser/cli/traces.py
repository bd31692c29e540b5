"""`splitwiser traces`: presets, statistics of a trace, and conversion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from splitwiser.cli.console import check_writable, note, print_json, print_pairs, print_table
from splitwiser.cli.options import Flag, Traffic

if TYPE_CHECKING:
    from splitwiser.traces.trace import Trace

app = App(name="traces")


@app.default
def describe(
    source: str | None = None,
    /,
    *,
    trace_format: str | None = None,
    num_prompts: int | None = None,
    request_rate: float | None = None,
    seed: int = 0,
    json: Annotated[bool, Flag] = False,
) -> None:
    """List the traffic presets and file formats, or describe one trace.

    Parameters
    ----------
    source
        A trace file or a preset. Without it, presets and formats are listed.
    trace_format
        The file's format, where it shall not be guessed.
    num_prompts
        How many requests; the first ones of a file.
    request_rate
        Requests per second, instead of the source's own.
    seed
        Seed of everything random.
    json
        Print one JSON object.
    """
    if source is None:
        _list(json)
        return
    trace = _load(source, trace_format, num_prompts, request_rate, seed)
    _say_notes(trace)
    if json:
        print_json({**trace.describe(), "notes": trace.notes})
    else:
        _print(trace.describe())


@app.command
def convert(
    source: str,
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    to: str = "mooncake",
    trace_format: str | None = None,
    num_prompts: int | None = None,
    request_rate: float | None = None,
    seed: int = 0,
) -> None:
    """Write a trace in another format.

    Parameters
    ----------
    source
        A trace file or a preset.
    output
        The file to write.
    to
        The format to write: mooncake.
    trace_format
        The source file's format, where it shall not be guessed.
    num_prompts
        How many requests; the first ones of a file.
    request_rate
        Requests per second, instead of the source's own.
    seed
        Seed of everything random.
    """
    from splitwiser.models.names import unknown_name
    from splitwiser.traces import write_mooncake

    if to != "mooncake":
        raise unknown_name("trace format to write", to, ("mooncake",))
    check_writable(output)
    trace = _load(source, trace_format, num_prompts, request_rate, seed)
    _say_notes(trace)
    write_mooncake(trace, output)
    note(f"wrote {len(trace)} requests to {output}")


def _load(
    source: str,
    trace_format: str | None,
    num_prompts: int | None,
    request_rate: float | None,
    seed: int,
) -> Trace:
    from splitwiser.models.names import unknown_name
    from splitwiser.traces import PRESETS

    path = Path(source)
    is_preset = source in PRESETS
    if not is_preset and not path.suffix and path.name == source and not path.exists():
        raise unknown_name("preset or trace file", source, PRESETS)
    return Traffic(
        trace=None if is_preset else path,
        preset=source if is_preset else None,
        trace_format=trace_format,
        num_prompts=num_prompts,
        request_rate=request_rate,
        seed=seed,
    ).load()


def _say_notes(trace: Trace) -> None:
    for text in trace.notes:
        note(text)


def _list(json: bool) -> None:
    from splitwiser.traces import FORMATS, PRESETS

    if json:
        presets = {
            name: {
                "source": preset.source,
                "num_prompts": preset.num_prompts,
                "request_rate": preset.request_rate,
                "note": preset.note,
            }
            for name, preset in PRESETS.items()
        }
        print_json({"presets": presets, "formats": FORMATS})
        return
    print_table(
        ("preset", ">requests", ">per second", "after"),
        (
            (
                name,
                preset.num_prompts,
                f"{preset.request_rate:g}",
                "; ".join(filter(None, (preset.source, preset.note))),
            )
            for name, preset in PRESETS.items()
        ),
    )
    print()
    print_table(("file format", "recognised by"), FORMATS.items())


def _print(facts: dict[str, Any]) -> None:
    rate = facts["request_rate"]
    pairs = [
        ("trace", facts["name"]),
        ("requests", f"{facts['requests']:,}"),
        ("duration", f"{facts['duration_s']:,.1f} s"),
        ("rate", "all at once" if rate == "inf" else f"{rate:.4g} requests/s"),
    ]
    if facts["gap_cv"] is not None:
        pairs.append(("gaps", f"coefficient of variation {facts['gap_cv']:.2f} (Poisson: 1)"))
    if facts["prefix_hit_share"] is not None:
        pairs.append(("prefix hits", f"{facts['prefix_hit_share']:.1%} of prompt tokens at most"))
    for label in ("sessions", "adapters"):
        if facts[label] is not None:
            pairs.append((label, f"{facts[label]:,}"))
    print_pairs(pairs)
    print()
    names = ("mean", "p50", "p90", "p99", "max")
    print_table(
        ("tokens", *(f">{name}" for name in names)),
        (
            (label, *(f"{facts[f'{label}_tokens'][name]:,.0f}" for name in names))
            for label in ("prompt", "output")
        ),
    )
