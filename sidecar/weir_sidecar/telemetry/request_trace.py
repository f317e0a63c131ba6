"""What is kept of a request for its spans while it runs.

    chat MODEL                    the request, from arrival to finish
    ├── weir.queue                arrival to dispatch
    ├── weir.route                choosing who runs it; the candidates, and why
    └── weir.engine               dispatch to finish; vLLM's `llm_request` hangs below
        or weir.forward           the same at another replica, whose sidecar's span hangs below

At a request's time only what must be known at once is made: whether it is sampled, its ids, and
the header lines for the engine. The rest is kept as plain values. `spans` makes spans of them when
an exporter works off what has ended, many at a time. Prompts and answers are never recorded.

`gen_ai.*` are the names of OpenTelemetry's GenAI semantic conventions 0.1.0, their first release
apart from the general ones. What is known of HTTP has the names of the general ones, 1.44.0.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from typing import Final

import msgspec

from weir_core.route.types import Forward, Keep, Route
from weir_core.wire.fields import RequestBody, Usage
from weir_sidecar.outcomes import Outcome
from weir_sidecar.telemetry.sampling import Sampling
from weir_sidecar.telemetry.spans import CLIENT, INTERNAL, SERVER, Exporter, Span

MAX_TEXT: Final = 1024
"""Characters kept of a text that clients choose: they may be long, and many requests wait."""
_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_FAULTS: Final = frozenset(
    {Outcome.ENGINE_ERROR, Outcome.ENGINE_TIMEOUT, Outcome.INTERNAL_ERROR, Outcome.CUT}
)
_RANDOM: Final = random.Random()
_IDS_DRAWN: Final = 64
_LAST_ID: Final = (1 << 64) - 1
_ZEROS: Final = "0" * 16
_TRACEPARENT: Final = re.compile(
    "[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*|[ \t]*)"
)
_MAX_TRACEPARENT: Final = 512


class RequestTrace:
    """The spans-to-be of one request; instants are the sidecar's clock.

    Args:
        tracing: Takes this when the request has ended.
        method: The request's.
        path: The request's.
        arrival: When it came.
    """

    __slots__ = (
        "_address",
        "_arrival",
        "_attempt_end",
        "_body",
        "_by_min_share",
        "_class_name",
        "_dispatches",
        "_end",
        "_engine_id",
        "_engine_start",
        "_first_token_at",
        "_goes_to_peer",
        "_lost",
        "_method",
        "_operation",
        "_outcome",
        "_path",
        "_preempted",
        "_queue_end",
        "_queue_start",
        "_rank",
        "_route",
        "_route_end",
        "_route_start",
        "_routes",
        "_status",
        "_tenant",
        "_tracing",
        "_usage",
        "_was_admitted",
        "_was_placed",
        "ids",
        "parent_flags",
        "parent_id",
        "sampled",
        "state",
        "trace_id",
        "wall_offset_ns",
    )

    def __init__(self, tracing: Tracing, method: str, path: str, arrival: float) -> None:
        self._tracing = tracing
        self._method = method
        self._path = path[:MAX_TEXT]
        self._arrival = arrival
        self.ids = self.trace_id = self.parent_id = self.state = ""
        """`ids` holds those of the spans root, queue, route and engine."""
        self.parent_flags = self.wall_offset_ns = 0
        """Wall time is the sidecar's clock plus the offset."""
        self.sampled = False
        """Not sampled: only its ids travel on, so that the engine does not sample it either."""
        self._operation: str | None = None
        self._body: RequestBody | None = None
        self._class_name = self._tenant = ""
        self._was_admitted = self._was_placed = self._by_min_share = False
        self._rank = self._preempted = 0
        self._routes = self._dispatches = self._status = 0
        self._route_start = self._route_end = 0.0
        self._queue_start = self._queue_end = self._engine_start = self._end = 0.0
        self._attempt_end: float | None = None
        """When the last attempt ended; None where that is the request's end, too."""
        self._engine_id = self._address = ""
        self._goes_to_peer = False
        self._route: Route | None = None
        self._lost: list[Span] | None = None
        """Earlier routes and attempts; nearly all requests have none."""
        self._outcome = Outcome.INTERNAL_ERROR
        self._first_token_at: float | None = None
        self._usage: Usage | None = None

    def describe(self, operation: str | None, body: RequestBody) -> None:
        """Tell what was asked for, once the body is known."""
        if operation is None or not self.sampled:
            return
        model = body.model
        if model is not None and len(model) > MAX_TEXT:
            body = msgspec.structs.replace(body, model=model[:MAX_TEXT])
        self._operation = operation
        self._body = body

    def admitted(self, class_name: str, tenant: str) -> None:
        """Tell who asked, and for which class."""
        self._was_admitted = True
        self._class_name = class_name
        self._tenant = tenant[:MAX_TEXT]

    def placed(self, rank: int, preempted: int, by_min_share: bool) -> None:
        """Tell how the scheduler let it go to the engine; the first attempt counts."""
        if self._dispatches == 0:
            self._was_placed = True
            self._rank = rank
            self._preempted = preempted
            self._by_min_share = by_min_share

    def routed(self, start: float, end: float, route: Route | None = None) -> None:
        """Note the choice of who runs the request; there is no `route` where there was none."""
        if not self.sampled:
            return
        if self._routes:
            self._keep(self._routing(_new_id()))
        self._routes += 1
        self._route = route
        self._route_start = start
        self._route_end = end

    def dispatched(self, arrival: float, now: float, address: str, to_peer: bool = False) -> bytes:
        """Begin the span of an attempt; return the header lines that hang the next one below.

        Args:
            arrival: When the queue's span began.
            now: When it ended, and the attempt begins.
            address: Of the engine, or name of the replica.
            to_peer: It is another replica's sidecar.
        """
        if not self.sampled:
            return self._header_lines(self.ids[:16], "00")
        if self._dispatches == 0:
            self._queue_start = arrival
            self._queue_end = now
            self._engine_id = self.ids[48:64]
        else:
            lost = self._engine(now if self._attempt_end is None else self._attempt_end)
            lost.error = "tried again"
            self._keep(lost)
            self._attempt_end = None
            self._engine_id = _new_id()
        self._dispatches += 1
        self._goes_to_peer = to_peer
        self._engine_start = now
        self._address = address
        return self._header_lines(self._engine_id, "01")

    def lost(self, now: float) -> None:
        """Tell that the attempt ended without an answer; the request may wait for another.

        One for which no connection could be opened has no span, so it ends none.
        """
        if self._dispatches and self._attempt_end is None:
            self._attempt_end = now

    def finish(
        self,
        outcome: Outcome,
        status: int,
        end: float,
        *,
        first_byte_at: float | None,
        usage: Usage | None,
    ) -> None:
        """Tell how it ended, and hand this over."""
        if not self.sampled:
            return
        self._outcome = outcome
        self._status = status
        self._end = end
        self._first_token_at = first_byte_at
        self._usage = usage
        self._tracing.take(self)

    # ---- for exporters, when the request has ended

    @property
    def span_count(self) -> int:
        """How many spans `spans` makes."""
        queue = 1 if self._dispatches else 0
        return 1 + queue + self._routes + self._dispatches

    def spans(self) -> list[Span]:
        """Make the spans."""
        found = [self._root()]
        if self._dispatches:
            found.append(self._queue())
        if self._lost is not None:
            found += self._lost
        if self._routes:
            found.append(self._routing(self.ids[32:48]))
        if self._dispatches:
            engine = self._engine(self._end if self._attempt_end is None else self._attempt_end)
            if self._attempt_end is not None:
                engine.error = "lost"
            if self._first_token_at is not None:
                engine.first_token_ns = self._wall_ns(self._first_token_at)
            found.append(engine)
        return found

    def _root(self) -> Span:
        root = Span(self._method, self.ids[:16], self.parent_id, kind=SERVER)
        root.start_ns, root.end_ns = self._wall_ns(self._arrival), self._wall_ns(self._end)
        known = root.attributes
        known["http.request.method"] = self._method
        known["url.path"] = _text(self._path)
        if self._operation is not None and self._body is not None:
            _describe(root, self._operation, self._body)
        if self._was_admitted:
            known["weir.class"] = self._class_name
            known["weir.tenant"] = _text(self._tenant)
        self._describe_end(root)
        return root

    def _describe_end(self, root: Span) -> None:
        known, outcome, status = root.attributes, self._outcome.value, self._status
        known["weir.outcome"] = outcome
        if status:
            known["http.response.status_code"] = status
        if self._usage is not None:
            known["gen_ai.usage.input_tokens"] = self._usage.prompt_tokens
            known["gen_ai.usage.output_tokens"] = self._usage.output_tokens
        if "gen_ai.request.stream" in known and self._first_token_at is not None:
            known["gen_ai.response.time_to_first_chunk"] = self._first_token_at - self._arrival
        is_fault = self._outcome in _FAULTS or status >= 500
        if is_fault or status >= 400:
            known["error.type"] = outcome
        if is_fault:  # by the conventions for HTTP a server's 4xx is no error of its span
            root.error = outcome

    def _queue(self) -> Span:
        queue = self._child("weir.queue", self.ids[16:32], self._queue_start, self._queue_end)
        if self._was_placed:
            queue.attributes = {
                "weir.rank": self._rank,
                "weir.preempted": self._preempted,
                "weir.by_min_share": self._by_min_share,
            }
        return queue

    def _routing(self, span_id: str) -> Span:
        span = self._child("weir.route", span_id, self._route_start, self._route_end)
        route = self._route
        if isinstance(route, Keep | Forward):
            span.attributes = {
                "weir.route.reason": route.reason,
                "weir.route.candidates": msgspec.json.encode(route.candidates).decode(),
            }
        if isinstance(route, Forward):
            span.attributes["weir.route.replica"] = _text(route.replica)
            span.attributes["weir.route.hops"] = route.hops
        return span

    def _engine(self, end: float) -> Span:
        name = "weir.forward" if self._goes_to_peer else "weir.engine"
        engine = self._child(name, self._engine_id, self._engine_start, end, CLIENT)
        engine.attributes["server.address"] = self._address
        return engine

    def _child(
        self, name: str, span_id: str, start: float, end: float, kind: int = INTERNAL
    ) -> Span:
        child = Span(name, span_id, self.ids[:16], kind=kind)
        child.start_ns, child.end_ns = self._wall_ns(start), self._wall_ns(end)
        return child

    def _keep(self, lost: Span) -> None:
        if self._lost is None:
            self._lost = []
        self._lost.append(lost)

    def _wall_ns(self, instant: float) -> int:
        return int(instant * 1e9) + self.wall_offset_ns

    def _header_lines(self, span_id: str, flags: str) -> bytes:
        lines = f"traceparent: 00-{self.trace_id}-{span_id}-{flags}\r\n"
        if self.state:
            lines += f"tracestate: {self.state}\r\n"
        return lines.encode("latin-1")


class Tracing:
    """Begins the traces of requests, and hands finished ones on.

    Args:
        exporter: Where they go.
        sampling: Decides which requests have spans.
    """

    def __init__(self, exporter: Exporter, sampling: Sampling | None = None) -> None:
        self.exporter = exporter
        self._sampling = sampling or Sampling()
        self._ids: list[str] = []
        """Drawn before they are needed, for many requests at once."""
        bound = self._sampling.root_bound
        self._decides = bound is not None
        self._root_bound = bound or 0
        self._takes_all = self._root_bound > _LAST_ID

    def begin(
        self, method: str, path: str, parent: Mapping[str, str], *, arrival: float, now: float
    ) -> RequestTrace:
        """Begin a request's trace, below the client's span where it sent a traceparent.

        Args:
            method: The request's.
            path: The request's.
            parent: The client's trace headers.
            arrival: When the request came.
            now: The sidecar's clock.
        """
        found = RequestTrace(self, method, path, arrival)
        found.wall_offset_ns = time.time_ns() - int(now * 1e9)
        while not self._ids:
            self._ids = _draw_ids()
        ids = self._ids.pop()
        found.ids = ids[:64]
        found.trace_id = ids[64:]
        if parent:
            _read_parent(found, parent)
        if not self._decides or (found.parent_id and "tracestate" in parent):
            found.sampled, found.state = self._sampling.decide(method, path, found.trace_id, parent)
        elif found.parent_id:
            found.sampled = bool(found.parent_flags & 1)
        else:
            found.sampled = self._takes_all or int(found.trace_id[16:], 16) < self._root_bound
        return found

    def take(self, trace: RequestTrace) -> None:
        """Take the trace of a request that has ended."""
        self.exporter.take(trace)

    async def close(self) -> None:
        """Send what is left, within a bound."""
        await self.exporter.close()


def operation_of(path: str) -> str | None:
    """Return the GenAI operation behind a path; None for one that generates nothing."""
    return _OPERATIONS.get(path)


def _describe(root: Span, operation: str, body: RequestBody) -> None:
    known = root.attributes
    known["gen_ai.operation.name"] = operation
    known["gen_ai.provider.name"] = "vllm"
    root.name = operation
    if body.model is not None:
        model = known["gen_ai.request.model"] = _text(body.model)
        if model:
            root.name = f"{operation} {model}"
    if body.max_output_tokens is not None:
        known["gen_ai.request.max_tokens"] = body.max_output_tokens
    if body.temperature is not None:
        known["gen_ai.request.temperature"] = body.temperature
    if body.top_p is not None:
        known["gen_ai.request.top_p"] = body.top_p
    if body.streams:
        known["gen_ai.request.stream"] = True
    choices = body.sequences // body.prompts
    if choices > 1:
        known["gen_ai.request.choice.count"] = choices


def _read_parent(trace: RequestTrace, parent: Mapping[str, str]) -> None:
    """Note the span of the client, if its traceparent is one by W3C's rules."""
    line = parent.get("traceparent")
    if line is None or len(line) > _MAX_TRACEPARENT:
        return
    found = _TRACEPARENT.fullmatch(line)
    if found is None:
        return
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more.startswith("-")):
        return
    if trace_id == _ZEROS + _ZEROS or span_id == _ZEROS:
        return
    trace.trace_id = trace_id
    trace.parent_id = span_id
    trace.parent_flags = int(flags, 16)


def _draw_ids() -> list[str]:
    """Return ids of four spans and a trace for each of many requests; an id of zeros is none."""
    size = 48 * _IDS_DRAWN
    digits = _RANDOM.getrandbits(8 * size).to_bytes(size, "little").hex()
    ids = [digits[start : start + 96] for start in range(0, 2 * size, 96)]
    return [each for each in ids if _ZEROS not in each]


def _new_id() -> str:
    found = _ZEROS
    while found == _ZEROS:
        found = _RANDOM.getrandbits(64).to_bytes(8, "little").hex()
    return found


def _text(text: str) -> str:
    """Return a text as collectors take it: paths may hold bytes that are no UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
