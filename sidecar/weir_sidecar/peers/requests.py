"""What other sidecars ask on the peer port.

A connection shows the service's key in its first two requests. Until then only the handshake is
answered; from then on heartbeats are, and any other request is one that a sidecar forwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from weir_core.wire.peers import HEARTBEAT_PATH, HELLO_PATH, PLACES_PATH, RETURNED_HEADER
from weir_sidecar.frontend.answer import TEXT, Answer
from weir_sidecar.frontend.errors import ApiError
from weir_sidecar.frontend.protocol import ClientConnection, HttpRequest
from weir_sidecar.limits import MAX_PLACES_BYTES
from weir_sidecar.peers.handshake import MAX_HELLO_BYTES, ServerHandshake
from weir_sidecar.peers.heartbeats import MAX_HEARTBEAT_BYTES
from weir_sidecar.peers.peers import Peers
from weir_sidecar.telemetry.logs import Seldom

log = logging.getLogger(__name__)

_OK: Final = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b"
_BODY_S: Final = 5.0
"""Bound on the body of a handshake or a heartbeat."""


class PeerRequests:
    """Answers the requests of the peer port.

    Args:
        peers: What is known of the other sidecars.
        handle: Begins to answer a forwarded request, of the sidecar with the name that it is given.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        peers: Peers,
        handle: Callable[[HttpRequest, str], None],
        clock: Callable[[], float],
    ) -> None:
        self._peers = peers
        self._forwarded = handle
        self._clock = clock
        self._seldom = Seldom(clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self.places: Callable[[str, bytes], bytes | None] | None = None
        """Answers what a sidecar says of tenants' limits."""

    def handle(self, http: HttpRequest) -> None:
        """Answer one request; what comes without a key gets one answer and no other."""
        greeting, path = http.connection.greeting, http.head.raw_path
        if path == HELLO_PATH:
            self._with_body(http, MAX_HELLO_BYTES, self._greet)
        elif greeting is None or not greeting.done or greeting.key not in self._peers.own.keys:
            http.answer(_unauthenticated())
        elif path == HEARTBEAT_PATH:
            self._with_body(http, MAX_HEARTBEAT_BYTES, self._beat)
        elif path == PLACES_PATH:
            self._with_body(http, MAX_PLACES_BYTES, self._count)
        else:
            self._forwarded(http, greeting.name)

    def _with_body(
        self,
        http: HttpRequest,
        limit_bytes: int,
        answer: Callable[[ClientConnection, bytes], bytes | Answer],
    ) -> None:
        """Answer a request once its body is there."""
        if http.whole:
            self._respond(http, limit_bytes, http.take(), answer)
            return
        task = asyncio.get_running_loop().create_task(self._read(http, limit_bytes, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(
        self,
        http: HttpRequest,
        limit_bytes: int,
        answer: Callable[[ClientConnection, bytes], bytes | Answer],
    ) -> None:
        body = b""
        try:
            async with asyncio.timeout(_BODY_S):
                while len(body) <= limit_bytes and (more := await http.read()):
                    body += more
        except (TimeoutError, ApiError):
            http.answer(_BROKEN)
        else:
            self._respond(http, limit_bytes, body, answer)

    def _respond(
        self,
        http: HttpRequest,
        limit_bytes: int,
        body: bytes,
        answer: Callable[[ClientConnection, bytes], bytes | Answer],
    ) -> None:
        """Answer with a message, or with what ends the connection."""
        if len(body) > limit_bytes:
            http.answer(_TOO_LARGE)
            return
        response = answer(http.connection, body)
        if isinstance(response, Answer):
            http.answer(response)
        else:
            http.connection.write(_OK % (len(response), response))
            http.connection.finished(keep_alive=http.keep_alive)

    def _greet(self, connection: ClientConnection, body: bytes) -> bytes | Answer:
        greeting = connection.greeting
        if greeting is None:
            greeting = connection.greeting = ServerHandshake(self._peers.own, self._clock())
        answer = greeting.answer(body)
        if answer is None:
            self._tell_of_stranger(connection, greeting)
            return _unauthenticated()
        if greeting.done:
            self._peers.greeted(greeting.name, greeting.epoch)
        return answer

    def _beat(self, connection: ClientConnection, body: bytes) -> bytes | Answer:
        greeting = connection.greeting
        answer = None if greeting is None else self._peers.answer(greeting.name, body)
        return _BROKEN if answer is None else answer

    def _count(self, connection: ClientConnection, body: bytes) -> bytes | Answer:
        greeting, places = connection.greeting, self.places
        answer = None if greeting is None or places is None else places(greeting.name, body)
        return _BROKEN if answer is None else answer

    def _tell_of_stranger(self, connection: ClientConnection, greeting: ServerHandshake) -> None:
        words = {"peer": greeting.name, "from": connection.remote, "why": greeting.why}
        self._seldom.warn(log, "a connection does not show our key", words)

    def close(self) -> None:
        """Wait for no more bodies."""
        for task in self._tasks:
            task.cancel()


def _unauthenticated() -> Answer:
    """Return what a connection is told that has not shown the key; it ends with it."""
    headers = {RETURNED_HEADER.decode(): "unauthenticated"}
    return Answer(401, b"show the key of the service\n", TEXT, headers, close=True)


def refuse_unread(error: ApiError) -> Answer:
    """Return the answer to bytes that are no request."""
    return Answer(error.status, b"unreadable\n", TEXT, close=True)


_BROKEN: Final = Answer(400, b"malformed\n", TEXT, close=True)
_TOO_LARGE: Final = Answer(413, b"too large\n", TEXT, close=True)
