"""Watching the engine: is it loaded, and does it make progress?

A loaded engine is not a dead one. vLLM's /health answers late when its API server is busy, so a
missed answer alone means nothing: what counts is a byte for a running request, a step of the
engine, or a counter of it that moved. Only when none of these happened for a long time, while the
engine held requests, is it `stalled`. Requests whose clients gave up are no progress: the time
without requests in between does not count, and does not let the count begin anew.

A refused connection or a 503 is different: then the engine is gone now. Where the sidecar itself
lacks what it takes to ask, what was known stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from weir_core.errors import EngineUnavailable
from weir_sidecar.descriptors import caused_by, is_own_shortage
from weir_sidecar.registry import Registry
from weir_sidecar.settings import Health
from weir_sidecar.telemetry.logs import Seldom
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.connections import Connections

log = logging.getLogger(__name__)

# Counters that move when the engine does anything for anybody.
_PROGRESS: Final = re.compile(
    rb"^vllm:(?:prompt_tokens_total|generation_tokens_total|iteration_tokens_total_sum|"
    rb"iteration_tokens_total_count|request_success_total)(?:\{[^}]*\})? .*$",
    re.MULTILINE,
)


_SOON: Final = 24
"""The part of a stall, 5 s of 120 s, after which a silence is worth a page of metrics."""


class EngineState(StrEnum):
    """What is known of the engine."""

    STARTING = "starting"
    """It has not answered yet."""
    READY = "ready"
    STALLED = "stalled"
    """It is there, holds requests, and does nothing."""
    DOWN = "down"
    """It was ready and is gone."""


class Monitor:
    """Polls one engine; the owner of its state.

    Args:
        connections: Connections to the engine.
        registry: Tells whether bytes come.
        metrics: The instruments.
        settings: Periods and bounds.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        connections: Connections,
        registry: Registry,
        metrics: Metrics,
        settings: Health,
        clock: Callable[[], float],
    ) -> None:
        self._connections = connections
        self._registry = registry
        self._metrics = metrics
        self._settings = settings
        self._clock = clock
        self._seen = (0, 0)
        """Bytes and steps, when they were last looked at."""
        self._looked_at = clock()
        self._was_busy = False
        self._silent_s = 0.0
        """Time since the last progress in which the engine held requests."""
        self._unanswered_s = 0.0
        """Time since the last answer to /health, or progress."""
        self._counters: bytes | None = None
        """The engine's, from the silence that lasts; None where they were not read in it."""
        self._doubt = asyncio.Event()
        self._seldom = Seldom(clock)
        self.steps = 0
        """Steps of the engine that were heard of; the owner of the step log counts them."""
        self.state = EngineState.STARTING
        self.is_fit: Callable[[], bool] = lambda: True
        """Asked of an engine that was not there and answers: whether it may get requests."""
        self.on_ready: Callable[[], None] = lambda: None
        """Called when an engine that was not there has become ready; an `OSError` of it means that
        the engine could not be met, and is ready later."""
        self.on_gone: Callable[[], None] = lambda: None
        """Called whenever the engine is not there, also before it was ready."""
        self.on_change: Callable[[EngineState], None] = lambda _: None
        """Called with each new state."""

    @property
    def up(self) -> bool:
        """Whether requests may be sent; a stalled engine still gets them."""
        return self.state in (EngineState.READY, EngineState.STALLED)

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self.check()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_s):
                    await self._doubt.wait()
            self._doubt.clear()

    async def check(self) -> EngineState:
        """Ask once, and return what is known now."""
        try:
            reply = await self._connections.get("/health", timeout_s=self._settings.timeout_s)
            answered = reply.status == 200
            gone = not answered
        except EngineUnavailable as error:
            if is_own_shortage(error):
                self._seldom.warn(log, "the engine cannot be asked", {"error": str(error)})
                return self.state
            answered = False
            # A full backlog of its socket (EAGAIN) is a busy engine's, too.
            gone = caused_by(error, TimeoutError, BlockingIOError) is None
        now = self._clock()
        if gone:
            self.on_gone()
            if self.state is not EngineState.STARTING:
                self._become(EngineState.DOWN)
        elif self.state in (EngineState.STARTING, EngineState.DOWN):
            if answered and self.is_fit():
                self._meet(now)
        else:
            await self._check_progress(now, answered=answered)
        return self.state

    def doubt(self) -> None:
        """Hear that the engine refused a connection or broke one: ask it now."""
        self._doubt.set()

    def _meet(self, now: float) -> None:
        try:
            self.on_ready()
        except OSError as error:
            self._seldom.warn(log, "the engine's facts cannot be read", {"error": str(error)})
            return
        self._note_progress(now)
        self._become(EngineState.READY)

    async def _check_progress(self, now: float, *, answered: bool) -> None:
        """Decide between ready and stalled."""
        busy = self._registry.at_engine > 0
        passed_s = now - self._looked_at
        self._unanswered_s = 0.0 if answered else self._unanswered_s + passed_s
        if busy and self._was_busy:
            self._silent_s += passed_s
        self._looked_at, self._was_busy = now, busy
        if self._seen != (self._registry.received_bytes, self.steps):
            self._note_progress(now)
            self._counters = None  # whatever they are now, they moved before the next silence
        elif busy and await self._counters_moved():
            self._note_progress(now)
        silent_s = max(self._silent_s, self._unanswered_s)
        stalled = silent_s >= self._settings.stall_s
        if not self.up:
            return  # another look found it gone while its counters were read
        self._become(EngineState.STALLED if stalled else EngineState.READY)

    def _note_progress(self, now: float) -> None:
        self._seen = (self._registry.received_bytes, self.steps)
        self._looked_at = now
        self._silent_s = self._unanswered_s = 0.0

    async def _counters_moved(self) -> bool:
        """Tell whether the engine's counters moved in this silence.

        They are read soon after it begins, to compare with, and at every look once it has lasted
        for a quarter of what is let pass: the page costs a busy engine some milliseconds.
        """
        before = self._counters
        if self._silent_s <= self._settings.stall_s / (_SOON if before is None else 4):
            return False
        try:
            page = await self._connections.get("/metrics", timeout_s=self._settings.timeout_s)
        except EngineUnavailable:
            return False
        self._counters = b"\n".join(_PROGRESS.findall(page.body))
        return before is not None and self._counters != before

    def _become(self, state: EngineState) -> None:
        if state is not self.state:
            log.info("engine is %s", state.value, extra={"was": self.state.value})
            self.state = state
            self._metrics.engine_up.set(1 if state is EngineState.READY else 0)
            self.on_change(state)
