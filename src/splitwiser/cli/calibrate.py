"""`splitwiser calibrate`: a cost profile from measurements of a device, or from tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from splitwiser.cli.console import check_writable, complain, note, print_json
from splitwiser.cli.options import Engine, Flag, Several, flag_of
from splitwiser.cli.progress import INTERRUPTED, Progress

if TYPE_CHECKING:
    from splitwiser.validate.calibration.calibration import Calibration

app = App(name="calibrate")

Output = Annotated[Path, Parameter(name=("--output", "-o"))]
Tables = Annotated[tuple[Path, ...], Parameter(name="--from"), Several]
Fresh = Annotated[bool | None, Parameter(negative="--resume", show_default=False)]
MADE_ON = ("device", "driver", "torch", "date")  # what the picture says of where it was measured


@app.default
def calibrate(
    *,
    output: Output,
    device: str | None = None,
    raw: Path | None = None,
    quick: Annotated[bool, Flag] = False,
    fresh: Fresh = None,
    tables: Tables = (),
    model: str | None = None,
    gpu: str | None = None,
    deployment: str | None = None,
    engine: Engine = Engine(),  # noqa: B008 - frozen
    picture: Path | None = None,
    no_picture: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Measure a device, or read tables of measurements, and fit a cost profile to them.

    Prints what each parameter is and how well it is known, and the errors of the fit. Ctrl-C keeps
    what was measured; the same command goes on from there.

    Parameters
    ----------
    output
        The profile to write, as --profile takes it.
    device
        Measure this device: cuda:0, another cuda:N, or cpu.
    raw
        With --device: the folder of the raw measurements. Default: the profile's name and -raw.
    quick
        With --device: fewer points, in a fraction of the time; parameters are known less well.
    fresh
        With --device: measure everything anew, instead of going on from the raw measurements.
    tables
        Fit these tables instead: kernel times, or latencies of an engine.
    model
        With --from: the model that was measured, of the catalogue or the path of a config.json.
    gpu
        With --from: the GPU on which it was measured (`splitwiser gpus`).
    deployment
        With --from: how the engine that was measured ran, a preset or a TOML file (chunked).
    picture
        Measured against fitted, as .html, .svg or .png. Default: the profile's name with .html.
    no_picture
        Draw no picture.
    json
        Print one JSON object.
    """
    measuring = {
        "--raw": raw,
        "--quick": quick or None,
        ("--fresh" if fresh else "--resume"): fresh,
    }
    running = {"--deployment": deployment, **{flag_of(name): 1 for name in engine.changes}}
    _check_source(device, tables, measuring, {"--model": model, "--gpu": gpu}, running)
    check_writable(output)
    drawn = None if no_picture and picture is None else _picture_path(picture, no_picture, output)
    for table in tables:
        for path in (output, drawn):
            if path is not None and path.resolve() == table.resolve():
                raise ValueError(f"{path} is one of the tables of --from: it would be lost")
    if device is not None:
        folder = raw or output.with_name(f"{output.stem}-raw")
        done = _from_device(device, output, folder, quick=quick, fresh=bool(fresh))
    else:
        done = _from_tables(tables, model or "", gpu or "", deployment or "chunked", engine, output)
    if done is None:
        return INTERRUPTED
    _publish(done, output, drawn, json)
    return 0


def _check_source(
    device: str | None,
    tables: Sequence[Path],
    measuring: Mapping[str, object],
    tabled: Mapping[str, object],
    running: Mapping[str, object],
) -> None:
    """Raise ValueError unless either a device or tables are given, with their own options only."""
    if device is not None and tables:
        raise ValueError("--device and --from exclude each other: measure, or read what was")
    if device is None and not tables:
        raise ValueError(
            "nothing to calibrate: give --device cuda:0 (or cpu) to measure it, or --from TABLE..."
            " with --model and --gpu"
        )
    source, idle = ("--from", measuring) if tables else ("--device", {**tabled, **running})
    given = [option for option, value in idle.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]} has no effect with {source}")
    missing = [option for option, value in tabled.items() if value is None]
    if tables and missing:
        raise ValueError(f"--from needs {' and '.join(missing)}")


def _picture_path(asked: Path | None, unwanted: bool, output: Path) -> Path | None:
    """Where the picture goes; None, with a note, where it is not asked for and cannot be drawn."""
    from splitwiser.validate.calibration.picture import check_picture, missing_package

    if asked is not None and unwanted:
        raise ValueError("--picture and --no-picture exclude each other")
    path = asked or output.with_suffix(".html")
    if path.resolve() == output.resolve():
        raise ValueError(f"{path} is both the profile and its picture; give --picture FILE")
    package = missing_package()
    if asked is None and package is not None:
        note(f"no picture: it needs {package}, pip install 'splitwiser[report]'")
        return None
    check_picture(path)
    check_writable(path)
    return path


def _from_device(
    device: str, output: Path, raw: Path, *, quick: bool, fresh: bool
) -> Calibration | None:
    """The calibration of *device*, or None where Ctrl-C ended it."""
    if raw.exists() and not raw.is_dir():
        raise ValueError(f"--raw is {str(raw)!r}; accepted: a folder, or one to be made")
    try:
        from splitwiser.validate.calibration.calibrate import calibrate_device

        with Progress("calibrating", "points measured") as shown:
            done: Calibration = calibrate_device(
                device, output, raw, quick=quick, fresh=fresh, say=note, progress=shown
            )
    except ModuleNotFoundError as error:
        raise ValueError(
            f"splitwiser calibrate --device needs {error.name}: pip install 'splitwiser[validate]'"
        ) from None
    except KeyboardInterrupt:
        complain(
            f"interrupted: what was measured is kept in {raw}; the same command goes on from there"
            f"{' without --fresh' if fresh else ''}, and wrote no profile yet"
        )
        return None
    return done


def _from_tables(
    tables: Sequence[Path], model: str, gpu: str, deployment: str, engine: Engine, output: Path
) -> Calibration | None:
    """The calibration of *tables*, or None where Ctrl-C ended it."""
    from splitwiser.models.catalogue import llm
    from splitwiser.models.gpu import gpu as data_sheet
    from splitwiser.sim.deployment_file import deployment as deployment_of
    from splitwiser.validate.calibration.from_tables import calibrate_tables

    shape, sheet = llm(model), data_sheet(gpu)
    measured = deployment_of(deployment).override(**engine.changes)
    try:
        done: Calibration = calibrate_tables(tables, shape, sheet, output.stem, measured)
    except KeyboardInterrupt:
        complain("interrupted: the tables are as they were, and no profile was written")
        return None
    return done


def _publish(done: Calibration, output: Path, drawn: Path | None, json: bool) -> None:
    """Write the profile, then its picture, and print the report."""
    from splitwiser.sim.atomic import replacing
    from splitwiser.validate.calibration.picture import picture
    from splitwiser.validate.calibration.report import document, report

    with replacing(output) as (temporary,):
        done.profile.save(temporary)
    note(f"wrote {output}")
    try:  # a picture that cannot be drawn takes nothing from the report
        if drawn is not None:
            made_on = [done.profile.provenance.get(key) for key in MADE_ON]
            title = f"{done.profile.name}: measured against fitted"
            subtitle = ", ".join(filter(None, made_on))
            content = picture(done.residuals, title, subtitle, drawn.suffix)
            with replacing(drawn) as (temporary,):
                temporary.write_bytes(content)
            note(f"wrote {drawn}")
    finally:
        if json:
            files = {"output": str(output), "picture": None if drawn is None else str(drawn)}
            print_json({**files, **document(done)})
        else:
            print(report(done), end="")
