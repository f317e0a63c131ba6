"""Weir's sidecars beside other routers, each before four engines of its own.

A run is one target under one load with one seed: its engines and what stands before them are
started afresh, so that no cache holds what an earlier run left. Targets take turns in random
order. docs/performance.md and docs/overload.md say what came out.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from bench.fleet import report
from bench.fleet.chats import LOADS, SPEEDS, Capacity, Load
from bench.fleet.fleets import FLEETS, Fleet, Site
from bench.fleet.load import Answers, Order
from bench.relay.processes import Processes

_IDLE_S: Final = 3.0
_BEHIND_S: Final = 0.25
_SLACK_S: Final = 30.0
_DEFAULT_LOADS: Final = [name for name, load in LOADS.items() if load.kind != "cost"]
_DEFAULT_TARGETS: Final = [name for name in FLEETS if not name.startswith("weir-")]


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    target: str
    load: Load
    speeds: str
    seed: int

    def __str__(self) -> str:
        return f"{self.speeds}, {self.load.name}, seed {self.seed}: {self.target}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--targets", nargs="*", default=_DEFAULT_TARGETS, choices=list(FLEETS))
    parser.add_argument("--loads", nargs="*", default=_DEFAULT_LOADS, choices=list(LOADS))
    parser.add_argument("--speeds", nargs="*", default=list(SPEEDS), choices=list(SPEEDS))
    parser.add_argument("--seeds", type=int, default=3, help="how many runs of each")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--json", type=Path, help="add every run to this file, one to a line")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument(
        "--explain", type=Path, help="add to this file what Weir's sidecars say of each request"
    )
    parser.add_argument("--report", type=Path, help="print the tables of such a file, run nothing")


def run(options: argparse.Namespace) -> int:
    """Measure, and print; 1 where a run failed or a goal is missed."""
    if options.report:
        rows = read(options.report)
        failures: list[str] = []
    else:
        # A stop from outside unwinds too, so that no engine is left behind.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        runner = _Runner(options, Console(stderr=True))
        runner.run()
        rows, failures = runner.rows, runner.failures
    text = tables(rows)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    missed = report.missed(rows)
    for line in [*failures, *missed]:
        print(line)
    return 1 if failures or missed else 0


def read(path: Path) -> list[report.Row]:
    """Return the runs of a file."""
    lines = path.read_bytes().splitlines()
    return [msgspec.json.decode(line, type=report.Row) for line in lines]


def tables(rows: Sequence[report.Row]) -> str:
    """Return one table for each kind of load."""

    def of(kind: str) -> list[report.Row]:
        return [each for each in rows if LOADS[each.load].kind == kind]

    parts = [
        report.markdown(columns, lines)
        for columns, lines in (
            (report.CHATS, report.chats(of("chats"))),
            (report.MIX, report.mix(of("mix"))),
            (report.COST, report.cost(of("cost"))),
        )
        if lines
    ]
    return "\n\n".join(parts)


def cases(options: argparse.Namespace) -> list[Case]:
    """Return all runs in their order."""
    rng = random.Random(options.first_seed)
    found: list[Case] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for speeds in options.speeds:
            for name in options.loads:
                # In random order, so that what the machine does besides hits all alike.
                targets = rng.sample(options.targets, len(options.targets))
                found += [Case(target, LOADS[name], speeds, seed) for target in targets]
    return found


class _Runner:
    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self._options = options
        self._console = console
        self._capacity = Capacity()
        self._stopped = threading.Event()
        self.rows: list[report.Row] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Measure all cases; what failed is in `failures`."""
        planned, at_once = cases(self._options), self._options.at_once
        seconds = sum(case.load.window_s + case.load.drain_s + 10 for case in planned)
        self._console.print(f"{len(planned)} runs, about {seconds / at_once / 60:.0f} minutes")
        with ThreadPoolExecutor(at_once) as pool:
            try:
                for case, found in zip(planned, pool.map(self._measured, planned), strict=True):
                    self._keep(case, found)
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _measured(self, case: Case) -> report.Row | str:
        why = ""
        for more in ("; once more", ""):
            try:
                return _one(case, self._capacity, self._options.explain)
            except (RuntimeError, OSError) as error:
                # Another process may have taken a port between its choice and its use.
                why = f"{case}: {error}"
                self._console.print(f"[red]{why}{more}[/red]")
            if self._stopped.is_set():
                break
        return why

    def _keep(self, case: Case, found: report.Row | str) -> None:
        if isinstance(found, str):
            self.failures.append(found)
            return
        self.rows.append(found)
        _tell(case, found, self._console)
        if self._options.json:
            with self._options.json.open("ab") as file:
                file.write(msgspec.json.encode(found) + b"\n")


def _tell(case: Case, row: report.Row, console: Console) -> None:
    later = "" if row.later_s is None else f", later turns {row.later_s:.3f} s"
    console.print(
        f"{case}: {row.requests} requests, goodput {row.goodput:.2f}/s{later}, "
        f"hits {row.hit_ratio:.0%}, refused {row.refused}, unfinished {row.unfinished}, "
        f"failed {row.failed + row.cut}, CPU {row.used.cpu_s:.1f} s"
    )
    behind_s = max(row.late_s, row.used.behind_s)
    if behind_s > _BEHIND_S:
        console.print(f"[yellow]the machine was {behind_s:.2f} s late[/yellow]")


def _one(case: Case, capacity: Capacity, explain: Path | None) -> report.Row:
    """Start a fleet, send it one load, and stop it."""
    speeds = SPEEDS[case.speeds]
    with tempfile.TemporaryDirectory(prefix="weir-fleet-") as directory:
        run_dir = Path(directory)
        with Processes(run_dir) as processes:
            try:
                fleet = FLEETS[case.target](Site(run_dir, processes, speeds))
            except RuntimeError as error:
                raise RuntimeError(f"{error}\n{_logs(run_dir)}") from error
            chats = capacity.clients(case.load, speeds, case.seed)
            order = Order(list(fleet.ports), case.load.drain_s, chats, explain is not None)
            idle_cpu, before = _idle_cpu(fleet), _counts(fleet)
            answers = _sent(order, processes, run_dir, case.load.window_s + case.load.drain_s)
            used = _used(fleet, before, idle_cpu * answers.seconds)
    if explain is not None:
        with explain.open("ab") as file:
            file.writelines(msgspec.json.encode(each) + b"\n" for each in answers.sent)
    return report.row(fleet.name, case.load, case.speeds, case.seed, answers, used)


def _idle_cpu(fleet: Fleet) -> float:
    """Return the CPU time of a second in which no request comes."""
    at_s, cpu_s = time.monotonic(), fleet.cpu_s()
    time.sleep(_IDLE_S)
    return (fleet.cpu_s() - cpu_s) / (time.monotonic() - at_s)


_COUNTS: Final = {
    "looked_up_tokens": "vllm:prefix_cache_queries_total",
    "cached_tokens": "vllm:prefix_cache_hits_total",
    "predicted_tokens": "weir_prefix_predicted_tokens_total",
    "forwards": "weir_forwards_total",
}


def _counts(fleet: Fleet) -> dict[str, float]:
    found = fleet.engine_totals() | fleet.sidecar_totals()
    counts = {name: found.get(metric, 0.0) for name, metric in _COUNTS.items()}
    return {**counts, "cpu_s": fleet.cpu_s()}


def _used(fleet: Fleet, before: dict[str, float], idle_cpu_s: float) -> report.Used:
    after = _counts(fleet)
    engines = [engine.metrics() for engine in fleet.engines]
    return report.Used(
        **{name: after[name] - before[name] for name in after},
        idle_cpu_s=idle_cpu_s,
        busy_s=[round(each["mock:busy_seconds_total"], 3) for each in engines],
        behind_s=max(each["mock:behind_seconds"] for each in engines),
    )


def _sent(order: Order, processes: Processes, run_dir: Path, seconds: float) -> Answers:
    """Have a load generator carry out an order.

    Raises:
        RuntimeError: It failed, or took far longer than it should.
    """
    files = run_dir / "order.json", run_dir / "answers.json"
    files[0].write_bytes(msgspec.json.encode(order))
    command = [sys.executable, "-m", "bench.fleet.load", *map(str, files)]
    child = processes.start("load", command, {})
    try:
        status = child.wait(seconds + _SLACK_S)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the load generator does not end\n{_logs(run_dir)}") from error
    if status:
        raise RuntimeError(f"the load generator failed\n{_logs(run_dir)}")
    return msgspec.json.decode(files[1].read_bytes(), type=Answers)


def _logs(run_dir: Path) -> str:
    """Return the ends of the logs of a run."""
    ends = []
    for log in sorted(run_dir.glob("*.log")):
        text = log.read_text(errors="replace")[-1500:]
        if text:
            ends.append(f"--- {log.name}\n{text}")
    return "\n".join(ends)
