"""What clients are told when the engine, the client or the load misbehaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest

from tests.integration.sidecar.fleet import named
from tests.integration.sidecar.harness import (
    CHUNK,
    EVENT,
    HEAD,
    LAST,
    PATIENT,
    PLAIN,
    Answer,
    House,
    Running,
    Wire,
    chat,
    eventually,
    quick,
    request_bytes,
)
from tests.unit.sidecar.fakes import http_request
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.state_access import authorization
from weir_sidecar.inflight import InFlightRequest
from weir_sidecar.settings import Limits
from weir_sidecar.upstreams.monitor import EngineState
from weir_sim.mock_engine import Profile


def code_of(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["code"])


def assert_says_when_to_retry(answer: Answer, code: str) -> None:
    assert code_of(answer) == code
    assert answer.headers["x-llm-d-request-dropped-reason"] == code
    assert int(answer.headers["Retry-After"]) > 0


def losses(running: Running) -> tuple[float | None, ...]:
    """Return how often the engine was gone, and how often it was stalled."""
    metrics = running.sidecar.metrics.registry
    name = "weir_engine_losses_total"
    return tuple(metrics.get_sample_value(name, {"how": how}) for how in ("down", "stalled"))


async def plain(wire: Wire) -> None:
    await wire.send(PLAIN)


async def silence(wire: Wire) -> None:
    await wire.closed_by_peer()


# Before the first byte: an honest status.


async def test_no_engine_is_503_with_retry_after(house: House) -> None:
    running = await house.sidecar(ready=False)
    answer = await running.post(json=chat())
    assert answer.status == 503
    assert_says_when_to_retry(answer, "rejected-no-endpoints")
    assert running.outcomes == {"rejected_no_endpoints": 1}


@pytest.mark.parametrize("sent", [b"", HEAD[:20], HEAD], ids=["nothing", "half a head", "a head"])
async def test_an_engine_that_dies_before_the_first_byte_is_503(house: House, sent: bytes) -> None:
    async def die(wire: Wire) -> None:
        await wire.send(sent)
        wire.writer.close()

    await house.raw_engine(die)
    running = await house.sidecar()
    answer = await running.post(json=chat(stream=True))
    assert answer.status == 503
    assert_says_when_to_retry(answer, "rejected-no-endpoints")


async def test_a_dying_engines_500_becomes_503(house: House) -> None:
    async def dying(wire: Wire) -> None:
        engine.healthy = False
        await wire.send(b"HTTP/1.1 500 Oh\r\nContent-Length: 3\r\n\r\nEOF")

    engine = await house.raw_engine(dying)
    running = await house.sidecar()
    assert (await running.post(json=chat())).status == 503


async def test_a_dying_engines_stream_of_one_error_becomes_503(house: House) -> None:
    event = b'data: {"error":{"message":"EngineCore died"}}\n\n'

    async def dying(wire: Wire) -> None:
        engine.healthy = False
        await wire.send(HEAD + b"%x\r\n%b\r\n" % (len(event), event) + LAST)

    engine = await house.raw_engine(dying)
    running = await house.sidecar()
    assert (await running.post(json=chat(stream=True))).status == 503


ABORTED = b'{"choices":[{"index":0,"text":"","finish_reason":"abort"}]}'


async def test_an_answer_that_the_engine_gave_up_is_none(house: House) -> None:
    """So vLLM answers while it shuts down, still healthy."""

    async def giving_up(wire: Wire) -> None:
        await wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(ABORTED), ABORTED)
        )

    await house.raw_engine(giving_up)
    running = await house.sidecar()
    answer = await running.post(json=chat())
    assert answer.status == 503
    assert_says_when_to_retry(answer, "rejected-no-endpoints")


async def test_a_stream_that_the_engine_gave_up_counts_as_its_error(house: House) -> None:
    end = b"data: %b\n\ndata: [DONE]\n\n" % ABORTED

    async def giving_up(wire: Wire) -> None:
        await wire.send(HEAD + CHUNK)
        await asyncio.sleep(0.02)
        await wire.send(b"%x\r\n%b\r\n" % (len(end), end) + LAST)

    await house.raw_engine(giving_up)
    running = await house.sidecar()
    assert (await running.post(json=chat(stream=True))).body.endswith(end)
    assert running.outcomes == {"engine_error": 1}


async def test_a_healthy_engines_500_passes_unchanged(house: House) -> None:
    await house.mock_engine(Profile(error_status=500))
    running = await house.sidecar()
    answer = await running.post(json=chat())
    assert (answer.status, b"the mock was told to fail" in answer.body) == (500, True)
    assert running.outcomes == {"engine_error": 1}


async def test_a_kept_connection_that_died_is_replaced_once(house: House) -> None:
    async def every_second_dies(wire: Wire) -> None:
        if wire.number == 1:
            wire.writer.close()
        else:
            await wire.send(PLAIN)

    engine = await house.raw_engine(every_second_dies)
    running = await house.sidecar()
    assert [(await running.post(json=chat())).status for _ in range(2)] == [200, 200]
    assert len(engine.requests) == 3
    assert b"weir_engine_retries_total 1.0" in (await running.probe("/metrics")).body


async def test_an_engine_without_a_first_byte_is_504(house: House) -> None:
    await house.raw_engine(silence)
    running = await house.sidecar(quick(first_byte_s=0.1))
    answer = await running.post(json=chat())
    assert (answer.status, code_of(answer)) == (504, "engine_timeout")
    assert running.outcomes == {"engine_timeout": 1}


async def test_an_engine_that_is_not_http_is_502(house: House) -> None:
    async def nonsense(wire: Wire) -> None:
        await wire.send(b"hello?\r\n\r\n")

    await house.raw_engine(nonsense)
    running = await house.sidecar()
    assert (await running.post(json=chat())).status == 502


# After the first byte: an error event where one fits, else a cut.


async def test_a_stream_that_breaks_between_chunks_ends_with_an_error_event(house: House) -> None:
    await house.mock_engine(Profile(cut_after_tokens=3, output_tokens=10))
    running = await house.sidecar()
    answer = await running.broken(json=chat(stream=True))
    head, _, last = answer.body.rstrip().rpartition(b"data: ")
    assert answer.status == 200
    assert b"\n\nevent: error\n: " in head
    said = json.loads(last)
    assert (said["type"], said["code"], said["error"]["code"]) == (
        "error",
        "engine_lost",
        503,
    )
    assert running.outcomes == {"engine_error": 1}


async def test_a_client_that_leaves_upon_the_error_event_does_not_hide_why(house: House) -> None:
    await house.mock_engine(Profile(cut_after_tokens=3, output_tokens=10))
    running = await house.sidecar()
    reader, writer = await running.raw()
    writer.write(request_bytes(json.dumps(chat(stream=True)).encode()))
    await reader.readuntil(b"event: error\n")
    writer.close()
    assert await running.ended(1) == {"engine_error": 1}


async def test_a_stream_that_breaks_inside_a_chunk_is_cut(house: House) -> None:
    async def cut(wire: Wire) -> None:
        await wire.send(HEAD + CHUNK + CHUNK[:9])
        await asyncio.sleep(0.02)
        wire.writer.close()

    await house.raw_engine(cut)
    running = await house.sidecar()
    with pytest.raises(aiohttp.ClientError):
        await running.post(json=chat(stream=True))
    assert await running.ended(1) == {"engine_error": 1}


async def test_a_plain_answer_that_breaks_is_cut(house: House) -> None:
    async def cut(wire: Wire) -> None:
        await wire.send(PLAIN[:-1])
        await asyncio.sleep(0.02)
        wire.writer.close()

    await house.raw_engine(cut)
    running = await house.sidecar()
    with pytest.raises(aiohttp.ClientError):
        await running.post(json=chat())
    assert await running.ended(1) == {"engine_error": 1}


async def test_an_old_clients_stream_ends_with_an_error_event_too(house: House) -> None:
    async def cut(wire: Wire) -> None:
        await wire.send(HEAD + CHUNK)
        await asyncio.sleep(0.02)
        wire.writer.close()

    await house.raw_engine(cut)
    running = await house.sidecar()
    reader, writer = await running.raw()
    writer.write(request_bytes(version="1.0"))
    body = (await reader.read()).partition(b"\r\n\r\n")[2]
    assert body.startswith(EVENT + b"\n\nevent: error\n")


async def test_a_stream_that_stops_moving_ends_with_an_error_event(house: House) -> None:
    await house.mock_engine(Profile(stall_after_tokens=2, output_tokens=10))
    running = await house.sidecar(quick(progress_s=0.1))
    answer = await running.broken(json=chat(stream=True))
    assert b'"code":"engine_timeout"' in answer.body
    assert running.outcomes == {"engine_timeout": 1}


# The client's side.


@pytest.mark.parametrize("stream", [True, False])
async def test_the_engine_is_told_when_the_client_leaves(house: House, stream: bool) -> None:
    engine = await house.mock_engine(Profile(output_tokens=10_000, token_gap_s=0.01))  # type: ignore[arg-type]
    running = await house.sidecar()
    reader, writer = await running.raw()
    writer.write(request_bytes(json.dumps(chat(stream=stream)).encode()))
    await eventually(lambda: engine.running == 1)
    if stream:
        await reader.readuntil(b"data: ")
    writer.close()
    await eventually(lambda: engine.aborted == 1)
    assert await running.ended(1) == {"client_gone": 1}


async def test_a_body_over_the_limit_is_413_before_it_is_read(house: House) -> None:
    engine = await house.raw_engine(plain)
    running = await house.sidecar(replace(PATIENT, limits=Limits(max_body_bytes=1000)))
    reader, writer = await running.raw()
    writer.write(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
    assert b" 413 " in await reader.readline()
    assert engine.requests == []


async def test_a_chunked_body_over_the_limit_is_413(house: House) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar(replace(PATIENT, limits=Limits(max_body_bytes=1000)))
    reader, writer = await running.raw()
    writer.write(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write((b"100\r\n" + b"x" * 256 + b"\r\n") * 5)
    assert b" 413 " in await reader.readline()


async def test_a_body_that_never_arrives_is_408(house: House) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar(quick(upload_s=0.1))
    reader, writer = await running.raw()
    writer.write(request_bytes(b"0123456789")[:-3])
    assert b" 408 " in await reader.readline()
    assert running.outcomes == {"client_slow": 1}


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_counted(house: House) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar()
    _, writer = await running.raw()
    writer.write(request_bytes(b"0123456789")[:-3])
    await eventually(lambda: len(running.sidecar.registry) == 1)
    writer.close()
    assert await running.ended(1) == {"client_gone": 1}


async def test_a_body_that_cannot_be_read_is_400_and_never_reaches_the_engine(
    house: House,
) -> None:
    engine = await house.raw_engine(plain)
    running = await house.sidecar()
    answer = await running.post(data=b"{not json")
    assert (answer.status, code_of(answer)) == (400, "invalid_body")
    assert running.outcomes == {"client_error": 1}
    assert engine.requests == []


@pytest.mark.parametrize(
    "path", ["/sleep", "/v1/load_lora_adapter", "/v1/%6Coad_lora_adapter", "/metrics", "/nonsense"]
)
async def test_the_engines_levers_are_not_reachable(house: House, path: str) -> None:
    engine = await house.raw_engine(plain)
    running = await house.sidecar()
    reader, writer = await running.raw()
    writer.write(request_bytes(path=path))
    assert b" 404 " in await reader.readline()
    assert engine.requests == []


async def test_websockets_are_declined(house: House) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar()
    answer = await running.get("/v1/realtime", headers={"Upgrade": "websocket"})
    assert answer.status == 501


# Load.


async def test_more_requests_than_may_wait_are_429(house: House) -> None:
    house.facts(slots=1)
    engine = await house.mock_engine(Profile(output_tokens=1000, token_gap_s=0.01))  # type: ignore[arg-type]
    running = await house.sidecar(replace(PATIENT, limits=Limits(max_requests=1)))
    held = [asyncio.create_task(running.post(json=chat(stream=True))) for _ in range(2)]
    await eventually(lambda: engine.running == 1 and len(running.sidecar.registry) == 2)
    answer = await running.post(json=chat())
    assert answer.status == 429
    assert_says_when_to_retry(answer, "rejected-queue-full")
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    assert await running.ended(3) == {"client_gone": 2, "rejected_queue_full": 1}


async def test_more_requests_than_may_be_held_in_any_state_are_429(house: House) -> None:
    await house.raw_engine(silence)
    running = await house.sidecar(replace(PATIENT, limits=Limits(max_requests=0)))
    limit = running.sidecar.settings.limits.max_held
    sidecar = running.sidecar
    held = [InFlightRequest(http_request(), sidecar.handler) for _ in range(limit)]
    for request in held:
        sidecar.registry.add(request)
    answer = await running.post(json=chat())
    assert answer.status == 429
    assert_says_when_to_retry(answer, "rejected-queue-full")
    for request in held:
        sidecar.registry.remove(request)


async def test_more_body_bytes_than_may_be_held_are_503(house: House) -> None:
    await house.raw_engine(silence)
    running = await house.sidecar(replace(PATIENT, limits=Limits(max_held_bytes=1500)))
    held = asyncio.create_task(running.post(data=b'{"model":"m"}' + b" " * 987))
    await eventually(lambda: running.sidecar.registry.memory.held_bytes == 1000)
    answer = await running.post(data=b'{"model":"m"}' + b" " * 987)
    assert answer.status == 503
    assert_says_when_to_retry(answer, "rejected-memory-full")
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    await eventually(lambda: running.sidecar.registry.memory.held_bytes == 0)


async def test_a_body_that_tells_no_size_is_counted_while_it_comes(house: House) -> None:
    await house.raw_engine(silence)
    running = await house.sidecar(replace(PATIENT, limits=Limits(max_held_bytes=1500)))
    go_on = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{}" + b" " * 998
        await go_on.wait()
        yield b"{}" + b" " * 998

    task = asyncio.create_task(running.post(data=pieces()))
    await eventually(lambda: running.sidecar.registry.memory.held_bytes == 1000)
    go_on.set()
    answer = await task
    assert answer.status == 503
    assert_says_when_to_retry(answer, "rejected-memory-full")
    await eventually(lambda: running.sidecar.registry.memory.held_bytes == 0)


# The engine's comings and goings.


async def test_readiness_follows_the_engine(house: House) -> None:
    running = await house.sidecar(ready=False)
    assert [(await running.probe(p)).status for p in ("/healthz", "/readyz", "/enginez")] == [
        200,
        503,
        503,
    ]
    engine = await house.mock_engine(Profile())
    await eventually(lambda: running.sidecar.monitor.state is EngineState.READY)
    assert [(await running.probe(p)).status for p in ("/readyz", "/enginez")] == [200, 200]
    engine.healthy = False
    await eventually(lambda: running.sidecar.monitor.state is EngineState.DOWN)
    assert [(await running.probe(p)).status for p in ("/readyz", "/enginez")] == [503, 503]
    assert losses(running) == (1, 0)
    engine.healthy = True
    await eventually(lambda: running.sidecar.monitor.state is EngineState.READY)
    await running.sidecar.drain.run()
    engine.healthy = False
    await eventually(lambda: running.sidecar.monitor.state is EngineState.DOWN)
    assert losses(running) == (1, 0)  # its pod ends: that is none


async def test_an_engine_that_does_nothing_while_requests_run_is_stalled(house: House) -> None:
    engine = await house.mock_engine(Profile(stall_after_tokens=1, output_tokens=5))
    stalling = replace(PATIENT, health=replace(PATIENT.health, stall_s=0.2))
    running = await house.sidecar(stalling)
    held = asyncio.create_task(running.post(json=chat(stream=True)))
    await eventually(lambda: running.sidecar.monitor.state is EngineState.STALLED)
    assert losses(running) == (0, 1)
    engine.sent_tokens += 1  # it moves again, for somebody
    await eventually(lambda: running.sidecar.monitor.state is EngineState.READY)
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)


async def test_the_engines_metrics_follow_ours_unchanged(house: House) -> None:
    engine = await house.mock_engine(Profile())
    running = await house.sidecar()
    page = (await running.probe("/metrics")).body.decode()
    assert page.endswith(engine.metrics_text())
    assert page.index("weir_engine_up 1.0") < page.index("vllm:")


async def test_the_port_shows_the_state_to_what_holds_a_key_of_the_service(house: House) -> None:
    key, other = "5e" * 32, "a0" * 32
    await house.mock_engine(Profile())
    house.policies(PolicyDocument(peer_keys=(key,)))
    running = await house.sidecar(named(PATIENT, "chat-1"))
    now = time.time()
    for shown in ("", authorization([other], "chat-1", now), authorization([key], "chat-2", now)):
        refused = await running.probe("/state", headers={"Authorization": shown})
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Weir")
        assert b"chat-1" not in refused.body
    shown = authorization([key], "chat-1", now)
    answer = await running.probe("/state", headers={"Authorization": shown})
    assert (answer.status, json.loads(answer.body)["pod"]) == (200, "chat-1")


async def test_state_tells_phase_engine_and_counts(house: House) -> None:
    await house.mock_engine(Profile())
    running = await house.sidecar()
    await running.post(json=chat())
    state = json.loads(await running.state())
    assert (state["phase"], state["engine"], state["running"]) == ("serving", "ready", 0)
    assert state["outcomes"]["ok"] == 1
