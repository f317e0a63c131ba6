"""The proxies and routers, started as people should run them before streams.

No route has a time limit, and nothing tries again or takes a replica out.

Envoy's is one process. Its second pair of listeners passes everything over HTTP/2 to the first,
as an edge in front of a mesh does. nginx is asked in four ways, because its defaults speak
HTTP/1.0 to what is behind it and collect an answer before they pass it on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.relay.routers import installed

PEERS_LOCK: Final = Path(__file__).parents[2] / "requirements" / "peers.lock"
_READY_S: Final = 20.0
_STOP_S: Final = 5.0
_MANAGER: Final = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
    ".HttpConnectionManager"
)
_ROUTER: Final = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_HTTP: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True, slots=True)
class Route:
    """One way to the player.

    Args:
        name: What the table calls it.
        port: Where it begins.
        http2: The client speaks HTTP/2 there.
    """

    name: str
    port: int
    http2: bool = False


@contextlib.asynccontextmanager
async def envoy(program: str, origin: int, directory: Path) -> AsyncIterator[list[Route]]:
    """Run Envoy in front of the port `origin`."""
    near, far = free_ports(2)
    config = {
        "static_resources": {
            "listeners": [_listener(near, "player"), _listener(far, "near")],
            "clusters": [_cluster("player", origin), _cluster("near", near, http2=True)],
        },
    }
    path = directory / "envoy.json"
    path.write_text(json.dumps(config))
    command = [program, "-c", str(path), "--concurrency", "1", "--use-dynamic-base-id"]
    async with _running([*command, "--log-level", "error"], directory / "envoy.log", near):
        yield [
            Route("Envoy", near),
            Route("Envoy", near, http2=True),
            Route("Envoy, HTTP/2 to a second Envoy", far),
            Route("Envoy, HTTP/2 to a second Envoy", far, http2=True),
        ]


@contextlib.asynccontextmanager
async def routers(origin: int, directory: Path) -> AsyncIterator[list[Route]]:
    """Run the routers of bench/relay and bench/peers in front of the port `origin`."""
    relays = await asyncio.to_thread(installed)
    peers = await asyncio.to_thread(installed, PEERS_LOCK)
    programs = {
        "sglang-router": [str(relays / "sglang-router"), "launch"],
        "vllm-router": [str(relays / "vllm-router")],
        "smg": [str(peers / "smg"), "launch"],
    }
    routes = []
    async with contextlib.AsyncExitStack() as stack:
        for name, program in programs.items():
            port, metrics_port = free_ports(2)
            command = [
                *(*program, "--worker-urls", f"http://127.0.0.1:{origin}"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--disable-retries", "--disable-circuit-breaker"),
                *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
            ]
            log = directory / f"{name}.log"
            await stack.enter_async_context(_running(command, log, port))
            routes.append(Route(name, port))
        yield routes


@contextlib.asynccontextmanager
async def nginx(program: str, origin: int, directory: Path) -> AsyncIterator[list[Route]]:
    """Run nginx in front of the port `origin`."""
    eager = "proxy_http_version 1.1; proxy_buffering off;"
    kinds = [
        ("nginx, HTTP/1.1, unbuffered", eager, False),
        ("nginx, HTTP/1.1, unbuffered", eager, True),
        ("nginx, HTTP/1.1, buffered", "proxy_http_version 1.1;", False),
        ("nginx, its defaults", "", False),
    ]
    ports = free_ports(len(kinds))
    servers = [
        f"server {{ listen 127.0.0.1:{port}{' http2' if http2 else ''}; location / {{ {options} "
        f"proxy_pass http://127.0.0.1:{origin}; }} }}"
        for port, (_, options, http2) in zip(ports, kinds, strict=True)
    ]
    temporary = "\n".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = directory / "nginx.conf"
    path.write_text(
        f"daemon off; worker_processes 1; pid {directory}/nginx.pid;\n"
        f"error_log {directory}/nginx-errors.log;\nevents {{}}\n"
        f"http {{ access_log off;\n{temporary}\n" + "\n".join(servers) + "\n}\n"
    )
    command = [program, "-c", str(path), "-p", str(directory), "-e", str(directory / "start.log")]
    async with _running(command, directory / "nginx.log", ports[0]):
        yield [
            Route(name, port, http2) for port, (name, _, http2) in zip(ports, kinds, strict=True)
        ]


def free_ports(count: int) -> list[int]:
    """Return loopback ports that are free right now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextlib.asynccontextmanager
async def _running(command: Sequence[str], log: Path, port: int) -> AsyncIterator[None]:
    with log.open("wb") as output:
        child = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
    try:
        async with asyncio.timeout(_READY_S):
            while not await _listens(port):
                if child.returncode is not None:
                    words = log.read_text()  # noqa: ASYNC240
                    raise RuntimeError(f"{command[0]} ended: {words[-2000:]}")
                await asyncio.sleep(0.1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), _STOP_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _listener(port: int, cluster: str) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}
    manager = {
        "@type": _MANAGER,
        "stat_prefix": cluster,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": _ROUTER}}],
    }
    filters = [{"name": "http", "typed_config": manager}]
    return {"address": _address(port), "filter_chains": [{"filters": filters}]}


def _cluster(name: str, port: int, *, http2: bool = False) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(port)}}
    cluster: dict[str, Any] = {
        "name": name,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    if http2:
        options = {
            "@type": f"type.googleapis.com/{_HTTP}",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        cluster["typed_extension_protocol_options"] = {_HTTP: options}
    return cluster
