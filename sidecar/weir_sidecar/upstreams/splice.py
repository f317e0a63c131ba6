"""The splice: an engine's answer goes to the client in the callback that received it.

An `Exchange` is one request on one engine connection. The engine's bytes are shown to httptools,
which finds the head, the chunk boundaries and the end however the bytes were split; then the same
bytes object, chunk framing included, is written to the client's transport. Per piece there is no
task switch and no new object, which is what makes a Python relay cheaper than a busy Rust one.

Three things interrupt the splice and wake the handler that awaits the exchange:

- the client's buffer is full: the engine is not read until the handler saw it drain;
- the first body bytes look like those of a dying engine: they are held until its health is known;
- the exchange ended, one way or another (`Ending`).

The head is held back until the first body byte, and in an event stream until the first event that
carries content: `response.created` says nothing of an answer. Until then nothing was promised to
the client, so the request can still fail with an honest status, or be tried elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

import httptools

MAX_HEAD_BYTES: Final = 64 << 10
MAX_EARLY_BYTES: Final = 64 << 10
"""Most of a stream that is held back for its first content; beyond this the answer begins."""
TAIL_BYTES: Final = 16 << 10
_SEPARATOR: Final = b"\r\n\r\n"
_BOUNDARY: Final = b"\r\n"
EVENT_STREAM: Final = b"text/event-stream"


class Ending(Enum):
    """How an exchange ended."""

    COMPLETE = auto()
    """The whole answer was handed to the client's transport."""
    LOST = auto()
    """The engine closed the connection too early."""
    MALFORMED = auto()
    """The engine did not speak HTTP."""
    TIMED_OUT = auto()
    """The engine sent nothing for too long."""
    REQUEUED = auto()
    """The request waits again; its client was sent nothing and does not know."""
    SHUT_DOWN = auto()
    """The drain's time was over."""
    CLIENT_GONE = auto()
    """The client's connection is closed."""
    CLIENT_SLOW = auto()
    """The client did not take its bytes for too long."""


class Sink(Protocol):
    """Where an answer goes; a client's connection, or a buffer."""

    def open(self, answer: Exchange) -> bytes:
        """Return the head to send before the first body byte."""

    def write(self, piece: bytes) -> None:
        """Take one piece, exactly as it came."""

    def is_closing(self) -> bool:
        """Tell whether writing is in vain."""

    @property
    def writing_paused(self) -> bool:
        """Tell whether as much is waiting as may."""


class EngineTransport(Protocol):
    """What an exchange needs of its engine connection."""

    def pause_reading(self) -> None:
        """Let the engine's bytes wait in the socket."""

    def resume_reading(self) -> None:
        """Take them again."""


class ExchangeOwner(Protocol):
    """What an exchange asks about its answer, and turns to while nothing awaits it."""

    def on_exchange(self, exchange: Exchange) -> None:
        """Go on where the exchange has ended, or is held or paused."""

    def holds_back(self, exchange: Exchange, piece: bytes) -> bool:
        """Tell whether an answer that begins so is to be held back; asked once."""

    def tokens_in(self, piece: bytes) -> int:
        """Return how many events of a piece of an event stream carry content."""


class AnswerParser:
    """httptools' parser of answers, one for all exchanges of a connection."""

    def __init__(self) -> None:
        self.answer: Exchange | None = None
        self.bodies: list[bytes] = []
        self.http: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def close(self) -> None:
        """Break the reference cycle here, so that the garbage collector need not."""
        self.http = self.answer = None

    # What httptools calls.

    def on_message_begin(self) -> None:
        """Refuse a second answer to one request."""
        answer = self.answer
        if answer is None or answer.reading:
            raise ValueError("more than one answer")
        answer.reading = True

    def on_status(self, reason: bytes) -> None:
        """Keep the reason phrase."""
        if self.answer is not None:
            self.answer.reason = reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a trailer, which comes after the head, only passes by."""
        answer = self.answer
        if answer is not None and answer.in_head:
            answer.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Keep the status."""
        if self.answer is not None and self.http is not None:
            self.answer.status = self.http.get_status_code()

    def on_chunk_header(self) -> None:
        """Note that a chunk has begun."""
        answer = self.answer
        if answer is not None:
            answer.chunks += 1
            answer.at_boundary = False

    def on_chunk_complete(self) -> None:
        """Note that a chunk is whole."""
        answer = self.answer
        if answer is not None:
            answer.at_boundary = True

    def on_message_complete(self) -> None:
        """Note the end, and whether the connection may be used again."""
        answer = self.answer
        if answer is not None and self.http is not None:
            answer.complete = True
            answer.reusable = self.http.should_keep_alive()


class BodyParser(AnswerParser):
    """One that keeps bodies apart from their framing."""

    def on_body(self, body: bytes) -> None:
        """Keep the body bytes of the piece that is being read."""
        self.bodies.append(body)


class Exchange:
    """One request on one engine connection, and the splice of its answer into a sink.

    Args:
        sink: Where the answer goes.
        clock: Seconds that only move forward.
        bodiless: The answer has no body whatever its head says (HEAD).
        owner: Asked about the answer, and called where the exchange is not awaited.
        counts_tokens: The answer is to be an event stream whose tokens count.
    """

    def __init__(
        self,
        sink: Sink,
        clock: Callable[[], float],
        *,
        bodiless: bool = False,
        owner: ExchangeOwner | None = None,
        counts_tokens: bool = False,
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._bodiless = bodiless
        self.owner = owner
        self._counts_tokens = counts_tokens
        self._screened = self._flows = self._owns_parser = False
        self._early: list[bytes] = []
        self._parser: AnswerParser | None = None
        self._transport: EngineTransport | None = None
        self._head = b""
        self._held: list[bytes] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._last = self._two_last = self._third_last = b""
        # What the parser finds.
        self.in_head = True
        self.reading = self.complete = self.reusable = self.at_boundary = False
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks = 0
        # An engine sends a chunk for each step of a stream. Events are looked into only until one
        # of them shows a token; from there on chunks are counted.
        self._first_chunks = self._first_tokens = 0
        self.ending: Ending | None = None
        self.paused = False
        self.received_bytes = 0
        self.first_byte_at: float | None = None

    # What the handler sees.

    def attach(self, transport: EngineTransport, parser: AnswerParser) -> None:
        """Tell which connection the answer will come from, and what reads it there."""
        self._transport = transport
        self._read_with(parser)

    @property
    def begun(self) -> bool:
        """Whether the client was sent anything."""
        return self.first_byte_at is not None

    @property
    def held(self) -> bool:
        """Whether the answer waits for a verdict; see `release`."""
        return self._held is not None

    @property
    def tokens(self) -> int:
        """Chunks of an event stream that brought tokens so far; several may share one."""
        if not self._first_tokens:
            return 0
        return self._first_tokens + self.chunks - self._first_chunks

    @property
    def tail(self) -> bytes:
        """The last pieces of the answer, for what its end says."""
        return (self._third_last + self._two_last + self._last)[-TAIL_BYTES:]

    @property
    def at_chunk_boundary(self) -> bool:
        """Whether another chunk may follow what was sent so far."""
        return self.at_boundary and (self._two_last + self._last).endswith(_BOUNDARY)

    def header(self, name: bytes) -> bytes | None:
        """Return the value of a header by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def has_ended(self) -> bool:
        """Whether the exchange has ended.

        mypyc takes an attribute that was compared with None for unchanged by the calls that follow.
        """
        return self.ending is not None

    @property
    def needs_attention(self) -> bool:
        """Whether the exchange ended, or needs its handler."""
        return self.ending is not None or self.paused or self._held is not None

    async def interruption(self) -> None:
        """Wait until the exchange ended, or needs its handler."""
        if not self.needs_attention:
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None

    def resume(self) -> None:
        """Read the engine again: the client took its bytes."""
        self.paused = False
        if self.ending is None and self._transport is not None:
            self._transport.resume_reading()

    def release(self) -> None:
        """Send what was held back, and go on; nothing of an exchange that has ended meanwhile."""
        if self.has_ended:
            return
        held, self._held = self._held or [], None
        for piece in held:
            Exchange._forward(self, piece)  # bodies already, where a subclass takes framing off
        if self.has_ended:
            return
        if self.complete:
            self.end(Ending.COMPLETE)
        elif self._transport is not None:
            self._transport.resume_reading()

    def end(self, ending: Ending) -> None:
        """End the exchange; the first ending stays."""
        if self.ending is None:
            self.ending = ending
            # Break the reference cycles here, so that the garbage collector need not.
            if self._parser is not None:
                self._parser.answer = None
                if self._owns_parser:
                    self._parser.close()
            self._parser = self._transport = None
            self._call()

    # What the engine connection calls.

    def feed(self, piece: bytes) -> None:
        """Take bytes from the engine; what is done per piece of a stream is all in here."""
        if self.ending is not None:
            return
        if not self._flows:
            self._feed_beginning(piece)
            return
        if not self._parse(piece):
            return
        self.received_bytes += len(piece)
        self._third_last, self._two_last, self._last = self._two_last, self._last, piece
        self._sink.write(piece)
        if self.complete:
            self.end(Ending.COMPLETE)
        elif self._sink.writing_paused:
            self._pause()

    def connection_lost(self, *, broken: bool = False) -> None:
        """Hear that the engine closed; the end of an answer that has no other, unless it broke."""
        if self.complete and self._held is not None:
            return
        unframed = not self.in_head and not broken and not self._is_framed()
        if unframed and self.ending is None:
            self.complete = True
            self._forward(b"")
        self.end(Ending.COMPLETE if unframed else Ending.LOST)

    # Inside.

    def _read_with(self, parser: AnswerParser) -> None:
        self._parser = parser
        parser.answer = self

    def _feed_beginning(self, piece: bytes) -> None:
        """Take what comes before the answer flows, or while it is held."""
        if self.in_head:
            self._feed_head(piece)
        else:
            self._feed_body(piece)

    def _feed_head(self, piece: bytes) -> None:
        """Gather the head; go on with the body bytes that came with its end."""
        head = self._head = self._head + piece if self._head else piece
        cut = head.find(_SEPARATOR) + len(_SEPARATOR)
        if cut < len(_SEPARATOR):
            if len(head) > MAX_HEAD_BYTES:
                self.end(Ending.MALFORMED)
            return
        if not self._parse(head[:cut]):
            return
        self.in_head, self._head = False, b""
        if self.status < 200:  # an interim answer, though we never ask for one
            self.end(Ending.MALFORMED)
        elif self._bodiless:
            self.complete, self.reusable = True, False
            self._feed_body(b"")
        elif self.complete or len(head) > cut:
            self._feed_body(head[cut:])

    def _feed_body(self, piece: bytes) -> None:
        if piece and not self._parse(piece):
            return
        self.received_bytes += len(piece)
        self._forward(piece)
        if self._held is not None or self.ending is not None:
            return
        if self.complete:
            self.end(Ending.COMPLETE)
        elif self._sink.writing_paused:
            self._pause()

    def _parse(self, piece: bytes) -> bool:
        """Show bytes to the parser; false, and the end, where they are not HTTP."""
        if self._parser is None:
            self._read_with_own()
        assert self._parser is not None
        http = self._parser.http
        assert http is not None
        try:
            http.feed_data(piece)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.end(Ending.MALFORMED)
            return False
        return True

    def _read_with_own(self) -> None:
        self._owns_parser = True
        self._parser = self._new_parser()
        self._parser.answer = self

    def _new_parser(self) -> AnswerParser:
        return AnswerParser()

    def _is_framed(self) -> bool:
        """Whether the answer tells its own end, by a length or by chunks."""
        return any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    def _forward(self, piece: bytes) -> None:
        self._third_last, self._two_last, self._last = self._two_last, self._last, piece
        if self.first_byte_at is None:
            self._first(piece)
        elif self._sink.is_closing():
            self.end(Ending.CLIENT_GONE)
        else:
            self._sink.write(piece)

    def _first(self, piece: bytes) -> None:
        """Send the head with the first piece, unless it is to be held back."""
        if self._held is not None or self._is_held_back(piece):
            self._hold(piece)
        elif self._sink.is_closing():
            self.end(Ending.CLIENT_GONE)
        elif self._is_early(piece):
            self._early.append(piece)
        else:
            self.first_byte_at = self._clock()
            if self._early:
                piece, self._early = b"".join(self._early) + piece, []
            self._sink.write(self._sink.open(self) + piece)
            self._flows = self._passes_framing()

    def _passes_framing(self) -> bool:
        """Whether pieces go to the sink as they come."""
        return True

    def _is_held_back(self, piece: bytes) -> bool:
        if self._screened or self.owner is None:
            return False
        self._screened = True
        return self.owner.holds_back(self, piece)

    def _is_early(self, piece: bytes) -> bool:
        """Whether an event stream has not come to its content yet, and may still be held back."""
        owner = self.owner
        if not self._counts_tokens or owner is None or self.status >= 400:
            return False
        self._first_tokens, self._first_chunks = owner.tokens_in(piece), self.chunks
        if self._first_tokens or self.complete:
            return False
        if not (self.header(b"content-type") or b"").startswith(EVENT_STREAM):
            return False
        return sum(map(len, self._early)) + len(piece) <= MAX_EARLY_BYTES

    def _hold(self, piece: bytes) -> None:
        self._held = [*(self._held or []), piece]
        if self._transport is not None and not self.complete:
            self._transport.pause_reading()
        self._call()

    def _pause(self) -> None:
        self.paused = True
        if self._transport is not None:
            self._transport.pause_reading()
        self._call()

    def _call(self) -> None:
        if self._wake is not None:
            if not self._wake.done():
                self._wake.set_result(None)
        elif self.owner is not None:
            self.owner.on_exchange(self)


class Unframed(Exchange):
    """An exchange whose sink gets the body without its chunks: for HTTP/1.0 and for buffers."""

    def _read_with(self, parser: AnswerParser) -> None:  # noqa: ARG002
        self._read_with_own()  # the connection's does not keep bodies

    def _new_parser(self) -> AnswerParser:
        return BodyParser()

    def _passes_framing(self) -> bool:
        return False

    def _forward(self, piece: bytes) -> None:  # noqa: ARG002
        parser = self._parser
        body = b""
        if parser is not None:
            body, parser.bodies = b"".join(parser.bodies), []
        if body or self.complete:
            super()._forward(body)
