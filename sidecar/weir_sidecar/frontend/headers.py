"""The head of a client's request: what goes to the engine, and what is for the sidecar."""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from typing import Final
from urllib.parse import unquote, urlsplit

from weir_core.wire.engine_inputs import STRIPPED_HEADERS
from weir_core.wire.paths import endpoint_of
from weir_core.wire.peers import FORWARDED_HEADER, RETURNED_HEADER
from weir_sidecar.frontend import errors
from weir_sidecar.frontend.auth import READ_HEADERS, Caller, Directory
from weir_sidecar.frontend.errors import ApiError

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
        FORWARDED_HEADER,
        RETURNED_HEADER,
    }
)
SPACE: Final = b" \t"
"""What may stand around a header's value; llhttp leaves what stands behind it."""
_LONGEST_URL: Final = 8 << 10
"""Longer ones name no path, unless they begin with it: urllib keeps each that it takes apart."""
_OLD: Final = "1.0"
_SPOKEN: Final = frozenset({_OLD, "1.1"})


class RequestHead:
    """The request line and the headers of a request, sorted: for the engine, for us, for nobody.

    What differs from one request of a client to the next is not in it (`HttpRequest` has the length
    of the body, the id and the trace headers), so that most requests of a connection share one.

    Args:
        method: As it was sent.
        raw_path: What the request line asks for, as it was sent.
        version: Of HTTP, such as `1.1`.
        headers: Names and values as they were sent.
        secret: Lower-case names of headers that go no further.

    Attributes:
        path: The decoded path, without the query.
        lines: The request line and the headers for the engine, each with its line end.
        said: Who asks and for what: the headers in `READ_HEADERS`, by lower-case name.
        encoding: Content-Encoding in lower case; empty where the body is as it is.
        is_old: It is of HTTP/1.0, which knows no chunks and, here, no second request.
        may_stay: Another request may follow on the connection.
        refusal: Why no request with such a head is taken, or None.
        endpoint: What the path is for, or None where it is closed to clients.
        directory: The policies by which the following was found.
        caller: Who asks, once that was looked up.
        rank: The rank that the headers alone give.
        tenant: Who is accounted for.
        class_name: The class where the body wishes for none, once that was looked up.
    """

    def __init__(
        self,
        method: str,
        raw_path: str,
        version: str,
        headers: list[tuple[bytes, bytes]],
        secret: Collection[bytes] = (),
    ) -> None:
        self.method, self.raw_path, self.version, self.headers = method, raw_path, version, headers
        is_known = raw_path.startswith("/") or len(raw_path) <= _LONGEST_URL
        self.path, target = _path_of(raw_path) if is_known else (raw_path, "/")
        self.endpoint = endpoint_of(method, self.path)
        self.is_old = version == _OLD
        self.may_stay = not self.is_old and method != "CONNECT"
        self.said: dict[bytes, str] = {}
        self.encoding = ""
        self.origin: str | None = None
        self.expects_continue = self.websocket = self.is_chunked = False
        self.refusal: ApiError | None = None
        self.directory: Directory | None = None
        self.caller: Caller | None = None
        self.tenant = self.class_name = ""
        self.rank = self._hosts = 0
        lines = [f"{method} {target} HTTP/1.1\r\n".encode("utf-8", "surrogateescape")]
        for name, as_sent in headers:
            key, value = name.lower(), as_sent.rstrip(SPACE)
            if key == b"transfer-encoding":
                self._note_framing(as_sent)
            else:
                self._note(key, value)
            if key not in _NOT_FORWARDED and key not in secret:
                lines.append(b"%b: %b\r\n" % (name, value))
        self.lines = b"".join(lines)
        self._check_version_and_host()

    def header(self, name: bytes) -> str | None:
        """Return the value of any header by its lower-case name."""
        for key, value in self.headers:
            if key.lower() == name:
                return value.rstrip(SPACE).decode("latin-1")
        return None

    def _note(self, key: bytes, value: bytes) -> None:
        """Note what a header says to us."""
        if key in READ_HEADERS:
            self.said[key] = value.decode("latin-1")
        elif key == b"host":
            self._hosts += 1
        elif key == b"origin":
            self.origin = value.decode("latin-1")
        elif key == b"content-encoding":
            said = value.decode("latin-1").strip().lower()
            self.encoding = f"{self.encoding}, {said}" if self.encoding else said
        elif key == b"expect":
            self.expects_continue = not self.is_old and value.lower() == b"100-continue"
        elif key == b"upgrade":
            self.websocket = value.lower() == b"websocket"

    def _note_framing(self, as_sent: bytes) -> None:
        """Take the one coding that is known here, written as llhttp knows it."""
        if as_sent.rstrip(b" ").lower() != b"chunked":
            self.refusal = errors.unreadable(
                "its Transfer-Encoding may be nothing but chunked", status=501
            )
        self.is_chunked = True

    def _check_version_and_host(self) -> None:
        if self.version not in _SPOKEN:
            self.refusal = errors.unreadable(
                "only HTTP/1.1 and HTTP/1.0 are spoken here", status=505, code="bad_version"
            )
        elif self._hosts > 1 or not (self._hosts or self.is_old):
            self.refusal = errors.unreadable("it has to name one host")


def request_id_of(given: bytes) -> str:
    """Return the id that a client gave its request, or a new one where that is no plain word."""
    if given:
        text = given.decode("latin-1")
        if _REQUEST_ID.fullmatch(text):
            return text
    return new_request_id()


def new_request_id() -> str:
    """Return an id for a request whose client gave none that can be used."""
    return _IDS.randbytes(16).hex()


def _path_of(raw_path: str) -> tuple[str, str]:
    """Return the decoded path, and what to ask the engine for."""
    if raw_path.startswith("/"):
        return _decoded(raw_path.partition("?")[0].partition("#")[0]), raw_path
    try:  # in absolute form, or `*`
        parts = urlsplit(raw_path)
    except ValueError:
        return _decoded(raw_path), "/"
    path = parts.path or "/"
    target = f"{path}?{parts.query}" if parts.query else path
    return _decoded(path), target if target.startswith("/") else "/"


def _decoded(path: str) -> str:
    """Return a path as people read it; bytes that are no UTF-8 are replaced."""
    if not path.isascii():
        path = path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unquote(path) if "%" in path else path
