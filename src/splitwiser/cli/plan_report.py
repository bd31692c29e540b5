"""A `Plan` in words and tables: the answer first, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from splitwiser.cli.console import print_pairs, print_table, width

if TYPE_CHECKING:
    from splitwiser.models.gpu import Gpu
    from splitwiser.models.memory import MemoryPlan
    from splitwiser.models.profile import Parameter, Profile
    from splitwiser.sim.answer import Plan, Row

GIB = 2**30
NAMED = 5  # deployments that the answer names beside the winner
WIDE = 96  # columns that the tables take; narrower ones leave some out


def three(value: float) -> str:
    """A number to three digits: 0.200, 22.0, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def print_plan(plan: Plan, profile: Profile, gpu: Gpu, remarks: Sequence[str] = ()) -> None:
    """Print the winner, the ranked table, the memory of each, those left out, and the constants.

    *remarks* say what the search did to the traffic.
    """
    if plan.partial:
        print("Interrupted: this is what had been found.\n")
    if plan.winner is None:
        print(f"No deployment of {plan.model} on {plan.gpu} meets {_objectives(plan)} at any rate.")
    else:
        _print_answer(plan, plan.winner, remarks)
        _print_ranking(plan)
        _print_memory(plan)
    if plan.skipped:
        _print_skipped(plan)
    _print_constants(profile, gpu)


def _print_answer(plan: Plan, winner: Row, remarks: Sequence[str]) -> None:
    print(
        f"{winner.name} carries {three(winner.rate)} requests/s of {plan.traffic}: "
        f"{plan.model} on one {plan.gpu}.\n"
    )
    print_pairs(
        [
            (
                "confidence",
                f"{three(winner.low)} to {three(winner.high)} requests/s ({_confidence(plan, winner)})",
            ),
            ("objectives", f"{_objectives(plan)} met by {winner.attainment:.1%} of the requests"),
            ("beyond it", str(winner.limit)),
            ("close by", _close(plan, winner)),
            ("cost", _cost(plan, winner)),
            *(("traffic", remark) for remark in remarks),
            ("rests on", f"{winner.basis}; profile {plan.profile} ({plan.profile_kind})"),
        ]
    )


def _confidence(plan: Plan, winner: Row) -> str:
    """What the winner's interval rests on."""
    count = len(winner.replications)
    if not count:
        return f"{plan.confidence:.0%}, batch means"
    return f"{plan.confidence:.0%}, {count} replications: parts of the traffic drawn anew"


def _close(plan: Plan, winner: Row) -> str:
    """The deployments that this traffic cannot tell from the winner."""
    names = [row.name for row in plan.rows[1:] if row.high >= winner.low]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}: within its confidence" if names else "none"


def _cost(plan: Plan, row: Row) -> str:
    return (
        f"{three(row.cost)} $ per million output tokens "
        f"({row.output_throughput:,.0f} tokens/s at {plan.price_per_hour:.2f} $/hour)"
    )


def _objectives(plan: Plan) -> str:
    limits = (f"{name} {limit * 1e3:g} ms" for name, limit in plan.goodput.items())
    return " and ".join(limits)


def _print_ranking(plan: Plan) -> None:
    metrics = list(plan.goodput)
    wide = width() >= WIDE
    columns = ["deployment", ">req/s", f">{plan.confidence:.0%}", *(f">{m} p90" for m in metrics)]
    columns += [">$/M out"] if wide else []
    print("\nRanked by requests/s" + _legend(plan))
    print_table(
        (*columns, "breaks first"),
        (
            (
                row.name,
                f"{'~' if row.estimated else ''}{three(row.rate)}",
                f"{three(row.low)}-{three(row.high)}",
                *(f"{row.latencies[metric]['p90'] * 1e3:.0f} ms" for metric in metrics),
                *([three(row.cost)] if wide else []),
                _limit(row),
            )
            for row in plan.rows
        ),
    )


def _limit(row: Row) -> str:
    """What breaks first, and what is short where that is not the GPU's time."""
    cause = "" if row.limit.cause == "GPU time" else f" ({row.limit.cause})"
    return row.limit.breaks + cause


def _legend(plan: Plan) -> str:
    estimated = [row for row in plan.rows if row.estimated]
    return f" (~: carried over from {estimated[0].basis})" if estimated else ""


def _print_memory(plan: Plan) -> None:
    parts = ["weights", "contexts", "activations", "KV pool", "unused", "usable", "of"]
    shown = parts if width() >= WIDE else parts[:4]
    print("\nMemory, GiB")
    print_table(
        ("deployment", *(f">{part}" for part in shown), "KV blocks"),
        ((row.name, *_memory(row.memory)[: len(shown)], _blocks(row.memory)) for row in plan.rows),
    )


def _memory(plan: MemoryPlan) -> list[str]:
    unused = plan.usable - plan.weights - plan.contexts - plan.activations - plan.kv
    parts = (
        plan.weights,
        plan.contexts,
        plan.activations,
        plan.kv,
        unused,
        plan.usable,
        plan.total,
    )
    return [f"{part / GIB:.2f}" for part in parts]


def _blocks(plan: MemoryPlan) -> str:
    return f"{plan.pools} x {plan.blocks}" if plan.pools > 1 else f"{plan.blocks}"


def _print_skipped(plan: Plan) -> None:
    """Those left out, by reason: most often they share one."""
    names: dict[str, list[str]] = {}
    for row in plan.skipped:
        names.setdefault(row.reason, []).append(row.name)
    print("\nLeft out")
    print_pairs(
        (f"{len(found)} x", f"{reason}: {', '.join(found)}") for reason, found in names.items()
    )


def _print_constants(profile: Profile, gpu: Gpu) -> None:
    fitted = sum(parameter.stderr is not None for parameter in profile.parameters.values())
    print(f"\nConstants: profile {profile.name}, {profile.kind}")
    print_pairs(
        [
            ("fitted", f"{fitted} of {len(profile.parameters)}; the others are assumed or fixed"),
            *(
                (name, text)
                for name, text in profile.provenance.items()
                if name in ("note", "device")
            ),
            ("data sheet", gpu.source),
        ]
    )
    print()
    print_table(
        ("parameter", ">value", ">stderr", "source (in full: splitwiser profiles)"),
        (_constant(name, parameter) for name, parameter in profile.parameters.items()),
        cut=True,
    )


def _constant(name: str, parameter: Parameter) -> tuple[str, str, str, str]:
    from splitwiser.models.profile import PARAMETERS

    unit = PARAMETERS[name].unit.removeprefix("1")
    stderr = "" if parameter.stderr is None else f"{parameter.stderr:.2g}"
    return name, f"{parameter.value:.4g} {unit}".strip(), stderr, parameter.source
