"""A pool is a Deployment; and what its pods say of the model, the sidecars and the replicas.

Each verdict that something is wrong quotes what knows it best: the kubelet, the Kubernetes
scheduler, or the last lines a container wrote before it died.

A spec that is wrong changes no pod, and freezes nothing: each Deployment keeps its newest template,
and what can still be read of the spec says how many replicas it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_operator.cluster import Cluster
from weir_operator.conditions import MODEL, ROUTER, WORKLOADS, Verdict, wrong
from weir_operator.kinds import DEPLOYMENT, REVISION
from weir_operator.observed import Observed
from weir_operator.parse import replicas_in
from weir_operator.parts.part import Owned, Part
from weir_operator.render import (
    Images,
    Manifest,
    deployment,
    names_in,
    pod_templates,
    same_deployment,
)
from weir_operator.render.naming import pool_of
from weir_operator.revisions import choose, expired, template_of
from weir_operator.views import Container, Deployment, Pod, view

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


class Workloads(Part):
    """Deployments, and the revisions of their pod templates.

    Args:
        images: Container images where a spec names none.
        scaled: Returns, of a service (namespace, name), the replicas of each pool that follows the
            work; of others the number in the spec counts, or the one that is there.
    """

    condition = WORKLOADS
    owns: ClassVar[tuple[Owned, ...]] = (
        Owned(DEPLOYMENT, "the pods of a pool"),
        Owned(REVISION, "pod templates that are kept over upgrades of the operator", watched=False),
    )

    def __init__(
        self, images: Images, scaled: Callable[[tuple[str, str]], Mapping[str, int]]
    ) -> None:
        self._images = images
        self._scaled = scaled

    async def observe(self, seen: Observed, cluster: Cluster) -> Observed:
        """See the Deployments as they are, and with the replicas that they are scaled to."""
        scaled = self._scaled((seen.owner.metadata.namespace, seen.owner.metadata.name))
        there = _deployments(seen.owned)
        return replace(
            seen,
            deployments={
                pool: each.scaled_to(scaled[pool]) if pool in scaled else each
                for pool, each in there.items()
            },
        )

    def desired(self, seen: Observed) -> Sequence[Manifest]:
        """Return each pool's Deployment, and then the revision of its template."""
        if seen.service is None:
            return _as_kept(seen)
        service = seen.service
        chosen = choose(service, pod_templates(service, self._images), seen.owned)
        replicas = replicas_within_bounds(service, seen.deployments)
        names = names_in(seen.owned)
        desired: list[Manifest] = []
        for pool in service.spec.hardware_pools:
            choice = chosen[pool.name]
            made = deployment(service, pool, choice.template, replicas.get(pool.name), names)
            made["metadata"].setdefault("annotations", {})[labels.SPEC_HASH] = choice.digest
            # A template that the API server refuses must not be kept, so its revision is second.
            desired += [made] if choice.new is None else [made, choice.new]
        return desired

    def applied(self, seen: Observed, desired: Sequence[Manifest]) -> Observed:
        """Return the pools of the spec, and those that have to serve until these do."""
        wanted = _deployments(desired)
        leaving = {} if seen.service is None else still_needed(_deployments(seen.owned), wanted)
        return replace(seen, deployments=wanted, leaving=leaving)

    def superfluous(self, seen: Observed, desired: Sequence[Manifest]) -> Sequence[Manifest]:
        """Return the pools that left the spec, unless they are still needed, and old revisions.

        Revisions of pools that are still there stay, a few of each: a pool that comes back into
        the spec finds its own.
        """
        if seen.service is None:
            return ()
        known = {*seen.deployments, *seen.leaving}
        gone = [
            each
            for each in super().superfluous(seen, desired)
            if pool_of(each) not in (known if each["kind"] == REVISION.name else seen.leaving)
        ]
        return [*gone, *expired(seen.service, seen.owned)]

    async def follow_up(self, seen: Observed, cluster: Cluster) -> Observed:
        """List the pods anew.

        With pods older than what the Deployments say, a pass could settle while it shows a replica
        that is not ready.
        """
        meta = seen.owner.metadata
        pods = [view(Pod, each) for each in await cluster.pods(meta.namespace, meta.name)]
        # Those of a Deployment that was just deleted may not know yet, and no event will tell when.
        known = {"", *seen.deployments, *seen.leaving}
        return replace(seen, pods=[pod for pod in pods if pod.pool in known])

    def verdicts(self, seen: Observed) -> Mapping[str, Verdict]:
        """Say what the Deployments and the pods show."""
        return {
            WORKLOADS: _workloads(seen),
            MODEL: _model(seen),
            ROUTER: _router(seen),
        }


def replicas_within_bounds(
    service: InferenceService, deployments: Mapping[str, Deployment]
) -> dict[str, int]:
    """Return how many replicas the pools that scale have, held within the spec's bounds.

    With `spec.scaling` the number is not the spec's to say: writing a fixed one at each pass would
    fight whatever scales the Deployment. A pool that has none yet begins with as many as those have
    that left the spec: it may be one of them by another name, and replaces their capacity.
    """
    scaling = service.spec.scaling
    if scaling is None:
        return {}
    now = {pool: each.spec.replicas for pool, each in deployments.items()}
    pools = service.spec.hardware_pools
    left = sum(now[pool] for pool in now.keys() - {pool.name for pool in pools})
    return {
        pool.name: min(
            max(now.get(pool.name, left), service.spec.fewest_of(pool)), scaling.max_replicas
        )
        for pool in pools
        if pool.replicas is None
    }


def still_needed(
    mine: Mapping[str, Deployment], wanted: Mapping[str, Deployment]
) -> dict[str, Deployment]:
    """Return the Deployments of pools that left the spec but have to serve on for now.

    A pool that gets another name is another pool. Were the one deleted when the other is made,
    nobody would serve until its weights are loaded. So it stays until every pool of the spec has
    its replicas, unless it serves nobody itself.

    Args:
        mine: The service's Deployments by pool.
        wanted: Those of them that the spec asks for, as they are now.
    """
    if all(each.status.available_replicas >= each.spec.replicas for each in wanted.values()):
        return {}
    return {
        pool: each
        for pool, each in mine.items()
        if pool not in wanted
        and not each.leaves
        and each.spec.replicas
        and each.status.ready_replicas
    }


def _as_kept(seen: Observed) -> list[Manifest]:
    """Return the Deployments there are, with the replicas that the spec asks for."""
    asked = replicas_in(seen.body)
    found = []
    for manifest in seen.owned:
        if manifest["kind"] != DEPLOYMENT.name or "deletionTimestamp" in manifest["metadata"]:
            continue
        template = template_of(manifest, seen.owned)
        if template is not None:
            now = seen.deployments[pool_of(manifest)].spec.replicas
            number = asked.get(pool_of(manifest), now)
            found.append(same_deployment(seen.owner, manifest, template, number))
    return found


def _deployments(manifests: Iterable[Manifest]) -> dict[str, Deployment]:
    """Return the Deployments among these by their pool."""
    mine = (view(Deployment, each) for each in manifests if each["kind"] == DEPLOYMENT.name)
    return {each.pool: each for each in mine}


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
    if not seen.deployments:
        return Verdict("False", "Waiting", "no pool has a Deployment yet")
    for pool, each in seen.deployments.items():
        status, wanted = each.status, each.spec.replicas
        if status.observed_generation < each.metadata.generation:
            return Verdict("False", "Progressing", f"pool {pool}: the rollout has begun")
        updated, available = status.updated_replicas, status.available_replicas
        if min(updated, available) < wanted or status.replicas > wanted:
            return Verdict(
                "False",
                "Progressing",
                f"pool {pool}: {available} of {wanted} replicas available, {updated} of the "
                "newest template",
            )
    return Verdict("True", "Available", "every pool has its replicas")


def _stuck_pod(pods: Iterable[Pod]) -> Verdict | None:
    """Return what keeps a pod from running, if something does."""
    for pod in pods:
        for container in pod.containers:
            waiting = container.state.waiting
            if waiting is not None and waiting.reason in _STUCK:
                where = f"pod {pod.name}, container {container.name}"
                return wrong(waiting.reason, where, container.last_words)
        for condition in pod.status.conditions:
            if condition.type == "PodScheduled" and condition.reason == "Unschedulable":
                return wrong("Unschedulable", f"pod {pod.name}", condition.message)
    return None


def _stuck_deployment(deployments: Mapping[str, Deployment]) -> Verdict | None:
    """Return what keeps a Deployment from making pods, or from getting on."""
    for pool, each in deployments.items():
        for condition in each.status.conditions:
            state = condition.type, condition.status
            if state in {("ReplicaFailure", "True"), ("Progressing", "False")}:
                return wrong(condition.reason, f"pool {pool}", condition.message)
    return None


def _model(seen: Observed) -> Verdict:
    if seen.scaled_to_zero:
        return Verdict("Unknown", "ScaledToZero", "no engine runs")
    engines = list(_named(seen.staying, labels.ENGINE_CONTAINER))
    loaded = sum(1 for _, engine in engines if engine.started)
    if loaded:
        return Verdict("True", "Loaded", f"loaded by {loaded} of {len(engines)} engines")
    fetchers = list(_named(seen.staying, labels.MODEL_CONTAINER))
    for reason, containers in (("FetchFailed", fetchers), ("EngineFailed", engines)):
        for pod, container in containers:
            if container.has_failed:
                return wrong(reason, f"pod {pod}", container.last_words)
    if any(engine.is_running for _, engine in engines):
        return Verdict("False", "Loading", "the engine is loading the model")
    if any(fetcher.is_running for _, fetcher in fetchers):
        what = "the model" if seen.service is None else seen.service.spec.model.source.uri
        return Verdict("False", "Fetching", f"fetching {what}")
    return Verdict("False", "Waiting", "no engine has started yet")


def _router(seen: Observed) -> Verdict:
    if seen.scaled_to_zero:
        return Verdict("False", "ScaledToZero", "no sidecar runs")
    ready = _ready_replicas(seen.of_the_spec, seen.deployments)
    left_over = _ready_replicas(seen.left_over, seen.leaving)
    if ready or left_over:
        said = f"{ready} of {seen.wanted} replicas take requests"
        more = f", and {left_over} of pools no longer in the spec" if left_over else ""
        return Verdict("True", "Serving", said + more)
    return Verdict("False", "NoReadyReplica", "no replica takes requests")


def _ready_replicas(pods: Sequence[Pod], deployments: Mapping[str, Deployment]) -> int:
    """Return how many of these Deployments' pods take requests.

    A Deployment counts its own alone: pods of an earlier service of this name, which are about to
    go, have the same labels. The pods are the newer news.
    """
    counted = sum(each.status.ready_replicas for each in deployments.values())
    return min(counted, sum(pod.is_ready for pod in pods))


def _named(pods: Iterable[Pod], name: str) -> Iterator[tuple[str, Container]]:
    """Yield the pod's name and the container's status, for each container of that name."""
    for pod in pods:
        for container in pod.containers:
            if container.name == name:
                yield pod.name, container
