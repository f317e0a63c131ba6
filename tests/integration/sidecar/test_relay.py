"""Answers pass as they come, whatever the engine's and the client's HTTP looks like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.integration.sidecar.harness import (
    CHAT,
    CHUNK,
    EVENT,
    HEAD,
    LAST,
    PLAIN,
    House,
    Wire,
    chat,
    request_bytes,
)
from weir_sim.mock_engine import Profile


async def stream_of_three(wire: Wire) -> None:
    await wire.send(HEAD + CHUNK * 3 + LAST)


async def plain(wire: Wire) -> None:
    await wire.send(PLAIN)


async def test_a_stream_arrives_byte_for_byte(house: House) -> None:
    await house.raw_engine(stream_of_three)
    running = await house.sidecar()
    reader, writer = await running.raw()
    writer.write(request_bytes(extra="Connection: close\r\n"))
    answer = await reader.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream")
    assert body == CHUNK * 3 + LAST
    assert running.outcomes == {"ok": 1}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_an_engine_that_dribbles_is_relayed_too(house: House, size: int) -> None:
    answer = HEAD + CHUNK * 2 + LAST

    async def dribble(wire: Wire) -> None:
        for start in range(0, len(answer), size):
            await wire.send(answer[start : start + size])
            await asyncio.sleep(0)

    await house.raw_engine(dribble)
    running = await house.sidecar()
    got = await running.post(json=chat())
    assert got.body == EVENT * 2


async def test_an_old_client_gets_the_events_without_chunks(house: House) -> None:
    await house.raw_engine(stream_of_three)
    running = await house.sidecar()
    reader, writer = await running.raw()
    writer.write(request_bytes(version="1.0"))
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body == EVENT * 3


async def test_pipelined_requests_are_answered_in_order(house: House) -> None:
    async def number(wire: Wire) -> None:
        body = b"%d" % wire.number
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    engine = await house.raw_engine(number)
    running = await house.sidecar()
    reader, writer = await running.raw()
    writer.write(request_bytes() * 4 + request_bytes(extra="Connection: close\r\n"))
    answer = await reader.read()
    bodies = [part.split(b"\r\n\r\n")[1] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"0", b"1", b"2", b"3", b"4"]
    assert len(engine.requests) == 5


async def test_a_client_connection_is_kept_for_the_next_request(house: House) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar()
    reader, writer = await running.raw()
    for _ in range(3):
        writer.write(request_bytes())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"connection: close" not in head.lower()
        assert await reader.readexactly(2) == b"{}"


async def test_engine_connections_are_used_again(house: House) -> None:
    engine = await house.raw_engine(plain)
    running = await house.sidecar()
    before = running.sidecar.connections.idle_count
    for _ in range(20):
        await running.post(json=chat())
    assert len(engine.requests) == 20
    assert running.sidecar.connections.idle_count == before + 1


async def test_expect_continue_is_answered_before_the_body(house: House) -> None:
    engine = await house.raw_engine(plain)
    running = await house.sidecar()
    reader, writer = await running.raw()
    writer.write(request_bytes(b'{"n": 123}', extra="Expect: 100-continue\r\n")[:-10])
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b'{"n": 123}')
    assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
    assert engine.requests[0].endswith(b'\r\n\r\n{"n": 123}')
    assert b"expect" not in engine.requests[0].lower()


async def test_a_chunked_upload_reaches_the_engine_whole(house: House) -> None:
    engine = await house.raw_engine(plain)
    running = await house.sidecar()

    async def parts() -> AsyncIterator[bytes]:
        for part in (b'{"a":', b"1", b"}"):
            yield part

    await running.post(data=parts())
    assert engine.requests[0].endswith(b'content-length: 7\r\n\r\n{"a":1}')


async def test_head_get_and_query_strings_pass(house: House) -> None:
    engine = await house.raw_engine(plain)
    running = await house.sidecar()
    await running.get("/v1/models?limit=1&x=y")
    async with running.session.head(running.url + "/v1/models") as response:
        assert response.status == 200
        assert response.headers["Content-Length"] == "2"
    assert engine.requests[0].startswith(b"GET /v1/models?limit=1&x=y HTTP/1.1\r\n")
    assert engine.requests[1].startswith(b"HEAD /v1/models HTTP/1.1\r\n")
    assert await running.ended(2) == {"ok": 2}


async def test_an_answer_that_ends_with_its_connection_ends_the_clients_too(house: House) -> None:
    async def until_close(wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        wire.writer.close()

    await house.raw_engine(until_close)
    running = await house.sidecar()
    answer = await running.post(json=chat())
    assert (answer.body, answer.headers["connection"]) == (b"all of it", "close")


async def test_hop_by_hop_headers_stay_on_their_hop(house: House) -> None:
    async def with_headers(wire: Wire) -> None:
        await wire.send(
            b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nX-Engine: 1\r\nContent-Length: 0\r\n\r\n"
        )

    engine = await house.raw_engine(with_headers)
    running = await house.sidecar()
    answer = await running.post(
        data=b"{}", headers={"TE": "trailers", "Authorization": "Bearer k", "X-Mine": "2"}
    )
    assert (answer.headers["x-engine"], "keep-alive" in answer.headers) == ("1", False)
    assert b"x-mine: 2" in engine.requests[0].lower()
    assert b"\r\nte:" not in engine.requests[0].lower()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param("my-id_1.2", True, id="a plain id is kept"),
        pytest.param("x" * 129, False, id="a long one is replaced"),
        pytest.param("two words", False, id="an odd one is replaced"),
    ],
)
async def test_request_ids_go_both_ways(house: House, given: str, kept: bool) -> None:
    engine = await house.mock_engine(Profile())
    running = await house.sidecar()
    answer = await running.post(json=chat(), headers={"x-request-id": given})
    returned = answer.headers["x-request-id"]
    assert (returned == given) is kept
    assert {k.lower(): v for k, v in engine.seen_headers.items()}["x-request-id"] == returned


async def test_a_compressed_body_is_read_for_the_engine(house: House) -> None:
    engine = await house.raw_engine(plain)
    running = await house.sidecar()
    await running.post(data=json.dumps(chat()).encode(), compress="deflate")
    assert b"content-encoding" not in engine.requests[0].lower()
    assert json.loads(engine.requests[0].partition(b"\r\n\r\n")[2]) == chat()


async def test_usage_is_counted_from_the_answers_end(house: House) -> None:
    await house.mock_engine(Profile(output_tokens=7))
    running = await house.sidecar()
    await running.post(json=chat())
    await running.post(json=chat(stream=True, stream_options={"include_usage": True}))
    page = (await running.probe("/metrics")).body.decode()
    assert "weir_output_tokens_total 14.0" in page


async def test_five_hundred_streams_at_once(house: House) -> None:
    await house.mock_engine(Profile(output_tokens=20, token_gap_s=0.01))  # type: ignore[arg-type]
    running = await house.sidecar()
    answers = await asyncio.gather(
        *(running.post(CHAT, json=chat(stream=True)) for _ in range(500))
    )
    assert {answer.body.count(b"data: ") for answer in answers} == {
        answers[0].body.count(b"data: ")
    }
    assert all(answer.body.endswith(b"data: [DONE]\n\n") for answer in answers)
    assert await running.ended(500) == {"ok": 500}
