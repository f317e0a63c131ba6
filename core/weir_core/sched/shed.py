"""Rejecting early: an honest no at once is worth more than a late answer.

A request of a class that sheds is rejected on arrival when its forecast wait ends
after its latest useful start, and again when its turn comes too late. A request that the engine
would take right now is never rejected, however bad the estimates are: so a wrong estimate always
gets the outcome that corrects it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from weir_core.sched.engine_load import EngineLoad
from weir_core.sched.estimate import Estimator
from weir_core.sched.forecast import Forecast
from weir_core.sched.pool import Pool
from weir_core.sched.tickets import Ticket


class Shed(ABC):
    """Says which requests can no longer be served in time."""

    @abstractmethod
    def excess_s(self, ticket: Ticket, pool: Pool, engine_load: EngineLoad, now: float) -> float:
        """Return by how much a newcomer that has to wait would be late; 0 or less is on time."""

    @abstractmethod
    def is_hopeless(self, ticket: Ticket, lead_s: float, now: float) -> bool:
        """Return whether a request whose turn it is would miss its target.

        Args:
            ticket: The request.
            lead_s: Predicted time from its dispatch to its first token.
            now: The present.
        """


class Predictive(Shed):
    """Rejects what the forecast says will be late.

    Args:
        margin: Factor on the forecast wait. Below 1, only what will clearly be late is rejected
            on arrival: a wrong admission costs its client a wait, a wrong rejection an answer.
        lead_ratio: Most of a target that the engine's own part may be predicted to take, so
            that a wild estimate cannot reject everything.
    """

    def __init__(
        self,
        estimator: Estimator,
        forecast: Forecast,
        margin: float = 0.8,
        lead_ratio: float = 0.5,
    ) -> None:
        self._estimator = estimator
        self._forecast = forecast
        self._margin = margin
        self._lead_ratio = lead_ratio

    def excess_s(self, ticket: Ticket, pool: Pool, engine_load: EngineLoad, now: float) -> float:
        """Return forecast start minus latest useful start."""
        if ticket.policy.shed == "never":
            return 0.0
        wait_s = self._margin * self._forecast.wait_s(ticket, pool, now)
        ahead = engine_load.prefill_ahead(ticket.engine_rank) + ticket.new_tokens
        lead_s = self._estimator.first_token_s(ahead)
        return now + wait_s - self._latest_start_s(ticket, lead_s)

    def is_hopeless(self, ticket: Ticket, lead_s: float, now: float) -> bool:
        """Return whether it is past its latest useful start."""
        if ticket.policy.shed == "never" or ticket.was_requeued:
            return False
        return now > self._latest_start_s(ticket, lead_s)

    def _latest_start_s(self, ticket: Ticket, lead_s: float) -> float:
        if ticket.request.may_be_late:
            return ticket.expires_s
        target_s = ticket.due_s - ticket.request.arrival_s
        lead_s = min(lead_s, self._lead_ratio * target_s)
        return min(ticket.due_s - lead_s, ticket.expires_s)


class ExpireOnly(Shed):
    """Lets everything wait until its time is over. For comparison."""

    def excess_s(self, ticket: Ticket, pool: Pool, engine_load: EngineLoad, now: float) -> float:  # noqa: ARG002
        """Nothing is rejected on arrival."""
        return 0.0

    def is_hopeless(self, ticket: Ticket, lead_s: float, now: float) -> bool:  # noqa: ARG002
        """Nothing is rejected when its turn comes."""
        return False
