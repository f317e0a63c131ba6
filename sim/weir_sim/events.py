"""The loop of a discrete-event simulation: what happens next, happens now."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class EventLoop:
    """Runs callbacks in order of their instants, ties in the order they were scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._seq = 0

    def at(self, instant: float, callback: Callable[..., None], *args: Any) -> None:
        """Call `callback` at `instant`, or now if that has passed."""
        self._seq += 1
        heapq.heappush(self._events, (max(instant, self.now), self._seq, callback, args))

    def run(self, until: Callable[[], bool], limit_s: float) -> None:
        """Run until `until()` holds, nothing is left to do, or the clock passes `limit_s`."""
        events = self._events
        while events and not until():
            self.now, _, callback, args = heapq.heappop(events)
            if self.now > limit_s:
                return
            callback(*args)
