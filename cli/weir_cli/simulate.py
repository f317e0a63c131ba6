"""`weir simulate`: ask the simulator before asking a GPU.

The command line only reads options, shows progress and prints; what is computed is
`weir_sim.experiments`. With `--json` the same numbers come as one JSON object per line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from weir_cli.show import WIDEST
from weir_sim.experiments import Scenario, ablations, fairness, replicas_needed
from weir_sim.profiles import PROFILES, EngineProfile
from weir_sim.report import ClassReport, Report, report
from weir_sim.run import SYSTEMS, RequestTooLong, SimConfig, SimResult, System, simulate
from weir_sim.traces import BadTrace, read_trace
from weir_sim.workload import (
    ADVERSARIAL_MIX,
    STANDARD_MIX,
    SimRequest,
    Stream,
    WorkloadSpec,
    replay,
)

app = typer.Typer(
    name="simulate",
    help="Run workloads through Weir's own scheduler and a model of vLLM, in simulated time.",
    no_args_is_help=True,
)

_ProfileName = Annotated[
    str, typer.Option("--profile", help=f"Engine to simulate: {', '.join(PROFILES)}.")
]
_Load = Annotated[
    float,
    typer.Option(help="Offered rate over what saturated plain engines complete.", min=0.01),
]
_Replicas = Annotated[int, typer.Option(help="Engines.", min=1, max=512)]
_Duration = Annotated[
    float, typer.Option("--duration", help="Simulated seconds of arrivals.", min=1.0)
]
_Seeds = Annotated[int, typer.Option(help="Repeat with seeds 0, 1, ... so many times.", min=1)]
_Seed = Annotated[int, typer.Option(help="The same seed gives the same result, byte for byte.")]
_Mix = Annotated[
    str,
    typer.Option(
        help="Parts of the classes, such as interactive=20,standard=50,batch=30; or "
        "`adversarial`: these, with a greedy tenant and book-length batch prompts."
    ),
]
_Turns = Annotated[int, typer.Option(help="Turns per conversation, with a shared prefix.", min=1)]
_Burstiness = Annotated[
    float,
    typer.Option(help="Variation of the time between arrivals; 1 is Poisson.", min=0.1, max=20.0),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")]
_TraceFile = Annotated[
    Path,
    typer.Option(
        "--trace",
        help="Trace to replay: .csv with TIMESTAMP, ContextTokens, GeneratedTokens, or .jsonl "
        "with timestamp, input_length, output_length.",
        exists=True,
        dir_okay=False,
    ),
]

DEFAULT_MIX = "interactive=20,standard=50,batch=30"


@app.command()
def run(  # noqa: PLR0913, PLR0917 - one per option
    system: Annotated[str, typer.Option(help=f"One of {', '.join(SYSTEMS)}.")] = "weir",
    profile: _ProfileName = "h100-8b",
    load: _Load = 2.0,
    replicas: _Replicas = 1,
    duration_s: _Duration = 300.0,
    seed: _Seed = 0,
    mix: _Mix = DEFAULT_MIX,
    turns: _Turns = 1,
    burstiness: _Burstiness = 1.0,
    as_json: _Json = False,
) -> None:
    """Simulate one system under one load and report each class."""
    spec = WorkloadSpec(
        rate=1.0, duration_s=1.0, streams=_streams(mix), turns=turns, burstiness=burstiness
    )
    scenario = Scenario(_profile(profile), load, replicas, duration_s, spec)
    _print_reports(_reports(scenario, [_system(system)], [seed]), as_json)


@app.command()
def compare(  # noqa: PLR0913, PLR0917 - one per option
    systems: Annotated[
        str, typer.Option(help=f"Several of {', '.join(SYSTEMS)}, separated by commas.")
    ] = "weir,fcfs,priority,class-slots",
    profile: _ProfileName = "h100-8b",
    load: _Load = 2.0,
    replicas: _Replicas = 1,
    duration_s: _Duration = 300.0,
    seeds: _Seeds = 1,
    mix: _Mix = DEFAULT_MIX,
    as_json: _Json = False,
) -> None:
    """Put systems side by side on the same requests."""
    chosen = [_system(name) for name in systems.split(",")]
    spec = WorkloadSpec(rate=1.0, duration_s=1.0, streams=_streams(mix))
    scenario = Scenario(_profile(profile), load, replicas, duration_s, spec)
    _print_reports(_reports(scenario, chosen, range(seeds)), as_json)


@app.command()
def ablation(  # noqa: PLR0913, PLR0917 - one per option
    base: Annotated[
        str, typer.Option("--system", help="One of weir, weir-priority, weir-fcfs.")
    ] = "weir",
    profile: _ProfileName = "h100-8b",
    load: _Load = 2.0,
    duration_s: _Duration = 300.0,
    seeds: _Seeds = 1,
    mix: _Mix = DEFAULT_MIX,
    as_json: _Json = False,
) -> None:
    """Replace one rule of Weir's scheduler at a time, and see what it was worth."""
    spec = WorkloadSpec(rate=1.0, duration_s=1.0, streams=_streams(mix))
    scenario = Scenario(_profile(profile), load, 1, duration_s, spec)
    _print_reports(
        _reports(scenario, list(ablations(_system(base).name).values()), range(seeds)), as_json
    )


@app.command("fairness")
def fairness_command(
    systems: Annotated[str, typer.Option(help="Systems, separated by commas.")] = "weir,fcfs",
    profile: _ProfileName = "h100-8b",
    tenants: Annotated[int, typer.Option(help="Equal tenants.", min=2)] = 5,
    seeds: _Seeds = 1,
    as_json: _Json = False,
) -> None:
    """Let one of several equal tenants send ten times as much, and see who is served."""
    table = Table("system", "seed", "Jain index", "part served of each", "part offered of each")
    for system in [_system(name) for name in systems.split(",")]:
        for seed in range(seeds):
            found = fairness(_profile(profile), system, seed, tenants)
            if as_json:
                typer.echo(json.dumps(asdict(found), sort_keys=True))
            table.add_row(
                found.system,
                str(seed),
                f"{found.jain_index:.4f}",
                " ".join(f"{part:.3f}" for part in found.shares.values()),
                " ".join(f"{part:.3f}" for part in found.offered.values()),
            )
    if not as_json:
        Console(width=WIDEST).print(table)


@app.command()
def capacity(  # noqa: PLR0913, PLR0917 - one per option
    trace: _TraceFile,
    attainment: Annotated[
        float, typer.Option(help="Part of the requests that must meet their targets.", max=1.0)
    ] = 0.99,
    system: Annotated[str, typer.Option(help=f"One of {', '.join(SYSTEMS)}.")] = "weir",
    profile: _ProfileName = "h100-8b",
    speed: Annotated[float, typer.Option(help="Replay so many times as fast.", min=0.01)] = 1.0,
    most: Annotated[int, typer.Option(help="Give up above so many replicas.", min=1)] = 64,
    mix: _Mix = DEFAULT_MIX,
    as_json: _Json = False,
) -> None:
    """Say how many replicas a trace needs to meet its targets."""
    workload = _replayed(trace, mix, speed)
    config = SimConfig(_profile(profile), _system(system))
    with Console(stderr=True).status(f"Simulating {len(workload)} requests"):
        answer = replicas_needed(config, workload, attainment, most)
    if as_json:
        typer.echo(json.dumps(asdict(answer), sort_keys=True))
        return
    table = Table("replicas", "attainment")
    for replicas, reached in answer.tried.items():
        table.add_row(str(replicas), f"{reached:.4f}")
    Console(width=WIDEST).print(table)
    if answer.replicas is None:
        typer.echo(f"Not even {most} replicas reach {attainment:.0%}; raise --most.")
        raise typer.Exit(1)
    typer.echo(f"{answer.replicas} replicas reach {attainment:.0%}.")


@app.command("trace")
def trace_command(  # noqa: PLR0913, PLR0917 - one per option
    trace: _TraceFile,
    system: Annotated[str, typer.Option(help=f"One of {', '.join(SYSTEMS)}.")] = "weir",
    profile: _ProfileName = "h100-8b",
    replicas: _Replicas = 1,
    speed: Annotated[float, typer.Option(help="Replay so many times as fast.", min=0.01)] = 1.0,
    mix: _Mix = DEFAULT_MIX,
    as_json: _Json = False,
) -> None:
    """Replay a trace through one system and report each class."""
    workload = _replayed(trace, mix, speed)
    config = SimConfig(_profile(profile), _system(system), replicas)
    result = _with_progress(config, workload, config.system.name)
    _print_reports([report(result)], as_json)


def _replayed(trace: Path, mix: str, speed: float) -> list[SimRequest]:
    try:
        return replay(read_trace(trace), _streams(mix), seed=0, speed=speed)
    except BadTrace as error:
        raise typer.BadParameter(str(error), param_hint="--trace") from error


def _reports(
    scenario: Scenario, systems: Sequence[System], seeds: Iterable[int]
) -> Iterable[Report]:
    for seed in seeds:
        requests = scenario.requests(seed)
        for system in systems:
            config = SimConfig(scenario.profile, system, scenario.replicas, seed=seed)
            yield report(_with_progress(config, requests, f"{system.name}, seed {seed}"))


def _with_progress(config: SimConfig, requests: Sequence[SimRequest], title: str) -> SimResult:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(title, total=len(requests))
        try:
            return simulate(
                config, requests, progress=lambda ended: progress.update(task, completed=ended)
            )
        except RequestTooLong as error:
            raise typer.BadParameter(f"{error}; choose a larger --profile") from error


def _print_reports(reports: Iterable[Report], as_json: bool) -> None:
    table = Table(
        "system", "seed", "class", "requests", "refused", "on target", "goodput/s",
        "TTFT p50 s", "TTFT p99 s", "TPOT p99 ms", "longest wait s",
        caption="on target: of all requests, refused ones included",
    )  # fmt: skip
    for found in reports:
        if as_json:
            typer.echo(found.to_json())
            continue
        for row in found.classes:
            table.add_row(found.system, str(found.seed), *_cells(row))
        table.add_row(
            found.system,
            str(found.seed),
            "all",
            f"{found.offered_per_s:.1f}/s",
            "",
            f"{found.attainment_ratio:.1%}",
            f"{found.goodput_per_s:.2f}",
            end_section=True,
        )
    if not as_json:
        Console(width=WIDEST).print(table)


def _cells(row: ClassReport) -> tuple[str, ...]:
    tpot_ms = None if row.tpot_p99_s is None else row.tpot_p99_s * 1000
    return (
        row.name,
        str(row.requests),
        str(row.rejected),
        f"{row.attainment_ratio:.1%}",
        f"{row.goodput_per_s:.2f}",
        _number(row.ttft_p50_s, 3),
        _number(row.ttft_p99_s, 3),
        _number(tpot_ms, 1),
        _number(row.longest_wait_s, 2),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _system(name: str) -> System:
    found = SYSTEMS.get(name.strip()) or ablations().get(name.strip())
    if found is None:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(SYSTEMS)}")
    return found


def _profile(name: str) -> EngineProfile:
    found = PROFILES.get(name)
    if found is None:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(PROFILES)}")
    return found


def _streams(mix: str) -> tuple[Stream, ...]:
    if mix == "adversarial":
        return ADVERSARIAL_MIX
    known = {stream.class_name for stream in STANDARD_MIX}
    streams: list[Stream] = []
    for part in mix.split(","):
        name, equals, share = part.partition("=")
        if name not in known or not equals or not share.replace(".", "", 1).isdigit():
            raise typer.BadParameter(
                f"{part!r}: write CLASS=PART with a class of {', '.join(sorted(known))}",
                param_hint="--mix",
            )
        streams.append(Stream(name, f"tenant-{name}", float(share)))
    return tuple(streams)


if __name__ == "__main__":
    app()
