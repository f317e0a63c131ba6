"""One request's way through the sidecar: taken in, dispatched, relayed, counted.

`handle` enters the request in the ledger and leaves it with one outcome, whatever happens in
between. An answer that cannot go on after its first byte ends with an error event, or with a cut
where the client could not read one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from aiohttp import web

from weir_core.sched.types import Reason
from weir_core.wire.openai import read_request, reports_failure, usage_in
from weir_sidecar import outcomes
from weir_sidecar.desk import Desk
from weir_sidecar.dispatch import Dispatcher, Upstream, call_of
from weir_sidecar.frontend.auth import wants_explanation
from weir_sidecar.frontend.body import read_body
from weir_sidecar.frontend.client import Client
from weir_sidecar.frontend.cors import CrossOrigin
from weir_sidecar.intake import Intake, new_request_id, read_headers
from weir_sidecar.ledger import Entry, Ledger
from weir_sidecar.outcomes import DROPPED_REASON, Outcome, Refusal
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.tracing import Tracing, operation_of
from weir_sidecar.turn import Turn
from weir_sidecar.upstreams.splice import Ending, Exchange

log = logging.getLogger(__name__)


class _Visit(NamedTuple):
    """A request that has been taken in."""

    request: web.BaseRequest
    target: str
    intake: Intake
    body: bytes
    entry: Entry
    client: Client


class Proxy:
    """The handler of the API port.

    Args:
        upstream: Who may answer.
        ledger: Where requests are entered and counted.
        settings: Bounds on sizes and waiting.
        clock: Seconds that only move forward.
        tracing: Where spans go, or None.
        desk: Who says who may ask and when; None lets everybody pass, as a front does.
    """

    def __init__(
        self,
        upstream: Upstream,
        ledger: Ledger,
        settings: Settings,
        clock: Callable[[], float],
        *,
        tracing: Tracing | None = None,
        desk: Desk | None = None,
    ) -> None:
        self._upstream = upstream
        self._ledger = ledger
        self._metrics = ledger.metrics
        self._limits = settings.limits
        self._timeouts = settings.timeouts
        self._clock = clock
        self._tracing = tracing
        self._desk = desk
        self._dispatcher = Dispatcher(upstream, ledger.metrics, settings.timeouts, clock)
        self._cross_origin = CrossOrigin(settings.cors)
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
        if request.method == "OPTIONS":
            preflight = self._cross_origin.preflight(request)
            if preflight is not None:
                return preflight
        entry = self._ledger.enter()
        client = Client(request, lambda: self.leaving)
        self._busy.add(client.transport)
        try:
            await self._serve(request, entry, client)
        except asyncio.CancelledError:
            entry.outcome = Outcome.CLIENT_GONE
            raise
        except Refusal as refusal:
            return self._refuse(request, entry, client, refusal)
        except Exception:
            log.exception("request failed", extra={"request_id": client.request_id})
            if entry.exchange is None or not entry.exchange.begun:
                return self._refuse(request, entry, client, outcomes.internal_error())
            entry.outcome = Outcome.INTERNAL_ERROR
            client.abort()
        finally:
            self._busy.discard(client.transport)
            self._ledger.leave(entry)
            if log.isEnabledFor(logging.DEBUG):
                ended = {"request_id": client.request_id, "outcome": entry.outcome}
                log.debug("request ended", extra=ended)
        return client.response

    def refuse_unread(self, refusal: Refusal) -> web.StreamResponse:
        """Count and answer a request that the HTTP library could not read."""
        entry, request_id = self._ledger.enter(), new_request_id()
        entry.outcome, entry.status = refusal.outcome, refusal.status
        self._ledger.leave(entry)
        log.info("request unreadable", extra={"request_id": request_id, "code": refusal.code})
        return refusal.response(request_id, close=True)

    def _refuse(
        self, request: web.BaseRequest, entry: Entry, client: Client, refusal: Refusal
    ) -> web.StreamResponse:
        """Answer ourselves; a body that was not read to its end costs the connection."""
        entry.outcome, entry.status = refusal.outcome, refusal.status
        close = self.leaving or not request.content.is_eof()
        refusal.headers.update(self._cross_origin.headers(request.headers.get("Origin")))
        return refusal.response(client.request_id, close=close)

    async def _serve(self, request: web.BaseRequest, entry: Entry, client: Client) -> None:
        desk = self._desk
        intake = read_headers(request, desk.secret if desk else ())
        client.request_id = intake.request_id
        if self._tracing is not None:
            entry.trace = self._tracing.begin(
                request.method,
                request.path,
                intake.tracing,
                arrival=entry.arrival,
                now=self._clock(),
            )
        target = self._upstream.target(request)
        caller = desk.identify(request, intake) if desk else None
        self._admit(intake, entry)
        body = await read_body(
            request,
            intake,
            limit_bytes=self._limits.max_body_bytes,
            timeout_s=self._timeouts.upload_s,
            hold=partial(self._hold, entry),
            inflate=desk is not None,
        )
        if desk is None and intake.encoding:  # a front: the sidecar behind it inflates
            intake.lines.append(b"content-encoding: %b\r\n" % intake.encoding.encode("latin-1"))
        self._ledger.hold(entry, len(body))  # where less came than was announced
        self._metrics.body_bytes.observe(len(body))
        visit = _Visit(request, target, intake, body, entry, client)
        fields = read_request(body) if desk or entry.trace else None
        if entry.trace is not None and fields is not None:
            entry.trace.describe(operation_of(request.path), fields)
        if desk is None or caller is None or fields is None:
            self._settle(await self._attempt(visit, None), entry, client)
            return
        turn = await desk.arrive(request, intake, caller, entry, fields, body)
        if turn is None:
            self._settle(await self._attempt(visit, None), entry, client)
        else:
            await self._take_turn(desk, turn, visit)

    async def _take_turn(self, desk: Desk, turn: Turn, visit: _Visit) -> None:
        """Have a request that the engine computes for served when its turn comes."""
        explain = wants_explanation(visit.intake.said)
        visit.client.on_begin = partial(desk.begun, turn, explain)
        entry = visit.entry
        try:
            exchange = await desk.served(turn, explain, partial(self._attempt, visit))
            self._settle(exchange, entry, visit.client)
        finally:
            desk.leave(turn, entry, entry.usage)
            # They know each other: let all go without the collector.
            entry.refuse = visit.client.on_begin = None

    async def _attempt(self, visit: _Visit, priority: int | None) -> Exchange:
        call = call_of(visit.request, visit.target, visit.intake, visit.body, priority)
        exchange = await self._dispatcher.run(call, visit.entry, visit.client)
        visit.entry.status = exchange.status
        return exchange

    def _admit(self, intake: Intake, entry: Entry) -> None:
        if intake.websocket:
            raise outcomes.bad_request(
                "WebSocket endpoints are not relayed.", status=501, code="not_implemented"
            )
        if self.refusing:
            raise outcomes.shutting_down(1)
        ledger = self._ledger
        if ledger.full:
            raise outcomes.rejected(Reason.QUEUE_FULL, 1)
        self._hold(entry, min(intake.announced_bytes, self._limits.max_body_bytes))

    def _hold(self, entry: Entry, size_bytes: int) -> None:
        """Account for a body that is announced, or has grown beyond what was; refuse the 503."""
        more_bytes = size_bytes - entry.body_bytes
        if more_bytes <= 0:
            return
        if self._ledger.held_bytes + more_bytes > self._limits.max_held_bytes:
            raise outcomes.rejected(Reason.MEMORY_FULL, 1)
        self._ledger.hold(entry, size_bytes)

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
        return Outcome.ENGINE_ERROR if reports_failure(exchange.tail) else Outcome.OK
    reason = (exchange.header(DROPPED_REASON.encode()) or b"").decode("latin-1")
    try:
        return Outcome(reason.replace("-", "_"))
    except ValueError:
        return Outcome.CLIENT_ERROR if exchange.status < 500 else Outcome.ENGINE_ERROR
