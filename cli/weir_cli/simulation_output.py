"""How `weir simulate` shows what it does and what came out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from weir_cli.show import WIDEST
from weir_sim.fleet_report import FleetReport
from weir_sim.report import ClassReport, Report, legend
from weir_sim.run import RequestTooLong, SimConfig, SimResult, simulate
from weir_sim.sweep import Done, Job, run_jobs
from weir_sim.workload import SimRequest


def run_with_progress(jobs: Sequence[Job], workers: int | None) -> list[Done]:
    """Run jobs on all cores and show how many are done.

    Raises:
        BadParameter: A request does not fit into the engine.
    """
    with _progress() as progress:
        task = progress.add_task("simulations", total=len(jobs))

        def note(done: Done) -> None:
            progress.update(task, advance=1, description=done.job.title)

        try:
            return run_jobs(jobs, workers, note)
        except RequestTooLong as error:
            raise typer.BadParameter(f"{error}; choose a larger --profile") from error


def simulate_with_progress(
    config: SimConfig, requests: Sequence[SimRequest], title: str
) -> SimResult:
    """Run one simulation and show how far it is.

    Raises:
        BadParameter: A request does not fit into the engine.
    """
    with _progress() as progress:
        task = progress.add_task(title, total=len(requests))
        advance: Callable[[int], None] = lambda ended: progress.update(task, completed=ended)  # noqa: E731
        try:
            return simulate(config, requests, progress=advance)
        except RequestTooLong as error:
            raise typer.BadParameter(f"{error}; choose a larger --profile") from error


def print_results(results: Sequence[Done], as_json: bool, report_dir: Path | None) -> None:
    """Print the reports of jobs, and write the report directory if there is to be one."""
    loads = [done.job.scenario.load for done in results]
    print_reports([done.report for done in results], as_json, loads)
    if report_dir is not None:
        from weir_cli.simulation_report import write_report

        path = write_report(results, report_dir, " ".join(["weir", *sys.argv[1:]]))
        typer.echo(f"wrote {path}", err=True)


def print_reports(
    reports: Iterable[Report], as_json: bool, loads: Sequence[float] | None = None
) -> None:
    """Print reports as one table, or as JSON lines."""
    if as_json:
        for found in reports:
            typer.echo(found.to_json())
        return
    reports = list(reports)
    table = Table(
        "system", "load", "seed", "class", "requests", "refused", "refusals", "on target",
        "goodput/s", "TTFT p50 s", "TTFT p99 s", "TPOT p99 ms", "longest wait s",
        caption=legend(reports),
    )  # fmt: skip
    for index, found in enumerate(reports):
        load = f"{loads[index]:g}" if loads else "-"
        for row in found.classes:
            table.add_row(found.system, load, str(found.seed), *_cells(row))
        table.add_row(
            found.system, load, str(found.seed), "all", f"{found.offered_per_s:.1f}/s", "", "",
            f"{found.attainment_ratio:.1%}", f"{found.goodput_per_s:.2f}",
            end_section=True,
        )  # fmt: skip
    print_table(table)


def print_fleet(reports: Sequence[FleetReport], as_json: bool) -> None:
    """Print how each way to route did, as one table or as JSON lines."""
    if as_json:
        for found in reports:
            typer.echo(found.to_json())
        return
    table = Table(
        "routing", "seed", "TTFT p50 s", "p99 s", "p99 s by class", "on target", "by class",
        "goodput/s", "forwarded", "returned", "moved", "hits", "served by speed",
        caption=legend([found.by_class for found in reports]),
    )  # fmt: skip
    for found in reports:
        classes = found.by_class.classes
        table.add_row(
            found.routing,
            str(found.seed),
            _number(found.ttft_p50_s, 3),
            _number(found.ttft_p99_s, 3),
            " ".join(f"{row.name} {_number(row.ttft_p99_s, 2)}" for row in classes),
            f"{found.attainment_ratio:.2%}",
            " ".join(f"{row.attainment_ratio:.2%}" for row in classes),
            f"{found.by_class.goodput_per_s:.1f}",
            f"{found.forwarded_ratio:.0%}",
            str(found.returned),
            str(found.moved),
            f"{found.hit_ratio:.1%}",
            " ".join(f"{speed}: {part:.0%}" for speed, part in found.served.items()),
        )
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table in its full width, whatever the terminal's."""
    Console(width=WIDEST).print(table)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)


def _cells(row: ClassReport) -> tuple[str, ...]:
    tpot_ms = None if row.tpot_p99_s is None else row.tpot_p99_s * 1000
    return (
        row.name,
        str(row.requests),
        str(row.rejected),
        str(row.refusals),
        f"{row.attainment_ratio:.1%}",
        f"{row.goodput_per_s:.2f}",
        _number(row.ttft_p50_s, 3),
        _number(row.ttft_p99_s, 3),
        _number(tpot_ms, 1),
        _number(row.longest_wait_s, 2),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
