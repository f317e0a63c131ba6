"""Spans of a request, by OpenTelemetry's conventions for generative AI.

    chat MODEL                    the request, from arrival to finish
    ├── weir.queue                arrival to dispatch
    ├── weir.route                choosing who runs it
    └── weir.engine               dispatch to finish; vLLM's `llm_request` hangs below

Tracing is on when an OTLP endpoint is configured by the standard OTEL_* variables; otherwise no
tracer exists and a request costs nothing. Prompts and answers are never recorded.
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
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from weir_core.wire.openai import RequestFields, Usage
from weir_sidecar.outcomes import Outcome
from weir_sidecar.settings import Identity

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
FLUSH_S: Final = 2.0
"""Spans still unsent at exit get this long."""


class RequestTrace:
    """The spans of one request; times are the sidecar's clock, turned into wall time here."""

    def __init__(self, tracer: trace.Tracer, span: Span, wall_offset_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span)
        self._wall_offset_ns = wall_offset_ns
        self._engine: Span | None = None
        self._sampled = span.is_recording()
        """Not sampled: only its ids travel on, so that the engine does not sample it either."""

    def describe(self, operation: str | None, fields: RequestFields) -> None:
        """Tell what was asked for, once the body is known."""
        if operation is None or not self._sampled:
            return
        known = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "vllm",
            "gen_ai.request.model": fields.model,
            "gen_ai.request.max_tokens": fields.output_limit_tokens,
            "gen_ai.request.temperature": fields.temperature,
            "gen_ai.request.top_p": fields.top_p,
            "gen_ai.request.choice.count": fields.n,
        }
        self._span.set_attributes({k: v for k, v in known.items() if v is not None})
        self._span.update_name(f"{operation} {fields.model}" if fields.model else operation)

    def routed(self, start: float, end: float) -> None:
        """Record the choice of who runs the request."""
        if self._sampled:
            self._child("weir.route", start).end(self._wall(end))

    def dispatched(self, arrival: float, now: float, address: str) -> bytes:
        """Begin the engine's span; return the header lines that hang the engine's own below."""
        if not self._sampled:
            return _header_lines(self._span)
        if self._engine is None:
            self._child("weir.queue", arrival).end(self._wall(now))
        else:
            self._engine.set_status(StatusCode.ERROR, "tried again")
            self._engine.end(self._wall(now))
        self._engine = self._child("weir.engine", now, kind=SpanKind.CLIENT)
        self._engine.set_attribute("server.address", address)
        return _header_lines(self._engine)

    def finish(
        self,
        outcome: Outcome,
        status: int,
        end: float,
        *,
        first_byte_at: float | None,
        usage: Usage | None,
    ) -> None:
        """Tell how it ended."""
        if not self._sampled:
            return
        if self._engine is not None:
            if first_byte_at is not None:
                self._engine.add_event("first_token", timestamp=self._wall(first_byte_at))
            self._engine.end(self._wall(end))
        span = self._span
        span.set_attribute("weir.outcome", outcome.value)
        span.set_attribute("http.response.status_code", status)
        if usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)
        if outcome in _FAULTS:
            span.set_attribute("error.type", outcome.value)
            span.set_status(StatusCode.ERROR, outcome.value)
        span.end(self._wall(end))

    def _child(self, name: str, start: float, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        return self._tracer.start_span(
            name, context=self._context, kind=kind, start_time=self._wall(start)
        )

    def _wall(self, instant: float) -> int:
        return int(instant * 1e9) + self._wall_offset_ns


class Tracing:
    """Begins the spans of requests.

    Args:
        provider: Where spans go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("weir_sidecar")

    def begin(
        self, method: str, path: str, parent: Mapping[str, str], *, arrival: float, now: float
    ) -> RequestTrace:
        """Begin a request's span, below the client's where it sent a traceparent."""
        wall_offset_ns = time.time_ns() - int(now * 1e9)
        span = self._tracer.start_span(
            method,
            context=_PROPAGATOR.extract(parent) if parent else None,
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": path},
            start_time=int(arrival * 1e9) + wall_offset_ns,
        )
        return RequestTrace(self._tracer, span, wall_offset_ns)

    async def close(self) -> None:
        """Send what is left, within a bound: a collector that is away must not delay the exit."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="flush-spans", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), FLUSH_S)
        except TimeoutError:
            log.warning("spans were lost: the collector did not take them in time")


def operation_of(path: str) -> str | None:
    """Return the GenAI operation behind a path; None for one that generates nothing."""
    return _OPERATIONS.get(path)


def configured(env: Mapping[str, str], identity: Identity) -> Tracing | None:
    """Return tracing as the OTEL_* variables want it; None when they name no endpoint."""
    off = env.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or env.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    if not any(env.get(name) for name in _ENDPOINTS):
        return None
    # Only who traces pays for the exporter's imports.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create(
        {
            "service.name": env.get("OTEL_SERVICE_NAME", identity.service),
            "service.namespace": identity.namespace,
            "service.instance.id": identity.pod or identity.pool,
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _header_lines(span: Span) -> bytes:
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, trace.set_span_in_context(span))
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
