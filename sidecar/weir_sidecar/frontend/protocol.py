"""HTTP/1.1 towards clients: llhttp by httptools, with bounds and with Weir's own refusals.

`ClientConnection` reads requests and hands one at a time to the server's handler, in the callback
that brought its bytes; the requests that a client sent meanwhile wait. `HttpRequest` is a request
as it was read; its body may still be on its way.

What cannot be read is a refusal like any other: in the API's shape, counted, logged, with a request
id. Heads are bounded by size and time, for one request and for all that are being read, because
nothing is known of their senders yet. Connections are bounded by the file descriptors that there
are.

aiohttp's server costs more for the same; `bench/http` holds the two against each other, and
docs/adr/0012-http-server.md says where they differ and why.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, Protocol, cast

import httptools

from weir_core.wire.peers import FORWARDED_HEADER
from weir_sidecar.descriptors import client_limit
from weir_sidecar.frontend import errors
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.errors import ApiError
from weir_sidecar.frontend.headers import SPACE, RequestHead
from weir_sidecar.settings import Settings, Timeouts
from weir_sidecar.telemetry.logs import Seldom
from weir_sidecar.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from weir_sidecar.peers.handshake import ServerHandshake

log = logging.getLogger(__name__)

MAX_UNREAD_BYTES: Final = 64 << 20
"""Heads that are being read, of all connections together; large ones are refused above it."""
_LATE_S: Final = 2.0
"""A look that comes so long after the last one is late."""
LINGER_S: Final = 5.0
"""How long a refused client's bytes are read and dropped, so that it can read its answer."""
_HIGH_BODY_BYTES: Final = 256 << 10
"""Unread bytes of a body from which on its client has to wait."""
_PIECE_BYTES: Final = 32 << 10
"""A body is parsed in such pieces."""
_HEAD_PIECE_BYTES: Final = 8 << 10
"""Between bodies: of a client that sends many requests at once, few are made ahead."""
_MOST_AT_ONCE: Final = 16
"""Requests of one client that are handed over before it is another client's turn."""
_MOST_AROUND_CHUNKS: Final = 64 << 10
"""Bytes of a chunked body that bring nothing: trailers, which the parser keeps, and extensions."""
_FORWARDED_LENGTH: Final = len(FORWARDED_HEADER)
_TRACING: Final = frozenset({b"traceparent", b"tracestate"})
_NO_TRACING: Final[dict[str, str]] = {}
"""Shared by the requests without such headers, and never written to."""
_KEPT_HEAD_BYTES: Final = 8 << 10
"""A larger head is not kept for the next request."""


class RequestOwner(Protocol):
    """What handles a request, as the connection sees it."""

    def client_gone(self) -> None:
        """Hear that the client has left; the request is to end."""


class HttpRequest:
    """One request of a client, as it was read.

    Attributes:
        connection: Where it came from and its answer goes.
        head: Its request line and headers.
        announced_bytes: Content-Length, or 0.
        given_id: The value of X-Request-Id, or empty.
        tracing: The W3C trace headers, by lower-case name.
        forwarded: What a sidecar says of a request that it forwards; empty on the API port.
        keep_alive: Another request may follow on its connection.
        whole: Its body has been received to its end.
        owner: Hears when the client leaves.
        refusal: Why it could not be read, where that is so.
    """

    def __init__(self, connection: ClientConnection, head: RequestHead) -> None:
        self.connection = connection
        self.head = head
        self.announced_bytes = 0
        self.given_id = b""
        self.tracing: dict[str, str] = _NO_TRACING
        self.forwarded = b""
        self.keep_alive = True
        self.whole = False
        self.owner: RequestOwner | None = None
        self.refusal: ApiError | None = None
        self._parts: list[bytes] = []
        self.unread_bytes = 0
        """Of the body: received and not taken."""
        self._error: ApiError | None = None
        self._wake: asyncio.Future[None] | None = None

    # The body.

    def take(self) -> bytes:
        """Return what has come of the body since the last call; raise the refusal if it is bad."""
        if self._error is not None:
            raise self._error
        parts = self._parts
        if not parts:
            return b""
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self.unread_bytes = 0
        if not self.whole:
            self.connection.read_on()
        return body

    async def read(self) -> bytes:
        """Wait for some of the body and return it; empty at its end."""
        while not self._parts and not self.whole and self._error is None:
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        return self.take()

    def add(self, part: bytes) -> None:
        """Keep a part of the body."""
        self._parts.append(part)
        self.unread_bytes += len(part)
        if self._wake is not None:
            self._notify()

    def end(self, error: ApiError | None = None) -> None:
        """Note that the body is whole, or why it will never be."""
        self._error = error
        self.whole = error is None
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # The answer.

    def answer(self, answer: Answer) -> None:
        """Send a whole answer, which ends the request."""
        keep_alive = self.keep_alive and self.whole and not answer.close
        connection = self.connection
        bodiless = self.head.method == "HEAD"
        connection.write(answer.wire(keep_alive=keep_alive, bodiless=bodiless))
        connection.finished(keep_alive=keep_alive)


class ClientConnection:
    """One client's connection, as the event loop's protocol.

    Attributes:
        greeting: On the peer port: which sidecar is at the other end, and whether it has shown
            that.
    """

    greeting: ServerHandshake | None
    _linger_until: float | None

    def __init__(self, server: HttpServer) -> None:
        self._server, self._is_peers = server, server.is_peers
        self._max_headers = server.limits.max_headers
        self._max_header_bytes = server.limits.max_header_bytes
        self.transport: asyncio.Transport | None = None
        self.remote: str | None = None
        self.writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        # What the parser is in: a head, then, for `_reading`, a body.
        self._in_head = self._repeats_head = False
        self._url = self._given_id = self._forwarded = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._tracing: dict[str, str] = _NO_TRACING
        self._framing = b""
        self._announced_bytes = self._header_bytes = self._header_count = 0
        self._refusal: ApiError | None = None
        self._reading: HttpRequest | None = None
        self._head: RequestHead | None = None
        """The last one, in case the next request has the same."""
        self._line: tuple[bytes, bytes] = b"", b""
        """Its method and what it asked for."""
        # What was read: `_current` is being answered, the others wait for that.
        self._current: HttpRequest | None = None
        self._waiting: deque[HttpRequest] = deque()
        self._unparsed = b""
        self._around_chunks = 0
        """Bytes of the body since the last ones of its content."""
        self._going_on = self._goes_on_soon = self._reading_paused = self._deaf = False
        # What is watched: since when nothing has happened, as far as that was noted.
        self._head_bytes = self._served = 0
        self._since: float | None = None
        self._linger_until = self.greeting = None
        self._unsent_bytes, self._unsent_since = 0, 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no request of this client is being handled or waits."""
        return self._current is None and not self._waiting

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or end it at once where no more fit."""
        self.transport = cast(asyncio.Transport, transport)
        if not self._server.takes(self):
            self.transport.abort()
            return
        peer = transport.get_extra_info("peername")
        # A socket of both families writes IPv4 addresses as IPv6.
        self.remote = peer[0].removeprefix("::ffff:") if isinstance(peer, tuple) else None
        self._since = self._server.clock()

    def data_received(self, data: bytes) -> None:
        """Read requests, and begin to handle the first one of them."""
        if not self._deaf:
            self._unparsed = self._unparsed + data if self._unparsed else data
            self._go_on()

    def eof_received(self) -> bool:
        """Take a client that sends nothing more for one that has left, as vLLM's server does."""
        return False

    def pause_writing(self) -> None:
        """Note that as much waits for the client as may."""
        self.writing_paused = True

    def resume_writing(self) -> None:
        """Note that the client has taken most of it."""
        self.writing_paused = False
        self._notify_drained()
        if self._waiting or self._unparsed:
            self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """End what is being read and what is being answered."""
        self.transport = None
        self._deaf = True
        # Break the reference cycles here, so that the garbage collector need not.
        self._parser = self._reading = None
        self._end_head()
        self._server.forget(self)
        self._drop_unhandled()
        self._notify_drained()
        current, self._current = self._current, None
        if current is not None and current.owner is not None:
            current.owner.client_gone()

    # Called by httptools.

    def on_message_begin(self) -> None:
        """Begin a head."""
        if self._deaf:
            raise ValueError("bytes after the last request")
        if not self._repeats_head:
            self._in_head = True
            self._url = self._given_id = self._forwarded = b""
            self._headers = []
            self._tracing = _NO_TRACING
            self._announced_bytes = self._header_bytes = self._header_count = 0

    def on_url(self, url: bytes) -> None:
        """Keep a part of what the request line asks for."""
        if self._in_head:
            self._url = self._url + url if self._url else url
            self._header_bytes += len(url)
            if self._header_bytes > self._max_header_bytes:
                self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a trailer, which comes after a body, only passes by."""
        if not self._in_head:
            return
        length = len(name)
        self._header_count += 1
        self._header_bytes += length + len(value)
        if self._header_count > self._max_headers or self._header_bytes > self._max_header_bytes:
            self._refuse_head()
        if 10 <= length <= 14 and length != 13:  # the lengths of those that differ each time
            key = name.lower()
            value = value.rstrip(SPACE)
            if key == b"content-length":
                self._announced_bytes = int(value)  # llhttp takes nothing but digits
                self._framing = b"content-length: %b\r\n" % value
                return
            if key == b"x-request-id":
                self._given_id = value
                return
            if key in _TRACING:
                self._note_tracing(key, value)
                return
        elif self._is_peers and length == _FORWARDED_LENGTH and name.lower() == FORWARDED_HEADER:
            self._forwarded = value.rstrip(SPACE)
            return
        self._headers.append((name, value))

    def _note_tracing(self, key: bytes, value: bytes) -> None:
        if self._tracing is _NO_TRACING:
            self._tracing = {}
        self._tracing[key.decode()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Make a request of the head."""
        if self._repeats_head:
            self._repeats_head = False
            return
        parser = self._parser
        assert parser is not None
        self._in_head = False
        if self._head_bytes:
            self._end_head()
        head = self._head_of(parser)
        if head.refusal is not None:
            self._refusal = head.refusal
            raise ValueError("refused")
        request = HttpRequest(self, head)
        request.announced_bytes = self._announced_bytes
        request.given_id = self._given_id
        request.tracing = self._tracing
        request.forwarded = self._forwarded
        request.keep_alive = parser.should_keep_alive() and head.may_stay
        self._reading = request
        self._around_chunks = 0
        self._waiting.append(request)

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        if self._reading is not None:
            self._around_chunks = 0
            self._reading.add(body)

    def on_message_complete(self) -> None:
        """End the body, unless it stands behind a request to upgrade."""
        parser, request = self._parser, self._reading
        if request is None or parser is None:
            return
        if parser.should_upgrade() and (request.announced_bytes or request.head.is_chunked):
            return  # the body is behind the wish for another protocol; see `_head_again`
        self._reading = None
        request.end()
        self._deaf = not request.keep_alive

    # Called for the request that is being answered.

    def write(self, piece: bytes) -> None:
        """Hand bytes to the transport."""
        if self.transport is not None:
            self.transport.write(piece)

    def read_on(self) -> None:
        """Read what the client sends, if that had to wait for its body to be taken."""
        if self._reading_paused:
            self._go_on()

    async def drain(self) -> None:
        """Wait until the client has taken most of what waits for it; raise where it has left."""
        while self.writing_paused and self.transport is not None:
            self._drained = asyncio.get_running_loop().create_future()
            try:
                await self._drained
            finally:
                self._drained = None
        if self.transport is None:
            raise ConnectionResetError("the client has left")

    def finished(self, *, keep_alive: bool) -> None:
        """Go on to the next request, or end the connection after what was sent."""
        request, self._current = self._current, None
        self._served += 1
        self._since = None
        if self.transport is None or request is None:
            return
        if not keep_alive or not request.whole:
            has_more = bool(self._waiting) or bool(self._unparsed) or self._reading_paused
            self._close(lingers=has_more or not request.whole)
        elif self._waiting or self._unparsed:
            self._go_on()

    # Called by the server.

    def look(self, now: float, timeouts: Timeouts) -> None:
        """End a connection that takes too long; called each second or so."""
        if self.transport is None:
            return
        if self._linger_until is not None:
            if now >= self._linger_until:
                self.cut_off()
        elif self._is_stuck(now, timeouts.slow_client_s):
            self.cut_off()
        elif self.is_idle:
            self._look_at_silence(now, timeouts)

    def excuse(self, late_s: float, now: float) -> None:
        """Leave out of every wait a time in which this process did not run."""
        if self._since is not None:
            self._since = min(now, self._since + late_s)
        if self._linger_until is not None:
            self._linger_until = min(now + LINGER_S, self._linger_until + late_s)
        self._unsent_since = min(now, self._unsent_since + late_s)

    def close(self) -> None:
        """End the connection after what was sent."""
        self._deaf = True
        self._end_head()
        self._drop_unhandled()
        if self.transport is not None:
            self.transport.close()

    def cut_off(self) -> None:
        """End the connection, dropping what waits."""
        self._deaf = True
        self._end_head()
        self._drop_unhandled()
        if self.transport is not None:
            self.transport.abort()

    # Inside.

    def _go_on(self) -> None:
        """Read on as far as that goes, and hand over the next request if none is being answered."""
        if self._going_on:
            return
        self._going_on = True
        handed = 0
        while self.transport is not None:
            if self._unparsed and self._may_parse():
                self._feed_piece()
            elif self._current is None and self._waiting and not self.writing_paused:
                handed += 1
                if handed > _MOST_AT_ONCE:
                    self._go_on_soon()
                    break
                self._hand_over(self._waiting.popleft())
            else:
                break
        self._going_on = False
        if self._reading is not None or self._waiting or self._unparsed or self._reading_paused:
            self._pause_or_resume()

    def _go_on_soon(self) -> None:
        if not self._goes_on_soon:
            self._goes_on_soon = True
            asyncio.get_running_loop().call_soon(self._go_on_now)

    def _go_on_now(self) -> None:
        self._goes_on_soon = False
        self._go_on()

    def _hand_over(self, request: HttpRequest) -> None:
        self._current = request
        if request.refusal is None:
            self._server.handle(request)
        else:
            request.answer(self._server.refuse_unread(request.refusal))

    def _may_parse(self) -> bool:
        """Tell whether no request, and no body, has to be taken before more is parsed.

        A request whose turn it is waits for as much of its body as has come: with a whole one it
        needs no task.
        """
        waiting = len(self._waiting)
        if waiting and (waiting > 1 or self._reading is None or self._current is not None):
            return False
        return not self._has_full_body()

    def _has_full_body(self) -> bool:
        reading = self._reading
        return reading is not None and reading.unread_bytes > _HIGH_BODY_BYTES

    def _feed_piece(self) -> None:
        """Show the parser what has come, in pieces, so that few requests are made ahead."""
        data, size = self._unparsed, _HEAD_PIECE_BYTES if self._reading is None else _PIECE_BYTES
        if len(data) > size:
            self._unparsed = data[size:]
            data = data[:size]
        else:
            self._unparsed = b""
        self._feed(data)
        if self._deaf:
            self._unparsed = b""
        elif self._in_head:
            self._grow_head(len(data))
        elif self._reading is not None and self._reading.head.is_chunked:
            self._around_chunks += len(data)
            if self._around_chunks > _MOST_AROUND_CHUNKS:
                self._refuse(errors.unreadable("there is too much around its chunks"))

    def _feed(self, data: bytes) -> None:
        """Show bytes to the parser."""
        while data and self._parser is not None and not self._deaf:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_again() + data[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                if not self._deaf:  # else these are bytes after the last request
                    self._refuse(self._refusal or _refusal_of(error))

    def _head_again(self) -> bytes:
        """Read on behind a request whose wish for another protocol is not heeded.

        llhttp takes what follows for bytes of the other protocol. Where that is the request's body,
        another parser has to be shown a head with the same framing first; it is returned.
        """
        self._parser = httptools.HttpRequestParser(self)
        if self._reading is None:
            return b""
        self._repeats_head = True
        framing = self._framing if self._announced_bytes else b"transfer-encoding: chunked\r\n"
        return b"POST / HTTP/1.1\r\n%b\r\n" % framing

    def _head_of(self, parser: httptools.HttpRequestParser) -> RequestHead:
        """Return the head that was read: the last one, where it is the same."""
        method, head = parser.get_method(), self._head
        if (
            head is not None
            and head.headers == self._headers
            and self._line == (method, self._url)
            and head.version == parser.get_http_version()
        ):
            return head
        head = RequestHead(
            method.decode("ascii"),
            self._url.decode("utf-8", "surrogateescape"),
            parser.get_http_version(),
            self._headers,
            self._server.secret_headers,
        )
        self._line = method, self._url
        self._head = head if self._header_bytes <= _KEPT_HEAD_BYTES else None
        return head

    def _pause_or_resume(self) -> None:
        """Let the client wait while there is much that was not parsed or taken.

        A little is read meanwhile, or it would not be noticed that a client leaves.
        """
        transport = self.transport
        pause = len(self._unparsed) > _PIECE_BYTES or self._has_full_body()
        if transport is None or transport.is_closing() or pause == self._reading_paused:
            return
        self._reading_paused = pause
        if pause:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _refuse_head(self) -> None:
        """Raise, and so end the parsing of a head with too many or too large headers."""
        self._refusal = errors.head_too_large(self._max_header_bytes, self._max_headers)
        raise ValueError("refused")

    def _grow_head(self, size_bytes: int) -> None:
        """Note bytes of a head that is not whole, also those that the parser keeps to itself."""
        server, limits = self._server, self._server.limits
        if not self._head_bytes:
            self._since = server.clock() if self._served or self._since is None else self._since
        self._head_bytes += size_bytes
        server.unread_bytes += size_bytes
        # The first piece of it may begin with the end of another request.
        limit_bytes = limits.max_header_bytes + _PIECE_BYTES
        if server.unread_bytes > MAX_UNREAD_BYTES:
            limit_bytes = _PIECE_BYTES
        if self._head_bytes > limit_bytes:
            self._refuse(errors.head_too_large(limits.max_header_bytes, limits.max_headers))

    def _end_head(self) -> None:
        self._server.unread_bytes -= self._head_bytes
        self._head_bytes = 0

    def _refuse(self, refusal: ApiError) -> None:
        """Read no more, and answer with a refusal after the answers that are still due."""
        self._deaf, self._in_head = True, False
        self._unparsed = b""
        self._end_head()
        reading, self._reading = self._reading, None
        if reading is not None:  # a body that will never be whole; its own answer says so
            reading.keep_alive = False
            reading.end(refusal)
            return
        request = HttpRequest(self, _NO_HEAD)
        request.keep_alive = False
        request.refusal = refusal
        self._waiting.append(request)

    def _look_at_silence(self, now: float, timeouts: Timeouts) -> None:
        """End a connection on which nothing is being answered, where that has been so too long."""
        if self._since is None:
            self._since = now
        elif self._head_bytes:
            if now - self._since >= timeouts.head_s:
                self._refuse(errors.slow_head(timeouts.head_s))
                self._go_on()
        elif now - self._since >= (timeouts.client_idle_s if self._served else timeouts.head_s):
            self.close()

    def _is_stuck(self, now: float, limit_s: float) -> bool:
        """Tell whether the client has taken nothing of what waits for it for too long."""
        unsent_bytes = 0 if self.transport is None else self.transport.get_write_buffer_size()
        if not unsent_bytes or unsent_bytes != self._unsent_bytes:
            self._unsent_bytes, self._unsent_since = unsent_bytes, now
            return False
        return now - self._unsent_since >= limit_s

    def _close(self, *, lingers: bool) -> None:
        """End the connection after what was sent.

        A client that still sends would be reset by a plain close, and might never see its answer.
        So its bytes are read and dropped for a while, once it was told that nothing more comes.
        """
        self._deaf = True
        self._reading = None
        self._end_head()
        self._drop_unhandled()
        transport = self.transport
        if transport is None:
            return
        if lingers and transport.can_write_eof() and not transport.is_closing():
            self._linger_until = self._server.clock() + LINGER_S
            transport.write_eof()
            if self._reading_paused:
                self._reading_paused = False
                transport.resume_reading()
        else:
            transport.close()

    def _drop_unhandled(self) -> None:
        self._waiting.clear()
        self._unparsed = b""

    def _notify_drained(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)


class HttpServer:
    """Makes the connections, and keeps what they share.

    Args:
        handle: Begins to answer a request, and ends it by `HttpRequest.answer` or
            `ClientConnection.finished`; it raises nothing.
        refuse_unread: Counts what cannot be read, and returns the answer to it.
        settings: Bounds on heads and on waiting.
        metrics: The instruments.
        clock: Seconds that only move forward.
        secret_headers: Lower-case names of headers that go no further.

    Attributes:
        is_peers: Other sidecars connect here, and no clients.
        beside: Another server of this process; one limit holds for the connections of both.
    """

    def __init__(
        self,
        handle: Callable[[HttpRequest], None],
        refuse_unread: Callable[[ApiError], Answer],
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        secret_headers: Collection[bytes] = (),
    ) -> None:
        self.is_peers = False
        self.beside: HttpServer | None = None
        self.handle = handle
        self.refuse_unread = refuse_unread
        self.limits = settings.limits
        self.timeouts = settings.timeouts
        self.clock = clock
        self.secret_headers = secret_headers
        self.connections: dict[ClientConnection, None] = {}
        self.unread_bytes = 0
        """Heads that are being read."""
        self._looked_s = float("inf")
        self._metrics = metrics
        self._seldom = Seldom(clock)

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of one more connection.

        It does not inherit from asyncio's class: that would keep mypyc from making it fast.
        """
        return cast(asyncio.Protocol, ClientConnection(self))

    def takes(self, connection: ClientConnection) -> bool:
        """Take one more connection; count, log and tell where there is no room for it."""
        limit, count = client_limit(), len(self.connections)
        if self.beside is not None:
            count += len(self.beside.connections)
        if count < limit:
            self.connections[connection] = None
            return True
        self._metrics.connections_refused.inc()
        self._seldom.warn(
            log, "out of file descriptors: connections are refused", {"clients_at_most": limit}
        )
        return False

    def forget(self, connection: ClientConnection) -> None:
        """Hear that a connection is gone."""
        self.connections.pop(connection, None)

    def look(self) -> None:
        """End connections that take too long over a head or an answer; called each second or so.

        A process that was stopped meanwhile holds that against no client: what came in that time
        waits in its sockets, and is read after this.
        """
        now = self.clock()
        late_s = now - self._looked_s
        self._looked_s = now
        for connection in list(self.connections):
            if late_s > _LATE_S:
                connection.excuse(late_s, now)
            connection.look(now, self.timeouts)


_NO_HEAD: Final = RequestHead("", "", "1.0", [])
"""What stands for a head that could not be read."""


def _refusal_of(error: httptools.HttpParserError) -> ApiError:
    """Return what a client is told whose bytes are no request; never the bytes themselves."""
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return errors.unreadable("it does not begin with an HTTP method")
    if isinstance(error, httptools.HttpParserInvalidURLError):
        return errors.unreadable("its path is not a URL")
    return errors.unreadable("it is not valid HTTP/1.1")
