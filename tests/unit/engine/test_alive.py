"""`weir-engine alive`, the engine's liveness probe: only the sidecar's word ends an engine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIDECAR = """\
import os, socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("listening", flush=True)
    while True:
        client, _ = listener.accept()
        client.recv(65536)
        client.sendall(sys.argv[2].encode())
        client.close()
"""


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="weir-") as directory:
        yield Path(directory)


@contextmanager
def sidecar(run_dir: Path, answer: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that answers so at the admin socket."""
    command = [sys.executable, "-c", SIDECAR, str(run_dir / "admin.sock"), answer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "listening\n"
        try:
            yield running
        finally:
            running.kill()


def alive(run_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weir_engine", "alive"],
        env=os.environ | {"WEIR_RUN_DIR": str(run_dir)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def says(status: str, body: str) -> str:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head + body


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        pytest.param(says("200 OK", "engine ready\n"), 0, id="it makes progress"),
        pytest.param(says("503 Busy", "engine stalled\n"), 1, id="it is stalled"),
        pytest.param(
            says("404 Not Found", "no such page\n"), 0, id="the sidecar knows no such page"
        ),
        pytest.param(says("500 Oops", "the log says why\n"), 0, id="the sidecar fails"),
        pytest.param("not HTTP\r\n\r\n", 0, id="it is no answer"),
        pytest.param("", 0, id="the sidecar ends without an answer"),
    ],
)
def test_only_a_verdict_of_the_sidecar_fails(run_dir: Path, answer: str, code: int) -> None:
    with sidecar(run_dir, answer):
        done = alive(run_dir)
    assert done.returncode == code, done.stderr


def test_the_verdict_is_told_in_words(run_dir: Path) -> None:
    with sidecar(run_dir, says("503 Busy", "engine stalled\n")):
        assert "the sidecar says: engine stalled" in alive(run_dir).stderr


def test_a_sidecar_that_is_not_there_costs_no_engine(run_dir: Path) -> None:
    assert alive(run_dir).returncode == 0


def test_a_sidecar_that_hangs_costs_no_engine(run_dir: Path) -> None:
    with sidecar(run_dir, says("503 Busy", "engine stalled\n")) as hung:
        os.kill(hung.pid, signal.SIGSTOP)
        done = alive(run_dir)
    assert done.returncode == 0, done.stderr


def test_a_socket_that_nothing_serves_any_more_costs_no_engine(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(run_dir / "admin.sock"))
    assert alive(run_dir).returncode == 0
