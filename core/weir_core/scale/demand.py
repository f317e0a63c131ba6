"""How much work a service has, and how many replicas that takes.

Classes count by rank. Each rank must be done together with all above it, so the need is the largest
of the needs of the ranks: interactive and standard work may take `target_load` of the replicas'
time, and with patient classes on top it may take `batch_target_load`.

What has to be ready for a class whose target is shorter than a cold start is its offered work at
the time when a replica that is asked for now is ready. A class that may wait longer than that asks
for nothing until its backlog is due so soon that it must be begun: its backlog over the time left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

from weir_core.scale.types import ClassTarget, Phase, ScalingPolicy, ServiceLoad

_GROWTH_LIMIT: Final = 1.5
"""Times the present work that a trend may foresee: noise of a small service looks like a trend."""
_BIN_S: Final = 30.0
_BINS: Final = 12
"""Half minutes by which a trend is seen."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The work of one class over the whole service, in seconds of a replica of speed 1.

    Attributes:
        slack_s: Time until its backlog is due, the mean over the work that waits.
    """

    target: ClassTarget
    offered: float
    backlog_s: float
    slack_s: float


def demand_of(load: ServiceLoad) -> list[Demand]:
    """Return each class's work, the highest rank first."""
    speeds = {pool.name: pool.speed for pool in load.pools}
    offered = {target.name: 0.0 for target in load.classes}
    backlog = dict(offered)
    slack = dict(offered)
    for replica in load.replicas:
        speed = speeds.get(replica.pool, 1.0)
        for work in replica.work:
            if work.name in offered:
                offered[work.name] += work.offered * speed
                backlog[work.name] += work.backlog_s * speed
                slack[work.name] += work.backlog_s * speed * work.slack_s
    return [
        Demand(
            target,
            offered[target.name],
            backlog[target.name],
            slack[target.name] / backlog[target.name] if backlog[target.name] else 0.0,
        )
        for target in sorted(load.classes, key=lambda target: (-target.rank, target.name))
    ]


class Trend:
    """What a class's offered work grows to, from how it has grown in the last minutes.

    The slope is one that four fifths of the slopes between all pairs of half minutes exceed. It is
    that of a ramp. A step or a burst, which would otherwise look like a steep ramp, has none:
    however it divides the time, and though sidecars' rates follow it in a minute or two only, at
    least a fifth of the pairs lie on one side of it.
    """

    def __init__(self) -> None:
        # Half minutes, as (number, sum of the samples, samples).
        self._bins: deque[tuple[int, float, int]] = deque(maxlen=_BINS)
        self._present = 0.0
        self._growth = 0.0

    def add(self, offered: float, now: float) -> None:
        """Note the offered work at `now`."""
        self._present = offered
        number = int(now // _BIN_S)
        if not self._bins or self._bins[-1][0] != number:
            self._growth = self._slope()
            self._bins.append((number, offered, 1))
            return
        _, total, samples = self._bins.pop()
        self._bins.append((number, total + offered, samples + 1))

    def ahead(self, horizon_s: float) -> float:
        """Return the work that will be offered in `horizon_s`, never less than at present."""
        present = self._present
        return max(present, min(present + self._growth * horizon_s, _GROWTH_LIMIT * present))

    def _slope(self) -> float:
        """Return the growth per second, over whole half minutes; 0 until there are enough."""
        if len(self._bins) < _BINS:
            return 0.0
        points = [(number * _BIN_S, total / samples) for number, total, samples in self._bins]
        slopes = sorted(
            (later - earlier) / (at - since)
            for (since, earlier), (at, later) in combinations(points, 2)
        )
        return slopes[len(slopes) // 5]


@dataclass(frozen=True, slots=True)
class ClassNeed:
    """What the classes down to this rank take together, in replicas of speed 1."""

    target: ClassTarget
    rate: float
    load: float

    @property
    def replicas(self) -> float:
        """Return the replicas that work of this rate keeps as busy as it may."""
        return self.rate / self.load

    def at_load(self, least: float) -> ClassNeed:
        """Return the same need where replicas may be at least so busy."""
        return self if self.load >= least else replace(self, load=least)


def needs(
    demands: Sequence[Demand],
    ahead: Mapping[str, float],
    capacity: float,
    horizon_s: float,
    policy: ScalingPolicy,
) -> list[ClassNeed]:
    """Return the need of each rank with all above it, the highest rank first.

    Args:
        demands: The highest rank first.
        ahead: Class -> work that will be offered when a replica asked for now is ready.
        capacity: Work that the ready replicas do in a second.
        horizon_s: Time until a replica asked for now is ready.
        policy: The service's.
    """
    found: list[ClassNeed] = []
    rate = taken = 0.0
    for demand in demands:
        target = demand.target
        spare = max(0.0, capacity - taken - demand.offered)
        left_s = max(demand.slack_s, 0.0)
        if target.target_s <= horizon_s:
            rate += ahead[target.name]
            # The ready replicas work on it while more of them start.
            left_s = min(left_s, horizon_s)
            backlog_s = max(0.0, demand.backlog_s - spare * horizon_s)
            rate += backlog_s / max(policy.catch_up_s, left_s)
        else:
            rate += demand.backlog_s / max(policy.catch_up_s, left_s - horizon_s)
        taken += demand.offered
        is_patient = target.target_s >= policy.patient_from_s
        load = policy.batch_target_load if is_patient else policy.target_load
        found.append(ClassNeed(target, rate, load))
    return found


def ready_capacity(load: ServiceLoad) -> float:
    """Return the work that the ready replicas do in a second."""
    speeds = {pool.name: pool.speed for pool in load.pools}
    return sum(
        speeds.get(replica.pool, 0.0) for replica in load.replicas if replica.phase is Phase.READY
    )
