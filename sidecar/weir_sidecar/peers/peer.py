"""Another sidecar of the service, as an upstream: kept connections, each authenticated once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from weir_core.errors import EngineUnavailable
from weir_core.wire.peers import RETURNED_HEADER
from weir_sidecar.peers.handshake import (
    MAX_HELLO_BYTES,
    ClientHandshake,
    Itself,
    OtherName,
    UnknownKey,
)
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.connections import Connection, Connections, Question, Reply
from weir_sidecar.upstreams.splice import Ending, Exchange
from weir_sidecar.upstreams.upstream import Attempt, Call, Upstream

if TYPE_CHECKING:
    from weir_sidecar.inflight import InFlightRequest

_REQUEST: Final = b"POST %b HTTP/1.1\r\nhost: weir\r\ncontent-length: %d\r\n\r\n"


class Unreachable(EngineUnavailable):
    """No connection could be opened."""


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; raise `ValueError` where it is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("not HOST:PORT")
    return host.strip("[]"), int(port)


class Peer(Upstream):
    """One sidecar's peer port.

    Args:
        own: This sidecar, for handshakes.
        name: The other one.
        address: Where its peer port is, HOST:PORT.
        settings: Bounds on connections and waiting.
        metrics: The instruments.
        clock: Seconds that only move forward.

    Attributes:
        on_unreachable: Called where no connection to it could be opened.
        on_doubt: Called where a connection to it broke, or an idle one was closed from there.
        on_reply: Called with the answer to what was asked at once; where there is none, with
            whether the connection had died.
    """

    def __init__(
        self,
        own: Itself,
        name: str,
        address: str,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._own = own
        self.address = address
        self._host, self._port = split_address(address)
        peering = settings.peering
        self._peering = peering
        connections = Connections(
            name,
            self._open,
            clock,
            idle_limit=peering.idle_connections,
            idle_s=peering.idle_s,
            connect_s=peering.connect_s,
        )
        super().__init__(connections, metrics, settings.timeouts, clock)
        connections.on_closed = self._closed
        self.on_unreachable: Callable[[Peer], None] | None = None
        self.on_doubt: Callable[[Peer], None] | None = None
        self.on_reply: Callable[[Peer, Reply | None, bool], None] | None = None
        self._question: Question | None = None
        self._asked_on: Connection | None = None

    # What the request path asks.

    async def attempt(
        self, request: InFlightRequest, call: Call, begun: Attempt | None = None
    ) -> Exchange | None:
        """Make the attempt; one that failed tells of the other sidecar, too."""
        exchange = await super().attempt(request, call, begun)
        if exchange is None:
            if self.on_unreachable is not None:
                self.on_unreachable(self)
        elif exchange.ending is Ending.LOST and not exchange.held and self.on_doubt is not None:
            self.on_doubt(self)
        return exchange

    def suspects(self, request: InFlightRequest, answer: Exchange, piece: bytes) -> bool:  # noqa: ARG002
        """Hold back what was not begun there: another replica may take the request."""
        return answer.header(RETURNED_HEADER) is not None

    async def accepts(self, request: InFlightRequest, answer: Exchange) -> bool:
        """Pass a refusal on where the request takes it for its last word."""
        return request.takes_refusal(answer)

    # What heartbeats ask.

    def ask_at_once(self, path: str, body: bytes, limit_bytes: int) -> bool:
        """Post a message, if a connection is at hand; `on_reply` hears the answer."""
        connection = self._connections.take_idle()
        if connection is None:
            return False
        self._asked_on = connection
        request = (_REQUEST % (path.encode(), len(body)), body)
        self._question = question = connection.put(request, limit_bytes, self)
        if question.exchange.needs_attention:
            self.on_exchange(question.exchange)
        return True

    def give_up(self) -> None:
        """Wait no longer for the answer to what was asked at once."""
        if self._question is not None:
            self._question.exchange.end(Ending.TIMED_OUT)

    def on_exchange(self, exchange: Exchange) -> None:
        """Hear that the answer is there, or will not come."""
        question, connection = self._question, self._asked_on
        if question is None or connection is None or question.exchange is not exchange:
            return
        self._question = self._asked_on = None
        connection.finish()
        exchange.owner = None
        if self.on_reply is not None:
            self.on_reply(self, question.reply, exchange.ending is Ending.LOST)

    def holds_back(self, exchange: Exchange, piece: bytes) -> bool:  # noqa: ARG002
        """Hold back no answer to a question of our own."""
        return False

    def tokens_in(self, piece: bytes) -> int:  # noqa: ARG002
        """Look for no tokens in it."""
        return 0

    async def ask(self, path: str, body: bytes, *, timeout_s: float, limit_bytes: int) -> Reply:
        """Post a message on a new connection, which is kept.

        Raises:
            Unreachable: No connection could be opened.
            EngineUnavailable: No answer came.
        """
        try:
            connection = await self._connections.open()
        except (UnknownKey, OtherName):
            raise
        except EngineUnavailable as error:
            raise Unreachable(str(error)) from error.__cause__
        request = (_REQUEST % (path.encode(), len(body)), body)
        try:
            return await connection.ask(path, request, timeout_s=timeout_s, limit_bytes=limit_bytes)
        finally:
            connection.finish()

    def drop_idle(self) -> None:
        """Close the idle connections; the next ones show the present key."""
        self._connections.drop_idle()

    def close(self) -> None:
        """Close the idle connections, and keep none from now on."""
        self.on_unreachable = self.on_doubt = self.on_reply = None
        self.give_up()
        self._connections.close()

    def _closed(self) -> None:
        if self.on_doubt is not None:
            self.on_doubt(self)

    async def _open(self, factory: Callable[[], asyncio.Protocol]) -> object:
        """Connect, and authenticate the connection before anything else is sent on it."""
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(factory, self._host, self._port)
        connection = cast(Connection, protocol)

        async def ask(path: str, body: bytes) -> Reply:
            request = _REQUEST % (path.encode(), len(body))
            return await connection.ask(
                path,
                [request, body],
                timeout_s=self._peering.connect_s,
                limit_bytes=MAX_HELLO_BYTES,
            )

        is_authenticated = False
        try:
            await ClientHandshake(self._own, self.name).run(ask)
            is_authenticated = True
        finally:
            if not is_authenticated:
                transport.abort()
        return connection
