"""HTTP/1.1 towards clients: aiohttp's, with bounds and with Weir's own refusals.

What aiohttp refuses while it parses would be a plain text that no handler sees. Here it is a
refusal like any other: in the API's shape, counted, logged, with a request id. Heads are bounded by
size and time, for one request and for all that are being read, because nothing is known of their
senders yet. Connections are bounded by the file descriptors that there are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import BadHttpMethod, InvalidURLError, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo

from weir_sidecar.descriptors import client_limit
from weir_sidecar.frontend import errors
from weir_sidecar.frontend.errors import ApiError
from weir_sidecar.settings import Limits, Timeouts
from weir_sidecar.telemetry.logs import Seldom
from weir_sidecar.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
RefuseUnread = Callable[[ApiError], web.StreamResponse]

MAX_UNREAD_BYTES: Final = 64 << 20
"""Heads that are being read, of all connections together."""
_TOO_MANY: Final = "Too many headers received"
_UNREAD: Final = ERROR._replace(version=HttpVersion11)
"""What stands for a request that could not be read; it is answered in HTTP/1.1."""


class ClientConnection(RequestHandler):
    """One client's connection.

    Attributes:
        head_since: When the head that is being read began, for a new connection its own begin;
            None between requests and while a body is read.
    """

    __slots__ = (
        "_body",
        "_head_bytes",
        "_line",
        "_server",
        "_unsent_bytes",
        "_unsent_since",
        "head_since",
    )

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        limits = server.limits
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # aiohttp's way to have none
            auto_decompress=False,
            keepalive_timeout=server.timeouts.client_idle_s,
            max_line_size=limits.max_header_bytes,
            max_field_size=limits.max_header_bytes,
            max_headers=limits.max_headers,
        )
        self._server = server
        self._body: StreamReader = EMPTY_PAYLOAD
        """Of the newest request."""
        self._head_bytes = 0
        self.head_since: float | None = None
        # aiohttp lets its transport go while bytes wait in it.
        self._line: asyncio.WriteTransport | None = None
        self._unsent_bytes, self._unsent_since = 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or end it at once where no more fit."""
        if not self._server.has_room():
            transport.abort()  # type: ignore[attr-defined]  # asyncio's types have it too deep
            return
        super().connection_made(transport)
        self._line = self.transport
        self.head_since = self._loop.time()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget what was being read."""
        self._end_head()
        self._line = None
        self._body = EMPTY_PAYLOAD  # break the reference cycle here, so that the GC need not
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and note how long and how large the head is that is being read."""
        body, count = self._body, self._request_count
        in_head = body.is_eof()
        super().data_received(data)
        if self._request_count != count:
            message, self._body = self._messages[-1]
            self._end_head()
            if isinstance(message, _ErrInfo) and not body.is_eof():
                # The parser lets the reader of a body wait that will never be whole.
                body.set_exception(web.RequestPayloadError(message.message))
        elif in_head and data and not self._buffer_paused and not self._upgraded:
            # What follows a request to upgrade is kept aside until that was declined.
            self._grow_head(len(data))

    def is_slow(self, now: float, limit_s: float) -> bool:
        """Tell whether a head takes too long, and nothing else is done here meanwhile."""
        idle = self._waiter is not None and not self._waiter.done()
        return idle and self.head_since is not None and now - self.head_since >= limit_s

    def is_stuck(self, now: float, limit_s: float) -> bool:
        """Tell whether the client has taken nothing of what waits for it for too long."""
        unsent_bytes = 0 if self._line is None else self._line.get_write_buffer_size()
        if not unsent_bytes or unsent_bytes != self._unsent_bytes:
            self._unsent_bytes, self._unsent_since = unsent_bytes, now
            return False
        return now - self._unsent_since >= limit_s

    def cut_off(self) -> None:
        """End the connection, dropping what waits."""
        if self._line is not None:
            self._line.abort()

    def give_up(self) -> None:
        """End the wait for a head: in words where it had begun, else without."""
        if self._head_bytes:
            self._refuse(errors.slow_head(self._server.timeouts.head_s))
        else:
            self.force_close()

    def _process_keepalive(self) -> None:
        """End an idle connection, but none on which a head has begun: that has its own bound."""
        if self._head_bytes:
            self._keepalive_handle = None
        else:
            super()._process_keepalive()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it may hold a client's key
    ) -> web.StreamResponse:
        """Answer what the parser refused."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if status >= 500:
            log.error("request failed", exc_info=exc)
            return self._server.refuse_unread(errors.internal_error())
        return self._server.refuse_unread(self._refusal_of(exc))

    def _refusal_of(self, error: BaseException | None) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, LineTooLong) or _TOO_MANY in getattr(error, "message", ""):
            limits = self._server.limits
            return errors.head_too_large(limits.max_header_bytes, limits.max_headers)
        if isinstance(error, BadHttpMethod):
            return errors.unreadable("it does not begin with an HTTP method")
        if isinstance(error, InvalidURLError):
            return errors.unreadable("its path is not a URL")
        return errors.unreadable("it is not valid HTTP/1.1")

    def _grow_head(self, size_bytes: int) -> None:
        server, limits = self._server, self._server.limits
        if self.head_since is None:
            self.head_since = self._loop.time()
        self._head_bytes += size_bytes
        server.unread_bytes += size_bytes
        if self._head_bytes > limits.max_header_bytes or server.unread_bytes > MAX_UNREAD_BYTES:
            self._refuse(errors.head_too_large(limits.max_header_bytes, limits.max_headers))

    def _end_head(self) -> None:
        self._server.unread_bytes -= self._head_bytes
        self._head_bytes = 0
        self.head_since = None

    def _refuse(self, refusal: ApiError) -> None:
        """Answer without a request, after the answers that are still due, and read no more."""
        self._end_head()
        self._messages.append((_ErrInfo(refusal.status, refusal, ""), EMPTY_PAYLOAD))
        self._request_count += 1
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._pause_reading_for_buffer()


class HttpServer(web.Server):
    """Makes the connections, and keeps what they share.

    Args:
        handle: Answers one request.
        refuse_unread: Counts and answers what cannot be read.
        limits: Bounds on heads.
        timeouts: Bounds on waiting.
        metrics: The instruments.
    """

    def __init__(
        self,
        handle: Handle,
        refuse_unread: RefuseUnread,
        limits: Limits,
        timeouts: Timeouts,
        metrics: Metrics,
    ) -> None:
        super().__init__(handle, request_factory=self._request, handler_cancellation=True)
        self.refuse_unread = refuse_unread
        self.limits = limits
        self.timeouts = timeouts
        self.unread_bytes = 0
        """Heads that are being read."""
        self._metrics = metrics
        self._seldom = Seldom(self._loop.time)

    def __call__(self) -> ClientConnection:
        """Return the protocol of one more connection."""
        return ClientConnection(self, self._loop)

    def has_room(self) -> bool:
        """Tell whether one more client may connect; count and log where not."""
        limit = client_limit()
        if len(self._connections) < limit:
            return True
        self._metrics.connections_refused.inc()
        self._seldom.warn(
            log, "out of file descriptors: connections are refused", {"clients_at_most": limit}
        )
        return False

    def close_slow(self) -> None:
        """End connections that take too long over a head or an answer; called each second or so."""
        now, bounds = self._loop.time(), self.timeouts
        for connection in self.connections:
            assert isinstance(connection, ClientConnection)
            if connection.is_slow(now, bounds.head_s):
                connection.give_up()
            elif connection.is_stuck(now, bounds.slow_client_s):
                connection.cut_off()

    def _request(
        self,
        message: RawRequestMessage,
        body: StreamReader,
        connection: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        head = _UNREAD if message is ERROR else _in_known_version(message)
        return web.BaseRequest(head, body, connection, writer, task, self._loop)


def _in_known_version(message: RawRequestMessage) -> RawRequestMessage:
    """Return a request in HTTP/1.1 or 1.0, whatever version it names: aiohttp's answer names it."""
    if message.version in (HttpVersion11, HttpVersion10):
        return message
    known = HttpVersion11 if message.version > HttpVersion11 else HttpVersion10
    return message._replace(version=known, should_close=True)
