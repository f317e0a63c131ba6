"""The command line: start an engine, measure it, load it; then the same without Weir."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import aiohttp
from rich.console import Console

from bench.overload.load import Arrival, Client, Hears, Result, poisson
from bench.overload.report import growth, markdown, report_of, table
from bench.relay.processes import Processes
from weir_core.wire.engine import EngineConfig
from weir_engine import launch, machine
from weir_engine.launch import Paths
from weir_engine.vllm_metadata import with_path, write_vllm_metadata

_TINY: Final = EngineConfig.model_validate({"name": "tiny", "source": {"uri": "tiny://"}})
_HOST: Final = "127.0.9.1"
_START_S: Final = 180.0
_BUSY_AT_ONCE: Final = 48
Policy = Literal["fcfs", "priority"]
"""vLLM's own schedulers."""
_UNBOUNDED: Final = aiohttp.ClientTimeout(total=None, sock_connect=30)


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    seconds: float
    factor: float
    seeds: tuple[int, ...]
    model_dir: Path
    json: Path | None
    markdown: Path | None
    steps: Path | None
    trace: Path | None
    beside: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class System:
    """Something that answers.

    Attributes:
        hears: How it is told of classes.
    """

    url: str
    socket: Path | None
    hears: Hears


def main() -> int:
    """Run the benchmark; the exit status tells whether Weir kept its promise."""
    options = _options()
    console = Console(width=130)
    with tempfile.TemporaryDirectory(prefix="weir-") as scratch:
        failures = asyncio.run(_Run(options, Path(scratch), console).all_seeds())
    for failure in failures:
        console.print(f"[red]missed[/]: {failure}")
    return 1 if failures else 0


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="how long each load lasts")
    parser.add_argument("--factor", type=float, default=2.0, help="load over capacity")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs, each its own seed")
    parser.add_argument("--first-seed", type=int, default=1, help="seed of the first run")
    parser.add_argument(
        "--beside",
        nargs="*",
        choices=get_args(Policy),
        default=["fcfs"],
        help="schedulers of vLLM's own to measure after Weir (default: fcfs)",
    )
    parser.add_argument("--json", type=Path, help="write every result here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument(
        "--steps", type=Path, help="keep the engine's steps here, for `weir simulate calibrate`"
    )
    parser.add_argument(
        "--trace", type=Path, help="keep the heavy load here, for `weir simulate trace`"
    )
    cache = Path.home() / ".cache" / "weir" / "models"
    parser.add_argument("--model-dir", type=Path, default=cache, help="where weights are kept")
    chosen = parser.parse_args()
    return Options(
        chosen.seconds,
        chosen.factor,
        tuple(range(chosen.first_seed, chosen.first_seed + chosen.seeds)),
        chosen.model_dir,
        chosen.json,
        chosen.markdown,
        chosen.steps,
        chosen.trace,
        tuple(chosen.beside),
    )


class _Run:
    def __init__(self, options: Options, scratch: Path, console: Console) -> None:
        self._options = options
        self._scratch = scratch
        self._console = console

    async def all_seeds(self) -> list[str]:
        """Measure with each seed; return what was missed."""
        failures: list[str] = []
        records, tables = [], []
        for seed in self._options.seeds:
            stages = await self._one(seed)
            self._console.print(table(stages))
            tables.append(f"Seed {seed}:\n\n{markdown(stages)}")
            failures += [f"seed {seed}: {why}" for why in missed(stages)]
            records += [
                {"seed": seed, "stage": name, "results": [dataclasses.asdict(r) for r in results]}
                for name, results, _ in stages
            ]
        if self._options.json:
            self._options.json.write_text(json.dumps(records))
        if self._options.markdown:
            self._options.markdown.write_text("\n".join(tables))
        return failures

    async def _one(self, seed: int) -> list[tuple[str, list[Result], float]]:
        seconds = self._options.seconds
        with self._weir(seed) as system:
            capacity = await self._capacity(system, seed)
            light = poisson(0.2 * capacity, seconds, random.Random(seed))
            heavy = poisson(self._options.factor * capacity, seconds, random.Random(seed + 1000))
            if self._options.trace is not None:
                self._options.trace.write_text("".join(map(_trace_line, heavy)))
            calm = await self._load(system, "weir at 0.2x", light)
            flood = await self._load(system, f"weir at {self._options.factor:g}x", heavy)
            self._console.print(table([("0.2x", calm, seconds), ("heavy", flood, seconds)]))
        stages = [
            ("weir, 0.2x", calm, seconds),
            (f"weir, {self._options.factor:g}x", flood, seconds),
        ]
        for policy in self._options.beside:
            name = f"vLLM {policy}, {self._options.factor:g}x"
            with self._plain(seed, policy) as system:
                stages.append((name, await self._load(system, name, heavy), seconds))
        return stages

    async def _capacity(self, system: System, seed: int) -> float:
        async with self._client(system) as client:
            await client.keep_busy(8, 5.0, random.Random(seed))  # warm, and learning
            rate = await client.keep_busy(
                _BUSY_AT_ONCE, max(20.0, self._options.seconds / 6), random.Random(seed)
            )
        self._console.print(f"seed {seed}: capacity {rate:.1f} requests/s of this mix")
        return rate

    async def _load(self, system: System, title: str, arrivals: list[Arrival]) -> list[Result]:
        progress = _counter(self._console, title, len(arrivals))
        async with self._client(system) as client:
            return await client.play(arrivals, progress)

    def _client(self, system: System) -> _Connected:
        return _Connected(system)

    @contextmanager
    def _weir(self, seed: int) -> Iterator[System]:
        run_dir = self._scratch / f"w{seed}"
        with Processes(self._directory(run_dir)) as processes:
            env = self._environment(processes, run_dir)
            processes.start("engine", [sys.executable, "-m", "weir_engine", "serve"], env)
            env |= {"WEIR_HOST": _HOST, "WEIR_API_PORT": "18000", "WEIR_ADMIN_PORT": "18001"}
            if self._options.steps is not None:
                env["WEIR_STEP_FILE"] = str(self._options.steps)
            env |= {"WEIR_MAX_REQUESTS": "20000", "WEIR_POLICIES_DIR": str(run_dir / "none")}
            processes.start("sidecar", [sys.executable, "-m", "weir_sidecar"], env)
            _wait(lambda: _answers(f"http://{_HOST}:18001/readyz"), processes, "engine")
            yield System(f"http://{_HOST}:18000", None, "header")

    @contextmanager
    def _plain(self, seed: int, policy: Policy) -> Iterator[System]:
        run_dir = self._scratch / f"{policy[0]}{seed}"
        with Processes(self._directory(run_dir)) as processes:
            self._plain_engine(processes, run_dir, policy)
            path = run_dir / "engine.sock"
            _wait(lambda: _is_healthy(path), processes, "engine")
            yield System("http://engine", path, "nothing" if policy == "fcfs" else "priority")

    def _environment(self, processes: Processes, run_dir: Path) -> dict[str, str]:
        """Return the environment of engine and sidecar, with the weights in place."""
        env = {
            "WEIR_RUN_DIR": str(run_dir),
            "WEIR_MODEL_DIR": str(self._options.model_dir),
            "WEIR_ENGINE_CONFIG": _TINY.model_dump_json(by_alias=True),
        }
        fetch = [sys.executable, "-m", "weir_engine", "fetch"]
        if processes.start("fetch", fetch, env).wait(_START_S):
            raise RuntimeError(processes.log("fetch").read_text())
        return env

    def _plain_engine(self, processes: Processes, run_dir: Path, policy: Policy) -> None:
        """Start vLLM as Weir does, but with a scheduler of its own."""
        here = machine.detect()
        paths = Paths(str(run_dir), str(self._options.model_dir))
        ours = launch.serve_arguments(_TINY, here, paths)
        arguments = list(_without(ours, {"--scheduler-cls", "--scheduling-policy"}))
        arguments += ["--scheduling-policy", policy]
        env = launch.environment(_TINY, here, self._environment(processes, run_dir))
        env = with_path(env, write_vllm_metadata(run_dir))
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", *arguments]
        processes.start("engine", command, env)

    @staticmethod
    def _directory(path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        return path


class _Connected:
    """A client for as long as the context is open."""

    def __init__(self, system: System) -> None:
        self._system = system
        connector: aiohttp.BaseConnector = aiohttp.TCPConnector(limit=0)
        if system.socket is not None:
            connector = aiohttp.UnixConnector(str(system.socket), limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=_UNBOUNDED)

    async def __aenter__(self) -> Client:
        return Client(self._session, self._system.url, "tiny", self._system.hears)

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()


def missed(stages: list[tuple[str, list[Result], float]]) -> list[str]:
    """Return which of the promises do not hold, in words."""
    (_, calm, seconds), (_, flood, _), *others = stages
    unloaded = report_of(calm, "interactive", seconds).ttft_p99_s
    loaded = report_of(flood, "interactive", seconds).ttft_p99_s
    batch = report_of(flood, "batch", seconds)
    failures: list[str] = []
    if unloaded is None or loaded is None or loaded > 2.5 * unloaded:
        failures.append(f"interactive p99 TTFT {loaded} s, unloaded {unloaded} s: over 2.5x")
    if batch.whole != batch.sent:
        failures.append(f"batch: {batch.whole} of {batch.sent} answered whole")
    failed = sum(not r.whole and r.status not in (429, 503) for r in flood)
    if failed:
        failures.append(f"{failed} requests ended in neither an answer nor a refusal")
    if any(r.status in (429, 503) and not r.retry_after for r in flood):
        failures.append("a refusal without Retry-After")
    for name, stock, _ in others:
        grown = growth([r for r in stock if r.class_name == "interactive"], seconds)
        if name.startswith("vLLM fcfs") and (grown is None or grown < 2.0):
            failures.append(f"plain vLLM's interactive TTFT grew only {grown}x: no overload")
    return failures


def _trace_line(arrival: Arrival) -> str:
    """Return one request as `weir simulate trace` reads it; each word is a token."""
    line = {
        "timestamp": arrival.at_s * 1000,
        "input_length": arrival.words,
        "output_length": arrival.output_tokens,
        "class": arrival.shape.name,
    }
    return json.dumps(line) + "\n"


def _without(arguments: list[str], flags: set[str]) -> Iterator[str]:
    """Yield arguments without these flags and their values."""
    rest = iter(arguments)
    for argument in rest:
        if argument in flags:
            next(rest)
        else:
            yield argument


def _counter(console: Console, title: str, total: int) -> Callable[[int], None]:
    console.print(f"{title}: {total} requests")

    def progress(sent: int) -> None:
        if sent % 500 == 0:
            console.print(f"{title}: {sent} of {total} sent")

    return progress


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _is_healthy(path: Path) -> bool:
    """Tell whether vLLM answers at its socket, which is there long before."""
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(2)
        try:
            door.connect(str(path))
            door.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return door.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


def _wait(condition: Callable[[], bool], processes: Processes, name: str) -> None:
    """Wait until an engine is loaded.

    Raises:
        RuntimeError: It is not, after the longest time; with the end of its log.
    """
    deadline = time.monotonic() + _START_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(processes.log(name).read_text()[-2000:])
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
