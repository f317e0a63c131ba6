"""From what was read of a service to what `weir explain` says of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Final

from weir_cli.explain_causes import (
    UNSEEN,
    Where,
    causes,
    ended,
    ended_often,
    finding,
    is_stalled,
    stalled_finding,
)
from weir_cli.explain_facts import Explanation, Facts, Finding, Health, Refusal, Replica
from weir_cli.explain_load import overload, remarks, without_peers
from weir_cli.last_words import names_error
from weir_cli.replica import Phase
from weir_core.api import labels
from weir_operator.conditions import READY, Verdict

_SERVING: Final = "Serving"
_WAKING: Final = "Waking"
_ASLEEP: Final = "Asleep"
_NO_REPLICA: Final = frozenset({"ScaledToZero", _ASLEEP})
_CLOCKS_DIFFER_S: Final = 60.0
"""Between this machine and the operator's, at most."""
_MOST_EVENTS: Final = 3
_LESS_THAN_READY: Final = {
    Phase.FETCHING.value: "Fetching",
    Phase.LOADING.value: "Loading",
}


def explain(facts: Facts) -> Explanation:
    """Return what there is to say."""
    if facts.refusal is not None:
        return _refused(facts, facts.refusal)
    ready = _ready(facts)
    serves = ready.holds and ready.reason == _SERVING
    found = list(_findings(facts, ready, serves))
    if found and not serves:
        found[0] = _with_events(found[0], facts)
    health = Health.UNHEALTHY if found or not ready.holds else Health.HEALTHY
    noted = tuple(remarks(facts))
    return Explanation(
        facts.name,
        facts.where,
        health,
        _sentence(facts, ready, found),
        tuple(found),
        noted,
        facts.unseen,
    )


def _ready(facts: Facts) -> Verdict:
    """Return whether requests are answered: the operator's word, or that of `weir up`."""
    if facts.namespace:
        return facts.conditions.get(READY, UNSEEN)
    if facts.asleep:
        return Verdict("True", _ASLEEP, facts.asleep)
    replicas = [each for each in facts.replicas if each.phase]
    ready = [each for each in replicas if each.phase == Phase.READY.value]
    said = f"{len(ready)} of {len(replicas)} replicas take requests"
    return Verdict("True", _SERVING, said) if ready else Verdict("False", "NoReadyReplica", said)


def _sentence(facts: Facts, ready: Verdict, found: list[Finding]) -> str:
    name = facts.name
    if found and ready.holds:
        return f"{name} {_doing(ready)} ({ready.message}), but {found[0].what}"
    if found:
        return f"{name} is not ready: {found[0].what}"
    doing = "is healthy" if ready.reason == _SERVING else _doing(ready)
    return f"{name} {doing}: {ready.message}"


def _doing(ready: Verdict) -> str:
    """Return what a service does that is ready."""
    if ready.reason in _NO_REPLICA:
        return "is asleep on purpose"
    return "wakes" if ready.reason == _WAKING else "serves"


def _findings(facts: Facts, ready: Verdict, serves: bool) -> Iterator[Finding]:
    yield from _operator(facts) if facts.namespace else _processes(facts)
    if serves:
        serving = [each for each in facts.replicas if each.phase in ("", Phase.READY.value)]
        yield from (stalled_finding(each, facts) for each in serving if is_stalled(each))
        yield from ended_often(facts)
    if facts.namespace:
        yield from causes(facts)
    if serves:
        yield from overload(facts)
        yield from without_peers(facts)
    if serves or ready.reason in {_ASLEEP, _WAKING}:  # without a key nothing wakes it
        yield from _no_keys(facts)


# ---- the operator


def _operator(facts: Facts) -> Iterator[Finding]:
    """Yield that no operator looks at the service, if so."""
    lease = facts.lease
    known = facts.conditions.get(READY, UNSEEN).reason != UNSEEN.reason
    expired = lease is not None and lease.age_s > _CLOCKS_DIFFER_S + 3 * lease.duration_s
    waits = facts.is_behind or not known
    if lease is not None and lease.holder and expired:
        seen = f"Lease weir-operator: {lease.holder} renewed it last {lease.age_s:.0f} s ago"
        yield finding("NoOperator", "no operator leads", facts, (seen,))
    elif lease is not None and lease.duration_s and not lease.holder:
        seen = (
            f"Lease weir-operator: its holder gave it up {lease.age_s:.0f} s ago, and none has it"
        )
        yield finding("NoOperator", "no operator leads", facts, (seen,))
    elif waits and lease is not None and not lease.holder:
        seen = f"no operator holds a Lease in namespace {facts.operator_namespace}"
        yield finding("NoOperator", "no operator has looked at its spec", facts, (seen,))
    elif waits and not known:
        what = "no operator has looked at it yet"
        yield finding("NoOperator", what, facts, ("it has no condition of an operator's",))


def _no_keys(facts: Facts) -> Iterator[Finding]:
    if facts.body is None or facts.tenants != 0:
        return
    admission = (facts.body.get("spec") or {}).get("admission") or {}
    if not admission.get("anonymousClass"):
        what = "it serves no client: there is no key, and no class for requests without one"
        seen = (
            f"no InferenceTenant in namespace {facts.namespace}",
            "spec.admission.anonymousClass is not set",
        )
        yield finding("NoKeys", what, facts, seen)


# ---- the processes of `weir up`


def _processes(facts: Facts) -> Iterator[Finding]:
    """Yield what keeps replicas of `weir up` from serving: processes that ended, or load."""
    for replica in facts.replicas:
        if replica.phase in ("", Phase.READY.value, Phase.DRAINING.value):
            continue
        if is_stalled(replica):
            yield stalled_finding(replica, facts)
            continue
        where = _ended_process(replica)
        seen = f"{replica.name}: {replica.phase}, {replica.restarts} restarts"
        if where is not None:
            yield ended(where, replica.last_lines[where.container], facts, (seen,))
        else:
            kind = _LESS_THAN_READY.get(replica.phase, "UnderWay")
            what = f"{replica.name} is {replica.phase}"
            yield finding(kind, what, facts, (seen,), Where(replica, labels.ENGINE_CONTAINER))


def _ended_process(replica: Replica) -> Where | None:
    """Return the process that ended, of a replica that starts it again, or waits to."""
    if not (replica.restarts or _restarts(replica)):
        return None
    if replica.phase == Phase.LOADING.value:  # its log goes on behind what it said when it ended
        engine = labels.ENGINE_CONTAINER
        return Where(replica, engine) if names_error(replica.last_lines.get(engine, ())) else None
    order = (labels.MODEL_CONTAINER, labels.ENGINE_CONTAINER, labels.SIDECAR_CONTAINER)
    names = [each for each in order if replica.last_lines.get(each)]
    return Where(replica, names[0]) if names else None


def _restarts(replica: Replica) -> bool:
    return replica.phase == Phase.RESTARTING.value


# ---- around it


def _with_events(first: Finding, facts: Facts) -> Finding:
    """Add what Kubernetes warned of and was not said yet, the newest last."""
    known = "\n".join(first.evidence)
    fresh: dict[str, None] = {}
    for each in facts.events:
        told = each.message.partition(" is False: ")[2] or each.message
        if told and told not in known:
            fresh[f"event {each.reason} of {each.about}: {each.message}"] = None
    return first._replace(evidence=(*first.evidence, *list(fresh)[-_MOST_EVENTS:]))


def _refused(facts: Facts, refusal: Refusal) -> Explanation:
    made = {
        Refusal.UNKNOWN_NAME: _unknown_name,
        Refusal.DEFINITIONS_MISSING: _definitions_missing,
        Refusal.FORBIDDEN: _forbidden,
        Refusal.NO_CLUSTER: _no_cluster,
    }[refusal]
    found = made(facts)
    verdict = found.what
    return Explanation(
        facts.name, facts.where, Health.UNKNOWN, verdict, (found,), unseen=facts.unseen
    )


def _unknown_name(facts: Facts) -> Finding:
    near = get_close_matches(facts.name, facts.names, n=3, cutoff=0.5)
    listed = near or sorted(facts.names)[:5]
    hint = f"did you mean {' or '.join(listed)}?" if near else ""
    if not hint:
        hint = f"there are: {', '.join(listed)}" if listed else "there is none at all"
    what = f"there is no service {facts.name} in {facts.where}; {hint}"
    commands = ("kubectl get infs --all-namespaces",) if facts.namespace else ("weir status",)
    advice = "Name the namespace with -n where it is another." if facts.namespace else ""
    return Finding(Refusal.UNKNOWN_NAME.value, what, (), advice, commands)


def _definitions_missing(facts: Facts) -> Finding:
    return Finding(
        Refusal.DEFINITIONS_MISSING.value,
        f"{facts.where} knows no InferenceServices: Weir's definitions are not installed",
        (facts.refused,),
        "Install the chart, or its definitions where they were left out; or ask another cluster "
        "with --context.",
        ("kubectl apply --server-side -f helm/weir/crds",),
        "install.md#install",
    )


def _forbidden(facts: Facts) -> Finding:
    return Finding(
        Refusal.FORBIDDEN.value,
        f"you may not read InferenceServices in {facts.where}",
        (facts.refused,),
        "Ask for the role view of the namespace.",
        (f"kubectl auth can-i get infs -n {facts.namespace}",),
        "install.md#rights-of-users",
    )


def _no_cluster(facts: Facts) -> Finding:
    return Finding(
        Refusal.NO_CLUSTER.value,
        f"cannot tell how {facts.name} is: no cluster answers",
        (facts.refused,),
        "Say which cluster: KUBECONFIG, or --context. A `weir up` on this machine is asked where "
        "it serves the name, and neither -n nor --context is given.",
        ("kubectl cluster-info", "weir status"),
    )
