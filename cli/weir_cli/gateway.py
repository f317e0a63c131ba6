"""The gateway of a service as a process: its one public address, before its replicas.

It is no pod, so what a pod's template says of a sidecar is said here: its environment, where it
reads of classes and tenants, and its probes, at the public port. The bounds are those of the
service's sidecars, and a gateway that hangs is noticed as soon as one of them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Final

from weir_cli.plan import ServicePlan
from weir_cli.pods import MODULES, Probe, ProcessPlan
from weir_cli.replica import replace_file
from weir_core.api import labels

_OF_ONE_POD: Final = frozenset({"OTEL_POD_NAME", "OTEL_RESOURCE_ATTRIBUTES"})


def tell(plan: ServicePlan) -> None:
    """Write what the gateway is told; a replica's own files come with its pod."""
    path = plan.gateway.policies_file
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(path, plan.policies.encode().decode())


def process(plan: ServicePlan, grace_period_s: float) -> ProcessPlan:
    """Return the process that is a service's one public address."""
    return ProcessPlan(
        name="gateway",
        role="main",
        argv=(
            *(sys.executable, "-m", MODULES["weir-sidecar"], "gateway"),
            *("--listen", f"{plan.host}:{plan.port}"),
            *(("--admin", f"{plan.gateway.address}:{labels.ADMIN_PORT}") if plan.sleeps else ()),
        ),
        env={
            **_settings(plan),
            labels.ENV_SERVICE: plan.name,
            labels.ENV_POD_NAME: plan.gateway.name,
            labels.ENV_POD_IP: plan.gateway.address,
            labels.ENV_HOST: plan.gateway.address,
            labels.ENV_POLICIES_DIR: str(plan.gateway.policies_file.parent),
            labels.ENV_GRACE_PERIOD_S: f"{grace_period_s:g}",
            labels.ENV_LAME_DUCK_S: "0",
        },
        startup=Probe("/healthz", plan.port, period_s=0.5, timeout_s=2.0, failure_threshold=60),
        liveness=_liveness(plan),
    )


def _settings(plan: ServicePlan) -> dict[str, str]:
    """Return what a sidecar of the service is told: the same bounds, and where spans go."""
    told = {name: value for sidecar in _sidecars(plan)[:1] for name, value in sidecar.env.items()}
    return {
        name: value
        for name, value in told.items()
        if name.startswith(("WEIR_", "OTEL_")) and name not in _OF_ONE_POD
    }


def _liveness(plan: ServicePlan) -> Probe:
    """Return how a gateway that hangs is noticed: as a sidecar is, at the public port."""
    asked = Probe("/healthz", plan.port, period_s=10.0, timeout_s=5.0, failure_threshold=6)
    probes = [sidecar.liveness for sidecar in _sidecars(plan) if sidecar.liveness]
    return replace(probes[0], path=asked.path, port=asked.port) if probes else asked


def _sidecars(plan: ServicePlan) -> list[ProcessPlan]:
    """Return the sidecars of a service's replicas, of which there may be none."""
    processes = (process for replica in plan.replicas for process in replica.processes)
    return [process for process in processes if process.role == "sidecar"]


def readiness(port: int) -> Probe:
    """Return the probe of whether a gateway has a replica to send requests to, or needs none."""
    return Probe("/readyz", port, period_s=0.25, timeout_s=2.0, failure_threshold=1)
