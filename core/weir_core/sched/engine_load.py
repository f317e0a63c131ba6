"""What the engine holds right now, exact because every request went through this scheduler.

Counts are kept by the rank of a request's class, also for one that goes before a higher rank on
its minimum share: counted at the higher rank, a long prompt would keep that rank's requests out.

The prompt tokens that an engine still has to compute are those of the requests without a first
token, less what the step log says was done on them already. That progress is one sum per rank,
because the order inside a rank is the engine's affair: a step adds to it, a first token takes its
whole prompt out of it. An engine has at most one prompt of a rank half done, so progress is never
more than the longest prompt; wrong token estimates cannot add up. Without a step log it is zero,
and the count only coarser.

Slots and KV room are set aside per request: one slot for each of its sequences; its prompt and what
it is expected to generate, and more once it generates more. `gate` says how much that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from weir_core.sched.tickets import State, Ticket
from weir_core.sched.types import EngineFacts, EngineKind

_GROWTH: Final = 1.25
"""Room is enlarged by this factor when a request outgrows its expected output."""


class RankLoad:
    """The running requests of one rank."""

    __slots__ = ("progress", "prompt_tokens", "raised_tokens", "rank", "slots", "unstarted")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.slots = 0
        # request_id -> ticket, in order of dispatch: no first token yet.
        self.unstarted: dict[str, Ticket] = {}
        # Of the unstarted: prompt tokens to compute, and how many of them are done.
        self.prompt_tokens = 0
        self.progress = 0
        # Prompt tokens of those that the engine serves at a higher rank.
        self.raised_tokens = 0

    @property
    def prefill_left(self) -> int:
        """Return the prompt tokens that are still to be computed."""
        return self.prompt_tokens - self.progress

    def settle(self, ticket: Ticket, was_computed: bool) -> None:
        """Stop counting a ticket's prompt, which was computed or has left."""
        del self.unstarted[ticket.request.request_id]
        self.prompt_tokens -= ticket.new_tokens
        if ticket.engine_rank > self.rank:
            self.raised_tokens -= ticket.new_tokens
        if self.progress:
            done = ticket.new_tokens if was_computed else 0
            self.progress = min(max(0, self.progress - done), self._longest())

    def prefilled(self, tokens: int) -> int:
        """Count `tokens` computed by a step and return how many were not of this rank."""
        taken = min(tokens, self.prompt_tokens - self.progress)
        if taken:
            self.progress = min(self.progress + taken, self._longest())
        return tokens - taken

    def _longest(self) -> int:
        longest = 0
        for ticket in self.unstarted.values():
            longest = max(longest, ticket.new_tokens)
        return longest


class EngineLoad:
    """Everything dispatched and not finished."""

    def __init__(self) -> None:
        self.engine: EngineFacts | None = None
        """The engine that is there, or None while there is none."""
        self._reorders = False
        self._by_rank: dict[int, RankLoad] = {}
        self.loads: list[RankLoad] = []
        """Of the ranks that were ever dispatched, the highest first: the engine's own order."""
        self.running = 0
        self.prefilling = 0
        """Of those that run, how many have no first token yet."""
        self.slots = 0
        """Slots set aside for all that run."""
        self.kv_tokens = 0

    def set_engine(self, engine: EngineFacts | None) -> None:
        """Note which engine is there, or that none is."""
        self.engine = engine
        if engine is not None:
            self._reorders = engine.kind is EngineKind.WEIR

    def of_rank(self, rank: int) -> RankLoad:
        """Return the load of one rank."""
        load = self._by_rank.get(rank)
        if load is None:
            load = self._by_rank[rank] = RankLoad(rank)
            self.loads = [self._by_rank[rank] for rank in sorted(self._by_rank, reverse=True)]
        return load

    def ranks_below(self, rank: int) -> Iterator[RankLoad]:
        """Yield the loads of lower ranks, the lowest first."""
        return (load for load in reversed(self.loads) if load.rank < rank)

    def slots_above(self, rank: int) -> int:
        """Return the slots of higher ranks."""
        slots = 0
        for load in self.loads:
            if load.rank <= rank:
                break
            slots += load.slots
        return slots

    def prefill_at_or_above(self, rank: int) -> int:
        """Return the prompt tokens that the engine will compute before a newcomer of `rank`."""
        left = 0
        for load in self.loads:
            if load.rank < rank:
                break
            left += load.prompt_tokens - load.progress
        return left

    def prefill_below(self, rank: int) -> int:
        """Return the prompt tokens left of lower ranks."""
        return sum(load.prefill_left for load in self.loads if load.rank < rank)

    def prefill_ahead(self, rank: int) -> int:
        """Return what a newcomer of `rank` waits for in this kind of engine."""
        if self._reorders:
            return self.prefill_at_or_above(rank)
        return self.prefill_of_all()

    def prefill_of_all(self) -> int:
        """Return all prompt tokens left."""
        return sum(load.prefill_left for load in self.loads)

    def unstarted(self) -> list[Ticket]:
        """Return the requests without a first token, the newest first."""
        tickets = [ticket for load in self.loads for ticket in load.unstarted.values()]
        return sorted(tickets, key=lambda ticket: ticket.seq, reverse=True)

    def oldest_unstarted_s(self) -> float | None:
        """Return when the first of the requests without a first token was dispatched."""
        oldest_s = None
        for load in self.loads:
            for ticket in load.unstarted.values():
                if oldest_s is None or ticket.dispatched_s < oldest_s:
                    oldest_s = ticket.dispatched_s
                break
        return oldest_s

    def add(self, ticket: Ticket) -> None:
        """Note that `ticket` was dispatched, and set aside what it claims."""
        ticket.state = State.RUNNING
        ticket.started = False
        ticket.output_tokens = 0
        ticket.load_rank = ticket.policy.rank
        load = self._by_rank.get(ticket.load_rank) or self.of_rank(ticket.load_rank)
        load.slots += ticket.slots
        load.unstarted[ticket.request.request_id] = ticket
        load.prompt_tokens += ticket.new_tokens
        if ticket.engine_rank > load.rank:
            load.raised_tokens += ticket.new_tokens
        self.running += 1
        self.prefilling += 1
        self.slots += ticket.slots
        self.kv_tokens += ticket.kv_tokens

    def remove(self, ticket: Ticket) -> None:
        """Stop counting a running ticket; its own fields stay as they are."""
        load = self._by_rank[ticket.load_rank]
        load.slots -= ticket.slots
        if not ticket.started:
            load.settle(ticket, was_computed=False)
            self.prefilling -= 1
        self.running -= 1
        self.slots -= ticket.slots
        self.kv_tokens -= ticket.kv_tokens

    def first_token(self, ticket: Ticket) -> None:
        """Settle the prefill: the prompt is done."""
        ticket.started = True
        self._by_rank[ticket.load_rank].settle(ticket, was_computed=True)
        self.prefilling -= 1

    def tokens(self, ticket: Ticket, count: int) -> None:
        """Note `count` more output tokens of a started ticket."""
        ticket.output_tokens += count
        used = ticket.prompt_tokens + ticket.output_tokens
        # Of what comes in waves, those that are done have made room for the next.
        if used > ticket.kv_tokens and not ticket.comes_in_waves:
            room = ticket.prompt_tokens + int(ticket.output_tokens * _GROWTH) + 1
            self.kv_tokens += room - ticket.kv_tokens
            ticket.kv_tokens = room

    def prefilled(self, tokens: int) -> None:
        """Spread the prompt tokens of one step over the ranks, in the engine's order."""
        for load in self.loads:
            if tokens <= 0:
                return
            tokens = load.prefilled(tokens)
