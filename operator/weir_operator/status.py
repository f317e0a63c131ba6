"""What was observed, as status and conditions. Pure: objects in, status out.

Ready says whether the service answers requests as its spec asks. The others say why not:
WorkloadsReady (every pool has the pods it should, of the newest template), ModelReady (an engine
has the model loaded), RouterReady (a sidecar takes requests), ScalingReady (the number of replicas
follows the spec).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import InvalidSpec
from weir_operator.render import Manifest, service_url

READY = "Ready"
WORKLOADS = "WorkloadsReady"
MODEL = "ModelReady"
ROUTER = "RouterReady"
SCALING = "ScalingReady"


class Verdict(NamedTuple):
    """A condition without its times."""

    status: str
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Observed:
    """The world as one pass saw it."""

    deployments: Mapping[str, Manifest]
    """Each pool's Deployment, by the pool's name."""
    pods: Sequence[Manifest]


def observed(service: InferenceService, seen: Observed, body: Manifest, now: str) -> Manifest:
    """Return the status of a service whose spec was applied.

    Args:
        service: The service.
        seen: Its Deployments and pods.
        body: The service as the API server holds it, with the status written last.
        now: RFC 3339 time for conditions that changed.
    """
    pools = [_pool_status(pool.name, seen.deployments) for pool in service.spec.hardware_pools]
    status: Manifest = {
        "observedGeneration": service.metadata.generation,
        "conditions": _dated(_verdicts(service, seen), body, now),
        "replicas": sum(pool["replicas"] for pool in pools),
        "readyReplicas": sum(pool["readyReplicas"] for pool in pools),
        "pools": pools,
        "selector": f"{labels.SERVICE}={service.metadata.name}",
        "url": service_url(service),
    }
    return status


def rejected(error: InvalidSpec, body: Manifest, now: str) -> Manifest:
    """Return the status of a service whose spec only its author can repair.

    What runs from an earlier spec goes on running; the numbers stay as they were last seen.
    """
    verdicts = {READY: Verdict("False", "InvalidSpec", str(error))}
    status: Manifest = {**(body.get("status") or {})}
    kept = {each["type"]: each for each in status.get("conditions", ())}
    fresh = {each["type"]: each for each in _dated(verdicts, body, now)}
    status["conditions"] = list({**kept, **fresh}.values())
    status["observedGeneration"] = _generation(body)
    return status


def transitions(before: Manifest | None, after: Manifest) -> list[Mapping[str, str]]:
    """Return the conditions worth an Event: Ready whenever it turned, others when they trouble."""
    old = {each["type"]: each for each in (before or {}).get("conditions", ())}
    return [
        each
        for each in after["conditions"]
        if _essence(old.get(each["type"])) != _essence(each)
        and (each["type"] == READY or is_trouble(each))
    ]


def is_trouble(condition: Mapping[str, Any]) -> bool:
    """Tell whether a condition says that something is wrong, not merely under way."""
    return condition["status"] == "False" and condition["reason"] not in _UNDER_WAY


_UNDER_WAY = frozenset(
    {"Fetching", "Loading", "NoReadyReplica", "Progressing", "ScaledToZero", "Waiting"}
)


def _essence(condition: Mapping[str, Any] | None) -> tuple[Any, Any] | None:
    return None if condition is None else (condition["status"], condition["reason"])


def _verdicts(service: InferenceService, seen: Observed) -> dict[str, Verdict]:
    others = {
        WORKLOADS: _workloads(service, seen),
        MODEL: _model(service, seen.pods),
        ROUTER: _router(service, seen.pods),
        SCALING: _scaling(service),
    }
    return {READY: _ready(service, others), **others}


def _wanted(service: InferenceService) -> int:
    return sum(service.spec.replicas_of(pool) for pool in service.spec.hardware_pools)


def _ready(service: InferenceService, others: Mapping[str, Verdict]) -> Verdict:
    if _wanted(service) == 0:
        return Verdict("False", "ScaledToZero", "the spec asks for no replicas")
    if others[ROUTER].status == "True":
        return Verdict("True", "Serving", others[ROUTER].message)
    cause = next(
        (others[each] for each in (WORKLOADS, MODEL) if others[each].status != "True"),
        others[ROUTER],
    )
    return Verdict("False", cause.reason, cause.message)


def _workloads(service: InferenceService, seen: Observed) -> Verdict:
    trouble = _trouble(seen.pods)
    if trouble is not None:
        return trouble
    for pool in service.spec.hardware_pools:
        wanted = service.spec.replicas_of(pool)
        deployment = seen.deployments.get(pool.name, {})
        status = deployment.get("status", {})
        generation = deployment.get("metadata", {}).get("generation", 0)
        if status.get("observedGeneration", 0) < generation:
            return Verdict("False", "Progressing", f"pool {pool.name}: the rollout has begun")
        have = {key: status.get(key, 0) for key in ("updatedReplicas", "availableReplicas")}
        if min(have.values()) < wanted or status.get("replicas", 0) > wanted:
            return Verdict(
                "False",
                "Progressing",
                f"pool {pool.name}: {have['availableReplicas']} of {wanted} replicas available, "
                f"{have['updatedReplicas']} of the newest template",
            )
    return Verdict("True", "Available", "every pool has its replicas")


_TELLING = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
"""Reasons for which a container waits that time alone will not cure."""


def _trouble(pods: Iterable[Manifest]) -> Verdict | None:
    """Return what keeps a pod from starting, if something does."""
    for pod in pods:
        status, name = pod.get("status", {}), pod["metadata"]["name"]
        for container in _containers(status):
            waiting = container.get("state", {}).get("waiting", {})
            if waiting.get("reason") in _TELLING:
                last = container.get("lastState", {}).get("terminated", {})
                words = last.get("message") or waiting.get("message") or ""
                return Verdict(
                    "False",
                    waiting["reason"],
                    f"pod {name}, container {container['name']}: {words.strip()}"[:1000],
                )
        for condition in status.get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                return Verdict(
                    "False", "Unschedulable", f"pod {name}: {condition.get('message', '')}"
                )
    return None


def _model(service: InferenceService, pods: Sequence[Manifest]) -> Verdict:
    if _wanted(service) == 0:
        return Verdict("Unknown", "ScaledToZero", "no engine runs")
    engines = [
        container
        for pod in pods
        for container in pod.get("status", {}).get("containerStatuses", ())
        if container["name"] == labels.ENGINE_CONTAINER
    ]
    loaded = sum(1 for engine in engines if engine.get("started"))
    if loaded:
        return Verdict("True", "Loaded", f"loaded by {loaded} of {len(engines)} engines")
    if any(engine.get("state", {}).get("running") for engine in engines):
        return Verdict("False", "Loading", "the engine is loading the model")
    fetching = any(
        container["name"] == labels.MODEL_CONTAINER and container.get("state", {}).get("running")
        for pod in pods
        for container in pod.get("status", {}).get("initContainerStatuses", ())
    )
    if fetching:
        return Verdict("False", "Fetching", f"fetching {service.spec.model.source.uri}")
    return Verdict("False", "Waiting", "no engine has started yet")


def _router(service: InferenceService, pods: Sequence[Manifest]) -> Verdict:
    if _wanted(service) == 0:
        return Verdict("False", "ScaledToZero", "no sidecar runs")
    ready = sum(
        1
        for pod in pods
        for condition in pod.get("status", {}).get("conditions", ())
        if condition["type"] == "Ready" and condition["status"] == "True"
    )
    if ready:
        return Verdict("True", "Serving", f"{ready} of {_wanted(service)} replicas take requests")
    return Verdict("False", "NoReadyReplica", "no replica takes requests")


def _scaling(service: InferenceService) -> Verdict:
    scaling = service.spec.scaling
    if scaling is None:
        return Verdict("True", "Fixed", "the spec gives the number of replicas")
    held = max(scaling.min_replicas, 1)
    return Verdict(
        "False",
        "NotSupported",
        f"this version does not scale by load; it holds {held} replica{'s' * (held > 1)}",
    )


def _containers(status: Manifest) -> list[Manifest]:
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


def _pool_status(name: str, deployments: Mapping[str, Manifest]) -> Manifest:
    status = deployments.get(name, {}).get("status", {})
    return {
        "name": name,
        "replicas": status.get("replicas", 0),
        "readyReplicas": status.get("readyReplicas", 0),
        "updatedReplicas": status.get("updatedReplicas", 0),
    }


def _dated(verdicts: Mapping[str, Verdict], body: Manifest, now: str) -> list[Manifest]:
    """Return conditions; a transition time moves only when the status does."""
    before = {each["type"]: each for each in (body.get("status") or {}).get("conditions", ())}
    conditions = []
    for type_, verdict in verdicts.items():
        old = before.get(type_)
        same = old is not None and old["status"] == verdict.status
        conditions.append(
            {
                "type": type_,
                "status": verdict.status,
                "reason": verdict.reason,
                "message": verdict.message,
                "observedGeneration": _generation(body),
                "lastTransitionTime": old["lastTransitionTime"] if old and same else now,
            }
        )
    return conditions


def _generation(body: Manifest) -> int:
    return int(body["metadata"].get("generation", 0))
