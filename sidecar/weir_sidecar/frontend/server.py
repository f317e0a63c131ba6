"""The API port: the clients' connections, and the switches that a drain turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from weir_sidecar.frontend.auth import SECRET_HEADERS
from weir_sidecar.frontend.protocol import HttpServer
from weir_sidecar.inflight import Handler
from weir_sidecar.listening import listener
from weir_sidecar.settings import Settings
from weir_sidecar.supervise import Supervisor

HEALTH_PATH: Final = "/health"
"""Answered as vLLM answers it, by the sidecar: a load balancer asks without a key."""
_FLUSH_POLL_S: Final = 0.02
_WATCH_S: Final = 1.0
_GOODBYE_S: Final = 1.0
"""How long connections get to end by themselves when the server stops."""


def close_idle(server: HttpServer) -> None:
    """Close the connections on which no request is being read or answered."""
    for connection in list(server.connections):
        if connection.is_idle:
            connection.close()


async def end_connections(server: HttpServer, is_busy: Callable[[], bool]) -> None:
    """Close what is idle at once, and cut what does not end by itself.

    Args:
        server: Whose connections they are.
        is_busy: Tells whether there is more to wait for than the connections.
    """
    close_idle(server)
    await _until_gone(server, is_busy)
    for connection in list(server.connections):
        connection.cut_off()
    await _until_gone(server, is_busy)


async def _until_gone(server: HttpServer, is_busy: Callable[[], bool]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GOODBYE_S):
            while server.connections or is_busy():  # noqa: ASYNC110
                await asyncio.sleep(_FLUSH_POLL_S)


class Server:
    """The API port: connections, and the switches a drain turns.

    Args:
        handler: Answers requests; its switches, and what is watched for waiting too long.
        settings: Bounds.
        clock: Seconds that only move forward.
        supervisor: Keeps the watch running.
    """

    def __init__(
        self,
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
            handler.handle,
            handler.refuse_unread,
            settings,
            handler.metrics,
            clock,
            secret_headers=SECRET_HEADERS,
        )

    @property
    def http(self) -> HttpServer:
        """What makes the connections."""
        return self._server

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int) -> AsyncIterator[int]:
        """Listen, and yield the port; at the end close every connection."""
        listens = await listener(self._server, host, port)
        try:
            async with self._supervisor.running("watch", self._watch):
                yield listens.sockets[0].getsockname()[1]
        finally:
            listens.close()
            await end_connections(self._server, lambda: len(self._handler.registry) > 0)
            await listens.wait_closed()

    async def _watch(self) -> None:
        """End exchanges that wait too long, and connections on which a head does."""
        bounds = self._timeouts
        period_s = min(_WATCH_S, bounds.progress_s / 4, bounds.first_byte_s / 4, bounds.head_s / 4)
        while True:
            await asyncio.sleep(period_s)
            self._server.look()
            self._handler.registry.watch(self._clock(), bounds)

    # What a drain needs.

    def leave(self) -> None:
        """End the connection with every answer from now on."""
        self._handler.leaving = True
        if self._handler.routing is not None:
            self._handler.routing.tell_peers()

    def refuse(self) -> None:
        """Refuse newcomers from now on, and close idle connections."""
        self._handler.refusing = True
        if self._handler.routing is not None:
            self._handler.routing.hand_over()
        close_idle(self._server)

    async def flush(self) -> None:
        """Wait until every client and every peer has its bytes; the caller bounds the time."""
        while self._unsent_bytes():  # noqa: ASYNC110 - a transport tells nobody when it is empty
            await asyncio.sleep(_FLUSH_POLL_S)

    def _unsent_bytes(self) -> int:
        servers = (each for each in (self._server, self._server.beside) if each is not None)
        connections = (connection for each in servers for connection in each.connections)
        transports = (connection.transport for connection in connections)
        return sum(transport.get_write_buffer_size() for transport in transports if transport)
