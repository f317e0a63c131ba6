"""What was observed, as the status of the resource. Pure: objects in, status out.

The parts say their conditions; here are those that sum up. SpecValid: the spec can be acted upon.
Ready: requests to the service's address are answered, or none are asked for; those that wait at the
gateways for a first replica are answered, unless something is wrong with it. So Ready holds through
a rollout and through an invalid edit, and WorkloadsReady says when a rollout is complete.
Reconciling and Stalled are there only while they are true, for tools that read them as kstatus
does: something is on its way, or only a person can help.

Two statuses that say the same are equal, times included, so a pass over a world that did not
change writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from weir_core.api.labels import COMPONENT, GATEWAY, POOL
from weir_core.errors import ClusterRefuses, InvalidSpec, KindMissing, PredecessorLeaving
from weir_operator.conditions import (
    LONGEST_MESSAGE,
    MODEL,
    NETWORK,
    READY,
    RECONCILING,
    ROUTER,
    SPEC,
    STALLED,
    WORKLOADS,
    Verdict,
)
from weir_operator.observed import Observed
from weir_operator.render import Manifest, service_url
from weir_operator.render.naming import selector
from weir_operator.starts import Start, newest
from weir_operator.views import DeploymentStatus

_OLDER = "upgrade the operator, or take them out"
_OF_POOLS: Final = re.compile(rf"{re.escape(POOL)}(=(?P<one>[^,]+)| in \((?P<some>[^)]+)\))")
COUNTS: Final = ("replicas", "readyReplicas", "pools", "selector")
"""What a status says of workloads."""
_SUMS = (READY, SPEC, RECONCILING, STALLED)


def observed(seen: Observed, spoken: Mapping[str, Verdict], now: str) -> Manifest:
    """Return the status of a service.

    Args:
        seen: What a pass has seen of it.
        spoken: What the parts say; a condition that is not among it stays as it was.
        now: RFC 3339 time for conditions that changed.
    """
    before = _conditions(seen.body.get("status"))
    unchanged = {
        type_: Verdict(each["status"], each["reason"], each["message"])
        for type_, each in before.items()
        if type_ not in (*spoken, *_SUMS)
    }
    conditions = {**_sums(seen, {**unchanged, **spoken}), **spoken}
    return {
        "observedGeneration": _generation(seen.body),
        "conditions": [*_dated(conditions, seen.body, now), *(before[each] for each in unchanged)],
        **_replicas(seen),
        "selector": _selector(seen),
        "url": service_url(seen.owner),
    }


def failure(error: Exception | None) -> Verdict | None:
    """Return what a part says that something kept from its work; None for what may pass unseen."""
    match error:
        case InvalidSpec():
            return Verdict("False", "InvalidSpec", str(error))
        case PredecessorLeaving():
            return Verdict("False", "WaitingForPredecessor", str(error))
        case KindMissing():
            return Verdict("False", "LeaderWorkerSetMissing", str(error))
        case ClusterRefuses():
            return Verdict("False", "Refused", str(error))
        case _:
            return None


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
    return Verdict(condition["status"], condition["reason"]).is_trouble


def _sums(seen: Observed, spoken: Mapping[str, Verdict]) -> dict[str, Verdict]:
    spec = _spec(seen)
    ready = _ready(seen, {SPEC: spec, **spoken})
    summed = {READY: ready, SPEC: spec}
    workloads = spoken.get(WORKLOADS, Verdict("Unknown", "Waiting"))
    stuck = [each for each in (spec, spoken.get(NETWORK), workloads) if each and each.is_trouble]
    if stuck:
        summed[STALLED] = stuck[0]._replace(status="True")
    elif not (workloads.holds and ready.holds):
        cause = ready if workloads.holds else workloads
        summed[RECONCILING] = Verdict("True", cause.reason, cause.message)
    return summed


def _spec(seen: Observed) -> Verdict:
    found = _spec_alone(seen)
    if not seen.remark:
        return found
    return found._replace(message=f"{found.message}; {seen.remark}"[:LONGEST_MESSAGE])


def _spec_alone(seen: Observed) -> Verdict:
    if seen.wrong is not None:
        return Verdict("False", "InvalidSpec", str(seen.wrong))
    if seen.unknown:
        said = (
            f"this operator knows no {', '.join(seen.unknown)}, and all else is in force; {_OLDER}"
        )
        return Verdict("True", "UnknownFields", said[:LONGEST_MESSAGE])
    return Verdict("True", "Valid", "the spec is in force")


def _ready(seen: Observed, spoken: Mapping[str, Verdict]) -> Verdict:
    router = spoken.get(ROUTER, Verdict("Unknown", "Waiting"))
    if router.holds:
        return router
    if seen.scaled_to_zero and seen.gateway is None and spoken[SPEC].holds:
        return Verdict("True", "ScaledToZero", "no replicas are asked for, and none answer")
    causes = (spoken.get(each) for each in (SPEC, NETWORK, WORKLOADS, MODEL, ROUTER))
    failed = [each for each in causes if each is not None and not each.holds]
    if not failed:
        return Verdict("Unknown", "Waiting", "nothing is known of its pods yet")
    cause = next((each for each in failed if each.is_trouble), failed[0])
    return Verdict("False", cause.reason, cause.message)


def _essence(condition: Mapping[str, Any] | None) -> tuple[Any, Any] | None:
    return None if condition is None else (condition["status"], condition["reason"])


def _conditions(status: Manifest | None) -> dict[str, Manifest]:
    """Return a status's conditions by type."""
    return {each["type"]: each for each in (status or {}).get("conditions", ())}


def _replicas(seen: Observed) -> Manifest:
    """Return the counts; `replicas` is what autoscalers compare with the pods of the selector."""
    deployments = {**seen.leaving, **seen.deployments}
    if seen.service is None:
        names = sorted(deployments)
    else:
        of_the_spec = [pool.name for pool in seen.service.spec.hardware_pools]
        names = [*of_the_spec, *sorted(seen.leaving)]
    found = {name: deployments[name].status if name in deployments else None for name in names}
    pools = [
        _pool_status(name, status or DeploymentStatus(), newest(seen, name))
        for name, status in found.items()
    ]
    scaled = _pools_that_scale(seen)
    counted = [each for each in pools if not scaled or each["name"] in scaled]
    return {
        "replicas": _sum(counted, "replicas"),
        "readyReplicas": _sum(pools, "readyReplicas"),
        "pools": pools,
    }


def _sum(pools: Iterable[Manifest], count: str) -> int:
    return sum(int(each[count]) for each in pools)


def _selector(seen: Observed) -> str:
    """Return the labels of the pods that `kubectl scale` and autoscalers count.

    An HPA takes the mean over them, to which gateways, that have no engine, would add nothing.
    """
    pools = _pools_that_scale(seen)
    chosen = selector(seen.owner, pools[0] if len(pools) == 1 else None)
    text = ",".join(f"{key}={value}" for key, value in chosen.items())
    if not pools:
        return f"{text},{COMPONENT}!={GATEWAY}"
    return f"{text},{POOL} in ({','.join(pools)})" if len(pools) > 1 else text


def _pools_that_scale(seen: Observed) -> Sequence[str]:
    """Return the pool whose replicas are open, and those that serve until it does.

    An HPA multiplies by the ready pods of the selector: of a pool that takes over replica by
    replica these are few, and it would shrink the service. None are returned where several pools
    are open, or none.
    """
    if seen.service is None:  # it was written when the spec was last in order
        before = str(seen.body.get("status", {}).get("selector", ""))
        found = _OF_POOLS.search(before)
        return (found["one"] or found["some"]).split(",") if found else ()
    scale = seen.service.spec.open_pools
    return (scale[0].name, *sorted(seen.leaving)) if len(scale) == 1 else ()


def _pool_status(name: str, status: DeploymentStatus, start: Start | None) -> Manifest:
    counts = {
        "name": name,
        "replicas": status.replicas,
        "readyReplicas": status.ready_replicas,
        "updatedReplicas": status.updated_replicas,
    }
    if start is None:
        return counts
    return counts | {
        "startSeconds": start.took_s,
        "startedAt": start.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
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
