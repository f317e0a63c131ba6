"""What a sidecar does with bytes before it knows who sent them, and with compressed bodies."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import zlib
from dataclasses import replace

import pytest

from tests.integration.sidecar.harness import (
    CHAT,
    PATIENT,
    PLAIN,
    House,
    Wire,
    eventually,
    quick,
    request_bytes,
)
from weir_core.sched.types import TenantPolicy
from weir_core.wire.cors import Cors
from weir_core.wire.policies import PolicyDocument, TenantEntry
from weir_sidecar.drain import Phase
from weir_sidecar.settings import Limits
from weir_sidecar.upstreams.monitor import EngineState

BODY = b'{"model":"tiny","messages":[]}'


async def plain(wire: Wire) -> None:
    await wire.send(PLAIN)


def with_tenant(name: str, key: str = "sk-known") -> PolicyDocument:
    """A document with one tenant."""
    key_hash = hashlib.sha256(key.encode()).hexdigest()
    entry = TenantEntry(TenantPolicy(name), "standard", "standard", False, (key_hash,))
    return PolicyDocument(tenants=(entry,))


async def answer_to(house: House, data: bytes, limits: Limits | None = None) -> bytes:
    """What a sidecar answers to these bytes, until it closes or has answered."""
    running = await house.sidecar(PATIENT if limits is None else replace(PATIENT, limits=limits))
    reader, writer = await running.raw()
    writer.write(data)
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head + await reader.readexactly(length)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        pytest.param("gzip", gzip.compress(BODY), id="gzip"),
        pytest.param("X-GZIP", gzip.compress(BODY), id="gzip by its old name"),
        pytest.param("deflate", zlib.compress(BODY), id="deflate"),
        pytest.param("deflate", zlib.compress(BODY, wbits=-15), id="deflate without a header"),
        pytest.param("identity", BODY, id="as it is"),
    ],
)
async def test_a_compressed_body_reaches_the_engine_inflated(
    house: House, encoding: str, body: bytes
) -> None:
    engine = await house.raw_engine(plain)
    sent = request_bytes(body, extra=f"Content-Encoding: {encoding}\r\n")
    assert (await answer_to(house, sent)).startswith(b"HTTP/1.1 200 ")
    (request,) = engine.requests
    assert request.endswith(b"\r\n\r\n" + BODY)
    assert b"content-encoding" not in request.lower()


async def test_a_large_body_is_inflated_whole(house: House) -> None:
    body = json.dumps({"model": "tiny", "prompt": "word " * 1_000_000}).encode()
    engine = await house.raw_engine(plain)
    sent = request_bytes(gzip.compress(body), extra="Content-Encoding: gzip\r\n")
    assert (await answer_to(house, sent)).startswith(b"HTTP/1.1 200 ")
    assert engine.requests[-1].endswith(body)


BOMB = gzip.compress(b" " * (8 << 20))


@pytest.mark.parametrize(
    ("encoding", "body", "want"),
    [
        pytest.param("gzip", b"this is not gzip", 400, id="not gzip"),
        pytest.param("gzip", gzip.compress(BODY)[:-4], 400, id="gzip without its end"),
        pytest.param("gzip", gzip.compress(BODY) + b"x", 400, id="something after its end"),
        pytest.param("deflate", b"\xff\xff\xff", 400, id="not deflate"),
        pytest.param("br", b"zzz", 415, id="brotli"),
        pytest.param("zstd", b"zzz", 415, id="zstd"),
        pytest.param("gzip, gzip", gzip.compress(gzip.compress(BODY)), 415, id="two encodings"),
        pytest.param("gzip", BOMB, 413, id="small on the wire, too large in memory"),
    ],
)
async def test_a_body_that_cannot_be_inflated_is_refused(
    house: House, encoding: str, body: bytes, want: int
) -> None:
    engine = await house.raw_engine(plain)
    sent = request_bytes(body, extra=f"Content-Encoding: {encoding}\r\n")
    answer = await answer_to(house, sent, Limits(max_body_bytes=1 << 20))
    assert answer.startswith(b"HTTP/1.1 %d " % want)
    assert b'"error"' in answer
    assert b"x-request-id: " in answer.lower()
    assert not engine.requests


async def test_an_inflated_body_counts_against_what_may_be_held(house: House) -> None:
    await house.raw_engine(plain)
    sent = request_bytes(BOMB, extra="Content-Encoding: gzip\r\n")
    answer = await answer_to(house, sent, Limits(max_held_bytes=1 << 20))
    assert answer.startswith(b"HTTP/1.1 503 ")


async def test_nothing_is_inflated_for_a_stranger(house: House) -> None:
    house.policies(with_tenant("known"))
    await house.raw_engine(plain)
    # It would be a 400 if anything had looked into it.
    sent = request_bytes(b"this is not gzip", extra="Content-Encoding: gzip\r\n")
    assert (await answer_to(house, sent)).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("head", "want"),
    [
        pytest.param(b"Authorization: Bearer %b\r\n" % (b"a" * 9000), 200, id="a token of 9 KB"),
        pytest.param(b"x-h: 1\r\n" * 200, 200, id="200 headers"),
        pytest.param(b"x-h: 1\r\n" * 300, 431, id="300 headers"),
        pytest.param(b"x-h: %b\r\n" % (b"a" * (5 << 20)), 431, id="a header of 5 MiB"),
        pytest.param(b"x-h: %b\r\n" % (b"a" * (1 << 20)) * 6, 431, id="6 MiB of headers"),
        pytest.param(b"x h: 1\r\n", 400, id="a space in a name"),
    ],
)
async def test_heads_are_taken_as_vllm_takes_them(house: House, head: bytes, want: int) -> None:
    await house.raw_engine(plain)
    sent = b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: 2\r\n\r\n{}" % (CHAT.encode(), head)
    assert (await answer_to(house, sent)).startswith(b"HTTP/1.1 %d " % want)


@pytest.mark.parametrize(
    ("data", "want"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS"),
        pytest.param(b"HELLO / HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="no method of HTTP"),
        pytest.param(b"GET foo HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="no URL"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no host"),
    ],
)
async def test_what_is_no_request_gets_an_error_of_the_api_and_is_counted(
    house: House, caplog: pytest.LogCaptureFixture, data: bytes, want: int
) -> None:
    caplog.set_level("INFO")
    running = await house.sidecar(ready=False)
    reader, writer = await running.raw()
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 10)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % want)
    assert b"x-request-id: " in head.lower()
    assert json.loads(body)["error"]["code"]
    assert running.outcomes == {"client_error": 1}
    assert "request unreadable" in caplog.messages


async def test_a_body_that_breaks_off_in_bad_chunks_is_refused_at_once(house: House) -> None:
    await house.raw_engine(plain)
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode()
    running = await house.sidecar()
    reader, writer = await running.raw()
    writer.write(head)
    await eventually(lambda: len(running.sidecar.registry) == 1)
    writer.write(b"zz\r\n")
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("sent", "want"),
    [
        pytest.param(b"", b"", id="silent"),
        pytest.param(b"POST /v1/chat/comp", b"HTTP/1.1 408 ", id="a part of a head"),
        pytest.param(
            request_bytes(BODY) + b"GET /v1/mod", b"HTTP/1.1 200 ", id="a request, then a part"
        ),
    ],
)
async def test_a_connection_without_a_whole_head_is_closed_early(
    house: House, sent: bytes, want: bytes
) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar(quick(head_s=0.2, client_idle_s=1.0))
    reader, writer = await running.raw()
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(want)
    assert bool(answer) == bool(want)


async def test_an_idle_connection_outlives_the_time_for_heads(house: House) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar(quick(head_s=0.1))
    reader, writer = await running.raw()
    silent, _ = await running.raw()
    for _ in range(2):
        writer.write(request_bytes(BODY))
        assert (await reader.readuntil(b"\r\n\r\n{}")).startswith(b"HTTP/1.1 200 ")
        await asyncio.wait_for(silent.read(), 10)  # it began to wait later, and is closed
        silent, _ = await running.raw()


OPEN = Cors(("*",))
PREFLIGHT = {
    "Origin": "http://app.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


@pytest.mark.parametrize(
    ("rules", "want", "allowed"),
    [
        pytest.param(OPEN, 200, "*", id="any origin"),
        pytest.param(Cors(), 400, None, id="vLLM's default"),
    ],
)
async def test_a_preflight_needs_no_key_and_errors_can_be_read_by_the_page(
    house: House, rules: Cors, want: int, allowed: str | None
) -> None:
    house.policies(with_tenant("known"))
    engine = await house.raw_engine(plain)
    running = await house.sidecar(replace(PATIENT, cors=rules))
    async with running.session.options(running.url + CHAT, headers=PREFLIGHT) as answer:
        assert (answer.status, answer.headers.get("Access-Control-Allow-Origin")) == (want, allowed)
    refused = await running.post(json={}, headers={"Origin": "http://app.example"})
    assert refused.status == 401
    assert refused.headers.get("Access-Control-Allow-Origin") == allowed
    assert not engine.requests


async def test_an_options_request_that_is_no_preflight_needs_a_key(house: House) -> None:
    house.policies(with_tenant("known"))
    await house.raw_engine(plain)
    running = await house.sidecar(replace(PATIENT, cors=OPEN))
    async with running.session.options(running.url + CHAT) as answer:
        assert answer.status == 401


@pytest.mark.parametrize(
    ("host", "want"),
    [
        pytest.param("127.0.0.1", 200, id="on the loopback, as under weir up"),
        pytest.param("::", 401, id="on all addresses, as in a pod"),
    ],
)
async def test_without_tenants_a_pod_does_not_trust_its_loopback(
    house: House, host: str, want: int
) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar(replace(PATIENT, addresses=replace(PATIENT.addresses, host=host)))
    assert (await running.post(json={})).status == want


async def test_health_is_answered_as_vllm_does_without_a_key(house: House) -> None:
    house.policies(with_tenant("known"))
    engine = await house.raw_engine(plain)
    running = await house.sidecar()
    assert (await running.get("/health")).status == 200
    engine.healthy = False
    await eventually(lambda: running.sidecar.monitor.state is EngineState.DOWN)
    assert (await running.get("/health")).status == 503
    assert running.outcomes == {}


async def test_health_of_a_leaving_replica_sends_load_balancers_away(house: House) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar(
        replace(PATIENT, draining=replace(PATIENT.draining, lame_duck_s=5.0))
    )
    running.sidecar.drain.begin()
    await eventually(lambda: running.sidecar.drain.phase is Phase.LAME_DUCK)
    assert (await running.get("/health")).status == 503


@pytest.mark.parametrize("version", ["2.0", "1.2", "0.9"])
async def test_a_version_that_is_not_spoken_is_answered_in_one_that_is(
    house: House, version: str
) -> None:
    await house.raw_engine(plain)
    answer = await answer_to(house, request_bytes(BODY, version=version))
    assert answer.startswith(b"HTTP/1.1 "), answer
