"""Objects for the operator's tests, with only what a case is about spelled out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from weir_core.api.inferenceservice import InferenceService
from weir_core.wire.fleet import FleetReport
from weir_core.wire.sidecar_state import SidecarState
from weir_core.wire.steps import Facts
from weir_operator.adapters import Adapters
from weir_operator.autoscaling import Autoscaling
from weir_operator.engines import Engines
from weir_operator.metrics import Metrics
from weir_operator.observed import Observed
from weir_operator.parse import owner_in, parse
from weir_operator.views import Deployment, Pod, view

Manifest = dict[str, Any]

NAMESPACE, NAME, UID = "models", "chat", "uid-1"
GPU = "example.com/gpu"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def body(spec: Manifest | None = None, **meta: Any) -> Manifest:
    """Return an InferenceService as the API server holds it; `spec` is laid over a small one."""
    small: Manifest = {
        "model": {"name": "m", "source": {"uri": "tiny://"}},
        "pools": [{"name": "cpu", "accelerator": {"count": 0}}],
    }
    return {
        "apiVersion": "serving.weir.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": UID, "generation": 1, **meta},
        "spec": {**small, **(spec or {})},
    }


def service(spec: Manifest | None = None, **meta: Any) -> InferenceService:
    """Return the same, parsed."""
    return parse(body(spec, **meta))


def deployment(wanted: int = 1, **status: Any) -> Manifest:
    """Return a Deployment whose rollout is complete unless `status` says otherwise."""
    complete = {
        "observedGeneration": 1,
        "replicas": wanted,
        "updatedReplicas": wanted,
        "readyReplicas": wanted,
        "availableReplicas": wanted,
    }
    return {
        "metadata": {"name": "chat-cpu", "generation": 1},
        "spec": {"replicas": wanted},
        "status": {**complete, **status},
    }


def container(name: str, state: str = "running", **fields: Any) -> Manifest:
    """Return a container's status; `fields` are those of its state, `started` and `last` aside."""
    status: Manifest = {"name": name, "started": fields.pop("started", False)}
    if "last" in fields:
        status["lastState"] = {"terminated": fields.pop("last")}
    return {**status, "state": {state: fields}}


def pod(
    *containers: Manifest,
    init: tuple[Manifest, ...] = (),
    ready: bool = False,
    leaving: bool = False,
    unschedulable: str = "",
    since: datetime = NOW,
    volumes: tuple[str, ...] = ("run", "policies"),
    pool: str = "cpu",
    ip: str = "10.0.0.1",
) -> Manifest:
    """Return a pod."""
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    if unschedulable:
        scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        moment = since.strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions.append({**scheduled, "message": unschedulable, "lastTransitionTime": moment})
    meta: Manifest = {"name": f"chat-{pool}-1", "labels": {"serving.weir.dev/pool": pool}}
    if leaving:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {
        "metadata": meta,
        "spec": {"volumes": [{"name": name} for name in volumes]},
        "status": {
            "podIP": ip,
            "conditions": conditions,
            "initContainerStatuses": list(init),
            "containerStatuses": list(containers),
        },
    }


def asking(one: Manifest, template: str, count: str = "1", **spec: Any) -> Manifest:
    """Return a pod as made from a template, with what its engine asks for."""
    requests = {GPU: count, "cpu": "500m"}
    one["metadata"]["labels"]["pod-template-hash"] = template
    one["spec"] |= {"containers": [{"name": "engine", "resources": {"requests": requests}}], **spec}
    return one


def serving_pod(pool: str = "cpu") -> Manifest:
    """Return a pod that takes requests."""
    return pod(container("engine", started=True), ready=True, pool=pool)


def facts(fallback: str = "") -> Facts:
    """Return what an engine is, with Weir's scheduler or with the reason why without."""
    kind: Literal["weir", "priority"] = "priority" if fallback else "weir"
    return Facts(kind, 128, 2048, 8192, "0.32.0", fallback)


def observed(
    deployments: Mapping[str, Manifest],
    pods: Sequence[Manifest],
    *,
    spec: Manifest | None = None,
    leaving: Mapping[str, Manifest] | None = None,
    held: Manifest | None = None,
    **more: Any,
) -> Observed:
    """Return a world with these objects; `held` is the service as the API server holds it."""
    held = held or body(spec)
    return Observed(
        held,
        owner_in(held),
        parse(held),
        NOW,
        pods=[view(Pod, each) for each in pods],
        deployments={name: view(Deployment, each) for name, each in deployments.items()},
        leaving={name: view(Deployment, each) for name, each in (leaving or {}).items()},
        **more,
    )


def engines(said: Facts | None = None) -> Engines:
    """Return engines that all say this, on a clock that stands."""

    async def ask(_address: str, _pod: str, _keys: Sequence[str]) -> Facts:
        return said or facts()

    return Engines(ask, lambda: 0.0)


def no_adapters() -> Adapters:
    """Return what asks sidecars that have no adapter yet, on a clock that stands."""

    async def ask(_address: str, pod: str, _keys: Sequence[str]) -> SidecarState:
        return SidecarState(pod)

    return Adapters(ask, lambda: 0.0, lambda _service: None)


def no_autoscaling() -> Autoscaling:
    """Return one that no sidecar answers, on clocks that stand."""

    async def ask(_address: str, pod: str, _keys: Sequence[str]) -> FleetReport:
        return FleetReport(pod)

    return Autoscaling(
        ask,
        lambda: 0.0,
        lambda: datetime(2026, 1, 2, tzinfo=UTC),
        lambda _service: None,
        Metrics(CollectorRegistry()),
    )
