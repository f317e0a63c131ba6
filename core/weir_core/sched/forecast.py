"""How long a request will wait, from measured rates alone.

Work ahead of it (what waits of higher ranks, and of its own class before its turn) over the
drain rate that higher ranks leave. A class is always left its minimum share. Before a drain rate
was ever measured nothing is known, and the forecast is no wait: an idle replica rejects nobody.
"""

from __future__ import annotations

from typing import Final

from weir_core.sched.pool import ClassQueue, Pool
from weir_core.sched.rates import DrainRate, FadingRate
from weir_core.sched.tickets import Ticket
from weir_core.sched.types import ClassPolicy

_LEAST_SHARE: Final = 0.02
"""A class without a minimum share is still taken to get this much: forecasts stay finite."""


class Forecast:
    """Measures what is served, and predicts waits from it."""

    def __init__(self) -> None:
        self.drain = DrainRate()
        # Class name -> tokens of it dispatched per second.
        self._dispatched: dict[str, FadingRate] = {}

    def dispatched(self, ticket: Ticket, now: float) -> None:
        """Count the work of a dispatched request for its class."""
        rate = self._dispatched.get(ticket.policy.name)
        if rate is None:
            rate = self._dispatched[ticket.policy.name] = FadingRate()
        rate.add(ticket.cost, now)

    @property
    def drain_rate(self) -> float | None:
        """Return VTC tokens per second done while work waited, or None when never measured."""
        return self.drain.value()

    def wait_s(self, ticket: Ticket, pool: Pool, now: float) -> float:
        """Return the predicted wait of a request that is about to join the pool."""
        rate = self.drain.value()
        if not rate:
            return 0.0
        return self.wait_behind_s(ticket.policy, self._own_ahead(ticket, pool), pool, rate, now)

    def wait_behind_s(
        self, policy: ClassPolicy, own: float, pool: Pool, rate: float, now: float
    ) -> float:
        """Return the predicted wait behind `own` work of the class and all of higher ranks.

        Args:
            policy: The class.
            own: Work of the class that is served before, in VTC tokens.
            pool: What waits.
            rate: VTC tokens per second, as `drain_rate`.
            now: The present.
        """
        above = 0.0
        taken = 0.0
        for queue in pool.classes:
            if queue.policy.rank > policy.rank:
                above += queue.cost
                taken += self._rate_of(queue, now)
            elif queue.policy.rank < policy.rank and queue.waiting:
                taken += queue.policy.min_share * rate
        assured = max(policy.min_share, _LEAST_SHARE) * rate
        left = max(assured, rate - taken)
        # The minimum share is served past the higher ranks; the rest waits for them too.
        return min((above + own) / left, own / assured)

    def _own_ahead(self, ticket: Ticket, pool: Pool) -> float:
        """Return the work of its own class that is served before it, from above."""
        queue = pool.of(ticket)
        tenant = ticket.request.tenant
        share = queue.fairness.share_of(queue.fairness.key(tenant))
        fair = (queue.tenant_cost(tenant) + ticket.cost) / share
        return min(queue.cost, fair)

    def _rate_of(self, queue: ClassQueue, now: float) -> float:
        fading = self._dispatched.get(queue.policy.name)
        return fading.per_second(now) if fading else 0.0
