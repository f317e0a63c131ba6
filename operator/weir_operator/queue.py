"""Which services need a pass, and when: a level-triggered work queue.

Events only say "look at this one"; ten of them before the worker gets there are one pass. A
service is never looked at by two workers at once: an event that comes during its pass makes one
more pass after it. A pass that failed is repeated with growing delays, so an API server that is
down is not hammered by the very thing that waits for it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

from weir_core.units import Seconds

K = TypeVar("K")


class WorkQueue(Generic[K]):
    """Keys that are due, each once.

    Args:
        clock: Seconds that only move forward.
        first_delay: Delay after a first failure, in seconds; it doubles each time.
        longest_delay: Where the doubling stops, in seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        first_delay: Seconds = Seconds(0.5),
        longest_delay: Seconds = Seconds(60.0),
    ) -> None:
        self._clock = clock
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = itertools.count()
        self._running: set[K] = set()
        self._again: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Return how many keys wait."""
        return len(self._due) + len(self._again)

    def add(self, key: K, after: Seconds = Seconds(0.0)) -> None:
        """Ask for a pass over `key` after a delay; the earliest of several requests counts."""
        due = self._clock() + after
        waiting = self._again if key in self._running else self._due
        if due < waiting.get(key, float("inf")):
            waiting[key] = due
            if waiting is self._due:
                heapq.heappush(self._heap, (due, next(self._order), key))
        self._changed.set()

    async def get(self) -> K:
        """Wait for a key that is due, and take it; `done` gives it back."""
        while True:
            delay = self._discard_until_due()
            if delay is not None and delay <= 0:
                _, _, key = heapq.heappop(self._heap)
                del self._due[key]
                self._running.add(key)
                return key
            self._changed.clear()
            try:
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: K, *, failed: bool = False) -> None:
        """Give back a key; after a failure it is due again, later each time."""
        self._running.discard(key)
        again = self._again.pop(key, None)
        if failed:
            count = self._failures.get(key, 0)
            self._failures[key] = count + 1
            self.add(key, self._backoff(count))
        else:
            self._failures.pop(key, None)
            if again is not None:
                self.add(key, Seconds(max(again - self._clock(), 0.0)))

    def _backoff(self, failures: int) -> Seconds:
        return Seconds(min(self._first_delay * 2.0 ** min(failures, 30), self._longest_delay))

    def _discard_until_due(self) -> float | None:
        """Drop heap entries that an earlier request replaced; return the seconds to the next."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) == due:
                return due - self._clock()
            heapq.heappop(self._heap)
        return None
