"""Spans of a request, by OpenTelemetry's conventions for generative AI.

    chat MODEL                    the request, from arrival to finish
    ├── weir.queue                arrival to dispatch
    ├── weir.route                choosing who runs it
    └── weir.engine               dispatch to finish; vLLM's `llm_request` hangs below

Tracing is on when an OTLP endpoint is configured by the standard OTEL_* variables; otherwise no
tracer exists and a request costs nothing. Prompts and answers are never recorded.

Sampling is the SDK's. Its live spans are not used: each takes locks and copies on every call, and
four of them cost as much as all else that is done for a request. What there is to say is noted as
it happens, and becomes finished spans when the request has ended: by default in `otlp_json`, or by
the SDK's own exporter where OTEL_EXPORTER_OTLP_PROTOCOL says http/protobuf.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.re import parse_env_headers

from weir_core.wire.fields import RequestBody, Usage
from weir_sidecar.outcomes import Outcome
from weir_sidecar.settings import Identity
from weir_sidecar.telemetry.otlp_json import FLUSH_S, JsonExporter
from weir_sidecar.telemetry.spans import Attribute, Exporter, Note, wall_ns

log = logging.getLogger(__name__)

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
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
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_IDS: Final = RandomIdGenerator()
_SCOPE: Final = InstrumentationScope("weir_sidecar")
_SDK_ONLY: Final = ("CERTIFICATE", "CLIENT_CERTIFICATE", "COMPRESSION")
"""Settings for which the SDK's exporter is used."""


class RequestTrace:
    """The spans of one request; times are the sidecar's clock, turned into wall time at the end.

    Args:
        tracing: Takes the spans when the request has ended.
        root: The request's own span.
        wall_offset_ns: Wall time minus the sidecar's clock.
    """

    __slots__ = (
        "_engine",
        "_notes",
        "_place",
        "_root",
        "_sampled",
        "_tracing",
        "_wall_offset_ns",
    )

    def __init__(self, tracing: Tracing, root: Note, wall_offset_ns: int) -> None:
        self._tracing = tracing
        self._root = root
        self._notes = [root]
        self._wall_offset_ns = wall_offset_ns
        self._engine: Note | None = None
        self._place: dict[str, Attribute] = {}
        self._sampled = root.context.trace_flags.sampled
        """Not sampled: only its ids travel on, so that the engine does not sample it either."""

    def describe(self, operation: str | None, body: RequestBody) -> None:
        """Tell what was asked for, once the body is known."""
        if operation is None or not self._sampled:
            return
        choices = body.sequences // body.prompts
        known = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "vllm",
            "gen_ai.request.model": body.model,
            "gen_ai.request.max_tokens": body.max_output_tokens,
            "gen_ai.request.temperature": body.temperature,
            "gen_ai.request.top_p": body.top_p,
            "gen_ai.request.choice.count": choices if choices > 1 else None,
        }
        self._root.attributes.update({k: v for k, v in known.items() if v is not None})
        self._root.name = f"{operation} {body.model}" if body.model else operation

    def admitted(self, class_name: str, tenant: str) -> None:
        """Tell who asked, and for which class."""
        if self._sampled:
            self._root.attributes["weir.class"] = class_name
            self._root.attributes["weir.tenant"] = tenant

    def placed(self, rank: int, preempted: int, by_min_share: bool) -> None:
        """Tell how the scheduler let it go to the engine."""
        if self._sampled:
            self._place = {
                "weir.rank": rank,
                "weir.preempted": preempted,
                "weir.by_min_share": by_min_share,
            }

    def routed(self, start: float, end: float) -> None:
        """Record the choice of who runs the request."""
        if self._sampled:
            self._child("weir.route", start).end = end

    def dispatched(self, arrival: float, now: float, address: str) -> bytes:
        """Begin the engine's span; return the header lines that hang the engine's own below."""
        if not self._sampled:
            return _header_lines(self._root.context)
        if self._engine is None:
            queue = self._child("weir.queue", arrival)
            queue.end = now
            queue.attributes.update(self._place)
        else:
            self._engine.status = Status(StatusCode.ERROR, "tried again")
            self._engine.end = now
        self._engine = self._child("weir.engine", now, kind=SpanKind.CLIENT)
        self._engine.attributes["server.address"] = address
        return _header_lines(self._engine.context)

    def finish(
        self,
        outcome: Outcome,
        status: int,
        end: float,
        *,
        first_byte_at: float | None,
        usage: Usage | None,
    ) -> None:
        """Tell how it ended, and hand the spans over."""
        if not self._sampled:
            return
        if self._engine is not None:
            if first_byte_at is not None:
                self._engine.events = (("first_token", first_byte_at),)
            self._engine.end = end
        root = self._root
        root.end = end
        root.attributes["weir.outcome"] = outcome.value
        root.attributes["http.response.status_code"] = status
        if usage is not None:
            root.attributes["gen_ai.usage.input_tokens"] = usage.prompt_tokens
            root.attributes["gen_ai.usage.output_tokens"] = usage.output_tokens
        if outcome in _FAULTS:
            root.attributes["error.type"] = outcome.value
            root.status = Status(StatusCode.ERROR, outcome.value)
        self._tracing.take(self._notes, self._wall_offset_ns)

    def _child(self, name: str, start: float, kind: SpanKind = SpanKind.INTERNAL) -> Note:
        root = self._root.context
        context = SpanContext(
            root.trace_id,
            _IDS.generate_span_id(),
            is_remote=False,
            trace_flags=root.trace_flags,
            trace_state=root.trace_state,
        )
        note = Note(name, context, root, kind, start)
        self._notes.append(note)
        return note


class SdkExporter:
    """Hands finished spans to the SDK's processor.

    Args:
        processor: Where they go.
        resource: Who we are.
    """

    def __init__(self, processor: SpanProcessor, resource: Resource | None = None) -> None:
        self._processor = processor
        self._resource = resource or Resource.create()

    def take(self, notes: list[Note], wall_offset_ns: int) -> None:
        """Make spans of a finished request's notes."""
        for note in notes:
            span = ReadableSpan(
                note.name,
                context=note.context,
                parent=note.parent,
                resource=self._resource,
                attributes=note.attributes,
                events=[
                    Event(name, timestamp=wall_ns(at, wall_offset_ns)) for name, at in note.events
                ],
                kind=note.kind,
                status=note.status,
                start_time=wall_ns(note.start, wall_offset_ns),
                end_time=wall_ns(note.end, wall_offset_ns),
                instrumentation_scope=_SCOPE,
            )
            self._processor.on_end(span)

    async def close(self) -> None:
        """Send what is left, within a bound: a collector that is away must not delay the exit."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._processor.shutdown()
            loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="flush-spans", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), FLUSH_S)
        except TimeoutError:
            log.warning("spans were lost: the collector did not take them in time")


class Tracing:
    """Begins the spans of requests, and hands finished ones on.

    Args:
        exporter: Where they go.
        sampler: Decides which requests have any.
    """

    def __init__(self, exporter: Exporter, *, sampler: Sampler = DEFAULT_ON) -> None:
        self._exporter = exporter
        self._sampler = sampler
        self.take = exporter.take
        self.close = exporter.close

    def begin(
        self, method: str, path: str, parent: Mapping[str, str], *, arrival: float, now: float
    ) -> RequestTrace:
        """Begin a request's span, below the client's where it sent a traceparent."""
        wall_offset_ns = time.time_ns() - int(now * 1e9)
        above = _PROPAGATOR.extract(parent) if parent else None
        remote = trace.get_current_span(above).get_span_context() if above else None
        if remote is not None and not remote.is_valid:
            above = remote = None
        trace_id = remote.trace_id if remote is not None else _IDS.generate_trace_id()
        attributes: dict[str, Attribute] = {"http.request.method": method, "url.path": path}
        verdict = self._sampler.should_sample(
            above, trace_id, method, SpanKind.SERVER, attributes=attributes
        )
        sampled = verdict.decision is Decision.RECORD_AND_SAMPLE
        context = SpanContext(
            trace_id,
            _IDS.generate_span_id(),
            is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT),
            trace_state=verdict.trace_state,
        )
        root = Note(method, context, remote, SpanKind.SERVER, arrival, attributes=attributes)
        return RequestTrace(self, root, wall_offset_ns)


def operation_of(path: str) -> str | None:
    """Return the GenAI operation behind a path; None for one that generates nothing."""
    return _OPERATIONS.get(path)


def configured(env: Mapping[str, str], identity: Identity) -> Tracing | None:
    """Return tracing as the OTEL_* variables want it; None when they name no endpoint."""
    off = env.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or env.get("OTEL_TRACES_EXPORTER") == "none" or _endpoint(env) is None:
        return None
    resource = Resource.create(
        {
            "service.name": env.get("OTEL_SERVICE_NAME", identity.service),
            "service.namespace": identity.namespace,
            "service.instance.id": identity.pod or identity.pool,
        }
    )
    exporter = _exporter(env, resource)
    if exporter is None:
        return None
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    return Tracing(exporter, sampler=provider.sampler)  # as OTEL_TRACES_SAMPLER says


def _exporter(env: Mapping[str, str], resource: Resource) -> Exporter | None:
    protocol = _setting(env, "PROTOCOL") or "http/json"
    if protocol not in ("http/json", "http/protobuf"):
        log.error("no traces: OTEL_EXPORTER_OTLP_PROTOCOL may be http/json or http/protobuf")
        return None
    if protocol == "http/json" and not any(_setting(env, name) for name in _SDK_ONLY):
        endpoint = _endpoint(env)
        assert endpoint is not None  # `configured` has looked
        headers = parse_env_headers(_setting(env, "HEADERS"), liberal=True)
        return JsonExporter(endpoint, headers, float(_setting(env, "TIMEOUT") or 10), resource)
    # Only who wants it pays for the exporter's imports.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return SdkExporter(BatchSpanProcessor(OTLPSpanExporter()), resource)


def _endpoint(env: Mapping[str, str]) -> str | None:
    """Return the address spans are posted to; the general one is a base to which a path belongs."""
    whole, base = (env.get(name) for name in _ENDPOINTS)
    if whole:
        return whole
    return f"{base.rstrip('/')}/v1/traces" if base else None


def _setting(env: Mapping[str, str], name: str) -> str:
    """Return a variable of the exporter, the one for traces before the general one."""
    return env.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or env.get(f"OTEL_EXPORTER_OTLP_{name}", "")


def _header_lines(context: SpanContext) -> bytes:
    flags = int(context.trace_flags)
    line = f"traceparent: 00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}\r\n"
    if context.trace_state:
        line += f"tracestate: {context.trace_state.to_header()}\r\n"
    return line.encode("latin-1")
