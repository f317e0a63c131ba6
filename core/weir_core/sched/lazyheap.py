"""A heap of tickets from which any ticket can leave in O(1).

The `epoch` of a ticket that leaves is raised; entries made in an earlier epoch are dead and are
dropped when they reach the top, or all at once when they outnumber the living. So every
operation is O(log n), amortised, and memory is bounded by twice the living.
"""

from __future__ import annotations

import heapq
from typing import Final

from weir_core.sched.tickets import Ticket

_SLACK: Final = 64
"""Dead entries tolerated in a small heap, in addition to as many as there are living ones."""

Entry = tuple[float, int, int, Ticket]
"""Key, ticket.seq, ticket.epoch at the time of pushing, ticket."""


class LazyHeap:
    """Tickets by ascending key, ties by order of arrival."""

    __slots__ = ("_entries", "_live")

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._live = 0

    def __len__(self) -> int:
        return self._live

    @property
    def entries(self) -> int:
        """Return how many entries are kept, dead ones included."""
        return len(self._entries)

    def push(self, key: float, ticket: Ticket) -> None:
        """Add `ticket` as it is in its present epoch."""
        heapq.heappush(self._entries, (key, ticket.seq, ticket.epoch, ticket))
        self._live += 1

    def first(self) -> Ticket | None:
        """Return the living ticket with the smallest key, or None."""
        entries = self._entries
        while entries:
            entry = entries[0]
            if entry[2] == entry[3].epoch:
                return entry[3]
            heapq.heappop(entries)
        return None

    def first_until(self, key: float) -> Ticket | None:
        """Return the first living ticket if its key is not above `key`."""
        entries = self._entries
        if not entries or entries[0][0] > key:
            return None
        ticket = self.first()
        return ticket if ticket is not None and entries[0][0] <= key else None

    def first_key(self) -> float | None:
        """Return the smallest key of a living ticket, or None."""
        return self._entries[0][0] if self.first() is not None else None

    def forget(self) -> None:
        """Note that one ticket of this heap has left: its epoch was raised."""
        self._live -= 1
        if len(self._entries) > 2 * self._live + _SLACK:
            self._entries = [entry for entry in self._entries if entry[2] == entry[3].epoch]
            heapq.heapify(self._entries)
