"""Tracing as the OTEL_* variables want it.

It is on when an OTLP endpoint is configured by the standard variables; otherwise no tracer exists
and a request costs nothing. The spans and their names are in `request_trace`.

The SDK's live spans are not used: each takes locks and copies on every call, and four of them cost
as much as all else that is done for a request. What is kept of a request becomes finished spans
when it has ended: by default in `otlp_json`, or by the SDK's own exporter where
OTEL_EXPORTER_OTLP_PROTOCOL says http/protobuf.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)
from opentelemetry.util.re import parse_env_headers

from weir_sidecar.settings import Identity
from weir_sidecar.telemetry.otlp_json import FLUSH_S, JsonExporter
from weir_sidecar.telemetry.request_trace import RequestTrace, Tracing
from weir_sidecar.telemetry.sampling import Sampling
from weir_sidecar.telemetry.spans import CLIENT, INTERNAL, SERVER, Exporter, Span

log = logging.getLogger(__name__)

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_KINDS: Final = {
    INTERNAL: SpanKind.INTERNAL,
    SERVER: SpanKind.SERVER,
    CLIENT: SpanKind.CLIENT,
}
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSET: Final = Status(StatusCode.UNSET)
_SCOPE: Final = InstrumentationScope("weir_sidecar")
_SDK_ONLY: Final = ("CERTIFICATE", "CLIENT_CERTIFICATE", "COMPRESSION")
"""Settings for which the SDK's exporter is used."""


class SdkExporter:
    """Hands finished spans to the SDK's processor.

    Args:
        processor: Where they go.
        resource: Who we are.
    """

    def __init__(self, processor: SpanProcessor, resource: Resource | None = None) -> None:
        self._processor = processor
        self._resource = resource or Resource.create()

    def take(self, trace: RequestTrace) -> None:
        """Make the SDK's spans of one request's trace."""
        state = TraceState.from_header([trace.state])
        for span in trace.spans():
            self._processor.on_end(self._readable(span, trace, state))

    def _readable(self, span: Span, trace: RequestTrace, state: TraceState) -> ReadableSpan:
        trace_id = int(trace.trace_id, 16)
        own = SpanContext(trace_id, int(span.span_id, 16), False, _SAMPLED, state)
        parent = None
        if span.parent_id:
            is_remote = span.kind == SERVER
            flags = TraceFlags(trace.parent_flags) if is_remote else _SAMPLED
            parent = SpanContext(trace_id, int(span.parent_id, 16), is_remote, flags, state)
        events = (
            [Event("first_token", timestamp=span.first_token_ns)] if span.first_token_ns else []
        )
        return ReadableSpan(
            span.name,
            context=own,
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            events=events,
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else _UNSET,
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=_SCOPE,
        )

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
    return Tracing(exporter, Sampling(provider.sampler))  # as OTEL_TRACES_SAMPLER says


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
