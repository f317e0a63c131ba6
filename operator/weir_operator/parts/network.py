"""Who the pods are, who may talk to them, and how clients and peers find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from weir_operator.conditions import NETWORK, Verdict
from weir_operator.kinds import API_SERVICE, DISRUPTION_BUDGET, NETWORK_POLICY, SERVICE_ACCOUNT
from weir_operator.observed import Observed, identity
from weir_operator.parts.part import Owned, Part
from weir_operator.render import Access, Manifest, names_in, network, service_url


class Network(Part):
    """ServiceAccount, NetworkPolicy, two Services and PodDisruptionBudgets.

    Args:
        access: What NetworkPolicies admit beside what a service says.
    """

    condition = NETWORK
    owns: ClassVar[tuple[Owned, ...]] = (
        Owned(SERVICE_ACCOUNT, "the pods' identity, without rights"),
        Owned(NETWORK_POLICY, "only the sidecar's ports are open"),
        Owned(API_SERVICE, "the address of clients, and the list of replicas"),
        Owned(DISRUPTION_BUDGET, "node drains take one replica, and one gateway, at a time"),
    )

    def __init__(self, access: Access) -> None:
        self._access = access

    def desired(self, seen: Observed) -> Sequence[Manifest]:
        """Return all of them; those of a spec that is wrong stay as they are."""
        if seen.service is None:
            return ()
        names = names_in(seen.owned)
        return network(seen.service, names, self._access, has_groups=bool(_group_sets(seen)))

    def superfluous(self, seen: Observed, desired: Sequence[Manifest]) -> Sequence[Manifest]:
        """Return what is there and not desired.

        What a pool of groups has for itself stays with its pods, which serve for a while after the
        pool has left the spec: without it their leaders and workers cannot reach each other.
        """
        if seen.service is None:
            return ()
        serve = _group_sets(seen)
        gone = super().superfluous(seen, desired)
        return [each for each in gone if each["metadata"]["name"] not in serve]

    def verdicts(self, seen: Observed) -> Mapping[str, Verdict]:
        """Say where clients find the service."""
        if ("Service", seen.owner.metadata.name) in map(identity, seen.owned):
            return {NETWORK: Verdict("True", "Applied", service_url(seen.owner))}
        return {NETWORK: Verdict("False", "Waiting", "the Service is not there yet")}


def _group_sets(seen: Observed) -> set[str]:
    """Return the LeaderWorkerSets that have pods; what is rendered for each has its name."""
    return {pod.group_set for pod in seen.pods if pod.group_set}
