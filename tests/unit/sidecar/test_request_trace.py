"""What a request's trace tells its engine and the exporters, held against the SDK's own rules."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace as sdk
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from weir_core.route.types import Candidate, Forward
from weir_core.wire.fields import RequestBody, Usage
from weir_sidecar.outcomes import Outcome
from weir_sidecar.telemetry.request_trace import RequestTrace, Tracing
from weir_sidecar.telemetry.sampling import Sampling
from weir_sidecar.telemetry.spans import Span
from weir_sidecar.telemetry.tracing import SdkExporter

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
LINES = re.compile(rb"traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])\r\n(.*)", re.DOTALL)


class Taken:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.traces: list[RequestTrace] = []

    def take(self, trace: RequestTrace) -> None:
        self.traces.append(trace)

    async def close(self) -> None:
        """Nothing is left."""


def begun(parent: Mapping[str, str], sampler: Sampler = DEFAULT_ON) -> RequestTrace:
    tracing = Tracing(Taken(), Sampling(sampler))
    return tracing.begin("POST", "/v1/chat/completions", parent, arrival=1.0, now=1.0)


def told(trace: RequestTrace) -> tuple[str, str, str, str]:
    """Return what the engine is told: trace, span, flags, and the lines after them."""
    found = LINES.fullmatch(trace.dispatched(1.0, 2.0, "engine"))
    assert found is not None
    trace_id, span_id, flags, more = (part.decode("latin-1") for part in found.groups())
    return trace_id, span_id, flags, more


def by_the_sdk(parent: Mapping[str, str]) -> sdk.SpanContext:
    context = TraceContextTextMapPropagator().extract(parent)
    return sdk.get_current_span(context).get_span_context()


# ---- the caller's headers

PIECES = st.one_of(
    st.sampled_from([" ", "\t", "-", "00", "01", "ff", "cc", "0" * 16, "0" * 32, TRACE, SPAN]),
    st.sampled_from([PARENT, f"cc-{TRACE}-{SPAN}-00-more", "x", "A", "\u0660", "é"]),
    st.text("0123456789abcdefABCDEF-", max_size=40),
)
HEADERS = st.one_of(
    st.lists(PIECES, max_size=8).map("".join),
    st.tuples(*[PIECES] * 4).map("-".join),
    st.builds(
        "{}{}-{}-{}-{}{}".format,
        st.sampled_from(["", " ", "\t "]),
        st.from_regex("[0-9a-f]{2}", fullmatch=True),
        st.sampled_from([TRACE, TRACE.upper(), "0" * 32, TRACE[1:]]),
        st.sampled_from([SPAN, "0" * 16, SPAN + "0"]),
        st.from_regex("[0-9a-f]{2}", fullmatch=True),
        st.sampled_from(["", " \t", "-", "-more", "-" + "x" * 600]),
    ),
)


@given(HEADERS)
def test_a_traceparent_is_read_as_the_sdk_reads_it(header: str) -> None:
    trace, theirs = begun({"traceparent": header}), by_the_sdk({"traceparent": header})
    if not theirs.is_valid:
        assert (trace.parent_id, trace.sampled) == ("", True)
        return
    assert int(trace.trace_id, 16) == theirs.trace_id
    assert int(trace.parent_id, 16) == theirs.span_id
    assert trace.parent_flags == theirs.trace_flags
    assert trace.sampled is theirs.trace_flags.sampled


@pytest.mark.parametrize("flags", ["00", "01"])
@given(state=st.one_of(st.text("abz09_-*/@=, \t!é", max_size=30), st.just("k=" + "v" * 600)))
def test_a_tracestate_travels_on_as_the_sdk_would_send_it(flags: str, state: str) -> None:
    parent = {"traceparent": f"00-{TRACE}-{SPAN}-{flags}", "tracestate": state}
    trace_id, _, sent_flags, more = told(begun(parent))
    theirs = by_the_sdk(parent).trace_state.to_header()
    assert (trace_id, sent_flags) == (TRACE, flags)
    assert more == (f"tracestate: {theirs}\r\n" if theirs else "")


@pytest.mark.parametrize("parent", [{}, {"traceparent": "none"}, {"tracestate": "a=1"}])
def test_a_tracestate_without_a_traceparent_goes_nowhere(parent: dict[str, str]) -> None:
    trace = begun({"tracestate": "a=1", **parent})
    assert (trace.parent_id, told(trace)[3]) == ("", "")


# ---- sampling


class Odd(Sampler):
    """A sampler of somebody's own, which changes the tracestate."""

    def should_sample(self, parent_context: Any, trace_id: int, *_: Any, **__: Any) -> Any:  # noqa: ARG002
        verdict = Decision.RECORD_AND_SAMPLE if trace_id % 2 else Decision.RECORD_ONLY
        return SamplingResult(verdict, trace_state=sdk.TraceState([("odd", "1")]))

    def get_description(self) -> str:
        return "Odd"


SAMPLERS = [
    pytest.param(DEFAULT_ON, True, id="parentbased_always_on"),
    pytest.param(DEFAULT_OFF, True, id="parentbased_always_off"),
    pytest.param(ParentBasedTraceIdRatio(0.3), True, id="parentbased_traceidratio"),
    pytest.param(ParentBasedTraceIdRatio(0.0), True, id="a ratio of none"),
    pytest.param(ParentBasedTraceIdRatio(1.0), True, id="a ratio of all"),
    pytest.param(ALWAYS_ON, False, id="always_on"),
    pytest.param(ALWAYS_OFF, False, id="always_off"),
    pytest.param(TraceIdRatioBased(0.3), False, id="traceidratio"),
    pytest.param(ParentBased(ALWAYS_ON, ALWAYS_OFF, ALWAYS_ON), False, id="parents turned round"),
    pytest.param(ParentBased(Odd()), False, id="a sampler of somebody's own at the root"),
    pytest.param(Odd(), False, id="a sampler of somebody's own"),
]


@pytest.mark.parametrize(("sampler", "decides_by_itself"), SAMPLERS)
@pytest.mark.parametrize(
    "parent",
    [
        pytest.param({}, id="no parent"),
        pytest.param({"traceparent": PARENT}, id="sampled parent"),
        pytest.param({"traceparent": PARENT[:-1] + "0"}, id="parent that is not sampled"),
        pytest.param({"traceparent": PARENT, "tracestate": "a=1"}, id="with a tracestate"),
    ],
)
def test_a_request_is_sampled_as_the_sdks_sampler_says(
    sampler: Sampler, decides_by_itself: bool, parent: dict[str, str]
) -> None:
    assert (Sampling(sampler).root_bound is not None) is decides_by_itself
    context = TraceContextTextMapPropagator().extract(parent) if parent else None
    for _ in range(50):
        trace = begun(parent, sampler)
        theirs = sampler.should_sample(context, int(trace.trace_id, 16), "POST")
        assert trace.sampled is (theirs.decision is Decision.RECORD_AND_SAMPLE)
        assert trace.state == (theirs.trace_state.to_header() if theirs.trace_state else "")


@pytest.mark.parametrize("bound", [0, 1, 12345, 1 << 63, (1 << 64) - 1, 1 << 64])
def test_a_trace_id_is_sampled_below_the_bound(bound: int) -> None:
    sampler = ParentBasedTraceIdRatio(1.0)
    sampling = Sampling(sampler)
    sampling.root_bound = bound
    tracing = Tracing(Taken(), sampling)
    for _ in range(100):
        trace = tracing.begin("GET", "/", {}, arrival=0.0, now=0.0)
        assert trace.sampled is (int(trace.trace_id, 16) & ((1 << 64) - 1) < bound)


def test_the_sampler_of_the_environment_is_met_by_its_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    assert Sampling(TracerProvider(shutdown_on_exit=False).sampler).root_bound == 1 << 62


# ---- ids


def test_ids_are_of_the_right_length_and_all_different() -> None:
    seen: set[str] = set()
    for _ in range(50):
        trace = begun({})
        trace.routed(1.0, 1.0)
        for _ in range(3):
            told(trace)
            trace.routed(1.0, 1.0)
        trace.finish(Outcome.OK, 200, 3.0, first_byte_at=None, usage=None)
        spans = trace.spans()
        assert len(spans) == trace.span_count == 1 + 1 + 4 + 3
        assert len(trace.trace_id) == 32
        assert {len(span.span_id) for span in spans} == {16}
        seen |= {trace.trace_id, *(span.span_id for span in spans)}
    assert len(seen) == 50 * (1 + 9)


def test_a_request_that_is_not_sampled_passes_its_own_ids_on_and_is_not_handed_over() -> None:
    taken = Taken()
    trace = Tracing(taken, Sampling(ALWAYS_OFF)).begin("POST", "/", {}, arrival=1.0, now=1.0)
    trace.describe("chat", RequestBody(model="tiny"))
    trace.admitted("batch", "nightly")
    trace.routed(1.0, 1.0)
    trace.placed(1, 0, by_min_share=False)
    assert told(trace) == (trace.trace_id, trace.ids[:16], "00", "")
    trace.finish(Outcome.OK, 200, 3.0, first_byte_at=2.0, usage=None)
    assert taken.traces == []


# ---- what exporters see


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def test_attempts_before_the_last_are_errors_and_the_queue_is_the_first_ones() -> None:
    trace = begun({})
    trace.placed(5, 0, by_min_share=False)
    trace.routed(2.0, 2.5)
    trace.dispatched(1.0, 3.0, "a")
    trace.placed(7, 1, by_min_share=True)
    trace.routed(4.0, 4.5)
    trace.dispatched(1.0, 5.0, "b")
    trace.finish(Outcome.OK, 200, 7.0, first_byte_at=6.0, usage=None)
    spans = trace.spans()
    at = trace.wall_offset_ns
    (queue,) = named(spans, "weir.queue")
    assert (queue.start_ns - at, queue.end_ns - at) == (1_000_000_000, 3_000_000_000)
    assert queue.attributes == {"weir.rank": 5, "weir.preempted": 0, "weir.by_min_share": False}
    routes = [(s.start_ns - at, s.end_ns - at) for s in named(spans, "weir.route")]
    assert routes == [(2_000_000_000, 2_500_000_000), (4_000_000_000, 4_500_000_000)]
    engines = named(spans, "weir.engine")
    assert [(s.attributes["server.address"], s.error) for s in engines] == [
        ("a", "tried again"),
        ("b", ""),
    ]
    assert [s.first_token_ns and s.first_token_ns - at for s in engines] == [0, 6_000_000_000]
    assert [s.end_ns - at for s in engines] == [5_000_000_000, 7_000_000_000]


def test_an_attempt_that_was_lost_ends_before_the_wait_for_the_next() -> None:
    trace = begun({})
    trace.lost(1.5)  # nothing could be sent
    trace.dispatched(1.0, 2.0, "a", to_peer=True)
    trace.lost(3.0)
    trace.lost(4.0)  # the same
    trace.dispatched(1.0, 6.0, "b")
    trace.lost(7.0)
    trace.finish(Outcome.CLIENT_GONE, 0, 9.0, first_byte_at=None, usage=None)
    (forward,), (engine,) = (named(trace.spans(), f"weir.{each}") for each in ("forward", "engine"))
    at = trace.wall_offset_ns
    assert [(each.end_ns - at, each.error) for each in (forward, engine)] == [
        (3_000_000_000, "tried again"),
        (7_000_000_000, "lost"),
    ]


def test_an_attempt_after_one_without_a_connection_is_none_that_was_lost() -> None:
    trace = begun({})
    trace.lost(1.5)
    trace.dispatched(1.0, 2.0, "a")
    trace.finish(Outcome.OK, 200, 9.0, first_byte_at=3.0, usage=None)
    (engine,) = named(trace.spans(), "weir.engine")
    assert (engine.end_ns - trace.wall_offset_ns, engine.error) == (9_000_000_000, "")


@pytest.mark.parametrize(
    ("outcome", "status", "wanted"),
    [
        pytest.param(Outcome.OK, 200, (200, None, ""), id="well"),
        pytest.param(Outcome.CUT, 200, (200, "cut_by_shutdown", "cut_by_shutdown"), id="broken"),
        pytest.param(Outcome.CLIENT_ERROR, 404, (404, "client_error", ""), id="the client's fault"),
        pytest.param(
            Outcome.REJECTED_NO_ENDPOINTS,
            503,
            (503, "rejected_no_endpoints", "rejected_no_endpoints"),
            id="the server's refusal",
        ),
        pytest.param(Outcome.CLIENT_GONE, 0, (None, None, ""), id="gone before the answer"),
    ],
)
def test_a_span_says_how_its_request_ended(
    outcome: Outcome, status: int, wanted: tuple[int | None, str | None, str]
) -> None:
    trace = begun({})
    trace.finish(outcome, status, 3.0, first_byte_at=None, usage=None)
    (root,) = trace.spans()
    known = root.attributes
    assert known["weir.outcome"] == outcome
    assert (known.get("http.response.status_code"), known.get("error.type"), root.error) == wanted


@pytest.mark.parametrize(
    ("streams", "wanted"),
    [
        pytest.param(
            True,
            {"gen_ai.request.stream": True, "gen_ai.response.time_to_first_chunk": 1.5},
            id="a stream",
        ),
        pytest.param(False, {}, id="a plain answer"),
    ],
)
def test_only_a_stream_says_when_its_first_chunk_came(
    streams: bool, wanted: dict[str, object]
) -> None:
    trace = begun({})
    trace.describe("chat", RequestBody(model="tiny", streams=streams))
    trace.dispatched(1.0, 2.0, "a")
    trace.finish(Outcome.OK, 200, 3.0, first_byte_at=2.5, usage=None)
    known = trace.spans()[0].attributes
    assert {name: known[name] for name in known if name.endswith(("stream", "chunk"))} == wanted


def test_a_forward_says_where_to_and_why() -> None:
    trace = begun({})
    looked_at = Candidate("b", 9.5, 7.0, 0.0, 0.5, 0.0, 2.0, feasible=True, age_ms=80.0)
    trace.routed(1.0, 1.0, Forward("1", "b", 1, "best", (looked_at,)))
    trace.dispatched(1.0, 2.0, "b", to_peer=True)
    trace.finish(Outcome.OK, 200, 3.0, first_byte_at=2.5, usage=None)
    spans = trace.spans()
    (route,) = named(spans, "weir.route")
    said = dict(route.attributes)
    (told,) = json.loads(str(said.pop("weir.route.candidates")))
    assert (told["replica"], told["score_ms"], told["age_ms"]) == ("b", 9.5, 80.0)
    assert said == {
        "weir.route.reason": "best",
        "weir.route.replica": "b",
        "weir.route.hops": 1,
    }
    (forward,) = named(spans, "weir.forward")
    assert forward.attributes == {"server.address": "b"}
    assert not named(spans, "weir.engine")


@pytest.mark.parametrize("parent", [{}, {"traceparent": PARENT, "tracestate": "a=1"}])
def test_the_sdks_spans_say_the_same(parent: dict[str, str]) -> None:
    memory = InMemorySpanExporter()
    tracing = Tracing(SdkExporter(SimpleSpanProcessor(memory)))
    trace = tracing.begin("POST", "/v1/completions", parent, arrival=1.0, now=1.0)
    trace.describe("text_completion", RequestBody(model="tiny", sequences=4, top_p=0.5))
    trace.admitted("batch", "nightly")
    trace.routed(1.5, 1.5)
    trace.dispatched(1.0, 2.0, "a")
    trace.dispatched(1.0, 3.0, "a")
    trace.finish(Outcome.CUT, 200, 5.0, first_byte_at=4.0, usage=Usage(3, 2))
    theirs = memory.get_finished_spans()
    assert len(theirs) == trace.span_count
    for span, readable in zip(trace.spans(), theirs, strict=True):
        assert as_told(readable) == (
            span.name, trace.trace_id, span.span_id, span.parent_id,
            span.kind - 1, span.start_ns, span.end_ns, span.attributes,
            [span.first_token_ns] if span.first_token_ns else [], span.error, trace.state,
        )  # fmt: skip
    root = theirs[0]
    assert (root.parent is not None and root.parent.is_remote) is bool(parent)
    assert all(span.parent is not None and not span.parent.is_remote for span in theirs[1:])
    assert root.attributes is not None
    assert root.attributes["error.type"] == "cut_by_shutdown"
    assert root.attributes["gen_ai.request.choice.count"] == 4


def as_told(span: ReadableSpan) -> tuple[object, ...]:
    assert span.context is not None
    return (
        span.name,
        f"{span.context.trace_id:032x}",
        f"{span.context.span_id:016x}",
        f"{span.parent.span_id:016x}" if span.parent else "",
        span.kind.value,
        span.start_time,
        span.end_time,
        dict(span.attributes or {}),
        [event.timestamp for event in span.events],
        span.status.description or "",
        span.context.trace_state.to_header(),
    )
