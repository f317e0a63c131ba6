"""As the first process of a container, a command has to handle SIGTERM itself to get it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HANDLED = 128 + signal.SIGTERM
"""How a process ends that handled it; one that the kernel ended has a negative code."""


def ended_by_sigterm(ready: socket.socket, module: str, *words: str, **env: str) -> int:
    """Return how a module ended that got SIGTERM once it had connected to `ready`."""
    environment: Mapping[str, str] = {**os.environ, **env}
    with subprocess.Popen([sys.executable, "-m", module, *words], env=environment) as process:
        connection, _ = ready.accept()
        with connection:
            process.send_signal(signal.SIGTERM)
            return process.wait(timeout=20)


def test_vllm_can_be_ended_while_it_is_imported(tmp_path: Path) -> None:
    package = tmp_path / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for folder in (package, *package.parents[:2]):
        (folder / "__init__.py").touch()
    with socket.create_server(("127.0.0.1", 0)) as ready:
        ready.settimeout(20)
        port = ready.getsockname()[1]
        importing = f"import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)"
        (package / "main.py").write_text(importing)
        code = ended_by_sigterm(ready, "weir_engine.first_process", PYTHONPATH=str(tmp_path))
    assert code == HANDLED


def test_a_drain_can_be_ended(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sidecar:
        sidecar.bind(str(tmp_path / "admin.sock"))
        sidecar.listen()
        sidecar.settimeout(20)
        code = ended_by_sigterm(sidecar, "weir_engine", "drain", WEIR_RUN_DIR=str(tmp_path))
    assert code == HANDLED
