"""The command line: start everything, measure, print one table."""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from bench.peers import report
from bench.peers.load import Answers, Ask, Order
from bench.peers.plan import FULL, LONG, PROFILE, QUICK, Load, Plan, capacity, requests
from bench.peers.targets import SMG_SLOTS, TARGETS, Site
from bench.relay.processes import Processes
from bench.relay.targets import Target, file_name


class Loader:
    """The load generator's process."""

    def __init__(self, child: subprocess.Popen[bytes], capacity_per_s: float) -> None:
        self._child = child
        self._capacity_per_s = capacity_per_s

    def measure(self, target: Target, load: Load, seed: int) -> Answers:
        """Send one load to `target`."""
        asks = [
            Ask(r.arrival_s, r.class_name, r.prompt_tokens, r.output_tokens)
            for r in requests(load, seed, self._capacity_per_s)
        ]
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        order = Order(target.port, load.drain_s, asks)
        self._child.stdin.write(msgspec.json.encode(order) + b"\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("the load generator ended; see its log")
        return msgspec.json.decode(line, type=Answers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a target that was asked for could not be measured."""
    chosen = _parser().parse_args(arguments)
    # A stop from outside unwinds too, so that no gateway is left behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    plan = QUICK if chosen.quick else LONG if chosen.long else FULL
    console = Console(stderr=True)
    rate = capacity()
    console.print(f"capacity {rate:.1f} requests/s, {PROFILE}")
    with tempfile.TemporaryDirectory(prefix="weir-peers-") as directory:
        run_dir = Path(directory)
        with Processes(run_dir) as processes:
            site = Site(run_dir, processes, PROFILE, chosen.smg_slots)
            found, excluded = _start(site, chosen.targets, console)
            load = [sys.executable, "-m", "bench.peers.load"]
            loader = Loader(processes.start("load", load, {}, piped=True), rate)
            console.print(f"{len(found)} targets, at most {plan.bound_s(len(found)):.0f} s")
            rows = _measure(plan, found, loader, console)
    _print(rows)
    if chosen.markdown:
        chosen.markdown.write_text(report.markdown(rows) + "\n")
    if chosen.json:
        document = {"capacity_per_s": rate, "rows": report.as_json(rows), "excluded": excluded}
        chosen.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if excluded else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="one seed, two loads, 3 minutes")
    length.add_argument("--long", action="store_true", help="2x alone, 60 s each, 20 minutes")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--smg-slots", type=int, default=SMG_SLOTS, help="concurrent requests")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    return parser


def _start(
    site: Site, names: Sequence[str], console: Console
) -> tuple[list[Target], dict[str, str]]:
    found: list[Target] = []
    excluded: dict[str, str] = {}
    for name in names:
        try:
            found.append(TARGETS[name](site))
        except RuntimeError as error:
            log = site.processes.log(file_name(name))
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            excluded[name] = f"{error}\n{tail}"
            console.print(f"[red]{name} is not measured: {excluded[name]}[/red]")
    return found, excluded


def _measure(
    plan: Plan, found: Sequence[Target], loader: Loader, console: Console
) -> list[report.Row]:
    rows: list[report.Row] = []
    rng = random.Random(0)
    deadline = time.monotonic() + plan.bound_s(len(found)) + 60.0
    with console.status("") as status:
        for load, seed in plan.cells():
            # In random order, so that what the machine does besides hits everybody alike.
            for target in rng.sample(found, len(found)):
                if time.monotonic() > deadline:
                    console.print("[red]out of time; what was measured so far follows[/red]")
                    return rows
                status.update(f"{load.ratio:g}x, seed {seed}: {target.name}")
                answers = loader.measure(target, load, seed)
                if answers.late_s > 0.25:
                    console.print(f"[yellow]the load was {answers.late_s:.2f} s late[/yellow]")
                rows.append(
                    report.row(target.name, load.ratio, seed, load.window_s, answers.answers)
                )
    return rows


def _print(rows: Sequence[report.Row]) -> None:
    shown = Table(*report.COLUMNS)
    for line in report.table(rows):
        shown.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 200).print(shown)


if __name__ == "__main__":
    sys.exit(main())
