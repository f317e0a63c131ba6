"""Connections to an engine, or to another sidecar: opened on demand, kept for a while, reused.

uvicorn closes a connection that was idle for 5 s without a word, so a kept connection may die in
the very moment it is chosen. Connections are kept for less than that, and each says whether it was
used before: the caller tries once more on a fresh one when a used one died before it answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from weir_core.errors import EngineUnavailable
from weir_sidecar.upstreams.splice import (
    AnswerParser,
    Ending,
    Exchange,
    ExchangeOwner,
    Unframed,
)

_JOINED_BYTES: Final = 16 << 10
"""Up to here one buffer costs the loop less than several; longer requests are not copied."""

Opener = Callable[[Callable[[], asyncio.Protocol]], Awaitable[object]]


class Connection:
    """One connection, as the event loop's protocol; carries one exchange at a time.

    It does not inherit from asyncio's class: that would keep mypyc from making it fast.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser = AnswerParser()
        self.idle_since = 0.0
        self.used = False

    @property
    def open(self) -> bool:
        """Whether a request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange, request: Sequence[bytes | memoryview]) -> None:
        """Send a request; its answer goes to `exchange`."""
        if self._transport is None or self._transport.is_closing():
            exchange.end(Ending.LOST)
            return
        self._exchange = exchange
        exchange.attach(self, self._parser)
        size_bytes = 0
        for piece in request:
            size_bytes += len(piece)
        if size_bytes <= _JOINED_BYTES:
            self._transport.write(b"".join(request))
        else:
            self._transport.writelines(request)

    def put(
        self,
        request: Sequence[bytes | memoryview],
        limit_bytes: int,
        owner: ExchangeOwner | None = None,
    ) -> Question:
        """Send a small question of our own; the body of its answer is bounded."""
        page = _Page(limit_bytes)
        exchange = Unframed(page, self._connections.clock, owner=owner)
        self.send(exchange, request)
        return Question(exchange, page)

    async def ask(
        self,
        what: str,
        request: Sequence[bytes | memoryview],
        *,
        timeout_s: float,
        limit_bytes: int,
    ) -> Reply:
        """Send a small question of our own and return the whole answer.

        Args:
            what: The question, for messages.
            request: As it is sent.
            timeout_s: Bound on waiting for the answer.
            limit_bytes: Bound on its body.

        Raises:
            EngineUnavailable: No whole answer came.
        """
        question, name = self.put(request, limit_bytes), self._connections.name
        try:
            async with asyncio.timeout(timeout_s):
                await question.exchange.interruption()
        except TimeoutError as error:
            raise EngineUnavailable(f"{name} did not answer {what} in time") from error
        reply = question.reply
        if reply is None:
            raise EngineUnavailable(f"{name} broke off its answer to {what}")
        return reply

    def finish(self) -> None:
        """Give the connection back, or close it when its answer did not end well.

        Closing is how the engine learns that nobody waits for its tokens any more.
        """
        exchange, self._exchange = self._exchange, None
        well = exchange is not None and exchange.ending is Ending.COMPLETE and exchange.reusable
        if well and self.open:
            self.used = True
            self._connections.keep(self)
        else:
            self.close()

    def close(self) -> None:
        """Close at once; unread bytes are dropped."""
        if self._transport is not None:
            self._transport.abort()

    def drop(self) -> None:
        """Close a connection that is given up while it is opened.

        uvloop does not tell its protocol of the end then, so the reference cycle is broken here.
        """
        self.close()
        self._transport = None
        self._parser.close()

    def pause_reading(self) -> None:
        """Let the engine's bytes wait in the socket."""
        if self._transport is not None and self.open:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take them again."""
        if self._transport is not None and self.open:
            self._transport.resume_reading()

    # Called by the event loop.

    def eof_received(self) -> bool:
        """Let the connection close: the engine says nothing more."""
        return False

    def pause_writing(self) -> None:
        """Go on: a request is written at once, and its size is bounded."""

    def resume_writing(self) -> None:
        """Nothing waits for this."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand bytes to the exchange; an engine that speaks unasked is hung up on."""
        if self._exchange is not None:
            self._exchange.feed(data)
        else:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the exchange, and the connections that this one is kept among."""
        self._transport = None
        self._connections.forget(self)
        if self._exchange is not None:
            self._exchange.connection_lost(broken=exc is not None)
        self._parser.close()


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, for the sidecar's own questions."""

    status: int
    body: bytes


class Question:
    """A small question of our own that was sent on a connection."""

    def __init__(self, exchange: Exchange, page: _Page) -> None:
        self.exchange = exchange
        self._page = page

    @property
    def reply(self) -> Reply | None:
        """The whole answer; None where it has not come, or broke off."""
        if self.exchange.ending is not Ending.COMPLETE:
            return None
        return Reply(self.exchange.status, bytes(self._page.body))


class Connections:
    """The connections to one address.

    Args:
        name: The address in words, for messages.
        opener: Opens a connection for a protocol factory.
        clock: Seconds that only move forward.
        idle_limit: Connections kept while unused.
        idle_s: An unused connection older than this is closed, not used.
        connect_s: Bound on opening one.
    """

    def __init__(
        self,
        name: str,
        opener: Opener,
        clock: Callable[[], float],
        *,
        idle_limit: int = 64,
        idle_s: float = 4.0,
        connect_s: float = 5.0,
    ) -> None:
        self.name = name
        self._opener = opener
        self.clock = clock
        self.on_closed: Callable[[], None] | None = None
        """Called when an idle connection was closed from the other side."""
        self._idle_limit = idle_limit
        self._idle_s = idle_s
        self._connect_s = connect_s
        self._idle: list[Connection] = []
        self._closed = False

    @property
    def idle_count(self) -> int:
        """Connections waiting for a request."""
        return len(self._idle)

    def take_idle(self) -> Connection | None:
        """Return an idle connection, the most recently used first, or None."""
        while self._idle:
            connection = self._idle.pop()
            if connection.open and self.clock() - connection.idle_since < self._idle_s:
                return connection
            connection.close()
        return None

    async def open(self) -> Connection:
        """Return a fresh connection; raise `EngineUnavailable`."""
        connection = Connection(self)
        try:
            async with asyncio.timeout(self._connect_s):
                await self._opener(lambda: cast(asyncio.Protocol, connection))
        except (OSError, TimeoutError) as error:
            raise EngineUnavailable(f"cannot connect to {self.name}: {error}") from error
        except asyncio.CancelledError:
            connection.drop()
            raise
        return connection

    def keep(self, connection: Connection) -> None:
        """Keep an idle connection for the next request."""
        if self._closed or len(self._idle) >= self._idle_limit:
            connection.close()
        else:
            connection.idle_since = self.clock()
            self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that was closed from the other side."""
        if connection in self._idle:
            self._idle.remove(connection)
            if self.on_closed is not None:
                self.on_closed()

    def drop_idle(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    async def get(self, path: str, *, timeout_s: float, limit_bytes: int = 8 << 20) -> Reply:
        """Ask for a whole small page on a fresh connection; raise `EngineUnavailable`."""
        return await self.ask("GET", path, timeout_s=timeout_s, limit_bytes=limit_bytes)

    async def ask(
        self, method: str, path: str, *, body: bytes = b"", timeout_s: float, limit_bytes: int
    ) -> Reply:
        """Send a small question, in JSON, and return the whole answer; raise as `get` does."""
        length = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n"
            f"{length if body else ''}\r\n"
        )
        connection = await self.open()
        request = [head.encode(), body] if body else [head.encode()]
        try:
            return await connection.ask(path, request, timeout_s=timeout_s, limit_bytes=limit_bytes)
        finally:
            connection.close()

    def close(self) -> None:
        """Close what is idle, and keep nothing from now on."""
        self._closed = True
        self.drop_idle()


class _Page:
    """A sink that gathers a bounded body."""

    def __init__(self, limit_bytes: int) -> None:
        self.body = bytearray()
        self._limit_bytes = limit_bytes

    def open(self, answer: Exchange) -> bytes:  # noqa: ARG002
        """Send no head: only the body is of interest."""
        return b""

    def write(self, piece: bytes) -> None:
        """Gather one piece."""
        self.body += piece

    def is_closing(self) -> bool:
        """Refuse what is too long to be true."""
        return len(self.body) > self._limit_bytes

    @property
    def writing_paused(self) -> bool:
        """Take whatever comes."""
        return False


def unix_connections(
    path: Path, clock: Callable[[], float], *, idle_limit: int, idle_s: float
) -> Connections:
    """Return the connections to a Unix socket."""

    async def opener(factory: Callable[[], asyncio.Protocol]) -> object:
        return await asyncio.get_running_loop().create_unix_connection(factory, str(path))

    return Connections(f"unix:{path.name}", opener, clock, idle_limit=idle_limit, idle_s=idle_s)
