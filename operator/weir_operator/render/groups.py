"""A LeaderWorkerSet per pool whose replicas spread over nodes.

A replica is a group of pods: the leader is the pod that every replica has, and the workers hold
the rest of the engine. LeaderWorkerSet makes a group anew when any container of it is restarted, so
workers have nothing beside the engine and what brings its weights. It deletes the leader first, and
the workers once that is gone: they serve until the leader has drained. Each second that an old
worker takes to end costs the next leader, which is deleted again, so they get a short grace period.

A leader is ready when its engine serves, which it does only with all of its workers: so it is
ready no sooner than its whole group works.
"""

from __future__ import annotations

import copy
from typing import Final

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService, Pool
from weir_operator.render.naming import GROUP_SET, Manifest, group_name, metadata

API_VERSION: Final = "leaderworkerset.x-k8s.io/v1"

WORKER_GRACE_PERIOD_S: Final = 5
_NOT_OF_WORKERS: Final = (labels.SIDECAR_CONTAINER, labels.ADAPTERS_CONTAINER)
_OF_LEADERS: Final = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle")
"""What of an engine's container asks the sidecar."""


def group_templates(leader: Manifest, nodes: int) -> Manifest:
    """Return what the groups of a pool are made from.

    Args:
        leader: The pod template of a replica, with the user's patches.
        nodes: Pods of a group.
    """
    return {"size": nodes, "leaderTemplate": leader, "workerTemplate": _worker(leader)}


def is_of_groups(template: Manifest) -> bool:
    """Tell whether a pool's template is one of groups, and not of single pods."""
    return "leaderTemplate" in template


def replica_of(template: Manifest) -> Manifest:
    """Return the pod template of what serves: of a group it is the leader's."""
    leader: Manifest = template.get("leaderTemplate", template)
    return leader


def _worker(leader: Manifest) -> Manifest:
    worker = copy.deepcopy(leader)
    written = worker["metadata"]["labels"]
    written[labels.WORKER_OF] = written.pop(labels.SERVICE)
    spec = worker["spec"]
    spec["terminationGracePeriodSeconds"] = WORKER_GRACE_PERIOD_S
    spec["initContainers"] = [
        each for each in spec["initContainers"] if each["name"] not in _NOT_OF_WORKERS
    ]
    for container in spec["containers"]:
        if container["name"] == labels.ENGINE_CONTAINER:
            for field in _OF_LEADERS:
                container.pop(field, None)
            container["env"] = [
                each for each in container["env"] if each["name"] != labels.ENV_GRACE_PERIOD_S
            ]
    spec["volumes"] = [each for each in spec["volumes"] if each["name"] != labels.POLICIES_VOLUME]
    return worker


def group_set(
    owner: InferenceService, pool: Pool, templates: Manifest, replicas: int, digest: str = ""
) -> Manifest:
    """Return a pool's LeaderWorkerSet.

    Args:
        owner: The service.
        pool: The pool.
        templates: What its groups are made from (`group_templates`).
        replicas: How many groups.
        digest: Of the spec that the templates were rendered from. Leaders carry it, because
            nothing else tells which of them are of the newest template.
    """
    rollout = owner.spec.rollout
    bounds = {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable}
    return _group_set(
        metadata(owner, group_name(owner, pool), "replica", **{labels.POOL: pool.name}),
        replicas,
        {"type": "RollingUpdate", "rollingUpdateConfiguration": bounds},
        _marked(templates, digest),
    )


def same_group_set(
    current: Manifest, meta: Manifest, templates: Manifest, replicas: int
) -> Manifest:
    """Return a LeaderWorkerSet as it is, but for its templates and its replicas.

    Args:
        current: As the API server holds it.
        meta: Its metadata, without what is said by others.
        templates: What its groups are made from.
        replicas: How many groups.
    """
    strategy = current["spec"]["rolloutStrategy"]
    digest = meta["annotations"].get(labels.SPEC_HASH, "")
    return _group_set(meta, replicas, strategy, _marked(templates, digest))


def _marked(templates: Manifest, digest: str) -> Manifest:
    if not digest:
        return templates
    leader = templates["leaderTemplate"]
    annotations = {**leader["metadata"]["annotations"], labels.SPEC_HASH: digest}
    meta = {**leader["metadata"], "annotations": annotations}
    return {**templates, "leaderTemplate": {**leader, "metadata": meta}}


def _group_set(meta: Manifest, replicas: int, strategy: Manifest, templates: Manifest) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": GROUP_SET,
        "metadata": meta,
        "spec": {
            "replicas": replicas,
            "rolloutStrategy": strategy,
            # A leader is ready only with its workers: they must not wait for that.
            "startupPolicy": "LeaderCreated",
            "leaderWorkerTemplate": {
                "restartPolicy": "RecreateGroupOnPodRestart",
                **templates,
            },
        },
    }


def of_a_group(owner: InferenceService, pool: Pool) -> dict[str, str]:
    """Return the label that all pods of a pool's groups have, leaders and workers."""
    return {labels.GROUP_SET: group_name(owner, pool)}


def group_policy(owner: InferenceService, pool: Pool) -> Manifest:
    """Return a policy that admits the pods of a pool's groups to each other, at every port.

    An engine that spreads over nodes opens ports that PyTorch, NCCL and vLLM choose.
    """
    members = {"matchLabels": of_a_group(owner, pool)}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(owner, group_name(owner, pool), "access"),
        "spec": {
            "podSelector": members,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": members}]}],
        },
    }


def group_budget(owner: InferenceService, pool: Pool) -> Manifest:
    """Return a budget that lets node drains take one pod of a pool's groups at a time.

    With any of its pods a whole group goes, so the next may go when that group is there again.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner, group_name(owner, pool), "access"),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": of_a_group(owner, pool)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
