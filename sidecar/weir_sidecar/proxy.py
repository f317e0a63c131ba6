"""One request's way through the sidecar: taken in, dispatched, relayed, counted.

`handle` enters the request in the ledger and leaves it with one outcome, whatever happens in
between. Until the first byte went to the client a request may be tried again: on a fresh
connection when a kept one had died, on another replica when there is one. After it, an answer that
cannot go on ends with an error event, or with a cut where the client could not read one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from weir_core.errors import EngineUnavailable
from weir_core.wire.openai import has_stream_error, usage_in
from weir_sidecar import outcomes
from weir_sidecar.client import Client
from weir_sidecar.engine_client import Pool
from weir_sidecar.intake import Intake, read_body, read_headers
from weir_sidecar.ledger import Entry, Ledger
from weir_sidecar.metrics import Metrics
from weir_sidecar.outcomes import DROPPED_REASON, Outcome, Refusal
from weir_sidecar.relay import Ending, Exchange
from weir_sidecar.settings import Limits, Timeouts

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


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it is sent to an engine; the same bytes on every attempt."""

    lines: list[bytes]
    has_body_answer: bool


class Proxy:
    """The handler of the API port.

    Args:
        upstream: Who may answer.
        ledger: Where requests are entered and counted.
        metrics: The instruments.
        limits: Bounds on sizes.
        timeouts: Bounds on waiting.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        upstream: Upstream,
        ledger: Ledger,
        metrics: Metrics,
        limits: Limits,
        timeouts: Timeouts,
        clock: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._ledger = ledger
        self._metrics = metrics
        self._limits = limits
        self._timeouts = timeouts
        self._clock = clock
        self.leaving = False
        """Answers end their connection: a drain has begun."""
        self.refusing = False
        """Newcomers are refused: the lame-duck time of a drain is over."""
        self._busy: set[asyncio.BaseTransport | None] = set()

    def is_busy(self, transport: asyncio.BaseTransport) -> bool:
        """Tell whether a request of this client connection is being handled."""
        return transport in self._busy

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        entry = self._ledger.enter()
        client = Client(request, lambda: self.leaving)
        self._busy.add(client.transport)
        try:
            await self._serve(request, entry, client)
        except asyncio.CancelledError:
            entry.outcome = Outcome.CLIENT_GONE
            raise
        except Refusal as refusal:
            entry.outcome = refusal.outcome
            return self._refuse(request, client, refusal)
        except Exception:
            log.exception("request failed", extra={"request_id": client.request_id})
            entry.outcome = Outcome.INTERNAL_ERROR
            if entry.exchange is None or not entry.exchange.begun:
                return self._refuse(request, client, outcomes.internal_error())
            client.abort()
        finally:
            self._busy.discard(client.transport)
            self._ledger.leave(entry)
        return client.response

    def _refuse(
        self, request: web.BaseRequest, client: Client, refusal: Refusal
    ) -> web.StreamResponse:
        """Answer ourselves; a body that was not read to its end costs the connection."""
        close = self.leaving or not request.content.is_eof()
        log.info(
            "request refused",
            extra={"request_id": client.request_id, "code": refusal.code, "status": refusal.status},
        )
        return refusal.response(client.request_id, close=close)

    async def _serve(self, request: web.BaseRequest, entry: Entry, client: Client) -> None:
        intake = read_headers(request)
        client.request_id = intake.request_id
        target = self._upstream.target(request)
        self._admit(intake)
        body = await read_body(
            request,
            intake,
            limit_bytes=self._limits.max_body_bytes,
            timeout_s=self._timeouts.upload_s,
        )
        self._metrics.body_bytes.observe(len(body))
        call = _call(request, target, intake, body)
        exchange = await self._dispatch(call, entry, client)
        self._settle(exchange, entry, client)

    def _admit(self, intake: Intake) -> None:
        if intake.websocket:
            raise outcomes.bad_request(
                "WebSocket endpoints are not relayed.", status=501, code="not_implemented"
            )
        if self.refusing:
            raise outcomes.shutting_down(1)
        if self._ledger.full:
            raise outcomes.saturated(1)

    async def _dispatch(self, call: Call, entry: Entry, client: Client) -> Exchange:
        """Return an exchange that was begun; raise a `Refusal` where none can be."""
        tried: list[Pool] = []
        while True:
            pool = self._upstream.pick(tried)
            tried.append(pool)
            try:
                exchange = await self._attempts(tried, call, entry, client)
            except EngineUnavailable as error:
                log.warning("engine unreachable", extra={"error": str(error)})
                self._upstream.lost(pool)
                continue
            finally:
                self._upstream.done(pool)
            if exchange.begun or exchange.ending is not Ending.LOST:
                return exchange
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
        exchange = entry.exchange = client.exchange_type(
            client,
            self._clock,
            screen=self._upstream.suspects,
            bodiless=not call.has_body_answer,
        )
        connection.send(exchange, call.lines)
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

    def _settle(self, exchange: Exchange, entry: Entry, client: Client) -> None:
        """Name the outcome of an exchange, and end what broke off."""
        match exchange.ending:
            case Ending.COMPLETE:
                entry.outcome = _outcome_of(exchange)
                if entry.outcome is Outcome.OK:
                    entry.usage = usage_in(exchange.tail)
            case Ending.CLIENT_GONE:
                entry.outcome = Outcome.CLIENT_GONE
            case Ending.CLIENT_SLOW:
                entry.outcome = Outcome.CLIENT_SLOW
                client.abort()
            case ending:
                refusal = _REFUSALS[ending]()
                if not exchange.begun:
                    raise refusal
                entry.outcome = _BROKEN.get(ending, Outcome.ENGINE_ERROR)
                client.break_off(exchange, _broken_words(ending), refusal.code)


def _shut_down() -> Refusal:
    return outcomes.shutting_down(1)


_REFUSALS: dict[Ending | None, Callable[[], Refusal]] = {
    Ending.LOST: outcomes.bad_gateway,
    Ending.MALFORMED: outcomes.bad_gateway,
    Ending.TIMED_OUT: outcomes.engine_timeout,
    Ending.SHUT_DOWN: _shut_down,
    None: outcomes.internal_error,
}
_BROKEN: dict[Ending | None, Outcome] = {
    Ending.TIMED_OUT: Outcome.ENGINE_TIMEOUT,
    Ending.SHUT_DOWN: Outcome.CUT,
}


def _broken_words(ending: Ending | None) -> str:
    if ending is Ending.TIMED_OUT:
        return "The engine stopped sending in the middle of the answer."
    if ending is Ending.SHUT_DOWN:
        return "This replica had to shut down before the answer was finished."
    return "The engine broke off in the middle of the answer."


def _outcome_of(exchange: Exchange) -> Outcome:
    if exchange.status < 400:
        return Outcome.ENGINE_ERROR if has_stream_error(exchange.tail) else Outcome.OK
    reason = (exchange.header(DROPPED_REASON.encode()) or b"").decode("latin-1")
    try:
        return Outcome(reason.replace("-", "_"))
    except ValueError:
        return Outcome.CLIENT_ERROR if exchange.status < 500 else Outcome.ENGINE_ERROR


def _call(request: web.BaseRequest, target: str, intake: Intake, body: bytes) -> Call:
    start = f"{request.method} {target} HTTP/1.1\r\n".encode("utf-8", "surrogateescape")
    tracing = [f"{name}: {value}\r\n".encode("latin-1") for name, value in intake.tracing.items()]
    identity = b"x-request-id: %b\r\n" % intake.request_id.encode()
    needs_length = body or request.method in ("POST", "PUT", "PATCH")
    length = b"content-length: %d\r\n" % len(body) if needs_length else b""
    head = b"".join([start, *intake.lines, *tracing, identity, length, b"\r\n"])
    lines = [head, body] if body else [head]
    return Call(lines, has_body_answer=request.method != "HEAD")
