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
from weir_core.scale.explain import (
    Finding,
    inputs_of,
    missing_data,
    verdict,
    why_asleep,
    why_given_up,
    why_held,
    why_woken,
    words,
)
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
from weir_core.scale.zero import Idleness, first_pool, may_be_none, waiting_in

_SETTLE_S: Final = 600.0
_FULL_LOAD: Final = 0.95
_FIRST_SHRINK: Final = 3.0
"""Times the tolerance that is kept in hand at the first shrinking after growth."""
_LONGEST_GAP_S: Final = 60.0
_STARTS: Final = 8
"""Starts that are remembered of a pool."""


class Autoscaler:
    """The scaling of one service."""

    def __init__(self) -> None:
        self._trends: dict[str, Trend] = {}
        # Pool -> its wishes of the window, as (when, replicas, replicas to keep).
        self._wishes: dict[str, deque[tuple[float, int, int]]] = {}
        # Pool -> what it was changed to, as (when, replicas before, replicas after).
        self._changes: dict[str, deque[tuple[float, int, int]]] = {}
        self._starts: dict[str, deque[float]] = {}
        # Replicas whose start is among these.
        self._timed: set[str] = set()
        # Whether it last grew (1) or shrank (-1), and when that began.
        self._way = 0
        self._turned_s = 0.0
        # When the present window of data began, and when there was data last.
        self._since_s = 0.0
        self._seen_s: float | None = None
        # Pool -> when it was there first.
        self._begun: dict[str, float] = {}
        self._idleness = Idleness()

    def decide(self, load: ServiceLoad, policy: ScalingPolicy, now: float) -> Decision:
        """Return the replicas of each pool; ask every few seconds, on a clock that never jumps."""
        self._learn_starts(load.replicas)
        asked = {pool.name: pool.replicas for pool in load.pools}
        load = replace(load, pools=tuple(bounded(load.pools, policy)))
        held = {pool.name: pool.replicas for pool in load.pools}
        if not any(held.values()):
            woken = self._woken(load, policy)
            if woken is not None:
                return woken
        victims = {pool.name: victims_of(load.replicas, pool.name) for pool in load.pools}
        self._idleness.note(load, now)
        start_s = self._horizon_s(load, policy)
        if self._idleness.is_in_vain(load, policy, start_s, now):
            counts = dict.fromkeys(held, 0)
            quiet_s = self._idleness.patience_s(policy, start_s)
            message = why_given_up(sum(asked.values()), quiet_s)
            return Decision(counts, Verdict.ASLEEP, message, victims=victims)
        missing = missing_data(load, policy)
        if missing is not None:
            message = why_held(missing, sum(asked.values()), sum(held.values()))
            return Decision(held, Verdict.DATA_MISSING, message, victims=victims)
        self._note_seen(now)
        self._note_pools(held, now)
        finding = self._find(load, policy, now)
        if self._sleeps(load, policy, finding, now):
            return self._asleep(load, policy, finding, asked)
        counts = {
            pool.name: self._follow(
                pool, finding.wished[pool.name], finding.kept[pool.name], policy, now
            )
            for pool in load.pools
        }
        counts = one_leaves(held, counts, load, policy, finding.need)
        for name, count in counts.items():
            self._note_change(name, asked[name], count, policy, now)
        before, after = sum(asked.values()), sum(counts.values())
        self._note_way(before, after, now)
        reason = verdict(finding, before, after, load)
        message = words(finding, before, after, policy)
        return Decision(counts, reason, message, finding.need, inputs_of(finding), victims)

    def _woken(self, load: ServiceLoad, policy: ScalingPolicy) -> Decision | None:
        """Return the first replica for what waits at the gateways; None where nothing does.

        Windows and rates bound what follows it, and missing data of one gateway no request at
        another.
        """
        waiting, pool = waiting_in(load), first_pool(load)
        if not waiting or pool is None:
            return None
        self._idleness.begin_anew()
        counts = {each.name: int(each.name == pool) for each in load.pools}
        message = why_woken(waiting, self._horizon_s(load, policy))
        return Decision(counts, Verdict.WOKEN, message, inputs={"waiting": float(waiting)})

    def _sleeps(
        self, load: ServiceLoad, policy: ScalingPolicy, finding: Finding, now: float
    ) -> bool:
        """Return whether there is to be no replica: at once, once the others have gone."""
        if not may_be_none(load, policy):
            return False
        is_idle = self._idleness.is_over(load, policy, now)
        held = sum(pool.replicas for pool in load.pools)
        return held == 0 or (is_idle and held <= sum(finding.kept.values()))

    def _asleep(
        self,
        load: ServiceLoad,
        policy: ScalingPolicy,
        finding: Finding,
        asked: Mapping[str, int],
    ) -> Decision:
        counts = {pool.name: 0 for pool in load.pools}
        victims = {name: victims_of(load.replicas, name) for name in counts}
        message = why_asleep(sum(asked.values()), policy, finding.horizon_s)
        inputs = inputs_of(finding)
        return Decision(counts, Verdict.ASLEEP, message, finding.need, inputs, victims)

    def _find(self, load: ServiceLoad, policy: ScalingPolicy, now: float) -> Finding:
        horizon_s = self._horizon_s(load, policy)
        demands = demand_of(load)
        ahead = self._ahead(demands, horizon_s, now)
        found = needs(demands, ahead, ready_capacity(load), horizon_s, policy)
        least = _FULL_LOAD if self._has_just_turned(now) else 0.0
        wished = place([each.at_load(least) for each in found], load.pools, policy)
        margin = 1.0 + policy.tolerance * (_FIRST_SHRINK if self._way > 0 else 1.0)
        grown = [replace(each, rate=each.rate * margin) for each in found]
        kept = place(grown, load.pools, policy)
        return Finding(demands, ahead, found, horizon_s, wished, kept)

    def _has_just_turned(self, now: float) -> bool:
        """Return whether it began to shrink of late: then only what cannot be served turns it back.

        The margin of the target load is there for that; without this the number would swing.
        """
        return self._way < 0 and now < self._turned_s + _SETTLE_S

    def _note_way(self, before: int, after: int, now: float) -> None:
        way = (after > before) - (after < before)
        if way and way != self._way:
            self._way, self._turned_s = way, now

    def _note_seen(self, now: float) -> None:
        """Begin a new window after a time without data: what it would have asked is not known."""
        if self._seen_s is None or now - self._seen_s > _LONGEST_GAP_S:
            self._since_s = now
        self._seen_s = now

    def _note_pools(self, names: Iterable[str], now: float) -> None:
        """Forget pools that are gone, and begin a window for those that are new."""
        self._begun = {name: self._begun.get(name, now) for name in names}
        for memory in (self._wishes, self._changes, self._starts):
            for name in memory.keys() - self._begun.keys():
                del memory[name]

    def cold_start_s(self, pool: str) -> float | None:
        """Return how long the slower of a pool's replicas took to start; None before one did."""
        started = sorted(self._starts.get(pool, ()))
        return started[3 * len(started) // 4] if started else None

    def _learn_starts(self, replicas: Iterable[ReplicaLoad]) -> None:
        """Note how long those took that are ready for the first time."""
        timed = {one.name: one for one in replicas if one.pool and one.started_in_s is not None}
        for name in timed.keys() - self._timed:
            one = timed[name]
            starts = self._starts.setdefault(one.pool, deque(maxlen=_STARTS))
            starts.append(one.started_in_s or 0.0)
        self._timed = set(timed)

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

    def _follow(
        self, pool: PoolFacts, wish: int, kept: int, policy: ScalingPolicy, now: float
    ) -> int:
        """Return what windows and rates make of a wish; it may shrink to `kept` at most."""
        windows = (policy.scale_up.window_s, policy.scale_down.window_s)
        wishes = self._wishes.setdefault(pool.name, deque())
        wishes.append((now, wish, kept))
        while wishes[0][0] < now - max(windows):
            wishes.popleft()
        least = min(wish for at, wish, _ in wishes if at >= now - windows[0])
        if least > pool.replicas:
            most = self._bound(pool, policy.scale_up, now, 1)
            return least if most is None else min(least, most)
        highest = max(kept for at, _, kept in wishes if at >= now - windows[1])
        if highest >= pool.replicas or self._is_young(pool, policy, now):
            return pool.replicas
        lowest = self._bound(pool, policy.scale_down, now, -1)
        return highest if lowest is None else max(highest, lowest)

    def _is_young(self, pool: PoolFacts, policy: ScalingPolicy, now: float) -> bool:
        """Return whether less than a window was seen: what was asked of it before is not known."""
        since_s = max(self._since_s, self._begun[pool.name])
        return now < since_s + policy.scale_down.window_s

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
