"""How many connections the console's server has, and how long one of them may rest.

A client that sends its head a byte at a time, leaves an answer unread, or asks for nothing more has
one of a bounded number, for a bounded time. While a handler works it is the handler that bounds its
client: the stream by how long a frame stays unread, the login by how long its form takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from aiohttp import web
from aiohttp.typedefs import Handler

MOST: Final = 128
"""Connections at once: a browser opens six."""
HEAD_S: Final = 20.0
"""How long the head of a request may take to come; the first one's from the connection on."""
REST_S: Final = 120.0
"""How long a connection may rest after an answer; proxies keep one for a minute and more."""


class Connections:
    """The connections of one server.

    Args:
        most: How many there may be at once.
        head_s: How long the head of a request may take to come.
        rest_s: How long one may rest after an answer.
    """

    def __init__(self, most: int = MOST, head_s: float = HEAD_S, rest_s: float = REST_S) -> None:
        self._most = most
        self._head_s = head_s
        self._rest_s = rest_s
        self._open: dict[asyncio.BaseTransport, _Connection] = {}
        self._resting: dict[_Connection, None] = {}
        """The one that rests longest is the first."""

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self._open)

    def of(self, make: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """Return what makes the protocol of a connection that is counted here.

        Args:
            make: Makes the protocol that answers.
        """
        return lambda: _Connection(self, make)

    @web.middleware
    async def noted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note that a connection does not rest while its request is handled.

        One that owes a body goes on resting: before a login, all can be made to wait for one.
        """
        transport = request.transport
        connection = None if transport is None else self._open.get(transport)
        if connection is None:  # it is lost already
            return await handler(request)
        if not request.can_read_body:
            connection.end_after(None)
            self._resting.pop(connection, None)
        try:
            return await handler(request)
        finally:
            if transport in self._open:
                self._resting.pop(connection, None)
                self._resting[connection] = None
                connection.end_after(self._rest_s)

    def admit(self, connection: _Connection) -> bool:
        """Count a connection; where there are too many, end the one that rests longest."""
        if self.number >= self._most:
            oldest = next(iter(self._resting), None)
            if oldest is None:
                return False
            self.forget(oldest)
            oldest.transport.abort()
        self._open[connection.transport] = connection
        self._resting[connection] = None
        connection.end_after(self._head_s)
        return True

    def hear(self, connection: _Connection) -> None:
        """Note that something came; where that is the next request, its head may not take long."""
        if connection in self._resting and connection.time_left_s() > self._head_s:
            connection.end_after(self._head_s)

    def forget(self, connection: _Connection) -> None:
        """Count a connection no more."""
        self._open.pop(connection.transport, None)
        self._resting.pop(connection, None)
        connection.end_after(None)


class _Connection(asyncio.Protocol):
    """One connection; another protocol answers."""

    transport: asyncio.Transport

    def __init__(self, every: Connections, make: Callable[[], asyncio.Protocol]) -> None:
        self._every = every
        self._make = make
        self._inner: asyncio.Protocol | None = None
        self._timer: asyncio.TimerHandle | None = None

    def end_after(self, seconds: float | None) -> None:
        """End the connection after so long; None lets it be."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if seconds is None else loop.call_later(seconds, self.transport.abort)

    def time_left_s(self) -> float:
        """Return after how long the connection ends, where it does."""
        assert self._timer is not None
        return self._timer.when() - asyncio.get_running_loop().time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or end at once where there is no room."""
        self.transport = cast(asyncio.Transport, transport)
        if not self._every.admit(self):
            self.transport.abort()
            return
        self._inner = self._make()
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._every.forget(self)
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what came."""
        self._every.hear(self)
        if self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on that no more comes."""
        return None if self._inner is None else self._inner.eof_received()

    def pause_writing(self) -> None:
        """Pass on that the client does not read."""
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client reads again."""
        if self._inner is not None:
            self._inner.resume_writing()
