"""Admission: who is rejected on arrival, and who is rejected in a newcomer's place.

In this order: a tenant over its limits is told to come back; what the engine could take at once
is never rejected; what would be late behind those who wait is rejected now rather than later; and
where the pool is full, lower ranks make room if that suffices.

Every rejection says when to come back: when the tenant's budget has refilled, or when the measured
drain rate will have worked off what is ahead.
"""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple

from weir_core.sched.engine_load import EngineLoad
from weir_core.sched.forecast import Forecast
from weir_core.sched.limits import TenantLimits, evictions
from weir_core.sched.policies import Rules
from weir_core.sched.pool import Pool
from weir_core.sched.tickets import Ticket
from weir_core.sched.types import PoolLimits, Reason, Reject

_RETRY_AFTER_S: Final = (1.0, 39.0)
"""Before it is spread; JavaScript clients take 60 s and more for none."""


class Rejection(NamedTuple):
    """Who is rejected, why, and for how long.

    Attributes:
        wait_s: After which another attempt makes sense, in seconds.
    """

    ticket: Ticket
    reason: Reason
    wait_s: float

    def action(self) -> Reject:
        """Return the rejection as its client hears it.

        The time is spread by up to half, so that rejected clients do not come back as one; the
        spread comes from the id, which keeps replays equal.
        """
        request_id = self.ticket.request.request_id
        least, most = _RETRY_AFTER_S
        spread = 1.0 + 0.5 * zlib.crc32(request_id.encode()) / 0xFFFFFFFF
        return Reject(request_id, self.reason, min(most, max(least, self.wait_s)) * spread)


class AdmissionControl:
    """Looks at newcomers; changes nothing.

    Attributes:
        tenants: What each tenant has in flight and has used.
        limits: What may wait.
    """

    def __init__(
        self,
        rules: Rules,
        pool: Pool,
        engine_load: EngineLoad,
        forecast: Forecast,
        limits: PoolLimits,
    ) -> None:
        self.tenants = TenantLimits()
        self._rules = rules
        self._pool = pool
        self._engine_load = engine_load
        self._forecast = forecast
        self.limits = limits

    def over_limit(self, newcomer: Ticket, now: float) -> Rejection | None:
        """Return the rejection of a newcomer whose tenant has limits and is over them."""
        if not self.tenants.allows(newcomer.payer, newcomer.sequences):
            return Rejection(newcomer, Reason.TOO_LARGE, 0.0)
        if (wait_s := self.tenants.wait_s(newcomer.payer, newcomer.sequences, now)) > 0:
            return Rejection(newcomer, Reason.TENANT_LIMIT, wait_s)
        return None

    def rejections(self, newcomer: Ticket, now: float) -> list[Rejection]:
        """Return who is rejected so that others can wait: the newcomer, or lower ranks for it."""
        if not self._must_wait(newcomer, now):
            return []
        excess_s = self._rules.shed.excess_s(newcomer, self._pool, self._engine_load, now)
        if excess_s > 0:
            return [Rejection(newcomer, Reason.SATURATED, excess_s)]
        leave = evictions(newcomer, self._pool, self.limits)
        if isinstance(leave, Reason):
            return [Rejection(newcomer, leave, self._forecast.wait_s(newcomer, self._pool, now))]
        return [
            Rejection(ticket, Reason.QUEUE_FULL, self._forecast.wait_s(ticket, self._pool, now))
            for ticket in leave
        ]

    def _must_wait(self, newcomer: Ticket, now: float) -> bool:
        """Return whether the engine could not take `newcomer` at once, or others go first."""
        top = self._pool.top()
        if top is not None and top.rank >= newcomer.policy.rank:
            return True
        return (
            self._rules.gate.block(newcomer, newcomer.policy.rank, self._engine_load, now)
            is not None
        )
