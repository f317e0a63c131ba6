"""The two ends of an exchange, without sockets."""

from __future__ import annotations

from weir_sidecar.upstreams.splice import Exchange


class Buffer:
    """A client that keeps what it gets."""

    def __init__(self) -> None:
        self.written = b""
        self.heads = 0
        self.closing = False
        self.writing_paused = False

    def open(self, answer: Exchange) -> bytes:
        self.heads += 1
        return b"[%d]" % answer.status

    def write(self, piece: bytes) -> None:
        self.written += piece

    def is_closing(self) -> bool:
        return self.closing


class Line:
    """An engine connection that only remembers whether it is read."""

    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
