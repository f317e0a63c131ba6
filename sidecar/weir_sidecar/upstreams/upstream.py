"""What answers a request: one place, asked for one attempt at a time.

An upstream chooses nothing. It opens or reuses a connection, sends the request, and returns how
that attempt ended. The one thing that it repeats is a send on a kept connection that had died
meanwhile: the request had not reached the other side. Whether another attempt follows, and where,
is decided elsewhere: by the scheduler for the engine beside this sidecar, by the router otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from weir_core.errors import EngineUnavailable
from weir_core.sched.types import Dispatch, Reason
from weir_sidecar.descriptors import is_own_shortage
from weir_sidecar.frontend import errors
from weir_sidecar.frontend.client import Client
from weir_sidecar.settings import Timeouts
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.connections import Connection, Connections
from weir_sidecar.upstreams.splice import Ending, Exchange

if TYPE_CHECKING:
    from weir_sidecar.inflight import InFlightRequest

log = logging.getLogger(__name__)


class Call:
    """A request as it is sent to an upstream.

    Attributes:
        head: Request line and headers, without the trace headers and the empty line.
        tracing: The client's trace headers, for when the sidecar itself does not trace.
        body: In pieces, none of them empty.
        has_body_answer: The answer has a body (every method but HEAD).
    """

    __slots__ = ("body", "has_body_answer", "head", "tracing")

    def __init__(
        self, head: bytes, tracing: bytes, body: tuple[bytes | memoryview, ...], *, bodiless: bool
    ) -> None:
        self.head = head
        self.tracing = tracing
        self.body = body
        self.has_body_answer = not bodiless

    def wire(self, tracing: bytes | None) -> list[bytes | memoryview]:
        """Return the bytes to send."""
        head = b"%b%b\r\n" % (self.head, self.tracing if tracing is None else tracing)
        return [head, *self.body]


class Attempt:
    """A request that was sent on a connection.

    Attributes:
        dispatch: The place at the engine that it is for; None where there are no such places.
        was_used: The connection had carried another request before.
    """

    def __init__(
        self, connection: Connection, exchange: Exchange, dispatch: Dispatch | None
    ) -> None:
        self.connection = connection
        self.exchange = exchange
        self.dispatch = dispatch
        self.was_used = connection.used


class Upstream:
    """One place that answers requests.

    Args:
        connections: Connections to it.
        metrics: The instruments.
        timeouts: Bounds on waiting.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        connections: Connections,
        metrics: Metrics,
        timeouts: Timeouts,
        clock: Callable[[], float],
    ) -> None:
        self.name = connections.name
        self._connections = connections
        self._metrics = metrics
        self._timeouts = timeouts
        self._clock = clock

    def suspects(self, request: InFlightRequest, answer: Exchange, piece: bytes) -> bool:  # noqa: ARG002
        """Tell whether an answer should be held back until `accepts` has judged it."""
        return False

    async def accepts(self, request: InFlightRequest, answer: Exchange) -> bool:  # noqa: ARG002
        """Tell whether a held answer may go to the client; if not, it counts as lost."""
        return True

    def send_at_once(self, request: InFlightRequest, call: Call) -> Attempt | None:
        """Begin an attempt, if a connection is at hand; None where one has to be opened."""
        connection = self._connections.take_idle()
        return None if connection is None else self._send(request, call, connection)

    async def attempt(
        self, request: InFlightRequest, call: Call, begun: Attempt | None = None
    ) -> Exchange | None:
        """Send a request and relay its answer; None where no connection could be opened.

        Args:
            request: The request.
            call: As it is sent.
            begun: The attempt that `send_at_once` began, to go on with.

        Raises:
            ApiError: The sidecar has no file descriptor left for one.
        """
        try:
            attempt = begun or self.send_at_once(request, call)
            if attempt is None:
                attempt = self._send(request, call, await self._connections.open())
            exchange = await self._relay(request, attempt)
            if attempt.was_used and exchange.ending is Ending.LOST and exchange.status == 0:
                self._metrics.engine_retries.inc()
                attempt = self._send(request, call, await self._connections.open())
                exchange = await self._relay(request, attempt)
        except EngineUnavailable as error:
            log.warning("upstream unreachable", extra={"error": str(error)})
            if is_own_shortage(error):
                raise errors.rejected(Reason.QUEUE_FULL, 1) from error
            return None
        return exchange

    def _send(self, request: InFlightRequest, call: Call, connection: Connection) -> Attempt:
        """Send a request on one connection."""
        request.upstream = self
        exchange = request.exchange = request.client.exchange(
            self._clock,
            request,
            bodiless=not call.has_body_answer,
            counts_tokens=request.streams,
        )
        attempt = Attempt(connection, exchange, request.dispatch)
        tracing = None
        if request.trace is not None:
            tracing = request.trace.dispatched(
                request.arrival, self._clock(), self.name, to_peer=request.away is not None
            )
        if request.is_placed:
            connection.send(exchange, call.wire(tracing))
        else:  # it lost its place while the connection was being opened
            exchange.end(Ending.REQUEUED)
        return attempt

    async def _relay(self, request: InFlightRequest, attempt: Attempt) -> Exchange:
        """Wait for the end of an attempt, and for what its answer has to wait for."""
        exchange = attempt.exchange
        try:
            while exchange.ending is None:
                await exchange.interruption()
                if exchange.held:
                    await self._judge(request, exchange)
                elif exchange.paused:
                    await self._wait_for_client(request.client, exchange)
        finally:
            attempt.connection.finish()
        return exchange

    async def _judge(self, request: InFlightRequest, exchange: Exchange) -> None:
        told_too_late = request.client.head_sent and exchange.status >= 400
        if await self.accepts(request, exchange) and not told_too_late:
            exchange.release()
        else:
            exchange.end(Ending.LOST)

    async def _wait_for_client(self, client: Client, exchange: Exchange) -> None:
        """Let the upstream wait until the client has caught up."""
        self._metrics.client_stalls.inc()
        try:
            await client.drain(self._timeouts.slow_client_s)
        except TimeoutError:
            exchange.end(Ending.CLIENT_SLOW)
        except ConnectionError:
            exchange.end(Ending.CLIENT_GONE)
        else:
            exchange.resume()
