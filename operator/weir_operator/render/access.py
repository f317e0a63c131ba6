"""Who the pods are, and who may talk to them."""

from __future__ import annotations

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_operator.render.naming import Manifest, metadata, selector


def service_account(owner: InferenceService) -> Manifest:
    """Return an identity without rights: a replica needs nothing of the API server."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(owner, owner.metadata.name, "access"),
        "automountServiceAccountToken": False,
    }


def network_policy(owner: InferenceService) -> Manifest:
    """Return a policy that admits traffic to the sidecar's ports only.

    Peers are the service's own pods; the API and the admin port (metrics, probes) are open to
    the cluster. The engine opens no port, and no other may be opened beside it.
    """
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(owner, owner.metadata.name, "access"),
        "spec": {
            "podSelector": {"matchLabels": selector(owner)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "ports": [
                        {"protocol": "TCP", "port": labels.API_PORT},
                        {"protocol": "TCP", "port": labels.ADMIN_PORT},
                    ]
                },
                {
                    "from": [{"podSelector": {"matchLabels": selector(owner)}}],
                    "ports": [{"protocol": "TCP", "port": labels.PEER_PORT}],
                },
            ],
        },
    }
