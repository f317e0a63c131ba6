"""Four engines, and what stands before them: Weir's sidecars, or one router.

Engines are the step model with a prefix cache. Those of `weir` have Weir's scheduler, as its pods
have it; the routers' and those of `weir-stock` have vLLM's priority order. `weir-alone` is sidecars
without peers and `weir-gateway` one without an engine before the others: one hop, and two. Each
router is started as its documents advise for conversations; Weir's settings are its defaults.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from bench.fleet.chats import PROFILE
from bench.fleet.report import ALONE, GATEWAY, STOCK, WEIR
from bench.peers.targets import (
    engine_command,
    gateway,
    sglang_command,
    sidecar,
    smg_command,
    vllm_command,
)
from bench.relay import targets
from bench.relay.processes import Processes, cpu_seconds, tree
from bench.relay.targets import Launch, file_name, free_ports
from weir_core.api import labels
from weir_core.wire.policies import PeerEntry, PolicyDocument

_MEET_S: Final = 30.0
_POLL_S: Final = 0.1
_SMG_SLOTS: Final = 128
"""Requests of SMG's at an engine: half of its batch, as in bench/peers."""
_CACHE_AWARE: Final = ["--policy", "cache_aware", "--cache-threshold", "0.5"]
_BALANCED: Final = ["--balance-abs-threshold", "32", "--balance-rel-threshold"]
"""Of sglang-router and vllm-router; their documents differ in the last value only."""
_SMG_CHATS: Final = ["--policy", "cache_aware", "--cache-threshold", "0.2"]
"""What SMG's documents advise for conversations; it caps the margins of balancing by itself."""
_FULL_SCAN: Final = {
    "load_balancing_policy": {
        "policies": [
            {
                "typed_extension_config": {
                    "name": "envoy.load_balancing_policies.least_request",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies"
                        ".least_request.v3.LeastRequest",
                        "selection_method": "FULL_SCAN",
                    },
                }
            }
        ]
    }
}
_METRIC: Final = re.compile(r"^(\w[\w:]*)(\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Site:
    """Where one fleet runs.

    Attributes:
        speeds: Of its engines, relative to the profile.
    """

    run_dir: Path
    processes: Processes
    speeds: Sequence[float]


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine: at a TCP port, or at the socket of a pod's folder."""

    port: int = 0
    run_dir: Path | None = None

    def metrics(self) -> dict[str, float]:
        """Return its metrics."""
        if self.run_dir is None:
            return scraped(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5))
        return scraped(_UnixConnection(self.run_dir / labels.ENGINE_SOCKET))


@dataclass(frozen=True, slots=True)
class Fleet:
    """Engines behind something that takes requests.

    Attributes:
        ports: Where requests go, in turn.
        roots: The processes that stand before the engines.
        admin_ports: Of Weir's sidecars.
    """

    name: str
    engines: Sequence[Engine]
    ports: Sequence[int]
    roots: Sequence[int]
    admin_ports: Sequence[int] = ()

    def cpu_s(self) -> float:
        """Return the CPU time that was used before the engines so far."""
        return cpu_seconds(pid for root in self.roots for pid in tree(root))

    def engine_totals(self) -> dict[str, float]:
        """Return the metrics of all engines, summed."""
        return _summed(engine.metrics() for engine in self.engines)

    def sidecar_totals(self) -> dict[str, float]:
        """Return the metrics of all sidecars, summed; nothing where there are none."""
        return _summed(
            scraped(http.client.HTTPConnection("127.0.0.1", port, timeout=5))
            for port in self.admin_ports
        )


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def scraped(connection: http.client.HTTPConnection) -> dict[str, float]:
    """Return the metrics of a server: each series, and the sum of the series of one name."""
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found: dict[str, float] = {}
    for name, labelled, value in _METRIC.findall(text):
        found[name] = found.get(name, 0.0) + float(value)
        if labelled:
            found[name + labelled] = float(value)
    return found


def _summed(of_each: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for metrics in of_each:
        for name, value in metrics.items():
            total[name] = total.get(name, 0.0) + value
    return total


# ---- Weir


def _weir(site: Site, name: str, kind: str = "weir") -> Fleet:
    pods = [f"replica-{number}" for number in range(len(site.speeds))]
    # All in one call: a port that nothing listens on yet may be given out again.
    of_sidecars = free_ports(3 * len(pods) + 3)
    peer_ports, apis, admins = (of_sidecars[part::3] for part in range(3))
    named = zip([*pods, "gateway"], peer_ports, strict=True)
    peers = [PeerEntry(pod, f"127.0.0.1:{port}") for pod, port in named]
    known = {GATEWAY: peers, ALONE: []}.get(name, peers[:-1])
    document = PolicyDocument(peers=tuple(known), peer_keys=(secrets.token_hex(32),))
    (site.run_dir / labels.POLICIES_FILE).write_bytes(document.encode())
    engines, roots = [], []
    for number, (pod, speed) in enumerate(zip(pods, site.speeds, strict=True)):
        run_dir = site.run_dir / pod
        run_dir.mkdir()
        _start_engine(site, f"engine of {pod}", kind, speed, ["--run-dir", str(run_dir)])
        engines.append(Engine(run_dir=run_dir))
        more = _peering(site, pod, peer_ports[number])
        launch = sidecar(pod, run_dir, (apis[number], admins[number]), more)
        roots.append(site.processes.start(pod, launch.command, launch.env).pid)
    for port in admins[:-1] if known else ():
        _await_metric(port, 'weir_peers{state="usable"}', len(pods) - 1)
    if name == GATEWAY:
        roots.append(_start_gateway(site, peer_ports[-1], apis[-1], admins[-1]))
        return Fleet(name, engines, apis[-1:], roots, admins[:-1])
    for port in apis[:-1]:
        _await_answer(port)
    return Fleet(name, engines, apis[:-1], roots, admins[:-1])


def _peering(site: Site, name: str, port: int) -> dict[str, str]:
    return {
        labels.ENV_POD_NAME: name,
        labels.ENV_POLICIES_DIR: str(site.run_dir),
        "WEIR_PEER_PORT": str(port),
    }


def _start_gateway(site: Site, peer_port: int, port: int, admin: int) -> int:
    more = _peering(site, "gateway", peer_port)
    launch = sidecar("gateway", site.run_dir, (port, admin), more)
    command = [sys.executable, "-m", "weir_sidecar", "gateway", "--listen", f"127.0.0.1:{port}"]
    return _start(site, replace(launch, command=command))


# ---- routers


def _routed(site: Site, name: str, command: list[str], smg_slots: int = 0) -> Fleet:
    engines = _engines(site)
    launch = gateway(name, command, [engine.port for engine in engines])
    if smg_slots:
        launch = replace(launch, prepare=partial(targets.raise_smg_bound, smg_slots))
    return Fleet(name, engines, [launch.port], [_start(site, launch)])


def _sglang(site: Site, name: str, *policy: str) -> Fleet:
    return _routed(site, name, [*sglang_command(), "--worker-startup-check-interval", "1", *policy])


def _vllm(site: Site) -> Fleet:
    command = [
        *vllm_command(),
        "--worker-startup-check-interval",
        "1",
        *_CACHE_AWARE,
        *_BALANCED,
        "1.1",
    ]
    return _routed(site, "vllm-router", command)


def _smg(site: Site) -> Fleet:
    command = smg_command(site.run_dir, _SMG_SLOTS * len(site.speeds))
    return _routed(site, "smg", [*command, *_SMG_CHATS], smg_slots=_SMG_SLOTS)


def _envoy(site: Site) -> Fleet:
    engines = _engines(site)
    (port,) = free_ports(1)
    config = site.run_dir / "envoy.json"
    ports = [engine.port for engine in engines]
    config.write_text(json.dumps(targets.envoy_config(port, ports, **_FULL_SCAN)))
    launch = Launch("envoy least-request", port, targets.envoy_command(config))
    return Fleet(launch.name, engines, [port], [_start(site, launch)])


FLEETS: Final[Mapping[str, Callable[[Site], Fleet]]] = {
    "weir": lambda site: _weir(site, WEIR),
    "weir-stock": lambda site: _weir(site, STOCK, "priority"),
    "sglang-cache": lambda site: _sglang(
        site, "sglang-router cache_aware", *_CACHE_AWARE, *_BALANCED, "1.5"
    ),
    "sglang-p2c": lambda site: _sglang(
        site, "sglang-router power_of_two", "--policy", "power_of_two"
    ),
    "vllm-router": _vllm,
    "smg": _smg,
    "envoy": _envoy,
    "weir-alone": lambda site: _weir(site, ALONE),
    "weir-gateway": lambda site: _weir(site, GATEWAY),
}


def _engines(site: Site) -> list[Engine]:
    """Start engines at TCP ports, and wait until they answer."""
    ports = free_ports(len(site.speeds))
    for number, (port, speed) in enumerate(zip(ports, site.speeds, strict=True)):
        _start_engine(site, f"engine-{number}", "priority", speed, ["--port", str(port)])
    for port in ports:
        _await_answer(port)
    return [Engine(port) for port in ports]


def _start_engine(site: Site, name: str, kind: str, speed: float, where: list[str]) -> None:
    command = engine_command(PROFILE, kind, where)
    command += ["--speed", str(speed), "--prefix-caching"]
    site.processes.start(file_name(name), command, {})


def _start(site: Site, launch: Launch) -> int:
    pid = targets.start(launch, site.processes).root_pid
    assert pid is not None
    return pid


def _await_answer(port: int) -> None:
    """Wait until a request gets through.

    Raises:
        RuntimeError: It does not.
    """
    deadline = time.monotonic() + targets.READY_TIMEOUT_S
    while (answer := targets.try_chat(port)) != "200":
        if time.monotonic() > deadline:
            raise RuntimeError(f"port {port} is not ready: {answer}")
        time.sleep(_POLL_S)


def _await_metric(port: int, name: str, least: float) -> None:
    """Wait until a sidecar's metric is as high.

    Raises:
        RuntimeError: It does not become so.
    """
    deadline = time.monotonic() + _MEET_S
    value: float | str | None = None
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            value = scraped(connection).get(name)
            if value is not None and value >= least:
                return
        except OSError as error:
            value = str(error)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} at port {port} is {value}, not {least}")
        time.sleep(_POLL_S)
