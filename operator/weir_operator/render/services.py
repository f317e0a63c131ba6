"""How clients and peers find the pods, and how many may be missing at once."""

from __future__ import annotations

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_operator.render.naming import (
    REPLICAS,
    Manifest,
    Names,
    gateway_name,
    headless_name,
    metadata,
    selector,
)

DUAL_STACK = {"ipFamilyPolicy": "PreferDualStack"}
"""Both families where the cluster has both, and the one it has elsewhere."""


def service(owner: InferenceService) -> Manifest:
    """Return the Service clients use: port 80, and 8000 for those who expect vLLM's."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, owner.metadata.name, "api"),
        "spec": {
            "type": "ClusterIP",
            **DUAL_STACK,
            "selector": selector(owner),
            "ports": [
                _port("http", 80, labels.API_PORT),
                _port("api", labels.API_PORT, labels.API_PORT),
            ],
        },
    }


def headless_service(owner: InferenceService, names: Names | None = None) -> Manifest:
    """Return the Service that lists every replica, ready or not, for sidecars and scrapers."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, headless_name(owner, names), REPLICAS),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            **DUAL_STACK,
            "publishNotReadyAddresses": True,
            "selector": selector(owner),
            "ports": [
                _port("api", labels.API_PORT, labels.API_PORT),
                _port("admin", labels.ADMIN_PORT, labels.ADMIN_PORT),
                _port("peer", labels.PEER_PORT, labels.PEER_PORT),
            ],
        },
    }


def disruption_budget(owner: InferenceService, *, has_groups: bool) -> Manifest:
    """Return a budget that lets node drains take one replica at a time.

    Gateways have a budget of their own: in one, a gateway that is away would keep replicas from
    leaving, and the other way round.

    Args:
        owner: The service.
        has_groups: Whether there are, or will be, pods of pools that spread over nodes.
    """
    others = [_of_gateways("NotIn")]
    if has_groups:
        # They have budgets of their own, and of a pod with two none can be evicted.
        others.append({"key": labels.GROUP_SET, "operator": "DoesNotExist"})
    return _budget(owner, owner.metadata.name, others)


def gateway_disruption_budget(owner: InferenceService) -> Manifest:
    """Return a budget that keeps one of the two gateways through a node drain."""
    return _budget(owner, gateway_name(owner), [_of_gateways("In")])


def _of_gateways(operator: str) -> Manifest:
    return {"key": labels.COMPONENT, "operator": operator, "values": [labels.GATEWAY]}


def _budget(owner: InferenceService, name: str, chosen: list[Manifest]) -> Manifest:
    """Return a budget; pods that are not ready may always go, because they serve nothing.

    Args:
        owner: The service.
        name: Of the budget.
        chosen: Which of its pods: expressions of a selector.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner, name, "access"),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(owner), "matchExpressions": chosen},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _port(name: str, port: int, target: int) -> Manifest:
    return {"name": name, "protocol": "TCP", "port": port, "targetPort": target}
