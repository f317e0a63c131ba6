"""When a client's connection is ended, in simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from bench.fuzz.network import SimulatedLoop, Wire
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.errors import ApiError
from weir_sidecar.frontend.protocol import ClientConnection, HttpRequest, HttpServer
from weir_sidecar.settings import Settings, Timeouts
from weir_sidecar.telemetry.metrics import Metrics

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Peer:
    """A client."""

    def __init__(self) -> None:
        self.received = b""

    def took(self, piece: bytes) -> None:
        self.received += piece

    def closed(self) -> None:
        """Nothing follows from it here."""


def answer(request: HttpRequest) -> None:
    request.answer(Answer(200, b"x" * 4000))


def refuse_unread(error: ApiError) -> Answer:
    return error.answer("", "id", close=True)


def connected(peer: Peer, **bounds: float) -> tuple[HttpServer, ClientConnection, Wire]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    metrics = Metrics(CollectorRegistry())
    settings = Settings(timeouts=Timeouts(**bounds))
    server = HttpServer(answer, refuse_unread, settings, metrics, loop.time)
    connection = cast(ClientConnection, server())
    wire = Wire(loop, cast(asyncio.Protocol, connection), peer)
    connection.connection_made(wire)
    return server, connection, wire


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"rubbish\r\n\r\n", id="one answer, after which the connection closes"),
        pytest.param(REQUEST, id="one answer, larger than its buffer"),
        pytest.param(REQUEST * 99, id="more answers than fit"),
    ],
)
@pytest.mark.parametrize(
    ("reads", "ends"),
    [
        pytest.param(lambda _: False, True, id="never reads"),
        pytest.param(lambda second: second % 3 == 0, False, id="reads now and then"),
    ],
)
def test_a_client_that_takes_nothing_for_too_long_is_cut_off(
    sent: bytes, reads: Callable[[int], bool], ends: bool
) -> None:
    async def scene() -> bool:
        server, connection, wire = connected(Peer(), slow_client_s=5.0, client_idle_s=1000.0)
        wire.peer_reads(False)
        wire.deliver(sent)
        cut_off = False
        for second in range(1, 20):
            await asyncio.sleep(1)
            wire.peer_reads(reads(second))
            server.look()
            cut_off |= wire.was_aborted
        connection.close()
        wire.abort()
        await asyncio.sleep(1)
        return cut_off

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        assert runner.run(scene()) is ends


@pytest.mark.parametrize(
    ("at_s", "want"),
    [
        pytest.param(5.9, 2, id="a head that begins in time is awaited"),
        pytest.param(6.1, 1, id="an idle connection is closed"),
    ],
)
def test_a_connection_is_not_idle_once_a_head_has_begun(at_s: float, want: int) -> None:
    async def scene() -> bytes:
        peer = Peer()
        server, connection, wire = connected(peer, client_idle_s=6.0)
        wire.deliver(REQUEST)
        server.look()
        await asyncio.sleep(at_s)
        server.look()
        wire.deliver(REQUEST[:10])
        await asyncio.sleep(0.5)
        wire.deliver(REQUEST[10:])
        await asyncio.sleep(0.5)
        connection.close()
        await asyncio.sleep(0.5)
        return peer.received

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        assert runner.run(scene()).count(b"HTTP/1.1 200 OK") == want


UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_a_request_behind_a_declined_upgrade_gets_one_answer() -> None:
    async def scene() -> bytes:
        peer = Peer()
        server, _, wire = connected(peer, head_s=3.0, client_idle_s=1000.0)
        wire.deliver(UPGRADE)
        wire.deliver(REQUEST)  # while the first one is being declined
        for _ in range(20):
            await asyncio.sleep(1)
            server.look()
        wire.reset()
        return peer.received

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        received = runner.run(scene())
    assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 200 ") == 2
