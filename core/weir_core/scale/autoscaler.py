"""Decides how many replicas a service has: up at once, down late and one at a time.

It is a state machine like the scheduler: told what is known of a service every few seconds, it
answers with a number for each pool and the reason. It remembers what it wished in the window of
`scale_down`, how offered work grew, and how long replicas took to start. A new one has seen
nothing, so it shrinks nothing before a whole window has passed; it needs no memory across restarts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from weir_core.scale.demand import Demand, Trend, demand_of, needs, ready_capacity
from weir_core.scale.explain import Finding, inputs_of, missing_data, verdict, words
from weir_core.scale.pools import bounded, place
from weir_core.scale.shrink import one_leaves, victims_of
from weir_core.scale.types import (
    Decision,
    Direction,
    PoolFacts,
    RatePolicy,
    ReplicaLoad,
    ScalingPolicy,
    ServiceLoad,
    Verdict,
)

_LONGEST_GAP_S: Final = 60.0
_STARTS: Final = 8
"""Starts that are remembered of a pool."""


class Autoscaler:
    """The scaling of one service."""

    def __init__(self) -> None:
        self._trends: dict[str, Trend] = {}
        # Pool -> its wishes of the window, as (when, replicas).
        self._wishes: dict[str, deque[tuple[float, int]]] = {}
        # Pool -> what it was changed to, as (when, replicas before, replicas after).
        self._changes: dict[str, deque[tuple[float, int, int]]] = {}
        self._starts: dict[str, deque[tuple[str, float]]] = {}
        # When the present window of data began, and when there was data last.
        self._since_s = 0.0
        self._seen_s: float | None = None

    def decide(self, load: ServiceLoad, policy: ScalingPolicy, now: float) -> Decision:
        """Return the replicas of each pool; ask every few seconds, on a clock that never jumps."""
        self._learn_starts(load.replicas)
        asked = {pool.name: pool.replicas for pool in load.pools}
        load = replace(load, pools=tuple(bounded(load.pools, policy)))
        held = {pool.name: pool.replicas for pool in load.pools}
        victims = {pool.name: victims_of(load.replicas, pool.name) for pool in load.pools}
        missing = missing_data(load.replicas, policy)
        if missing is not None:
            return Decision(held, Verdict.DATA_MISSING, missing, victims=victims)
        self._note_seen(now)
        finding = self._find(load, policy, now)
        counts = {
            pool.name: self._follow(pool, finding.wished[pool.name], policy, now)
            for pool in load.pools
        }
        counts = one_leaves(held, counts, load, policy, finding.need)
        for name, count in counts.items():
            self._note_change(name, asked[name], count, policy, now)
        before, after = sum(asked.values()), sum(counts.values())
        reason = verdict(finding, before, after, load)
        message = words(finding, before, after, policy)
        return Decision(counts, reason, message, finding.need, inputs_of(finding), victims)

    def _find(self, load: ServiceLoad, policy: ScalingPolicy, now: float) -> Finding:
        horizon_s = self._horizon_s(load, policy)
        demands = demand_of(load)
        ahead = self._ahead(demands, horizon_s, now)
        found = needs(demands, ahead, ready_capacity(load), horizon_s, policy)
        return Finding(demands, ahead, found, horizon_s, place(found, load.pools, policy))

    def _note_seen(self, now: float) -> None:
        """Begin a new window after a time without data: what it would have asked is not known."""
        if self._seen_s is None or now - self._seen_s > _LONGEST_GAP_S:
            self._since_s = now
        self._seen_s = now

    def cold_start_s(self, pool: str) -> float | None:
        """Return how long the slower of a pool's replicas took to start; None before one did."""
        started = sorted(took_s for _, took_s in self._starts.get(pool, ()))
        return started[3 * len(started) // 4] if started else None

    def _learn_starts(self, replicas: Iterable[ReplicaLoad]) -> None:
        for replica in replicas:
            if replica.started_in_s is None or not replica.pool:
                continue
            starts = self._starts.setdefault(replica.pool, deque(maxlen=_STARTS))
            if all(name != replica.name for name, _ in starts):
                starts.append((replica.name, replica.started_in_s))

    def _horizon_s(self, load: ServiceLoad, policy: ScalingPolicy) -> float:
        """Return the time after which a replica asked for now is ready, in the slowest pool."""
        known = [self.cold_start_s(pool.name) for pool in load.pools]
        return max(policy.cold_start_s if took_s is None else took_s for took_s in known)

    def _ahead(
        self, demands: Sequence[Demand], horizon_s: float, now: float
    ) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for demand in demands:
            trend = self._trends.setdefault(demand.target.name, Trend())
            trend.add(demand.offered, now)
            found[demand.target.name] = trend.ahead(horizon_s)
        return found

    def _follow(self, pool: PoolFacts, wish: int, policy: ScalingPolicy, now: float) -> int:
        """Return what windows and rates make of a wish."""
        kept_s = max(policy.scale_up.window_s, policy.scale_down.window_s)
        wishes = self._wishes.setdefault(pool.name, deque())
        wishes.append((now, wish))
        while wishes[0][0] < now - kept_s:
            wishes.popleft()
        least = min(_within(wishes, now - policy.scale_up.window_s))
        if least > pool.replicas:
            most = self._bound(pool, policy.scale_up, now, 1)
            return least if most is None else min(least, most)
        highest = max(_within(wishes, now - policy.scale_down.window_s))
        if highest >= pool.replicas or self._is_young(policy, now):
            return pool.replicas
        lowest = self._bound(pool, policy.scale_down, now, -1)
        return highest if lowest is None else max(highest, lowest)

    def _is_young(self, policy: ScalingPolicy, now: float) -> bool:
        """Return whether less than a window was seen: what was asked of it before is not known."""
        return now < self._since_s + policy.scale_down.window_s

    def _bound(self, pool: PoolFacts, way: Direction, now: float, sign: int) -> int | None:
        """Return how far a pool may go in one direction; None for as far as it likes."""
        if way.select == "Disabled":
            return pool.replicas
        steps = [self._step_left(pool, rate, now, sign) for rate in way.policies]
        if not steps:
            return None
        step = max(steps) if way.select == "Max" else min(steps)
        return max(0, pool.replicas + sign * max(0, step))

    def _step_left(self, pool: PoolFacts, rate: RatePolicy, now: float, sign: int) -> int:
        """Return what a rate leaves of its period's change."""
        gone = sum(
            max(0, (after - before) * sign)
            for at, before, after in self._changes.get(pool.name, ())
            if at > now - rate.period_s
        )
        if rate.kind == "Pods":
            return rate.value - gone
        return math.ceil((pool.replicas - sign * gone) * rate.value / 100) - gone

    def _note_change(
        self, pool: str, before: int, after: int, policy: ScalingPolicy, now: float
    ) -> None:
        periods = [
            rate.period_s for way in (policy.scale_up, policy.scale_down) for rate in way.policies
        ]
        changes = self._changes.setdefault(pool, deque())
        while changes and changes[0][0] < now - max(periods, default=0.0):
            changes.popleft()
        if after != before:
            changes.append((now, before, after))


def _within(wishes: Iterable[tuple[float, int]], since_s: float) -> Iterable[int]:
    return (wish for at, wish in wishes if at >= since_s)
