"""Real vLLM on this machine, started as a pod would start it, for every integration test.

An engine takes a quarter of a minute of two cores to start. So the engines of `ENGINES` serve all
tests of a run, and start when the run begins: each loads beside the tests before its first one. A
test that needs another kind, or ends its engine, starts its own with `run_engine`. All share what
vLLM keeps between starts.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from bench.engine.adapters import write_adapter
from weir_core.api.engine import Parallelism
from weir_core.api.labels import ENGINE_SOCKET, ENV_ENGINE_CONFIG, ENV_MODEL_DIR, ENV_RUN_DIR
from weir_core.api.model import Adapter, Source
from weir_core.wire.engine import EngineConfig, local_path

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 480.0
"""A bound on hanging. With two cores and nothing beside it, an engine takes half a minute."""
STOP_LIMIT_S = 20.0
CACHE = Path(os.environ.get("WEIR_CACHE") or Path.home() / ".cache/weir")

TINY = EngineConfig(name="tiny", aliases=("tiny-alias",), source=Source(uri="tiny://"))
# In 16 bits the same engine answers otherwise from time to time, because what it adds up together
# depends on what else its step holds.
EXACT = TINY.model_copy(update={"args": ("--dtype", "float32")})
ENGINES = {
    "engine": TINY,
    "parallel": TINY.model_copy(update={"parallelism": Parallelism(tensor=2)}),
    "pipeline": EXACT.model_copy(update={"parallelism": Parallelism(pipeline=2)}),
    "ranks": EXACT.model_copy(update={"parallelism": Parallelism(data=2)}),
}
"""Fixture to what it serves; `ranks` also serves an adapter, `verse`, and has room for another."""

os.environ.setdefault("VLLM_CACHE_ROOT", str(CACHE / "vllm"))


def bench_engine(path: Path, *arguments: str) -> dict[str, Any]:
    """Run parts of the engine's benchmark in a process of its own; return what they found."""
    command = [sys.executable, "-m", "bench.engine", *arguments, "--json", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def metric_in(page: str, name: str) -> float:
    """Return the sum of a metric's series on a page for Prometheus."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.M))


@dataclass(frozen=True)
class Engine:
    """A running engine."""

    process: subprocess.Popen[bytes]
    run_dir: Path

    @property
    def socket(self) -> Path:
        return self.run_dir / ENGINE_SOCKET

    def client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.socket))
        return httpx.Client(transport=transport, base_url="http://engine", timeout=120)

    def until_healthy(self) -> Engine:
        """Wait until it serves, and return it."""
        log = self.run_dir / "engine.log"
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if _listens(self.socket):
                with self.client() as client:
                    if client.get("/health").status_code == 200:
                        return self
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.25)
                break
        pytest.fail(f"the engine did not start; its last words:\n{log.read_text()[-4000:]}")

    def kill(self) -> None:
        """Kill all of it, as the kernel does when a container's memory runs out."""
        os.killpg(self.process.pid, signal.SIGKILL)


class RunEngine(Protocol):
    """Run an engine for the length of a `with` block; it is healthy by then, unless told not to."""

    def __call__(
        self, config: EngineConfig, *, healthy: bool = True
    ) -> AbstractContextManager[Engine]: ...


@pytest.fixture(scope="session")
def prometheus() -> Path:
    """Where the programs prometheus and promtool are."""
    done = subprocess.run(
        [ROOT / "scripts/prometheus"], stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """Where weights are kept between runs of the tests."""
    return CACHE / "models"


@pytest.fixture(scope="session")
def run_engine(model_dir: Path) -> RunEngine:
    """Return what starts an engine."""

    @contextmanager
    def run(config: EngineConfig, *, healthy: bool = True) -> Iterator[Engine]:
        with tempfile.TemporaryDirectory(prefix="weir-engine-") as run_dir:
            environment = os.environ | {
                ENV_ENGINE_CONFIG: config.model_dump_json(by_alias=True),
                ENV_RUN_DIR: run_dir,
                ENV_MODEL_DIR: str(model_dir),
            }
            # As in its image, where the request path is not compiled.
            environment.pop("PYTHONPATH", None)
            command = [sys.executable, "-m", "weir_engine"]
            subprocess.run([*command, "fetch"], env=environment, check=True, timeout=60)
            with (Path(run_dir) / "engine.log").open("wb") as output:
                process = subprocess.Popen(
                    ["nice", *command, "serve"], env=environment, stdout=output, stderr=output,
                    start_new_session=True,
                )  # fmt: skip
            engine = Engine(process, Path(run_dir))
            try:
                if healthy:
                    engine.until_healthy()
                yield engine
            finally:
                _stop(process)

    return run


@pytest.fixture(scope="session", autouse=True)
def loading(request: pytest.FixtureRequest, run_engine: RunEngine) -> Iterator[dict[str, Engine]]:
    """Start those of `ENGINES` that this run's tests want, without waiting for them."""
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    with ExitStack() as stack:
        started: dict[str, Engine] = {}
        for name in ENGINES.keys() & wanted:
            config = ENGINES[name]
            if name == "ranks":
                verse: Adapter = request.getfixturevalue("verse")
                room = {"adapters": (verse,), "adapter_slots": 2, "adapter_rank": 8}
                config = config.model_copy(update=room)
            started[name] = stack.enter_context(run_engine(config, healthy=False))
        yield started
        with ThreadPoolExecutor(len(ENGINES)) as threads:
            list(threads.map(_stop, [one.process for one in started.values()]))


@pytest.fixture(scope="session")
def verse(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    """An adapter, where the operator would mount it."""
    made = write_adapter(tmp_path_factory.mktemp("adapters"), "verse")
    adapter = Adapter(name="verse", source=Source(uri=f"file://{made}"))
    mounted = Path(local_path(adapter.source, str(model_dir)))
    mounted.symlink_to(made)
    yield adapter
    mounted.unlink()


@pytest.fixture(scope="session")
def engine(loading: dict[str, Engine]) -> Engine:
    """The tiny model, under its name and an alias."""
    return loading["engine"].until_healthy()


@pytest.fixture(scope="session")
def engine_socket(engine: Engine) -> Path:
    """Where the session's engine listens."""
    return engine.socket


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the engine as its pod does: it exits with 0, and everything it started is gone."""
    ended_before = process.poll() is not None
    process.terminate()
    try:
        code = process.wait(timeout=STOP_LIMIT_S)
        deadline = time.monotonic() + STOP_LIMIT_S
        while time.monotonic() < deadline and _has_members(process.pid):
            time.sleep(0.1)
        left = _has_members(process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=5)
    assert ended_before or (code, left) == (0, False), (code, left)


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
