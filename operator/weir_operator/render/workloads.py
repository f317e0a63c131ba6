"""A Deployment per hardware pool, and what stays of a workload, a Deployment or not."""

from __future__ import annotations

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService, Pool
from weir_operator.render.groups import same_group_set
from weir_operator.render.naming import (
    GROUP_SET,
    Manifest,
    Names,
    deployment_name,
    metadata,
    pool_of,
    selector,
)

PROGRESS_DEADLINE_S = 3600
"""A large model takes long to load; the operator's own conditions speak much earlier."""


def deployment(
    owner: InferenceService,
    pool: Pool,
    template: Manifest,
    replicas: int | None = None,
    names: Names | None = None,
    *,
    one_by_one: bool = False,
) -> Manifest:
    """Return a pool's Deployment around its pod template.

    Args:
        owner: The service.
        pool: The pool.
        template: The pod template.
        replicas: How many. Default: those of the spec.
        names: Names that the service's objects have already (`names_in`). Default: none exists.
        one_by_one: Whether an old pod leaves before the new one has a place, whatever the spec
            says.
    """
    rollout = owner.spec.rollout
    name = deployment_name(owner, pool, names)
    strategy = {
        "type": "RollingUpdate",
        "rollingUpdate": {
            "maxSurge": 0 if one_by_one else rollout.max_surge,
            "maxUnavailable": 1 if one_by_one else rollout.max_unavailable,
        },
    }
    return _deployment(
        metadata(owner, name, "replica", **{labels.POOL: pool.name}),
        {
            "replicas": owner.spec.replicas_of(pool) if replicas is None else replicas,
            "strategy": strategy,
            "selector": {"matchLabels": selector(owner, pool.name)},
            "template": template,
        },
    )


def same_workload(
    owner: InferenceService, current: Manifest, template: Manifest, replicas: int
) -> Manifest:
    """Return a pool's workload as it is, but for what its pods are made from and its replicas.

    Args:
        owner: The service; its metadata suffices.
        current: The workload as the API server holds it.
        template: What its pods are made from.
        replicas: How many.
    """
    meta, spec = current["metadata"], current["spec"]
    fresh = metadata(owner, meta["name"], "replica", **{labels.POOL: pool_of(current)})
    annotations = {**fresh.get("annotations", {})}
    noted = meta.get("annotations", {})
    kept = (labels.SPEC_HASH, labels.ONE_BY_ONE, labels.REPLICAS_TO_COME)
    annotations |= {key: noted[key] for key in kept if key in noted}
    fresh["annotations"] = annotations
    if current["kind"] == GROUP_SET:
        return same_group_set(current, fresh, template, replicas)
    return _deployment(
        fresh,
        {
            "replicas": replicas,
            "strategy": spec["strategy"],
            "selector": spec["selector"],
            "template": template,
        },
    )


def _deployment(meta: Manifest, spec: Manifest) -> Manifest:
    """Return a Deployment with what all of ours have."""
    ours = {
        # Said, so that a Deployment which someone paused is resumed.
        "paused": False,
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": PROGRESS_DEADLINE_S,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {**ours, **spec},
    }
