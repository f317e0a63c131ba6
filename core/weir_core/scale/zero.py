"""Whether a service that may have no replicas has none: asleep, or woken.

All replicas go together, so it must be known of each that it has no request, and of each gateway
that none waits there: what could not be asked, starts or leaves keeps the service awake. Nothing
but a request that waits at a gateway brings a replica back, and that needs no other data.
"""

from __future__ import annotations

from weir_core.scale.pools import cheapest_first
from weir_core.scale.types import Phase, ScalingPolicy, ServiceLoad


def waiting_in(load: ServiceLoad) -> int:
    """Return the requests that wait for a first replica, as far as gateways could be asked."""
    return sum(one.waiting for one in load.replicas)


class Idleness:
    """For how long a service has had nothing to do."""

    def __init__(self) -> None:
        # When a replica was starting or leaving last.
        self._moved_s: float | None = None

    def note(self, load: ServiceLoad, now: float) -> None:
        """Note whether a replica starts or leaves, whatever else is known."""
        if any(one.phase is not Phase.READY for one in load.replicas):
            self._moved_s = now

    def is_over(self, load: ServiceLoad, policy: ScalingPolicy, now: float) -> bool:
        """Return whether no request came, waited or ran for the service's idle timeout.

        A replica that was just started has the whole time to get its first request: its client may
        have given up meanwhile, and come back. What could not be asked is not idle.
        """
        quiet_s = min((one.idle_s or 0.0 for one in load.replicas), default=0.0)
        if self._moved_s is not None:
            quiet_s = min(quiet_s, now - self._moved_s)
        if any(one.waiting for one in load.replicas) or policy.scale_down.select == "Disabled":
            return False
        return quiet_s >= policy.idle_timeout_s


def first_pool(load: ServiceLoad) -> str | None:
    """Return the pool whose replica a service is woken with: the cheapest, that serves all."""
    may = [pool for pool in cheapest_first(load.pools) if pool.max_replicas != 0]
    may.sort(key=lambda pool: bool(pool.unfit))
    return may[0].name if may else None
