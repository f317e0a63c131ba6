"""The one public address of `weir up`: a relay over the replicas on this machine.

On Kubernetes a Service does this. Here it is the same handler as the sidecar's, with a choice of
replica (`weir_core.route`) in place of a scheduler and an engine.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence

from prometheus_client import CollectorRegistry

from weir_sidecar.drain import Drain, Phase
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.auth import is_here
from weir_sidecar.frontend.protocol import HttpRequest
from weir_sidecar.frontend.server import HEALTH_PATH, Server
from weir_sidecar.inflight import Handler
from weir_sidecar.registry import Registry
from weir_sidecar.settings import Settings
from weir_sidecar.supervise import Supervisor
from weir_sidecar.telemetry.metrics import METRICS_HEADERS, Metrics
from weir_sidecar.upstreams.replicas import Address, Replica, Replicas

log = logging.getLogger(__name__)


class Front:
    """The public address.

    Args:
        settings: Bounds; the addresses in it are not used.
        listen: Host and port of the public address.
        replicas: Where the replicas are.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        settings: Settings,
        listen: tuple[str, int],
        replicas: Sequence[Address],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listen = listen
        self._metrics = Metrics(CollectorRegistry())
        # The replicas bound what they hold; the front only bounds itself.
        limit = settings.limits.max_requests * max(len(replicas), 1)
        self.registry = Registry(self._metrics, clock, settings.limits, max_held=limit)
        self.replicas = Replicas(
            [Replica(address, settings, self._metrics, clock) for address in replicas],
            settings.health.retry_after_s,
            clock,
        )
        self._supervisor = Supervisor(self._metrics, clock)
        self._handler = Handler(self.registry, settings, clock)
        self._handler.replicas = self.replicas
        self._handler.own_pages |= {
            "/healthz": self._alive,
            "/readyz": self._ready,
            HEALTH_PATH: self._ready,
            "/metrics": self._show_metrics,
        }
        self._server = Server(self._handler, settings, clock, self._supervisor)
        # No endpoint list holds a front, so there is none to wait for.
        self.drain = Drain(
            self._server, self.registry, settings.draining, clock, is_expected=lambda: False
        )
        self.port = 0

    def _alive(self, _request: HttpRequest) -> Answer:
        return _probe(not self._supervisor.hopeless, self._supervisor.trouble or "ok")

    def _ready(self, _request: HttpRequest) -> Answer:
        trouble, ready = self._supervisor.trouble, len(self.replicas.ready)
        serving = self.drain.phase is Phase.SERVING and ready > 0 and not trouble
        return _probe(serving, trouble or f"{ready} replicas ready")

    def _show_metrics(self, request: HttpRequest) -> Answer | None:
        if not is_here(request.connection.remote):
            return None
        self._metrics.running.set(len(self.registry))
        return Answer(200, self._metrics.render(), METRICS_HEADERS["Content-Type"])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Front]:
        """Listen and probe; leaving the context stops at once, so drain before."""
        try:
            async with (
                self._supervisor.running("probes", self.replicas.probe_forever),
                self._server.listen(*self._listen) as self.port,
            ):
                log.info("listening", extra={"host": self._listen[0], "port": self.port})
                yield self
        finally:
            await self.drain.stop()
            self.replicas.close()


def _probe(well: bool, words: str) -> Answer:
    return Answer(200 if well else 503, f"{words}\n".encode())
