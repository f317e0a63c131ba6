"""Which member is to be looked at, and when: the time line of heartbeats."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator

from weir_sidecar.peers.member import Member


class DueQueue:
    """The members, the one that is due first at the head.

    A member whose time is put off (`Member.due_s`) stays where it is in the queue, and is queued
    anew when its old time comes.

    Args:
        clock: Seconds that only move forward.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # An entry whose time is not the member's `queued_s` was replaced by another.
        self._queue: list[tuple[float, int, Member]] = []
        self._counter = itertools.count()
        self._waker: asyncio.Future[None] | None = None

    def put(self, member: Member, at_s: float) -> None:
        """Have a member be due then."""
        member.due_s = member.queued_s = at_s
        heapq.heappush(self._queue, (at_s, next(self._counter), member))
        if self._queue[0][2] is member:
            self.hurry()

    def put_now(self, member: Member) -> None:
        """Have it be due at once."""
        self.put(member, self._clock())

    def due(self, now: float) -> Iterator[Member]:
        """Yield the members that are due; `due_s` then says when each is due next."""
        queue = self._queue
        while queue and queue[0][0] <= now:
            at_s, _, member = heapq.heappop(queue)
            if member.is_gone or at_s != member.queued_s:
                continue
            if member.due_s <= now:
                yield member
            if not member.is_gone and member.queued_s == at_s:
                self.put(member, member.due_s)

    @property
    def next_s(self) -> float:
        """When the next member may be due."""
        return self._queue[0][0] if self._queue else float("inf")

    async def pause(self, for_s: float) -> None:
        """Wait for so long, or until a member is due sooner."""
        loop = asyncio.get_running_loop()
        waker = self._waker = loop.create_future()
        timer = loop.call_later(for_s, self.hurry)
        try:
            await waker
        finally:
            timer.cancel()
            self._waker = None

    def hurry(self) -> None:
        """End the pause."""
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)
