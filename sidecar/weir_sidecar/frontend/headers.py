"""The head of a client's request: what goes to the engine, and what is for the sidecar."""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from typing import Final

from aiohttp import web

from weir_core.wire.engine_inputs import STRIPPED_HEADERS
from weir_sidecar.frontend.auth import READ_HEADERS

_IDS: Final = random.Random()
"""Ids tell requests apart and are no secret; the system's source of those costs a call each."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

# Hop by hop, said anew by the sidecar, or not for clients to say.
_NOT_FORWARDED: Final = STRIPPED_HEADERS | frozenset(
    {
        b"connection",
        b"content-encoding",
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


class RequestHead:
    """What the headers of one request say."""

    __slots__ = (
        "announced_bytes",
        "encoding",
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
        self.encoding = ""
        """Content-Encoding in lower case; empty where the body is as it is."""
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
        elif key == b"content-encoding":
            said = value.decode("latin-1").strip().lower()
            self.encoding = f"{self.encoding}, {said}" if self.encoding else said
        elif key == b"expect":
            self.expects_continue = value.lower() == b"100-continue"
        elif key == b"upgrade":
            self.websocket = value.lower() == b"websocket"


def read_head(request: web.BaseRequest, secret: Collection[bytes] = ()) -> RequestHead:
    """Sort the headers: for the engine, for us, for nobody; those in `secret` go no further."""
    head = RequestHead()
    for name, value in request.raw_headers:
        key = name.lower()
        if key in _NOT_FORWARDED:
            head.note(key, value)
        elif key in _TRACING:
            head.tracing[key.decode()] = value.decode("latin-1")
        else:
            if key in READ_HEADERS:
                head.said[key] = value.decode("latin-1")
            if key not in secret:
                head.lines.append(b"%b: %b\r\n" % (name, value))
    head.request_id = head.request_id or new_request_id()
    return head


def new_request_id() -> str:
    """Return an id for a request whose client gave none that can be used."""
    return f"{_IDS.getrandbits(128):032x}"
