"""The commands of docs/priorities.md, run as they stand there against `weir up`."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from weir_cli.records import Instance

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "priorities.md"
EXAMPLE: Final = ROOT / "examples" / "priority.yaml"
READY_S: Final = 480
BLOCK: Final = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAUSE: Final = "sleep 1\n"
"""In which a reader's batch begins. On a fast machine it would be done by then."""
UNTIL_IT_RUNS: Final = (
    "until curl -s http://{}:8001/metrics | grep '^weir_requests_running [1-9]' > /dev/null; "
    "do sleep 0.1; done\n"
)
"""By the sidecar's own figure: an engine that is busy may miss from a page until it is not."""


@pytest.fixture
def served() -> Iterator[Instance]:
    """`weir up examples/priority.yaml` on a free port."""
    scratch = Path(tempfile.mkdtemp(prefix="weir-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = scratch / "output"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "weir_cli", "up", str(EXAMPLE), "--port", str(port)],
            env={**os.environ, "WEIR_CACHE": str(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    instance = Instance(scratch, port)
    try:
        _wait_until_ready(instance, process, output)
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
        yield instance
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        shutil.rmtree(scratch)


def _wait_until_ready(instance: Instance, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        record = instance.read()
        if record is not None and record.ready:
            return
        assert process.poll() is None, output.read_text()
        time.sleep(0.02)
    raise AssertionError(output.read_text())


def test_the_page_does_what_it_says(served: Instance, tmp_path: Path) -> None:
    record = served.read()
    assert record is not None
    first, *blocks = BLOCK.findall(PAGE.read_text())
    assert first == f"make up FILE={EXAMPLE.relative_to(ROOT)}\n"  # `served` has done it
    script = "\necho ----\n".join(blocks).replace(":8000/", f":{served.port}/")
    before, pause, after = script.partition(PAUSE)
    assert pause
    until_it_runs = UNTIL_IT_RUNS.format(record.services[0].replicas[0].address)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", before + until_it_runs + after],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    define, quiet, flood, batch, asked, explained = done.stdout.split("----\n")
    assert define == ""
    assert _statuses(quiet) == ["200"] * 5
    chats, _, still = flood.strip().rpartition("\n")
    assert _statuses(chats) == ["200"] * 5
    assert int(still.split()[0]) > 0, "the batch was done before the chats: no overload"
    assert batch.split() == ["30", "200"]
    assert _statuses(asked) == ["200", "200", "403", "401"]
    assert '"class":"interactive"' in explained
    assert '"tenant":"chat"' in explained


def _statuses(lines: str) -> list[str]:
    return [line.split(",")[0] for line in lines.strip().splitlines()]
