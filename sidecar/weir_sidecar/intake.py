"""Reading a client's request: its headers for the engine, and its body, within bounds."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Collection
from typing import Final

from aiohttp import web

from weir_core.wire.engine_inputs import STRIPPED_HEADERS
from weir_sidecar import outcomes
from weir_sidecar.callers import READ_HEADERS

_IDS: Final = random.Random()
"""Ids tell requests apart and are no secret; the system's source of those costs a call each."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

# Hop by hop, said anew by the sidecar, or not for clients to say.
_NOT_FORWARDED: Final = STRIPPED_HEADERS | frozenset(
    {
        b"connection",
        b"content-encoding",  # aiohttp has undone it
        b"content-length",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
    }
)
_TRACING: Final = frozenset({b"traceparent", b"tracestate"})
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Intake:
    """What the headers of one request say."""

    __slots__ = (
        "announced_bytes",
        "expects_continue",
        "lines",
        "request_id",
        "said",
        "tracing",
        "websocket",
    )

    def __init__(self) -> None:
        self.request_id = ""
        self.announced_bytes = 0
        """Content-Length, or 0."""
        self.lines: list[bytes] = []
        """Header lines for the engine."""
        self.tracing: dict[str, str] = {}
        """The W3C trace headers."""
        self.said: dict[bytes, str] = {}
        """Who asks and for what: the headers in `READ_HEADERS`, by lower-case name."""
        self.expects_continue = False
        self.websocket = False

    def note(self, key: bytes, value: bytes) -> None:
        """Note what a header that is not forwarded says to us."""
        if key == b"x-request-id":
            given = value.decode("latin-1")
            # Where it is not one plain word, the request gets a new one.
            self.request_id = given if _REQUEST_ID.fullmatch(given) else ""
        elif key == b"content-length":
            self.announced_bytes = int(value)  # aiohttp takes nothing but digits
        elif key == b"expect":
            self.expects_continue = value.lower() == b"100-continue"
        elif key == b"upgrade":
            self.websocket = value.lower() == b"websocket"


def read_headers(request: web.BaseRequest, secret: Collection[bytes] = ()) -> Intake:
    """Sort the headers: for the engine, for us, for nobody; those in `secret` go no further."""
    intake = Intake()
    for name, value in request.raw_headers:
        key = name.lower()
        if key in _NOT_FORWARDED:
            intake.note(key, value)
        elif key in _TRACING:
            intake.tracing[key.decode()] = value.decode("latin-1")
        else:
            if key in READ_HEADERS:
                intake.said[key] = value.decode("latin-1")
            if key not in secret:
                intake.lines.append(b"%b: %b\r\n" % (name, value))
    intake.request_id = intake.request_id or f"{_IDS.getrandbits(128):032x}"
    return intake


async def read_body(
    request: web.BaseRequest,
    intake: Intake,
    *,
    limit_bytes: int,
    timeout_s: float,
    hold: Callable[[int], None],
) -> bytes:
    """Return the whole body; raise a `Refusal` where it is too large, too slow or broken.

    `hold` is told of its size so far, before more is read, and may raise a `Refusal`, too.
    """
    if intake.announced_bytes > limit_bytes:
        raise outcomes.too_large(limit_bytes)
    content = request.content
    if content.is_eof():  # a small body that came together with its head
        body = content.read_nowait()
        if len(body) > limit_bytes:
            raise outcomes.too_large(limit_bytes)
        hold(len(body))
        return body
    if intake.expects_continue and request.transport is not None:
        request.transport.write(_CONTINUE)
    try:
        async with asyncio.timeout(timeout_s):
            return await _gather(request, limit_bytes, hold)
    except TimeoutError:
        raise outcomes.slow_upload(timeout_s) from None
    except (web.RequestPayloadError, ValueError) as error:
        raise outcomes.bad_request(f"The request body cannot be read: {error}") from error


async def _gather(request: web.BaseRequest, limit_bytes: int, hold: Callable[[int], None]) -> bytes:
    parts: list[bytes] = []
    size_bytes = 0
    while part := await request.content.readany():
        size_bytes += len(part)
        if size_bytes > limit_bytes:
            raise outcomes.too_large(limit_bytes)
        hold(size_bytes)
        parts.append(part)
    return b"".join(parts)
