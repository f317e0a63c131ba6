"""Names and labels of everything an InferenceService owns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService, Pool

Manifest = dict[str, Any]
"""A Kubernetes object as the API server reads it."""

REPLICAS: Final = "replicas"
"""Component of the Service that lists every replica."""
MAX_LABEL: Final = 63
MAX_DEPLOYMENT_NAME = 46
"""A pod's name is its Deployment's plus up to 17 characters, and is a label of at most 63."""

GROUP_SET: Final = "LeaderWorkerSet"
"""Kind of the workload of a pool whose replicas spread over nodes."""

KEPT_TO_THE_SERVICE: Final = (
    *("kubernetes.io", "k8s.io", "weir.dev"),
    *("argoproj.io", "cattle.io", "fluxcd.io", "helm.sh", "k14s.io", "kluctl.io", "pulumi.com"),
    "skaffold.dev",
)
"""Domains whose labels and annotations say something of the object they are on, and are copied to
no other: those of Kubernetes, ours, and those of tools that apply manifests. Such a tool takes an
object with its mark for one that it applied, and deletes it when its source does not have it."""


def bounded(name: str, limit: int) -> str:
    """Return `name`, or a readable prefix and a digest of it where it is too long."""
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-.')}-{digest}"


Names = Mapping[tuple[str, str], str]
"""Kind, and pool or else component, to the name of an object that there is already."""


def names_in(owned: Iterable[Manifest]) -> dict[tuple[str, str], str]:
    """Return the names of a service's objects: an earlier Weir may have named them otherwise.

    An object that is being deleted counts only where no other has its place.
    """
    named = [each for each in owned if each["kind"] == "Service" or is_of_a_pool(each)]
    named.sort(key=lambda each: "deletionTimestamp" not in each["metadata"])
    return {(each["kind"], pool_of(each) or _component(each)): _name(each) for each in named}


def is_of_a_pool(manifest: Manifest) -> bool:
    """Tell whether this is the workload of a pool: that of the gateways is of none."""
    kinds = ("Deployment", GROUP_SET)
    return manifest["kind"] in kinds and _component(manifest) != labels.GATEWAY


def is_of_gateways(manifest: Manifest) -> bool:
    """Tell whether this is the Deployment of a service's gateways."""
    return manifest["kind"] == "Deployment" and _component(manifest) == labels.GATEWAY


def _component(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("labels", {}).get(labels.COMPONENT, ""))


def _name(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def deployment_name(owner: InferenceService, pool: Pool, names: Names | None = None) -> str:
    """Return the name of a pool's Deployment: the one it has, or SERVICE-POOL.

    Where the pool's name has a dash, that could be another service's and another pool's, too:
    pool b-c of service a, and pool c of service a-b.
    """
    known = (names or {}).get(("Deployment", pool.name))
    if known is not None:
        return known
    if "-" in pool.name:
        return _told_apart(owner, pool.name, MAX_DEPLOYMENT_NAME)
    return bounded(f"{owner.metadata.name}-{pool.name}", MAX_DEPLOYMENT_NAME)


def group_name(owner: InferenceService, pool: Pool) -> str:
    """Return the name of a pool's LeaderWorkerSet, which is that of no Service of ours.

    LeaderWorkerSet makes a Service of this name, and takes one that is there for its own. Of more
    than 50 characters, or 46 with 10,000 groups, it makes no pods.
    """
    return _told_apart(owner, f"{pool.name}-group", MAX_DEPLOYMENT_NAME)


def headless_name(owner: InferenceService, names: Names | None = None) -> str:
    """Return the name of the Service that lists every replica, which is that of no service."""
    return (names or {}).get(("Service", REPLICAS)) or _told_apart(owner, REPLICAS, MAX_LABEL)


def gateway_name(owner: InferenceService) -> str:
    """Return the name of the gateways' Deployment, which is that of no pool."""
    return _told_apart(owner, labels.GATEWAY, MAX_DEPLOYMENT_NAME)


def prefetch_name(owner: InferenceService, digest: str) -> str:
    """Return the name of a Job that fills the cache, which its pods have as a label."""
    end = f"-prefetch-{digest}"
    return bounded(owner.metadata.name, MAX_LABEL - len(end)) + end


def _told_apart(owner: InferenceService, part: str, limit: int) -> str:
    """Return SERVICE-PART with a digest of where the one ends and the other begins."""
    digest = hashlib.sha256(f"{owner.metadata.name}/{part}".encode()).hexdigest()[:5]
    return f"{bounded(f'{owner.metadata.name}-{part}', limit - 6)}-{digest}"


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


def is_kept_to_the_service(key: str) -> bool:
    """Tell whether a label or annotation speaks of the object that it is on."""
    domain, slash, _ = key.rpartition("/")
    return bool(slash) and any(f".{domain}".endswith(f".{each}") for each in KEPT_TO_THE_SERVICE)


def inherited(written: Mapping[str, str]) -> dict[str, str]:
    """Return what of a service's labels or annotations all that it owns has, too."""
    return {key: value for key, value in written.items() if not is_kept_to_the_service(key)}


def metadata(owner: InferenceService, name: str, component: str, **extra: str) -> Manifest:
    """Return an owned object's metadata; `extra` are further labels' values by label key.

    What the service is labelled and annotated with comes with it: a queue, a cost centre. Without
    a uid (nothing was applied to a cluster, as with `weir up`) there is no owner reference.
    """
    meta: Manifest = {
        "name": name,
        "namespace": owner.metadata.namespace,
        "labels": {
            **inherited(owner.metadata.labels),
            **common_labels(owner, component),
            **extra,
        },
    }
    annotations = inherited(owner.metadata.annotations)
    if annotations:
        meta["annotations"] = annotations
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
