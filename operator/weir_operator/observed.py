"""What one pass knows of a service: what it read first, and what each part has added since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Final, NamedTuple

from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import ClusterRefuses, ClusterUnavailable, InvalidSpec, PredecessorLeaving
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.problems import Problem
from weir_core.wire.steps import Facts
from weir_operator.render import Manifest
from weir_operator.views import Deployment, Pod

Said = Facts | str
"""What an engine is, or why that is not known."""

Lacks = Mapping[str, str]
"""Adapters that a replica does not have, each with why; empty where it has all of them."""

Identity = tuple[str, str]
"""Kind and name of an object; a service is in one namespace."""


class PeerKeys(NamedTuple):
    """The keys of a service's sidecars."""

    valid: tuple[str, ...] = ()
    """The newest first; one more while it takes the place of another."""
    rotation: str | None = None
    """Value of the service's annotation for which the newest was made."""


class Told(NamedTuple):
    """What sidecars are told, and what is not in it as it was written."""

    document: PolicyDocument = PolicyDocument()
    """Without peers and their keys."""
    problems: Sequence[Problem] = ()
    keys: PeerKeys = PeerKeys()
    tenants: Sequence[tuple[Manifest, Manifest]] = ()
    """InferenceTenants whose status says something else than it should, and what it should."""
    missing: Mapping[str, str] = MappingProxyType({})
    """Since when each Secret of a tenant is gone (RFC 3339), by its name."""
    unread: Set[str] = frozenset()
    """Secrets of tenants that the operator may not read."""


_NOTHING_TOLD: Final = Told()


@dataclass(frozen=True)
class Observed:
    """The world as one pass sees it."""

    body: Manifest
    """The service as the API server holds it."""
    owner: InferenceService
    """Its metadata alone, which is all it takes to own objects."""
    service: InferenceService | None
    """None where the spec is wrong: then what is there goes on as it is."""
    now: datetime
    """When the pass began."""
    wrong: InvalidSpec | None = None
    """Why it is."""
    unknown: Sequence[str] = ()
    """Paths of fields that a later Weir knows and this one does not."""
    remark: str = ""
    """What the API server cannot hold of a spec, and so may have dropped."""
    pods: Sequence[Pod] = ()
    """Its replicas and gateways. Of a replica that spreads over nodes, its leader."""
    workers: Sequence[Pod] = ()
    """The other pods of such replicas."""
    owned: Sequence[Manifest] = ()
    """Its objects, of the kinds of all parts that have had their turn."""
    unread: Mapping[str, ClusterRefuses] = field(default_factory=dict)
    """Why objects of some kinds could not be listed, by the kind's name: kinds of which a service
    may need none."""
    told: Told = _NOTHING_TOLD
    deployments: Mapping[str, Deployment] = field(default_factory=dict)
    """Each pool's Deployment, by the pool's name."""
    leaving: Mapping[str, Deployment] = field(default_factory=dict)
    """Those of pools the spec no longer names; they serve until those it names do."""
    prefetches: Sequence[Manifest] = ()
    """The Jobs that fill the cache, as they are."""
    gateway: Deployment | None = None
    """That of the gateways, where there are to be any."""
    engines: Mapping[str, Said] = field(default_factory=dict)
    """By the name of each pod that takes requests."""
    adapters: Mapping[str, Lacks | str] = field(default_factory=dict)
    """What each pod that takes requests lacks of the adapters, or why that is not known."""

    @property
    def staying(self) -> list[Pod]:
        """The replicas' pods that are not on their way out."""
        return [pod for pod in self.pods if not (pod.leaves or pod.is_gateway)]

    @property
    def staying_workers(self) -> list[Pod]:
        """The workers that are not on their way out."""
        return [pod for pod in self.workers if not pod.leaves]

    @property
    def gateways(self) -> list[Pod]:
        """The pods that stand in for replicas, and are not on their way out."""
        return [pod for pod in self.pods if pod.is_gateway and not pod.leaves]

    @property
    def of_the_spec(self) -> list[Pod]:
        """Those of them whose pool the spec names."""
        return [pod for pod in self.staying if pod.pool in {"", *self.deployments}]

    @property
    def left_over(self) -> list[Pod]:
        """Those of them that serve though the spec no longer names their pool."""
        return [pod for pod in self.staying if pod.pool in self.leaving]

    @property
    def wanted(self) -> int:
        """Replicas asked for, over all pools."""
        return sum(each.wanted for each in self.deployments.values())

    @property
    def scaled_to_zero(self) -> bool:
        """Whether no replica is asked for, on purpose."""
        return bool(self.deployments) and self.wanted == 0


def identity(manifest: Manifest) -> Identity:
    """Return which of a service's objects this is."""
    return manifest["kind"], manifest["metadata"]["name"]


def belongs_to(manifest: Manifest, owner: InferenceService) -> bool:
    """Tell whether an object is this very service's."""
    owners = manifest["metadata"].get("ownerReferences", ())
    return any(each["uid"] == owner.metadata.uid for each in owners)


def in_the_way(found: Manifest, owner: InferenceService) -> ClusterUnavailable:
    """Return what to say of an object that has a name this service needs.

    One that an earlier service of this name owns goes by itself: its owner is gone, so the garbage
    collector has it, or will in a moment.
    """
    what = f"{found['kind']} {found['metadata']['name']}"
    of_this_name = owner.api_version.partition("/")[0], owner.kind, owner.metadata.name
    owners = found["metadata"].get("ownerReferences", ())
    # Others have a kind of the name InferenceService, too.
    names = ((o["apiVersion"].partition("/")[0], o["kind"], o["name"]) for o in owners)
    if of_this_name in names:
        return PredecessorLeaving(
            f"{what} belongs to an earlier service of this name, which is still being deleted"
        )
    return ClusterRefuses(
        f"{what} exists already and is not this service's: delete it or name the service anew"
    )
