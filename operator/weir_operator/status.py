"""What was observed, as the status of the resource. Pure: objects in, status out.

Two statuses that say the same are equal, times included, so a pass over a world that did not
change writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import ClusterRefuses, InvalidSpec, PredecessorLeaving
from weir_operator.render import Manifest, service_url
from weir_operator.render.naming import selector
from weir_operator.verdicts import (
    POLICIES,
    READY,
    UNDER_WAY,
    WORKLOADS,
    Observed,
    Verdict,
    policies_verdict,
    verdicts,
)


def observed(service: InferenceService, seen: Observed, body: Manifest, now: str) -> Manifest:
    """Return the status of a service whose spec was applied.

    Args:
        service: The service.
        seen: Its Deployments and pods.
        body: The service as the API server holds it, with the status written last.
        now: RFC 3339 time for conditions that changed.
    """
    deployments = {**seen.leaving, **seen.deployments}
    names = [*(pool.name for pool in service.spec.hardware_pools), *sorted(seen.leaving)]
    pools = [_pool_status(name, deployments) for name in names]
    return {
        "observedGeneration": service.metadata.generation,
        "conditions": _dated(verdicts(service, seen), body, now),
        "replicas": sum(pool["replicas"] for pool in pools),
        "readyReplicas": sum(pool["readyReplicas"] for pool in pools),
        "pools": pools,
        "selector": _selector(service),
        "url": service_url(service),
    }


def rejected(error: InvalidSpec, told: Observed | None, body: Manifest, now: str) -> Manifest:
    """Return the status of a service whose spec only its author can repair.

    What runs from an earlier spec goes on running; the numbers stay as they were last seen.

    Args:
        error: What is wrong.
        told: What its sidecars were told in this pass; None where that is what failed.
        body: The service as the API server holds it.
        now: RFC 3339 time for conditions that changed.
    """
    verdict = Verdict("False", "InvalidSpec", str(error))
    return _acted({READY: verdict, POLICIES: _told(body, told, verdict)}, body, now)


def refused(error: ClusterRefuses, told: Observed | None, body: Manifest, now: str) -> Manifest:
    """Return the status of a service whose objects the API server does not take for now.

    A service that is Ready stays so: what runs goes on answering.
    """
    return _unwritten(Verdict("False", "Refused", str(error)), told, body, now)


def waiting(error: PredecessorLeaving, told: Observed | None, body: Manifest, now: str) -> Manifest:
    """Return the status of a service whose objects' names are about to be free."""
    return _unwritten(Verdict("False", "WaitingForPredecessor", str(error)), told, body, now)


def interrupted(told: Observed | None, body: Manifest, now: str) -> Manifest:
    """Return the status of a service whose pass ended early, for the API server's sake.

    It says no more than what sidecars were told, if they were: the rest was not acted upon.
    """
    if told is None:
        return dict(body.get("status", {}))
    return _amended({POLICIES: policies_verdict(body["metadata"]["name"], told)}, body, now)


def _unwritten(verdict: Verdict, told: Observed | None, body: Manifest, now: str) -> Manifest:
    ready = _conditions(body.get("status")).get(READY, {})
    spoken = {WORKLOADS: verdict, POLICIES: _told(body, told, verdict)}
    if ready.get("status") != "True":
        spoken[READY] = verdict
    return _acted(spoken, body, now)


def _told(body: Manifest, told: Observed | None, failure: Verdict) -> Verdict:
    return failure if told is None else policies_verdict(body["metadata"]["name"], told)


def transitions(before: Manifest | None, after: Manifest) -> list[Mapping[str, str]]:
    """Return the conditions worth an Event: Ready whenever it turned, others when they trouble."""
    old = _conditions(before)
    return [
        each
        for each in after["conditions"]
        if _essence(old.get(each["type"])) != _essence(each)
        and (each["type"] == READY or is_trouble(each))
    ]


def is_trouble(condition: Mapping[str, Any]) -> bool:
    """Tell whether a condition says that something is wrong, not merely under way."""
    return condition["status"] == "False" and condition["reason"] not in UNDER_WAY


def _essence(condition: Mapping[str, Any] | None) -> tuple[Any, Any] | None:
    return None if condition is None else (condition["status"], condition["reason"])


def _conditions(status: Manifest | None) -> dict[str, Manifest]:
    """Return a status's conditions by type."""
    return {each["type"]: each for each in (status or {}).get("conditions", ())}


def _amended(spoken: Mapping[str, Verdict], body: Manifest, now: str) -> Manifest:
    """Return the status as it was, but for these conditions."""
    before = body.get("status") or {}
    fresh = {each["type"]: each for each in _dated(spoken, body, now)}
    return {**before, "conditions": list({**_conditions(before), **fresh}.values())}


def _acted(spoken: Mapping[str, Verdict], body: Manifest, now: str) -> Manifest:
    """Return the same, with the generation that this says was acted upon."""
    return {**_amended(spoken, body, now), "observedGeneration": _generation(body)}


def _selector(service: InferenceService) -> str:
    """Return the labels of the pods that `kubectl scale` and autoscalers count.

    That is the pool whose replicas are open; a pool with a number of its own does not scale.
    """
    pool = next((each for each in service.spec.hardware_pools if each.replicas is None), None)
    return ",".join(f"{key}={value}" for key, value in selector(service, pool).items())


def _pool_status(name: str, deployments: Mapping[str, Manifest]) -> Manifest:
    status = deployments.get(name, {}).get("status", {})
    return {
        "name": name,
        "replicas": status.get("replicas", 0),
        "readyReplicas": status.get("readyReplicas", 0),
        "updatedReplicas": status.get("updatedReplicas", 0),
    }


def _dated(spoken: Mapping[str, Verdict], body: Manifest, now: str) -> list[Manifest]:
    """Return conditions; a transition time moves only when the condition's status does."""
    before = _conditions(body.get("status"))
    conditions = []
    for type_, verdict in spoken.items():
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
