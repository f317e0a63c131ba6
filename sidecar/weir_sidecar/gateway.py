"""A sidecar without an engine: one address before the replicas of a service.

It authenticates, classifies and routes by the same code as a replica's sidecar, and holds nothing
that a replica lacks. While no replica takes requests they wait here, in the pool, up to what their
class may wait. `weir up` serves on one; on Kubernetes a Service suffices.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from weir_core.wire.fleet import FLEET_PATH, LONGEST_WAIT_S, WAIT
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.request_state import REQUESTS_PATH
from weir_sidecar import requests_page
from weir_sidecar.admin import refused, reported, requests_of
from weir_sidecar.drain import Drain, Phase
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.auth import is_here
from weir_sidecar.frontend.protocol import HttpRequest
from weir_sidecar.frontend.server import HEALTH_PATH
from weir_sidecar.listening import admin_port
from weir_sidecar.names import Shown
from weir_sidecar.parts import Parts
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.metrics import METRICS_HEADERS
from weir_sidecar.telemetry.request_trace import Tracing

log = logging.getLogger(__name__)

_LONGEST_START_S: Final = 600.0
"""What took longer was no start but a trouble, and says nothing of the next start."""
_LOOK_S: Final = 0.2
"""Time between two looks whether a request waits, while the operator waits for that."""


class Gateway:
    """The gateway of one service.

    Args:
        settings: What the environment says.
        listen: Host and port of the public address.
        clock: Seconds that only move forward.
        tracing: Where spans go, or None.
        admin: Host and port of the admin port, which the gateways of a cluster have. Such a one is
            ready without a replica, and leaves as a replica does: endpoint lists hold it.
    """

    def __init__(
        self,
        settings: Settings,
        listen: tuple[str, int],
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
        admin: tuple[str, int] | None = None,
    ) -> None:
        self.settings = settings
        self._listen = listen
        self._admin = admin
        self._clock = clock
        self._start = StartTime(settings.health.retry_after_s)
        self.parts = Parts(settings, clock, tracing, None, self._note)
        self.registry, self.peers = self.parts.registry, self.parts.peers
        self.handler = self.parts.handler
        self._adapters: set[str] = set()
        """All that were ever declared."""
        self._since = int(time.time())
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
            self.parts.server,
            self.registry,
            settings.draining,
            clock,
            is_expected=lambda: admin is not None,
        )
        self.port = self.admin_port = 0
        self._list_models(PolicyDocument())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Gateway]:
        """Listen; leaving the context stops at once, so drain before."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.parts.working())
            log.info("open to %s", self.parts.driver.directory.openness)
            await stack.enter_async_context(
                self.parts.supervisor.running("housekeeping", self._keep)
            )
            stack.push_async_callback(self.drain.stop)
            self.port = await stack.enter_async_context(self.parts.server.listen(*self._listen))
            if self._admin is not None:
                self.admin_port = await stack.enter_async_context(
                    admin_port(self._admin_app(), *self._admin)
                )
            log.info("listening", extra={"host": self._listen[0], "port": self.port})
            yield self

    def _note(self, document: PolicyDocument) -> None:
        """Refuse newcomers for an adapter that is removed: replicas would wait for them to end."""
        now = {each.name for each in document.adapters}
        self._adapters |= now
        self._names.removed = frozenset(self._adapters.difference(now, document.aliases))
        self._list_models(document)

    def _list_models(self, document: PolicyDocument) -> None:
        """Have clients that ask for the models find them, though no replica serves.

        One that is not ready without a replica refuses.
        """
        model = self.settings.identity.model
        if self._admin is not None and model:
            self._names.models = models_page(model, document, self._since)

    async def _keep(self) -> None:
        """Look after what nobody tells us of: changed policies, and how long replicas start."""
        while True:
            await asyncio.sleep(self.settings.policies.poll_s)
            self.parts.look()
            is_served, waiting = self.peers.usable > 0, self.parts.routing.waiting
            self._start.look(is_served, waiting, self._clock())
            self.parts.driver.retry_after_s = self._start.left_s(self._clock())

    # ---- probes and pages

    def _health(self) -> tuple[bool, str]:
        supervisor = self.parts.supervisor
        return not supervisor.hopeless, supervisor.trouble or "ok"

    def _readiness(self) -> tuple[bool, str]:
        trouble, usable = self.parts.supervisor.trouble, self.peers.usable
        serving = self.drain.phase is Phase.SERVING and not trouble
        takes = usable > 0 or self._admin is not None
        return serving and takes, trouble or f"{usable} replicas take requests"

    def _alive(self, _request: HttpRequest) -> Answer:
        return _probe(*self._health())

    def _ready(self, _request: HttpRequest) -> Answer:
        return _probe(*self._readiness())

    def _show_metrics(self, request: HttpRequest) -> Answer | None:
        if not is_here(request.connection.remote):
            return None
        self.parts.show_load()
        return Answer(200, self.parts.metrics.render(), METRICS_HEADERS["Content-Type"])

    def _admin_app(self) -> web.Application:
        app = web.Application(middlewares=[reported])
        app.router.add_get("/healthz", self._probed(self._health))
        app.router.add_get("/readyz", self._probed(self._readiness))
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/state", self._state)
        app.router.add_get(FLEET_PATH, self._fleet)
        app.router.add_get(REQUESTS_PATH, self._requests)
        return app

    def _probed(self, look: Callable[[], tuple[bool, str]]) -> Handler:
        async def page(_request: web.Request) -> web.Response:
            well, words = look()
            return web.Response(status=200 if well else 503, text=f"{words}\n")

        return page

    async def _metrics(self, _request: web.Request) -> web.Response:
        self.parts.metrics.draining.set(0 if self.drain.phase is Phase.SERVING else 1)
        self.parts.show_load()
        return web.Response(body=self.parts.metrics.render(), headers=METRICS_HEADERS)

    async def _state(self, request: web.Request) -> web.Response:
        """Return which requests wait here and how the last ones ended; it names tenants."""
        refusal = refused(request, self.parts, time.time())
        if refusal is not None:
            return refusal
        driver = self.parts.driver
        return web.json_response(
            {
                "pod": self.settings.identity.pod,
                "phase": self.drain.phase.value,
                "ended": requests_page.ended(self.registry, driver),
                "held": requests_page.pool(driver.waiting(), driver),
            }
        )

    async def _requests(self, request: web.Request) -> web.Response:
        refusal = refused(request, self.parts, time.time())
        return requests_of(request, self.parts) if refusal is None else refusal

    async def _fleet(self, request: web.Request) -> web.Response:
        """Return what is known of the replicas, at once or as soon as a request waits."""
        refusal = refused(request, self.parts, time.time())
        if refusal is not None:
            return refusal
        asked = request.query.get(WAIT, "0")
        if not asked.isdecimal():
            return web.Response(status=400, text=f"{WAIT} is not a whole number of seconds\n")
        ends = self._clock() + min(float(asked), LONGEST_WAIT_S)
        routing = self.parts.routing
        while True:
            if routing.waiting or self._clock() >= ends:
                report = routing.fleet(self.settings.identity.pod)
                return web.Response(body=report.encode(), content_type="application/json")
            await asyncio.sleep(_LOOK_S)


def models_page(model: str, document: PolicyDocument, created: int) -> bytes:
    """Return what an engine's /v1/models says, as far as it is known without one.

    Args:
        model: The model's name.
        document: Says its further names and its adapters.
        created: Unix time in seconds, which clients expect of a model.
    """
    parents: dict[str, str | None] = dict.fromkeys((model, *document.aliases))
    for adapter in document.adapters:
        parents.setdefault(adapter.name, model)
    cards = [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": name if parent else model,
            "parent": parent,
            "max_model_len": None,
        }
        for name, parent in parents.items()
    ]
    return msgspec.json.encode({"object": "list", "data": cards})


class StartTime:
    """How long the first replica takes to start, and how much of that is left.

    Args:
        otherwise_s: What refused clients are told before one was seen, or while replicas serve.
    """

    def __init__(self, otherwise_s: int) -> None:
        self._otherwise_s = otherwise_s
        self._took_s: float | None = None
        self._since_s: float | None = None

    def look(self, is_served: bool, waiting: int, now: float) -> None:
        """Note whether replicas serve, and how many requests wait for the first one."""
        if is_served and self._since_s is not None:
            took_s, self._since_s = now - self._since_s, None
            if took_s <= _LONGEST_START_S:
                self._took_s = took_s
        elif waiting and not is_served and self._since_s is None:
            self._since_s = now

    def left_s(self, now: float) -> int:
        """Return after how long a client that is refused now may find a replica."""
        if self._since_s is None or self._took_s is None:
            return self._otherwise_s
        return max(self._otherwise_s, math.ceil(self._since_s + self._took_s - now))


def _probe(well: bool, words: str) -> Answer:
    return Answer(200 if well else 503, f"{words}\n".encode())
