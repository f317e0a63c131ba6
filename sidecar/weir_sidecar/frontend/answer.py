"""A whole answer of the sidecar's own: a refusal, a probe, a preflight."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json; charset=utf-8"


class Answer:
    """One answer.

    Args:
        status: The HTTP status.
        body: The whole of it.
        content_type: What the body is.
        headers: Further headers; their values are checked for line ends when they are written.
        close: The client's connection cannot go on after it.
    """

    def __init__(
        self,
        status: int,
        body: bytes,
        content_type: str = TEXT,
        headers: Mapping[str, str] | None = None,
        *,
        close: bool = False,
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = dict(headers or {})
        self.close = close

    def wire(self, *, keep_alive: bool, bodiless: bool) -> bytes:
        """Return the bytes to send.

        Args:
            keep_alive: The client may send its next request on the same connection.
            bodiless: The request was a HEAD, whose answer says how long the body would be.
        """
        lines = [
            f"HTTP/1.1 {self.status} {_REASONS.get(self.status, '')}",
            f"date: {formatdate(usegmt=True)}",
            f"content-type: {self.content_type}",
            f"content-length: {len(self.body)}",
            *(f"{name}: {_on_one_line(value)}" for name, value in self.headers.items()),
        ]
        if not keep_alive:
            lines.append("connection: close")
        head = "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")
        return head if bodiless else head + self.body


_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


def _on_one_line(value: str) -> str:
    """Return a value without line ends: some values repeat what a client said."""
    return value.replace("\r", " ").replace("\n", " ")
