"""Leaving without failing a request.

    serving -> lame duck -> refusing -> drained

In the lame-duck time the sidecar is not ready but accepts, and its answers end their connections,
until every endpoint list and every client has forgotten it. Then idle connections are closed and
newcomers are told to go elsewhere, while what runs finishes. When the grace period is nearly
over, what still runs is cut. A drain happens once, however many ask for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from weir_sidecar.registry import Registry
from weir_sidecar.settings import Draining

log = logging.getLogger(__name__)

LAST_WORDS_S: Final = 1.0
"""Time for those that were cut to be told so."""


class Phase(StrEnum):
    """How far a replica is on its way out."""

    SERVING = "serving"
    LAME_DUCK = "lame_duck"
    REFUSING = "refusing"
    DRAINED = "drained"


class Listener(Protocol):
    """What a drain needs of the API port: its switches and its connections."""

    def leave(self) -> None:
        """End the connection with every answer from now on."""

    def refuse(self) -> None:
        """Refuse newcomers from now on, and close idle connections."""

    async def flush(self) -> None:
        """Wait until every client has its bytes."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """How a drain ended."""

    seconds: float
    cut: int
    """Requests that were still running when the time was over."""


class Drain:
    """One drain, shared by all who ask for it.

    Args:
        listener: The server's switches.
        registry: Tells what still runs.
        settings: Bounds.
        clock: Seconds that only move forward.
        is_expected: Tells whether clients may still be sent here (the replica was ready); where
            not, there is no lame-duck time.
    """

    def __init__(
        self,
        listener: Listener,
        registry: Registry,
        settings: Draining,
        clock: Callable[[], float],
        is_expected: Callable[[], bool],
    ) -> None:
        self._listener = listener
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._is_expected = is_expected
        self._task: asyncio.Task[Farewell] | None = None
        self.phase = Phase.SERVING

    async def run(self) -> Farewell:
        """Drain, or wait for the drain that already runs."""
        return await asyncio.shield(self.begin())

    def begin(self) -> asyncio.Task[Farewell]:
        """Start draining, once."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain(), name="drain")
        return self._task

    async def stop(self) -> None:
        """Give up a drain that still runs: the process ends now."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _drain(self) -> Farewell:
        start = self._clock()
        lame_duck_s = self._settings.lame_duck_s if self._is_expected() else 0.0
        self._become(Phase.LAME_DUCK)
        self._listener.leave()
        await asyncio.sleep(min(lame_duck_s, self._settings.deadline_s))
        self._become(Phase.REFUSING)
        self._listener.refuse()
        cut = await self._finish_running(start + self._settings.deadline_s)
        self._become(Phase.DRAINED)
        return Farewell(self._clock() - start, cut)

    async def _finish_running(self, deadline: float) -> int:
        """Wait for what runs until the deadline; return how many had to be cut."""
        if await self._all_served(max(deadline - self._clock(), 0)):
            return 0
        cut = self._registry.cut()
        log.warning("grace period over", extra={"cut": cut})
        await self._all_served(LAST_WORDS_S)
        return cut

    async def _all_served(self, limit_s: float) -> bool:
        """Wait until nothing runs and every client has its bytes; false when time is up."""
        idle = asyncio.Event()
        try:
            async with asyncio.timeout(limit_s):
                self._registry.when_idle(idle.set)
                await idle.wait()
                await self._listener.flush()
        except TimeoutError:
            return False
        return True

    def _become(self, phase: Phase) -> None:
        log.info("drain: %s", phase.value, extra={"running": len(self._registry)})
        self.phase = phase
