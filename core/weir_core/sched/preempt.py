"""Who gives its place back: a lower-ranked request that has not sent its first byte.

Until its first token a request can move without its client noticing. So when a higher rank lacks
a slot or KV room, the newest unstarted request of the lowest preemptible rank returns to the
pool: never in favour of an equal (a request on its minimum share takes nobody's place, and keeps
its own), never more than `max_requeues` times for one request, and never unless what is freed
suffices.

An engine that does not reorder prefills (plain or stock-priority vLLM) adds a third case: long
prompts of lower ranks that stand before the newcomer inside the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from weir_core.sched.engine_load import EngineLoad
from weir_core.sched.gate import Block
from weir_core.sched.tickets import Ticket
from weir_core.sched.types import EngineKind


class Preempt(ABC):
    """Chooses who makes room."""

    @abstractmethod
    def for_place(
        self, ticket: Ticket, block: Block, shortfall: int, engine_load: EngineLoad
    ) -> list[Ticket]:
        """Return who must leave so that `ticket` fits, or nobody when that cannot help."""

    @abstractmethod
    def for_passage(self, ticket: Ticket, engine_load: EngineLoad) -> list[Ticket]:
        """Return who must leave because it stands before `ticket` inside the engine."""


class BeforeFirstByte(Preempt):
    """Takes from the lowest rank first, and there from the newest.

    Args:
        passage_tokens: Prefill of lower ranks that a newcomer waits for without complaint.
        max_requeues: How often one request may be preempted.
    """

    def __init__(self, kind: EngineKind, passage_tokens: int, max_requeues: int = 2) -> None:
        self._reorders = kind is EngineKind.WEIR
        self._passage_tokens = passage_tokens
        self._max_requeues = max_requeues

    def for_place(
        self, ticket: Ticket, block: Block, shortfall: int, engine_load: EngineLoad
    ) -> list[Ticket]:
        """Return as many as it takes for slots or KV room, none for what nobody can free."""
        if block not in {Block.SLOT, Block.KV}:
            return []  # what is in the way is of this rank or higher, or has begun to answer
        victims: list[Ticket] = []
        freed = 0
        for victim in self._victims(ticket.policy.rank, engine_load):
            victims.append(victim)
            freed += victim.slots if block is Block.SLOT else victim.kv_tokens
            if freed >= shortfall:
                return victims
        return []

    def for_passage(self, ticket: Ticket, engine_load: EngineLoad) -> list[Ticket]:
        """Return as many as it takes until little enough stands before `ticket`."""
        victims: list[Ticket] = []
        if self._reorders:
            return victims
        ahead = engine_load.prefill_below(ticket.policy.rank)
        if ahead <= self._passage_tokens:
            return victims
        for victim in self._victims(ticket.policy.rank, engine_load):
            if ahead <= self._passage_tokens:
                break
            victims.append(victim)
            ahead -= victim.new_tokens
        return victims

    def _victims(self, rank: int, engine_load: EngineLoad) -> Iterator[Ticket]:
        for load in engine_load.ranks_below(rank):
            for victim in reversed(load.unstarted.values()):
                # The class's rank may have been raised since it was dispatched.
                if victim.policy.rank < rank and self._may_go(victim):
                    yield victim

    def _may_go(self, victim: Ticket) -> bool:
        # Requeued, one on its minimum share would only go before the higher rank once more.
        may_go = victim.policy.preemptible and not victim.by_min_share
        return may_go and victim.requeues < self._max_requeues


class Never(Preempt):
    """Nobody gives a place back. For comparison."""

    def for_place(
        self,
        ticket: Ticket,  # noqa: ARG002
        block: Block,  # noqa: ARG002
        shortfall: int,  # noqa: ARG002
        engine_load: EngineLoad,  # noqa: ARG002
    ) -> list[Ticket]:
        """Return nobody."""
        return []

    def for_passage(self, ticket: Ticket, engine_load: EngineLoad) -> list[Ticket]:  # noqa: ARG002
        """Return nobody."""
        return []
