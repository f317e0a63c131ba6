"""As the first process of a container, a command has to handle SIGTERM itself to get it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

HANDLED = 128 + signal.SIGTERM
"""How a process ends that handled it; one that the kernel ended has a negative code."""


def ended_by_sigterm(ready: socket.socket, code: str, *words: str, **env: str) -> int:
    """Return how a program ended that got SIGTERM once it had connected to `ready`."""
    environment: Mapping[str, str] = {**os.environ, **env}
    with subprocess.Popen([sys.executable, "-c", code, *words], env=environment) as process:
        connection, _ = ready.accept()
        with connection:
            process.send_signal(signal.SIGTERM)
            return process.wait(timeout=20)


@pytest.mark.parametrize(
    ("program", "imported"),
    [
        pytest.param("weir_engine.first_process", "vllm/entrypoints/cli/main", id="vLLM"),
        pytest.param("weir_sidecar.command", "uvloop", id="the sidecar"),
        pytest.param("weir_operator.command", "kopf", id="the operator"),
    ],
)
def test_a_program_can_be_ended_while_it_imports(
    tmp_path: Path, program: str, imported: str
) -> None:
    module = tmp_path / f"{imported}.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    for folder in module.relative_to(tmp_path).parents[:-1]:
        (tmp_path / folder / "__init__.py").touch()
    with socket.create_server(("127.0.0.1", 0)) as ready:
        ready.settimeout(20)
        port = ready.getsockname()[1]
        module.write_text(f"import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)")
        call = f"from {program} import main; main()"
        assert ended_by_sigterm(ready, call, PYTHONPATH=str(tmp_path)) == HANDLED


def test_a_drain_can_be_ended(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sidecar:
        sidecar.bind(str(tmp_path / "admin.sock"))
        sidecar.listen()
        sidecar.settimeout(20)
        call = "from weir_engine.__main__ import main; main()"
        assert ended_by_sigterm(sidecar, call, "drain", WEIR_RUN_DIR=str(tmp_path)) == HANDLED
