"""The API port: the clients' connections, and the switches that a drain turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web

from weir_sidecar.frontend.protocol import Handler, HttpServer
from weir_sidecar.ledger import Ledger
from weir_sidecar.proxy import Proxy
from weir_sidecar.settings import Settings
from weir_sidecar.supervise import Supervisor

_FLUSH_POLL_S: Final = 0.02
_WATCH_S: Final = 1.0


class Server:
    """The API port: connections, and the switches a drain turns.

    Args:
        handler: Handles requests; the proxy, or what stands before it.
        proxy: Its switches.
        ledger: Watched for requests that wait too long.
        settings: Bounds.
        clock: Seconds that only move forward.
        supervisor: Keeps the watch running.
    """

    def __init__(
        self,
        handler: Handler,
        proxy: Proxy,
        ledger: Ledger,
        settings: Settings,
        clock: Callable[[], float],
        supervisor: Supervisor,
    ) -> None:
        self._proxy = proxy
        self._ledger = ledger
        self._timeouts = settings.timeouts
        self._clock = clock
        self._supervisor = supervisor
        self._server = HttpServer(
            handler, proxy.refuse_unread, settings.limits, settings.timeouts, ledger.metrics
        )

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int) -> AsyncIterator[int]:
        """Listen, and yield the port; at the end close every connection."""
        runner = web.ServerRunner(self._server, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=1024).start()
            async with self._supervisor.running("watch", self._watch):
                yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    async def _watch(self) -> None:
        """End exchanges that wait too long, and connections on which a head does."""
        bounds = self._timeouts
        period_s = min(_WATCH_S, bounds.progress_s / 4, bounds.first_byte_s / 4, bounds.head_s / 4)
        while True:
            await asyncio.sleep(period_s)
            self._server.close_slow()
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
        while self._unsent_bytes():  # noqa: ASYNC110 - a transport tells nobody when it is empty
            await asyncio.sleep(_FLUSH_POLL_S)

    def _unsent_bytes(self) -> int:
        transports = (connection.transport for connection in self._server.connections)
        return sum(transport.get_write_buffer_size() for transport in transports if transport)
