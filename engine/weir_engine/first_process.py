"""What runs as an engine's first process, and sees to it that the engine ends when it is told to.

The kernel protects the first process of a container from every signal that it does not handle,
whatever its namespace's owner sends. Python does not handle SIGTERM, and of vLLM neither its
imports do (10 s and more) nor the time until its core has loaded: it raises KeyboardInterrupt
there, which one of its context managers swallows (`vllm.utils.network_utils.zmq_socket_ctx`). A
pod that was deleted meanwhile held its GPU until its grace period was over.

    python -m weir_engine.first_process ARGUMENT...    vLLM's command line
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType
from typing import Final, NoReturn

from weir_core.api.labels import ENGINE_SOCKET, ENV_RUN_DIR, RUN_DIR

ENDS_WITHIN_S: Final = 15
"""Longest end of a vLLM that listens, in seconds: `launch.DRAINS_FOR_S`, the streams' time in
`plugin`, and what its processes need to let go of a GPU."""


def heed_sigterm() -> None:
    """End at once at SIGTERM, until somebody has a better handler."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))


def listens(socket_path: str) -> bool:
    """Tell whether an engine listens at a Unix socket, however busy it is."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(socket_path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True


def main() -> None:
    """Be vLLM's command line, in a process that this one waits for."""
    child = os.fork()
    if child:
        _watch(child)
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


def _watch(vllm: int) -> NoReturn:
    """Pass signals on to vLLM; exit as it exits, or as a shell does whose command was killed."""
    socket_path = f"{os.environ.get(ENV_RUN_DIR) or RUN_DIR}/{ENGINE_SOCKET}"

    def end(number: int, _: FrameType | None) -> None:
        if not listens(socket_path):
            _kill_what_runs()
            os._exit(128 + number)
        os.kill(vllm, number)
        signal.alarm(ENDS_WITHIN_S)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGALRM, lambda *_: _kill_what_runs())
    _, status = os.waitpid(vllm, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)
    sys.stderr.write(f"weir-engine: vLLM was killed by {signal.Signals(-code).name}\n")
    os._exit(128 - code)


def _kill_what_runs() -> None:
    import psutil

    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            one.kill()


if __name__ == "__main__":
    main()
