"""The admin port and the admin socket: metrics, probes, state, and the order to drain."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from weir_core.errors import EngineUnavailable
from weir_core.wire import state_access
from weir_core.wire.fleet import FLEET_PATH
from weir_core.wire.request_state import REQUESTS_PATH
from weir_core.wire.sidecar_state import ADAPTER_READY
from weir_sidecar import one_request, requests_page
from weir_sidecar.drain import Drain, Phase
from weir_sidecar.driver import Driver
from weir_sidecar.names import Names
from weir_sidecar.parts import Parts
from weir_sidecar.registry import Registry
from weir_sidecar.settings import Settings
from weir_sidecar.supervise import Supervisor
from weir_sidecar.telemetry.metrics import METRICS_HEADERS, Metrics
from weir_sidecar.upstreams.connections import Connections
from weir_sidecar.upstreams.monitor import EngineState, Monitor

log = logging.getLogger(__name__)

ENGINE_METRICS_TIMEOUT_S: Final = 2.0
"""A busy engine's page may be missing from one scrape; the scrape itself is never late."""
_NOT_HERE: Final = "this page is shown to the operator only; in the pod: weir-sidecar state\n"


class Reported(Protocol):
    """What the handlers report on; a sidecar has all of it."""

    parts: Parts
    settings: Settings
    connections: Connections
    monitor: Monitor
    registry: Registry
    metrics: Metrics
    drain: Drain
    driver: Driver
    supervisor: Supervisor
    names: Names


class Admin:
    """The handlers; `port_app` and `socket_app` mount them.

    Args:
        sidecar: What they report on.
        wall: Unix time, in seconds.
    """

    def __init__(self, sidecar: Reported, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._parts = sidecar.parts
        self._settings = sidecar.settings
        self._connections = sidecar.connections
        self._monitor = sidecar.monitor
        self._registry = sidecar.registry
        self._metrics = sidecar.metrics
        self._drain = sidecar.drain
        self._driver = sidecar.driver
        self._supervisor = sidecar.supervisor
        self._names = sidecar.names

    def port_app(self) -> web.Application:
        """Return the app of the admin port, which is open to scrapers, probes and the operator."""
        app = web.Application(middlewares=[reported])
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/healthz", self.healthz)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/enginez", self.enginez)
        app.router.add_get("/state", self.state_for_operator)
        app.router.add_get(FLEET_PATH, self.fleet_for_operator)
        app.router.add_get(REQUESTS_PATH, self.requests_for_operator)
        return app

    def socket_app(self) -> web.Application:
        """Return the app of the admin socket, which only the pod can reach."""
        app = web.Application(middlewares=[reported])
        app.router.add_post("/drain", self.drain)
        app.router.add_get("/enginez", self.enginez)
        app.router.add_get("/state", self.state)
        app.router.add_get(FLEET_PATH, self.fleet)
        app.router.add_get(REQUESTS_PATH, self.requests)
        return app

    async def metrics(self, _request: web.Request) -> web.Response:
        """Return our metrics, then the engine's as they are, when it has any to give."""
        self._metrics.draining.set(0 if self._drain.phase is Phase.SERVING else 1)
        self._parts.show_load()
        self._show_adapters()
        page = self._metrics.render() + await self._engine_metrics()
        return web.Response(body=page, headers=METRICS_HEADERS)

    def _show_adapters(self) -> None:
        states = list(self._names.states().values())
        ready = states.count(ADAPTER_READY)
        self._metrics.adapters.labels("ready").set(ready)
        self._metrics.adapters.labels("lacking").set(len(states) - ready)

    async def _engine_metrics(self) -> bytes:
        if not self._monitor.up:
            return b""
        try:
            reply = await self._connections.get("/metrics", timeout_s=ENGINE_METRICS_TIMEOUT_S)
        except EngineUnavailable:
            return b""
        return reply.body if reply.status == 200 else b""

    async def healthz(self, _request: web.Request) -> web.Response:
        """Answer: the process is alive, and does all that it should, or tries to."""
        if self._supervisor.hopeless:
            return _probe(False, self._supervisor.trouble)
        return web.Response(text="ok\n")

    async def readyz(self, _request: web.Request) -> web.Response:
        """Tell whether clients should be sent here."""
        return _probe(*self.readiness())

    def readiness(self) -> tuple[bool, str]:
        """Return whether clients should be sent here, and why."""
        if self._drain.phase is not Phase.SERVING:
            return False, f"draining: {self._drain.phase.value}"
        if self._supervisor.trouble:
            return False, self._supervisor.trouble
        return self._engine_state()

    async def enginez(self, _request: web.Request) -> web.Response:
        """Tell whether the engine is loaded and makes progress, drain or not."""
        return _probe(*self._engine_state())

    def _engine_state(self) -> tuple[bool, str]:
        state = self._monitor.state
        return state is EngineState.READY, f"engine {state.value}"

    async def state_for_operator(self, request: web.Request) -> web.Response:
        """Return the state to what holds a key of the service: it names tenants."""
        return await self._for_operator(request, self.state)

    async def fleet_for_operator(self, request: web.Request) -> web.Response:
        """Return the loads of all replicas to what holds a key of the service."""
        return await self._for_operator(request, self.fleet)

    async def requests_for_operator(self, request: web.Request) -> web.Response:
        """Return where requests are to what holds a key of the service: it names tenants."""
        return await self._for_operator(request, self.requests)

    async def _for_operator(
        self, request: web.Request, page: Callable[[web.Request], Awaitable[web.Response]]
    ) -> web.Response:
        refusal = refused(request, self._parts, self._wall())
        return await page(request) if refusal is None else refusal

    async def fleet(self, _request: web.Request) -> web.Response:
        """Return the load of this replica and what is known of those of the others."""
        report = self._parts.routing.fleet(self._settings.identity.pod)
        return web.Response(body=report.encode(), content_type="application/json")

    async def requests(self, request: web.Request) -> web.Response:
        """Return where the requests of one id are; it names their tenants."""
        return requests_of(request, self._parts)

    async def state(self, _request: web.Request) -> web.Response:
        """Return what the sidecar knows of itself, for people and for `weir status`."""
        identity = self._settings.identity
        return web.json_response(
            {
                "service": identity.service,
                "pool": identity.pool,
                "pod": identity.pod,
                "model": identity.model,
                "phase": self._drain.phase.value,
                "engine": self._monitor.state.value,
                "running": len(self._registry),
                "outcomes": self._metrics.outcomes(),
                "open_to": self._driver.directory.openness,
                "peers": self._parts.peers.states(),
                "adapters": self._names.states(),
                "adapter_sources": dict(self._names.sources),
                "ended": requests_page.ended(self._registry, self._driver),
                "scheduling": self._scheduling(),
            }
        )

    def _scheduling(self) -> dict[str, Any] | None:
        """Return what waits and what the engine holds; None before an engine was there."""
        scheduler, facts = self._driver.scheduler, self._driver.facts
        if facts is None:
            return None
        return {
            "engine": msgspec.to_builtins(facts),
            "at_engine": scheduler.engine_load.running,
            "kv_tokens": scheduler.engine_load.kv_tokens,
            "drain_tokens_per_second": scheduler.forecast.drain_rate,
            **requests_page.pool(self._driver.waiting(), self._driver),
            "batch": requests_page.batch(self._driver),
        }

    async def drain(self, _request: web.Request) -> web.Response:
        """Drain, and answer when nothing runs any more."""
        farewell = await self._drain.run()
        return web.json_response(
            {"phase": self._drain.phase.value, "seconds": farewell.seconds, "cut": farewell.cut}
        )


def requests_of(request: web.Request, parts: Parts) -> web.Response:
    """Return where the requests are that are asked for by their id."""
    asked = request.query.get("id", "")
    if not asked:
        raise web.HTTPBadRequest(text=f"say which: {REQUESTS_PATH}?id=ID\n")
    found = one_request.report(parts.settings.identity.pod, parts.registry, parts.driver, asked)
    return web.Response(body=found.encode(), content_type="application/json")


def refused(request: web.Request, parts: Parts, now: float) -> web.Response | None:
    """Return the refusal of a page that is the operator's; None where it may be read.

    Args:
        request: Asks for it.
        parts: Of the sidecar: they hold the service's keys.
        now: Unix time, in seconds.
    """
    headers = request.headers
    shown: str = headers.get(state_access.HEADER, "") or headers.get("Authorization", "")
    if state_access.may_read(shown, parts.peers.own.keys, parts.settings.identity.pod, now):
        return None
    scheme = {"WWW-Authenticate": state_access.SCHEME}
    return web.Response(status=401, text=_NOT_HERE, headers=scheme)


@web.middleware
async def reported(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Log what fails: aiohttp's own lines, mostly of malformed requests, are off."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception:
        log.exception("the admin page failed", extra={"path": request.path})
        return web.Response(status=500, text="this page failed; the log says why\n")


def _probe(ready: bool, why: str) -> web.Response:
    return web.Response(status=200 if ready else 503, text=why + "\n")
