"""How many replicas each pool has while some are replaced, and whether one more comes first. Pure.

Inside a pool the Deployment controller replaces pods as `spec.rollout` says. With `maxSurge: 1` and
`maxUnavailable: 0` it waits for ever for a pod that no node has room for. So after
`spec.rollout.surgeTimeout` the pool goes *one by one*: an old pod leaves first, and the new one
takes its place. That is done only where the old pods' places are all that the new one lacks, and
where others go on serving meanwhile; and not for groups, whose pods lack several places at once.
It lasts until the rollout is complete: an annotation of the Deployment holds it, with the digest of
the template that it is for.

Between pools, when one has left the spec (it was renamed, say), the same bounds hold over all pools
of the service together: the operator raises the new pools and lowers the old ones pass by pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from weir_core.api.inferenceservice import Rollout
from weir_core.api.labels import ONE_BY_ONE, SPEC_HASH
from weir_core.units import parse_duration
from weir_operator.views import Deployment, Pod

_SHORT_OF: Final = re.compile(r"\bInsufficient ([\w./-]*\w)")
"""What the Kubernetes scheduler says of each resource that an otherwise fit node is short of."""
_SHORT_OF_DEVICES: Final = "cannot allocate all claims"
"""What it says of nodes whose devices are taken: resource claims have no amounts."""
_ITS_WORDS: Final = "nodes are available"
"""In whatever it says of nodes, also where it runs under another name."""


class Bounds(NamedTuple):
    """How far the number of pods may be off during a rollout."""

    surge: int
    missing: int


_ONE_BY_ONE: Final = Bounds(0, 1)


def bounds(rollout: Rollout, wanted: int) -> Bounds:
    """Return what `rollout` means for so many replicas, as the Deployment controller reads it."""
    surge = _count(rollout.max_surge, wanted, up=True)
    missing = _count(rollout.max_unavailable, wanted, up=False)
    return Bounds(surge, missing) if surge or missing else _ONE_BY_ONE


def _count(written: int | str, wanted: int, *, up: bool) -> int:
    if isinstance(written, int):
        return written
    percent = int(written.removesuffix("%"))
    return -(-wanted * percent // 100) if up else wanted * percent // 100


@dataclass(frozen=True)
class Situation:
    """What there is of a service, for the decisions of one pass.

    Attributes:
        rollout: The bounds, as the user wrote them.
        wanted: Replicas of each pool of the spec once everything is in its place.
        deployments: Those there are, by pool.
        leaving: Those of them that serve though the spec no longer names their pool.
        pods: The pods there are.
        now: The time of day.
    """

    rollout: Rollout
    wanted: Mapping[str, int]
    deployments: Mapping[str, Deployment]
    leaving: Mapping[str, Deployment]
    pods: Sequence[Pod]
    now: datetime

    @property
    def total(self) -> int:
        """Replicas of all pools of the spec."""
        return sum(self.wanted.values())


def leaving(
    deployments: Mapping[str, Deployment], wanted: Mapping[str, int]
) -> dict[str, Deployment]:
    """Return the Deployments of pools that left the spec, and serve."""
    return {
        pool: each
        for pool, each in deployments.items()
        if pool not in wanted
        and not each.leaves
        and each.spec.replicas
        and each.status.ready_replicas
    }


def one_by_one(seen: Situation, digests: Mapping[str, str]) -> frozenset[str]:
    """Return the pools whose old pods leave first; one begins at a time.

    Args:
        seen: The service.
        digests: What the template of each pool is kept under.
    """
    timeout_s = parse_duration(seen.rollout.surge_timeout)
    if not timeout_s:
        return frozenset()
    pools = [
        pool
        for pool in seen.wanted
        if pool in seen.deployments and not seen.deployments[pool].is_of_groups
    ]
    under_way = frozenset(
        pool
        for pool in pools
        if _mark(seen.deployments[pool]) == digests[pool]
        and not _complete(seen, pool)
        and not _bounds_of(seen, pool).missing
        and others_serve(seen, pool)
    )
    if under_way:
        return under_way
    for pool in pools:
        waits = (_waited_s(seen, pod) for pod in seen.pods if pod.pool == pool)
        if (
            _has_begun(seen.deployments[pool], digests[pool])
            and max(waits, default=0.0) >= timeout_s
            and others_serve(seen, pool)
        ):
            return frozenset({pool})
    return frozenset()


def _has_begun(deployment: Deployment, digest: str) -> bool:
    """Tell whether pods without a node can be of this template, and not of the one before it."""
    return (
        deployment.metadata.annotations.get(SPEC_HASH) == digest
        and deployment.status.observed_generation >= deployment.metadata.generation
        and deployment.status.updated_replicas > 0
    )


def _waited_s(seen: Situation, pod: Pod) -> float:
    """Return how long it has waited for a place that old pods keep; 0 where it does not."""
    if pod.leaves or pod.unschedulable_since is None or outlook(seen, pod) is not Outlook.HELD:
        return 0.0
    return (seen.now - pod.unschedulable_since).total_seconds()


def goes_one_by_one(deployment: Deployment) -> bool:
    """Tell whether a Deployment was told to let old pods leave first."""
    return bool(_mark(deployment))


class Outlook(StrEnum):
    """What becomes of a pod that no node has room for."""

    STUCK = "stuck"
    """No old pod of the service has a place that it could take."""
    COMING = "coming"
    """An old pod that has such a place leaves, or may."""
    HELD = "held"
    """Old pods have such places, and none may leave before this one is ready."""


def outlook(seen: Situation, pod: Pod) -> Outlook:
    """Return what becomes of a pod that the Kubernetes scheduler finds no node for."""
    before = _predecessors(seen, pod)
    fitting = [each for each in before if _could_take_the_place_of(pod, each)]
    if any(each.leaves for each in fitting):
        return Outlook.COMING
    if not fitting or len(fitting) < len(before):
        return Outlook.STUCK
    return Outlook.COMING if _bounds_of(seen, pod.pool).missing else Outlook.HELD


def _bounds_of(seen: Situation, pool: str) -> Bounds:
    """Return the bounds in force for a pool, which are the whole service's while one leaves."""
    return bounds(seen.rollout, seen.total if seen.leaving else seen.wanted[pool])


def _predecessors(seen: Situation, pod: Pod) -> list[Pod]:
    """Return the pods on nodes that this one replaces, and any that drain."""
    return [
        each
        for each in seen.pods
        if each.spec.node_name
        and each.status.phase not in ("Succeeded", "Failed")
        and (
            each.leaves
            or each.pool in seen.leaving
            or (each.pool == pod.pool and each.template_hash != pod.template_hash)
        )
    ]


def others_serve(seen: Situation, pool: str) -> bool:
    """Tell whether the service answers while one replica of `pool`, or before it, is missing.

    Where there are two, the bound itself keeps one of them.
    """
    if seen.leaving:
        return seen.total > 1
    return seen.wanted[pool] > 1 or any(
        each.status.ready_replicas for name, each in seen.deployments.items() if name != pool
    )


def handed_over(seen: Situation, slow: Iterable[str]) -> dict[str, int]:
    """Return the replicas of each pool: of the spec's, and of the others as far as they stay.

    Args:
        seen: The service.
        slow: Pools that go one by one.
    """
    if not seen.leaving:
        return dict(seen.wanted)
    surge, missing = _ONE_BY_ONE if set(slow) else bounds(seen.rollout, seen.total)
    mine = seen.deployments
    available = sum(
        min(mine[pool].status.available_replicas, number)
        for pool, number in seen.wanted.items()
        if pool in mine
    )
    stay = _lowered(seen.leaving, seen.total - missing - available)
    there = {
        pool: min(mine[pool].spec.replicas, number) if pool in mine else 0
        for pool, number in seen.wanted.items()
    }
    room = seen.total + surge - sum(there.values()) - sum(stay.values())
    for pool, number in seen.wanted.items():
        more = max(0, min(room, number - there[pool]))
        room -= more
        there[pool] += more
    return there | stay


def _lowered(deployments: Mapping[str, Deployment], needed: int) -> dict[str, int]:
    """Return as many replicas of these Deployments as are needed, and none of the others."""
    stay = {}
    for pool, each in sorted(deployments.items()):
        number = min(each.spec.replicas, needed)
        if number > 0:
            stay[pool] = number
            needed -= number
    return stay


def _mark(deployment: Deployment) -> str:
    return deployment.metadata.annotations.get(ONE_BY_ONE, "")


def _complete(seen: Situation, pool: str) -> bool:
    each, wanted = seen.deployments[pool], seen.wanted[pool]
    status = each.status
    return (
        not seen.leaving
        and status.observed_generation >= each.metadata.generation
        and min(status.updated_replicas, status.available_replicas) >= wanted
        and status.replicas <= wanted
    )


def _could_take_the_place_of(pod: Pod, other: Pod) -> bool:
    """Tell whether `pod` would fit where `other` is, once that has left.

    It does where both may run on the same nodes and it asks for no more of what is short. Where
    that is not told by name, it must ask for no more of anything.
    """
    short = set(_SHORT_OF.findall(pod.unschedulable))
    if not short and _may_be_short_of_anything(pod):
        short = pod.spec.resources
    return (
        bool(short)
        and pod.spec.scheduler_name == other.spec.scheduler_name
        and pod.spec.resource_claims == other.spec.resource_claims
        and pod.spec.placement == other.spec.placement
        and all(_no_more(pod.spec.requests(each), other.spec.requests(each)) for each in short)
    )


def _may_be_short_of_anything(pod: Pod) -> bool:
    """Tell whether it lacks devices, or another scheduler says in its own words what it lacks."""
    words = pod.unschedulable
    is_anothers = pod.spec.scheduler_name != "default-scheduler" and _ITS_WORDS not in words
    return is_anothers or _SHORT_OF_DEVICES in words


def _no_more(asked: Mapping[str, str], had: Mapping[str, str]) -> bool:
    """Tell whether no container asks for more than its namesake; what is unlike counts as more."""
    return all(
        amount == had.get(name)
        or (amount.isdigit() and had.get(name, "").isdigit() and int(amount) <= int(had[name]))
        for name, amount in asked.items()
    )
