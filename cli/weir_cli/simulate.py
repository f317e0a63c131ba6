"""`weir simulate`: ask the simulator before asking a GPU.

The command line only reads options (`simulation_options`), shows progress and prints
(`simulation_output`); what is computed is `weir_sim.experiments`. With `--json` the same numbers
come as one JSON object per line, with `--report` as figures in one HTML file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from weir_cli.simulate_scaling import autoscale
from weir_cli.simulation_options import (
    DEFAULT_MIX,
    AgeOfLoads,
    AsJson,
    Attainment,
    Burstiness,
    ColumnNames,
    Duration,
    FleetSystems,
    FleetTrace,
    Heartbeat,
    Ingress,
    Load,
    Loads,
    Loss,
    Mix,
    ProfileName,
    Replicas,
    ReportDir,
    Retries,
    RoutingNames,
    Seed,
    Seeds,
    Slow,
    Speed,
    Speeds,
    SystemName,
    SystemNames,
    TraceFile,
    Turns,
    Workers,
    loads_in,
    profile_named,
    replayed,
    routings_named,
    speeds_of,
    system_named,
    systems_named,
    trace_in,
    workload,
)
from weir_cli.simulation_output import (
    print_fleet,
    print_reports,
    print_results,
    print_table,
    run_with_progress,
    simulate_with_progress,
)
from weir_core.wire.steps import Facts
from weir_sim.experiments import Scenario, ablations, fairness, replicas_needed
from weir_sim.fleet import FleetConfig, Slowdown
from weir_sim.fleet_load import FleetLoad, fleet_capacity
from weir_sim.fleet_peers import Messages, usual_heartbeat_s
from weir_sim.fleet_report import FleetReport, compare_routings
from weir_sim.report import report
from weir_sim.run import SimConfig
from weir_sim.sweep import Job

app = typer.Typer(
    name="simulate",
    help="Run workloads through Weir's scheduler in simulated time. Engines are a model of vLLM's.",
    no_args_is_help=True,
)
app.command()(autoscale)


@app.command()
def run(  # noqa: PLR0913, PLR0917 - one per option
    system: SystemName = "weir",
    profile: ProfileName = "h100-8b",
    load: Load = 2.0,
    replicas: Replicas = 1,
    duration_s: Duration = 300.0,
    seed: Seed = 0,
    mix: Mix = DEFAULT_MIX,
    turns: Turns = 1,
    burstiness: Burstiness = 1.0,
    retries: Retries = 0,
    as_json: AsJson = False,
    report_dir: ReportDir = None,
) -> None:
    """Simulate one system under one load and report each class."""
    spec = workload(mix, turns, burstiness)
    scenario = Scenario(profile_named(profile), load, replicas, duration_s, spec)
    jobs = [Job(scenario, system_named(system), seed, retries)]
    print_results(run_with_progress(jobs, 1), as_json, report_dir)


@app.command()
def compare(  # noqa: PLR0913, PLR0917 - one per option
    systems: SystemNames = "weir,fcfs,priority,class-slots",
    profile: ProfileName = "h100-8b",
    load: Load = 2.0,
    loads: Loads = "",
    replicas: Replicas = 1,
    duration_s: Duration = 300.0,
    seeds: Seeds = 1,
    mix: Mix = DEFAULT_MIX,
    turns: Turns = 1,
    burstiness: Burstiness = 1.0,
    retries: Retries = 0,
    workers: Workers = None,
    as_json: AsJson = False,
    report_dir: ReportDir = None,
) -> None:
    """Put systems side by side on the same requests. At one load or (--loads) several."""
    spec = workload(mix, turns, burstiness)
    engine = profile_named(profile)
    jobs = [
        Job(Scenario(engine, offered, replicas, duration_s, spec), system, seed, retries)
        for offered in (loads_in(loads) if loads else [load])
        for seed in range(seeds)
        for system in systems_named(systems)
    ]
    print_results(run_with_progress(jobs, workers), as_json, report_dir)


@app.command()
def ablation(  # noqa: PLR0913, PLR0917 - one per option
    base: Annotated[
        str, typer.Option("--system", metavar="NAME", help="One of weir, weir-priority, weir-fcfs.")
    ] = "weir",
    profile: ProfileName = "h100-8b",
    load: Load = 2.0,
    duration_s: Duration = 300.0,
    seeds: Seeds = 1,
    mix: Mix = DEFAULT_MIX,
    workers: Workers = None,
    as_json: AsJson = False,
    report_dir: ReportDir = None,
) -> None:
    """Replace one rule of Weir's scheduler at a time. That tells what each is worth."""
    scenario = Scenario(profile_named(profile), load, 1, duration_s, workload(mix))
    systems = list(ablations(system_named(base).name).values())
    jobs = [Job(scenario, system, seed) for seed in range(seeds) for system in systems]
    print_results(run_with_progress(jobs, workers), as_json, report_dir)


@app.command()
def fleet(  # noqa: PLR0913, PLR0917 - one per option
    routings: RoutingNames = "weir,central,least-request,round-robin",
    profile: ProfileName = "h100-8b",
    replicas: Replicas = 8,
    speeds: Speeds = "1",
    load: Load = 0.8,
    duration_s: Duration = 60.0,
    seeds: Seeds = 1,
    mix: Mix = DEFAULT_MIX,
    turns: Turns = 1,
    trace: FleetTrace = None,
    columns: ColumnNames = None,
    burstiness: Burstiness = 1.0,
    heartbeat_s: Heartbeat = None,
    age_s: AgeOfLoads = 0.0,
    loss: Loss = 0.0,
    ingress: Ingress = "random",
    slow: Slow = None,
    as_json: AsJson = False,
) -> None:
    """Route the same requests through a fleet in several ways. Every replica runs Weir."""
    engine, spec = profile_named(profile), workload(mix, turns, burstiness)
    names, pace = routings_named(routings), speeds_of(speeds, replicas)
    messages = Messages(heartbeat_s or usual_heartbeat_s(replicas), age_s, loss)
    slowdowns = [] if slow is None else [Slowdown(0, duration_s / 3, 2 * duration_s / 3, slow)]
    offered = FleetLoad(engine, pace, duration_s, spec, trace_in(trace, columns))
    reports: list[FleetReport] = []
    with Console(stderr=True).status("Simulating the fleet"):
        for seed in range(seeds):
            config = FleetConfig(
                engine, pace, "", ingress, messages, slowdowns=slowdowns, seed=seed
            )
            reports += compare_routings(config, names, offered.requests(load, seed))
    print_fleet(reports, as_json)


@app.command("fleet-capacity")
def fleet_capacity_command(  # noqa: PLR0913, PLR0917 - one per option
    routings: RoutingNames = "weir,weighted-scores,least-request",
    systems: FleetSystems = "",
    profile: ProfileName = "h100-8b",
    replicas: Replicas = 8,
    speeds: Speeds = "1",
    attainment: Attainment = 0.95,
    duration_s: Duration = 60.0,
    seeds: Seeds = 1,
    mix: Mix = DEFAULT_MIX,
    turns: Turns = 1,
    trace: FleetTrace = None,
    columns: ColumnNames = None,
    ingress: Ingress = "random",
    as_json: AsJson = False,
) -> None:
    """Search the highest load at which every class meets its targets."""
    engine, spec = profile_named(profile), workload(mix, turns)
    names, pace = routings_named(routings), speeds_of(speeds, replicas)
    if systems:
        if len(set(pace)) > 1:
            raise typer.BadParameter("systems have replicas of one speed", param_hint="--systems")
        names += [system.name for system in systems_named(systems)]
    offered = FleetLoad(engine, pace, duration_s, spec, trace_in(trace, columns))
    messages = Messages(usual_heartbeat_s(replicas))
    table = Table("", "seed", "load", "goodput/s")
    with Console(stderr=True).status("Simulating the fleet"):
        for seed in range(seeds):
            config = FleetConfig(engine, pace, "", ingress, messages, seed=seed)
            for name in names:
                found = fleet_capacity(config, offered, name, attainment)
                if as_json:
                    typer.echo(json.dumps(asdict(found), sort_keys=True))
                table.add_row(name, str(seed), f"{found.load:.3f}", f"{found.goodput_per_s:.1f}")
    if not as_json:
        print_table(table)


@app.command("fairness")
def fairness_command(
    systems: SystemNames = "weir,fcfs",
    profile: ProfileName = "h100-8b",
    tenants: Annotated[int, typer.Option(metavar="N", help="Equal tenants.", min=2)] = 5,
    seeds: Seeds = 1,
    as_json: AsJson = False,
) -> None:
    """Let one of several equal tenants send ten times as much. Who is served?"""
    table = Table("system", "seed", "Jain index", "part served of each", "part offered of each")
    for system in systems_named(systems):
        for seed in range(seeds):
            found = fairness(profile_named(profile), system, seed, tenants)
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
        print_table(table)


@app.command()
def capacity(  # noqa: PLR0913, PLR0917 - one per option
    trace: TraceFile,
    attainment: Attainment = 0.99,
    system: SystemName = "weir",
    profile: ProfileName = "h100-8b",
    speed: Speed = 1.0,
    most: Annotated[
        int, typer.Option(metavar="N", help="Give up above so many replicas.", min=1)
    ] = 64,
    mix: Mix = DEFAULT_MIX,
    columns: ColumnNames = None,
    as_json: AsJson = False,
) -> None:
    """Say how many replicas a trace needs to meet its targets."""
    requests = replayed(trace, columns, mix, speed)
    config = SimConfig(profile_named(profile), system_named(system))
    with Console(stderr=True).status(f"Simulating {len(requests)} requests"):
        answer = replicas_needed(config, requests, attainment, most)
    if as_json:
        typer.echo(json.dumps(asdict(answer), sort_keys=True))
        return
    table = Table("replicas", "attainment")
    for replicas, reached in answer.tried.items():
        table.add_row(str(replicas), f"{reached:.4f}")
    print_table(table)
    if answer.replicas is None:
        typer.echo(f"Not even {most} replicas reach {attainment:.0%}; raise --most.")
        raise typer.Exit(1)
    typer.echo(f"{answer.replicas} replicas reach {attainment:.0%}.")


@app.command("trace")
def trace_command(  # noqa: PLR0913, PLR0917 - one per option
    trace: TraceFile,
    system: SystemName = "weir",
    profile: ProfileName = "h100-8b",
    replicas: Replicas = 1,
    speed: Speed = 1.0,
    mix: Mix = DEFAULT_MIX,
    columns: ColumnNames = None,
    as_json: AsJson = False,
) -> None:
    """Replay a trace through one system and report each class."""
    requests = replayed(trace, columns, mix, speed)
    config = SimConfig(profile_named(profile), system_named(system), replicas)
    print_reports([report(simulate_with_progress(config, requests, config.system.name))], as_json)


@app.command()
def calibrate(
    steplog: Annotated[
        Path,
        typer.Argument(
            help="JSON lines, one per engine step: duration_s, prefill_tokens, decodes, "
            "prefill_context, decode_context.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Where the profile goes; --profile of other commands takes it."
        ),
    ],
    facts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The engine's own engine.json, for slots, step size and KV room.",
        ),
    ] = None,
    block_tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens in a KV block.", min=1)
    ] = 16,
) -> None:
    """Fit a profile to the step log of an engine. Says how wrong it is on steps kept aside."""
    from weir_sim import calibrate as calibration

    said = Facts("fcfs", 256, 2048, 396_000)
    try:
        if facts is not None:
            said = Facts.decode(facts.read_bytes())
        steps = calibration.read_steps(steplog)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    found = calibration.calibrate(steps, out.stem, said, block_tokens)
    calibration.write_profile(found.profile, out)
    typer.echo(
        f"{found.steps} steps; on every fifth, kept out of the fit: half of them within "
        f"{found.median_error_ratio:.1%}, 95 % within {found.p95_error_ratio:.1%}, "
        f"all together {found.bias_ratio:+.1%}. Wrote {out}."
    )


if __name__ == "__main__":
    app()
