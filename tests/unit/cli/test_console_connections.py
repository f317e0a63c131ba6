"""The console's connections: how many there are, and that none rests for ever."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from weir_cli.console.access import ThisMachine
from weir_cli.console.connections import Connections
from weir_cli.console.feed import Feed
from weir_cli.console.hosting import hosted
from weir_cli.console.server import Find, Server
from weir_core.wire.request_state import RequestReport

SHORT_S = 0.2
LONG_S = 600.0
PATIENCE_S = 60.0
LARGE = 4 << 20
"""Bytes that fit into no socket's buffers here."""


@asynccontextmanager
async def open_to(connections: Connections, find: Find | None = None) -> AsyncIterator[int]:
    """Serve a console with these bounds; yield its port."""
    feed = Feed(tuple, 0.05, 1.0)
    server = Server(feed, find or found_at_once, ThisMachine())
    async with (
        asyncio.timeout(PATIENCE_S),
        hosted(server, (feed.run(),), "127.0.0.1", 0, connections) as (port, _),
    ):
        yield port


async def found_at_once(service: str, request_id: str) -> list[RequestReport]:
    return []


async def open_and_say(port: int, said: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    await writer.drain()
    return reader, writer


async def until_ended(reader: asyncio.StreamReader) -> bytes:
    """Return what is left to read when the server has ended the connection."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - what a test observes has no event
        await asyncio.sleep(0.01)


WHOLE = b"GET /icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("begun", "more", "head_s", "rest_s"),
    [
        pytest.param(b"", b"", SHORT_S, LONG_S, id="says nothing"),
        pytest.param(b"GET / HTTP/1.1\r\nHo", b"", SHORT_S, LONG_S, id="ends within its head"),
        pytest.param(WHOLE, b"GET / HTT", SHORT_S, LONG_S, id="ends within its next head"),
        pytest.param(WHOLE, b"", LONG_S, SHORT_S, id="asks for nothing more"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
            b"x",
            SHORT_S,
            LONG_S,
            id="owes its body",
        ),
    ],
)
async def test_a_connection_that_keeps_still_is_ended(
    begun: bytes, more: bytes, head_s: float, rest_s: float
) -> None:
    connections = Connections(head_s=head_s, rest_s=rest_s)
    async with open_to(connections) as port:
        reader, writer = await open_and_say(port, begun)
        if more:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(more)
        await until_ended(reader)
        writer.close()
        await until(lambda: not connections.number)


async def test_a_head_that_comes_a_byte_at_a_time_is_not_waited_for() -> None:
    async with open_to(Connections(head_s=SHORT_S)) as port:
        reader, writer = await open_and_say(port, b"GET / HTTP/1.1\r\nX: ")
        ended = asyncio.create_task(until_ended(reader))
        while not ended.done():
            writer.write(b"x")
            await asyncio.sleep(0.01)
        assert await ended == b""
        writer.close()


async def test_an_answer_that_is_not_read_is_not_waited_for() -> None:
    async def find(service: str, request_id: str) -> list[RequestReport]:
        return [RequestReport("x" * LARGE)]

    connections = Connections(rest_s=SHORT_S)
    async with open_to(connections, find) as port:
        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(silent, ("127.0.0.1", port))
            await loop.sock_sendall(
                silent, b"GET /request?id=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            await until(lambda: connections.number == 1)
            await until(lambda: not connections.number)


async def test_what_is_worked_on_does_not_rest() -> None:
    may_answer = asyncio.Event()

    async def find(service: str, request_id: str) -> list[RequestReport]:
        await may_answer.wait()
        return []

    bounds = Connections(head_s=SHORT_S, rest_s=SHORT_S)
    async with open_to(bounds, find) as port, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{port}"
        async with http.get(f"{url}/events") as stream:
            asked = asyncio.create_task(status(http.get(f"{url}/request?id=1")))
            for _ in range(3):  # three times as long as one may rest
                reader, writer = await open_and_say(port, b"")
                await until_ended(reader)
                writer.close()
            may_answer.set()
            assert await asked == 200
            assert (await stream.content.readline()).startswith(b"event: ")


async def status(asked: Awaitable[aiohttp.ClientResponse]) -> int:
    answer = await asked
    await answer.read()
    return answer.status


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"GET / HTTP/1.1\r\n", id="within its head"),
        pytest.param(
            b"GET /request?id=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx",
            id="within its body, while a handler works",
        ),
    ],
)
async def test_one_too_many_takes_the_place_of_the_one_that_rests_longest(begun: bytes) -> None:
    works = asyncio.Event()

    async def find(service: str, request_id: str) -> list[RequestReport]:
        works.set()
        await asyncio.Event().wait()
        return []

    connections = Connections(most=2)
    async with open_to(connections, find) as port, aiohttp.ClientSession() as http:
        oldest, first = await open_and_say(port, begun)
        await until(lambda: connections.number == 1)
        if b"/request" in begun:
            await works.wait()
        _, second = await open_and_say(port, b"GET / HTTP/1.1\r\n")
        await until(lambda: connections.number == 2)
        assert await status(http.get(f"http://127.0.0.1:{port}/")) == 200
        assert await until_ended(oldest) == b""
        assert connections.number == 2
        for writer in (first, second):
            writer.close()


async def test_one_too_many_is_refused_where_none_rests() -> None:
    async with (
        open_to(Connections(most=1)) as port,
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{port}/events") as stream,
    ):
        await stream.content.readline()
        reader, writer = await open_and_say(port, b"")
        assert await until_ended(reader) == b""
        writer.close()
        assert stream.status == 200
        assert await stream.content.readline()
