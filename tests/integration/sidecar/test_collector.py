"""A request as one trace in a real collector, from its client's span to vLLM's own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import inject
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind

from e2e.cluster import build
from tests.integration.conftest import ROOT, TINY, Engine, RunEngine
from tests.integration.sidecar.fleet import CLASSES, KEY, named
from tests.integration.sidecar.harness import CHAT, PATIENT, House, chat, eventually
from weir_core.sched.types import TenantPolicy
from weir_core.wire.policies import PeerEntry, PolicyDocument, TenantEntry
from weir_sidecar.gateway import Gateway
from weir_sidecar.inflight import State
from weir_sidecar.settings import Identity, Policies
from weir_sidecar.telemetry.request_trace import Tracing
from weir_sidecar.telemetry.tracing import configured
from weir_sidecar.upstreams.monitor import EngineState

PAGE = (ROOT / "docs/watch.md").read_text()
SESAME = "sk-sesame-of-the-team"
PROMPT = "How does the quick brown fox jump?"
TEAM = TenantEntry(
    TenantPolicy("team"),
    "standard",
    "standard",
    key_hashes=(hashlib.sha256(SESAME.encode()).hexdigest(),),
)
ASKED = {
    "http.request.method": "POST",
    "url.path": CHAT,
    "http.response.status_code": 200,
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "vllm",
    "gen_ai.request.model": "tiny",
    "gen_ai.request.max_tokens": 16,
    "gen_ai.request.temperature": 0.5,
    "gen_ai.request.stream": True,
    "weir.class": "standard",
    "weir.outcome": "ok",
    "weir.tenant": "team",
}
LOST = 0xF00D
"""Trace of the request whose engine is killed."""
LONG = {"max_tokens": 4000, "ignore_eos": True, "min_tokens": 4000}


@dataclass(frozen=True)
class Seen:
    """A span in the collector's file."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: SpanKind
    is_error: bool
    start_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass(frozen=True)
class Collector:
    """A collector that runs, and the file that it writes."""

    url: str
    file: Path

    def tracing(self, pod: str) -> Tracing:
        """Return what a sidecar has whose environment names this collector."""
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_SERVICE_NAME": "weir-sidecar",
        }
        found = configured(environment, Identity(pod=pod))
        assert found is not None
        return found

    def spans(self, trace_id: int) -> list[Seen]:
        """Return what has come of a trace, in the order of beginnings."""
        whole_lines = self.file.read_text().rpartition("\n")[0].splitlines()
        resources = [each for line in whole_lines for each in json.loads(line)["resourceSpans"]]
        found = [span for each in resources for span in seen(each)]
        mine = [span for span in found if span.trace_id == f"{trace_id:032x}"]
        return sorted(mine, key=lambda span: span.start_ns)


def seen(resource: dict[str, Any]) -> Iterator[Seen]:
    for scope in resource["scopeSpans"]:
        for span in scope["spans"]:
            yield Seen(
                span["traceId"],
                span["spanId"],
                span.get("parentSpanId", ""),
                span["name"],
                SpanKind(span["kind"] - 1),
                span["status"].get("code") == 2,
                int(span["startTimeUnixNano"]),
                values(span),
                values(resource["resource"]),
            )


def values(of: dict[str, Any]) -> dict[str, Any]:
    """Return attributes without their types; OTLP's JSON has integers as texts."""
    found = {}
    for each in of.get("attributes", ()):
        ((kind, value),) = each["value"].items()
        found[each["key"]] = int(value) if kind == "intValue" else value
    return found


@pytest.fixture
def port() -> Iterator[int]:
    """Hold a port that no other process is given; one that names it may listen there."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
async def collector(tmp_path: Path, port: int) -> AsyncIterator[Collector]:
    """Run a collector as docs/watch.md shows it, but for its port and where its file is."""
    shown = re.search(r"^```yaml\n(receivers:.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert shown is not None
    (tmp_path / "collector.yaml").write_text(shown[1])
    address = f"127.0.0.1:{port}"
    other = {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": address}}}},
        "exporters": {"file": {"path": f"{tmp_path}/traces.jsonl"}},
        "service": {"telemetry": {"metrics": {"level": "none"}}},
    }
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    program = await asyncio.to_thread(build.tool, "otelcol")
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program, "--config=collector.yaml", "--config=other.yaml",
            cwd=tmp_path, stdout=log, stderr=log,
        )  # fmt: skip

    def is_ready() -> bool:
        said = (tmp_path / "log").read_text()
        assert process.returncode is None, said
        return "Everything is ready" in said

    try:
        await eventually(is_ready)
        yield Collector(f"http://{address}", tmp_path / "traces.jsonl")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(30):
            await process.wait()


@contextlib.asynccontextmanager
async def passing_on(
    ingress: str, engine: Engine, run_dir: Path, collector: Collector
) -> AsyncIterator[str]:
    """Run the engine's sidecar, and one without an engine; yield the address of the latter.

    Leaving ends both, and what they have not sent by then is sent.
    """
    async with contextlib.AsyncExitStack() as stack:
        here, there = House(run_dir, stack), House(engine.run_dir, stack)
        settings, tracing = named(PATIENT, "ingress"), collector.tracing("ingress")
        executing = await there.sidecar(
            named(PATIENT, "executing"), tracing=collector.tracing("executing")
        )
        if ingress == "a replica":
            sidecar = (await here.sidecar(settings, ready=False, tracing=tracing)).sidecar
            peers, port = sidecar.peers, sidecar.api_port
        else:
            settings = replace(settings, policies=Policies(here.policies_dir, poll_s=0.02))
            gateway = Gateway(settings, ("127.0.0.1", 0), tracing=tracing)
            await stack.enter_async_context(gateway.running())
            peers, port = gateway.peers, gateway.port
        known = (PeerEntry("executing", executing.sidecar.peers.own.address),)
        for house in (here, there):
            house.policies(PolicyDocument(CLASSES, (TEAM,), peers=known, peer_keys=(KEY,)))
        await eventually(lambda: peers.usable == 1)
        yield f"http://127.0.0.1:{port}"


async def asked(address: str, provider: TracerProvider) -> tuple[int, str]:
    """Ask for a chat below a span of the client; return the trace and the answer's text."""
    body = chat(max_tokens=16, temperature=0.5, stream=True)
    body |= {
        "messages": [{"role": "user", "content": PROMPT}],
        "stream_options": {"include_usage": True},
    }
    headers = {"authorization": f"Bearer {SESAME}"}
    tracer = provider.get_tracer("client")
    async with aiohttp.ClientSession() as session:
        with tracer.start_as_current_span("ask", kind=SpanKind.CLIENT) as span:
            inject(headers)
            async with session.post(address + CHAT, json=body, headers=headers) as response:
                events = (await response.text()).split("\n\n")
                assert response.status == 200
    parts = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
    choices = [choice for part in parts for choice in part["choices"]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    return span.get_span_context().trace_id, text


def tree(spans: list[Seen]) -> str:
    """Return the names of a trace's spans, each below its parent's."""
    below: dict[str, list[Seen]] = {}
    for span in spans:
        below.setdefault(span.parent_id, []).append(span)

    def lines(parent_id: str, depth: int) -> Iterator[str]:
        for span in below.get(parent_id, ()):
            yield "  " * depth + span.name
            yield from lines(span.span_id, depth + 1)

    return "\n".join(lines("", 0))


def shown_tree() -> str:
    """Return the tree of docs/watch.md without what it says of each span."""
    shown = re.search(r"^```text\n(ask .*?)\n```", PAGE, re.MULTILINE | re.DOTALL)
    assert shown is not None
    return re.sub(r"(?<=\S)  +.*", "", shown[1])


async def follow_one(
    ingress: str, engine: Engine, run_dir: Path, collector: Collector, client: TracerProvider
) -> None:
    """Ask through a sidecar that passes on; look at the trace, and for what no trace may hold."""
    async with passing_on(ingress, engine, run_dir, collector) as address:
        trace_id, text = await asked(address, client)
    wanted = shown_tree()
    await eventually(lambda: len(collector.spans(trace_id)) == len(wanted.splitlines()))
    spans = collector.spans(trace_id)
    assert tree(spans) == wanted
    services = [(span.resource["service.name"], span.kind) for span in spans]
    inside = [("weir-sidecar", SpanKind.INTERNAL)] * 2
    server, to_next = [("weir-sidecar", kind) for kind in (SpanKind.SERVER, SpanKind.CLIENT)]
    assert services == [
        ("client", SpanKind.CLIENT),
        *(server, *inside, to_next),
        *(server, *inside, to_next),
        ("vllm", SpanKind.SERVER),
    ]
    places = [span.resource["service.instance.id"] for span in spans[1:9]]
    assert places == ["ingress"] * 4 + ["executing"] * 4
    for span in (spans[1], spans[5]):
        said = dict(span.attributes)
        assert said.pop("gen_ai.response.time_to_first_chunk") > 0
        assert said == ASKED | used_by(spans[9])
    assert spans[4].attributes["server.address"] == "executing"
    assert not any(span.is_error for span in spans)
    written = collector.file.read_text()
    assert [each for each in (SESAME, TEAM.key_hashes[0], KEY, PROMPT) if each in written] == []
    assert "authorization" not in written.lower()
    assert text
    assert text not in written


def used_by(vllms: Seen) -> dict[str, int]:
    """Return the tokens that vLLM counted, for which it has other names."""
    return {
        "gen_ai.usage.input_tokens": vllms.attributes["gen_ai.usage.prompt_tokens"],
        "gen_ai.usage.output_tokens": vllms.attributes["gen_ai.usage.completion_tokens"],
    }


async def lose_the_engine(engine: Engine, collector: Collector) -> None:
    """Kill the engine below a stream; its client and its trace are told, and readiness ends."""
    async with contextlib.AsyncExitStack() as stack:
        house = House(engine.run_dir, stack)
        house.policies(PolicyDocument())  # without tenants, so that a request needs no key
        running = await house.sidecar(tracing=collector.tracing("executing"))
        headers = {"traceparent": f"00-{LOST:032x}-{LOST:016x}-01"}
        stream = asyncio.create_task(
            running.broken(json=chat(stream=True, **LONG), headers=headers)
        )
        registry = running.sidecar.registry
        await eventually(lambda: State.RELAYED in {r.state for r in registry._requests})
        engine.kill()
        assert b"event: error\n" in (await stream).body
        await eventually(lambda: running.sidecar.monitor.state is EngineState.DOWN)
        assert (await running.probe("/readyz")).status == 503
        waits = asyncio.create_task(running.post(json=chat()))
        await eventually(lambda: len(running.sidecar.driver.waiting()) == 1)
        waits.cancel()
        assert await running.ended(2) == {"engine_error": 1, "client_gone": 1}
    await eventually(lambda: bool(collector.spans(LOST)))
    (server,) = [span for span in collector.spans(LOST) if span.kind is SpanKind.SERVER]
    assert (server.is_error, server.attributes["error.type"]) == (True, "engine_error")


@pytest.mark.timeout(1800)  # the first run builds the collector
async def test_a_request_is_one_trace_and_a_killed_engine_is_told_honestly(
    run_engine: RunEngine, collector: Collector, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine of its own: with tracing, and to be killed."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vllm")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # ms; vLLM would send each 5 s
    client = TracerProvider(resource=Resource({"service.name": "client"}), shutdown_on_exit=False)
    to_collector = OTLPSpanExporter(f"{collector.url}/v1/traces")
    client.add_span_processor(SimpleSpanProcessor(to_collector))
    config = TINY.model_copy(update={"traces_endpoint": f"{collector.url}/v1/traces"})
    with run_engine(config) as engine:
        for ingress in ("a replica", "a gateway"):
            await follow_one(ingress, engine, run_dir, collector, client)
        await lose_the_engine(engine, collector)
    client.shutdown()
