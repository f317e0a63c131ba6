"""The peer port: other sidecars of the service connect here, and nothing else gets an answer.

The port listens only where there is a key: without one, connections are refused by the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final

from weir_sidecar.frontend.protocol import HttpRequest, HttpServer
from weir_sidecar.frontend.server import end_connections
from weir_sidecar.listening import listener
from weir_sidecar.peers.peers import Peers
from weir_sidecar.peers.requests import PeerRequests, refuse_unread
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.metrics import Metrics

_MORE_HEADERS: Final = 8
_MORE_HEADER_BYTES: Final = 64 << 10
"""Of a request that is forwarded, beyond those of its client."""


class PeerPort:
    """The port for other sidecars.

    Args:
        peers: What is known of them.
        handle: Begins to answer a forwarded request, of the sidecar with the name that it is given.
        settings: Bounds.
        metrics: The instruments.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        peers: Peers,
        handle: Callable[[HttpRequest, str], None],
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._peers = peers
        self._clock = clock
        self._head_s = settings.timeouts.head_s
        self._requests = PeerRequests(peers, handle, clock)
        # What a client was let send may be forwarded, with what is said of it.
        limits = settings.limits
        wider = replace(
            limits,
            max_headers=limits.max_headers + _MORE_HEADERS,
            max_header_bytes=limits.max_header_bytes + _MORE_HEADER_BYTES,
        )
        self._server = HttpServer(
            self._requests.handle, refuse_unread, replace(settings, limits=wider), metrics, clock
        )
        self._server.is_peers = True
        self._place = "", 0
        self._listener: asyncio.Server | None = None
        self.listens = False

    def share_limit(self, api: HttpServer) -> None:
        """Have one limit hold for the connections of this port and of the API port together."""
        self._server.beside, api.beside = api, self._server

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int) -> AsyncIterator[int]:
        """Take the port, and yield it; at the end close every connection."""
        self._place = host, port
        taken = await self._take_port()
        self._place = host, taken.sockets[0].getsockname()[1]
        self._peers.listens_at(self._place[1])
        self._peers.keep_port(self.keep)
        try:
            await self.keep()
            yield self._place[1]
        finally:
            self._peers.keep_port(None)
            await self._stop()

    def count_by(self, answer: Callable[[str, bytes], bytes | None]) -> None:
        """Have this answer what a sidecar says of tenants' limits."""
        self._requests.places = answer

    async def keep(self) -> None:
        """Listen where there is a key, and end connections that have no use of it."""
        has_keys = len(self._peers.own.keys) > 0
        if has_keys and not self.listens:
            taken = self._listener or await self._take_port()
            await taken.start_serving()
            self.listens = True
        elif not has_keys and self.listens:
            await self._stop()
        self._server.look()
        self._end_strangers()

    async def _take_port(self) -> asyncio.Server:
        """Return a listener that does not listen yet: connections are refused."""
        self._listener = await listener(self._server, *self._place, at_once=False)
        return self._listener

    def _end_strangers(self) -> None:
        """End connections whose handshake takes too long, and idle ones whose key is retired."""
        now, keys = self._clock(), self._peers.own.keys
        for connection in list(self._server.connections):
            greeting = connection.greeting
            if greeting is None:
                continue
            if not greeting.done:
                if now - greeting.began_s >= self._head_s:
                    connection.cut_off()
            elif greeting.key not in keys and connection.is_idle:
                connection.close()

    async def _stop(self) -> None:
        """Listen no more, and end every connection."""
        self.listens = False
        taken, self._listener = self._listener, None
        if taken is not None:
            taken.close()
        self._requests.close()
        await end_connections(self._server, lambda: False)
        if taken is not None:
            await taken.wait_closed()
