"""What is measured: nothing in between, Weir's sidecar, the floor, and other relays.

Each is started as its makers ship it, with the few settings that comparing needs: loopback
addresses, free ports, and for the routers the cheapest policy and no log line per request.
The sidecar and the floor reach the engine over a Unix socket, the others over TCP, as each runs.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.relay import routers
from bench.relay.processes import Processes, tree
from bench.relay.wire import API_KEY, MODEL, request_body
from weir_core.api import labels
from weir_core.sched.types import TenantPolicy
from weir_core.wire.policies import PeerEntry, PolicyDocument, TenantEntry

READY_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.1
DIRECT: Final = "direct"
FLOOR: Final = "floor"
WEIR: Final = "weir"
WEIR_TRACED: Final = "weir-tracing"
WEIR_BESIDE: Final = "weir-beside"
WEIR_FORWARDED: Final = "weir-forwarded"
SIDECARS: Final = (WEIR, WEIR_TRACED, WEIR_BESIDE, WEIR_FORWARDED)
ROUTERS: Final = ("sglang-router", "vllm-router", "smg")
"""Those in Rust, the cheapest of which every ratio refers to."""
ENVOY: Final = "envoy"

_PLENTY: Final = 4096
"""Connections and requests at once, where a relay has a bound on them."""


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
    """How to start a relay.

    Attributes:
        guarded: Requests with a key that it does not know are 401, and that is looked at.
        prepare: What is left to do when it listens.
    """

    name: str
    port: int
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    guarded: bool = False
    prepare: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where the engine and the span sink listen, and where files are.

    Attributes:
        beside: A folder with an earlier build of Weir; None measures none.
    """

    run_dir: Path
    engine_port: int
    sink_port: int
    beside: Path | None = None

    def pod_dir(self, name: str) -> Path:
        """Return the folder that a sidecar shares with the engine."""
        return self.run_dir / name

    def prepare(self) -> list[Path]:
        """Make the folder of every sidecar, with the policies in it, and return the folders."""
        folders = [self.pod_dir(name) for name in SIDECARS]
        for folder in folders:
            folder.mkdir()
            (folder / labels.POLICIES_FILE).write_bytes(_POLICIES.encode())
        return folders


_POLICIES: Final = PolicyDocument(
    tenants=(
        TenantEntry(
            TenantPolicy("bench"),
            default_class="standard",
            max_class="interactive",
            key_hashes=(sha256(API_KEY.encode()).hexdigest(),),
        ),
    )
)


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nobody listens on right now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def direct(upstream: Upstream) -> Target:
    """Return the engine itself."""
    return Target(DIRECT, upstream.engine_port)


def _floor(upstream: Upstream) -> Launch:
    (port,) = free_ports(1)
    uds = upstream.pod_dir(WEIR) / labels.ENGINE_SOCKET
    command = [sys.executable, "-m", "bench.relay.floor", "--port", str(port), "--uds", str(uds)]
    return Launch(FLOOR, port, command)


def _weir(upstream: Upstream) -> Launch:
    return _sidecar(upstream, WEIR, {})


def _weir_traced(upstream: Upstream) -> Launch:
    endpoint = f"http://127.0.0.1:{upstream.sink_port}"
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SDK_DISABLED": "false"}
    return _sidecar(upstream, WEIR_TRACED, traced)


def _weir_beside(upstream: Upstream) -> Launch:
    assert upstream.beside is not None
    return _sidecar(upstream, WEIR_BESIDE, {"PYTHONPATH": str(upstream.beside.resolve())})


def _weir_forwarded(upstream: Upstream) -> Launch:
    """Return a gateway and the sidecar that it forwards all requests to."""
    port, replica, gateway = free_ports(3)
    peers = (
        PeerEntry("replica", f"127.0.0.1:{replica}"),
        PeerEntry("gateway", f"127.0.0.1:{gateway}"),
    )
    told = msgspec.structs.replace(_POLICIES, peers=peers, peer_keys=("5e" * 32,))
    policies = upstream.pod_dir(WEIR_FORWARDED) / labels.POLICIES_FILE
    policies.write_bytes(told.encode())
    more = {labels.ENV_POD_NAME: "replica", "WEIR_PEER_PORT": str(replica)}
    launch = _sidecar(upstream, WEIR_FORWARDED, more)
    command = [sys.executable, "-m", "bench.relay.pair", "--peer-port", str(gateway)]
    command += ["--listen", f"127.0.0.1:{port}"]
    return replace(launch, port=port, command=command)


def _sidecar(upstream: Upstream, name: str, more: Mapping[str, str]) -> Launch:
    """Return a sidecar as a pod runs it: keys, classes, and an engine that logs its steps."""
    api, admin = free_ports(2)
    pod_dir = str(upstream.pod_dir(name))
    env = {
        labels.ENV_HOST: "127.0.0.1",
        labels.ENV_MODEL_NAME: MODEL,
        labels.ENV_RUN_DIR: pod_dir,
        labels.ENV_POLICIES_DIR: pod_dir,
        "WEIR_API_PORT": str(api),
        "WEIR_ADMIN_PORT": str(admin),
        "OTEL_SDK_DISABLED": "true",  # whatever the caller's environment says
        **more,
    }
    command = [sys.executable, "-m", "weir_sidecar", "serve"]
    return Launch(name, api, command, env, guarded=True)


def _sglang_router(upstream: Upstream) -> Launch:
    command = [str(routers.installed() / "sglang-router"), "launch", "--log-level", "warn"]
    command += ["--policy", "round_robin", "--worker-startup-check-interval", "1"]
    return _router(upstream, "sglang-router", command)


def _vllm_router(upstream: Upstream) -> Launch:
    command = [str(routers.installed() / "vllm-router"), "--log-level", "warning"]
    command += ["--policy", "random", "--worker-startup-check-interval", "1"]
    return _router(upstream, "vllm-router", command)


def _smg(upstream: Upstream) -> Launch:
    """Return SMG with its priority scheduler, with the classes it has built in."""
    command = [str(routers.installed(routers.SMG_LOCK) / "smg"), "launch", "--log-level", "warn"]
    command += ["--policy", "round_robin", "--priority-scheduler-enabled"]
    command += ["--max-concurrent-requests", str(_PLENTY)]
    prepare = partial(raise_smg_bound, _PLENTY)
    return replace(_router(upstream, "smg", command), prepare=prepare)


def raise_smg_bound(most: int, port: int) -> None:
    """Tell SMG how many requests each worker takes: without that its scheduler lets 64 run.

    Raises:
        RuntimeError: It did not take that.
    """
    url = f"http://127.0.0.1:{port}/workers"
    bound = {"max_num_seqs": str(most)}
    for worker in _ask(url)["workers"]:
        _ask(f"{url}/{worker['id']}", {"labels": bound})
    deadline = time.monotonic() + READY_TIMEOUT_S
    while any(bound.items() - worker["labels"].items() for worker in _ask(url)["workers"]):
        if time.monotonic() > deadline:
            raise RuntimeError("smg does not take a bound for its workers")
        time.sleep(_POLL_S)


def _ask(url: str, change: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return JSON from an API of SMG's, after a change where there is one."""
    request = urllib.request.Request(
        url,
        None if change is None else json.dumps(change).encode(),
        {"Content-Type": "application/json"},
        method="GET" if change is None else "PATCH",
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
    except OSError as error:
        raise RuntimeError(f"{url}: {error}") from error
    return found


def _router(upstream: Upstream, name: str, command: list[str]) -> Launch:
    port, metrics = free_ports(2)
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{upstream.engine_port}"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)]
    return Launch(name, port, command)


def _envoy(upstream: Upstream) -> Launch:
    """Return Envoy with one worker thread, one route and its default settings."""
    (port,) = free_ports(1)
    config = upstream.run_dir / "envoy.json"
    config.write_text(json.dumps(envoy_config(port, [upstream.engine_port])))
    return Launch(ENVOY, port, envoy_command(config))


def envoy_command(config: Path) -> list[str]:
    """Return how Envoy is started with one worker thread."""
    command = [str(routers.installed() / "envoy"), "--config-path", str(config)]
    return [*command, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]


def envoy_config(port: int, engine_ports: Sequence[int], **of_cluster: Any) -> dict[str, Any]:
    """Return a listener before engines.

    Args:
        port: Of the listener.
        engine_ports: Of the engines.
        of_cluster: Further fields of the cluster that they are.
    """

    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    types = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "engine", "timeout": "0s"}}
    http = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}
        ],
    }
    listener = {
        "address": address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": http}]}],
    }
    bounds = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), _PLENTY)
    endpoints = [{"endpoint": {"address": address(each)}} for each in engine_ports]
    cluster = {
        "name": "engine",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [bounds]},
        "load_assignment": {
            "cluster_name": "engine",
            "endpoints": [{"lb_endpoints": endpoints}],
        },
        **of_cluster,
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


LAUNCHES: Final[Mapping[str, Callable[[Upstream], Launch]]] = {
    FLOOR: _floor,
    WEIR: _weir,
    WEIR_TRACED: _weir_traced,
    WEIR_BESIDE: _weir_beside,
    WEIR_FORWARDED: _weir_forwarded,
    "sglang-router": _sglang_router,
    "vllm-router": _vllm_router,
    "smg": _smg,
    ENVOY: _envoy,
}


def start(launch: Launch, processes: Processes) -> Target:
    """Start a relay and wait until a request gets through it.

    Raises:
        RuntimeError: It ended, answered nothing useful for `READY_TIMEOUT_S`, could not be
            prepared, or lets a key through that it should not know.
    """
    child = processes.start(file_name(launch.name), launch.command, launch.env)
    deadline = time.monotonic() + READY_TIMEOUT_S
    answer = "no answer"
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"{launch.name} ended with status {child.returncode}")
        answer = try_chat(launch.port)
        if answer == "200":
            if launch.prepare is not None:
                launch.prepare(launch.port)
            if launch.guarded and (answer := try_chat(launch.port, key="unknown")) != "401":
                raise RuntimeError(f"{launch.name} answers {answer} to an unknown key")
            return Target(launch.name, launch.port, child.pid)
        time.sleep(_POLL_S)
    raise RuntimeError(f"{launch.name} is not ready after {READY_TIMEOUT_S:.0f} s: {answer}")


def file_name(target: str) -> str:
    """Return a target's name as its log file has it."""
    return target.replace(",", "").replace(" ", "-")


def try_chat(port: int, key: str = API_KEY) -> str:
    """Send one request; return its status, or what went wrong."""
    body = request_body(size=400, stream=False, tokens=1, engine_time_us=0)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        response.read()
    except OSError as error:
        return type(error).__name__
    except http.client.HTTPException as error:
        return type(error).__name__
    finally:
        connection.close()
    return str(response.status)
