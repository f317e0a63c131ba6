"""A pool is a Deployment, or a LeaderWorkerSet where each replica spreads over nodes.

And what its pods say of the model, the sidecars and the replicas.

Each verdict that something is wrong quotes what knows it best: the kubelet, the Kubernetes
scheduler, or the last lines a container wrote before it died.

A spec that is wrong changes no pod, and freezes nothing: each workload keeps its newest template,
and what can still be read of the spec says how many replicas it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import InvalidSpec
from weir_core.units import parse_duration
from weir_operator.cluster import Cluster
from weir_operator.conditions import (
    LONGEST_MESSAGE,
    MODEL,
    ROUTER,
    WORKLOADS,
    Verdict,
    wrong,
)
from weir_operator.kinds import API_SERVICE, DEPLOYMENT, GROUP_SET, REVISION
from weir_operator.observed import Observed, in_the_way
from weir_operator.parse import replicas_in
from weir_operator.parts.part import Owned, Part
from weir_operator.render import (
    Images,
    Manifest,
    deployment,
    gateway_deployment,
    group_name,
    group_set,
    is_of_groups,
    names_in,
    pod_templates,
    same_workload,
)
from weir_operator.render.naming import is_of_a_pool, is_of_gateways, pool_of
from weir_operator.revisions import choose, expired, template_of
from weir_operator.rollouts import (
    Outlook,
    Situation,
    goes_one_by_one,
    handed_over,
    leaving,
    one_by_one,
    others_serve,
    outlook,
)
from weir_operator.starts import left
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


_LONGEST_WORDS: Final = 500
"""Of the Kubernetes scheduler, so that what to do about it is still said."""
_AT_ONCE: Final = "or write spec.rollout: {maxSurge: 0, maxUnavailable: 1}"
_ONLY_REPLICA: Final = (
    "the only replica serves on, because no request is answered while its successor loads in its "
    f"place; free room for one more, {_AT_ONCE} to accept that"
)
_A_GROUP: Final = (
    f"a replica that spreads over nodes needs a node with room for each of its pods; free it, "
    f"{_AT_ONCE} to replace the replicas one by one"
)
_FORM: Final = (
    "it is {there}, and with nodes: {nodes} would be {asked}, which cannot take over its pods; "
    "write the pool under another name, and it takes over replica by replica"
)
_FOR_EVER: Final = (
    "with spec.rollout.surgeTimeout: 0s the replicas serve on until it has one; free room for one "
    f"more, {_AT_ONCE} to replace them one by one"
)


class Workloads(Part):
    """Deployments, LeaderWorkerSets, and the revisions of their pod templates.

    Args:
        images: Container images where a spec names none.
        scaled: Returns, of a service (namespace, name), the replicas of each pool that follows the
            work; of others the number in the spec counts, or the one that is there.
    """

    condition = WORKLOADS
    owns: ClassVar[tuple[Owned, ...]] = (
        Owned(DEPLOYMENT, "the pods of a pool, and gateways where there may be no replica"),
        Owned(GROUP_SET, "the pods of a pool whose replicas spread over nodes", by_all=False),
        Owned(REVISION, "pod templates that are kept over upgrades of the operator", watched=False),
    )

    def __init__(
        self, images: Images, scaled: Callable[[tuple[str, str]], Mapping[str, int]]
    ) -> None:
        self._images = images
        self._scaled = scaled

    async def observe(self, seen: Observed, cluster: Cluster) -> Observed:
        """See the workloads as they are, before any is written."""
        if GROUP_SET.name in seen.unread and any(pod.group_set for pod in seen.pods):
            raise seen.unread[GROUP_SET.name]
        await _refuse_foreign_services(seen, cluster)
        there, gateway = _workloads_in(seen, seen.owned), _gateway(seen.owned)
        return replace(seen, deployments=there, gateway=gateway)

    def desired(self, seen: Observed) -> Sequence[Manifest]:
        """Return the gateways', then each pool's workload, and the revision of its template.

        Those that the cluster may not know come last: they keep no other from being applied.

        Raises:
            InvalidSpec: A pool that is there would have to become a workload of the other kind.
        """
        scaled = self._scaled((seen.owner.metadata.namespace, seen.owner.metadata.name))
        if seen.service is None:
            return _as_kept(seen, scaled)
        service = seen.service
        _refuse_another_form(service, seen.owned)
        chosen = choose(service, pod_templates(service, self._images), seen.owned)
        mine = {pool: each for pool, each in seen.deployments.items() if not each.leaves}
        wanted = wanted_replicas(service, mine, scaled)
        leave = leaving(mine, wanted)
        situation = Situation(service.spec.rollout, wanted, mine, leave, seen.pods, seen.now)
        slow = one_by_one(situation, {pool: each.digest for pool, each in chosen.items()})
        replicas = handed_over(situation, slow)
        names = names_in(seen.owned)
        desired = self._gateways(service, seen, is_asked=any(wanted.values()))
        for pool in sorted(service.spec.hardware_pools, key=service.spec.spreads):
            choice, number = chosen[pool.name], replicas[pool.name]
            goes_slowly = pool.name in slow
            if is_of_groups(choice.template):
                made = group_set(service, pool, choice.template, number, choice.digest)
            else:
                made = deployment(
                    service, pool, choice.template, number, names, one_by_one=goes_slowly
                )
            notes = made["metadata"].setdefault("annotations", {})
            notes[labels.SPEC_HASH] = choice.digest
            if goes_slowly:
                notes[labels.ONE_BY_ONE] = choice.digest
            if number < wanted[pool.name]:
                notes[labels.REPLICAS_TO_COME] = str(wanted[pool.name])
            # A template that the API server refuses must not be kept, so its revision is second.
            desired += [made] if choice.new is None else [made, choice.new]
        return [*desired, *_lowered(seen, {pool: replicas.get(pool, 0) for pool in leave})]

    def _gateways(
        self, service: InferenceService, seen: Observed, *, is_asked: bool
    ) -> list[Manifest]:
        """Return the gateways' Deployment, where it is needed.

        Where it no longer is, it stays until one of the replicas that are asked for serves.
        """
        current = next((each for each in seen.owned if is_of_gateways(each)), None)
        is_served = any(pod.is_ready for pod in seen.staying)
        stays = current is not None and is_asked and not is_served
        if service.spec.may_sleep or stays:
            return [gateway_deployment(service, self._images, current)]
        return []

    def applied(self, seen: Observed, desired: Sequence[Manifest]) -> Observed:
        """Return the pools of the spec, and those that have to serve until these do."""
        there = _workloads_in(seen, desired)
        if seen.service is None:
            return replace(seen, deployments=there, leaving={}, gateway=_gateway(seen.owned))
        named = {pool.name for pool in seen.service.spec.hardware_pools}
        return replace(
            seen,
            deployments={pool: each for pool, each in there.items() if pool in named},
            leaving={pool: each for pool, each in there.items() if pool not in named},
            gateway=_gateway(desired),
        )

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
            if each["kind"] != REVISION.name or pool_of(each) not in known
        ]
        return [*gone, *expired(seen.service, seen.owned)]

    async def follow_up(self, seen: Observed, cluster: Cluster) -> Observed:
        """List the pods anew.

        With pods older than what the Deployments say, a pass could settle while it shows a replica
        that is not ready.
        """
        meta = seen.owner.metadata
        found = [view(Pod, each) for each in await cluster.pods(meta.namespace, meta.name)]
        # Those of a workload that was just deleted may not know yet, and no event will tell when.
        known = {"", *seen.deployments, *seen.leaving}
        pods = [pod for pod in found if pod.leaves or pod.pool in known]
        there = {pool: each.counted(pods) for pool, each in seen.deployments.items()}
        leaving = {pool: each.counted(pods) for pool, each in seen.leaving.items()}
        workers: list[Pod] = []
        if any(each.is_of_groups for each in (*there.values(), *leaving.values())):
            listed = await cluster.pods(meta.namespace, meta.name, labels.WORKER_OF)
            workers = [view(Pod, each) for each in listed]
        return replace(seen, pods=pods, workers=workers, deployments=there, leaving=leaving)

    def verdicts(self, seen: Observed) -> Mapping[str, Verdict]:
        """Say what the workloads and the pods show."""
        return {
            WORKLOADS: _workloads(seen),
            MODEL: _model(seen),
            ROUTER: _router(seen),
        }


def wanted_replicas(
    service: InferenceService, deployments: Mapping[str, Deployment], scaled: Mapping[str, int]
) -> dict[str, int]:
    """Return how many replicas each pool shall have once all is in its place.

    Where `spec.scaling` sets the number it is the autoscaler's, and before it has decided the one
    that is there, within the bounds. A pool that is new then begins with as many as those have that
    left the spec: it may be one of them by another name, and replaces their capacity. Of several
    the first does. Where none is new, those that scale take over what the work took of one that
    left.

    Args:
        service: The service.
        deployments: Those there are, by pool.
        scaled: What the autoscaler decided, by pool.
    """
    named = {pool.name for pool in service.spec.hardware_pools}
    left = sum(each.spec.replicas for pool, each in deployments.items() if pool not in named)
    taken_over = 0
    if named <= deployments.keys():
        taken_over = sum(number for pool, number in scaled.items() if pool not in named)
    wanted = {}
    for pool in service.spec.hardware_pools:
        wanted[pool.name] = service.spec.replicas_of(pool)
        if service.spec.scales and pool.replicas is None:
            now = deployments[pool.name].wanted if pool.name in deployments else left
            assert service.spec.scaling is not None
            fewest, most = service.spec.fewest_of(pool), service.spec.scaling.max_replicas
            if pool.name not in deployments:
                left -= min(left, most)
            before = scaled.get(pool.name, now)
            wanted[pool.name] = min(max(before + taken_over, fewest), most)
            taken_over -= max(0, min(taken_over, most - before))
    return wanted


def _lowered(seen: Observed, replicas: Mapping[str, int]) -> list[Manifest]:
    """Return the workloads of pools that left the spec, with as many replicas as they keep."""
    return [
        same_workload(
            seen.owner,
            each,
            template_of(each, seen.owned) or _template_in(each),
            replicas[pool_of(each)],
        )
        for each in seen.owned
        if is_of_a_pool(each) and replicas.get(pool_of(each), 0)
    ]


def _as_kept(seen: Observed, scaled: Mapping[str, int]) -> list[Manifest]:
    """Return the workloads there are, with the replicas that the spec asks for."""
    asked = replicas_in(seen.body)
    found = []
    for manifest in seen.owned:
        if not is_of_a_pool(manifest) or "deletionTimestamp" in manifest["metadata"]:
            continue
        template = template_of(manifest, seen.owned)
        if template is not None:
            there, pool = view(Deployment, manifest), pool_of(manifest)
            number = asked.get(pool, scaled.get(pool, there.wanted))
            if there.spec.replicas < there.wanted:  # it waits for those that it takes over from
                number = min(number, there.spec.replicas)
            found.append(same_workload(seen.owner, manifest, template, number))
    return found


def _template_in(workload: Manifest) -> Manifest:
    """Return what a workload's pods are made from, as the API server holds it."""
    spec: Manifest = workload["spec"]
    if workload["kind"] != GROUP_SET.name:
        template: Manifest = spec["template"]
        return template
    group = spec["leaderWorkerTemplate"]
    return {field: group[field] for field in ("size", "leaderTemplate", "workerTemplate")}


def _workloads_in(seen: Observed, manifests: Iterable[Manifest]) -> dict[str, Deployment]:
    """Return the pools' workloads among these by their pool."""
    mine = [view(Deployment, each) for each in manifests if is_of_a_pool(each)]
    mine.sort(key=lambda each: not each.leaves)
    return {each.pool: each.counted(seen.pods) for each in mine}


def _refuse_another_form(service: InferenceService, owned: Iterable[Manifest]) -> None:
    """Refuse to make a LeaderWorkerSet of a pool that is a Deployment, or the other way.

    Raises:
        InvalidSpec: A pool would have to become the other.
    """
    pools = {pool.name: pool for pool in service.spec.hardware_pools}
    for each in owned:
        pool = pools.get(pool_of(each))
        if pool is None or not is_of_a_pool(each) or "deletionTimestamp" in each["metadata"]:
            continue
        asked = (DEPLOYMENT, GROUP_SET)[service.spec.spreads(pool)].name
        if each["kind"] != asked:
            nodes = service.spec.engine_of(pool).parallelism.nodes
            said = _FORM.format(there=f"a {each['kind']}", nodes=nodes, asked=f"a {asked}")
            raise InvalidSpec(f"{service.spec.place_of(pool)}.name", f"pool {pool.name}: {said}")


async def _refuse_foreign_services(seen: Observed, cluster: Cluster) -> None:
    """Refuse a LeaderWorkerSet whose Service's name is taken.

    It would use that Service without a word, and no worker would find its leader.

    Raises:
        ClusterUnavailable: The name is taken, or the API server cannot serve now.
    """
    if seen.service is None:
        return
    spec = seen.service.spec
    for name in (
        group_name(seen.service, each) for each in spec.hardware_pools if spec.spreads(each)
    ):
        found = await cluster.find(API_SERVICE, seen.owner.metadata.namespace, name)
        owners = found["metadata"].get("ownerReferences", ()) if found else ()
        if found is not None and all(each["kind"] != GROUP_SET.name for each in owners):
            raise in_the_way(found, seen.owner)


def _gateway(manifests: Iterable[Manifest]) -> Deployment | None:
    """Return the gateways' Deployment among these."""
    return next((view(Deployment, each) for each in manifests if is_of_gateways(each)), None)


def _workloads(seen: Observed) -> Verdict:
    found = _rollout(seen)
    if not seen.leaving:
        return found
    names = ", ".join(sorted(seen.leaving))
    what = f"no longer in the spec, and serving until its successors do: {names}"
    return found._replace(message=f"{found.message}; {what}")


def _rollout(seen: Observed) -> Verdict:
    pods = (*seen.of_the_spec, *seen.staying_workers)
    waiting = [(pod, _without_a_place(seen, pod)) for pod in pods if pod.unschedulable]
    found = (
        _stuck_container([*seen.of_the_spec, *seen.staying_workers, *seen.gateways])
        or next((each for _, each in waiting if each.is_trouble), None)
        or _stuck_deployment(seen.deployments)
    )
    if found is not None:
        return found
    if not seen.deployments:
        return Verdict("False", "Waiting", "no pool has a workload yet")
    # One that has gone over to another way is news; that others progress is not.
    in_order = sorted(seen.deployments.items(), key=lambda each: not goes_one_by_one(each[1]))
    for pool, each in in_order:
        status, wanted = each.status, each.wanted
        if status.observed_generation < each.metadata.generation:
            return Verdict("False", "Progressing", f"pool {pool}: the rollout has begun")
        updated, available = status.updated_replicas, status.available_replicas
        if min(updated, available) < wanted or status.replicas > wanted:
            counts = (
                f"pool {pool}: {available} of {wanted} replicas available, {updated} of the "
                "newest template"
            )
            waits = [verdict.message for pod, verdict in waiting if pod.pool == pool]
            slow = goes_one_by_one(each)
            rest = left(seen, [pool])
            if rest:
                waits.insert(0, f"the next one is loading: {rest}")
            said = "; ".join([counts, *([_why_one_by_one(seen)] if slow else []), *waits])
            reason = "OneByOne" if slow else "Progressing"
            return Verdict("False", reason, said[:LONGEST_MESSAGE])
    gateway = seen.gateway
    if gateway is not None and gateway.status.available_replicas < gateway.wanted:
        return _too_few_gateways(seen, gateway)
    return Verdict("True", "Available", "every pool has its replicas")


def _too_few_gateways(seen: Observed, gateway: Deployment) -> Verdict:
    """Return how many there are, and what keeps the others away, as far as that is told."""
    counts = f"{gateway.status.available_replicas} of {gateway.wanted} gateways available"
    failures = [
        f"{each.reason}: {each.message}"
        for each in gateway.status.conditions
        if (each.type, each.status) == ("ReplicaFailure", "True")
    ]
    waits = [
        f"pod {pod.name} has no node yet: {pod.unschedulable[:_LONGEST_WORDS].strip()}"
        for pod in seen.gateways
        if pod.unschedulable
    ]
    said = "; ".join([counts, *failures, *waits])
    return Verdict("False", "Progressing", said[:LONGEST_MESSAGE])


def _why_one_by_one(seen: Observed) -> str:
    written = "" if seen.service is None else f" for {seen.service.spec.rollout.surge_timeout}"
    return (
        f"one by one, because one more replica had no node with room{written} "
        f"(spec.rollout.surgeTimeout); free room for one more and all would serve on, {_AT_ONCE} "
        "to begin so at once"
    )


def _without_a_node(seen: Observed, pod: Pod) -> Verdict:
    """Return what is with a pod that no node has room for."""
    where, words = f"pod {pod.name}", pod.unschedulable[:_LONGEST_WORDS].strip()
    stuck = wrong("Unschedulable", where, words)
    if seen.service is None or pod.pool not in seen.deployments:
        return stuck
    rollout = seen.service.spec.rollout
    wanted = {pool: each.wanted for pool, each in seen.deployments.items()}
    there = {**seen.deployments, **seen.leaving}
    situation = Situation(rollout, wanted, there, seen.leaving, seen.pods, seen.now)
    found = outlook(situation, pod)
    if goes_one_by_one(seen.deployments[pod.pool]) or found is Outlook.COMING:
        return Verdict("False", "Progressing", f"{where} has no node yet: {words}")
    if found is Outlook.STUCK:
        return stuck
    if not others_serve(situation, pod.pool):
        return wrong("Unschedulable", where, f"{words}; {_ONLY_REPLICA}")
    if not parse_duration(rollout.surge_timeout):
        return wrong("Unschedulable", where, f"{words}; {_FOR_EVER}")
    later = (
        f"if it has no node after {rollout.surge_timeout} (spec.rollout.surgeTimeout), replicas "
        "are replaced one by one"
    )
    return Verdict("False", "Progressing", f"{where}: {words}; {later}")


def _without_a_place(seen: Observed, pod: Pod) -> Verdict:
    """Return what is with a pod that no node has room for, alone or in a group."""
    if not pod.group_set:
        return _without_a_node(seen, pod)
    where, words = f"pod {pod.name}", pod.unschedulable[:_LONGEST_WORDS].strip()
    if any(each.leaves and each.pool == pod.pool for each in (*seen.pods, *seen.workers)):
        return Verdict("False", "Progressing", f"{where} has no node yet: {words}")
    return wrong("Unschedulable", where, f"{words}; {_A_GROUP}")


def _stuck_container(pods: Iterable[Pod]) -> Verdict | None:
    """Return what keeps a container from running, if something does."""
    for pod in pods:
        for container in pod.containers:
            waiting = container.state.waiting
            if waiting is not None and waiting.reason in _STUCK:
                where = f"pod {pod.name}, container {container.name}"
                return wrong(waiting.reason, where, container.last_words)
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
    fetchers = list(_named((*seen.staying, *seen.staying_workers), labels.MODEL_CONTAINER))
    started = [*engines, *_named(seen.staying_workers, labels.ENGINE_CONTAINER)]
    for reason, containers in (("FetchFailed", fetchers), ("EngineFailed", started)):
        for pod, container in containers:
            if container.has_failed:
                return wrong(reason, f"pod {pod}", container.last_words)
    if any(engine.is_running for _, engine in engines):
        rest = left(seen, {pod.pool for pod in seen.staying})
        said = "the engine is loading the model"
        return Verdict("False", "Loading", f"{said}: {rest}" if rest else said)
    if any(fetcher.is_running for _, fetcher in fetchers):
        what = "the model" if seen.service is None else seen.service.spec.model.source.uri
        return Verdict("False", "Fetching", f"fetching {what}")
    return Verdict("False", "Waiting", "no engine has started yet")


def _router(seen: Observed) -> Verdict:
    if seen.scaled_to_zero and seen.gateway is None:
        return Verdict("False", "ScaledToZero", "no sidecar runs")
    ready = _ready_replicas(seen.of_the_spec, seen.deployments)
    left_over = _ready_replicas(seen.left_over, seen.leaving)
    if ready or left_over:
        said = f"{ready} of {seen.wanted} replicas take requests"
        more = f", and {left_over} of pools no longer in the spec" if left_over else ""
        return Verdict("True", "Serving", said + more)
    if seen.gateway is not None:
        return _by_gateways(seen)
    return Verdict("False", "NoReadyReplica", "no replica takes requests")


def _by_gateways(seen: Observed) -> Verdict:
    """Return what is with requests while no replica takes them: they wait at the gateways."""
    ready = sum(pod.is_ready for pod in seen.gateways)
    take = f"{ready} of {len(seen.gateways)} gateways take requests"
    if not ready:
        return Verdict("False", "NoReadyGateway", "neither a replica nor a gateway takes requests")
    if seen.scaled_to_zero:
        said = f"no replica runs; {take}, and the first one starts a replica"
        return Verdict("True", "Asleep", said)
    if _workloads(seen).is_trouble or _model(seen).is_trouble:
        return Verdict("False", "NoReadyReplica", "no replica takes requests")
    return Verdict("True", "Waking", f"{take}, which wait until the first replica is ready")


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
