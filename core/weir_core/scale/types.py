"""What the autoscaler is told and what it answers: plain values, no behaviour of their own.

Work is in engine seconds: what one replica, kept full, needs to compute it. A replica reports in
seconds of its own hardware. Sums of a service are in seconds of a replica of speed 1, and so are
needs: a need of 2.5 is the work of 2.5 such replicas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal


class Phase(Enum):
    """Where a replica is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class ClassWork:
    """The work of one class as one sidecar sees it.

    Attributes:
        offered: Engine seconds of work that arrive per second, what was rejected included.
        backlog_s: Engine seconds of work that wait.
        slack_s: Time until what waits is due; below 0 it is late.
    """

    name: str
    offered: float
    backlog_s: float = 0.0
    slack_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """One pod of a service: a replica, or a gateway, which has work and no pool.

    Attributes:
        pool: Empty for a gateway.
        since_s: How long it has been in its phase.
        started_in_s: How long it took from its creation to ready; None is not known.
        heard_s: Age of what it says; None where it could not be asked.
        work: By class, in its own engine seconds.
        running: Requests that its engine holds.
        drain_s: Predicted time until its running requests end.
        cached_tokens: Of its prefix cache, which is lost with it.
        waiting: Requests that wait at it because no replica takes them; of gateways.
        idle_s: Time since it had a request last, or since it was begun; 0 while it has one. None is
            not known.
        ordinal: Its number where the workload takes the highest first, whatever it serves; 0 where
            it does not.
    """

    name: str
    pool: str
    phase: Phase
    since_s: float = 0.0
    started_in_s: float | None = None
    heard_s: float | None = None
    work: tuple[ClassWork, ...] = ()
    running: int = 0
    drain_s: float = 0.0
    cached_tokens: int = 0
    waiting: int = 0
    idle_s: float | None = None
    ordinal: int = 0


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """One hardware pool.

    Attributes:
        replicas: Wanted of it at present (`spec.replicas` of its Deployment).
        speed: Engine seconds of work of a replica of speed 1 that its replicas do in a second.
        cost: Of a replica per hour, in any unit that all pools share.
        spot: It may be taken away at any time; of pools of one price it is used first.
        min_replicas: Of this pool.
        max_replicas: Of this pool; None leaves it to the service's own.
        unfit: Classes whose targets its hardware cannot meet, however empty it is.
    """

    name: str
    replicas: int
    speed: float = 1.0
    cost: float = 1.0
    spot: bool = False
    min_replicas: int = 0
    max_replicas: int | None = None
    unfit: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ClassTarget:
    """What a class is promised.

    Attributes:
        rank: Importance; higher goes first.
        target_s: How long its requests may wait: the target for their first token, or the longest
            wait in the queue where there is no such target.
    """

    name: str
    rank: int
    target_s: float


@dataclass(frozen=True, slots=True)
class ServiceLoad:
    """All that is known of a service at one instant."""

    classes: tuple[ClassTarget, ...]
    pools: tuple[PoolFacts, ...]
    replicas: tuple[ReplicaLoad, ...]


@dataclass(frozen=True, slots=True)
class RatePolicy:
    """Most of a change within a period, as in an HPA's `behavior`.

    Attributes:
        kind: `type`: what `value` counts, replicas or percent of those at the period's beginning.
    """

    kind: Literal["Pods", "Percent"]
    value: int
    period_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Direction:
    """How fast the number may change in one direction, as in an HPA's `behavior`.

    Attributes:
        window_s: `stabilizationWindowSeconds`: the mildest wish of so long a time is followed.
        policies: Bounds; none bounds nothing.
        select: `selectPolicy`: of the bounds the one that allows most, or least, or no change.
    """

    window_s: float = 0.0
    policies: tuple[RatePolicy, ...] = ()
    select: Literal["Max", "Min", "Disabled"] = "Max"


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """What a service's owner asks of its scaling.

    Attributes:
        min_replicas: Of all pools together. With 0 all of them go after `idle_timeout_s`, and a
            request that waits at a gateway brings one back; until then one stays.
        max_replicas: Of all pools together.
        target_load: Part of a replica's time that work may take, 0 to 1; the rest absorbs bursts.
        batch_target_load: The same with the work of patient classes included.
        patient_from_s: A class whose target is at least so long is patient.
        scale_up: Bounds on growing.
        scale_down: Bounds on shrinking.
        tolerance: Part by which the work may grow before what is left after shrinking is too
            little: a number that would soon be too small is not worth a change. Three times as much
            where the last change was growth.
        longest_drain_s: No replica is taken whose running requests are predicted to last longer.
        cold_start_s: Taken for the time that a replica needs to start before one was seen.
        oldest_data_s: What a sidecar said longer ago counts as missing.
        catch_up_s: Work that is late already is to be done within so long.
        idle_timeout_s: The last replica goes when no request came, waited or ran for so long.
    """

    min_replicas: int
    max_replicas: int
    target_load: float = 0.78
    batch_target_load: float = 0.85
    patient_from_s: float = 30.0
    scale_up: Direction = field(default_factory=Direction)
    scale_down: Direction = field(
        default_factory=lambda: Direction(window_s=900.0, policies=(RatePolicy("Pods", 1),))
    )
    tolerance: float = 0.1
    longest_drain_s: float = 120.0
    cold_start_s: float = 120.0
    oldest_data_s: float = 15.0
    catch_up_s: float = 600.0
    idle_timeout_s: float = 600.0


class Verdict(Enum):
    """Why the number is what it is; the values are reasons of the condition `ScalingReady`."""

    SCALED_UP = "ScaledUp"
    SCALED_DOWN = "ScaledDown"
    STEADY = "Steady"
    WAITING = "WaitingToShrink"
    AT_MOST = "AtMaxReplicas"
    DATA_MISSING = "DataMissing"
    ASLEEP = "Asleep"
    WOKEN = "Woken"


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas of each pool there shall be, and why.

    Attributes:
        replicas: Pool -> its number.
        reason: Stable code.
        message: The reason in a sentence or two.
        need: Replicas of speed 1 that the work takes; None where data is missing.
        inputs: What went into it, for metrics: name -> value.
        victims: Pool -> its replicas, the one with the least to lose first.
    """

    replicas: Mapping[str, int]
    reason: Verdict
    message: str
    need: float | None = None
    inputs: Mapping[str, float] = field(default_factory=dict)
    victims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Return the replicas of all pools."""
        return sum(self.replicas.values())
