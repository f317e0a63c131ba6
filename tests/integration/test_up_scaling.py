"""`weir up` follows the work: asleep, woken, grown, shrunk, asleep; by decisions, not by speed.

The engine is the mock of vLLM, which starts at once. All else is real. The windows are short. The
class's target is shorter than a start, so that its work counts before it waits, and the load that a
replica may have is so low that requests which wait for its one slot ask for a second one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx
import pytest

from weir_cli.records import Instance, InstanceRecord, is_alive

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "scaling.md"
EXAMPLE: Final = ROOT / "examples" / "scaling.yaml"
BLOCK: Final = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
SOON_S: Final = 120.0
"""A bound on hanging."""
ENGINE: Final = {
    "__init__.py": "from pkgutil import extend_path\n__path__ = extend_path(__path__, __name__)\n",
    "fetch.py": "def fetch(environment):\n    pass\n",
    "serve.py": """\
from pathlib import Path
from weir_core.wire.steps import Facts
from weir_sim.mock_engine import main

def serve(environment):
    run = Path(environment["WEIR_RUN_DIR"])
    run.joinpath("engine.json").write_bytes(Facts("fcfs", 1, 2048, 100_000).encode())
    main(["--uds", str(run / "engine.sock"), "--ttft-ms", "100", "--token-gap-ms", "10"])
""",
}
SERVICE: Final = """\
apiVersion: serving.weir.dev/v1alpha1
kind: InferenceService
metadata: {{name: chat}}
spec:
  model: {{name: tiny, source: {{uri: "tiny://"}}}}
  pools: [{{name: cpu, accelerator: {{count: 0}}}}]
  scaling:
    minReplicas: 0
    maxReplicas: {most}
    idleTimeout: {idle}
    targetLoad: 0.1
    batchTargetLoad: 0.1
    behavior:
      scaleDown: {{stabilizationWindowSeconds: 1}}
---
apiVersion: serving.weir.dev/v1alpha1
kind: InferencePriorityClass
metadata: {{name: standard}}
spec: {{rank: 0, ttftTargetMs: 200, maxQueueWait: 60s, shed: never}}
"""


def mocked(folder: Path) -> dict[str, str]:
    """Return the environment of a `weir up` whose engines are mocks."""
    engine = folder / "shadow" / "weir_engine"
    engine.mkdir(parents=True)
    for name, text in ENGINE.items():
        (engine / name).write_text(text)
    return {**os.environ, "WEIR_CACHE": str(folder), "PYTHONPATH": str(engine.parent)}


class Up:
    """A running `weir up` of one service with the mock engine."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.instance = Instance(folder, self.port)
        self.output, self.file = folder / "output", folder / "chat.yaml"
        self.write(most=2, idle="10m")
        self.environment = mocked(folder)
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.weir, "up", str(self.file), "--port", str(self.port)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def weir(self) -> tuple[str, ...]:
        return (sys.executable, "-m", "weir_cli")

    def write(self, *, most: int, idle: str) -> None:
        self.file.write_text(SERVICE.format(most=most, idle=idle))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SOON_S
        while not condition():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, f"never {what}: {self.output.read_text()}"
            time.sleep(0.1)

    def said(self, words: str) -> None:
        self.until(lambda: words in self.output.read_text(), words)

    @property
    def record(self) -> InstanceRecord:
        record = self.instance.read()
        assert record is not None
        return record

    @property
    def phases(self) -> list[str]:
        return [replica.phase for replica in self.record.services[0].replicas]

    def status(self) -> str:
        shown = [*self.weir, "status"]
        return subprocess.run(
            shown, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    def models(self) -> list[str]:
        url = f"http://127.0.0.1:{self.port}/v1/models"
        listed = httpx.get(url, timeout=SOON_S, trust_env=False).raise_for_status()
        return [each["id"] for each in listed.json()["data"]]

    def chat(self) -> int:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return httpx.post(url, json=body, timeout=SOON_S, trust_env=False).status_code


@pytest.fixture
def up() -> Iterator[Up]:
    folder = Path(tempfile.mkdtemp(prefix="weir-"))
    running = Up(folder)
    try:
        yield running
    finally:
        running.process.send_signal(signal.SIGINT)
        running.process.wait(60)
        shutil.rmtree(folder)


def test_asleep_woken_grown_shrunk_and_asleep(up: Up) -> None:
    up.said("asleep: the first request starts a replica")
    up.until(lambda: "chat: Asleep: 0 replicas" in up.status(), "asleep in status")
    assert up.models() == ["tiny"]
    assert up.phases == []
    assert up.chat() == 200
    up.said("chat: from 0 to 1 replicas: 1 request waits at the gateway")

    def grown() -> bool:
        with ThreadPoolExecutor(4) as clients:  # for one slot: requests wait
            asked = [clients.submit(up.chat) for _ in range(8)]
        assert [each.result() for each in asked] == [200] * 8
        return up.phases == ["ready", "ready"]

    up.until(grown, "grown")
    up.said("chat: from 1 to 2 replicas: the work of class standard and above takes")
    record = up.record
    up.write(most=1, idle="10m")
    up.said("chat: from 2 to 1 replicas: ")
    up.said("chat: replicas follow the work by the new spec.scaling")
    up.until(lambda: up.phases == ["ready"], "shrunk")
    assert up.chat() == 200
    up.write(most=1, idle="1s")
    up.said("chat: from 1 to 0 replicas: no request came, waited or ran for 1 s")
    up.until(lambda: up.phases == [], "asleep")
    left = [each for replica in record.services[0].replicas for each in replica.processes]
    assert not [each.name for each in left if is_alive(each)]
    assert up.chat() == 200


def test_the_page_does_what_it_says() -> None:
    folder = Path(tempfile.mkdtemp(prefix="weir-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    example = folder / "scaling.yaml"
    example.write_text(EXAMPLE.read_text().replace("idleTimeout: 30s", "idleTimeout: 1s"))
    section = PAGE.read_text().partition("## On a laptop\n")[2].partition("\n## ")[0]
    script = "\necho ----\n".join(BLOCK.findall(section)).replace(":8000/", f":{port}/")
    script = script.replace("examples/scaling.yaml", f"{example} --port {port}")
    weir = f'weir() {{ {sys.executable} -m weir_cli "$@"; }}\n'
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", weir + script],
            env=mocked(folder),
            capture_output=True,
            text=True,
            timeout=SOON_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        begun, used, ended = done.stdout.split("----\n")
        assert "asleep: the first request starts a replica" in begun
        assert '"choices"' in used
        assert "stopped port" in ended
    finally:
        down = [sys.executable, "-m", "weir_cli", "down"]
        subprocess.run(down, env={**os.environ, "WEIR_CACHE": str(folder)}, check=True, timeout=60)
        shutil.rmtree(folder)
