"""As the first process of a container, a command has to handle SIGTERM itself to get it.

And it ends with all that it started, whatever state vLLM is in.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

HANDLED = 128 + signal.SIGTERM
"""How a process ends that handled it; one that the kernel ended has a negative code."""


def ended_by_sigterm(ready: socket.socket, code: str, *words: str, **env: str) -> int:
    """Return how a program ended that got SIGTERM once it had connected to `ready`."""
    environment: Mapping[str, str] = {**os.environ, **env}
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            connection, _ = ready.accept()
            with connection:
                process.send_signal(signal.SIGTERM)
                ended = process.wait(timeout=20)
            assert not _still_there(process.pid), "it left a process behind"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return ended


def _still_there(group: int) -> bool:
    deadline = time.monotonic() + 5
    while any(map(partial(_runs_in, group), psutil.process_iter())):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.02)
    return False


def _runs_in(group: int, process: psutil.Process) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def write_module(root: Path, name: str, source: str) -> None:
    """Put a module where an import finds it before the real one."""
    module = root / f"{name}.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    for folder in module.relative_to(root).parents[:-1]:
        (root / folder / "__init__.py").touch()
    module.write_text(source)


@pytest.fixture
def ready() -> Iterator[socket.socket]:
    """Where a program connects to when the signal may come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        yield listener


@pytest.mark.parametrize(
    ("program", "imported"),
    [
        pytest.param("weir_engine.first_process", "vllm/entrypoints/cli/main", id="vLLM"),
        pytest.param("weir_sidecar.command", "uvloop", id="the sidecar"),
        pytest.param("weir_operator.command", "kubernetes", id="the operator"),
        pytest.param("weir_cli.console.start", "aiohttp", id="the console"),
    ],
)
def test_a_program_can_be_ended_while_it_imports(
    tmp_path: Path, ready: socket.socket, program: str, imported: str
) -> None:
    # It wakes now and then: a signal just before a wait that never ends would not be heeded in it.
    waits = (
        "import socket, time\n"
        f"told = socket.create_connection({ready.getsockname()})\n"
        "while True:\n"
        "    time.sleep(0.05)\n"
    )
    write_module(tmp_path, imported, waits)
    call = f"from {program} import main; main()"
    assert ended_by_sigterm(ready, call, PYTHONPATH=str(tmp_path)) == HANDLED


def test_a_drain_can_be_ended(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sidecar:
        sidecar.bind(str(tmp_path / "admin.sock"))
        sidecar.listen()
        sidecar.settimeout(20)
        call = "from weir_engine.__main__ import main; main()"
        assert ended_by_sigterm(sidecar, call, "drain", WEIR_RUN_DIR=str(tmp_path)) == HANDLED


ENGINE = """
import os, signal, socket, subprocess, sys, time

worker = subprocess.Popen(["sleep", "600"])
signal.signal(signal.SIGTERM, lambda *_: {heeds})
if {listens}:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.environ["WEIR_RUN_DIR"] + "/engine.sock")
    listener.listen()
ready = socket.create_connection({address})
while True:
    time.sleep(1)
"""
"""Stands where vLLM stands: in one state that real vLLM passes through, or gets stuck in."""


@pytest.mark.parametrize(
    ("listens", "heeds", "ending"),
    [
        pytest.param(
            *(True, "(worker.kill(), sys.exit(0))", (0, "")), id="is left to end as it does"
        ),
        pytest.param(True, "(worker.kill(), sys.exit(3))", (3, ""), id="says how it ended"),
        pytest.param(
            *(True, "(worker.kill(), os.abort())"),
            (134, "weir-engine: vLLM was killed by SIGABRT"),
            id="may die of its end",
        ),
        pytest.param(
            *(True, "None", (137, "weir-engine: vLLM was killed by SIGKILL")),
            id="is killed when it gets stuck",
        ),
        pytest.param(False, "None", (HANDLED, ""), id="is killed while it loads"),
    ],
)
def test_an_engine_told_to_end(
    tmp_path: Path, ready: socket.socket, capfd: pytest.CaptureFixture[str],
    listens: bool, heeds: str, ending: tuple[int, str],
) -> None:  # fmt: skip
    engine = ENGINE.format(listens=listens, heeds=heeds, address=ready.getsockname())
    write_module(tmp_path, "vllm/entrypoints/cli/main", engine)
    program = (
        "from weir_engine import first_process; first_process.ENDS_WITHIN_S = 1;"
        "first_process.main()"
    )
    env = {"PYTHONPATH": str(tmp_path), "WEIR_RUN_DIR": str(tmp_path)}
    code = ended_by_sigterm(ready, program, **env)
    assert (code, capfd.readouterr().err.strip()) == ending
