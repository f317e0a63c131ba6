"""The life of one request, from its head to its outcome, from top to bottom.

1. KNOWN. The head is read. The path, the key and the limits are looked at before the body is read,
   so that a request that will be refused costs no more than its head.
2. WAITING. The scheduler was told of the request, through the driver; it waits in the pool.
3. SENT. An upstream was asked for one attempt: the engine, because the scheduler dispatched the
   request, or the sidecar of another replica, because it is served better there. A request that
   loses its place, whose engine dies, or that comes back from another replica, is routed again:
   its client was sent nothing yet.
4. RELAYED. The first byte went to the client. Nothing can be tried again, so the body is released.
5. COUNTED. The request has exactly one outcome. Its memory and places are given back.

`InFlightRequest` owns all of it. What needs no waiting happens at once, in the callback that
brought the request or the answer: with the body at hand, a place at the engine and an idle
connection to it there is no task. What takes time goes on in a task, from wherever the request is
(`_go_on`).

Requests that compute nothing on the engine (models, tokenizing) go from KNOWN to SENT. A request
that another sidecar forwarded (`Forwarded`) has been authenticated and classified there; it never
goes on from here, but back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import msgspec

from weir_core.errors import InvalidBody
from weir_core.route.router import HOP_LIMIT
from weir_core.route.types import Candidate, Forward, Keep, Route
from weir_core.sched.types import Dispatch, Reason, Request
from weir_core.wire import bodies
from weir_core.wire.answers import reports_failure, tokens_in
from weir_core.wire.engine_inputs import bounded_target_s, may_search_beams, sent_priority
from weir_core.wire.errors import ENDING_PAUSE_S, ending_event, error_shape_of, next_sequence_number
from weir_core.wire.fields import RequestBody, Usage
from weir_core.wire.openai import usage_in, with_priority
from weir_core.wire.paths import MODELS_PATH, Api, Endpoint, Kind
from weir_core.wire.peers import FORWARDED_HEADER, RETURNED_HEADER, Forwarded
from weir_sidecar.frontend import errors
from weir_sidecar.frontend.answer import JSON, Answer
from weir_sidecar.frontend.auth import (
    EXPLAIN_HEADER,
    Caller,
    is_here,
    ttft_target_s,
    wants_explanation,
)
from weir_sidecar.frontend.body import body_at_hand, read_body
from weir_sidecar.frontend.client import Client
from weir_sidecar.frontend.cors import CrossOrigin
from weir_sidecar.frontend.errors import DROPPED_REASON, ApiError
from weir_sidecar.frontend.headers import new_request_id, request_id_of
from weir_sidecar.frontend.protocol import HttpRequest
from weir_sidecar.outcomes import Outcome
from weir_sidecar.settings import Settings, Timeouts
from weir_sidecar.telemetry.metrics import NO_CLASS
from weir_sidecar.telemetry.request_trace import RequestTrace, Tracing, operation_of
from weir_sidecar.upstreams.splice import Ending, Exchange
from weir_sidecar.upstreams.upstream import Attempt, Call

if TYPE_CHECKING:
    from weir_core.route.prefix import Chain
    from weir_core.sched.shares import Share
    from weir_sidecar.driver import Driver
    from weir_sidecar.limits import FleetLimits
    from weir_sidecar.names import Shown
    from weir_sidecar.peers.peer import Peer
    from weir_sidecar.prefixes import Prefixes
    from weir_sidecar.registry import Registry
    from weir_sidecar.routing import Routing
    from weir_sidecar.telemetry.usage import UsageMeter
    from weir_sidecar.upstreams.upstream import Upstream

log = logging.getLogger(__name__)

_EXPLAIN: Final = EXPLAIN_HEADER.decode()
_RETURNED: Final = RETURNED_HEADER.decode()
_MOST_ENGINES_LOST: Final = 3
"""Engines, here and elsewhere, that may die under one request: it may be the reason."""
_REFUSED: Final = "refused"
_NO_ADAPTER: Final = "no-adapter"
"""Why a request came back whose executing sidecar refused it at its arrival."""
_NOT_BEGUN: Final = frozenset({Ending.LOST, Ending.REQUEUED})
"""How an attempt at another replica ends that the client need not learn of."""
_PLAIN: Final = RequestBody()
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


class State(Enum):
    """How far a request is; the states follow each other, but SENT may fall back to WAITING."""

    KNOWN = auto()
    WAITING = auto()
    SENT = auto()
    RELAYED = auto()
    COUNTED = auto()


class Handler:
    """The handler of the API port and of the peer port, and what their requests share.

    Args:
        registry: The requests in flight.
        settings: Bounds on sizes and waiting.
        driver: Tells the scheduler of requests.
        clock: Seconds that only move forward.
        tracing: Where spans go, or None.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        driver: Driver,
        clock: Callable[[], float],
        *,
        tracing: Tracing | None = None,
    ) -> None:
        self.registry = registry
        self.driver = driver
        self.metrics = registry.metrics
        self.limits = settings.limits
        self.timeouts = settings.timeouts
        self.replica = settings.identity.pod
        self.clock = clock
        self.tracing = tracing
        self.cross_origin = CrossOrigin(settings.cors)
        self.serves_here = settings.addresses.is_loopback
        """Without tenants, requests from this machine are served."""
        self.prefixes: Prefixes | None = None
        """What is cached where."""
        self.engine: Upstream | None = None
        """The engine beside this sidecar; None in a gateway."""
        self.routing: Routing | None = None
        """The way to other replicas; None where there is none."""
        self.names: Shown | None = None
        """Which adapters the engine lacks, and which are removed; of a gateway, its models."""
        self.fleet_limits: FleetLimits | None = None
        """Counts the requests of tenants with limits over all replicas."""
        self.usage: UsageMeter | None = None
        """Counts who used what."""
        self.own_pages: dict[str, Callable[[HttpRequest], Answer | None]] = {}
        """What is answered here, without an outcome, by what is asked for; None relays it."""
        self.leaving = False
        """Answers end their connection: a drain has begun."""
        self.refusing = False
        """Newcomers are refused: the lame-duck time of a drain is over."""

    def handle(self, http: HttpRequest) -> None:
        """Answer one request."""
        head, answer = http.head, None
        page = self.own_pages.get(head.raw_path)
        if page is not None:
            answer = page(http)
        elif head.method == "OPTIONS":
            answer = self.cross_origin.preflight(head)
        if answer is None:
            InFlightRequest(http, self).begin()
        else:
            http.answer(answer)

    def handle_forwarded(self, http: HttpRequest, sender: str) -> None:
        """Answer a request that the sidecar `sender` forwards."""
        try:
            forwarded = msgspec.json.decode(http.forwarded, type=Forwarded)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            log.warning("forwarded request unreadable", extra={"peer": sender})
            refusal = errors.bad_request(f"{FORWARDED_HEADER.decode()} cannot be read.")
            http.answer(refusal.answer("", new_request_id(), close=True))
            return
        InFlightRequest(http, self, forwarded).begin()
        if self.routing is not None:  # it is in the load from here on
            self.routing.taken(sender, forwarded)

    def refuse_unread(self, error: ApiError) -> Answer:
        """Count and answer a request that the HTTP library could not read."""
        request_id = new_request_id()
        self.metrics.of_class(NO_CLASS).requests(error.outcome).inc()
        log.info("request unreadable", extra={"request_id": request_id, "code": error.code})
        return error.answer("", request_id, close=True)

    def is_leaving(self) -> bool:
        """Tell whether answers should end their connection."""
        return self.leaving


class InFlightRequest:
    """One request; the only owner of what it holds.

    Attributes:
        state: How far it is.
        arrival: When it came.
        request_id: What its client, and the engine's log, call it.
        endpoint: What its path is.
        caller: Who asks.
        class_name: Its priority class, once that is known.
        forwarded: What the sidecar says that sent it here; None of a client's own request.
        asked: The request as the scheduler, or a router, is asked; None of one that computes
            nothing.
        id: Its id in the scheduler; empty while it is not there.
        away: The replica that it was sent to instead of into the pool here.
        hops: How often it was forwarded.
        is_counted: Its work is counted, here or at a replica at which it was before.
        places: Sequences that it is counted as among its payer's, over all replicas.
        tried: Replicas that it came back from.
        better_at: Where it would begin sooner, as the last of them says; or empty.
        number: Its number among those that were forwarded to that replica, as both count them.
        wire_id: Its id at the engine, by which the step log names it; no two at once have the same.
        dispatch: The scheduler's word, while it has a place at the engine.
        exchange: The attempt that runs, or the last one.
        told_tokens: Output tokens that the scheduler was told of.
        first_token_at: When the engine's step log named its first token.
        requeues: How often it lost its place.
        chain: What stands for its prompt where prefixes are followed, or None.
        prompt_tokens: As the engine counted them when it had computed the prompt; 0 before.
        share: What the engine did for it, as the step log tells; None before that told anything.
        lost_shares: The same of earlier attempts, which came to nothing.
        awaits_end: It is over here, and the engine is yet to tell how it ended.
        was_here: It had a place at the engine here.
        queue_s: How long it waited for that.
        status: The HTTP status the client got, 0 before.
    """

    caller: Caller | None
    endpoint: Endpoint | None
    forwarded: Forwarded | None
    away: Peer | None
    asked: Request | None
    dispatch: Dispatch | None
    chain: Chain | None
    share: Share | None
    lost_shares: tuple[Share, ...]
    tried: tuple[str, ...]
    exchange: Exchange | None
    upstream: Upstream | None
    """Where it was sent last."""
    first_token_at: float | None
    usage: Usage | None
    outcome: Outcome | None
    trace: RequestTrace | None
    _call: Call | None
    _called_for: Dispatch | None
    """The place that the call was made for: it says the priority."""
    _attempt: Attempt | None
    _answer: Answer | None
    """A refusal, as it goes to the client."""
    _refusal: ApiError | None
    """The scheduler's word that the request will not be dispatched."""
    _task: asyncio.Task[None] | None
    _wake: asyncio.Future[None] | None
    _life: asyncio.TimerHandle | None
    _route: Route | None
    """The router's last word."""
    _seen: Exchange | None
    """What the watch looked at last, with the bytes that had come, and since when."""

    def __init__(
        self, http: HttpRequest, shared: Handler, forwarded: Forwarded | None = None
    ) -> None:
        self.http, self.shared, self.forwarded = http, shared, forwarded
        self.head = http.head
        self.arrival = shared.clock()
        self.state = State.KNOWN
        self.client = Client(http, shared.is_leaving)
        self.request_id = self.client.request_id = request_id_of(http.given_id)
        self.class_name = NO_CLASS
        self.caller = self.endpoint = self.asked = self.dispatch = self.exchange = None
        self.away = self._route = self.chain = self.share = None
        self.upstream = self.first_token_at = self.usage = self.outcome = self.trace = None
        self.tenant = self.wire_id = self.id = self._returned = self._sent_back = ""
        self.better_at = ""
        self.tried = self.lost_shares = ()
        self.rank = self.body_bytes = self.status = self.requeues = self.told_tokens = 0
        self.places = self.number = self.prompt_tokens = 0
        self.queue_s = 0.0
        self.hops = 0 if forwarded is None else forwarded.hops
        self.api, self.asks = Api.OTHER, _PLAIN
        self.streams, self.is_counted = False, forwarded is not None and forwarded.is_counted
        self._body = b""
        self._call = self._called_for = self._attempt = self._answer = self._refusal = None
        self._task = self._wake = self._life = self._seen = None
        self._computes_nothing = False
        """The engine only looks something up for it."""
        self._runs = self._is_gone = self.was_here = self.awaits_end = False
        self._classified = self._reserved = self._explains = self._broke_off = False
        self._is_last_word = self._came_late = False
        """The other replica's refusal is for the client; a drain had begun to refuse newcomers."""
        self._engines_lost = 0
        self._seen_bytes, self._seen_at = -1, 0.0

    # ---- the way in and the one way out

    def begin(self) -> None:
        """Answer the request; whatever happens from here on, it ends with one outcome."""
        self.http.owner = self
        self.shared.registry.add(self)
        try:
            if not self._goes_at_once():
                self._task = asyncio.get_running_loop().create_task(self._go_on())
            return
        except ApiError as error:
            self._refuse(error)
        except Exception as error:
            self._fail(error)
        self._end()

    def _goes_at_once(self) -> bool:
        """Do what needs no waiting; tell whether the request is on its way to an engine."""
        self._read_head()
        shared, http, head = self.shared, self.http, self.head
        if not http.whole or head.encoding:
            return False
        self._body = body_at_hand(http, shared.limits.max_body_bytes, self._hold)
        self._classify()
        if self._computes_nothing or not self._is_counted_at_once() or self._is_to_be_counted():
            return False
        self._ask_for_place(shared.driver, None)
        upstream: Upstream | None = self.away
        if upstream is None:
            if self.dispatch is None:
                return False
            upstream = shared.engine
            self._call = self._call_to_engine(shared.driver, self.dispatch)
        if upstream is None or self._call is None:
            return False
        self._attempt = attempt = upstream.send_at_once(self, self._call)
        if attempt is None:
            return False
        if attempt.exchange.needs_attention:
            self.on_exchange(attempt.exchange)
        return True

    def on_exchange(self, exchange: Exchange) -> None:
        """Go on where the attempt has ended, or needs something that takes time."""
        ending, attempt = exchange.ending, self._attempt
        if self._task is not None or attempt is None or attempt.exchange is not exchange:
            return  # it is awaited, or `_goes_at_once` looks at it itself
        if ending is not Ending.COMPLETE and ending is not Ending.CLIENT_GONE:
            self._task = asyncio.get_running_loop().create_task(self._go_on())
            return
        attempt.connection.finish()
        try:
            self._settle()
        except Exception as error:
            self._fail(error)
        self._end()

    def holds_back(self, exchange: Exchange, piece: bytes) -> bool:
        """Tell whether an answer should be held back; an error, too, whose stream has its head."""
        if exchange.status >= 400 and self.client.head_sent:
            return True
        return self.upstream is not None and self.upstream.suspects(self, exchange, piece)

    def tokens_in(self, piece: bytes) -> int:
        """Return how many events of a piece of its stream carry content."""
        return tokens_in(self.api, piece)

    def client_gone(self) -> None:
        """End the request: its client has left."""
        self._is_gone = True
        if self._runs and self._task is not None:
            self._task.cancel()
        elif self._task is None and self.exchange is not None:
            self.exchange.end(Ending.CLIENT_GONE)

    async def _go_on(self) -> None:
        """Do what takes time, from wherever the request is, to its end."""
        self._runs = True
        try:
            try:
                if self._is_gone:  # before this began: a task that is cancelled then never runs
                    raise asyncio.CancelledError
                await self._run()
            except ApiError as error:
                self._refuse(error)
            if self._broke_off:
                await asyncio.sleep(ENDING_PAUSE_S)
        except asyncio.CancelledError:
            # One that leaves upon the event that ends a broken stream does not change why it broke.
            self.outcome = self.outcome or Outcome.CLIENT_GONE
            if self._attempt is not None:
                self._attempt.exchange.end(Ending.CLIENT_GONE)
                self._attempt.connection.finish()
        except Exception as error:
            self._fail(error)
        finally:
            self._end()

    async def _run(self) -> None:
        if not self._classified:
            await self._read_body()
            self._classify()
        if self._computes_nothing:
            await self._look_up()
        else:
            await self._wait_and_ask()
        if self._answer is None:
            self._settle()

    def _refuse(self, error: ApiError) -> None:
        """Make the answer of an error; a body that was not read to its end costs the connection."""
        self.outcome, self.status = error.outcome, error.status
        if self._explains and self.asked is not None:
            error.headers[_EXPLAIN] = self._explanation(error.code).decode()
        if self.caller is not None and not self.counts_elsewhere:
            error.headers.update(self.shared.driver.rate_limits(self.caller.tenant))
        if self.forwarded is not None and self.forwarded.may_return:
            self._note_return(error)
        if self.client.head_sent:
            self._break_off(None, error)
            return
        error.headers.update(self.shared.cross_origin.headers(self.head.origin))
        close = self.shared.leaving or not self.http.whole
        self._answer = error.answer(self.head.path, self.request_id, close=close)

    def _note_return(self, error: ApiError) -> None:
        """Have the sidecar that forwarded the request route it again, where that may help."""
        if self._sent_back:
            error.headers[_RETURNED] = self._sent_back
        elif error.outcome is Outcome.REJECTED_SHUTTING_DOWN:
            error.headers[_RETURNED] = "draining"
        elif error.outcome is Outcome.REJECTED_NO_ENDPOINTS:
            error.headers[_RETURNED] = "no-engine"
        elif error.retry_after_s is not None and self.state is State.KNOWN:
            error.headers[_RETURNED] = _REFUSED

    def _fail(self, error: Exception) -> None:
        """End a request that met a bug."""
        log.error("request failed", exc_info=error, extra={"request_id": self.request_id})
        if not self.begun:
            self._refuse(errors.internal_error())
        else:
            self.outcome = Outcome.INTERNAL_ERROR
            self.client.abort()

    def _end(self) -> None:
        """Count the request, and let its connection go on."""
        self._count()
        self.http.owner = None
        if self._answer is not None:
            self.http.answer(self._answer)
        else:
            self.http.connection.finished(keep_alive=self.client.keep_alive)

    def _count(self) -> None:
        """Give back all that the request holds, and count its outcome."""
        self.state = State.COUNTED
        if self._life is not None:
            self._life.cancel()
        shared = self.shared
        outcome = self.outcome or Outcome.INTERNAL_ERROR
        self._release_body()
        self._leave_limits(shared.driver)
        shared.driver.ended(self, outcome)
        if shared.routing is not None and self.away is not None:
            shared.routing.ended(self)
        if shared.fleet_limits is not None:
            shared.fleet_limits.free(self)
        shared.registry.remove(self)
        self._measure(outcome, shared.clock())
        if log.isEnabledFor(logging.DEBUG):
            ended = {"request_id": self.request_id, "outcome": outcome}
            log.debug("request ended", extra=ended)
        # Break the reference cycles here, so that the garbage collector need not.
        self.client.on_begin = None
        self._task = self._attempt = None
        if self.exchange is not None:
            self.exchange.owner = None

    def _measure(self, outcome: Outcome, now: float) -> None:
        """Note the outcome, the times and the tokens in metrics and spans."""
        exchange, first_byte_at, received_bytes = self.exchange, None, 0
        if exchange is not None:
            received_bytes = exchange.received_bytes
            first_byte_at = exchange.first_byte_at
            if exchange.begun:  # the client was not told of the attempts that were given up
                self.status = exchange.status
        first_token_at = first_byte_at if self.streams else self.first_token_at or first_byte_at
        ttft_s = None if first_token_at is None else first_token_at - self.arrival
        if self.forwarded is None:
            self.shared.metrics.ended(
                self.class_name, outcome, now - self.arrival, ttft_s, received_bytes, self.usage
            )
            target_s = self._target_s()
            if target_s is not None:
                self.shared.metrics.judge(self.class_name, outcome, ttft_s, target_s)
        else:  # its client's sidecar counts it; here it would count twice
            self.shared.metrics.forwarded_ended(outcome)
        if self.shared.usage is not None:
            self.shared.usage.ended(self, outcome, now, ttft_s)
        if self.trace is not None:
            self.trace.finish(
                outcome, self.status, now, first_byte_at=first_token_at, usage=self.usage
            )

    def _target_s(self) -> float | None:
        """Return the time to the first token that the request was promised."""
        if self._computes_nothing:
            return None
        if self.asked is not None and self.asked.ttft_target_s is not None:
            return self.asked.ttft_target_s
        return self.shared.driver.directory.ttft_target_s(self.class_name)

    # ---- KNOWN: the head, then the body

    def _read_head(self) -> None:
        """Look at everything that the head says; raise the refusal."""
        shared, head = self.shared, self.head
        self.client.on_begin = self._begin
        if shared.tracing is not None:
            self.trace = shared.tracing.begin(
                head.method, head.path, self.http.tracing, arrival=self.arrival, now=shared.clock()
            )
        self.endpoint = head.endpoint
        if self.endpoint is None:
            raise errors.not_found(head.path)
        self.api = self.endpoint.api
        self._computes_nothing = self.endpoint.kind is Kind.NO_GENERATION
        if self.forwarded is None:
            self._explains = wants_explanation(head.said)
            self._identify(shared.driver)
        if head.websocket:
            raise errors.bad_request(
                "WebSocket endpoints are not relayed.", status=501, code="not_implemented"
            )
        self._check_room()
        if self.forwarded is None:
            self._rank_by_head(shared.driver)
        else:
            self._trust(shared.driver, self.forwarded)
        if self._computes_nothing or not self.http.whole or head.encoding:
            self._reserve()

    def _reserve(self) -> None:
        """Count the request among its payer's while something else takes time; raise the refusal.

        Its body comes, is inflated, or is counted by the engine; or it computes nothing.
        """
        if self._reserved or self.places or self.counts_elsewhere:
            return
        assert self.caller is not None
        self.shared.driver.reserve(self.caller.tenant)
        self._reserved = True

    def _check_room(self) -> None:
        """Raise the refusal where this sidecar takes no more requests."""
        self._came_late = self.shared.refusing
        if self._came_late and not self._may_go_elsewhere():
            raise errors.shutting_down(1)
        if self.shared.registry.full:
            raise errors.rejected(Reason.QUEUE_FULL, self._room_in_s())

    def _room_in_s(self) -> int:
        """Return after how long there may be room for one more request."""
        routing = self.shared.routing
        waits_for_start = routing is not None and routing.nobody_serves
        return self.shared.driver.retry_after_s if waits_for_start else 1

    def _identify(self, driver: Driver) -> None:
        """Find out who asks; a connection's next request mostly is alike."""
        head, directory = self.head, driver.directory
        if head.directory is not directory:
            # An address is looked at only where it matters.
            from_here = (
                self.shared.serves_here
                and not directory.tenants
                and is_here(self.http.connection.remote)
            )
            head.caller = directory.identify(head.said, from_here=from_here)
        self.caller = head.caller

    def _rank_by_head(self, driver: Driver) -> None:
        """Find out what the head says of class and tenant."""
        head, caller = self.head, self.caller
        assert caller is not None
        if head.directory is not driver.directory:
            head.rank = driver.directory.rank_by_head(caller, head.said)
            head.tenant, head.class_name = driver.directory.tenant_of(caller, head.said), ""
            head.directory = driver.directory
        self.rank = head.rank

    def _trust(self, driver: Driver, forwarded: Forwarded) -> None:
        """Take what the sidecar that forwarded the request found out."""
        self.class_name, self.tenant = forwarded.class_name, forwarded.tenant
        self.caller = Caller(forwarded.payer, forwarded.class_name, float("inf"))
        self.rank = driver.directory.rank_of(forwarded.class_name)
        self._explains = forwarded.explains

    async def _read_body(self) -> None:
        shared = self.shared
        self._body = await read_body(
            self.http,
            limit_bytes=shared.limits.max_body_bytes,
            timeout_s=shared.timeouts.upload_s,
            hold=self._hold,
        )

    def _read_wishes(self, endpoint: Endpoint) -> RequestBody:
        """Return what the body makes the engine do; raise the refusal."""
        content_type = self.head.said.get(b"content-type", "")
        try:
            if content_type.lower().startswith("multipart/form-data"):
                return bodies.read_form(content_type, self._body)
            return bodies.read_body(endpoint, self._body)
        except InvalidBody as error:
            raise errors.bad_request(error.message, code="invalid_body") from None

    def _hold(self, size_bytes: int) -> None:
        """Account for the body's bytes as they come; raise the refusal where memory is short."""
        more_bytes = size_bytes - self.body_bytes
        if more_bytes <= 0:
            return
        payer = "" if self.caller is None else self.caller.tenant
        if not self.shared.registry.memory.hold(payer, self.rank, more_bytes):
            raise errors.rejected(Reason.MEMORY_FULL, self._room_in_s())
        self.body_bytes = size_bytes

    def _release_body(self) -> None:
        """Forget the body and give its memory back."""
        if self.body_bytes:
            payer = "" if self.caller is None else self.caller.tenant
            self.shared.registry.memory.release(payer, self.rank, self.body_bytes)
            self.body_bytes = 0
        self._body = b""
        if self._call is not None:
            self._call.body = ()

    def _classify(self) -> None:
        """Look at what the body asks for, and name the class and the tenant; raise the refusal."""
        self._classified = True
        self.shared.metrics.body_bytes.observe(len(self._body))
        if self.endpoint is not None and not self._computes_nothing:
            self.asks = self._read_wishes(self.endpoint)
        if self.trace is not None:
            self.trace.describe(operation_of(self.head.path), self.asks)
        if self.forwarded is None:
            self._check_model()
            self._find_class(self.shared.driver)
        if self.trace is not None:
            self.trace.admitted(self.class_name, self.tenant)

    def _check_model(self) -> None:
        """Refuse a newcomer that asks for an adapter which is about to be unloaded."""
        names, model = self.shared.names, self.asks.model
        if names is not None and model is not None and model in names.removed:
            raise errors.unknown_model(model)

    def _find_class(self, driver: Driver) -> None:
        head, asks, caller = self.head, self.asks, self.caller
        assert caller is not None
        wishes = asks.service_tier is not None or asks.priority is not None
        # The policies may have changed while the body came.
        is_alike = not wishes and head.directory is driver.directory
        if is_alike and head.class_name:
            self.class_name = head.class_name
        else:
            self.class_name = driver.directory.class_of(caller, head.said, asks)
            if is_alike:
                head.class_name = self.class_name
        self.tenant = head.tenant

    def _leave_limits(self, driver: Driver) -> None:
        """Give back the place among the payer's requests that the head took."""
        if self._reserved and self.caller is not None:
            self._reserved = False
            driver.release(self.caller.tenant)

    def _is_counted_at_once(self) -> bool:
        """Count the request among its payer's; tell whether nobody else is to be asked."""
        limits = self.shared.fleet_limits
        if limits is None or not limits.counts(self):
            return True
        # In one step: the place that the head took passes on to the whole request.
        self._leave_limits(self.shared.driver)
        return limits.place_at_once(self)

    def _is_to_be_counted(self) -> bool:
        """Tell whether the engine is to count the prompt first."""
        if not self.shared.driver.prompts.counts(self.head.path, self._body):
            return False
        self._reserve()
        return True

    # ---- WAITING: in the pool, until the scheduler says otherwise

    def _ask_for_place(self, driver: Driver, prompt_tokens: int | None) -> None:
        """Make the request known, and find a place for it; raise the refusal."""
        asks, caller, head, forwarded = self.asks, self.caller, self.head, self.forwarded
        assert caller is not None
        if asks.searches_beams:
            self._check_beams(driver)
        now, age_s, target_s = self.shared.clock(), 0.0, ttft_target_s(head.said)
        if forwarded is not None:
            age_s, target_s = max(0.0, forwarded.age_s), forwarded.ttft_target_s
            prompt_tokens = forwarded.prompt_tokens if prompt_tokens is None else prompt_tokens
        elif target_s is not None:
            of_class = driver.directory.ttft_target_s(self.class_name)
            target_s = bounded_target_s(target_s, of_class)
        self.streams = asks.streams
        self.wire_id = self.request_id
        self.asked = Request(
            request_id=driver.next_id(),
            tenant=self.tenant,
            payer=caller.tenant,
            class_name=self.class_name,
            arrival_s=now - age_s,
            body_bytes=len(self._body),
            prompt_tokens=prompt_tokens,
            max_output_tokens=asks.max_output_tokens,
            sequences=asks.sequences,
            holds_place=self.holds_place,
            endpoint=head.path,
            ttft_target_s=target_s,
            is_counted=self.is_counted,
            may_be_late=self._may_be_late(),
        )
        if self.shared.prefixes is not None and self.endpoint is not None:
            self.chain = self.shared.prefixes.chain_of(self.endpoint.path, self._body, asks)
        self._find_place(driver, self.asked)
        if self.streams and driver.keep_alive_s is not None and forwarded is None:
            self._show_life_in(driver.keep_alive_s)

    def _may_be_late(self) -> bool:
        if self.forwarded is not None:
            return self.forwarded.may_be_late
        routing = self.shared.routing
        return routing is not None and routing.nobody_serves

    def _find_place(self, driver: Driver, asked: Request) -> None:
        """Send the request to the replica that serves it best, or into the pool here."""
        lacks = self._lacks_adapter()
        if self._go_elsewhere():
            return
        if lacks:
            raise errors.no_engine(
                f"the adapter {self.asks.model} is not loaded yet", driver.retry_after_s
            )
        # What was taken is served here, if nowhere else: a drain waits for it.
        if self.shared.refusing and (self.may_return or (self._came_late and not self.hops)):
            raise errors.shutting_down(1)
        if driver.is_gateway:  # it waits here until a replica takes it, whichever it was at
            self.hops, self.tried = 0, ()
        # In one step: the place among the payer's requests passes to the scheduler.
        self._leave_limits(driver)
        driver.arrive(self, asked)
        if self._refusal is None:
            self.state = State.WAITING
            return
        refusal, self._refusal = self._refusal, None
        if self.shared.routing is not None:
            self.tried = (*self.tried, self.shared.routing.name)
        # A gateway has just asked the others: asking them all again would never end.
        if driver.is_gateway or not self._go_elsewhere():
            raise refusal

    def _lacks_adapter(self) -> bool:
        """Tell whether the engine here lacks the adapter that the request asks for."""
        names = self.shared.names
        if names is None or self.asks.model not in names.lacking:
            return False
        if self.forwarded is not None:
            self._sent_back = _NO_ADAPTER
        elif self.shared.routing is not None:
            self.tried = (*self.tried, self.shared.routing.name)
        return True

    def _may_go_elsewhere(self) -> bool:
        """Whether another replica may get the request."""
        routing = self.shared.routing
        if routing is None or self.forwarded is not None or self.hops >= HOP_LIMIT:
            return False
        return routing.may_forward(self.tried)

    def _go_elsewhere(self) -> bool:
        """Have the router choose; tell whether the request goes to another replica."""
        routing, asked = self.shared.routing, self.asked
        if routing is None or asked is None or not self._may_go_elsewhere():
            return False
        began = self.shared.clock()
        self._route = route = routing.choose(self, asked)
        if self.trace is not None:
            self.trace.routed(began, self.shared.clock(), route)
        return isinstance(route, Forward) and self.leave_for(route)

    def leave_for(self, route: Forward) -> bool:
        """Go to another replica instead of into the pool; tell whether it is still known."""
        routing, caller = self.shared.routing, self.caller
        assert routing is not None
        assert caller is not None
        peer = routing.find(route.replica)
        if peer is None:
            return False
        self._route, self.away, self.hops = route, peer, route.hops
        self.state = State.SENT
        self._leave_limits(self.shared.driver)
        self._call = self._call_of(None, routing.forwarded(self, caller.tenant, route))
        self._called_for = None
        self._notify()
        return True

    async def _wait_and_ask(self) -> None:
        """Send the request where it has its place, again where it lost that."""
        driver = self.shared.driver
        if self.asked is None:
            if not self._is_counted_at_once() and self.shared.fleet_limits is not None:
                await self.shared.fleet_limits.place(self)
            prompt_tokens = None
            if driver.prompts.counts(self.head.path, self._body):
                prompt_tokens = await driver.prompts.count(self._body)
            self._ask_for_place(driver, prompt_tokens)
        is_answered = False
        while not is_answered:
            begun, self._attempt = self._attempt, None
            if begun is None:
                await self._placed()
            if self.away is not None:
                is_answered = await self._ask_peer(driver, self.away, begun)
            else:
                is_answered = await self._ask_engine(driver, begun)
            if self.trace is not None and not is_answered:
                self.trace.lost(self.shared.clock())

    async def _ask_engine(self, driver: Driver, begun: Attempt | None) -> bool:
        """Make one attempt at the engine; tell whether the request is over with it."""
        dispatch = begun.dispatch if begun is not None else self.dispatch
        engine = self.shared.engine
        assert dispatch is not None
        assert engine is not None
        if self._call is None or self._called_for is not dispatch:
            self._call = self._call_to_engine(driver, dispatch)
        gone = driver.engines_gone
        exchange = await self._ask(engine, self._call, begun)
        lost = exchange is None or (exchange.ending is Ending.LOST and not exchange.begun)
        if lost and self.dispatch is dispatch and not driver.has_engine:
            # The engine had begun, but the client was sent nothing: nothing is lost yet.
            driver.arrive_again(self)
        # It may have another place already: what ended was the attempt for the first one.
        if self.dispatch is not dispatch and not self.begun:
            # The next engine may be there before this is told that the last one went.
            self._note_lost_place(driver, died=driver.engines_gone != gone or not driver.has_engine)
            return False
        if lost:
            raise self._lost(exchange)
        return True

    async def _ask_peer(self, driver: Driver, peer: Peer, begun: Attempt | None) -> bool:
        """Make one attempt at another replica; tell whether the request is over with it."""
        routing, asked = self.shared.routing, self.asked
        assert routing is not None
        assert asked is not None
        assert self._call is not None
        self._returned, self._is_last_word = "", False
        exchange = await self._ask(peer, self._call, begun)
        if exchange is not None:
            if exchange.begun or exchange.ending not in _NOT_BEGUN:
                return True
            if self._is_last_word and self.client.head_sent:  # with another status
                raise errors.told_in_stream(exchange.status, exchange.tail)
        self.away = self.exchange = None
        self.state = State.KNOWN
        self.tried = (*self.tried, peer.name)
        routing.returned(self, self._returned)
        if not self._returned:
            self._engines_lost += 1
            if self._engines_lost >= _MOST_ENGINES_LOST:
                raise errors.no_engine("replicas died under this request", driver.retry_after_s)
        self._find_place(driver, asked)
        return False

    def takes_refusal(self, answer: Exchange) -> bool:
        """Tell whether a peer's answer that is held back goes to the client."""
        reason = answer.header(RETURNED_HEADER)
        self._returned = "" if reason is None else reason.decode("latin-1")
        # The engine here may have the adapter that another one lacks.
        is_final = self._returned == _REFUSED or (
            self._returned == _NO_ADAPTER and self.shared.driver.is_gateway
        )
        self._is_last_word = reason is None or (is_final and not self._may_go_elsewhere())
        return self._is_last_word

    def _note_lost_place(self, driver: Driver, *, died: bool) -> None:
        """Wait again; raise the refusal where the engine has died too often under this request."""
        self.state = State.WAITING
        self._engines_lost += died
        if self._engines_lost >= _MOST_ENGINES_LOST and self._refusal is None:
            raise errors.no_engine("it died under this request again", driver.retry_after_s)

    def _lost(self, exchange: Exchange | None) -> ApiError:
        """Return the error for an attempt without a first byte that the engine did not keep."""
        driver = self.shared.driver
        assert driver is not None
        if exchange is not None and self.client.head_sent and exchange.status >= 400:
            # Its status can no longer be told, so its words have to do.
            return errors.told_in_stream(exchange.status, exchange.tail)
        return errors.no_engine("the engine broke off", driver.retry_after_s)

    def _show_life_in(self, period_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._life = loop.call_later(period_s, self._show_life, period_s)

    def _show_life(self, period_s: float) -> None:
        """Tell the client of a stream that its request still waits."""
        if self.state in (State.WAITING, State.SENT) and not self.begun:
            self.client.show_life()
            self._show_life_in(period_s)

    def _check_beams(self, driver: Driver) -> None:
        """Refuse a beam search that would go before higher classes inside the engine."""
        if not may_search_beams(
            driver.directory.rank_of(self.class_name), by_priority=driver.by_priority
        ):
            raise errors.forbidden(
                f"The class {self.class_name} may not use beam search: vLLM runs its steps before "
                "those of higher classes."
            )

    async def _placed(self) -> None:
        """Wait for a place, here or elsewhere; raise the refusal when there will be none."""
        while self._refusal is None:
            if self.dispatch is not None or self.away is not None:
                return
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        raise self._refusal

    def reroute(self) -> None:
        """Be routed again: nothing more is to be expected of the replica that it was sent to."""
        if self.exchange is not None and not self.begun:
            self.exchange.end(Ending.REQUEUED)

    def is_away_at(self, replica: str) -> bool:
        """Tell whether it was sent to that replica."""
        upstream: Upstream | None = self.upstream if self._computes_nothing else self.away
        return upstream is not None and upstream.name == replica

    # The driver calls these three; each is one of the scheduler's actions.

    def dispatched(self, dispatch: Dispatch) -> None:
        """Go to the engine."""
        self.dispatch = dispatch
        self.was_here, self.queue_s = True, dispatch.waited_s
        self._notify()

    def requeued(self) -> None:
        """Wait again; the attempt that runs ends, and the client does not see it."""
        self.dispatch = None
        self.requeues += 1
        self.told_tokens = self.prompt_tokens = 0
        self.first_token_at = None
        if self.share is not None:
            self.share.stop()
            self.lost_shares, self.share = (*self.lost_shares, self.share), None
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.end(Ending.REQUEUED)

    def rejected(self, error: ApiError) -> None:
        """Stop waiting; an attempt that runs without a first byte ends, too."""
        self._refusal = error
        self.dispatch = None
        if self.exchange is not None and not self.begun:
            self.exchange.end(Ending.REQUEUED)
        self._notify()

    def send_back(self, reason: str, error: ApiError) -> None:
        """Return a forwarded request that waits, so that its ingress routes it again."""
        self._sent_back = reason
        self.rejected(error)

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # ---- SENT: attempts

    @property
    def is_placed(self) -> bool:
        """Whether it still has the place that it was sent for."""
        return self._computes_nothing or self.away is not None or self.dispatch is not None

    @property
    def counts_elsewhere(self) -> bool:
        """Whether the sidecar that forwarded it counts it among its payer's requests."""
        return self.forwarded is not None and self.forwarded.holds_place

    @property
    def holds_place(self) -> bool:
        """Whether it is counted among its payer's requests, other than by the scheduler."""
        return self._computes_nothing or self.places > 0 or self.counts_elsewhere

    @property
    def routed(self) -> tuple[str, tuple[Candidate, ...]]:
        """Why it is where it is, as it was decided here last, and what was compared for that."""
        route = self._route
        if isinstance(route, Keep | Forward):
            return route.reason, route.candidates
        return "", ()

    @property
    def explains(self) -> bool:
        """Whether its client asked for an explanation."""
        return self._explains

    @property
    def may_return(self) -> bool:
        """Whether the sidecar that forwarded it has other replicas left for it."""
        return self.forwarded is not None and self.forwarded.may_return

    @property
    def begun(self) -> bool:
        """Whether the client was sent anything."""
        return self.exchange is not None and self.exchange.begun

    async def _ask(
        self, upstream: Upstream, call: Call, begun: Attempt | None = None
    ) -> Exchange | None:
        """Ask one upstream for one attempt, or go on with the one that has begun."""
        self.state = State.SENT
        self._call = call
        return await upstream.attempt(self, call, begun)

    def _call_to_engine(self, driver: Driver, dispatch: Dispatch) -> Call:
        """Return the request as it goes to the engine, for the place that it got."""
        self.state = State.SENT
        self._called_for = dispatch
        if self.trace is not None:
            now = self.shared.clock()
            if self._route is None:
                self.trace.routed(now, now)  # the one candidate
            self.trace.placed(dispatch.rank, self.requeues, dispatch.by_min_share)
        return self._call_of(driver.priority(self), None)

    def _call_of(self, priority: int | None, forwarded: Forwarded | None) -> Call:
        """Return the request as it goes to the engine, or to another sidecar."""
        head, body, endpoint = self.head, self._body, self.endpoint
        assert endpoint is not None
        pieces: tuple[bytes | memoryview, ...] = (body,) if body else ()
        if forwarded is None:
            sent = sent_priority(endpoint, priority, is_in_body=self.asks.priority is not None)
            further = sent.header
            if body and sent.field is not None:
                pieces = with_priority(body, sent.field)
        else:
            further = b"%b: %b\r\n" % (FORWARDED_HEADER, msgspec.json.encode(forwarded))
        request_id = (self.wire_id or self.request_id).encode()
        lines = b"%b%bx-request-id: %b\r\n" % (head.lines, further, request_id)
        if body or head.method in _WITH_BODY:
            lines += b"content-length: %d\r\n" % sum(map(len, pieces))
        tracing = b""
        for name, value in self.http.tracing.items():
            tracing += f"{name}: {value}\r\n".encode("latin-1")
        return Call(lines, tracing, pieces, bodiless=head.method == "HEAD")

    async def _look_up(self) -> None:
        """Send a request that computes nothing, without waiting in the pool."""
        driver, caller, engine = self.shared.driver, self.caller, self.shared.engine
        assert caller is not None
        driver.enter_unscheduled(caller.tenant)
        try:
            while True:
                upstream, forwarded = engine, None
                if engine is None or not driver.has_engine:
                    upstream, forwarded = self._any_peer(caller.tenant)
                if upstream is None:
                    self._list_models(driver)
                    return
                exchange = await self._ask(upstream, self._call_of(None, forwarded))
                if exchange is not None and (exchange.begun or exchange.ending not in _NOT_BEGUN):
                    return
                if upstream is engine:
                    raise self._lost(exchange)
                self.tried = (*self.tried, upstream.name)
        finally:
            driver.leave_unscheduled(caller.tenant)

    def _list_models(self, driver: Driver) -> None:
        """Answer without an engine what can be answered so; raise the refusal of all else."""
        names, head = self.shared.names, self.head
        models = b"" if names is None else names.models
        if not models or head.path != MODELS_PATH or head.method not in ("GET", "HEAD"):
            raise driver.no_engine()
        self.outcome, self.status = Outcome.OK, 200
        headers = {"x-request-id": self.request_id, "server": "weir"}
        headers.update(self.shared.cross_origin.headers(head.origin))
        close = self.shared.leaving or not self.http.whole
        self._answer = Answer(200, models, JSON, headers, close=close)

    def _any_peer(self, payer: str) -> tuple[Upstream | None, Forwarded | None]:
        """Return a replica that was not asked yet, and what to tell it."""
        routing = self.shared.routing
        if routing is None or not self._may_go_elsewhere():
            return None, None
        return routing.any_peer(self, payer)

    # ---- RELAYED: the first byte, and the end

    def _begin(self, answer: Exchange) -> bytes:
        """Note that an answer begins; return the header lines to add to it."""
        self.state = State.RELAYED
        self._release_body()
        if self.caller is not None:
            self.shared.driver.began(self, answer)
        lines = self._rate_limits()
        if self.away is not None:  # the replica that executes it has said the rest
            return lines
        if self._explains and self.asked is not None:
            lines += b"%b: %b\r\n" % (EXPLAIN_HEADER, self._explanation("dispatched"))
        return lines

    def _rate_limits(self) -> bytes:
        """Return header lines that tell the client what is left of its tenant's limits."""
        if self.caller is None or self.counts_elsewhere:
            return b""
        limits = self.shared.driver.rate_limits(self.caller.tenant)
        return b"".join(b"%b: %b\r\n" % (k.encode(), v.encode()) for k, v in limits.items())

    def _settle(self) -> None:
        """Name the outcome of the last attempt, and end an answer that broke off."""
        exchange = self.exchange
        assert exchange is not None
        match exchange.ending:
            case Ending.COMPLETE:
                self.outcome = _outcome_of(self.api, exchange)
                if self.outcome is Outcome.OK:
                    self.usage = usage_in(exchange.tail)
            case Ending.CLIENT_GONE:
                self.outcome = Outcome.CLIENT_GONE
            case Ending.CLIENT_SLOW:
                self.outcome = Outcome.CLIENT_SLOW
                self.client.abort()
            case ending:
                if not exchange.begun:
                    raise _ERRORS[ending]()
                error = _BROKEN.get(ending, errors.engine_lost)()
                self.outcome = Outcome.CUT if ending is Ending.SHUT_DOWN else error.outcome
                self._break_off(exchange, error)

    def _break_off(self, answer: Exchange | None, error: ApiError) -> None:
        """End a stream that cannot go on."""
        shape, exchange = error_shape_of(self.head.path), self.exchange
        number = next_sequence_number(exchange.tail) if exchange is not None else 0
        event = ending_event(shape, error.message, error.status, error.code, number)
        self._broke_off = self.client.break_off(answer, event)

    # ---- what the registry asks

    def check_progress(self, now: float, timeouts: Timeouts) -> None:
        """End an exchange whose upstream sent nothing for too long; called again and again."""
        exchange = self.exchange
        if exchange is None:
            return
        moved = exchange is not self._seen or exchange.received_bytes != self._seen_bytes
        if moved or exchange.paused or exchange.held:
            self._seen, self._seen_bytes, self._seen_at = exchange, exchange.received_bytes, now
            return
        limit_s = timeouts.progress_s if exchange.begun else timeouts.first_byte_s
        if now - self._seen_at > limit_s:
            exchange.end(Ending.TIMED_OUT)

    def cut(self) -> bool:
        """End what runs or waits, because a drain's time is over; tell whether anything did."""
        if self.exchange is not None:
            if self.exchange.ending is not None:
                return False
            self.exchange.end(Ending.SHUT_DOWN)
            return True
        if self.state is not State.WAITING:
            return False
        self.rejected(errors.shutting_down(1))
        return True

    def _explanation(self, reason: str) -> bytes:
        dispatch, forwarded, route = self.dispatch, self.forwarded, self._route
        waited_s = None if dispatch is None else round(dispatch.waited_s, 6)
        explained: dict[str, object] = {
            "class": self.class_name,
            "tenant": self.tenant,
            "reason": "min_share" if dispatch and dispatch.by_min_share else reason,
            "wait_s": waited_s,
            "rank": None if dispatch is None else dispatch.rank,
            "preempted": self.requeues,
            "replica": self.shared.replica,
            "hops": self.hops,
        }
        if forwarded is not None:
            explained["routed"], candidates = forwarded.reason, forwarded.candidates
        elif isinstance(route, Keep | Forward):
            explained["routed"], candidates = route.reason, route.candidates
        else:
            explained["routed"], candidates = "alone", ()
        explained["candidates"] = [_rounded(each) for each in candidates] or [
            {"replica": self.shared.replica}
        ]
        return msgspec.json.encode(explained)


def _rounded(candidate: Candidate) -> dict[str, object]:
    """Return a candidate as people read it: to a microsecond."""
    found: dict[str, object] = msgspec.to_builtins(candidate)
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}


def _shut_down() -> ApiError:
    return errors.shutting_down(1)


_ERRORS: dict[Ending | None, Callable[[], ApiError]] = {
    Ending.LOST: errors.bad_gateway,
    Ending.MALFORMED: errors.bad_gateway,
    Ending.TIMED_OUT: errors.engine_timeout,
    Ending.SHUT_DOWN: _shut_down,
    Ending.REQUEUED: errors.internal_error,
    None: errors.internal_error,
}
"""What is said of an attempt that ended before its first byte."""
_BROKEN: dict[Ending | None, Callable[[], ApiError]] = {
    Ending.MALFORMED: errors.bad_gateway,
    Ending.TIMED_OUT: errors.engine_silent,
    Ending.SHUT_DOWN: errors.cut_by_shutdown,
}
"""What is said of one that ended after it; the others were lost."""


def _outcome_of(api: Api, exchange: Exchange) -> Outcome:
    if exchange.status < 400:
        return Outcome.ENGINE_ERROR if reports_failure(api, exchange.tail) else Outcome.OK
    reason = (exchange.header(DROPPED_REASON.encode()) or b"").decode("latin-1")
    try:
        return Outcome(reason.replace("-", "_"))
    except ValueError:
        return Outcome.CLIENT_ERROR if exchange.status < 500 else Outcome.ENGINE_ERROR
