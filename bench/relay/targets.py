"""What is measured: nothing in between, the sidecar, the sidecar with tracing, two routers.

Each is started as its makers ship it, with the few settings that comparing needs: loopback
addresses, free ports, and for the routers the cheapest policy and no log line per request.
The sidecar reaches the engine over its Unix socket, the routers over TCP: that is how each runs.
"""

from __future__ import annotations

import http.client
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.relay.processes import Processes, tree
from bench.relay.wire import MODEL, request_body
from weir_core.api import labels
from weir_core.wire.steps import Facts

READY_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.1
_DIRECT: Final = "direct"
WEIR: Final = "weir-sidecar"
WEIR_TRACED: Final = "weir-sidecar, tracing on"
ROUTERS: Final = ("sglang-router", "vllm-router")


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to send requests to."""

    name: str
    port: int
    root_pid: int | None = None

    @property
    def pids(self) -> list[int]:
        """The processes whose CPU and memory count as this target's."""
        return tree(self.root_pid) if self.root_pid is not None else []


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a relay."""

    name: str
    port: int
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where the engine and the span sink listen."""

    run_dir: Path
    engine_port: int
    sink_port: int


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nobody listens on right now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def direct(upstream: Upstream) -> Target:
    """Return the engine itself."""
    return Target(_DIRECT, upstream.engine_port)


def sidecar(upstream: Upstream, *, traced: bool) -> Launch:
    """Return Weir's sidecar as a pod runs it."""
    api, admin = free_ports(2)
    env = {
        labels.ENV_HOST: "127.0.0.1",
        labels.ENV_MODEL_NAME: MODEL,
        labels.ENV_RUN_DIR: str(_own_run_dir(upstream.run_dir, "traced" if traced else "plain")),
        "WEIR_API_PORT": str(api),
        "WEIR_ADMIN_PORT": str(admin),
    }
    if traced:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{upstream.sink_port}"
    else:
        env["OTEL_SDK_DISABLED"] = "true"  # whatever the caller's environment says
    command = [sys.executable, "-m", "weir_sidecar", "serve"]
    return Launch(WEIR_TRACED if traced else WEIR, api, command, env)


def _own_run_dir(shared: Path, name: str) -> Path:
    """Each sidecar has its own admin socket, and both find the same engine.

    The engine says of itself that it has room for everything: what is measured is the way of a
    request through the scheduler, not the wait in it.
    """
    own = shared / name
    own.mkdir()
    (own / labels.FACTS_FILE).write_bytes(Facts("weir", 4096, 8192, 1 << 30).encode())
    (own / labels.ENGINE_SOCKET).symlink_to(shared / labels.ENGINE_SOCKET)
    return own


def router(name: str, bin_dir: Path, upstream: Upstream) -> Launch:
    """Return one of `ROUTERS` with one worker."""
    port, metrics_port = free_ports(2)
    launch = ["launch"] if name == "sglang-router" else []
    policy = "round_robin" if name == "sglang-router" else "random"
    level = "warn" if name == "sglang-router" else "warning"
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--worker-urls": f"http://127.0.0.1:{upstream.engine_port}",
        "--policy": policy,
        "--log-level": level,
        "--prometheus-host": "127.0.0.1",
        "--prometheus-port": str(metrics_port),
        "--worker-startup-check-interval": "1",
    }
    flags = [part for pair in options.items() for part in pair]
    return Launch(name, port, [str(bin_dir / name), *launch, *flags])


def start(launch: Launch, processes: Processes) -> Target:
    """Start a relay and wait until a request gets through it.

    Raises:
        RuntimeError: It ended, or answered nothing useful for `READY_TIMEOUT_S`.
    """
    child = processes.start(file_name(launch.name), launch.command, launch.env)
    deadline = time.monotonic() + READY_TIMEOUT_S
    answer = "no answer"
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"{launch.name} ended with status {child.returncode}")
        answer = try_chat(launch.port)
        if answer == "200":
            return Target(launch.name, launch.port, child.pid)
        time.sleep(_POLL_S)
    raise RuntimeError(f"{launch.name} is not ready after {READY_TIMEOUT_S:.0f} s: {answer}")


def file_name(target: str) -> str:
    """Return a target's name as its log file has it."""
    return target.replace(",", "").replace(" ", "-")


def try_chat(port: int) -> str:
    """Send one request; return its status, or what went wrong."""
    body = request_body(size=400, stream=False, tokens=1, engine_time_us=0)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(
            "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        response.read()
    except OSError as error:
        return type(error).__name__
    except http.client.HTTPException as error:
        return type(error).__name__
    finally:
        connection.close()
    return str(response.status)
