"""`weir simulate autoscale`: what would autoscaling have cost, and what would it have missed?"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from weir_cli.simulation_options import (
    DEFAULT_MIX,
    AsJson,
    Burstiness,
    ColumnNames,
    Mix,
    ProfileName,
    ReportDir,
    Seeds,
    profile_named,
    trace_in,
    workload,
)
from weir_cli.simulation_output import print_table
from weir_core.scale.types import ScalingPolicy
from weir_sim.scalers import SCALERS
from weir_sim.scaling import ScalingReport, ScalingScene, compare_scalers
from weir_sim.scaling_load import (
    CURVES,
    Curve,
    Engine,
    Lengths,
    curve_named,
    curve_of_rates,
    curve_of_requests,
)
from weir_sim.scaling_report import HEAD, json_of, notes_of, row_of
from weir_sim.scaling_requests import compare_by_requests
from weir_sim.traces import BadTrace
from weir_sim.workload import LengthModel, SimRequest

_PEAK = 40
_ALL = ",".join(SCALERS)
_USUAL = ScalingPolicy(min_replicas=1, max_replicas=1)

CurveName = Annotated[
    str, typer.Option("--curve", metavar="NAME", help=f"Rates over time: {', '.join(CURVES)}.")
]
RatesFile = Annotated[
    Path | None,
    typer.Option(
        "--rates",
        metavar="FILE",
        help="Your own rates: CSV with second, requests_per_second, one row for each bin.",
    ),
]
RequestTrace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="A trace of requests: their lengths, and unless --curve or --rates say it, their "
        "rates.",
    ),
]
StaticPeak = Annotated[
    int | None,
    typer.Option(
        "--peak",
        metavar="N",
        help=f"Scale the rates so that a static fleet needs so many replicas; {_PEAK} for --curve, "
        "else as the rates are.",
        min=1,
        max=1000,
    ),
]
ScalerNames = Annotated[
    str, typer.Option("--scalers", metavar="NAMES", help=f"Several of {', '.join(SCALERS)}.")
]
ColdStart = Annotated[
    float,
    typer.Option("--cold-start", metavar="X", help="Seconds from a pod to ready.", min=1.0),
]
TargetLoad = Annotated[
    float,
    typer.Option("--target-load", metavar="X", help="Of Weir's autoscaler.", min=0.1, max=1.0),
]
BatchTargetLoad = Annotated[
    float,
    typer.Option(
        "--batch-target-load",
        metavar="X",
        help="The same with patient classes' work included.",
        min=0.1,
        max=1.0,
    ),
]
Knob = Annotated[
    float | None,
    typer.Option(
        "--knob",
        metavar="X",
        help="Of the others (replicas, requests per replica, ...) instead of the one at which they "
        "cost as much as Weir.",
        min=0.001,
    ),
]
ByRequests = Annotated[
    bool,
    typer.Option(
        "--requests",
        help="Simulate each request instead of a fluid; for minutes, such as --curve surge.",
    ),
]


def autoscale(  # noqa: PLR0913, PLR0917 - one per option
    curve: CurveName = "",
    rates: RatesFile = None,
    trace: RequestTrace = None,
    columns: ColumnNames = None,
    peak: StaticPeak = None,
    scalers: ScalerNames = _ALL,
    knob: Knob = None,
    cold_start_s: ColdStart = 300.0,
    target_load: TargetLoad = _USUAL.target_load,
    batch_target_load: BatchTargetLoad = _USUAL.batch_target_load,
    profile: ProfileName = "h100-8b",
    mix: Mix = DEFAULT_MIX,
    burstiness: Burstiness = 1.0,
    seeds: Seeds = 1,
    by_requests: ByRequests = False,
    as_json: AsJson = False,
    report_dir: ReportDir = None,
) -> None:
    """Scale a fleet over hours or weeks, by Weir's autoscaler and by others at equal cost."""
    names = _scalers_named(scalers)
    requests = trace_in(trace, columns)
    engine = profile_named(profile)
    lengths = Lengths.of_requests(requests) if requests else Lengths.of_model(LengthModel())
    scene = ScalingScene(
        _curve(curve, rates, requests, Engine(engine, lengths), lengths, peak),
        engine,
        lengths,
        _shares(mix),
        burstiness,
        cold_start_s,
        replace(_USUAL, target_load=target_load, batch_target_load=batch_target_load),
    )
    with Console(stderr=True).status("Simulating") as status:

        def show(name: str) -> None:
            status.update(f"Simulating {name}")

        if by_requests:
            found = compare_by_requests(scene, names, range(seeds), requests, show)
        else:
            found = compare_scalers(scene, names, range(seeds), show, knob)
    _print(scene, found, as_json)
    if report_dir is not None:
        from weir_cli.simulation_report import write_scaling_report

        path = write_scaling_report(scene, found, report_dir, " ".join(["weir", *sys.argv[1:]]))
        typer.echo(f"wrote {path}", err=True)


def _curve(
    name: str,
    rates: Path | None,
    requests: list[SimRequest],
    engine: Engine,
    lengths: Lengths,
    peak: int | None,
) -> Curve:
    """Return the curve of a file, of a trace, or of a name."""
    if name and name not in CURVES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(CURVES)}", param_hint="--curve")
    if name and rates is not None:
        raise typer.BadParameter("give --curve or --rates, not both", param_hint="--rates")
    if rates is not None:
        try:
            found = curve_of_rates(rates.read_text(), engine, rates.name)
        except (BadTrace, OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(str(error), param_hint="--rates") from error
    elif requests and not name:
        found = curve_of_requests(requests, engine, lengths, "trace")
    else:
        return curve_named(name or CURVES[0], peak or _PEAK)
    return found if peak is None else found.scaled(peak)


def _scalers_named(names: str) -> list[str]:
    found = [name.strip() for name in names.split(",")]
    for name in found:
        if name not in SCALERS:
            raise typer.BadParameter(
                f"{name!r} is none of {', '.join(SCALERS)}", param_hint="--scalers"
            )
    return found


def _shares(mix: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for stream in workload(mix).streams:
        shares[stream.class_name] = shares.get(stream.class_name, 0.0) + stream.share
    return shares


def _print(scene: ScalingScene, found: list[ScalingReport], as_json: bool) -> None:
    if as_json:
        for report in found:
            typer.echo(json_of(report))
        return
    table = Table(*HEAD, caption=notes_of(scene))
    for report in found:
        table.add_row(*row_of(report))
    print_table(table)
