"""The operator's own HTTP server: metrics and probes, for the kubelet and Prometheus only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


@asynccontextmanager
async def serving(
    registry: CollectorRegistry, port: int, led: Callable[[], bool]
) -> AsyncIterator[None]:
    """Serve `/metrics`, `/healthz` and `/readyz` while the context lasts.

    A standby is ready, too, while another operator leads. Where none does, whatever installed Weir
    must not call it healthy.

    Args:
        registry: Where the metrics are.
        port: Where to listen.
        led: Tells whether an operator leads, this one or another.
    """

    async def metrics(_: web.Request) -> web.Response:
        body = generate_latest(registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        if led():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="no operator holds the lease; the log says why\n")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", alive)
    app.router.add_get("/readyz", ready)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
