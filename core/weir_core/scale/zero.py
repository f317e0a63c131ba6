"""Whether a service that may have no replicas has none: asleep, or woken.

All replicas go together, so it must be known of each that it has no request, and of each gateway
that none waits there: what could not be asked, starts or leaves keeps the service awake. A replica
that never becomes ready does not do so for ever: it goes once no request has waited for it for a
start's time and the idle timeout. The next one gets twice that, and so on until one is ready: a
model may take longer to load than a start was taken to, with no client that waits for it. Nothing
but a request that waits at a gateway brings a replica
back, and that needs no other data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from weir_core.scale.pools import cheapest_first
from weir_core.scale.types import Phase, ReplicaLoad, ScalingPolicy, ServiceLoad

_LONGEST_START_S: Final = 3600.0
"""An engine that loads for longer is ended by its own probe."""


def waiting_in(load: ServiceLoad) -> int:
    """Return the requests that wait for a first replica, as far as gateways could be asked."""
    return sum(one.waiting for one in load.replicas)


class Idleness:
    """For how long a service has had nothing to do."""

    def __init__(self) -> None:
        # When a replica was starting or leaving last.
        self._moved_s: float | None = None
        # Since when there should be replicas, and none is ready.
        self._unready_s: float | None = None
        # Whether the present start was given up, and how many were since a replica was ready.
        self._is_given_up = False
        self._given_up = 0

    def note(self, load: ServiceLoad, now: float) -> None:
        """Note whether a replica starts or leaves, and whether one is ready, whatever else is."""
        if any(one.phase is not Phase.READY for one in load.replicas):
            self._moved_s = now
        is_served = any(one.pool and one.phase is Phase.READY for one in load.replicas)
        if is_served or not any(pool.replicas for pool in load.pools):
            self.begin_anew()
        elif self._unready_s is None:
            self._unready_s = now
        if is_served:
            self._given_up = 0

    def begin_anew(self) -> None:
        """Note that the next replica that is not ready is of another start."""
        self._unready_s = None
        self._given_up += self._is_given_up
        self._is_given_up = False

    def patience_s(self, policy: ScalingPolicy, start_s: float) -> float:
        """Return for how long no request may wait for a replica that is not ready."""
        longest_s = policy.idle_timeout_s + max(start_s, _LONGEST_START_S)
        # Of so many doublings any number is more than the longest.
        return min((policy.idle_timeout_s + start_s) * 2.0 ** min(self._given_up, 16), longest_s)

    def is_over(self, load: ServiceLoad, policy: ScalingPolicy, now: float) -> bool:
        """Return whether no request came, waited or ran for the service's idle timeout.

        A replica that was just started has the whole time to get its first request: its client may
        have given up meanwhile, and come back. What could not be asked is not idle.
        """
        quiet_s = _quiet_s(load.replicas)
        if self._moved_s is not None:
            quiet_s = min(quiet_s, now - self._moved_s)
        if waiting_in(load) or policy.scale_down.select == "Disabled":
            return False
        return quiet_s >= policy.idle_timeout_s

    def is_in_vain(
        self, load: ServiceLoad, policy: ScalingPolicy, start_s: float, now: float
    ) -> bool:
        """Return whether replicas do not become ready, and no request has waited for long.

        The image may be wrong, the engine may fail, or no node may have room: time tells these from
        a start that is slow. A replica that did start would go as late, if no request came.

        Args:
            load: What is known.
            policy: What is asked.
            start_s: How long a start takes.
            now: The time.
        """
        if not may_be_none(load, policy) or policy.scale_down.select == "Disabled":
            return False
        if self._unready_s is None or waiting_in(load):
            return False
        # A gateway that starts is not in the Service yet, so it has had no request.
        gateways = [
            one for one in load.replicas if not one.pool and one.phase is not Phase.STARTING
        ]
        quiet_s = min(_quiet_s(gateways), now - self._unready_s)
        is_in_vain = quiet_s >= self.patience_s(policy, start_s)
        self._is_given_up |= is_in_vain
        return is_in_vain


def may_be_none(load: ServiceLoad, policy: ScalingPolicy) -> bool:
    """Return whether the service may have no replica at all."""
    return policy.min_replicas == 0 and not any(pool.min_replicas for pool in load.pools)


def _quiet_s(replicas: Iterable[ReplicaLoad]) -> float:
    """Return for how long none of them has had a request; 0 where one has not said so."""
    return min((one.idle_s or 0.0 for one in replicas), default=0.0)


def first_pool(load: ServiceLoad) -> str | None:
    """Return the pool whose replica a service is woken with: the cheapest, that serves all."""
    may = [pool for pool in cheapest_first(load.pools) if pool.max_replicas != 0]
    may.sort(key=lambda pool: bool(pool.unfit))
    return may[0].name if may else None
