"""Real vLLM on this machine, started as a pod would start it, for every integration test.

One engine serves the whole session, because it takes a quarter of a minute to start; a test that
needs another kind starts its own with `run_engine`.
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
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from weir_core.api.labels import ENGINE_SOCKET, ENV_ENGINE_CONFIG, ENV_MODEL_DIR, ENV_RUN_DIR
from weir_core.api.model import Source
from weir_core.wire.engine import EngineConfig

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 240.0
"""A busy two-core machine takes a minute; two processes in parallel take two."""
STOP_LIMIT_S = 20.0

TINY = EngineConfig(name="tiny", aliases=("tiny-alias",), source=Source(uri="tiny://"))


@pytest.fixture(scope="session", autouse=True)
def compiling(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str] | None]:
    """Compile the request path beside the first tests, if a later one wants it."""
    if not any("compiled" in getattr(one, "fixturenames", ()) for one in request.session.items):
        yield None
        return
    with subprocess.Popen(
        ["nice", str(ROOT / "scripts/compiled")],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def bench_engine(path: Path, *arguments: str) -> dict[str, Any]:
    """Run parts of the engine's benchmark in a process of its own; return what they found."""
    command = [sys.executable, "-m", "bench.engine", *arguments, "--json", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
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

    def kill(self) -> None:
        """Kill all of it, as the kernel does when a container's memory runs out."""
        os.killpg(self.process.pid, signal.SIGKILL)


class RunEngine(Protocol):
    """Run an engine for the length of a `with` block; it is healthy by then, unless told not to."""

    def __call__(
        self, config: EngineConfig, *, healthy: bool = True
    ) -> AbstractContextManager[Engine]: ...


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """Where weights are kept between runs of the tests."""
    cache = Path(os.environ.get("WEIR_CACHE") or Path.home() / ".cache/weir")
    return cache / "models"


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
            command = [sys.executable, "-m", "weir_engine"]
            subprocess.run([*command, "fetch"], env=environment, check=True, timeout=60)
            log = Path(run_dir) / "engine.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*command, "serve"], env=environment, stdout=output, stderr=output,
                    start_new_session=True,
                )  # fmt: skip
            engine = Engine(process, Path(run_dir))
            try:
                if healthy:
                    _wait_until_healthy(engine, log)
                yield engine
            finally:
                _stop(process)

    return run


@pytest.fixture(scope="session")
def engine(run_engine: RunEngine) -> Iterator[Engine]:
    """The session's engine: the tiny model, under its name and an alias."""
    with run_engine(TINY) as running:
        yield running


@pytest.fixture(scope="session")
def engine_socket(engine: Engine) -> Path:
    """Where the session's engine listens."""
    return engine.socket


def _wait_until_healthy(engine: Engine, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if _listens(engine.socket):
            with engine.client() as client:
                if client.get("/health").status_code == 200:
                    return
        with suppress(subprocess.TimeoutExpired):
            engine.process.wait(timeout=0.25)
            break
    pytest.fail(f"the engine did not start; its last words:\n{log.read_text()[-4000:]}")


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
