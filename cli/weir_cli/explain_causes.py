"""What keeps a service from its work, with the remedy: from conditions and pods to findings. Pure.

The operator's conditions come first, in their words. Pods and containers add what a condition has
no room for: which image, how much of a resource, the line in which an engine said why it ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from weir_cli.explain_facts import Facts, Finding, Replica
from weir_cli.last_words import error_line, names_error
from weir_core.api import labels
from weir_operator.conditions import (
    ADAPTERS,
    MODEL,
    NETWORK,
    POLICIES,
    PREFETCH,
    READY,
    ROUTER,
    SCALING,
    SCHEDULING,
    SPEC,
    WORKLOADS,
    Verdict,
)
from weir_operator.views import Container, Pod

_IMAGE: Final = frozenset(
    {"ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff", "InvalidImageName"}
)
_BY_REASON: Final = {
    **dict.fromkeys(_IMAGE, "ImagePull"),
    "CrashLoopBackOff": "ContainerFailed",
    "CreateContainerConfigError": "ContainerFailed",
    "CreateContainerError": "ContainerFailed",
    "RunContainerError": "ContainerFailed",
    "EngineFailed": "EngineFailed",
    "FetchFailed": "FetchFailed",
    "PrefetchFailed": "PrefetchFailed",
}
_PLACE: Final = re.compile(r"pod (?P<pod>[^,:]+)(?:, container (?P<container>[^:]+))?:")
_LOOKED_AT: Final = (
    *(SPEC, NETWORK, WORKLOADS, MODEL, ROUTER),
    *(PREFETCH, POLICIES, SCHEDULING, ADAPTERS, SCALING),
)
_SHORT: Final = re.compile(r"Insufficient (?P<what>[^\s,.]+(?:\.[^\s,.]+)*)")
_LONGEST: Final = 300
_OFTEN: Final = 3
"""Starts of an engine from which on its ends are told, as `alerts.thresholds.lostEngines`."""
_LATELY_S: Final = 3600.0


class Advice(NamedTuple):
    """What to do about a reason; braces are filled in."""

    text: str
    commands: tuple[str, ...] = ()
    section: str = ""


UNSEEN: Final = Verdict("Unknown", "Pending", "no operator has looked at it yet")
"""Ready of a service before an operator looked at it, as its definition has it."""
_DESCRIBE: Final = "kubectl describe pod -n {namespace} {pod}"
_ENGINE_LOG: Final = "kubectl logs -n {namespace} {pod} -c engine --previous"
_EDIT: Final = "kubectl edit infs -n {namespace} {name}"
_CONDITIONS: Final = "runbook.md#weirservicenotready"
_POLICIES: Final = "runbook.md#weirpoliciesrefused"
_REFUSALS: Final = frozenset({"Refused", "FailedCreate"})

ADVICE: Final = {
    "Unschedulable": Advice(
        "Add a node with what is missing, or make the pool fit: fewer replicas, another "
        "accelerator or nodeSelector, a toleration. The message says if a rollout waits for room.",
        (_DESCRIBE, "kubectl get nodes"),
        "runbook.md#weirreplicaunschedulable",
    ),
    "ImagePull": Advice(
        "Check the image's name and tag, and that the nodes may pull it: imagePullSecrets in "
        "spec.podTemplate for a registry that asks for a login.",
        (_DESCRIBE,),
        "install.md#install",
    ),
    "OOMKilled": Advice(
        "Raise the memory of the container (spec.pools[].resources is the engine's; "
        "spec.podTemplate has the others), or lower what it needs.",
        (_DESCRIBE,),
        "replicas.md#requests",
    ),
    "GpuMemory": Advice(
        "Lower --max-model-len or --gpu-memory-utilization in spec.engine.args.",
        (_ENGINE_LOG, _EDIT),
        _CONDITIONS,
    ),
    "EngineFailed": Advice(
        "The line is the engine's own; the log has what led to it. An argument that it does not "
        "take is in spec.engine.args.",
        (_ENGINE_LOG, _EDIT),
        _CONDITIONS,
    ),
    "EngineKilled": Advice(
        "It named no error. The events tell whether it hung, and its liveness probe had it started "
        "again; else something killed it, such as the node's want of memory.",
        (
            "kubectl get events -n {namespace} --field-selector=involvedObject.name={pod}",
            _ENGINE_LOG,
        ),
        "runbook.md#weirenginelost",
    ),
    "FetchFailed": Advice(
        "Correct spec.model.source, or the Secret that its secretRef names.",
        ("kubectl logs -n {namespace} {pod} -c {container} --previous", _EDIT),
        _CONDITIONS,
    ),
    "ContainerFailed": Advice(
        "Look at the container's log and at its pod.",
        ("kubectl logs -n {namespace} {pod} -c {container} --previous", _DESCRIBE),
        _CONDITIONS,
    ),
    "Quota": Advice(
        "Free what the quota counts, ask for a larger one, or for less: fewer replicas, or lower "
        "spec.pools[].resources.",
        ("kubectl describe quota -n {namespace}",),
        _CONDITIONS,
    ),
    "Admission": Advice(
        "The policy is your cluster's: change the spec so that it agrees, or ask its owner.",
        (_EDIT,),
        "install.md#rights-of-users",
    ),
    "Refused": Advice(
        "The message says what is missing: a right of the operator, or a name that belongs to "
        "another object.",
        ("kubectl describe infs -n {namespace} {name}",),
        _CONDITIONS,
    ),
    "InvalidSpec": Advice(
        "Write what the message says. What ran before runs on.", (_EDIT,), "refused.md"
    ),
    "StuckRollout": Advice(
        "Look at the pods that are not ready; the old replicas serve on.",
        ("kubectl get pods -n {namespace} -l serving.weir.dev/service={name}",),
        "replicas.md#rollouts",
    ),
    "Fallback": Advice(
        "Requests are served, and vLLM's own order holds inside the engines that it names.",
        section="inside-vllm.md#when-weirs-order-is-not-in-use",
    ),
    "Stalled": Advice(
        "Its liveness probe restarts it after a minute. Keep the log, if it comes again.",
        ("kubectl logs -n {namespace} {pod} -c engine",),
        "replicas.md#probes",
    ),
    POLICIES: Advice(
        "Correct the object and field that the message names; the last good version is in force.",
        ("kubectl get itn -n {namespace}",),
        _POLICIES,
    ),
    "PrefetchFailed": Advice(
        "Correct spec.model.source, its Secret, or the claim of spec.model.cache, and delete the "
        "Job: it is made anew. A replica that starts fetches by itself.",
        ("kubectl get jobs,pods -n {namespace} -l app.kubernetes.io/component=prefetch", _EDIT),
        "engine.md#a-cache-that-replicas-share",
    ),
    ADAPTERS: Advice(
        "Correct the adapter's source in spec.model.adapters, or the Secret that it names. The "
        "model and the other adapters are served.",
        ("kubectl logs -n {namespace} {pod} -c {container} --tail=50", _EDIT),
        "engine.md#aliases-and-adapters",
    ),
    "Loading": Advice(
        "Wait; a large model takes its time.",
        ("kubectl logs -n {namespace} {pod} -c engine -f",),
        "replicas.md#start-faster",
    ),
    "Fetching": Advice(
        "Wait; the download's log tells how far it is.",
        ("kubectl logs -n {namespace} {pod} -c model -f",),
        "replicas.md#start-faster",
    ),
    "UnderWay": Advice(
        "Wait; if it lasts, look at the pods.",
        ("kubectl get pods -n {namespace} -l serving.weir.dev/service={name}",),
        _CONDITIONS,
    ),
    "NoOperator": Advice(
        "Start the operator, or look why it does not lead. Replicas that serve go on; edits and "
        "keys wait. Name its namespace with --operator-namespace where it is another.",
        (
            "kubectl get lease,pods -n {operator}",
            "kubectl logs -n {operator} deployment/weir --tail=50",
        ),
        "runbook.md#weirnoleader",
    ),
    "NoKeys": Advice(
        "Make an InferenceTenant with keys, or set spec.admission.anonymousClass to serve requests "
        "without a key.",
        (_EDIT,),
        "keys.md#who-may-call",
    ),
    "LateByQueue": Advice(
        "There is more work than the replicas can do in time. Add replicas, or bound the tenant "
        "that fills the queue.",
        ("kubectl scale infs {name} -n {namespace} --replicas=N",),
        "runbook.md#weirattainmentburn",
    ),
    "LateByEngine": Advice(
        "None of its requests waits in the queue, so the engine itself is late: it loads, or its "
        "prompts take longer than the target allows.",
        ("kubectl get pods -n {namespace} -l serving.weir.dev/service={name}",),
        "runbook.md#weirattainmentburn",
    ),
    "StaleKeys": Advice(
        "For two minutes after a change of keys this is normal. Later, compare what each pod was "
        "told.",
        (
            "kubectl get pods -n {namespace} -l serving.weir.dev/service={name} -o custom-columns="
            r"'POD:.metadata.name,TOLD:.metadata.annotations.serving\.weir\.dev/policies'",
        ),
        "runbook.md#weirstalekeys",
    ),
    "WithoutPeers": Advice(
        "Port 8002 has to be open from pod to pod. The sidecar's log names the peer and why.",
        (
            "kubectl logs -n {namespace} -l serving.weir.dev/service={name} -c sidecar --prefix "
            "--tail=50",
        ),
        "runbook.md#weirfleetwithoutpeers",
    ),
    "Overload": Advice(
        "Add replicas, give the class more time (maxQueueWait), or bound the tenant that fills "
        "the queue.",
        ("kubectl scale infs {name} -n {namespace} --replicas=N",),
        "runbook.md#weirshedding",
    ),
}


def finding(
    reason: str, what: str, facts: Facts, evidence: Sequence[str] = (), where: Where | None = None
) -> Finding:
    """Return a finding with the advice for its kind; `reason` is a key of `ADVICE`."""
    advice = ADVICE[reason]
    found = where or Where()
    pod, log = "POD", ""
    if found.replica is not None:
        pod, log = found.replica.name, found.replica.logs.get(found.container, "")
    local = (f"tail -n 50 {log}",) if log else ()
    fields = {
        "namespace": facts.namespace,
        "name": facts.name,
        "operator": facts.operator_namespace,
        "pod": pod,
        "container": found.container or "CONTAINER",
    }
    return Finding(
        reason,
        " ".join(what.split())[:_LONGEST],
        tuple(evidence),
        advice.text,
        tuple(each.format_map(fields) for each in advice.commands) if facts.namespace else local,
        advice.section,
    )


class Where(NamedTuple):
    """Which container of which replica."""

    replica: Replica | None = None
    container: str = ""


def causes(facts: Facts) -> Iterator[Finding]:
    """Yield what the conditions say is wrong, the cause of Ready first, each trouble once."""
    conditions = facts.conditions
    ready = conditions.get(READY, UNSEEN)
    troubled = [
        (type_, conditions[type_])
        for type_ in _LOOKED_AT
        if type_ in conditions and conditions[type_].is_trouble
    ]
    troubled.sort(key=lambda each: each[1].reason != ready.reason)
    is_said = bool(troubled) and troubled[0][1].reason == ready.reason
    if not ready.holds and not is_said and ready.reason != UNSEEN.reason:
        yield _under_way(ready, facts)
    said: set[str] = set()
    for type_, verdict in troubled:
        words = verdict.message.partition(": ")[2] or verdict.message
        if words not in said:
            said.add(words)
            yield _cause(type_, verdict, facts)


def _cause(type_: str, verdict: Verdict, facts: Facts) -> Finding:
    reason, message = verdict.reason, verdict.message
    line = (f"{type_} is {verdict.status}, {reason}: {message}",)
    if type_ == POLICIES:
        return finding(POLICIES, _first_sentence(message), facts, line)
    if type_ == ADAPTERS:
        where = Where(_lacking(message, facts), labels.ADAPTERS_CONTAINER)
        return finding(ADAPTERS, f"adapter {message}", facts, line, where)
    if reason == "Unschedulable":
        return _unschedulable(message, facts, line)
    if reason in _REFUSALS or reason in {"InvalidSpec", "Fallback"}:
        kind = _kind_of_refusal(message) if reason in _REFUSALS else reason
        return finding(kind, _first_sentence(message), facts, line)
    found = _container_in(message, facts)
    if found is not None:
        return _container(found, facts, line)
    kind = _BY_REASON.get(reason, "StuckRollout")
    what = f"its rollout is stuck: {message}" if kind == "StuckRollout" else message
    return finding(kind, what, facts, line, _named_in(message))


def _lacking(message: str, facts: Facts) -> Replica | None:
    """Return the replica of which a condition says that it lacks an adapter."""
    return next((each for each in facts.replicas if f"; {each.name}: " in message), None)


def _named_in(message: str) -> Where:
    """Return the container of which a condition speaks, where its pod was not read."""
    found = _PLACE.match(message)
    return Where(Replica(found["pod"]), found["container"] or "") if found else Where()


def _kind_of_refusal(message: str) -> str:
    if "exceeded quota" in message or "failed quota" in message:
        return "Quota"
    if any(each in message for each in ("admission webhook", "ValidatingAdmissionPolicy")):
        return "Admission"
    return "Refused"


def _under_way(ready: Verdict, facts: Facts) -> Finding:
    line = (f"{READY} is {ready.status}, {ready.reason}: {ready.message}",)
    stalled = next((each for each in facts.replicas if is_stalled(each)), None)
    if stalled is not None:
        return stalled_finding(stalled, facts)
    waiting = next((each for each in facts.replicas if _is_unready(each)), None)
    if waiting is not None and (engine := _started_again(waiting)) is not None:
        return _container((waiting, engine), facts, line)
    kind = ready.reason if ready.reason in ADVICE else "UnderWay"
    return finding(kind, ready.message, facts, line, Where(waiting))


def _is_unready(replica: Replica) -> bool:
    pod = replica.pod
    return pod is not None and not (pod.is_ready or pod.is_gateway or pod.leaves)


def _started_again(replica: Replica) -> Container | None:
    """Return the engine of a replica that loads once more, because it ended badly lately."""
    ago_s = replica.engine_ended_s
    engine = None if replica.pod is None else replica.pod.engine
    if engine is None or (ago_s is not None and ago_s >= _LATELY_S):
        return None
    return engine if engine.ended and engine.ended.exit_code else None


def is_stalled(replica: Replica) -> bool:
    """Tell whether an engine holds requests and does nothing, as its sidecar says."""
    return isinstance(replica.state, dict) and replica.state.get("engine") == "stalled"


def stalled_finding(replica: Replica, facts: Facts) -> Finding:
    """Return what there is to say of an engine that is stalled."""
    what = f"the engine of {replica.name} is stalled: it holds requests and makes no progress"
    seen = (f"the sidecar of {replica.name}: engine stalled, {_held(replica)} requests held",)
    return finding("Stalled", what, facts, seen, Where(replica, labels.ENGINE_CONTAINER))


def _held(replica: Replica) -> object:
    return replica.state.get("running", "some")


# ---- no node


def _unschedulable(message: str, facts: Facts, line: tuple[str, ...]) -> Finding:
    waiting = [each for each in facts.replicas if each.pod and each.pod.unschedulable]
    where = _named_in(message)
    named = where.replica.name if where.replica is not None else ""
    waiting.sort(key=lambda each: each.name != named)  # the others may be gateways
    where = Where(waiting[0]) if waiting else where
    pod = waiting[0].pod if waiting else None
    return finding("Unschedulable", no_node(message, pod), facts, line, where)


def no_node(message: str, pod: Pod | None) -> str:
    """Return in short why no node takes a pod, of the Kubernetes scheduler's message."""
    short = list(dict.fromkeys(each["what"] for each in _SHORT.finditer(message)))
    if short:
        return " or ".join(f"no node has {_amount(each, pod)}" for each in short)
    if "didn't match Pod's node affinity/selector" in message:
        return "no node matches its nodeSelector or affinity"
    if "untolerated taint" in message:
        return "the nodes have taints that it does not tolerate"
    return _first_sentence(message.partition(": ")[2] or message)


def _amount(resource: str, pod: Pod | None) -> str:
    asked = [] if pod is None else list(pod.spec.requests(resource).values())
    if not asked:
        return f"enough free {resource}"
    if all(each.isdecimal() for each in asked):
        return f"{sum(map(int, asked))} free {resource}"
    return f"{' + '.join(asked)} of free {resource}"


# ---- containers


def _container_in(message: str, facts: Facts) -> tuple[Replica, Container] | None:
    """Return the container that a condition speaks of: it names the pod, and perhaps it."""
    for replica in facts.replicas:
        place = _PLACE.match(message)
        if replica.pod is None or place is None or place["pod"] != replica.name:
            continue
        failed = [each for each in replica.pod.containers if _is_in_trouble(each)]
        named = [each for each in failed if each.name == place["container"]]
        if found := named or failed:
            return replica, found[0]
    return None


def _is_in_trouble(container: Container) -> bool:
    return container.has_failed or (
        container.state.waiting is not None
        and container.state.waiting.reason not in {"ContainerCreating", "PodInitializing", ""}
    )


def _container(found: tuple[Replica, Container], facts: Facts, line: Sequence[str]) -> Finding:
    replica, container = found
    where = Where(replica, container.name)
    waiting = container.state.waiting
    if waiting is not None and waiting.reason in _IMAGE:
        image = replica.images.get(container.name, "")
        what = f"the image {image} of container {container.name} cannot be pulled"
        return finding("ImagePull", what, facts, line, where)
    if container.ended is not None and container.ended.reason == "OOMKilled":
        what = f"container {container.name} of pod {replica.name} was killed for its memory"
        return finding("OOMKilled", what, facts, line, where)
    lines = replica.last_lines.get(container.name) or container.last_words.splitlines()
    return ended(where, lines, facts, line)


def ended_often(facts: Facts) -> Iterator[Finding]:
    """Yield why engines end that run now, after many ends, the last one within the hour.

    Kubernetes tells how many there were, and of the last alone when it was.
    """
    for replica in facts.replicas:
        ago_s = replica.engine_ended_s
        engine = None if replica.pod is None else replica.pod.engine
        if engine is None or ago_s is None or ago_s >= _LATELY_S:
            continue
        if engine.is_running and engine.restart_count >= _OFTEN:
            seen = (
                f"the engine of {replica.name} was started again {engine.restart_count} times, "
                f"and ended last {ago_s:.0f} s ago"
            )
            yield _ended_again(replica, engine, facts, seen)


def _ended_again(replica: Replica, engine: Container, facts: Facts, seen: str) -> Finding:
    found = _container((replica, engine), facts, (seen,))
    if found.reason == "EngineFailed" and not names_error([found.what]):
        what = f"the engine of {replica.name} ends again and again: {engine.last_words}"
        return finding("EngineKilled", what, facts, (seen,), Where(replica, engine.name))
    return found._replace(section="runbook.md#weirenginelost")


def ended(where: Where, lines: Sequence[str], facts: Facts, line: Sequence[str]) -> Finding:
    """Return why a process ended, as far as its last lines tell."""
    cause = error_line(lines)
    evidence = line if any(cause in each for each in line) else (*line, f"its log: {cause}")
    if where.container == labels.MODEL_CONTAINER:
        return finding("FetchFailed", f"its model was not fetched: {cause}", facts, evidence, where)
    if where.container != labels.ENGINE_CONTAINER:
        what = f"container {where.container} failed: {cause}"
        return finding("ContainerFailed", what, facts, evidence, where)
    what = f"the engine ended: {cause}"
    kind = "GpuMemory" if "out of memory" in cause else "EngineFailed"
    return finding(kind, what, facts, evidence, where)


def _first_sentence(message: str) -> str:
    """Return what comes before the first `; ` or `. `: the rest is advice, or another thing."""
    return re.split(r"; |\. ", message.strip(), maxsplit=1)[0]
