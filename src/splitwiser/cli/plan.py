"""`splitwiser plan`: which deployment carries the most traffic, and what limits it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from splitwiser.cli.console import check_writable, note, print_json
from splitwiser.cli.options import Engine, Flag, Several, Traffic, profile_option
from splitwiser.cli.progress import INTERRUPTED, Progress

if TYPE_CHECKING:
    from splitwiser.models.gpu import Gpu
    from splitwiser.models.profile import Profile
    from splitwiser.sim.answer import Plan
    from splitwiser.traces.trace import Trace

app = App(name="plan")

NO_DEPLOYMENT = 1  # exit status: the objectives are met at no rate


@app.default
def plan(
    model: str,
    /,
    *,
    gpu: str,
    goodput: Annotated[tuple[str, ...], Several],
    traffic: Traffic = Traffic(),  # noqa: B008 - frozen
    engine: Engine = Engine(),  # noqa: B008 - frozen
    profile: Path | None = None,
    target: float = 0.9,
    price_per_hour: float | None = None,
    deployment: Annotated[tuple[str, ...], Several] = (),
    save_deployment: Path | None = None,
    jobs: Annotated[int | None, Parameter(name=("--jobs", "-j"))] = None,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Rank the deployments of a model on a GPU by the traffic they carry within the objectives.

    The arrivals of the traffic are scaled; only its shape and lengths matter.

    Parameters
    ----------
    model
        A model of the catalogue (`splitwiser llms`) or the path of a config.json.
    gpu
        A GPU (`splitwiser gpus`).
    goodput
        Objectives in milliseconds, such as ttft:500 tpot:50.
    target
        Share of the requests that must meet every objective.
    profile
        A cost profile's JSON file, instead of the GPU's built-in one.
    price_per_hour
        Dollars per hour of the GPU, instead of the data sheet's default.
    deployment
        Presets or TOML files to rank, instead of the usual candidates.
    save_deployment
        Write the winner as a TOML file, for `splitwiser simulate`.
    jobs
        Processes to work with; as many as cores unless given.
    json
        Print one JSON object.
    """
    from splitwiser.cli.plan_report import print_plan
    from splitwiser.models.catalogue import llm
    from splitwiser.sim.candidates import candidates
    from splitwiser.sim.deployment_file import deployment as deployment_of
    from splitwiser.sim.deployment_file import to_toml
    from splitwiser.sim.objectives import parse_goodput
    from splitwiser.sim.plan import plan as search

    objectives = parse_goodput(goodput)
    sheet, shape = _priced(gpu, price_per_hour), llm(model)
    costs = profile_option(profile, sheet)
    if save_deployment is not None:
        check_writable(save_deployment)
    if not 0 < target < 1:
        raise ValueError(f"--target is {target:g}; accepted: a share above 0 and below 1")
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs is {jobs}; accepted: a whole number from 1 on")
    asked = [deployment_of(name).override(**engine.changes) for name in deployment]
    trace = _scalable(traffic)
    for text in trace.notes:
        note(text)
    with Progress("planning", "searches done") as progress:
        found = search(
            trace,
            shape,
            sheet,
            costs,
            goodput=objectives,
            target=target,
            deployments=asked or candidates(shape, sheet, **engine.changes),
            jobs=jobs,
            progress=progress,
        )
    if save_deployment is not None and found.winner is not None:
        save_deployment.write_text(to_toml(found.winner.deployment), encoding="utf-8")
        note(f"wrote {found.winner.name} to {save_deployment}")
    if json:
        print_json({**found.as_dict(), "constants": _constants(costs)})
    else:
        # What the search itself did to the traffic belongs to the answer.
        print_plan(found, costs, sheet, remarks=found.notes[len(trace.notes) :])
    return _status(found)


def _status(found: Plan) -> int:
    if found.partial:
        return INTERRUPTED
    return NO_DEPLOYMENT if found.winner is None else 0


def _priced(name: str, price_per_hour: float | None) -> Gpu:
    from splitwiser.models.gpu import gpu

    sheet = gpu(name)
    if price_per_hour is None:
        return sheet
    if not 0 <= price_per_hour < float("inf"):
        raise ValueError(f"--price-per-hour is {price_per_hour:g}; accepted: dollars, 0 or more")
    return replace(sheet, price_per_hour=price_per_hour)


def _scalable(traffic: Traffic) -> Trace:
    """The traffic; Poisson arrivals where it has no times of its own and no rate was asked for."""
    from splitwiser.traces import arrivals

    trace = traffic.load()
    if trace.rate < float("inf") or traffic.request_rate is not None:
        return trace
    note("the traffic has no arrival times: planned with Poisson arrivals")
    burstiness = 1.0 if traffic.burstiness is None else traffic.burstiness
    return trace.retimed(arrivals.gamma(len(trace), 1.0, burstiness, seed=traffic.seed))


def _constants(profile: Profile) -> dict[str, object]:
    return {name: asdict(parameter) for name, parameter in profile.parameters.items()}
