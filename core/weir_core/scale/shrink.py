"""Which replica goes when there are more than needed, and whether one may go now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from weir_core.scale.demand import ready_capacity
from weir_core.scale.pools import cheapest_first
from weir_core.scale.types import Phase, ReplicaLoad, ScalingPolicy, ServiceLoad


def victims_of(replicas: Iterable[ReplicaLoad], pool: str) -> tuple[str, ...]:
    """Return a pool's replicas in the order in which they shall go: the least to lose first.

    Those that serve nothing yet go before all others, the last one first, because it is the
    farthest from being ready; then those with the fewest requests, and the least cached. Where the
    workload takes the highest number first, that is the order.
    """
    mine = [one for one in replicas if one.pool == pool and one.phase is not Phase.DRAINING]
    mine.sort(
        key=lambda one: (
            -one.ordinal,
            one.phase is Phase.READY,
            0.0 if one.phase is Phase.READY else one.since_s,
            one.running,
            one.drain_s,
            one.cached_tokens,
            one.name,
        )
    )
    return tuple(one.name for one in mine)


def one_leaves(
    held: Mapping[str, int],
    counts: Mapping[str, int],
    load: ServiceLoad,
    policy: ScalingPolicy,
    need: float,
) -> dict[str, int]:
    """Let one pool at most shrink, the most expensive, and only where that harms nothing.

    No replica goes while another drains or a pool grows, where the ready ones that stay would not
    do the work, or where its running requests would take long to end.
    """
    grows = any(counts[name] > held[name] for name in counts)
    has_gone = grows or any(one.phase is Phase.DRAINING for one in load.replicas)
    result = dict(counts)
    for pool in reversed(cheapest_first(load.pools)):
        name = pool.name
        if counts[name] >= held[name]:
            continue
        leaving = victims_of(load.replicas, name)[: held[name] - counts[name]]
        if has_gone or not _may_go(leaving, load, policy, need):
            result[name] = held[name]
        else:
            has_gone = True
    return result


def _may_go(leaving: Sequence[str], load: ServiceLoad, policy: ScalingPolicy, need: float) -> bool:
    left = [one for one in load.replicas if one.name not in leaving]
    drains = [one.drain_s for one in load.replicas if one.name in leaving]
    stays = ready_capacity(replace(load, replicas=tuple(left)))
    was = ready_capacity(load)
    return max(drains, default=0.0) <= policy.longest_drain_s and (stays >= need or stays == was)
