"""Background tasks that are not let die in silence.

A task here runs for as long as its owner. One that fails is logged, counted and started again;
meanwhile the sidecar is not ready. One that fails again and again is given up, and then the process
says that it is not alive: the kubelet (or `weir up`) ends it by a drain and starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from weir_sidecar.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

PAUSE_S: Final = 1.0
"""From a failure to the next start."""
MAX_FAILURES: Final = 5
"""In a row; the next one is the last."""
SETTLED_S: Final = 60.0
"""A task that ran for so long starts counting anew."""


class Supervisor:
    """Runs tasks, and knows which of them fail.

    Args:
        metrics: The instruments.
        clock: Seconds that only move forward.
        pause_s: From a failure to the next start.
    """

    def __init__(
        self,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._pause_s = pause_s
        self._down: set[str] = set()
        self._given_up: set[str] = set()

    @property
    def trouble(self) -> str:
        """Which tasks do not run now, in words; empty where all do."""
        return f"failed: {', '.join(sorted(self._down))}" if self._down else ""

    @property
    def hopeless(self) -> bool:
        """Whether a task was given up."""
        return bool(self._given_up)

    @contextlib.asynccontextmanager
    async def running(self, name: str, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Keep a task running while the context is open; `work` never returns by itself."""
        task = asyncio.create_task(self._keep(name, work), name=name)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while failures <= MAX_FAILURES:
            began = self._clock()
            self._down.discard(name)
            try:
                await work()
                log.error("task ended", extra={"task": name})
            except Exception:
                log.exception("task failed", extra={"task": name})
            self._metrics.task_failures.inc()
            self._down.add(name)
            failures = 1 if self._clock() - began >= SETTLED_S else failures + 1
            await asyncio.sleep(self._pause_s)
        self._given_up.add(name)
        log.critical("task given up", extra={"task": name})
