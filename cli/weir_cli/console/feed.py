"""The one loop that looks at what runs; however many viewers there are, it looks once a period.

While there is none it looks each `IDLE_S`, so that the timelines of a page that is opened show the
last minutes, with fewer points.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from weir_cli.console.frames import (
    GONE_SHOWN_S,
    Fleet,
    Moment,
    Replica,
    Watched,
    changed,
    fleet_of,
    moment_of,
    opened_of,
    replica_of,
    with_gone,
)
from weir_cli.top_figures import ReplicaRow, Service

HISTORY_S: Final = 300.0
IDLE_S: Final = 10.0
"""Time between frames while there is no viewer; the page breaks a line at a gap of 15 s."""


@dataclass(frozen=True)
class Frame:
    """What a viewer sees; of a service that does not run, there is no moment and no replica."""

    fleet: Fleet
    moment: Moment | None = None
    replica: Replica | None = None


class _Kept:
    """What is kept of a service between frames."""

    def __init__(self, length: int) -> None:
        self.moments: deque[Moment] = deque(maxlen=length)
        self.seen: dict[str, tuple[float, ReplicaRow]] = {}
        self.fleet = Fleet(0.0)
        self.service: Service | None = None


class Feed:
    """What the viewers are shown.

    Args:
        read: Returns what runs now, as far as it was read; called in a thread.
        period_s: Time between frames.
        silent_s: Age from which on a newest answer is none.
        only: The one service that is shown; empty shows all.
        wall: Unix time.
        clock: That of the readings.
    """

    def __init__(
        self,
        read: Callable[[], Sequence[Service]],
        period_s: float,
        silent_s: float,
        only: str = "",
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._period_s = period_s
        self._silent_s = silent_s
        self._only = only
        self._wall, self._clock = wall, clock
        self._kept: dict[str, _Kept] = {}
        self._changed = asyncio.Condition()
        self._views: set[View] = set()
        self._is_viewed = asyncio.Event()
        self._services: Sequence[Service] = ()
        self.trouble: Callable[[], str] = str
        """Returns why what runs cannot be read; empty where it can."""
        self.number = 0
        """Of the newest frame."""

    async def run(self) -> None:
        """Look once a period, until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._period_s)
            await self.viewer_or(IDLE_S - self._period_s)

    async def viewer_or(self, seconds: float) -> None:
        """Wait for a viewer, or for some time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_viewed.wait()

    async def look(self) -> None:
        """Look once, and tell the viewers."""
        found = await asyncio.to_thread(self._read)
        self._services = [each for each in found if self._only in {"", each.name}]
        self._note()
        self.number += 1
        async with self._changed:
            self._changed.notify_all()

    def _note(self) -> None:
        now_s, at_s = self._clock(), self._wall()
        heard_since_s = now_s - self._silent_s
        running = {each.name for each in self._services}
        for name in self._kept.keys() - running:
            del self._kept[name]
        for name in running:
            kept = self._kept.setdefault(name, _Kept(int(HISTORY_S / self._period_s)))
            fleet, kept.service = fleet_of(self._services, name, at_s, heard_since_s)
            kept.moments.append(moment_of(fleet))
            while at_s - kept.moments[0].at_s > HISTORY_S:
                kept.moments.popleft()
            kept.seen |= {row.name: (at_s, row) for row in fleet.replicas}
            kept.seen = {n: s for n, s in kept.seen.items() if at_s - s[0] <= GONE_SHOWN_S}
            kept.fleet = with_gone(fleet, kept.seen)

    async def after(self, number: int) -> int:
        """Wait for a frame newer than `number`; return the number of the newest."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.number > number)
        return self.number

    def watched(self) -> set[Watched]:
        """Return which replicas and gateways are opened by a viewer."""
        found = set()
        for view in self._views:
            kept = self._kept.get(self._name(view.service))
            if kept is None or kept.service is None:
                continue
            opened = opened_of(kept.service, self._opened(kept, view.replica))
            if opened is not None:
                found.add(Watched(kept.service.name, opened.name))
        return found

    @contextmanager
    def viewed(self, service: str, replica: str) -> Iterator[View]:
        """Show a service to a viewer while the context lasts.

        Args:
            service: Whose frames; empty is the first one.
            replica: Whose requests they show; empty is the first one.
        """
        view = View(self, service, replica)
        self._views.add(view)
        self._is_viewed.set()
        try:
            yield view
        finally:
            self._views.discard(view)
            if not self._views:
                self._is_viewed.clear()

    def history(self, service: str) -> list[Moment]:
        """Return the last minutes of a service, the oldest moment first."""
        kept = self._kept.get(self._name(service))
        return list(kept.moments) if kept else []

    def frame(self, service: str, replica: str) -> Frame:
        """Return the newest frame, whole.

        Args:
            service: Whose; empty is the first one.
            replica: Whose requests it shows; empty is the first one.
        """
        name = self._name(service)
        kept = self._kept.get(name)
        if kept is None:
            names = tuple(sorted(self._kept))
            return Frame(Fleet(self._wall(), names, trouble=self.trouble()))
        shown = replica_of(kept.service, self._opened(kept, replica), self._clock())
        return Frame(replace(kept.fleet, trouble=self.trouble()), kept.moments[-1], shown)

    @staticmethod
    def _opened(kept: _Kept, replica: str) -> str:
        gateways = {row.name for row in kept.fleet.gateways}
        return replica if replica in kept.seen or replica in gateways else ""

    def _name(self, service: str) -> str:
        return service or min(self._kept, default="")


class View:
    """What one viewer has been sent: it is sent what differs.

    Args:
        feed: Where frames come from.
        service: Whose; empty is the first one.
        replica: Whose requests are shown; empty is the first one.
    """

    def __init__(self, feed: Feed, service: str, replica: str) -> None:
        self._feed = feed
        self.service = service
        self.replica = replica
        self._sent: Fleet | None = None

    def events(self) -> Iterator[tuple[str, bytes]]:
        """Yield the events that tell the newest frame.

        The history comes first, and again where another service has become the first one: its
        timelines are others.
        """
        frame = self._feed.frame(self.service, self.replica)
        sent = self._sent
        if sent is None or sent.service != frame.fleet.service:
            yield "history", msgspec.json.encode(self._feed.history(self.service))
            sent = Fleet(0.0)
        self._sent = frame.fleet
        yield "frame", msgspec.json.encode(replace(frame, fleet=changed(frame.fleet, sent)))
