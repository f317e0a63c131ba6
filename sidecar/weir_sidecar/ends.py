"""Attempts that are over here, and of whose end the engine is yet to tell.

The step log tells how each answer ended and what was computed for it. For a whole answer that was
told before its last byte. For one whose client left it comes with the engine's next step, and until
then, or for a bounded time, its tokens and its engine time are not accounted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from weir_core.sched.shares import Rank, Share
from weir_core.sched.types import End

if TYPE_CHECKING:
    from weir_sidecar.inflight import InFlightRequest

TOLD_WITHIN_S: Final = 10.0
"""Steps of engines on small machines take seconds."""
_MOST: Final = 4096


class Leaving:
    """One of them.

    Args:
        request: Made the attempt.
        share: What the engine did for it.
        until_s: Its end is waited for until then.
        is_over: The request has its outcome; else it is tried again.
    """

    def __init__(
        self, request: InFlightRequest, share: Share, until_s: float, is_over: bool
    ) -> None:
        self.request, self.share = request, share
        self.until_s, self.is_over = until_s, is_over


class Ends:
    """All of them.

    Attributes:
        read: Hands on the records of the step log that have come; None where there is none.
        on_told: Called when the engine has told how a request ended, or is waited for no more.
    """

    def __init__(self) -> None:
        self.read: Callable[[], None] | None = None
        self.on_told: Callable[[InFlightRequest], None] | None = None
        # By the ids that they had at the engine, which no other request gets meanwhile.
        self._leaving: dict[str, Leaving] = {}

    def __len__(self) -> int:
        """Return how many the engine is yet to tell of."""
        return len(self._leaving)

    def __contains__(self, wire_id: str) -> bool:
        """Tell whether the engine is yet to tell of what has this id there."""
        return wire_id in self._leaving

    def wait(self, request: InFlightRequest, now: float, *, is_over: bool) -> bool:
        """Wait for the engine's word on an attempt; return whether there is a wait."""
        share = request.share
        if share is None:
            share = request.share = Share(request.asks.sequences)
        if share.has_ended or len(self._leaving) >= _MOST:
            return False
        self._leaving[request.wire_id] = Leaving(request, share, now + TOLD_WITHIN_S, is_over)
        return True

    def tell(self, rank: Rank, end: End) -> bool:
        """Take the engine's word; return whether it was waited for."""
        leaving = self._leaving.get(end.request)
        if leaving is None:
            return False
        leaving.share.end(rank, end)
        if leaving.share.has_ended:
            self._left(end.request)
        return True

    def expire(self, now: float) -> None:
        """Wait no longer for those whose time is over; they are in order of it."""
        while self._leaving:
            wire_id, leaving = next(iter(self._leaving.items()))
            if leaving.until_s > now:
                return
            self._left(wire_id)

    def _left(self, wire_id: str) -> None:
        leaving = self._leaving.pop(wire_id)
        if not leaving.is_over:
            leaving.share.charge(leaving.share.output_tokens if leaving.share.has_ended else None)
            return
        leaving.request.awaits_end = False
        if self.on_told is not None:
            self.on_told(leaving.request)
