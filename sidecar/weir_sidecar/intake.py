"""Reading a client's request: its headers for the engine, and its body, within bounds."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from weir_sidecar import outcomes

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

# Hop by hop, or said anew by the sidecar.
_NOT_FORWARDED: Final = frozenset(
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


@dataclass(slots=True)
class Intake:
    """What the headers of one request say."""

    request_id: str = ""
    lines: list[bytes] = field(default_factory=list)
    """Header lines for the engine."""
    tracing: dict[str, str] = field(default_factory=dict)
    """The W3C trace headers."""
    expects_continue: bool = False
    websocket: bool = False


def request_id_from(given: str | None) -> str:
    """Return the client's request id where it is one plain word, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return os.urandom(16).hex()


def read_headers(request: web.BaseRequest) -> Intake:
    """Sort the headers: for the engine, for us, for nobody."""
    intake = Intake()
    given: str | None = None
    for name, value in request.raw_headers:
        key = name.lower()
        if key in _TRACING:
            intake.tracing[key.decode()] = value.decode("latin-1")
        elif key not in _NOT_FORWARDED:
            intake.lines.append(b"%b: %b\r\n" % (name, value))
        elif key == b"x-request-id":
            given = value.decode("latin-1")
        elif key == b"expect":
            intake.expects_continue = value.lower() == b"100-continue"
        elif key == b"upgrade":
            intake.websocket = value.lower() == b"websocket"
    intake.request_id = request_id_from(given)
    return intake


async def read_body(
    request: web.BaseRequest, intake: Intake, *, limit_bytes: int, timeout_s: float
) -> bytes:
    """Return the whole body; raise a `Refusal` where it is too large, too slow or broken."""
    if (request.content_length or 0) > limit_bytes:
        raise outcomes.too_large(limit_bytes)
    content = request.content
    if content.is_eof():  # a small body that came together with its head
        body = content.read_nowait()
        if len(body) > limit_bytes:
            raise outcomes.too_large(limit_bytes)
        return body
    if intake.expects_continue and request.transport is not None:
        request.transport.write(_CONTINUE)
    try:
        async with asyncio.timeout(timeout_s):
            return await _gather(request, limit_bytes)
    except TimeoutError:
        raise outcomes.slow_upload(timeout_s) from None
    except (web.RequestPayloadError, ValueError) as error:
        raise outcomes.bad_request(f"The request body cannot be read: {error}") from error


async def _gather(request: web.BaseRequest, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    size_bytes = 0
    while part := await request.content.readany():
        size_bytes += len(part)
        if size_bytes > limit_bytes:
            raise outcomes.too_large(limit_bytes)
        parts.append(part)
    return b"".join(parts)
