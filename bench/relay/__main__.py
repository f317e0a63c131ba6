"""The command line: start everything, measure, print one table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench.relay import report, routers, targets
from bench.relay.load import Order, Outcome
from bench.relay.plan import TOKENS_PER_STREAM, Cell, Kind, Plan, plan_of
from bench.relay.processes import Memory, Processes, memory
from bench.relay.targets import Target, Upstream

_OPEN_FILES: Final = 8192
_ANSWER_SLACK_S: Final = 30.0


class Loader:
    """The load generator's process."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child

    def measure(self, target: Target, cell: Cell, window_s: float) -> Outcome:
        """Load `target` with `cell` and return what came of it."""
        order = Order(
            port=target.port,
            pids=target.pids,
            stream=cell.kind == "stream",
            body_bytes=cell.body_bytes,
            concurrency=cell.concurrency,
            tokens=TOKENS_PER_STREAM if cell.kind == "stream" else 1,
            engine_time_us=cell.engine_time_us,
            warmup_s=cell.warmup_s,
            window_s=window_s,
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(msgspec.json.encode(order) + b"\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("the load generator ended; see its log")
        return msgspec.json.decode(line, type=Outcome)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a relay that was asked for could not be measured."""
    chosen = _parser().parse_args(arguments)
    # A stop from outside unwinds too, so that no relay is left behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(_OPEN_FILES, hard)), hard))
    kinds: tuple[Kind, ...] = (chosen.only,) if chosen.only else ("plain", "stream")
    repetitions = chosen.repetitions or (1 if chosen.quick else 3)
    plan = plan_of(kinds, repetitions=repetitions, window_s=chosen.window, quick=chosen.quick)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as directory:
        run_dir = Path(directory)
        with Processes(run_dir) as processes:
            loader, found, excluded = _start_all(processes, run_dir, chosen.without)
            for name, why in excluded.items():
                console.print(f"[red]{name} is not measured: {why}[/red]")
            seconds = plan.bound_s(len(found))
            console.print(f"{len(found)} targets, {len(plan.cells)} loads, about {seconds:.0f} s")
            measurements = _measure(plan, found, loader, random.Random(chosen.seed), console)
            used = {t.name: memory(t.pids) for t in found if t.pids}
    rows = report.rows(measurements, direct=found[0].name, routers=targets.ROUTERS)
    _print(rows, used)
    _write(chosen, rows, used, excluded)
    return 1 if excluded else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four loads, under 90 seconds")
    parser.add_argument("--only", choices=("plain", "stream"), help="one kind of load")
    parser.add_argument("--repetitions", type=int, help="default 3, or 1 with --quick")
    parser.add_argument("--window", type=float, default=1.5, help="seconds of each measurement")
    parser.add_argument("--seed", type=int, default=1, help="of the order of measurements")
    parser.add_argument("--without", nargs="*", default=[], choices=targets.ROUTERS)
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    return parser


def _start_all(
    processes: Processes, run_dir: Path, without: Sequence[str]
) -> tuple[Loader, list[Target], dict[str, str]]:
    """Start engine, sink, load generator and relays; say which relays did not start."""
    engine_port, sink_port = targets.free_ports(2)
    upstream = Upstream(run_dir, engine_port, sink_port)
    module = [sys.executable, "-m"]
    engine = ["bench.relay.engine", "--uds", str(run_dir / "engine.sock")]
    processes.start("engine", [*module, *engine, "--port", str(engine_port)], {})
    processes.start("sink", [*module, "bench.relay.sink", "--port", str(sink_port)], {})
    _await_engine(engine_port)
    loader = Loader(processes.start("load", [*module, "bench.relay.load"], {}, piped=True))
    launches = [targets.sidecar(upstream, traced=traced) for traced in (False, True)]
    wanted = [name for name in targets.ROUTERS if name not in without]
    if wanted:
        bin_dir = routers.installed()
        launches += [targets.router(name, bin_dir, upstream) for name in wanted]
    found, excluded = [targets.direct(upstream)], {}
    for launch in launches:
        try:
            found.append(targets.start(launch, processes))
        except RuntimeError as error:
            excluded[launch.name] = f"{error}\n{_log_tail(processes, launch.name)}"
    return loader, found, excluded


def _await_engine(port: int) -> None:
    deadline = time.monotonic() + targets.READY_TIMEOUT_S
    while targets.try_chat(port) != "200":
        if time.monotonic() > deadline:
            raise RuntimeError("the benchmark's own engine does not answer")
        time.sleep(0.05)


def _log_tail(processes: Processes, name: str) -> str:
    return processes.log(targets.file_name(name)).read_text(errors="replace")[-2000:]


def _measure(
    plan: Plan, found: Sequence[Target], loader: Loader, rng: random.Random, console: Console
) -> list[report.Measurement]:
    measurements = []
    deadline = time.monotonic() + 2 * plan.bound_s(len(found)) + _ANSWER_SLACK_S
    with console.status("") as status:
        for cell, target in plan.schedule(found, rng):
            if time.monotonic() > deadline:
                console.print("[red]out of time; what was measured so far follows[/red]")
                break
            status.update(f"{cell.name}: {target.name}")
            outcome = loader.measure(target, cell, plan.window_s)
            measurements.append(report.Measurement(cell, target.name, outcome))
    return measurements


def _print(rows: Sequence[report.Row], used: dict[str, Memory]) -> None:
    wide = Console(width=None if sys.stdout.isatty() else 160)
    wide.print(_machine())
    shown = Table(*report.COLUMNS)
    for line in report.table(rows):
        shown.add_row(*line, end_section=False)
    wide.print(shown)
    sizes = Table("relay", "peak RSS MiB", "PSS MiB")
    for line in report.memory_table(used):
        sizes.add_row(*line)
    wide.print(sizes)


def _write(
    chosen: argparse.Namespace,
    rows: Sequence[report.Row],
    used: dict[str, Memory],
    excluded: dict[str, str],
) -> None:
    if chosen.markdown:
        tables = [
            report.markdown(report.COLUMNS, report.table(rows)),
            report.markdown(("relay", "peak RSS MiB", "PSS MiB"), report.memory_table(used)),
        ]
        chosen.markdown.write_text("\n\n".join([_machine(), *tables]) + "\n")
    if chosen.json:
        document: dict[str, Any] = {
            "machine": _machine(),
            "rows": report.as_json(rows),
            "memory": {name: [use.peak_rss, use.pss] for name, use in used.items()},
            "not_measured": excluded,
        }
        chosen.json.write_text(json.dumps(document, indent=1) + "\n")


def _machine() -> str:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    model = models[0] if models else platform.machine()
    return f"{model}, {os.cpu_count()} cores, Linux, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
