"""The body of a client's request, read within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from weir_sidecar.frontend import errors
from weir_sidecar.frontend.headers import RequestHead

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


async def read_body(
    request: web.BaseRequest,
    head: RequestHead,
    *,
    limit_bytes: int,
    timeout_s: float,
    hold: Callable[[int], None],
) -> bytes:
    """Return the whole body; raise a `ApiError` where it is too large, too slow or broken.

    `hold` is told of its size so far, before more is read, and may raise a `ApiError`, too.
    """
    if head.announced_bytes > limit_bytes:
        raise errors.too_large(limit_bytes)
    content = request.content
    if content.is_eof():  # a small body that came together with its head
        body = content.read_nowait()
        if len(body) > limit_bytes:
            raise errors.too_large(limit_bytes)
        hold(len(body))
        return body
    if head.expects_continue and request.transport is not None:
        request.transport.write(_CONTINUE)
    try:
        async with asyncio.timeout(timeout_s):
            return await _gather(request, limit_bytes, hold)
    except TimeoutError:
        raise errors.slow_upload(timeout_s) from None
    except (web.RequestPayloadError, ValueError) as error:
        raise errors.bad_request(f"The request body cannot be read: {error}") from error


async def _gather(request: web.BaseRequest, limit_bytes: int, hold: Callable[[int], None]) -> bytes:
    parts: list[bytes] = []
    size_bytes = 0
    while part := await request.content.readany():
        size_bytes += len(part)
        if size_bytes > limit_bytes:
            raise errors.too_large(limit_bytes)
        hold(size_bytes)
        parts.append(part)
    return b"".join(parts)
