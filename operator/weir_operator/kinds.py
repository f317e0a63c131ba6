"""The kinds of objects the operator knows, and where the API server keeps them."""

from __future__ import annotations

from typing import Any, NamedTuple

from weir_core.api import labels


class Kind(NamedTuple):
    """A kind of object; it needs no discovery, since the operator knows all it asks for."""

    api_version: str
    """`group/version`, or `version` of the core group."""
    name: str
    plural: str

    @property
    def group(self) -> str:
        """The API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Return the URL path of the collection, of one object, or of a part of it."""
        steps = ["/apis" if self.group else "/api", self.api_version]
        steps += ["namespaces", namespace] if namespace else []
        return "/".join([*steps, self.plural, *filter(None, (name, subresource))])


SERVICE = Kind(labels.API_VERSION, "InferenceService", "inferenceservices")
CLASS = Kind(labels.API_VERSION, "InferencePriorityClass", "inferencepriorityclasses")
TENANT = Kind(labels.API_VERSION, "InferenceTenant", "inferencetenants")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
JOB = Kind("batch/v1", "Job", "jobs")
GROUP_SET = Kind("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "leaderworkersets")
REVISION = Kind("apps/v1", "ControllerRevision", "controllerrevisions")
API_SERVICE = Kind("v1", "Service", "services")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
SECRET = Kind("v1", "Secret", "secrets")
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
DEFINITION = Kind(
    "apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions"
)

_BY_NAME = {
    (kind.api_version, kind.name): kind
    for kind in (
        *(SERVICE, CLASS, TENANT, DEPLOYMENT, GROUP_SET, JOB, REVISION, API_SERVICE),
        SERVICE_ACCOUNT,
        *(DISRUPTION_BUDGET, NETWORK_POLICY, SECRET, POD, EVENT, LEASE, DEFINITION),
    )
}

OPTIONAL = {
    GROUP_SET: "spec.engine.parallelism.nodes above 1 needs LeaderWorkerSet, which this cluster "
    "lacks: install it (https://lws.sigs.k8s.io/docs/installation), and this goes on by itself"
}
"""Kinds that a cluster may lack, each with what to say where it is needed."""


def kind_of(manifest: dict[str, Any]) -> Kind:
    """Return the kind of an object; raise `KeyError` for one the operator does not know."""
    return _BY_NAME[manifest["apiVersion"], manifest["kind"]]
