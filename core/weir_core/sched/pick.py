"""Which class is served next: by rank, with a minimum share for those below.

Each class with a `min_share` is owed that fraction of the tokens dispatched while it waits. Once
its oldest request has aged, the class spends what it is owed before any higher rank; a dispatch
may overdraw the credit, so a large request is not locked out, and is paid back before the next.
A momentary burst of a higher rank is not interrupted more than once a second: only one that has
waited without a pause for as long as a class has to age is made to share. What the class is owed
in the meantime is not lost, up to a cap.

A minimum share is not a pass. Weir's engine scheduler is told the class's own rank: it computes
such a prompt with what each step leaves, so that a book of any size delays nobody above its class
by more than the step that runs. Two cases leave nothing of any step, and the share would exist on
paper only: an engine that computes prompts in another order, and a higher class that has waited
without a pause for as long as a class has to age, so that there is more of it than the engine can
do. Then the request is served at the rank it goes before, and bounded: only one whose prompt fits
into a step goes, the oldest such request of its class where the next one is longer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

from weir_core.sched.gate import step_tokens
from weir_core.sched.pool import ClassQueue, Pool
from weir_core.sched.tickets import Ticket
from weir_core.sched.types import EngineFacts, EngineKind

_BURST_S: Final = 1.0
"""Least time between two interruptions of a higher rank that has only just begun to wait."""


class Pick(ABC):
    """Proposes who goes next."""

    @abstractmethod
    def candidates(self, pool: Pool, now: float) -> Sequence[Ticket]:
        """Return requests in the order to try them, the rank order's own last.

        All of them compete at the highest rank that waits (`pool.top()`); the rank at which the
        engine is to serve each is in its `engine_rank`.
        """

    @abstractmethod
    def dispatched(self, pool: Pool, ticket: Ticket) -> None:
        """Account for a dispatch."""

    @abstractmethod
    def requeued(self, pool: Pool, ticket: Ticket) -> None:
        """Account for a dispatched request that waits again."""

    @abstractmethod
    def next_change(self, pool: Pool, now: float) -> float | None:
        """Return when the answer may change by time alone, or None."""


class ByRank(Pick):
    """Strictly by rank; equal ranks take turns by weight. Lower ranks can starve."""

    def __init__(self, engine: EngineFacts) -> None:
        pass

    def candidates(self, pool: Pool, now: float) -> Sequence[Ticket]:  # noqa: ARG002
        """Return the next request of the highest rank that waits."""
        _, tickets = _first_by_rank(pool)
        return tickets

    def dispatched(self, pool: Pool, ticket: Ticket) -> None:
        """Nothing to account for."""

    def requeued(self, pool: Pool, ticket: Ticket) -> None:
        """Nothing to account for."""

    def next_change(self, pool: Pool, now: float) -> float | None:  # noqa: ARG002
        """Nothing changes by time."""
        return None


class ByRankWithMinShare(Pick):
    """By rank, after those classes that are owed their minimum share and have waited.

    Args:
        ageing_s: Wait of a class's oldest request after which it spends its credit.
        ageing_ratio: The same as a fraction of its longest wait; the smaller one counts.
        credit_cap_tokens: Most that a class can be owed.
    """

    def __init__(
        self,
        engine: EngineFacts,
        ageing_s: float = 5.0,
        ageing_ratio: float = 0.5,
        credit_cap_tokens: float = 16_384,
    ) -> None:
        self._reorders = engine.kind is EngineKind.WEIR
        self._step_tokens = step_tokens(engine)
        self._ageing_s = ageing_s
        self._ageing_ratio = ageing_ratio
        self._credit_cap_tokens = credit_cap_tokens

    def candidates(self, pool: Pool, now: float) -> Sequence[Ticket]:
        """Return the next of each owed class, then that of the highest rank."""
        top_queue, tickets = _first_by_rank(pool)
        if top_queue is None:
            return tickets
        rank = top_queue.policy.rank
        owed: list[Ticket] = []
        for queue in pool.classes:
            if queue.credit > 0 and queue.waiting and queue.policy.rank < rank:
                ticket = self._share_of(queue, top_queue, now)
                if ticket is not None:
                    owed.append(ticket)
        return owed + tickets if owed else tickets

    def dispatched(self, pool: Pool, ticket: Ticket) -> None:
        """Credit every class that waits with its share; debit the class that was served."""
        cost = ticket.cost
        own = pool.of(ticket)
        own.served_s = ticket.dispatched_s
        # What the order of ranks gives a class by itself is no debt.
        if own.credit > 0 or ticket.by_min_share:
            credit = own.credit - (1 - own.policy.min_share) * cost
            own.credit = credit if ticket.by_min_share else max(0.0, credit)
        if not pool.requests:
            return
        for queue in pool.classes:
            if queue.waiting and queue is not own and queue.policy.min_share:
                credit = queue.credit + queue.policy.min_share * cost
                cap = self._credit_cap_tokens
                queue.credit = credit if credit < cap else cap

    def requeued(self, pool: Pool, ticket: Ticket) -> None:
        """Give back what a class spent on a request that was not served after all."""
        queue = pool.named(ticket.policy.name)
        if queue is not None and ticket.by_min_share:
            queue.credit += ticket.cost

    def next_change(self, pool: Pool, now: float) -> float | None:
        """Return when the next class that is owed something will have aged."""
        ages = [
            self._aged_at(queue) for queue in pool.classes if queue.waiting and queue.credit > 0
        ]
        return min((at for at in ages if at > now), default=None)

    def _share_of(self, queue: ClassQueue, top_queue: ClassQueue, now: float) -> Ticket | None:
        """Return the request with which `queue` may go before `top_queue` now, or None."""
        lasting = now - top_queue.busy_since_s >= self._ageing_s
        if not lasting and now - queue.served_s < _BURST_S:
            return None
        if now < self._aged_at(queue):
            return None
        if self._reorders and not lasting:
            ticket = queue.first()
            if ticket is not None:
                ticket.engine_rank = ticket.policy.rank
            return ticket
        ticket = queue.first_within(self._step_tokens)
        if ticket is not None:
            ticket.engine_rank = top_queue.policy.rank
        return ticket

    def _aged_at(self, queue: ClassQueue) -> float:
        arrival_s = queue.oldest_arrival_s()
        if arrival_s is None:
            return float("inf")
        most_s = self._ageing_ratio * queue.policy.max_queue_wait_s
        return arrival_s + (most_s if most_s < self._ageing_s else self._ageing_s)


def _first_by_rank(pool: Pool) -> tuple[ClassQueue | None, list[Ticket]]:
    """Return the class whose turn it is by rank, and its next request."""
    level = pool.top()
    queue = level.next() if level is not None else None
    ticket = queue.first() if queue is not None else None
    if ticket is None:
        return None, []
    ticket.engine_rank = ticket.policy.rank
    return queue, [ticket]
