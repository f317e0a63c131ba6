"""Spans as JSON at a collector of the test's own."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tests.integration.sidecar.harness import House, chat, eventually
from weir_sidecar.settings import Identity
from weir_sidecar.telemetry.otlp_json import MAX_WAITING_SPANS, JsonExporter
from weir_sidecar.telemetry.spans import Note
from weir_sidecar.telemetry.tracing import SdkExporter, configured
from weir_sim.mock_engine import Profile


class Collector:
    """Takes batches; answers with the statuses it was told, then with 200."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.statuses: list[int] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def spans(self) -> list[dict[str, Any]]:
        return [
            span
            for batch in self.batches
            for resource in batch["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]

    async def take(self, request: web.Request) -> web.Response:
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.batches.append(await request.json())
            self.headers.append(dict(request.headers))
        return web.Response(status=status)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.port = runner.addresses[0][1]
    yield found
    await runner.cleanup()


def note(name: str = "chat tiny") -> Note:
    context = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    above = SpanContext(1, 3, is_remote=True)
    return Note(
        name, context, above, SpanKind.SERVER, 1.0, 2.5,
        {"text": "x", "count": 7, "ratio": 0.5, "flag": True},
        (("first_token", 1.5),), Status(StatusCode.ERROR, "engine_error"),
    )  # fmt: skip


def exporter(url: str) -> JsonExporter:
    return JsonExporter(f"{url}/v1/traces", {}, 5.0, Resource({"service.name": "weir"}))


def as_protobuf(batch: dict[str, Any]) -> ExportTraceServiceRequest:
    """Read a batch by OTLP's own definitions; unknown fields are errors.

    OTLP writes ids in hex where protobuf's JSON has base64.
    """
    copy = json.loads(json.dumps(batch))
    for span in copy["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for key in ("traceId", "spanId", "parentSpanId"):
            if key in span:
                span[key] = base64.b64encode(bytes.fromhex(span[key])).decode()
    request = ExportTraceServiceRequest()
    ParseDict(copy, request)
    return request


async def test_a_batch_is_what_otlp_defines(collector: Collector) -> None:
    sent = exporter(collector.url)
    sent.take([note()], wall_offset_ns=10**18)
    await sent.close()
    request = as_protobuf(collector.batches[0])
    assert request.resource_spans[0].resource.attributes[0].value.string_value == "weir"
    span = request.resource_spans[0].scope_spans[0].spans[0]
    assert (span.name, span.kind, span.parent_span_id) == ("chat tiny", 2, b"\0" * 7 + b"\3")
    assert span.start_time_unix_nano == 10**18 + 10**9
    assert span.end_time_unix_nano - span.start_time_unix_nano == 1_500_000_000
    assert span.events[0].name == "first_token"
    assert (span.status.code, span.status.message) == (2, "engine_error")
    kinds = {a.key: a.value.WhichOneof("value") for a in span.attributes}
    assert kinds == {
        "text": "string_value",
        "count": "int_value",
        "ratio": "double_value",
        "flag": "bool_value",
    }


async def test_a_sidecars_spans_arrive_by_themselves(house: House, collector: Collector) -> None:
    await house.mock_engine(Profile())
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=blue",
    }
    running = await house.sidecar(tracing=configured(env, Identity(service="chat")))
    await running.post(json=chat())
    await eventually(lambda: len(collector.spans) == 4)
    names = {span["name"] for span in collector.spans}
    assert names == {"chat tiny", "weir.queue", "weir.route", "weir.engine"}
    assert collector.headers[0]["x-team"] == "blue"


async def test_a_busy_collector_is_tried_again_and_one_that_refuses_is_not(
    collector: Collector,
) -> None:
    sent = exporter(collector.url)
    collector.statuses = [503]
    sent.take([note("again")], 0)
    await eventually(lambda: bool(collector.spans))
    collector.statuses = [400]
    sent.take([note("refused")], 0)
    await eventually(lambda: not collector.statuses)
    await sent.close()
    assert [span["name"] for span in collector.spans] == ["again"]


async def test_a_collector_that_is_away_costs_neither_time_nor_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as silent:  # accepts and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sent = exporter(f"http://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(MAX_WAITING_SPANS + 100):
            sent.take([note()], 0)
        await asyncio.wait_for(sent.close(), timeout=60)
    lost = [getattr(record, "spans", 0) for record in caplog.records]
    assert sum(lost) == MAX_WAITING_SPANS + 100


async def test_the_sdks_exporter_is_used_where_it_is_asked_for() -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    tracing = configured(env, Identity())
    assert tracing is not None
    assert isinstance(tracing.close.__self__, SdkExporter)  # type: ignore[attr-defined]
    await asyncio.wait_for(tracing.close(), timeout=5)


def test_a_protocol_that_is_not_spoken_is_said_to_be_so(caplog: pytest.LogCaptureFixture) -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    assert configured(env, Identity()) is None
    assert "http/json or http/protobuf" in caplog.text
