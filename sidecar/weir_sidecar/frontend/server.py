"""The API port: the clients' connections, and the switches that a drain turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web

from weir_sidecar.frontend.protocol import Handle, HttpServer
from weir_sidecar.inflight import Handler
from weir_sidecar.settings import Settings
from weir_sidecar.supervise import Supervisor

HEALTH_PATH: Final = "/health"
"""Answered as vLLM answers it, by the sidecar: a load balancer asks without a key."""
_FLUSH_POLL_S: Final = 0.02
_WATCH_S: Final = 1.0


class Server:
    """The API port: connections, and the switches a drain turns.

    Args:
        handle: Answers one request; the handler's, or one that stands before it.
        handler: Its switches, and the requests that are watched for waiting too long.
        settings: Bounds.
        clock: Seconds that only move forward.
        supervisor: Keeps the watch running.
    """

    def __init__(
        self,
        handle: Handle,
        handler: Handler,
        settings: Settings,
        clock: Callable[[], float],
        supervisor: Supervisor,
    ) -> None:
        self._handler = handler
        self._timeouts = settings.timeouts
        self._clock = clock
        self._supervisor = supervisor
        self._server = HttpServer(
            handle,
            handler.refuse_unread,
            settings.limits,
            settings.timeouts,
            handler.metrics,
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
            self._handler.registry.watch(self._clock(), bounds)

    # What a drain needs.

    def leave(self) -> None:
        """End the connection with every answer from now on."""
        self._handler.leaving = True

    def refuse(self) -> None:
        """Refuse newcomers from now on, and close idle connections."""
        self._handler.refusing = True
        for connection in self._server.connections:
            if connection.transport is not None and not self._handler.is_busy(connection.transport):
                connection.force_close()

    async def flush(self) -> None:
        """Wait until every client has its bytes; the caller bounds the time."""
        while self._unsent_bytes():  # noqa: ASYNC110 - a transport tells nobody when it is empty
            await asyncio.sleep(_FLUSH_POLL_S)

    def _unsent_bytes(self) -> int:
        transports = (connection.transport for connection in self._server.connections)
        return sum(transport.get_write_buffer_size() for transport in transports if transport)
