"""Order inside a tenant: first come first served, with mild regard for size.

Each new prompt token counts as 2 ms of later arrival, so a 10,000-token prompt lets pass what
came up to 20 s after it, and never more: nobody is starved. A class with a tight TTFT target
has no room for that and keeps plain arrival order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from weir_core.sched.tickets import Ticket

_TIGHT_TARGET_S: Final = 2.0


class Order(ABC):
    """Gives a request its place among those of its tenant and class."""

    @abstractmethod
    def key(self, ticket: Ticket) -> float:
        """Return the sort key, ascending."""


class SizeAwareFifo(Order):
    """Arrival, plus `delay_per_token_s` for each prompt token to compute."""

    def __init__(self, delay_per_token_s: float = 0.002) -> None:
        self._delay_per_token_s = delay_per_token_s

    def key(self, ticket: Ticket) -> float:
        """Return the arrival the request is treated as having."""
        target_s = ticket.policy.ttft_target_s
        if target_s is not None and target_s <= _TIGHT_TARGET_S:
            return ticket.request.arrival_s
        return ticket.request.arrival_s + self._delay_per_token_s * ticket.new_tokens


class Fifo(Order):
    """Arrival alone."""

    def key(self, ticket: Ticket) -> float:
        """Return the arrival."""
        return ticket.request.arrival_s


class Lifo(Order):
    """The newest first. For comparison: it makes the middle of the queue wait for ever."""

    def key(self, ticket: Ticket) -> float:
        """Return the negated arrival."""
        return -ticket.request.arrival_s
