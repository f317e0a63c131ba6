"""The one loop that looks at what runs; however many viewers there are, it looks once a period."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from weir_cli.console.frames import (
    GONE_SHOWN_S,
    Fleet,
    Moment,
    fleet_of,
    moment_of,
    replica_of,
    with_gone,
)
from weir_cli.top_figures import ReplicaRow, Service
from weir_cli.top_pages import METRICS_TIMEOUT_S

HISTORY_S: Final = 300.0


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
        only: The one service that is shown; empty shows all.
        wall: Unix time.
        clock: That of the readings.
    """

    def __init__(
        self,
        read: Callable[[], Sequence[Service]],
        period_s: float,
        only: str = "",
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._period_s = period_s
        self._only = only
        self._wall, self._clock = wall, clock
        self._kept: dict[str, _Kept] = {}
        self._changed = asyncio.Condition()
        self._encoded: dict[tuple[str, str], bytes] = {}
        self._services: Sequence[Service] = ()
        self.number = 0
        """Of the newest frame."""

    async def run(self) -> None:
        """Look once a period, until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._period_s)

    async def look(self) -> None:
        """Look once, and tell the viewers."""
        found = await asyncio.to_thread(self._read)
        self._services = [each for each in found if self._only in {"", each.name}]
        self._note()
        self._encoded.clear()
        self.number += 1
        async with self._changed:
            self._changed.notify_all()

    def _note(self) -> None:
        now_s, at_s = self._clock(), self._wall()
        heard_since_s = now_s - 2 * self._period_s - METRICS_TIMEOUT_S
        running = {each.name for each in self._services}
        for name in self._kept.keys() - running:
            del self._kept[name]
        for name in running:
            kept = self._kept.setdefault(name, _Kept(int(HISTORY_S / self._period_s)))
            fleet, kept.service = fleet_of(self._services, name, at_s, heard_since_s)
            kept.moments.append(moment_of(fleet))
            kept.seen |= {row.name: (at_s, row) for row in fleet.replicas}
            kept.seen = {n: s for n, s in kept.seen.items() if at_s - s[0] <= GONE_SHOWN_S}
            kept.fleet = with_gone(fleet, kept.seen)

    async def after(self, number: int) -> int:
        """Wait for a frame newer than `number`; return the number of the newest."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.number > number)
        return self.number

    def history(self, service: str) -> bytes:
        """Return the last minutes of a service as JSON, the oldest moment first."""
        kept = self._kept.get(self._name(service))
        return msgspec.json.encode(list(kept.moments) if kept else [])

    def frame(self, service: str, replica: str) -> bytes:
        """Return the newest frame as JSON; viewers of the same replica share it.

        Args:
            service: Whose; empty is the first one.
            replica: Whose requests it shows; empty is the first one.
        """
        name = self._name(service)
        kept = self._kept.get(name)
        if kept is None:
            names = tuple(sorted(self._kept))
            return msgspec.json.encode({"fleet": Fleet(self._wall(), names), "replica": None})
        if replica not in kept.seen:
            replica = ""
        if (name, replica) not in self._encoded:
            self._encoded[name, replica] = msgspec.json.encode(
                {
                    "fleet": kept.fleet,
                    "moment": kept.moments[-1],
                    "replica": replica_of(kept.service, replica, self._clock()),
                }
            )
        return self._encoded[name, replica]

    def _name(self, service: str) -> str:
        return service or min(self._kept, default="")
