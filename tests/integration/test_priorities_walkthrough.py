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
READY_S: Final = 240
BLOCK: Final = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def served() -> Iterator[tuple[int, Path]]:
    """`weir up examples/priority.yaml` on a free port, and a directory to work in."""
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
    try:
        _wait_until_ready(Instance(scratch, port), process, output)
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
        yield port, scratch
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


def test_the_page_does_what_it_says(served: tuple[int, Path]) -> None:
    port, directory = served
    blocks = BLOCK.findall(PAGE.read_text())
    script = "\necho ----\n".join(blocks).replace(":8000/", f":{port}/")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=directory,
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
    assert batch.split() == ["60", "200"]
    assert _statuses(asked) == ["200", "200", "403", "401"]
    assert '"class":"interactive"' in explained
    assert '"tenant":"chat"' in explained


def _statuses(lines: str) -> list[str]:
    return [line.split(",")[0] for line in lines.strip().splitlines()]
