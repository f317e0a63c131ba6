"""Who the pods are, and who may talk to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_core.api.network import NetworkSpec, Source
from weir_operator.render.naming import Manifest, metadata, selector


def service_account(owner: InferenceService) -> Manifest:
    """Return an identity without rights: a replica needs nothing of the API server."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(owner, owner.metadata.name, "access"),
        "automountServiceAccountToken": False,
    }


@dataclass(frozen=True)
class Access:
    """What NetworkPolicies admit beside what a service says.

    Attributes:
        default: For what a service leaves out.
        operator_namespace: Where the operator and the console run; they may always ask sidecars.
    """

    default: NetworkSpec = field(default_factory=NetworkSpec)
    operator_namespace: str = "default"


def network_policy(owner: InferenceService, access: Access | None = None) -> Manifest:
    """Return a policy that admits traffic to the sidecar's ports only.

    The API and the admin port (metrics, probes) are open to any source, or to those that the
    service or the chart names. The pods of the service reach each other at the peer port, the
    operator and the console reach the admin port, and so does the kubelet of the node, for which a
    policy does not count. The engine opens no port, and no other may be opened beside it.

    Args:
        owner: The service.
        access: Default: any source.
    """
    access = access or Access()
    said, default = owner.spec.network, access.default
    callers = _written(said.allow_from or default.allow_from or ())
    scrapers = _written(said.scrape_from or default.scrape_from or ())
    if scrapers:
        scrapers.append(_weir_in(access.operator_namespace))
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(owner, owner.metadata.name, "access"),
        "spec": {
            "podSelector": {"matchLabels": selector(owner)},
            "policyTypes": ["Ingress"],
            "ingress": [
                _admitted(labels.API_PORT, callers),
                _admitted(labels.ADMIN_PORT, scrapers),
                _admitted(labels.PEER_PORT, [{"podSelector": {"matchLabels": selector(owner)}}]),
            ],
        },
    }


def _admitted(port: int, sources: Sequence[Manifest]) -> Manifest:
    """Return a rule that admits these sources to a port, or any source where there are none."""
    rule: Manifest = {"ports": [{"protocol": "TCP", "port": port}]}
    return {"from": list(sources), **rule} if sources else rule


def _written(sources: Sequence[Source]) -> list[Manifest]:
    """Return sources as a NetworkPolicy has them: an empty selector stays, it selects all."""
    return [
        each.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        for each in sources
    ]


def _weir_in(namespace: str) -> Manifest:
    """Return the operator and the console."""
    components = [labels.OPERATOR, labels.CONSOLE]
    return {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {
            "matchLabels": {labels.PART_OF_LABEL: labels.PART_OF},
            "matchExpressions": [{"key": labels.COMPONENT, "operator": "In", "values": components}],
        },
    }
