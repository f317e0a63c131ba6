"""One span per request, with children for queue, route and engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from tests.integration.sidecar.harness import CHUNK, HEAD, PLAIN, House, Wire, chat, eventually
from weir_sidecar.inflight import State
from weir_sidecar.settings import Identity
from weir_sidecar.telemetry.request_trace import Tracing
from weir_sidecar.telemetry.tracing import SdkExporter, configured
from weir_sim.mock_engine import Profile

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Spans:
    """What was exported, by name."""

    exporter: InMemorySpanExporter
    tracing: Tracing

    def named(self, name: str) -> ReadableSpan:
        return next(span for span in self.exporter.get_finished_spans() if span.name == name)


@pytest.fixture
def spans() -> Spans:
    exporter = InMemorySpanExporter()
    return Spans(exporter, Tracing(SdkExporter(SimpleSpanProcessor(exporter))))


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


async def test_a_chat_has_its_spans_and_the_genai_attributes(house: House, spans: Spans) -> None:
    await house.mock_engine(Profile(output_tokens=5))
    running = await house.sidecar(tracing=spans.tracing)
    await running.post(json=chat(max_tokens=5, temperature=0.5), headers={"traceparent": PARENT})
    await running.ended(1)
    server = spans.named("chat tiny")
    assert server.kind is SpanKind.SERVER
    assert server.parent is not None
    assert server.parent.span_id == 0xB7AD6B7169203331
    got = attributes(server)
    assert got.pop("gen_ai.usage.input_tokens")
    assert got == {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.output_tokens": 5,
        "weir.class": "standard",
        "weir.outcome": "ok",
        "weir.tenant": "anonymous",
    }
    children = [spans.named(name) for name in ("weir.queue", "weir.route", "weir.engine")]
    assert {child.parent and child.parent.span_id for child in children} == {server.context.span_id}
    assert [event.name for event in spans.named("weir.engine").events] == ["first_token"]


async def test_the_genai_attributes_are_those_of_the_conventions(
    house: House, spans: Spans
) -> None:
    await house.mock_engine(Profile(output_tokens=5))
    running = await house.sidecar(tracing=spans.tracing)
    await running.post(json=chat(max_tokens=5, temperature=0.5, top_p=0.9, n=2, stream=True))
    await running.ended(1)
    names = {name for name in attributes(spans.named("chat tiny")) if name.startswith("gen_ai.")}
    assert {
        "gen_ai.provider.name",
        "gen_ai.request.top_p",
        "gen_ai.request.choice.count",
        "gen_ai.request.stream",
        "gen_ai.response.time_to_first_chunk",
    } <= names
    conventions = {
        value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")
    }
    assert names <= conventions


async def test_queue_ends_where_engine_begins_inside_the_request(
    house: House, spans: Spans
) -> None:
    await house.mock_engine(Profile())
    running = await house.sidecar(tracing=spans.tracing)
    await running.post(json=chat())
    await running.ended(1)
    server, queue, engine = (spans.named(n) for n in ("chat tiny", "weir.queue", "weir.engine"))
    instants = [
        server.start_time,
        queue.start_time,
        queue.end_time,
        engine.start_time,
        engine.end_time,
        server.end_time,
    ]
    assert instants == sorted(instant or 0 for instant in instants)
    assert server.start_time == queue.start_time


async def test_the_engine_gets_the_engine_spans_id(house: House, spans: Spans) -> None:
    engine = await house.mock_engine(Profile())
    running = await house.sidecar(tracing=spans.tracing)
    await running.post(json=chat(), headers={"traceparent": PARENT})
    await running.ended(1)
    context = spans.named("weir.engine").context
    assert context is not None
    sent = {k.lower(): v for k, v in engine.seen_headers.items()}["traceparent"]
    assert sent == f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


@pytest.mark.parametrize("flags", [pytest.param("01", id="sampled"), pytest.param("00", id="not")])
async def test_a_tracestate_goes_on_to_the_engine(house: House, spans: Spans, flags: str) -> None:
    engine = await house.mock_engine(Profile())
    running = await house.sidecar(tracing=spans.tracing)
    headers = {"traceparent": f"{PARENT[:-2]}{flags}", "tracestate": "vendor=1,other=2"}
    await running.post(json=chat(), headers=headers)
    sent = {k.lower(): v for k, v in engine.seen_headers.items()}
    assert sent["tracestate"] == "vendor=1,other=2"


@pytest.mark.parametrize(
    "traceparent",
    [
        pytest.param(f"{PARENT}-more", id="more than its version has"),
        pytest.param(PARENT.replace("b7ad6b7169203331", "0" * 16), id="a span of zeros"),
        pytest.param("nonsense", id="nonsense"),
    ],
)
async def test_a_traceparent_that_is_none_begins_a_trace(
    house: House, spans: Spans, traceparent: str
) -> None:
    engine = await house.mock_engine(Profile())
    running = await house.sidecar(tracing=spans.tracing)
    await running.post(json=chat(), headers={"traceparent": traceparent, "tracestate": "a=1"})
    await running.ended(1)
    server = spans.named("chat tiny")
    assert server.parent is None
    sent = {k.lower(): v for k, v in engine.seen_headers.items()}
    assert sent["traceparent"].startswith(f"00-{server.context.trace_id:032x}-")
    assert "tracestate" not in sent


async def test_without_tracing_the_clients_traceparent_passes_through(house: House) -> None:
    engine = await house.mock_engine(Profile())
    running = await house.sidecar()
    await running.post(json=chat(), headers={"traceparent": PARENT})
    assert {k.lower(): v for k, v in engine.seen_headers.items()}["traceparent"] == PARENT


async def test_a_request_that_is_not_sampled_passes_that_on(house: House, spans: Spans) -> None:
    engine = await house.mock_engine(Profile())
    running = await house.sidecar(tracing=spans.tracing)
    await running.post(json=chat(), headers={"traceparent": PARENT[:-2] + "00"})
    await running.ended(1)
    sent = {k.lower(): v for k, v in engine.seen_headers.items()}["traceparent"]
    assert (sent[:36], sent[-2:]) == (PARENT[:36], "00")
    assert spans.exporter.get_finished_spans() == ()


async def test_a_refused_request_has_a_span_that_says_why(house: House, spans: Spans) -> None:
    running = await house.sidecar(ready=False, tracing=spans.tracing)
    await running.post(json=chat())
    await running.ended(1)
    got = attributes(spans.named("chat tiny"))
    assert (got["weir.outcome"], got["http.response.status_code"]) == ("rejected_no_endpoints", 503)


async def test_a_broken_answer_is_an_error_of_its_span(house: House, spans: Spans) -> None:
    await house.mock_engine(Profile(cut_after_tokens=2, output_tokens=5))
    running = await house.sidecar(tracing=spans.tracing)
    await running.broken(json=chat(stream=True))
    await running.ended(1)
    server = spans.named("chat tiny")
    assert server.status.status_code is StatusCode.ERROR
    assert attributes(server)["error.type"] == "engine_error"


async def test_a_client_that_leaves_was_told_no_status_of_an_attempt_that_was_lost(
    house: House, spans: Spans
) -> None:
    async def dying(wire: Wire) -> None:
        engine.healthy = False
        await wire.send(b"HTTP/1.1 500 Oh\r\nContent-Length: 3\r\n\r\nEOF")

    house.facts()
    engine = await house.raw_engine(dying)
    running = await house.sidecar(tracing=spans.tracing)
    asking = asyncio.create_task(running.post(json=chat()))
    await eventually(
        lambda: not running.sidecar.driver.has_engine and bool(running.sidecar.driver.waiting())
    )
    asking.cancel()
    assert await running.ended(1) == {"client_gone": 1}
    server = spans.named("chat tiny")
    assert server.status.status_code is StatusCode.UNSET
    assert "http.response.status_code" not in attributes(server)
    assert "error.type" not in attributes(server)
    assert spans.named("weir.engine").status.description == "lost"


async def test_a_client_that_leaves_a_stream_had_its_status(house: House, spans: Spans) -> None:
    async def slow(wire: Wire) -> None:
        await wire.send(HEAD + CHUNK)
        await wire.reader.read()

    await house.raw_engine(slow)
    running = await house.sidecar(tracing=spans.tracing)
    asking = asyncio.create_task(running.post(json=chat(stream=True)))
    registry = running.sidecar.registry
    await eventually(lambda: State.RELAYED in {each.state for each in registry._requests})
    asking.cancel()
    assert await running.ended(1) == {"client_gone": 1}
    assert attributes(spans.named("chat tiny"))["http.response.status_code"] == 200


async def test_a_retry_has_an_engine_span_of_its_own(house: House, spans: Spans) -> None:
    async def second_dies(wire: Wire) -> None:
        if wire.number == 1:
            wire.writer.close()
        else:
            await wire.send(PLAIN)

    await house.raw_engine(second_dies)
    running = await house.sidecar(tracing=spans.tracing)
    for _ in range(2):
        await running.post(json=chat())
    await running.ended(2)
    engines = [s for s in spans.exporter.get_finished_spans() if s.name == "weir.engine"]
    assert [span.status.status_code for span in engines] == [
        StatusCode.UNSET,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]


@pytest.mark.parametrize(
    ("env", "on"),
    [
        pytest.param({}, False, id="nothing configured"),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True, id="an endpoint"),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"},
            False,
            id="switched off",
        ),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"},
            False,
            id="no traces wanted",
        ),
    ],
)
async def test_tracing_is_on_only_where_an_endpoint_is_configured(
    env: dict[str, str], on: bool
) -> None:
    tracing = configured(env, Identity())
    assert (tracing is not None) is on
    if tracing is not None:
        await asyncio.wait_for(tracing.close(), timeout=5)
