"""Which pools serve a need: the cheapest work first, on hardware that can meet the targets.

Cost is compared per work done, so a fast replica may be the cheaper one. At equal cost spot pools
go first. The classes are placed by rank; a class whose targets a pool cannot meet is placed on the
next one, and lower classes fill what rounding to whole replicas has left.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from weir_core.scale.demand import ClassNeed
from weir_core.scale.types import PoolFacts, ScalingPolicy

_ROUNDING: Final = 1e-9
"""Sums of floats are not to ask for one more replica."""
_FASTER: Final = 64.0
"""Times another pool's that a pool's speed may be, whatever its replicas tell."""


def cheapest_first(pools: Sequence[PoolFacts]) -> list[PoolFacts]:
    """Return pools in the order in which they are used."""
    return sorted(pools, key=lambda pool: (pool.cost / pool.speed, not pool.spot, pool.name))


def with_speeds(
    pools: Sequence[PoolFacts], token_s: Mapping[str, Sequence[float]]
) -> tuple[PoolFacts, ...]:
    """Return pools with their speeds; one of which no replica tells is taken for the usual.

    Args:
        pools: Of one service.
        token_s: Pool -> the times per prompt token that its ready replicas tell.
    """
    known = {name: statistics.median(times) for name, times in token_s.items()}
    usual = next((known[pool.name] for pool in pools if pool.name in known), 1.0)
    return tuple(
        replace(pool, speed=min(_FASTER, max(1 / _FASTER, usual / known.get(pool.name, usual))))
        for pool in pools
    )


def place(
    needs: Sequence[ClassNeed], pools: Sequence[PoolFacts], policy: ScalingPolicy
) -> dict[str, int]:
    """Return the replicas of each pool that serve `needs` at the least cost.

    What no pool can take any more is left out: pools are at their most then.

    Args:
        needs: Of each rank with all above it, the highest rank first.
        pools: At least one.
        policy: Bounds of all pools together.
    """
    order = cheapest_first(pools)
    counts = {pool.name: pool.min_replicas for pool in pools}
    free = {pool.name: pool.min_replicas * pool.speed for pool in pools}
    placed = 0.0
    for need in needs:
        wanted = max(0.0, need.replicas - placed)
        placed += wanted
        fit = [pool for pool in order if need.target.name not in pool.unfit]
        for pool in fit:
            wanted = _fill(wanted, pool, free)
        for pool in fit:
            more = math.ceil(wanted / pool.speed - _ROUNDING)
            more = max(0, min(more, _room(pool, counts, policy)))
            counts[pool.name] += more
            free[pool.name] += more * pool.speed
            wanted = _fill(wanted, pool, free)
    for pool in order:
        short = max(1, policy.min_replicas) - sum(counts.values())
        counts[pool.name] += max(0, min(short, _room(pool, counts, policy)))
    return counts


def bounded(pools: Sequence[PoolFacts], policy: ScalingPolicy) -> list[PoolFacts]:
    """Return pools whose numbers keep to all bounds, changed as little as that takes."""
    counts = {pool.name: max(pool.replicas, pool.min_replicas) for pool in pools}
    for pool in reversed(cheapest_first(pools)):
        most = counts[pool.name] if pool.max_replicas is None else pool.max_replicas
        over = max(counts[pool.name] - most, sum(counts.values()) - policy.max_replicas)
        counts[pool.name] -= max(0, min(over, counts[pool.name] - pool.min_replicas))
    for pool in cheapest_first(pools):
        short = min(policy.min_replicas - sum(counts.values()), _room(pool, counts, policy))
        counts[pool.name] += max(0, short)
    return [replace(pool, replicas=counts[pool.name]) for pool in pools]


def _fill(wanted: float, pool: PoolFacts, free: dict[str, float]) -> float:
    """Put work on what is free of a pool; return what is left of it."""
    taken = min(wanted, free[pool.name])
    free[pool.name] -= taken
    return wanted - taken


def _room(pool: PoolFacts, counts: Mapping[str, int], policy: ScalingPolicy) -> int:
    """Return by how many replicas a pool may still grow."""
    left = policy.max_replicas - sum(counts.values())
    if pool.max_replicas is not None:
        left = min(left, pool.max_replicas - counts[pool.name])
    return max(0, left)
