"""What is compared: the bare engine, three gateways, and Weir's sidecar, each before its engine.

Every target has an engine process of its own (the others idle), all with the same step model:
vLLM with `--scheduling-policy priority`. The gateways are started with the settings that their
documents give for priorities; SMG's slots are set by hand, because its default bound (1024 for
each core of the gateway's machine) never lets its scheduler act.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.relay import routers
from bench.relay.processes import Processes
from bench.relay.targets import Launch, Target, file_name, free_ports, start
from weir_core.api import labels

SMG_SLOTS: Final = 128
"""Concurrent requests: half the batch, so that its scheduler can act; not searched for."""

_SMG_CLASSES: Final = """\
classes:
  system: {reserved_floor: 0, reserved_per_slot: 0.0, queue_size: 64, queue_timeout_secs: 30, starvation_threshold_secs: 5, can_preempt: true}
  interactive: {reserved_floor: 16, reserved_per_slot: 0.0, queue_size: 256, queue_timeout_secs: 30, starvation_threshold_secs: 5, can_preempt: true}
  default: {reserved_floor: 0, reserved_per_slot: 0.0, queue_size: 512, queue_timeout_secs: 60, starvation_threshold_secs: 30, can_preempt: false}
  bulk: {reserved_floor: 0, reserved_per_slot: 0.0, queue_size: 1024, queue_timeout_secs: 300, starvation_threshold_secs: 120, can_preempt: false}
"""  # noqa: E501 - SMG's own defaults in its own notation, but for fewer reserved slots


@dataclass(frozen=True, slots=True)
class Site:
    """Where the targets' files are.

    Attributes:
        slots: SMG's concurrent requests.
    """

    run_dir: Path
    processes: Processes
    profile: str
    slots: int = SMG_SLOTS


def bare(site: Site) -> Target:
    """Return the engine itself; clients send vLLM's `priority`."""
    name = "bare vLLM priority"
    (port,) = free_ports(1)
    engine = engine_command(site.profile, "priority", ["--port", str(port)])
    return start(Launch(name, port, engine), site.processes)


def sglang_router(site: Site) -> Target:
    """Return sglang-router with its default policy; it has no priorities."""
    return _gateway(site, "sglang-router", sglang_command())


def vllm_router(site: Site) -> Target:
    """Return vllm-router with its default policy; it has no priorities."""
    return _gateway(site, "vllm-router", vllm_command())


def smg(site: Site) -> Target:
    """Return SMG with its priority scheduler."""
    return _gateway(site, "smg", smg_command(site.run_dir, site.slots))


def weir(site: Site) -> Target:
    """Return Weir's sidecar as it ships, before the same engine as the others."""
    return _sidecar(site, "weir", "priority")


def weir_engine(site: Site) -> Target:
    """Return Weir's sidecar before an engine with Weir's scheduler."""
    return _sidecar(site, "weir, its engine scheduler", "weir")


TARGETS: Final[Mapping[str, Callable[[Site], Target]]] = {
    "bare": bare,
    "sglang-router": sglang_router,
    "vllm-router": vllm_router,
    "smg": smg,
    "weir": weir,
    "weir-engine": weir_engine,
}


def sglang_command() -> list[str]:
    """Return how sglang-router is started, without addresses."""
    return [str(routers.installed() / "sglang-router"), "launch", "--log-level", "warn"]


def vllm_command() -> list[str]:
    """Return how vllm-router is started, without addresses."""
    return [str(routers.installed() / "vllm-router"), "--log-level", "warning"]


def smg_command(run_dir: Path, slots: int) -> list[str]:
    """Return how SMG is started with its priority scheduler, without addresses."""
    config = run_dir / "smg.yaml"
    config.write_text(_SMG_CLASSES)
    command = [str(routers.installed(routers.SMG_LOCK) / "smg"), "launch", "--log-level", "warn"]
    command += ["--priority-scheduler-enabled", "--priority-scheduler-config", str(config)]
    command += ["--priority-scheduler-default-max-class", "interactive"]
    return [*command, "--max-concurrent-requests", str(slots)]


def gateway(name: str, command: list[str], engines: Sequence[int]) -> Launch:
    """Return how a gateway is started before engines at these ports."""
    port, metrics = free_ports(2)
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", *(f"http://127.0.0.1:{engine}" for engine in engines)]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)]
    return Launch(name, port, command)


def _gateway(site: Site, name: str, command: list[str]) -> Target:
    return start(gateway(name, command, [_engine_port(site, name)]), site.processes)


def _sidecar(site: Site, name: str, kind: str) -> Target:
    run_dir = site.run_dir / kind
    run_dir.mkdir()
    engine = engine_command(site.profile, kind, ["--run-dir", str(run_dir)])
    site.processes.start(file_name(f"engine of {name}"), engine, {})
    return start(sidecar(name, run_dir, free_ports(2), {}), site.processes)


def sidecar(name: str, run_dir: Path, ports: Sequence[int], more: Mapping[str, str]) -> Launch:
    """Return how a sidecar is started before the engine in `run_dir`.

    Args:
        name: Of the target.
        run_dir: Its pod's folder.
        ports: Of its API and of its admin server.
        more: Further environment.
    """
    api, admin = ports
    env = {
        labels.ENV_HOST: "127.0.0.1",
        labels.ENV_MODEL_NAME: "tiny",
        labels.ENV_RUN_DIR: str(run_dir),
        labels.ENV_POLICIES_DIR: str(run_dir / "policies"),
        "WEIR_API_PORT": str(api),
        "WEIR_ADMIN_PORT": str(admin),
        "OTEL_SDK_DISABLED": "true",  # whatever the caller's environment says
        **more,
    }
    return Launch(name, api, [sys.executable, "-m", "weir_sidecar", "serve"], env)


def _engine_port(site: Site, name: str) -> int:
    (port,) = free_ports(1)
    engine = engine_command(site.profile, "priority", ["--port", str(port)])
    site.processes.start(file_name(f"engine of {name}"), engine, {})
    return port


def engine_command(profile: str, kind: str, where: Sequence[str]) -> list[str]:
    """Return how an engine model is started."""
    module = [sys.executable, "-m", "weir_sim.step_engine"]
    return [*module, "--profile", profile, "--kind", kind, *where]
