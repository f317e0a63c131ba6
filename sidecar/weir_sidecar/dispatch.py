"""Getting a request answered: who, on which connection, and again where that is invisible.

Until the first byte went to the client an attempt may fail without anybody noticing: a kept
connection that had died is replaced by a fresh one, a replica that refused by another one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from aiohttp import web

from weir_core.errors import EngineUnavailable
from weir_core.sched.types import Reason
from weir_core.wire.openai import with_priority
from weir_sidecar import outcomes
from weir_sidecar.descriptors import is_own_shortage
from weir_sidecar.frontend.client import Client
from weir_sidecar.intake import Intake
from weir_sidecar.ledger import Entry
from weir_sidecar.settings import Timeouts
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.connections import Pool
from weir_sidecar.upstreams.splice import Ending, Exchange

log = logging.getLogger(__name__)


class Upstream(Protocol):
    """Who may answer: the one engine of a sidecar, or the replicas behind a front."""

    def target(self, request: web.BaseRequest) -> str:
        """Return the path to ask for; raise a `Refusal` where it is closed."""

    def pick(self, tried: Collection[Pool]) -> Pool:
        """Choose who gets the request; raise a `Refusal` where nobody is left."""

    def done(self, pool: Pool) -> None:
        """Hear that a request given to `pool` has ended there."""

    def lost(self, pool: Pool) -> None:
        """Hear that `pool` could not be reached, or broke off."""

    def suspects(self, answer: Exchange, piece: bytes) -> bool:
        """Tell whether an answer should be held back until `accepts` has judged it."""

    async def accepts(self, tried: Collection[Pool], answer: Exchange) -> bool:
        """Tell whether a held answer may go to the client; if not, it counts as lost.

        The last of `tried` is who gave it.
        """


class Call(NamedTuple):
    """A request as it is sent to an engine; only the trace headers differ between attempts."""

    head: bytes
    tracing: bytes
    """The client's trace headers, for when the sidecar itself does not trace."""
    body: tuple[bytes | memoryview, ...]
    """In pieces, none of them empty."""
    has_body_answer: bool

    def wire(self, tracing: bytes | None) -> list[bytes | memoryview]:
        """Return the bytes to send."""
        head = b"%b%b\r\n" % (self.head, self.tracing if tracing is None else tracing)
        return [head, *self.body]


class Dispatcher:
    """Makes the attempts.

    Args:
        upstream: Who may answer.
        metrics: The instruments.
        timeouts: Bounds on waiting.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        upstream: Upstream,
        metrics: Metrics,
        timeouts: Timeouts,
        clock: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._metrics = metrics
        self._timeouts = timeouts
        self._clock = clock

    async def run(self, call: Call, entry: Entry, client: Client) -> Exchange:
        """Return an exchange that was begun; raise a `Refusal` where none can be."""
        tried: list[Pool] = []
        while True:
            asked = self._clock()
            pool = self._upstream.pick(tried)
            if entry.trace is not None:
                entry.trace.routed(asked, self._clock())
            tried.append(pool)
            exchange = None
            try:
                exchange = await self._attempts(tried, call, entry, client)
            except EngineUnavailable as error:
                log.warning("engine unreachable", extra={"error": str(error)})
                if is_own_shortage(error.__cause__):
                    raise outcomes.rejected(Reason.QUEUE_FULL, 1) from error
            finally:
                self._upstream.done(pool)
            if exchange is not None and (exchange.begun or exchange.ending is not Ending.LOST):
                return exchange
            if exchange is None or not exchange.held:  # one that refused is there
                self._upstream.lost(pool)

    async def _attempts(
        self, tried: Sequence[Pool], call: Call, entry: Entry, client: Client
    ) -> Exchange:
        """Try one address; twice when the first connection was a kept one that had died."""
        exchange, used = await self._attempt(tried, call, entry, client, fresh=False)
        if used and exchange.ending is Ending.LOST and exchange.status == 0:
            self._metrics.engine_retries.inc()
            exchange, _ = await self._attempt(tried, call, entry, client, fresh=True)
        return exchange

    async def _attempt(
        self, tried: Sequence[Pool], call: Call, entry: Entry, client: Client, *, fresh: bool
    ) -> tuple[Exchange, bool]:
        connection = await tried[-1].acquire(fresh=fresh)
        used = connection.used
        exchange = entry.exchange = client.exchange(
            self._clock, screen=self._upstream.suspects, bodiless=not call.has_body_answer
        )
        tracing = None
        if entry.trace is not None:
            tracing = entry.trace.dispatched(entry.arrival, self._clock(), tried[-1].name)
        if entry.recalled:  # while the connection was being opened
            exchange.end(Ending.RECALLED)
        else:
            connection.send(exchange, call.wire(tracing))
        try:
            while exchange.ending is None:
                await exchange.interruption()
                if exchange.held:
                    await self._judge(tried, exchange)
                elif exchange.paused:
                    await self._wait_for(client, exchange)
        finally:
            connection.finish()
        return exchange, used

    async def _judge(self, tried: Sequence[Pool], exchange: Exchange) -> None:
        if await self._upstream.accepts(tried, exchange):
            exchange.release()
        else:
            exchange.end(Ending.LOST)

    async def _wait_for(self, client: Client, exchange: Exchange) -> None:
        """Let the engine wait until the client has caught up."""
        self._metrics.client_stalls.inc()
        try:
            await client.drain(self._timeouts.slow_client_s)
        except TimeoutError:
            exchange.end(Ending.CLIENT_SLOW)
        except ConnectionError:
            exchange.end(Ending.CLIENT_GONE)
        else:
            exchange.resume()


def call_of(
    request: web.BaseRequest, target: str, intake: Intake, body: bytes, priority: int | None = None
) -> Call:
    """Return a client's request as it goes to an engine, with its `priority` there."""
    pieces = () if not body else (body,) if priority is None else with_priority(body, priority)
    start = f"{request.method} {target} HTTP/1.1\r\n".encode("utf-8", "surrogateescape")
    tracing = [f"{name}: {value}\r\n".encode("latin-1") for name, value in intake.tracing.items()]
    identity = b"x-request-id: %b\r\n" % intake.request_id.encode()
    needs_length = body or request.method in ("POST", "PUT", "PATCH")
    size = sum(map(len, pieces))
    length = b"content-length: %d\r\n" % size if needs_length else b""
    head = b"".join([start, *intake.lines, identity, length])
    return Call(head, b"".join(tracing), pieces, has_body_answer=request.method != "HEAD")
