"""Clients that report the bytes of a body, and how its stream ended.

Two of them read what is on the wire. The third is curl, as a library that people use: over HTTP/2
it throws away what it reads together with the reset of a stream.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

_LIMIT_S: Final = 10.0
PATH: Final = "/v1/chat/completions"
_BODY: Final = b'{"model":"m","messages":[{"role":"user","content":"How are you?"}],"stream":true}'
_TYPE: Final = "content-type: application/json"

_LAST: Final = b"\r\n0\r\n\r\n"
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM: Final = 0x1
_ACK: Final = 0x1
_END_HEADERS: Final = 0x4
_POST_HTTP: Final = b"\x83\x86"
_PATH_FIELD, _AUTHORITY_FIELD = b"\x04", b"\x01"
"""HPACK's static table: `:method POST` and `:scheme http` whole, two names for literals."""


class Seen(NamedTuple):
    """What a client saw.

    Attributes:
        body: The bytes after the head; in HTTP/1.1 with their chunked encoding.
        end: In words; "whole" where HTTP said that it was.
    """

    body: bytes
    end: str


async def ask_curl(port: int) -> Seen:
    """Send one POST over HTTP/2 with curl."""
    child = await asyncio.create_subprocess_exec(
        *(
            "curl",
            "-sN",
            "--http2-prior-knowledge",
            "--max-time",
            str(_LIMIT_S),
            "-H",
            _TYPE,
            "-d",
            _BODY,
        ),
        f"http://127.0.0.1:{port}{PATH}",
        stdout=asyncio.subprocess.PIPE,
    )
    body, _ = await child.communicate()
    return Seen(body, f"exit code {child.returncode}" if child.returncode else "whole")


async def ask(port: int, *, http2: bool) -> Seen:
    """Send one POST and read until the stream ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(_LIMIT_S):
            if http2:
                return await _ask_http2(reader, writer)
            return await _ask_http1(reader, writer)
    finally:
        writer.close()


async def _ask_http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Seen:
    writer.write(
        f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\n{_TYPE}\r\n"
        f"content-length: {len(_BODY)}\r\n\r\n".encode()
        + _BODY
    )
    received = b""
    end = "closed"
    try:
        while not received.endswith(_LAST) and (piece := await reader.read(65536)):
            received += piece
    except ConnectionResetError:
        end = "reset"
    head, _, body = received.partition(b"\r\n\r\n")
    if head and b" 200 " not in head.partition(b"\r\n")[0]:
        end = head.partition(b"\r\n")[0].decode()
    elif body.endswith(_LAST):
        end = "whole"
    return Seen(body, end)


async def _ask_http2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Seen:
    head = _POST_HTTP + _literal(_PATH_FIELD, PATH) + _literal(_AUTHORITY_FIELD, "localhost")
    writer.write(
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, head)
        + _frame(_DATA, _END_STREAM, 1, _BODY)
    )
    received = b""
    while True:
        try:
            start = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(start[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return Seen(received, "connection lost")
        kind, flags = start[3], start[4]
        if kind == _SETTINGS and not flags & _ACK:
            writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _RST_STREAM:
            return Seen(received, f"RST_STREAM({int.from_bytes(payload, 'big')})")
        elif kind == _GOAWAY:
            return Seen(received, "GOAWAY")
        elif kind == _DATA:
            received += payload
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            return Seen(received, "whole")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


def _literal(field: bytes, value: str) -> bytes:
    """Return a header with an indexed name and a value of under 127 bytes, not to be indexed."""
    return field + bytes((len(value),)) + value.encode()
