"""The sidecar put together: what listens where, which tasks run, in which order it stops.

`Server` owns the API port's connections for the proxy and is the `Door` a drain uses; `Sidecar`
owns everything else. Both sidecar and front are made of the same pieces.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from weir_sidecar.admin import Admin
from weir_sidecar.drain import Drain
from weir_sidecar.engine_client import unix_pool
from weir_sidecar.ledger import Ledger
from weir_sidecar.metrics import Metrics
from weir_sidecar.monitor import EngineState, Monitor
from weir_sidecar.proxy import Proxy
from weir_sidecar.settings import Settings, Timeouts
from weir_sidecar.upstream import OwnEngine

log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], "asyncio.Future[web.StreamResponse]"]


class Server:
    """The API port: connections, and the switches a drain turns.

    Args:
        proxy: Handles requests.
        ledger: Watched for requests that wait too long.
        timeouts: Bounds.
        clock: Seconds that only move forward.
    """

    def __init__(
        self, proxy: Proxy, ledger: Ledger, timeouts: Timeouts, clock: Callable[[], float]
    ) -> None:
        self._proxy = proxy
        self._ledger = ledger
        self._timeouts = timeouts
        self._clock = clock
        self._server = web.Server(
            proxy.handle,
            handler_cancellation=True,
            keepalive_timeout=timeouts.client_idle_s,
            access_log=None,
        )

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int) -> AsyncIterator[int]:
        """Listen, and yield the port; at the end close every connection."""
        runner = web.ServerRunner(self._server, shutdown_timeout=1.0)
        await runner.setup()
        watch = asyncio.create_task(self._watch(), name="watch")
        try:
            await web.TCPSite(runner, host, port, backlog=1024).start()
            yield runner.addresses[0][1]
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await runner.cleanup()

    async def _watch(self) -> None:
        """End exchanges that wait too long."""
        bounds = self._timeouts
        period_s = min(1.0, bounds.progress_s / 4, bounds.first_byte_s / 4)
        while True:
            await asyncio.sleep(period_s)
            self._ledger.watch(
                self._clock(), first_byte_s=bounds.first_byte_s, progress_s=bounds.progress_s
            )

    # The door.

    def leave(self) -> None:
        """End the connection with every answer from now on."""
        self._proxy.leaving = True

    def refuse(self) -> None:
        """Refuse newcomers from now on, and close idle connections."""
        self._proxy.refusing = True
        for connection in self._server.connections:
            if connection.transport is not None and not self._proxy.is_busy(connection.transport):
                connection.force_close()

    async def flush(self) -> None:
        """Wait until every client has its bytes; the caller bounds the time."""
        while any(
            connection.transport is not None and connection.transport.get_write_buffer_size()
            for connection in self._server.connections
        ):
            await asyncio.sleep(0.05)


class Sidecar:
    """One replica's sidecar.

    Args:
        settings: What the environment says.
        clock: Seconds that only move forward.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.metrics = Metrics(CollectorRegistry())
        self.ledger = Ledger(self.metrics, clock, limit=settings.limits.max_requests)
        self.pool = unix_pool(
            settings.addresses.engine_socket,
            clock,
            idle_limit=settings.limits.idle_connections,
            idle_s=settings.timeouts.engine_idle_s,
        )
        self.monitor = Monitor(self.pool, self.ledger, self.metrics, settings.health, clock)
        upstream = OwnEngine(self.pool, self.monitor, settings.health)
        self.proxy = Proxy(
            upstream, self.ledger, self.metrics, settings.limits, settings.timeouts, clock
        )
        self.server = Server(self.proxy, self.ledger, settings.timeouts, clock)
        self.drain = Drain(
            self.server,
            self.ledger,
            settings.draining,
            clock,
            is_expected=lambda: self.monitor.state is EngineState.READY,
        )
        self.api_port = 0
        self.admin_port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Sidecar]:
        """Listen and watch the engine; leaving the context stops at once, so drain before."""
        addresses = self.settings.addresses
        admin = Admin(self.settings, self.pool, self.monitor, self.ledger, self.metrics, self.drain)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.pool.close)
            monitor = asyncio.create_task(self.monitor.run(), name="monitor")
            stack.push_async_callback(_end, monitor)
            stack.push_async_callback(self.drain.stop)
            self.api_port = await stack.enter_async_context(
                self.server.listen(addresses.host, addresses.api_port)
            )
            self.admin_port = await stack.enter_async_context(
                _admin_port(admin, addresses.host, addresses.admin_port)
            )
            await stack.enter_async_context(_admin_socket(admin, addresses.admin_socket))
            log.info("listening", extra={"api": self.api_port, "admin": self.admin_port})
            yield self


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _admin_port(admin: Admin, host: str, port: int) -> AsyncIterator[int]:
    runner = web.AppRunner(admin.port_app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _admin_socket(admin: Admin, path: Path) -> AsyncIterator[None]:
    """Serve the admin socket; one left by a process that died is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    runner = web.AppRunner(admin.socket_app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(path)).start()
        os.chmod(path, 0o660)
        yield
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)
