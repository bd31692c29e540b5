"""The paper's Hugging Face experiment on this device: N processes that run `generate`.

    python benchmarks/hf_generate.py [--device cuda:0|cpu] [--seconds S] [--quick] [--json] [--out F]

OPT-125m in float16 with random weights, batches of 20 documents, 512 tokens in and 20 out. First
batches/s while all of 1, 2, 4 or 8 processes run (time slicing, MPS, MPS with a quarter of the SMs
each), counted in one common window of S seconds after a warm-up, beside the table of an H200 where
that is at hand. Then whole runs as in the paper, with the start of every process: A is the time
until everything is tokenised, B the time from then on. F gets all of it as JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitwiser.models.llm import Llm
    from splitwiser.validate.runtime.generate import Load

MODEL, SMALL = "facebook/opt-125m", "tiny-opt"
MEASURED = (
    Path(__file__).resolve().parents[2] / "shared/data/measured/h200_hf_generate_multiprocess.csv"
)
QUARTER = 25.0  # % of the SMs
PROCESSES = {
    ("time_slice", None): (1, 2, 4, 8),
    ("mps", None): (2, 4, 8),
    ("mps", QUARTER): (4,),
}


@dataclass(frozen=True, slots=True)
class Row:
    """Batches/s of N processes: *rate* here, *measured* on the H200 of the table (None: no row)."""

    sharing: str
    sm_percent: float | None
    processes: int
    rate: float
    seconds: float
    counts: tuple[int, ...]
    sms: tuple[int | None, ...]
    measured: float | None

    @property
    def difference(self) -> float | None:
        """Of the rate here, in % of the one measured."""
        return None if self.measured is None else 100 * (self.rate / self.measured - 1)

    def line(self) -> str:
        """The row of the table."""
        limit = "" if self.sm_percent is None else f"{self.sm_percent:g} %"
        there = "" if self.measured is None else f"{self.measured:.2f}"
        error = "" if self.difference is None else f"{self.difference:+.1f} %"
        spread = f"{min(self.counts)}-{max(self.counts)}"
        return (
            f"{self.sharing:<11} {limit:>6} {self.processes:>9} {self.rate:>11.2f} {there:>11} "
            f"{error:>11} {spread:>14}"
        )


def measured(file: Path) -> dict[tuple[str, float | None, int], float]:
    """Batches/s by sharing, percent and processes; empty, saying why, without the table."""
    if not file.is_file():
        print(f"no measurements to compare with: {file} is absent", file=sys.stderr)
        return {}
    with file.open(newline="", encoding="utf-8") as lines:
        return {
            (
                row["sharing"],
                float(row["sm_pct"]) if row["sm_pct"] else None,
                int(row["processes"]),
            ): float(row["batches_per_s"])
            for row in csv.DictReader(lines)
        }


def windows(
    llm: Llm,
    device: str,
    load: Load,
    seconds: float,
    most: int,
    table: dict[tuple[str, float | None, int], float],
) -> Iterator[Row]:
    """Steady rates. All processes of one sharing are started together; those not measured idle."""
    from splitwiser.validate.runtime.generate import Pool

    for sharing in ("time_slice", "mps"):
        cases = [
            (percent, count)
            for (shared, percent), counts in PROCESSES.items()
            for count in counts
            if shared == sharing and count <= most
        ]
        percents: list[float | None] = []
        for limit in dict.fromkeys(percent for percent, _ in cases):
            percents += [limit] * max(count for percent, count in cases if percent == limit)
        print(f"{sharing}: starting {len(percents)} processes", file=sys.stderr)
        with Pool(llm, device, percents, sharing=sharing, load=load) as pool:
            for percent, count in cases:
                members = [n for n, limit in enumerate(percents) if limit == percent][:count]
                steady = pool.window(members, seconds)
                yield Row(
                    sharing,
                    percent,
                    count,
                    steady.batches_per_s,
                    steady.seconds,
                    steady.counts,
                    tuple(pool.sms[member] for member in members),
                    table.get((sharing, percent, count)),
                )


def whole_runs(
    llm: Llm, device: str, load: Load, batches: int, several: int
) -> Iterator[dict[str, Any]]:
    """The paper's run: sequential, *several* processes, as many under MPS."""
    from splitwiser.validate.runtime.generate import run_generate

    for name, processes, sharing in (
        ("sequential", 1, "exclusive"),
        (f"{several}", several, "time_slice"),
        (f"{several}, MPS", several, "mps"),
    ):
        print(f"whole run, {name}: {batches * load.batch} documents", file=sys.stderr)
        times = run_generate(
            llm, device, processes=processes, sharing=sharing, batches=batches, load=load
        )
        first = [
            ended[0] - ready for ready, ended in zip(times.ready_s, times.ended_s, strict=True)
        ]
        rate = times.batches_per_s
        yield {
            "name": name,
            "processes": processes,
            "sharing": sharing,
            "documents": batches * load.batch,
            "tokenise_s": times.tokenise_s,
            "generate_s": times.generate_s,
            "total_s": times.total_s,
            "batches": times.batches,
            "batches_per_s": None if isnan(rate) else rate,  # never all at once
            "ready_s": times.ready_s,
            "first_batch_s": first,
        }


def tables(rows: list[Row], runs: list[dict[str, Any]]) -> str:
    """What is printed."""
    heads = ("SMs", "processes", "batches/s", "H200 table", "difference", "per process")
    widths = (6, 9, 11, 11, 11, 14)
    head = " ".join(f"{name:>{width}}" for name, width in zip(heads, widths, strict=True))
    lines = [
        f"{'sharing':<11} {head}",
        *(row.line() for row in rows),
        "",
        f"{'whole run':<11} {'A, s':>9} {'B, s':>9} {'total, s':>9}   last process ready, s",
    ]
    lines += [
        f"{run['name']:<11} {run['tokenise_s']:>9.2f} {run['generate_s']:>9.2f} "
        f"{run['total_s']:>9.2f}   {max(run['ready_s']):.2f}"
        for run in runs
    ]
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, as plain JSON."""
    from splitwiser.models.catalogue import llm
    from splitwiser.validate.runtime.device import device_named, provenance
    from splitwiser.validate.runtime.generate import Load

    start = monotonic()
    device = device_named(arguments.device)
    on_cpu = device.kind == "cpu"
    model = llm(SMALL if on_cpu else MODEL)
    load = Load(4, 64, 8) if on_cpu else Load()
    most = 2 if on_cpu else 8
    seconds = 2.0 if arguments.quick else arguments.seconds
    table = {} if on_cpu else measured(arguments.data)
    rows = list(windows(model, str(device), load, seconds, most, table))
    batches = 8 if arguments.quick else 20
    runs = list(whole_runs(model, str(device), load, batches, 2 if on_cpu else 4))
    return {
        "model": model.name,
        "dtype": model.dtype,
        "load": load._asdict(),
        "provenance": provenance(device),
        "seconds": monotonic() - start,
        "steady": [{**asdict(row), "difference_percent": row.difference} for row in rows],
        "whole": runs,
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:0, or cpu for a tiny model")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a window")
    parser.add_argument("--quick", action="store_true", help="windows of 2 s, fewer documents")
    parser.add_argument("--data", type=Path, default=MEASURED, help="table to compare with")
    parser.add_argument("--out", type=Path, help="file for the raw results")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--show", type=Path, help="measure nothing: the table of a raw file")
    arguments = parser.parse_args()
    if not arguments.seconds > 0:
        parser.error(f"--seconds {arguments.seconds:g}: a number above 0")
    try:
        found = json.loads(arguments.show.read_text()) if arguments.show else run(arguments)
    except (ImportError, ValueError, OSError, MemoryError, RuntimeError) as error:
        raise SystemExit(f"hf_generate: {error}") from None
    rows = [
        Row(**{name: row[name] for name in Row.__dataclass_fields__}) for row in found["steady"]
    ]
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(found, allow_nan=False))
        return
    about = found["provenance"]
    print(
        f"{found['model']} {found['dtype']} on {about['name']}, torch {about['torch']}, "
        f"{about['date']}; {found['load']['batch']} x {found['load']['prompt_tokens']} in, "
        f"{found['load']['output_tokens']} out; {found['seconds']:.0f} s in all\n"
    )
    print(tables(rows, found["whole"]))


if __name__ == "__main__":
    main()
