"""A server that plays the end of a broken stream byte by byte.

It stands where the sidecar stands, and does with its connection exactly what an `Ending` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

LAST_CHUNK: Final = b"0\r\n\r\n"
_PACE_S: Final = 0.003
_UNTIL_GONE_S: Final = 5.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_LINGER_OFF: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream ends after its events.

    Args:
        name: What the table calls it.
        last: The bytes of the last event; empty sends none.
        whole: HTTP's end is sent; else the connection closes inside the chunked encoding.
        wait_s: Time between the last event and the close.
        reset: The connection is reset rather than closed.
    """

    name: str
    last: bytes
    whole: bool = False
    wait_s: float = 0.0
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Args:
        events: Pieces of the body, each a chunk of its own.
        ending: How a stream ends, or None for an answer with a length.
        status: The HTTP status.
        headers: Further headers.
    """

    events: tuple[bytes, ...]
    ending: Ending | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def playing(answers: Callable[[str], Answer]) -> AsyncIterator[int]:
    """Serve `answers`, by path, on a loopback port; yields the port."""
    connections: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        try:
            path, is_old = await _request(reader)
            await _play(answers(path), writer, is_old=is_old)
            if not writer.transport.is_closing():
                await asyncio.wait_for(reader.read(), _UNTIL_GONE_S)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            connections.discard(asyncio.current_task())
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])
        if left := [each for each in connections if each is not None]:
            await asyncio.wait(left, timeout=_UNTIL_GONE_S)


async def _request(reader: asyncio.StreamReader) -> tuple[str, bool]:
    """Read a request whole, since closing over unread bytes would be a reset.

    Returns:
        Its path, and whether its client speaks HTTP/1.0.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    _, path, version = head.split(b"\r\n", 1)[0].split(b" ")
    length = _LENGTH.search(head)
    if length is not None:
        await reader.readexactly(int(length[1]))
    return path.decode(), version == b"HTTP/1.0"


async def _play(answer: Answer, writer: asyncio.StreamWriter, *, is_old: bool) -> None:
    ending = answer.ending
    lines = [f"HTTP/1.1 {answer.status} x", *map(": ".join, answer.headers.items())]
    if ending is None:
        body = b"".join(answer.events)
        lines += [f"content-length: {len(body)}", "content-type: application/json"]
        writer.write("\r\n".join([*lines, "connection: close\r\n\r\n"]).encode() + body)
        writer.write_eof()
        return
    framing = "connection: close" if is_old else "transfer-encoding: chunked"
    lines += ["content-type: text/event-stream", framing]
    writer.write("\r\n".join([*lines, "\r\n"]).encode())
    for event in answer.events:
        writer.write(_framed(event, is_old=is_old))
        await asyncio.sleep(_PACE_S)
    await _end(ending, writer, is_old=is_old)


async def _end(ending: Ending, writer: asyncio.StreamWriter, *, is_old: bool) -> None:
    if ending.last:
        writer.write(_framed(ending.last, is_old=is_old))
    if ending.whole and not is_old:
        writer.write(LAST_CHUNK)
    if ending.wait_s:
        await asyncio.sleep(ending.wait_s)
    if ending.reset:
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
        writer.transport.abort()
    else:
        writer.write_eof()  # a FIN behind what is buffered


def _framed(piece: bytes, *, is_old: bool) -> bytes:
    return piece if is_old else b"%x\r\n%b\r\n" % (len(piece), piece)
