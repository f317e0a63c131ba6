"""What the engine holds right now, exact because every request went through this scheduler.

Counts are kept by rank. Prefill still to do falls with the step records, in the order the engine
works in, and is settled when the first token shows that a prompt is done; so without a step log
it is only coarser. KV room is set aside per request: its prompt and what it is expected to
generate, and more once it generates more.
"""

from __future__ import annotations

from collections.abc import Iterator

from weir_core.sched.types import EngineKind, State, Ticket

_GROWTH = 1.25
"""Room is enlarged by this factor when a request outgrows its expected output."""


class RankLoad:
    """The running requests of one rank."""

    __slots__ = ("prefill_left", "running", "unstarted")

    def __init__(self) -> None:
        self.running = 0
        self.prefill_left = 0
        # request_id -> ticket, in order of dispatch: no first token yet.
        self.unstarted: dict[str, Ticket] = {}


class Ledger:
    """Everything dispatched and not finished."""

    def __init__(self, kind: EngineKind) -> None:
        self._kind = kind
        self._by_rank: dict[int, RankLoad] = {}
        # Ranks in the order the engine prefills them.
        self._ranks: list[int] = []
        self.running = 0
        self.kv_tokens = 0

    def of_rank(self, rank: int) -> RankLoad:
        """Return the load of one rank."""
        load = self._by_rank.get(rank)
        if load is None:
            load = self._by_rank[rank] = RankLoad()
            self._ranks = sorted(self._by_rank, reverse=True)
        return load

    @property
    def ranks(self) -> list[int]:
        """Ranks that were ever dispatched, the highest first."""
        return self._ranks

    def ranks_below(self, rank: int) -> Iterator[RankLoad]:
        """Yield the loads of lower ranks, the lowest first."""
        return (self._by_rank[other] for other in reversed(self._ranks) if other < rank)

    def running_above(self, rank: int) -> int:
        """Return how many requests of higher ranks run."""
        running = 0
        for other in self._ranks:
            if other <= rank:
                break
            running += self._by_rank[other].running
        return running

    def prefill_at_or_above(self, rank: int) -> int:
        """Return the prompt tokens that the engine will compute before a newcomer of `rank`."""
        left = 0
        for other in self._ranks:
            if other < rank:
                break
            left += self._by_rank[other].prefill_left
        return left

    def prefill_below(self, rank: int) -> int:
        """Return the prompt tokens left of lower ranks."""
        return sum(load.prefill_left for other, load in self._by_rank.items() if other < rank)

    def prefill_ahead(self, rank: int) -> int:
        """Return what a newcomer of `rank` waits for in this kind of engine."""
        if self._kind is EngineKind.WEIR:
            return self.prefill_at_or_above(rank)
        return self.prefill_of_all()

    def prefill_of_all(self) -> int:
        """Return all prompt tokens left."""
        return sum(load.prefill_left for load in self._by_rank.values())

    def add(self, ticket: Ticket) -> None:
        """Note that `ticket` was dispatched."""
        ticket.state = State.RUNNING
        ticket.started = False
        ticket.output_tokens = 0
        ticket.prefill_left = ticket.new_tokens
        ticket.kv_tokens = ticket.prompt_tokens + ticket.output_estimate
        self.enlist(ticket)

    def enlist(self, ticket: Ticket) -> None:
        """Count a running ticket, whatever it has done so far."""
        load = self.of_rank(ticket.policy.rank)
        load.running += 1
        load.prefill_left += ticket.prefill_left
        if not ticket.started:
            load.unstarted[ticket.request.request_id] = ticket
        self.running += 1
        self.kv_tokens += ticket.kv_tokens

    def remove(self, ticket: Ticket) -> None:
        """Stop counting a running ticket; its own fields stay as they are."""
        load = self.of_rank(ticket.policy.rank)
        load.running -= 1
        load.prefill_left -= ticket.prefill_left
        load.unstarted.pop(ticket.request.request_id, None)
        self.running -= 1
        self.kv_tokens -= ticket.kv_tokens

    def first_token(self, ticket: Ticket) -> None:
        """Settle the prefill: the prompt is done."""
        load = self.of_rank(ticket.policy.rank)
        ticket.started = True
        load.prefill_left -= ticket.prefill_left
        ticket.prefill_left = 0
        load.unstarted.pop(ticket.request.request_id, None)

    def tokens(self, ticket: Ticket, count: int) -> None:
        """Note `count` more output tokens of a started ticket."""
        ticket.output_tokens += count
        used = ticket.prompt_tokens + ticket.output_tokens
        if used > ticket.kv_tokens:
            room = ticket.prompt_tokens + int(ticket.output_tokens * _GROWTH) + 1
            self.kv_tokens += room - ticket.kv_tokens
            ticket.kv_tokens = room

    def prefilled(self, tokens: int) -> None:
        """Spread the prompt tokens of one step over the requests the engine worked on."""
        for rank in self._ranks:
            load = self._by_rank[rank]
            if not load.prefill_left:
                continue
            for ticket in load.unstarted.values():
                if tokens <= 0:
                    return
                done = min(tokens, ticket.prefill_left)
                ticket.prefill_left -= done
                load.prefill_left -= done
                tokens -= done
