"""What sidecars say to each other in headers never passes from a client, and never to one."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from bench.fuzz.network import Recorder, SimulatedLoop, Wire
from tests.unit.sidecar.fakes import http_request
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.client import Client
from weir_sidecar.frontend.headers import RequestHead
from weir_sidecar.frontend.protocol import ClientConnection, HttpRequest, HttpServer
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.splice import Exchange

SAID = b'{"class_name":"interactive"}'
REQUEST = b"GET /%d HTTP/1.1\r\nHost: x\r\nX-Weir-Forwarded: %b\t\r\nx-other: 1\r\n\r\n"


def requests_of(*sent: bytes, is_peers: bool) -> list[HttpRequest]:
    """What a port hands over of what one connection sent."""
    handed: list[HttpRequest] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)

        def handle(request: HttpRequest) -> None:
            handed.append(request)
            request.answer(Answer(200, b""))

        server = HttpServer(
            handle, lambda _: Answer(400, b""), Settings(), Metrics(CollectorRegistry()), loop.time
        )
        server.is_peers = is_peers
        connection = cast(ClientConnection, server())
        wire = Wire(loop, cast(asyncio.Protocol, connection), Recorder())
        connection.connection_made(wire)
        for each in sent:
            wire.deliver(each)
        await asyncio.sleep(1)
        wire.abort()
        await asyncio.sleep(1)

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(scene())
    return handed


def test_the_peer_port_takes_it_out_of_the_head() -> None:
    first, second = requests_of(REQUEST % (1, SAID), REQUEST % (1, b"{}"), is_peers=True)
    assert (first.forwarded, second.forwarded) == (SAID, b"{}")
    assert first.head is second.head
    assert b"weir" not in first.head.lines
    assert b"x-other: 1" in first.head.lines


def test_a_request_without_it_has_none_of_the_one_before() -> None:
    plain = b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"
    first, second = requests_of(REQUEST % (1, SAID), plain, is_peers=True)
    assert (first.forwarded, second.forwarded) == (SAID, b"")


def test_the_api_port_does_not_heed_it() -> None:
    [request] = requests_of(REQUEST % (1, SAID), is_peers=False)
    assert request.forwarded == b""
    assert b"forwarded" not in request.head.lines.lower()


@pytest.mark.parametrize("name", [b"x-weir-forwarded", b"X-Weir-Returned"])
def test_a_clients_own_goes_no_further(name: bytes) -> None:
    head = RequestHead("GET", "/", "1.1", [(b"host", b"x"), (name, b"1"), (b"x-y", b"2")])
    assert head.lines == b"GET / HTTP/1.1\r\nhost: x\r\nx-y: 2\r\n"


def test_an_engine_cannot_return_a_request() -> None:
    client = Client(http_request(), lambda: False)
    answer = Exchange(client, lambda: 0.0)
    answer.status, answer.reason = 200, b"OK"
    answer.headers = [(b"x-weir-returned", b"draining"), (b"content-length", b"0")]
    assert b"x-weir-returned" not in client.open(answer)
