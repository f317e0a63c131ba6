"""Spans as JSON at a collector of the test's own."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource

from tests.integration.sidecar.harness import House, chat, eventually
from weir_core.wire.fields import RequestBody, Usage
from weir_sidecar.outcomes import Outcome
from weir_sidecar.settings import Identity
from weir_sidecar.telemetry.otlp_json import BATCH_SPANS, MAX_WAITING_SPANS, JsonExporter
from weir_sidecar.telemetry.request_trace import MAX_TEXT, RequestTrace, Tracing
from weir_sidecar.telemetry.tracing import SdkExporter, configured
from weir_sim.mock_engine import Profile

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Takes batches; answers with the statuses it was told, then with 200."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.statuses: list[int] = []
        self.answers = asyncio.Event()
        self.answers.set()
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
        await self.answers.wait()
        return web.Response(status=status)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/traces", found.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.port = runner.addresses[0][1]
    yield found
    await runner.cleanup()


def ended(
    sent: JsonExporter, model: str = "tiny", path: str = "/v1/chat/completions"
) -> RequestTrace:
    """Trace a request that was refused, which has one span."""
    trace = Tracing(sent).begin("POST", path, {"traceparent": PARENT}, arrival=1.0, now=1.0)
    trace.describe("chat", RequestBody(model=model, temperature=0.5))
    trace.finish(Outcome.ENGINE_ERROR, 502, 2.5, first_byte_at=None, usage=None)
    return trace


def dispatched(sent: JsonExporter) -> RequestTrace:
    """Trace a request that the engine answered, which has four."""
    trace = Tracing(sent).begin("POST", "/v1/embeddings", {}, arrival=1.0, now=1.0)
    trace.placed(100, 0, by_min_share=True)
    trace.routed(1.5, 1.5)
    trace.dispatched(1.0, 1.5, "engine")
    trace.finish(Outcome.OK, 200, 2.5, first_byte_at=2.0, usage=Usage(7, 5))
    return trace


def lost(caplog: pytest.LogCaptureFixture) -> int:
    return sum(getattr(record, "spans", 0) for record in caplog.records)


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
    earliest = time.time_ns()
    ended(sent)
    latest = time.time_ns()
    await sent.close()
    request = as_protobuf(collector.batches[0])
    assert request.resource_spans[0].resource.attributes[0].value.string_value == "weir"
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert (span.name, span.kind) == ("chat tiny", 2)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT[3:35], PARENT[36:52])
    assert earliest <= span.start_time_unix_nano <= latest
    assert span.end_time_unix_nano - span.start_time_unix_nano == 1_500_000_000
    assert (span.status.code, span.status.message) == (2, "engine_error")
    kinds = {a.key: a.value.WhichOneof("value") for a in span.attributes}
    assert kinds["gen_ai.request.model"] == "string_value"
    assert kinds["http.response.status_code"] == "int_value"
    assert kinds["gen_ai.request.temperature"] == "double_value"


async def test_the_spans_of_a_request_hang_together(collector: Collector) -> None:
    sent = exporter(collector.url)
    trace = dispatched(sent)
    await sent.close()
    request = as_protobuf(collector.batches[0])
    root, *children = request.resource_spans[0].scope_spans[0].spans
    assert {child.parent_span_id for child in children} == {root.span_id}
    assert {child.trace_id.hex() for child in children} == {trace.trace_id}
    queue, route, engine = children
    assert [child.name for child in children] == ["weir.queue", "weir.route", "weir.engine"]
    kinds = {a.key: a.value.WhichOneof("value") for a in queue.attributes}
    assert kinds == {
        "weir.rank": "int_value",
        "weir.preempted": "int_value",
        "weir.by_min_share": "bool_value",
    }
    assert queue.end_time_unix_nano == route.start_time_unix_nano == engine.start_time_unix_nano
    assert engine.kind == 3
    assert [event.name for event in engine.events] == ["first_token"]
    assert engine.events[0].time_unix_nano - engine.start_time_unix_nano == 500_000_000
    assert engine.end_time_unix_nano == root.end_time_unix_nano


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param('a "b" \\ \n ü 漢', 'a "b" \\ \n ü 漢', id="what JSON escapes"),
        pytest.param("a\udcff", "a?", id="bytes that are no UTF-8"),
        pytest.param("x" * 100_000, "x" * MAX_TEXT, id="too long to be kept while many wait"),
    ],
)
async def test_any_text_of_a_client_arrives(collector: Collector, text: str, told: str) -> None:
    sent = exporter(collector.url)
    ended(sent, model=text, path=text)
    await sent.close()
    (span,) = as_protobuf(collector.batches[0]).resource_spans[0].scope_spans[0].spans
    known = {a.key: a.value.string_value for a in span.attributes}
    assert (known["gen_ai.request.model"], known["url.path"]) == (told, told)
    assert span.name == f"chat {told}"


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
    ended(sent, "again")
    await eventually(lambda: bool(collector.spans))
    collector.statuses = [400]
    ended(sent, "refused")
    await eventually(lambda: not collector.statuses)
    await sent.close()
    assert [span["name"] for span in collector.spans] == ["chat again"]


async def test_a_collector_that_is_away_costs_neither_time_nor_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as silent:  # accepts and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sent = exporter(f"http://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(MAX_WAITING_SPANS + 100):
            ended(sent)
        await asyncio.wait_for(sent.close(), timeout=60)
    assert lost(caplog) == MAX_WAITING_SPANS + 100


async def test_what_waits_is_bounded_in_spans_and_a_request_is_dropped_whole(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    sent = exporter(collector.url)
    ended(sent)
    for _ in range(MAX_WAITING_SPANS // 4):
        dispatched(sent)  # the last is one span too many
    await eventually(lambda: len(collector.spans) == MAX_WAITING_SPANS - 3, timeout_s=60)
    await sent.close()
    assert lost(caplog) == 4
    traces = Counter(span["traceId"] for span in collector.spans)
    assert Counter(traces.values()) == {4: MAX_WAITING_SPANS // 4 - 1, 1: 1}


async def test_closing_sends_what_waits_and_what_is_under_way(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    sent = exporter(collector.url)
    collector.answers.clear()
    for _ in range(BATCH_SPANS // 4):
        dispatched(sent)
    await eventually(lambda: bool(collector.batches))
    ended(sent)
    closing = asyncio.create_task(sent.close())
    await asyncio.sleep(0)
    collector.answers.set()
    await closing
    assert len({span["spanId"] for span in collector.spans}) == BATCH_SPANS + 1
    assert len(collector.spans) == BATCH_SPANS + 1
    assert lost(caplog) == 0


async def test_an_exporter_that_broke_sends_again(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    sent = exporter(collector.url)
    headers, sent._headers = sent._headers, {"x": "a\nb"}  # the HTTP library refuses to send it
    ended(sent)
    await eventually(lambda: sent._task is not None and sent._task.done())
    sent._headers = headers
    ended(sent, "again")
    await sent.close()
    assert [span["name"] for span in collector.spans] == ["chat again"]
    assert lost(caplog) == 1


async def test_the_sdks_exporter_is_used_where_it_is_asked_for() -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    tracing = configured(env, Identity())
    assert tracing is not None
    assert isinstance(tracing.exporter, SdkExporter)
    await asyncio.wait_for(tracing.close(), timeout=5)


def test_a_protocol_that_is_not_spoken_is_said_to_be_so(caplog: pytest.LogCaptureFixture) -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    assert configured(env, Identity()) is None
    assert "http/json or http/protobuf" in caplog.text
