"""Reading a request's body within bounds, and inflating one that was compressed.

A kilobyte on the wire may be a megabyte in memory. So a compressed body is inflated here, after the
request was authenticated, and not by the HTTP library while it parses. Each slice counts against
the limits by its inflated size before the next one is made, and all slices but the first are made
in a thread, so that other streams do not wait for them.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Final

from weir_sidecar.frontend import errors
from weir_sidecar.frontend.protocol import HttpRequest

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_FIRST_SLICE_BYTES: Final = 64 << 10
"""Inflated on the event loop, in about 0.2 ms: a thread would cost a usual body as much."""
_SLICE_BYTES: Final = 1 << 20
_GZIP: Final = frozenset({"gzip", "x-gzip"})
_ACCEPTED: Final = "gzip, deflate"
_METHOD_DEFLATE: Final = 8
"""The low half of the first byte of zlib's format (RFC 1950)."""


async def read_body(
    request: HttpRequest,
    *,
    limit_bytes: int,
    timeout_s: float,
    hold: Callable[[int], None],
) -> bytes:
    """Return the whole body.

    Args:
        request: The request, authenticated.
        limit_bytes: The largest body, as sent and inflated.
        timeout_s: The client's time to send it.
        hold: Told of the body's size so far, before more is read; it may raise a `ApiError`.

    Raises:
        ApiError: The body is too large, too slow or broken, or in an encoding not undone here.
    """
    encoding = request.head.encoding
    inflater = _inflater(encoding) if encoding else None
    if request.announced_bytes > limit_bytes:
        raise errors.too_large(limit_bytes)
    if inflater is None and request.whole:
        return body_at_hand(request, limit_bytes, hold)
    if request.head.expects_continue and not request.whole:
        request.connection.write(_CONTINUE)
    try:
        async with asyncio.timeout(timeout_s):
            if inflater is not None:
                return await _inflated(request, inflater, limit_bytes, hold)
            return await _gathered(request, limit_bytes, hold)
    except TimeoutError:
        raise errors.slow_upload(timeout_s) from None
    except zlib.error:
        raise _broken(encoding) from None


def body_at_hand(request: HttpRequest, limit_bytes: int, hold: Callable[[int], None]) -> bytes:
    """Return a body that is at hand; raise the `ApiError` where it is too large."""
    body = request.take()
    if len(body) > limit_bytes:
        raise errors.too_large(limit_bytes)
    hold(len(body))
    return body


async def _gathered(request: HttpRequest, limit_bytes: int, hold: Callable[[int], None]) -> bytes:
    parts: list[bytes] = []
    size_bytes = 0
    while part := await request.read():
        size_bytes += len(part)
        if size_bytes > limit_bytes:
            raise errors.too_large(limit_bytes)
        hold(size_bytes)
        parts.append(part)
    return b"".join(parts)


async def _inflated(
    request: HttpRequest,
    inflater: _Inflater,
    limit_bytes: int,
    hold: Callable[[int], None],
) -> bytes:
    loop = asyncio.get_running_loop()
    slices: list[bytes] = []
    sent_bytes = size_bytes = 0
    while part := await request.read():
        sent_bytes += len(part)
        inflater.feed(part)
        while inflater.has_more:
            if not slices:
                piece = inflater.next_slice(_FIRST_SLICE_BYTES)
            else:
                piece = await loop.run_in_executor(None, inflater.next_slice, _SLICE_BYTES)
            size_bytes += len(piece)
            if max(size_bytes, sent_bytes) > limit_bytes:
                raise errors.too_large(limit_bytes)
            hold(size_bytes)
            slices.append(piece)
    if sent_bytes:
        inflater.check_complete()
    return b"".join(slices)


class _Inflater:
    """Undoes gzip or deflate in slices.

    Args:
        is_gzip: The format; deflate is zlib's, or bare where its first byte says so.
    """

    def __init__(self, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16) if is_gzip else None
        self._input = b""
        self._filled = False

    @property
    def has_more(self) -> bool:
        """Whether another slice may bring something before more is fed."""
        return bool(self._input) or self._filled

    def feed(self, part: bytes) -> None:
        """Take what came on the wire."""
        self._input = part

    def next_slice(self, most_bytes: int) -> bytes:
        """Return up to so many inflated bytes.

        Raises:
            zlib.error: The bytes are not in this format, or go on after its end.
        """
        if self._stream is None:
            is_zlib = self._input[0] & 0x0F == _METHOD_DEFLATE
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        piece = self._stream.decompress(self._input, most_bytes)
        self._input = self._stream.unconsumed_tail
        # What did not fit is inside the decompressor even where it took all of its input.
        self._filled = len(piece) == most_bytes and not self._stream.eof
        if self._stream.unused_data:
            raise zlib.error("bytes after the end")
        return piece

    def check_complete(self) -> None:
        """Raise `zlib.error` where the end is missing."""
        if self._stream is None or not self._stream.eof:
            raise zlib.error("the end is missing")


def _inflater(encoding: str) -> _Inflater | None:
    """Return what undoes an encoding, None where there is nothing to undo; raise the 415."""
    if encoding == "identity":
        return None
    if encoding in _GZIP or encoding == "deflate":
        return _Inflater(encoding in _GZIP)
    error = errors.bad_request(
        f"The body's Content-Encoding {encoding[:100]!r} is not read here. Send it as it is, or in "
        "one of gzip and deflate.",
        status=415,
        code="unsupported_encoding",
    )
    error.headers["Accept-Encoding"] = _ACCEPTED
    raise error


def _broken(encoding: str) -> errors.ApiError:
    return errors.bad_request(
        f"The request body is not whole and valid {encoding}.", code="bad_encoding"
    )
