"""The client's side of an exchange: its head, its bytes, its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from weir_core.wire.peers import RETURNED_HEADER
from weir_sidecar.frontend.protocol import HttpRequest
from weir_sidecar.upstreams.splice import EVENT_STREAM, Exchange, ExchangeOwner, Unframed

_NOT_RETURNED: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"upgrade",
        b"x-request-id",
        RETURNED_HEADER,  # only a sidecar's own answers say it
    }
)


class Client:
    """The sink of a relayed answer: one client's connection, for one request.

    Args:
        request: The request as it was read.
        leaving: Tells whether answers should end their connection, because of a drain.
    """

    def __init__(self, request: HttpRequest, leaving: Callable[[], bool]) -> None:
        self._request = request
        self._connection = request.connection
        self.transport = request.connection.transport
        self._leaving = leaving
        self._is_old = request.head.is_old
        """The client speaks HTTP/1.0, which knows no chunks."""
        self.keep_alive = False
        """Another request may follow the answer on this connection."""
        self._head_sent = False
        self.request_id = ""
        self.on_begin: Callable[[Exchange], bytes] | None = None
        """Told of an answer that begins, before the client is; returns further header lines."""

    @property
    def head_sent(self) -> bool:
        """Whether a waiting stream's head went out, so that no status can follow any more."""
        return self._head_sent

    def show_life(self) -> None:
        """Send a comment of an event stream, before the first one the stream's head."""
        if self._is_old or self.is_closing():
            return
        if not self._head_sent:
            self._head_sent = True
            self.write(_STREAM_HEAD % self.request_id.encode())
        self.write(_WAITING_CHUNK)

    # What the exchange calls.

    def open(self, answer: Exchange) -> bytes:
        """Return the engine's head as the client should see it."""
        lines = [b"HTTP/1.1 %d %b\r\n" % (answer.status, answer.reason)]
        framed = False
        for name, value in answer.headers:
            if name == b"transfer-encoding":
                framed = True
                if self._is_old:
                    continue
            framed = framed or name == b"content-length"
            if name not in _NOT_RETURNED:
                lines.append(b"%b: %b\r\n" % (name, value))
        ends_itself = framed or answer.status in (204, 304)
        self.keep_alive = (
            ends_itself and not self._is_old and not self._leaving() and self._request.keep_alive
        )
        if self.on_begin is not None:
            lines.append(self.on_begin(answer))
        if self._head_sent:
            self.keep_alive = False
            return b""
        lines.append(b"x-request-id: %b\r\n" % self.request_id.encode())
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        return b"".join(lines)

    def write(self, piece: bytes) -> None:
        """Hand bytes to the client's transport."""
        if self.transport is None:
            return
        try:
            self.transport.write(piece)
        except RuntimeError:
            # uvloop takes nothing between the end of a connection and the call of connection_lost,
            # which ends the request.
            if not self.transport.is_closing():
                raise

    def is_closing(self) -> bool:
        """Tell whether the client has left."""
        return self.transport is None or self.transport.is_closing()

    @property
    def writing_paused(self) -> bool:
        """Tell whether more waits for the client than its transport wants to hold."""
        return self._connection.writing_paused

    # What the handler calls.

    def exchange(
        self,
        clock: Callable[[], float],
        owner: ExchangeOwner,
        *,
        bodiless: bool,
        counts_tokens: bool,
    ) -> Exchange:
        """Return an exchange of the kind this client can read, with the client as its sink."""
        if self._is_old:
            return Unframed(
                self, clock, bodiless=bodiless, owner=owner, counts_tokens=counts_tokens
            )
        return Exchange(self, clock, bodiless=bodiless, owner=owner, counts_tokens=counts_tokens)

    async def drain(self, timeout_s: float) -> None:
        """Wait until the client has taken most of what waits for it."""
        async with asyncio.timeout(timeout_s):
            await self._connection.drain()

    def break_off(self, answer: Exchange | None, event: bytes) -> bool:
        """End an answer that cannot go on: by `event` where the format allows, and by a cut.

        Without an `answer` it is a waiting stream's head that went out, and comments. The last
        chunk is left out, so that no client takes the answer for whole: some look at nothing else.
        Tell whether the event was sent; the connection is then to be closed after a pause.
        """
        self.keep_alive = False
        if self.is_closing():
            return False
        if answer is not None:
            is_stream = (answer.header(b"content-type") or b"").startswith(EVENT_STREAM)
            if not is_stream or not (self._is_old or answer.at_chunk_boundary):
                self.abort()
                return False
        if self._is_old:
            self.write(b"\n\n" + event)
        else:
            self.write(b"%x\r\n\n\n%b\r\n" % (len(event) + 2, event))
        return True

    def abort(self) -> None:
        """Cut the connection, dropping what waits."""
        self.keep_alive = False
        if self.transport is not None:
            self.transport.abort()


_WAITING: Final = b": waiting\n\n"
_WAITING_CHUNK: Final = b"%x\r\n%b\r\n" % (len(_WAITING), _WAITING)
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\nx-request-id: %b\r\nconnection: close\r\n\r\n"
)
