"""What a service's Deployments and pods say about it, one condition at a time. Pure.

WorkloadsReady: every pool has the pods it should, of the newest template. ModelReady: an engine
has the model loaded. RouterReady: a sidecar takes requests. ScalingReady: the number of replicas
follows the spec. PoliciesReady: sidecars are told of classes, tenants and modes as they are
written; where it is False, the last good version of what is broken is in force. SchedulingReady:
Weir's scheduler orders the engines' steps; where it is False, vLLM's own policy does. The service
works without these two, so they have no part in Ready. Ready sums up: requests to the service's
address are answered. So Ready holds through a rollout, and WorkloadsReady says when it is
complete.

Each verdict that something is wrong quotes whoever knows best: the kubelet, the scheduler, or the
last lines a container wrote before it died.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.problems import Problem
from weir_core.wire.sidecar_state import shortfall
from weir_core.wire.steps import Facts
from weir_operator.render import Manifest
from weir_operator.render.naming import pool_of

READY: Final = "Ready"
WORKLOADS: Final = "WorkloadsReady"
MODEL: Final = "ModelReady"
ROUTER: Final = "RouterReady"
SCALING: Final = "ScalingReady"
POLICIES: Final = "PoliciesReady"
SCHEDULING: Final = "SchedulingReady"

UNDER_WAY: Final = frozenset(
    {
        "Fetching",
        "Loading",
        "NoReadyReplica",
        "Progressing",
        "ScaledToZero",
        "Waiting",
        "WaitingForPredecessor",
    }
)
"""Reasons that time alone will cure; all others of a False condition are for a person."""

_STUCK: Final = frozenset(
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

_LONGEST_MESSAGE: Final = 1000
_LONGEST_REASON: Final = 200
"""Of one engine, in its own words; so that one cannot hide the others."""
_PODS_NAMED: Final = 3

Said = Facts | str
"""What an engine is, or why that is not known."""


_NOTHING_TOLD: Final = PolicyDocument()


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
    policies: PolicyDocument = _NOTHING_TOLD
    """What the sidecars are told."""
    problems: Sequence[Problem] = ()
    """What is not in it as it was written."""
    engines: Mapping[str, Said] = field(default_factory=dict)
    """By the name of each pod that takes requests."""
    leaving: Mapping[str, Manifest] = field(default_factory=dict)
    """Deployments of pools the spec no longer names; they serve until those it names do."""

    @property
    def staying(self) -> list[Manifest]:
        """The pods that are not on their way out."""
        return [pod for pod in self.pods if "deletionTimestamp" not in pod["metadata"]]

    @property
    def of_the_spec(self) -> list[Manifest]:
        """Those of them whose pool the spec names."""
        return [pod for pod in self.staying if pool_of(pod) in {"", *self.deployments}]

    @property
    def left_over(self) -> list[Manifest]:
        """Those of them that serve though the spec no longer names their pool."""
        return [pod for pod in self.staying if pool_of(pod) in self.leaving]

    @property
    def wanted(self) -> int:
        """Replicas asked for, over all pools."""
        return sum(each["spec"].get("replicas", 1) for each in self.deployments.values())


def verdicts(service: InferenceService, seen: Observed) -> dict[str, Verdict]:
    """Return every condition's verdict, Ready first."""
    others = {
        WORKLOADS: _workloads(seen),
        MODEL: _model(service, seen),
        ROUTER: _router(seen),
        SCALING: _scaling(service, seen),
        POLICIES: policies_verdict(service.metadata.name, seen),
        SCHEDULING: _scheduling(seen),
    }
    return {READY: _ready(seen, others), **others}


def _ready(seen: Observed, others: Mapping[str, Verdict]) -> Verdict:
    if seen.wanted == 0:
        return Verdict("False", "ScaledToZero", "the spec asks for no replicas")
    if others[ROUTER].status == "True":
        return Verdict("True", "Serving", others[ROUTER].message)
    failed = [others[each] for each in (WORKLOADS, MODEL, ROUTER) if others[each].status != "True"]
    wrong = (each for each in failed if each.reason not in UNDER_WAY)
    cause = next(wrong, failed[0])
    return Verdict("False", cause.reason, cause.message)


def _workloads(seen: Observed) -> Verdict:
    found = _rollout(seen)
    if not seen.leaving:
        return found
    names = ", ".join(sorted(seen.leaving))
    what = f"no longer in the spec, but serving until all of its pools are available: {names}"
    return found._replace(message=f"{found.message}; {what}")


def _rollout(seen: Observed) -> Verdict:
    found = _stuck_pod(seen.of_the_spec) or _stuck_deployment(seen.deployments)
    if found is not None:
        return found
    for pool, deployment in seen.deployments.items():
        status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
        if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
            return Verdict("False", "Progressing", f"pool {pool}: the rollout has begun")
        updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
        if min(updated, available) < wanted or status.get("replicas", 0) > wanted:
            return Verdict(
                "False",
                "Progressing",
                f"pool {pool}: {available} of {wanted} replicas available, {updated} of the "
                "newest template",
            )
    return Verdict("True", "Available", "every pool has its replicas")


def _stuck_pod(pods: Iterable[Manifest]) -> Verdict | None:
    """Return what keeps a pod from running, if something does."""
    for pod in pods:
        name = pod["metadata"]["name"]
        for container in _containers(pod):
            waiting = container.get("state", {}).get("waiting", {})
            if waiting.get("reason") in _STUCK:
                where = f"pod {name}, container {container['name']}"
                return _wrong(waiting["reason"], where, _last_words(container))
        for condition in pod.get("status", {}).get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                return _wrong("Unschedulable", f"pod {name}", condition.get("message", ""))
    return None


def _stuck_deployment(deployments: Mapping[str, Manifest]) -> Verdict | None:
    """Return what keeps a Deployment from making pods, or from getting on."""
    for pool, deployment in deployments.items():
        for condition in deployment.get("status", {}).get("conditions", ()):
            state = condition["type"], condition["status"]
            if state in {("ReplicaFailure", "True"), ("Progressing", "False")}:
                return _wrong(condition["reason"], f"pool {pool}", condition.get("message", ""))
    return None


def _model(service: InferenceService, seen: Observed) -> Verdict:
    if seen.wanted == 0:
        return Verdict("Unknown", "ScaledToZero", "no engine runs")
    engines = list(_named(seen.staying, labels.ENGINE_CONTAINER))
    loaded = sum(1 for _, engine in engines if engine.get("started"))
    if loaded:
        return Verdict("True", "Loaded", f"loaded by {loaded} of {len(engines)} engines")
    fetchers = list(_named(seen.staying, labels.MODEL_CONTAINER))
    for reason, containers in (("FetchFailed", fetchers), ("EngineFailed", engines)):
        for pod, container in containers:
            if _failed(container):
                return _wrong(reason, f"pod {pod}", _last_words(container))
    if any(_running(engine) for _, engine in engines):
        return Verdict("False", "Loading", "the engine is loading the model")
    if any(_running(fetcher) for _, fetcher in fetchers):
        return Verdict("False", "Fetching", f"fetching {service.spec.model.source.uri}")
    return Verdict("False", "Waiting", "no engine has started yet")


def _router(seen: Observed) -> Verdict:
    if seen.wanted == 0:
        return Verdict("False", "ScaledToZero", "no sidecar runs")
    ready = _ready_replicas(seen.of_the_spec, seen.deployments)
    left_over = _ready_replicas(seen.left_over, seen.leaving)
    if ready or left_over:
        said = f"{ready} of {seen.wanted} replicas take requests"
        more = f", and {left_over} of pools no longer in the spec" if left_over else ""
        return Verdict("True", "Serving", said + more)
    return Verdict("False", "NoReadyReplica", "no replica takes requests")


def _ready_replicas(pods: Sequence[Manifest], deployments: Mapping[str, Manifest]) -> int:
    """Return how many of these Deployments' pods take requests.

    A Deployment counts its own alone: pods of an earlier service of this name, which are about to
    go, have the same labels. The pods are the newer news.
    """
    counted: int = sum(
        each.get("status", {}).get("readyReplicas", 0) for each in deployments.values()
    )
    return min(counted, sum(map(is_ready, pods)))


def _scaling(service: InferenceService, seen: Observed) -> Verdict:
    scaling = service.spec.scaling
    if scaling is None:
        return Verdict("True", "Fixed", "the spec gives the number of replicas")
    return Verdict(
        "False",
        "NotSupported",
        f"this version does not scale by load; replicas: {seen.wanted}, or what an autoscaler of "
        f"the Deployment sets from {max(scaling.min_replicas, 1)} to {scaling.max_replicas}",
    )


def policies_verdict(service: str, seen: Observed) -> Verdict:
    """Return what to say of classes, tenants and modes; no Deployments need be known for it."""
    if seen.problems:
        said = "; ".join(str(problem) for problem in seen.problems)
        return Verdict("False", seen.problems[0].reason, said[:_LONGEST_MESSAGE])
    deaf = [pod for pod in seen.staying if not is_told(pod)]
    if deaf:
        return Verdict(
            "False",
            "RestartNeeded",
            f"{len(deaf)} of {len(seen.staying)} pods are of an older Weir and know of no classes "
            f"or tenants; to replace them: kubectl annotate infs {service} "
            f'{labels.RESTARTED_AT}="$(date -u +%FT%TZ)" --overwrite',
        )
    classes, tenants = len(seen.policies.classes), len(seen.policies.tenants)
    said = f"{classes} classes" if classes else "the built-in classes"
    return Verdict("True", "Applied", f"{said}, {tenants} tenants")


def _scheduling(seen: Observed) -> Verdict:
    """Tell whether Weir's scheduler orders what the engines do; silence is no fallback."""
    if seen.wanted == 0:
        return Verdict("Unknown", "ScaledToZero", "no engine runs")
    engines = seen.engines
    if not engines:
        return Verdict("Unknown", "Waiting", "no replica takes requests yet")
    without: dict[str, list[str]] = {}
    silent: dict[str, list[str]] = {}
    for pod, said in engines.items():
        if isinstance(said, str):
            silent.setdefault(said, []).append(pod)
        elif why := shortfall(said):
            without.setdefault(f"{_policy(said)} instead, because {why}", []).append(pod)
    if without:
        count = f"{_count(without)} of {len(engines)} engines run without Weir's scheduler"
        return Verdict("False", "Fallback", _by_pods(count, without))
    if silent:
        count = f"{_count(silent)} of {len(engines)} sidecars do not tell how their engine runs"
        return Verdict("Unknown", "Unreachable", _by_pods(count, silent))
    return _ordered(engines)


def _ordered(engines: Mapping[str, Said]) -> Verdict:
    passing = sum(1 for said in engines.values() if isinstance(said, Facts) and said.kind != "weir")
    if passing:
        count = f"{passing} of {len(engines)} engines have no decodes to protect"
        return Verdict("True", "NotNeeded", f"{count}: they compute embeddings")
    return Verdict("True", "Weir", f"Weir's scheduler orders the steps of {len(engines)} engines")


def _policy(facts: Facts) -> str:
    return f"vLLM's own {facts.kind} policy"


def _count(pods_by_reason: Mapping[str, Sequence[str]]) -> int:
    return sum(map(len, pods_by_reason.values()))


def _by_pods(count: str, pods_by_reason: Mapping[str, Sequence[str]]) -> str:
    """Return each reason with the pods it holds for; the same for pods in any order."""
    parts = []
    for reason, pods in sorted(pods_by_reason.items()):
        names, more = sorted(pods)[:_PODS_NAMED], len(pods) - _PODS_NAMED
        named = ", ".join(names) + (f" and {more} more" if more > 0 else "")
        parts.append(f"{named}: {reason[:_LONGEST_REASON]}")
    return f"{count}: {'; '.join(parts)}"[:_LONGEST_MESSAGE]


def is_ready(pod: Manifest) -> bool:
    """Tell whether a pod takes requests."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def is_told(pod: Manifest) -> bool:
    """Tell whether a pod mounts the document of classes and tenants."""
    volumes = pod.get("spec", {}).get("volumes", ())
    return any(volume["name"] == labels.POLICIES_VOLUME for volume in volumes)


def _wrong(reason: str, where: str, words: str) -> Verdict:
    return Verdict("False", reason, f"{where}: {words.strip()}"[:_LONGEST_MESSAGE])


def _containers(pod: Manifest) -> list[Manifest]:
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


def _named(pods: Iterable[Manifest], name: str) -> Iterator[tuple[str, Manifest]]:
    """Yield the pod's name and the container's state, for each container of that name."""
    for pod in pods:
        for container in _containers(pod):
            if container["name"] == name:
                yield pod["metadata"]["name"], container


def _running(container: Mapping[str, Any]) -> bool:
    return "running" in container.get("state", {})


def _failed(container: Mapping[str, Any]) -> bool:
    """Tell whether the container's last run, still to be repeated, ended badly."""
    state = container.get("state", {})
    ended = state.get("terminated") or container.get("lastState", {}).get("terminated", {})
    return not _running(container) and ended.get("exitCode", 0) != 0


def _last_words(container: Mapping[str, Any]) -> str:
    """Return what the container wrote before it ended, or why it waits."""
    state = container.get("state", {})
    ended = state.get("terminated") or container.get("lastState", {}).get("terminated", {})
    waiting = state.get("waiting", {})
    if ended.get("message"):
        return str(ended["message"])
    if "exitCode" in ended:
        return f"{ended.get('reason', 'Error')}, exit code {ended['exitCode']}"
    return str(waiting.get("message") or waiting.get("reason") or "")
