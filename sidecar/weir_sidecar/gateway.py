"""A sidecar without an engine: one address before the replicas of a service.

It authenticates, classifies and routes by the same code as a replica's sidecar, and holds nothing
that a replica lacks. While no replica takes requests they wait here, in the pool, up to what their
class may wait. `weir up` serves on one; on Kubernetes a Service suffices.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from weir_core.wire.policies import PolicyDocument
from weir_sidecar.drain import Drain, Phase
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.auth import is_here
from weir_sidecar.frontend.protocol import HttpRequest
from weir_sidecar.frontend.server import HEALTH_PATH
from weir_sidecar.names import Shown
from weir_sidecar.parts import Parts
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.metrics import METRICS_HEADERS
from weir_sidecar.telemetry.request_trace import Tracing

log = logging.getLogger(__name__)


class Gateway:
    """The gateway of one service.

    Args:
        settings: What the environment says.
        listen: Host and port of the public address.
        clock: Seconds that only move forward.
        tracing: Where spans go, or None.
    """

    def __init__(
        self,
        settings: Settings,
        listen: tuple[str, int],
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        self.settings = settings
        self._listen = listen
        self.parts = Parts(settings, clock, tracing, None, self._note)
        self.registry, self.peers = self.parts.registry, self.parts.peers
        self.handler = self.parts.handler
        self._adapters: set[str] = set()
        """All that were ever declared."""
        self._names = self.handler.names = Shown()
        self.handler.own_pages |= {
            "/healthz": self._alive,
            "/readyz": self._ready,
            HEALTH_PATH: self._ready,
            "/metrics": self._show_metrics,
        }
        # No endpoint list holds a gateway that listens for this machine, so there is none to wait
        # for.
        self.drain = Drain(
            self.parts.server, self.registry, settings.draining, clock, is_expected=lambda: False
        )
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Gateway]:
        """Listen; leaving the context stops at once, so drain before."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.parts.working())
            log.info("open to %s", self.parts.driver.directory.openness)
            await stack.enter_async_context(
                self.parts.supervisor.running("housekeeping", self.parts.keep)
            )
            stack.push_async_callback(self.drain.stop)
            self.port = await stack.enter_async_context(self.parts.server.listen(*self._listen))
            log.info("listening", extra={"host": self._listen[0], "port": self.port})
            yield self

    def _note(self, document: PolicyDocument) -> None:
        """Refuse newcomers for an adapter that is removed: replicas would wait for them to end."""
        now = {each.name for each in document.adapters}
        self._adapters |= now
        self._names.removed = frozenset(self._adapters.difference(now, document.aliases))

    def _alive(self, _request: HttpRequest) -> Answer:
        supervisor = self.parts.supervisor
        return _probe(not supervisor.hopeless, supervisor.trouble or "ok")

    def _ready(self, _request: HttpRequest) -> Answer:
        trouble, usable = self.parts.supervisor.trouble, self.peers.usable
        serving = self.drain.phase is Phase.SERVING and usable > 0 and not trouble
        return _probe(serving, trouble or f"{usable} replicas take requests")

    def _show_metrics(self, request: HttpRequest) -> Answer | None:
        if not is_here(request.connection.remote):
            return None
        self.parts.show_load()
        return Answer(200, self.parts.metrics.render(), METRICS_HEADERS["Content-Type"])


def _probe(well: bool, words: str) -> Answer:
    return Answer(200 if well else 503, f"{words}\n".encode())
