"""What a client's connection does when the client takes nothing of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from bench.fuzz.network import SimulatedLoop, Wire
from weir_sidecar.frontend.errors import ApiError
from weir_sidecar.frontend.protocol import HttpServer
from weir_sidecar.settings import Limits, Timeouts
from weir_sidecar.telemetry.metrics import Metrics


class Peer:
    """A client."""

    def __init__(self) -> None:
        self.received = b""

    def took(self, piece: bytes) -> None:
        self.received += piece

    def closed(self) -> None:
        """Nothing follows from it here."""


async def answer(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="x" * 4000)


def refuse_unread(error: ApiError) -> web.StreamResponse:
    return error.response("", "id", close=True)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"rubbish\r\n\r\n", id="one answer, after which the connection closes"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="one answer, larger than its buffer"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 99, id="more answers than fit"),
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
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        bounds = Timeouts(slow_client_s=5.0, client_idle_s=1000.0)
        server = HttpServer(answer, refuse_unread, Limits(), bounds, Metrics(CollectorRegistry()))
        connection = server()
        wire = Wire(loop, connection, Peer())
        wire.peer_reads(False)
        connection.connection_made(wire)
        wire.deliver(sent)
        cut_off = False
        for second in range(1, 20):
            await asyncio.sleep(1)
            wire.peer_reads(reads(second))
            server.close_slow()
            cut_off |= wire.was_aborted
        connection.force_close()
        wire.abort()
        await asyncio.sleep(1)
        return cut_off

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        assert runner.run(scene()) is ends
