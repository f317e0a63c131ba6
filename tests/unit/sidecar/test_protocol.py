"""The HTTP server towards clients: what is handed over and answered, and when a connection ends."""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Final, cast

import pytest
import uvloop
from prometheus_client import CollectorRegistry

from bench.fuzz.network import Recorder, SimulatedLoop, Wire
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.body import read_body
from weir_sidecar.frontend.errors import ApiError
from weir_sidecar.frontend.protocol import (
    MAX_UNREAD_BYTES,
    ClientConnection,
    HttpRequest,
    HttpServer,
)
from weir_sidecar.settings import Limits, Settings, Timeouts
from weir_sidecar.telemetry.metrics import Metrics

STATUS: Final = re.compile(rb"HTTP/1\.1 (\d\d\d) ")
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def answer(request: HttpRequest) -> None:
    request.answer(Answer(200, b"x" * 4000))


def refuse_unread(error: ApiError) -> Answer:
    return error.answer("", "id", close=True)


def connected(peer: Recorder, **bounds: float) -> tuple[HttpServer, ClientConnection, Wire]:
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
        server, connection, wire = connected(Recorder(), slow_client_s=5.0, client_idle_s=1000.0)
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
        peer = Recorder()
        server, connection, wire = connected(peer, client_idle_s=6.0)
        wire.deliver(REQUEST)
        server.look()
        for _ in range(6):
            await asyncio.sleep(at_s / 6)
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


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"", REQUEST, id="a new connection"),
        pytest.param(REQUEST[:10], REQUEST[10:], id="in the middle of a head"),
        pytest.param(REQUEST, REQUEST, id="between two requests"),
    ],
)
def test_what_came_while_the_process_was_stopped_is_answered(before: bytes, after: bytes) -> None:
    async def scene() -> bytes:
        peer = Recorder()
        server, connection, wire = connected(peer, head_s=3.0, client_idle_s=6.0)
        server.look()
        await asyncio.sleep(1)
        wire.deliver(before)
        server.look()
        await asyncio.sleep(60)
        server.look()  # the loop's timers come before what it reads
        wire.deliver(after)
        await asyncio.sleep(0.5)
        connection.close()
        await asyncio.sleep(0.5)
        return peer.received

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        received = runner.run(scene())
    assert received.count(b"HTTP/1.1 200 OK") == (before + after).count(REQUEST)


UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_a_request_behind_a_declined_upgrade_gets_one_answer() -> None:
    async def scene() -> bytes:
        peer = Recorder()
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


# What a handler gets, and when. The handler of these tests keeps requests until they are answered.


class Handler:
    """Keeps the requests that are handed over."""

    def __init__(self) -> None:
        self.requests: list[HttpRequest] = []
        self.gone = 0

    def __call__(self, request: HttpRequest) -> None:
        request.owner = self
        self.requests.append(request)

    def client_gone(self) -> None:
        self.gone += 1

    def answer(self, number: int = -1, body: bytes = b".") -> None:
        self.requests[number].owner = None
        self.requests[number].answer(Answer(200, body))


class HalfWire(Wire):
    """A connection of which one direction can end."""

    half_closed = False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True


LIMITS: Final = Limits()


class Scene:
    """A server with one connection.

    Args:
        handle: Begins to answer a request; without it they are kept in `handler`.
        wire_class: The connection.
        limits: Bounds of the server.
    """

    def __init__(
        self,
        handle: Callable[[HttpRequest], None] | None = None,
        *,
        wire_class: type[Wire] = Wire,
        limits: Limits = LIMITS,
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        self.handler, self.peer = Handler(), Recorder()
        metrics = Metrics(CollectorRegistry())
        settings = Settings(limits=limits)
        self.server = HttpServer(
            handle or self.handler, refuse_unread, settings, metrics, loop.time
        )
        self.connection = cast(ClientConnection, self.server())
        self.wire = wire_class(loop, cast(asyncio.Protocol, self.connection), self.peer)
        self.connection.connection_made(self.wire)

    @property
    def requests(self) -> list[HttpRequest]:
        """What was handed over."""
        return self.handler.requests

    @property
    def statuses(self) -> list[int]:
        """What was answered."""
        return [int(status) for status in STATUS.findall(self.peer.received)]

    async def settle(self) -> None:
        """Let everything happen that will."""
        await asyncio.sleep(0.1)

    async def end(self) -> None:
        """Hang up, and check that nothing is left."""
        self.wire.reset()
        await self.settle()
        assert not self.server.connections
        assert self.server.unread_bytes == 0


def simulated(scene: Callable[[], Coroutine[None, None, None]]) -> None:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(scene())


def post(body: bytes, *lines: bytes) -> bytes:
    head = [b"POST /v1/x HTTP/1.1", b"Host: x", *lines, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*head, b"", body])


CHUNKED: Final = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_connection_takes_one_request_after_the_other() -> None:
    async def scene() -> None:
        play = Scene()
        for number in range(3):
            play.wire.deliver(REQUEST)
            play.handler.answer(number)
            await play.settle()
        assert play.statuses == [200] * 3
        assert not play.wire.is_closing()
        await play.end()

    simulated(scene)


def test_pipelined_requests_are_handed_over_one_at_a_time_and_in_order() -> None:
    async def scene() -> None:
        play = Scene()
        play.wire.deliver(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(5)))
        for number in range(5):
            await play.settle()
            assert [request.head.raw_path for request in play.requests] == [
                f"/{n}" for n in range(number + 1)
            ]
            play.handler.answer(number, b"%d" % number)
        assert re.findall(rb"\r\n\r\n(\d)", play.peer.received) == [b"0", b"1", b"2", b"3", b"4"]
        await play.end()

    simulated(scene)


def test_few_requests_are_read_ahead_of_the_one_that_is_answered() -> None:
    async def scene() -> None:
        play = Scene()
        taken = 0
        while play.wire.is_reading() and taken < 1 << 20:
            play.wire.deliver(REQUEST * 40)
            taken += len(REQUEST * 40)
        assert taken < 64 << 10
        assert len(play.connection._waiting) <= (8 << 10) // len(REQUEST)
        sent = taken // len(REQUEST)
        for number in range(sent):
            play.handler.answer(number)
            await asyncio.sleep(0)
        assert len(play.requests) == sent
        assert play.wire.is_reading()
        await play.end()

    simulated(scene)


def test_many_pipelined_requests_leave_other_clients_their_turn() -> None:
    async def scene() -> None:
        handled: list[HttpRequest] = []

        def handle(request: HttpRequest) -> None:
            handled.append(request)
            request.answer(Answer(200, b"."))

        play = Scene(handle)
        play.wire.deliver(REQUEST * 1000)
        assert len(handled) == 16
        await play.settle()
        assert play.statuses == [200] * 1000
        await play.end()

    simulated(scene)


def test_a_client_that_takes_no_answers_is_read_no_further() -> None:
    async def scene() -> None:
        handled: list[HttpRequest] = []

        def handle(request: HttpRequest) -> None:
            handled.append(request)
            request.answer(Answer(200, b"x" * 500))

        play = Scene(handle)
        play.wire.peer_reads(False)
        sent = 0
        while play.wire.is_reading() and sent < 10_000:
            play.wire.deliver(REQUEST * 100)
            sent += 100
            await asyncio.sleep(0)
        await play.settle()
        assert sent < 10_000
        assert len(handled) < 16
        assert play.wire.get_write_buffer_size() < 16_000
        play.wire.peer_reads(True)
        await play.settle()
        assert len(handled) == sent
        await play.end()

    simulated(scene)


def test_a_pipelined_client_that_leaves_is_noticed() -> None:
    async def scene() -> None:
        play = Scene()
        play.wire.deliver(REQUEST * 3)
        play.wire.hang_up()
        await play.settle()
        assert play.wire.lost
        assert (len(play.requests), play.handler.gone) == (1, 1)
        await play.end()

    simulated(scene)


@pytest.mark.parametrize("end", ["close", "cut_off"])
def test_nothing_is_handed_over_once_the_server_ends_the_connection(end: str) -> None:
    async def scene() -> None:
        play = Scene()
        play.wire.deliver(REQUEST * 3)
        getattr(play.connection, end)()
        play.handler.answer()
        await play.settle()
        assert len(play.requests) == 1
        await play.end()

    simulated(scene)


@pytest.mark.parametrize(
    "framed",
    [
        pytest.param(post, id="of known length"),
        pytest.param(
            lambda body: CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), id="in chunks"
        ),
    ],
)
def test_a_request_behind_a_large_upload_is_answered(framed: Callable[[bytes], bytes]) -> None:
    async def scene() -> None:
        play, body = Scene(), bytes(range(256)) * 8000
        data = framed(body) + REQUEST
        read = b""
        for at in range(0, len(data), 100_000):
            play.wire.deliver(data[at : at + 100_000])
            read += play.requests[0].take()
        while piece := await play.requests[0].read():
            read += piece
        assert read == body
        play.handler.answer()
        assert [request.head.method for request in play.requests] == ["POST", "GET"]
        play.handler.answer()
        assert play.statuses == [200, 200]
        await play.end()

    simulated(scene)


def test_a_request_is_handed_over_with_all_of_its_body_that_has_come() -> None:
    async def scene() -> None:
        play, body = Scene(), b"b" * 200_000
        play.wire.deliver(post(body) + REQUEST)
        assert play.requests[0].whole
        assert play.requests[0].take() == body
        play.handler.answer()
        assert len(play.requests) == 2
        await play.end()

    simulated(scene)


def test_a_body_that_is_not_read_stops_its_client() -> None:
    async def scene() -> None:
        play, body = Scene(), b"b" * (4 << 20)
        data, sent = post(body), 0
        while play.wire.is_reading() and sent < len(data):
            play.wire.deliver(data[sent : sent + 65_536])
            sent += 65_536
        assert sent <= (256 << 10) + 3 * 65_536
        assert play.requests[0].unread_bytes <= (256 << 10) + (32 << 10)
        play.wire.deliver(data[sent:])  # what the network has taken meanwhile
        read = 0
        while piece := await play.requests[0].read():
            read += len(piece)
        assert read == len(body)
        assert play.wire.is_reading()
        await play.end()

    simulated(scene)


async def read_and_answer(request: HttpRequest) -> None:
    body = await read_body(request, limit_bytes=100, timeout_s=5.0, hold=lambda _: None)
    request.answer(Answer(200, body))


@pytest.mark.parametrize(
    ("version", "with_head", "want"),
    [
        pytest.param(b"1.1", b"", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ", id="it waits"),
        pytest.param(b"1.1", b"hello", b"HTTP/1.1 200 ", id="the body is there"),
        pytest.param(b"1.0", b"", b"HTTP/1.1 200 ", id="HTTP/1.0 does not know it"),
    ],
)
def test_a_client_that_waits_is_told_to_continue(
    version: bytes, with_head: bytes, want: bytes
) -> None:
    async def scene() -> None:
        tasks: list[asyncio.Task[None]] = []

        def handle(request: HttpRequest) -> None:
            tasks.append(asyncio.get_running_loop().create_task(read_and_answer(request)))

        play = Scene(handle)
        head = b"POST / HTTP/%b\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        play.wire.deliver(head % version + with_head)
        await play.settle()
        if not with_head:
            play.wire.deliver(b"hello")
        await asyncio.gather(*tasks)
        assert play.peer.received.startswith(want)
        assert play.peer.received.endswith(b"hello")
        await play.end()

    simulated(scene)


H2C: Final = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAA")


@pytest.mark.parametrize(
    "upgrade",
    [
        pytest.param(post(b"hello", *H2C), id="a body of known length, as Java's client sends it"),
        pytest.param(
            b"\r\n".join([CHUNKED[:-4], *H2C, b"", b"5\r\nhello\r\n0\r\nX-T: a\r\n\r\n"]),
            id="in chunks",
        ),
        pytest.param(b"\r\n".join([REQUEST[:-4], *H2C, b"", b""]), id="no body"),
        pytest.param(UPGRADE, id="WebSocket"),
    ],
)
@pytest.mark.parametrize("cut", [1, 7, 1000], ids=["byte by byte", "in pieces", "in one piece"])
def test_a_request_that_wishes_another_protocol_is_answered_in_this_one(
    upgrade: bytes, cut: int
) -> None:
    async def scene() -> None:
        play = Scene()
        data = upgrade + REQUEST + upgrade + upgrade
        for at in range(0, len(data), cut):
            play.wire.deliver(data[at : at + cut])
        bodies = []
        for number in range(4):
            bodies.append(play.requests[number].take())
            play.handler.answer(number)
        body = b"hello" if b"hello" in upgrade else b""
        assert bodies == [body, b"", body, body]
        assert play.statuses == [200] * 4
        assert not play.wire.is_closing()
        await play.end()

    simulated(scene)


def test_any_number_of_wishes_for_another_protocol_may_come_in_one_piece() -> None:
    async def scene() -> None:
        play = Scene(lambda request: request.answer(Answer(200, b".")))
        play.wire.deliver(UPGRADE * 3000)
        await play.settle()
        assert play.statuses == [200] * 3000
        await play.end()

    simulated(scene)


def test_trailers_become_headers_of_no_request() -> None:
    async def scene() -> None:
        play = Scene()
        trailers = b"X-T: a\r\nHost: y\r\nX-Request-Id: t\r\ntraceparent: t\r\n"
        play.wire.deliver(CHUNKED + b"1\r\na\r\n0\r\n" + trailers + b"\r\n" + REQUEST)
        first = play.requests[0]
        assert [name for name, _ in first.head.headers] == [b"Host", b"Transfer-Encoding"]
        assert first.take() == b"a"
        play.handler.answer()
        second = play.requests[1]
        assert second.head.headers == [(b"Host", b"x")]
        assert (first.given_id, first.tracing) == (second.given_id, second.tracing) == (b"", {})
        play.handler.answer()
        assert not play.wire.is_closing()
        await play.end()

    simulated(scene)


@pytest.mark.parametrize(
    "barren",
    [
        pytest.param(b"0\r\nX-T: " + b"t" * 100_000, id="a trailer"),
        pytest.param(b"0\r\n" + b"X-T: t\r\n" * 12_000, id="many trailers"),
        pytest.param(b"1;" + b"e" * 100_000, id="an extension"),
    ],
)
def test_what_stands_around_the_chunks_of_a_body_is_bounded(barren: bytes) -> None:
    async def scene() -> None:
        play = Scene()
        play.wire.deliver(CHUNKED + b"1\r\na\r\n" + barren)
        assert [request.head.method for request in play.requests] == ["POST"]
        with pytest.raises(ApiError) as refusal:
            play.requests[0].take()
        assert refusal.value.status == 400
        play.handler.answer()
        await play.settle()
        assert play.wire.lost
        await play.end()

    simulated(scene)


def test_a_body_of_many_small_chunks_is_whole() -> None:
    async def scene() -> None:
        play = Scene()
        play.wire.deliver(CHUNKED + b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n")
        assert await play.requests[0].read() == b"a" * 100_000
        await play.end()

    simulated(scene)


def test_the_end_of_a_body_does_not_count_as_the_head_behind_it() -> None:
    async def scene() -> None:
        play = Scene(limits=Limits(max_header_bytes=100))
        play.wire.deliver(post(b"b" * 20_000) + REQUEST[:10])
        play.requests[0].take()
        play.handler.answer()
        play.wire.deliver(REQUEST[10:])
        play.handler.answer()
        assert play.statuses == [200, 200]
        await play.end()

    simulated(scene)


@pytest.mark.parametrize(
    ("lines", "limits"),
    [
        pytest.param([b"X: " + b"a" * 5000], Limits(max_header_bytes=4096), id="one header"),
        pytest.param([b"X: " + b"a" * 500] * 10, Limits(max_header_bytes=4096), id="together"),
        pytest.param([b"X: a"] * 20, Limits(max_headers=20), id="their number"),
    ],
)
@pytest.mark.parametrize("cut", [1, 1 << 20], ids=["byte by byte", "in one piece"])
def test_a_head_over_a_bound_is_refused(lines: list[bytes], limits: Limits, cut: int) -> None:
    async def scene() -> None:
        play = Scene(limits=limits)
        data = REQUEST + b"\r\n".join([REQUEST[:-4], *lines, b"", b""]) + REQUEST
        for at in range(0, len(data), cut):
            play.wire.deliver(data[at : at + cut])
        play.handler.answer()
        await play.settle()
        assert play.statuses == [200, 431]
        assert len(play.requests) == 1
        assert play.wire.lost
        await play.end()

    simulated(scene)


@pytest.mark.parametrize(
    ("head_bytes", "statuses"),
    [pytest.param(1000, [200], id="a small one"), pytest.param(100_000, [431], id="a large one")],
)
def test_large_heads_of_others_do_not_have_a_small_one_refused(
    head_bytes: int, statuses: list[int]
) -> None:
    async def scene() -> None:
        play = Scene()
        play.server.unread_bytes = MAX_UNREAD_BYTES
        data = REQUEST[:-2] + b"X: " + b"a" * head_bytes + b"\r\n\r\n"
        for at in range(0, len(data), 500):
            play.wire.deliver(data[at : at + 500])
        for _ in play.requests:
            play.handler.answer()
        assert play.statuses == statuses
        play.server.unread_bytes -= MAX_UNREAD_BYTES
        await play.end()

    simulated(scene)


def test_urls_of_clients_are_not_kept() -> None:
    async def scene() -> None:
        play = Scene(lambda request: request.answer(Answer(404, b".")))
        tracemalloc.start()
        for number in range(200):
            play.wire.deliver(
                b"GET http://a/%d-%b HTTP/1.1\r\nHost: x\r\n\r\n" % (number, b"u" * 50_000)
            )
            play.peer.received = b""
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 2_000_000
        await play.end()

    simulated(scene)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(b"GET / HTTP/2.0\r\nHost: x", 505, id="another version"),
        pytest.param(b"GET / HTTP/1.1", 400, id="no host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nhost: y", 400, id="two hosts"),
        pytest.param(REQUEST[:-4] + b"\r\nTransfer-Encoding: gzip, chunked", 501, id="gzip"),
        pytest.param(
            REQUEST[:-4] + b"\r\nTransfer-Encoding: chunked" * 2, 400, id="chunked, two times"
        ),
        pytest.param(
            REQUEST[:-4] + b"\r\nTransfer-Encoding: chunked\t\r\nConnection: upgrade\r\nUpgrade: x",
            501,
            id="chunked, as llhttp does not know it",
        ),
        pytest.param(
            REQUEST[:-4] + b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", 400, id="both"
        ),
        pytest.param(REQUEST[:-4] + b"\r\nContent-Length: 1\r\nContent-Length: 2", 400, id="two"),
        pytest.param(REQUEST[:-4] + b"\r\nX : a", 400, id="a space before the colon"),
        pytest.param(REQUEST[:-4] + b"\r\nX: a\r\n b", 400, id="a folded line"),
        pytest.param(REQUEST[:-4] + b"\nX: a", 400, id="a bare LF"),
        pytest.param(REQUEST[:-4] + b"\r\nX: a\x00", 400, id="NUL"),
    ],
)
def test_a_head_that_is_not_taken_is_refused_and_ends_the_connection(
    head: bytes, status: int
) -> None:
    async def scene() -> None:
        play = Scene()
        play.wire.deliver(head + b"\r\n\r\n" + REQUEST)
        await play.settle()
        assert play.statuses == [status]
        assert play.requests == []
        assert play.wire.lost
        await play.end()

    simulated(scene)


@pytest.mark.parametrize(
    "loop_factory",
    [
        pytest.param(asyncio.new_event_loop, id="asyncio"),
        pytest.param(uvloop.new_event_loop, id="uvloop"),
    ],
)
def test_a_refused_client_that_still_sends_reads_its_answer(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """With real sockets: the kernel would reset a connection that is closed with bytes unread."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()

        def handle(request: HttpRequest) -> None:
            request.answer(Answer(401, b"no" * 50_000, close=True))

        metrics = Metrics(CollectorRegistry())
        server = HttpServer(handle, refuse_unread, Settings(), metrics, loop.time)
        listener = await loop.create_server(server, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        try:
            async with asyncio.timeout(20):
                writer.write(post(b"b" * (8 << 20)))
                await writer.drain()
                received = await reader.read()
                writer.close()
                while server.connections:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.01)
        finally:
            writer.transport.abort()
            listener.close()
        assert received.startswith(b"HTTP/1.1 401 ")
        assert len(received.partition(b"\r\n\r\n")[2]) == 100_000

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scene())


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        pytest.param(post(b"b" * 500)[:-100], 1, id="an upload that is refused"),
        pytest.param(b"rubbish\r\n\r\n" * 9, 0, id="what is no request"),
    ],
)
def test_a_client_that_is_refused_has_a_while_to_read_why(sent: bytes, answers: int) -> None:
    async def scene() -> None:
        play = Scene(wire_class=HalfWire)
        play.wire.deliver(sent)
        for _ in range(answers):
            play.handler.answer()
        assert isinstance(play.wire, HalfWire)
        assert play.wire.half_closed
        assert len(play.statuses) == 1
        for _ in range(4):
            await asyncio.sleep(1)
            play.server.look()
            play.wire.deliver(b"b" * 100_000)
        assert not play.wire.is_closing()
        await asyncio.sleep(1.1)
        play.server.look()
        await play.settle()
        assert play.wire.lost
        assert (len(play.requests), len(play.statuses)) == (answers, 1)
        await play.end()

    simulated(scene)


def test_an_answer_before_the_end_of_a_body_ends_the_connection() -> None:
    async def scene() -> None:
        play = Scene()
        play.wire.deliver(post(b"hello")[:-1])
        play.connection.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        play.connection.finished(keep_alive=True)
        play.wire.deliver(b"o" + REQUEST)
        await play.settle()
        assert (len(play.requests), play.wire.lost) == (1, True)
        await play.end()

    simulated(scene)


async def drained(connection: ClientConnection) -> str:
    try:
        await connection.drain()
    except ConnectionResetError:
        return "gone"
    return "drained"


@pytest.mark.parametrize(
    ("happens", "want"),
    [
        pytest.param(lambda wire: wire.peer_reads(True), "drained", id="the client reads"),
        pytest.param(lambda wire: wire.reset(), "gone", id="the client leaves"),
    ],
)
def test_who_writes_much_waits_for_the_client(happens: Callable[[Wire], None], want: str) -> None:
    async def scene() -> None:
        play = Scene()
        play.wire.deliver(REQUEST)
        assert await drained(play.connection) == "drained"
        play.wire.peer_reads(False)
        play.connection.write(b"x" * 10_000)
        assert play.connection.writing_paused
        waits = asyncio.get_running_loop().create_task(drained(play.connection))
        await play.settle()
        assert not waits.done()
        happens(play.wire)
        assert await waits == want
        await play.end()

    simulated(scene)


@pytest.mark.parametrize(
    ("sent", "handed", "gone"),
    [
        pytest.param(b"", 0, 0, id="before the first byte"),
        pytest.param(REQUEST[:20], 0, 0, id="in a head"),
        pytest.param(post(b"hello")[:-2], 1, 1, id="in a body"),
        pytest.param(REQUEST, 1, 1, id="while it is answered"),
        pytest.param(REQUEST * 3, 1, 1, id="while others wait"),
        pytest.param(REQUEST + post(b"hello")[:-2], 1, 1, id="in the body of one that waits"),
        pytest.param(REQUEST + b"rubbish\r\n", 1, 1, id="before a refusal"),
        pytest.param(b"rubbish\r\n", 0, 0, id="after a refusal"),
    ],
)
def test_a_client_that_leaves_at_any_time_leaves_nothing(
    sent: bytes, handed: int, gone: int
) -> None:
    async def scene() -> None:
        play = Scene()
        if sent:
            play.wire.deliver(sent)
        play.wire.reset()
        await play.settle()
        assert (len(play.requests), play.handler.gone) == (handed, gone)
        assert play.connection.is_idle
        assert not any(isinstance(held, HttpRequest) for held in gc.get_referents(play.connection))
        for number in range(handed):  # its handler need not know
            play.handler.answer(number)
            play.requests[number].take()
        await play.end()

    simulated(scene)


def test_requests_that_differ_in_one_thing_get_each_their_own() -> None:
    base = [b"POST /a HTTP/1.1", b"Host: x", b"Authorization: Bearer one"]
    others = [
        [b"POST /b HTTP/1.1", *base[1:]],
        [b"PUT /a HTTP/1.1", *base[1:]],
        [*base[:2], b"Authorization: Bearer two"],
        [*base, b"X-Request-Id: id-1"],
        [*base, b"X-Request-Id: id-2 "],
        [*base, b"traceparent: t-1"],
        [*base, b"Content-Length: 3"],
        [*base, b"Transfer-Encoding: chunked"],
        [*base, b"X-Space:  a \t "],
        [b"POST /a HTTP/1.0", *base[1:]],
    ]

    async def scene() -> None:
        play, got, want = Scene(), [], []
        for lines in [each for other in others for each in (base, other)]:
            body = {b"Content-Length: 3": b"abc", b"Transfer-Encoding: chunked": b"0\r\n\r\n"}
            play.wire.deliver(b"\r\n".join([*lines, b"", body.get(lines[-1], b"")]))
            request = play.requests[-1]
            got.append((shown(request), request.take()))
            want.append((wanted(lines), b"abc" if lines[-1] == b"Content-Length: 3" else b""))
            play.handler.answer()
        assert got == want
        await play.end()

    simulated(scene)


def shown(request: HttpRequest) -> dict[str, object]:
    head = request.head
    return {
        "line": (head.method, head.raw_path, head.version),
        "lines": head.lines.split(b"\r\n")[1:-1],
        "key": head.said[b"authorization"],
        "apart": (request.given_id, request.tracing, request.announced_bytes),
        "stays": request.keep_alive,
    }


def wanted(lines: list[bytes]) -> dict[str, object]:
    method, path, version = lines[0].decode().split()
    headers = dict(line.split(b":", 1) for line in lines[1:])
    values = {name.lower(): value.strip() for name, value in headers.items()}
    apart = {b"x-request-id", b"traceparent", b"content-length", b"transfer-encoding"}
    trace = values.get(b"traceparent", b"").decode()
    return {
        "line": (method, path, version.removeprefix("HTTP/")),
        "lines": [
            b"%b: %b" % (name, value.strip())
            for name, value in headers.items()
            if name.lower() not in apart
        ],
        "key": values[b"authorization"].decode(),
        "apart": (
            values.get(b"x-request-id", b""),
            {"traceparent": trace} if trace else {},
            int(values.get(b"content-length", b"0")),
        ),
        "stays": version == "HTTP/1.1",
    }


def test_a_request_does_not_get_the_trace_of_the_one_behind_it() -> None:
    async def scene() -> None:
        play = Scene()
        play.wire.deliver(REQUEST + REQUEST[:-2] + b"traceparent: t\r\n\r\n" + REQUEST)
        for number in range(3):
            play.handler.answer(number)
        assert [request.tracing for request in play.requests] == [{}, {"traceparent": "t"}, {}]
        await play.end()

    simulated(scene)


def test_nothing_grows_with_the_requests_of_a_connection() -> None:
    async def scene() -> None:
        play = Scene(lambda request: request.answer(Answer(200, request.take())))
        blocks = []
        for number in range(2000):
            lines = (b"X-Request-Id: %d" % number, b"X-Other: %d" % (number % 3))
            play.wire.deliver(post(b"b" * 100, *lines))
            play.peer.received = b""
            if number in (999, 1999):
                gc.collect()
                blocks.append(sys.getallocatedblocks())
        assert abs(blocks[1] - blocks[0]) < 500
        await play.end()

    simulated(scene)
