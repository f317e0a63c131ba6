"""The peer port: other sidecars of the service connect here, and nothing else gets an answer.

A connection shows the service's key in its first two requests. Until then only the handshake is
answered; from then on heartbeats are, and any other request is one that a sidecar forwards. The
port listens only where there is a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

from weir_core.wire.peers import HEARTBEAT_PATH, HELLO_PATH, RETURNED_HEADER
from weir_sidecar.frontend.answer import JSON, TEXT, Answer
from weir_sidecar.frontend.errors import ApiError
from weir_sidecar.frontend.protocol import ClientConnection, HttpRequest, HttpServer
from weir_sidecar.peers.handshake import MAX_HELLO_BYTES, ServerHandshake
from weir_sidecar.peers.peers import MAX_HEARTBEAT_BYTES, Peers
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.logs import Seldom
from weir_sidecar.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_MSGPACK: Final = "application/msgpack"
_BODY_S: Final = 5.0
"""Bound on the body of a handshake or a heartbeat."""
_GOODBYE_S: Final = 1.0
"""How long connections get to end by themselves when the port closes."""
_POLL_S: Final = 0.02


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
        self._forwarded = handle
        self._clock = clock
        self._head_s = settings.timeouts.head_s
        self._server = HttpServer(self._handle, _refuse_unread, settings, metrics, clock)
        self._server.is_peers = True
        self._seldom = Seldom(clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._place = "", 0
        self._listener: asyncio.Server | None = None
        self._listens = False

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int) -> AsyncIterator[int]:
        """Take the port, and yield it; at the end close every connection."""
        self._place = host, port
        listener = await self._take_port()
        self._place = host, listener.sockets[0].getsockname()[1]
        self._peers.listens_at(self._place[1])
        self._peers.keep_port = self.keep
        try:
            await self.keep()
            yield self._place[1]
        finally:
            self._peers.keep_port = None
            if self._listener is not None:
                self._listener.close()
            await self._end_connections()

    async def keep(self) -> None:
        """Listen where there is a key, and end connections that take too long."""
        has_keys = len(self._peers.keys) > 0
        if has_keys and not self._listens:
            listener = self._listener or await self._take_port()
            await listener.start_serving()
            self._listens = True
        elif not has_keys and self._listens:
            self._listens = False
            if self._listener is not None:
                self._listener.close()
            self._listener = None
            await self._end_connections()
        self._server.look()
        self._end_strangers()

    async def _take_port(self) -> asyncio.Server:
        """Return a listener that does not listen yet: connections are refused."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._server, *self._place, backlog=1024, start_serving=False
        )
        return self._listener

    def _end_strangers(self) -> None:
        """End connections that took too long over their handshake."""
        now = self._clock()
        for connection in list(self._server.connections):
            greeting = connection.greeting
            if greeting is None or greeting.done:
                continue
            if now - greeting.began_s >= self._head_s:
                connection.cut_off()

    async def _end_connections(self) -> None:
        for connection in list(self._server.connections):
            if connection.is_idle:
                connection.close()
        await self._all_gone()
        for connection in list(self._server.connections):
            connection.cut_off()
        await self._all_gone()

    async def _all_gone(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                while self._server.connections:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)

    # ---- requests

    def _handle(self, http: HttpRequest) -> None:
        """Answer one request; what comes without a key gets one answer and no other."""
        greeting, path = http.connection.greeting, http.head.raw_path
        if path == HELLO_PATH:
            self._with_body(http, MAX_HELLO_BYTES, self._greet)
        elif greeting is None or not greeting.done or greeting.key not in self._peers.keys:
            http.answer(_unauthenticated())
        elif path == HEARTBEAT_PATH:
            self._with_body(http, MAX_HEARTBEAT_BYTES, self._beat)
        else:
            self._forwarded(http, greeting.name)

    def _with_body(
        self, http: HttpRequest, limit_bytes: int, answer: Callable[[HttpRequest, bytes], Answer]
    ) -> None:
        """Answer a request once its body is there."""
        if http.whole:
            body = http.take()
            if len(body) > limit_bytes:
                http.answer(_TOO_LARGE)
            else:
                http.answer(answer(http, body))
            return
        task = asyncio.get_running_loop().create_task(self._read(http, limit_bytes, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(
        self, http: HttpRequest, limit_bytes: int, answer: Callable[[HttpRequest, bytes], Answer]
    ) -> None:
        body = b""
        try:
            async with asyncio.timeout(_BODY_S):
                while len(body) <= limit_bytes and (more := await http.read()):
                    body += more
        except (TimeoutError, ApiError):
            http.answer(_BROKEN)
            return
        http.answer(_TOO_LARGE if len(body) > limit_bytes else answer(http, body))

    def _greet(self, http: HttpRequest, body: bytes) -> Answer:
        connection = http.connection
        greeting = connection.greeting
        if greeting is None:
            greeting = connection.greeting = ServerHandshake(self._peers, self._clock())
        answer = greeting.answer(body)
        if answer is None:
            self._tell_of_stranger(connection, greeting)
            return _unauthenticated()
        if greeting.done:
            self._peers.greeted(greeting.name, greeting.epoch)
        return Answer(200, answer, JSON)

    def _beat(self, http: HttpRequest, body: bytes) -> Answer:
        greeting = http.connection.greeting
        answer = None if greeting is None else self._peers.answer(greeting.name, body)
        return _BROKEN if answer is None else Answer(200, answer, _MSGPACK)

    def _tell_of_stranger(self, connection: ClientConnection, greeting: ServerHandshake) -> None:
        words = {"peer": greeting.name, "from": connection.remote}
        self._seldom.warn(log, "a sidecar does not show our key", words)


def _unauthenticated() -> Answer:
    """Return what a connection is told that has not shown the key; it ends with it."""
    headers = {RETURNED_HEADER.decode(): "unauthenticated"}
    return Answer(401, b"show the key of the service\n", TEXT, headers, close=True)


def _refuse_unread(error: ApiError) -> Answer:
    return Answer(error.status, b"unreadable\n", TEXT, close=True)


_BROKEN: Final = Answer(400, b"malformed\n", TEXT, close=True)
_TOO_LARGE: Final = Answer(413, b"too large\n", TEXT, close=True)
