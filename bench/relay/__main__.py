"""The command line: start everything, measure, print the tables."""

from __future__ import annotations

import argparse
import importlib.util
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
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

import bench.relay
from bench.relay import report, targets
from bench.relay.load import Order, Outcome
from bench.relay.plan import CELLS, PUBLISHED, TOKENS_PER_STREAM, Cell, Plan
from bench.relay.processes import Memory, Processes, memory
from bench.relay.targets import Target, Upstream

_OPEN_FILES: Final = 8192
_ANSWER_SLACK_S: Final = 30.0
_RELAYS: Final = [name for name in targets.LAUNCHES if name != targets.WEIR_BESIDE]


class Loader:
    """The load generator's process.

    Args:
        credits: The engine's socket for streams that go as fast as they are read.
    """

    def __init__(self, child: subprocess.Popen[bytes], credits: Path) -> None:
        self._child = child
        self._credits = credits

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
            credits=None if cell.paced or cell.kind == "plain" else str(self._credits),
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
    """Run the benchmark; 1 if a relay that was asked for did not start, or lost requests."""
    chosen = _parser().parse_args(arguments)
    # A stop from outside unwinds too, so that no relay is left behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(_OPEN_FILES, hard)), hard))
    cells = tuple(CELLS[name] for name in chosen.loads)
    plan = Plan(cells, 1 if chosen.quick else chosen.repetitions, chosen.window)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as directory:
        run_dir = Path(directory)
        with Processes(run_dir) as processes:
            loader, found, excluded = _start_all(processes, run_dir, chosen)
            for name, why in excluded.items():
                console.print(f"[red]{name} is not measured: {why}[/red]")
            seconds = plan.bound_s(len(found))
            console.print(f"{len(found)} targets, {len(plan.cells)} loads, about {seconds:.0f} s")
            measurements = _measure(plan, found, loader, random.Random(chosen.seed), console)
            used = {t.name: memory(t.pids) for t in found if t.pids}
    rows = report.rows(measurements, direct=targets.DIRECT, routers=targets.ROUTERS)
    _print(rows)
    text = _summary(rows, used)
    print(text)
    if chosen.markdown:
        chosen.markdown.write_text(text + "\n")
    if chosen.json:
        about = {"machine": _machine(), "weir": _build(), "window_s": plan.window_s}
        chosen.json.write_text(report.raw(about, measurements, used))
    return 1 if excluded or any(row.failures for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.relay",
        description=bench.relay.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--repetitions", type=int, default=3, help="default 3")
    parser.add_argument("--window", type=float, default=1.5, help="seconds of each measurement")
    parser.add_argument("--seed", type=int, default=1, help="of the order of measurements")
    parser.add_argument(
        "--loads",
        nargs="+",
        default=[cell.name for cell in PUBLISHED],
        choices=CELLS,
        help=f"of {' '.join(CELLS)}; default: the first {len(PUBLISHED)}",
        metavar="LOAD",
    )
    parser.add_argument(
        "--relays",
        nargs="+",
        default=_RELAYS,
        choices=_RELAYS,
        help=f"default: {' '.join(_RELAYS)}",
        metavar="RELAY",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="DIR",
        help="measure the sidecar of this folder, too; `scripts/compiled` of another checkout "
        "prints such a folder",
    )
    parser.add_argument("--markdown", type=Path, help="write the summary to this file")
    parser.add_argument("--json", type=Path, help="write every measurement to this file, by line")
    return parser


def _start_all(
    processes: Processes, run_dir: Path, chosen: argparse.Namespace
) -> tuple[Loader, list[Target], dict[str, str]]:
    """Start engine, sink, load generator and relays; say which relays did not start."""
    engine_port, sink_port = targets.free_ports(2)
    upstream = Upstream(run_dir, engine_port, sink_port, chosen.beside)
    credits = run_dir / "credits.sock"
    module = [sys.executable, "-m"]
    engine = ["bench.relay.engine", "--port", str(engine_port), "--credits", str(credits)]
    engine += ["--run-dirs", *map(str, upstream.prepare())]
    processes.start("engine", [*module, *engine], {})
    processes.start("sink", [*module, "bench.relay.sink", "--port", str(sink_port)], {})
    _await_engine(engine_port)
    load = processes.start("load", [*module, "bench.relay.load"], {}, piped=True)
    names = [*chosen.relays, targets.WEIR_BESIDE] if chosen.beside else chosen.relays
    found, excluded = [targets.direct(upstream)], {}
    for name in names:
        try:
            found.append(targets.start(targets.LAUNCHES[name](upstream), processes))
        except RuntimeError as error:
            excluded[name] = f"{error}\n{_log_tail(processes, name)}"
    return Loader(load, credits), found, excluded


def _await_engine(port: int) -> None:
    deadline = time.monotonic() + targets.READY_TIMEOUT_S
    while targets.try_chat(port) != "200":
        if time.monotonic() > deadline:
            raise RuntimeError("the benchmark's own engine does not answer")
        time.sleep(0.05)


def _log_tail(processes: Processes, name: str) -> str:
    log = processes.log(targets.file_name(name))
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""


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


def _print(rows: Sequence[report.Row]) -> None:
    shown = Table(*report.COLUMNS)
    for line in report.table(rows):
        shown.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 240).print(shown)


def _summary(rows: Sequence[report.Row], used: dict[str, Memory]) -> str:
    """Return what docs/performance.md shows."""
    parts = [f"{_machine()}; Weir {_build()}.", report.markdown(*report.summary(rows, used))]
    ratios = report.compared(rows, targets.WEIR, targets.WEIR_BESIDE)
    if ratios:
        shown = ", ".join(f"{value:.2f}x ({load})" for load, value in ratios.items())
        parts.append(f"CPU over that of the build beside: {shown}.")
    return "\n\n".join(parts)


def _build() -> str:
    """Say whether the sidecar is measured as its image has it."""
    found = importlib.util.find_spec("weir_core.sched.scheduler")
    compiled = found is not None and (found.origin or "").endswith(".so")
    return "compiled" if compiled else "as written, not compiled"


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
