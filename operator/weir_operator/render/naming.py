"""Names and labels of everything an InferenceService owns."""

from __future__ import annotations

import hashlib
from typing import Any

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService, Pool

Manifest = dict[str, Any]
"""A Kubernetes object as the API server reads it."""

MAX_DEPLOYMENT_NAME = 46
"""A pod's name is its Deployment's plus up to 17 characters, and is a label of at most 63."""


def bounded(name: str, limit: int) -> str:
    """Return `name`, or a readable prefix and a digest of it where it is too long."""
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-.')}-{digest}"


def deployment_name(owner: InferenceService, pool: Pool) -> str:
    """Return the name of a pool's Deployment."""
    return bounded(f"{owner.metadata.name}-{pool.name}", MAX_DEPLOYMENT_NAME)


def headless_name(owner: InferenceService) -> str:
    """Return the name of the headless Service, by which sidecars find each other."""
    return f"{owner.metadata.name}-replicas"


def service_url(owner: InferenceService) -> str:
    """Return where clients inside the cluster reach the model."""
    return f"http://{owner.metadata.name}.{owner.metadata.namespace}.svc"


def selector(owner: InferenceService, pool: str | None = None) -> dict[str, str]:
    """Return the labels that tell this service's pods (of one pool) from all others.

    A Deployment's selector cannot be changed, so these are few and will stay.
    """
    chosen = {labels.SERVICE: owner.metadata.name}
    return chosen if pool is None else {**chosen, labels.POOL: pool}


def pool_of(manifest: Manifest) -> str:
    """Return the pool that a Deployment, a revision or a pod belongs to; empty where to none."""
    return str(manifest["metadata"].get("labels", {}).get(labels.POOL, ""))


def common_labels(owner: InferenceService, component: str) -> dict[str, str]:
    """Return the labels every owned object carries."""
    return {
        labels.NAME: "inference-service",
        labels.INSTANCE: owner.metadata.name,
        labels.COMPONENT: component,
        labels.PART_OF_LABEL: labels.PART_OF,
        labels.MANAGED_BY: labels.FIELD_MANAGER,
        labels.SERVICE: owner.metadata.name,
    }


def metadata(owner: InferenceService, name: str, component: str, **extra: str) -> Manifest:
    """Return an owned object's metadata; `extra` are further labels' values by label key.

    Without a uid (nothing was applied to a cluster, as with `weir up`) there is no owner
    reference.
    """
    meta: Manifest = {
        "name": name,
        "namespace": owner.metadata.namespace,
        "labels": {**common_labels(owner, component), **extra},
    }
    if owner.metadata.uid:
        meta["ownerReferences"] = [
            {
                "apiVersion": owner.api_version,
                "kind": owner.kind,
                "name": owner.metadata.name,
                "uid": owner.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    return meta
