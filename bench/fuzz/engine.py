"""The engine of the fuzz: answers as each request tells it to, well or badly, or not at all."""

from __future__ import annotations

import asyncio
import errno
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

import httptools

from bench.fuzz.network import Factory, SimulatedLoop, Wire

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_SCRIPT: Final = re.compile(rb"\r\nx-fuzz: *(\d{1,20})\r\n")
_WIRE_ID: Final = re.compile(rb"\r\nx-request-id: ([^\r]*)\r\n")
_OWN_PROBE: Final = re.compile(
    rb"GET /(?:health|readyz) HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n"
)
_SECRETS: Final = re.compile(
    rb"\r\n(?:authorization|x-api-key|x-data-parallel-rank|x-weir-forwarded|x-weir-returned):",
    re.IGNORECASE,
)

KINDS: Final = {
    "plain": 30, "stream": 30, "until close": 3, "refusal": 6, "error": 3, "reset": 3,
    "break": 5, "silent": 3, "stall": 2, "garbage": 3, "early": 2, "twice": 1, "abort": 2,
    "failed stream": 2, "no content": 1, "slow": 4,
}  # fmt: skip
"""What an engine does with a request, by how often."""
_NAMES: Final = tuple(KINDS)
_WEIGHTS: Final = tuple(KINDS.values())
WHOLE: Final = frozenset({"plain", "slow", "stream", "until close"})
"""Kinds that execute a request to its end."""
NOT_HTTP: Final = frozenset({"garbage", "early", "twice", "break", "no content"})
"""Kinds after which a 502 is right."""

_USAGE: Final = b'"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}'
_PLAIN: Final = (
    b'{"id":"a","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],' + _USAGE + b"}",
    b'{"type":"message","content":[],"usage":{"input_tokens":5,"cache_read_input_tokens":4,'
    b'"output_tokens":2}}',
    b'{"data":[],"usage":{"prompt_tokens":99999999999999999999}}',
    b"{}", b"", b"x" * 5000, b'{"count":12}',
)  # fmt: skip
_EVENTS: Final[tuple[tuple[bytes, bytes, bytes], ...]] = (
    (
        b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n',
        b'data: {"choices":[],' + _USAGE + b"}\n\ndata: [DONE]\n\n",
    ),
    (b"", b'data: {"choices":[{"text":"x"}]}\n\n', b"data: [DONE]\n\n"),
    (
        b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n',
        b'event: response.output_text.delta\ndata: {"delta":"x","sequence_number":1}\n\n',
        b'event: response.completed\ndata: {"usage":{"input_tokens":3,"output_tokens":2}}\n\n',
    ),
    (
        b'event: message_start\ndata: {"type":"message_start"}\n\n: ping\n\n',
        b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n',
        b'event: message_delta\ndata: {"usage":{"input_tokens":3,"output_tokens":2}}\n\n',
    ),
    (b": comment\n\n", b"", b""),
)
_FAILURES: Final = (
    b'data: {"error":{"message":"m"}}\n\n', b'event: error\ndata: {"type":"error"}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"abort"}]}\n\n',
    b"event: response.failed\ndata: {}\n\n",
)  # fmt: skip
_GARBAGE: Final = (
    b"garbage\r\n\r\n", b"HTTP/1.1 999999 x\r\n\r\n", b"\x00" * 30,
    b"HTTP/1.1 200 OK\r\nx" + b"y" * 70_000,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/1.1 101 Up\r\nUpgrade: h2c\r\n\r\nxx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n-1\r\n",
)  # fmt: skip
_REFUSED: Final = (400, 404, 422, 429, 413)
_FAILED: Final = (500, 502, 503, 504)

Script = Iterator[float]
"""Yields the seconds until it goes on."""


def kind_of(script: int) -> str:
    """Return what a script does."""
    return random.Random(script).choices(_NAMES, _WEIGHTS)[0]


class Engine:
    """All of the engine's connections, and what state it is in.

    Attributes:
        state: `up`; `gone` refuses connections; `ill` answers 503; `mute` accepts and is silent.
        calm: From now on every answer comes, so that the batch can end.
        faults: What the sidecar did that it must not.
        on_request: Told of the id of each request that came.
    """

    def __init__(self, loop: SimulatedLoop, rng: random.Random) -> None:
        self._loop = loop
        self._rng = rng
        self.state = "up"
        self.calm = False
        self.faults: list[str] = []
        self.answers: dict[int, set[bytes]] = {}
        """Script -> the bodies that it was answered with."""
        self.executed = Counter[int]()
        """Script -> how often it was answered to its end."""
        self.wire_ids: list[str] = ["unknown"]
        self.on_request: Callable[[str], None] = lambda _: None
        self.lines: dict[Line, None] = {}

    async def connect(self, factory: Factory) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Open a connection for the sidecar, or fail as an operating system does."""
        chance = 1.0 if self.calm else self._rng.random()
        if self.state == "gone":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the engine is gone")
        if chance < 0.01:
            raise OSError(
                self._rng.choice((errno.EMFILE, errno.EAGAIN, errno.ECONNREFUSED)), "short"
            )
        if chance < 0.05:
            await asyncio.sleep(self._rng.choice((0.0, 0.01, 2.0, 30.0)))
        protocol = factory()
        line = Line(self, self._loop)
        line.wire = Wire(self._loop, protocol, line)
        self.lines[line] = None
        protocol.connection_made(line.wire)
        return line.wire, protocol

    def note(self, script: int, body: bytes) -> None:
        """Note what a script is answered with."""
        self.answers.setdefault(script, set()).add(body)

    def break_all(self) -> None:
        """Reset every connection, as a killed process does."""
        for line in list(self.lines):
            line.wire.reset()

    def scripted(self, script: int, line: Line) -> Script:
        """Return how a request is answered."""
        if self.calm:
            return line.play_plain(random.Random(script), script)
        kind = kind_of(script)
        rng = random.Random(script + 1)
        play: Callable[[random.Random, int], Script] = {
            "plain": line.play_plain, "slow": line.play_plain, "stream": line.play_stream,
            "until close": line.play_until_close, "refusal": line.play_refusal,
            "error": line.play_refusal, "garbage": line.play_garbage, "reset": line.play_reset,
            "break": line.play_break, "silent": line.play_silent, "stall": line.play_stall,
            "early": line.play_early, "twice": line.play_twice, "abort": line.play_failure,
            "failed stream": line.play_failure, "no content": line.play_no_content,
        }[kind]  # fmt: skip
        return play(rng, script)


class Line:
    """One connection of the sidecar to the engine."""

    wire: Wire

    def __init__(self, engine: Engine, loop: SimulatedLoop) -> None:
        self._engine = engine
        self._loop = loop
        self._unread = b""
        self._answers: Script | None = None
        self._script = 0
        self.is_probe = False
        """It carries a question of the sidecar's own."""
        self.is_gone = False

    # What the wire calls.

    def took(self, piece: bytes) -> None:
        """Take bytes of a request, and answer when it is whole."""
        if self._answers is not None:
            self._engine.faults.append("a request was sent before the last one was answered")
            return
        self._unread += piece
        end = self._unread.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        found = _LENGTH.search(self._unread, 0, end)
        whole = end + (int(found[1]) if found else 0)
        if len(self._unread) < whole:
            return
        request, self._unread = self._unread, b""
        self._check(request, end, len(request) > whole)
        self._answers = self._answer(request, end)
        self._go_on()

    def carries(self, script: int) -> bool:
        """Tell whether a request with that script is being answered."""
        return self._answers is not None and self._script == script

    def closed(self) -> None:
        """Hear that the connection is gone."""
        self.is_gone = True
        self._engine.lines.pop(self, None)

    # Inside.

    def _check(self, request: bytes, end: int, is_longer: bool) -> None:
        """Note what is wrong with a request that the sidecar sent."""
        reader = _Reader()
        parser = httptools.HttpRequestParser(reader)
        try:
            parser.feed_data(request)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            self._engine.faults.append(f"not HTTP at the engine: {error}: {request[:300]!r}")
        if is_longer or reader.whole != 1:
            self._engine.faults.append(f"{reader.whole} requests in one: {request[:300]!r}")
        if _SECRETS.search(request, 0, end) or len(_WIRE_ID.findall(request, 0, end)) > 1:
            self._engine.faults.append(f"a header that must not pass: {request[:end]!r}")

    def _answer(self, request: bytes, end: int) -> Script:
        engine = self._engine
        self.is_probe = b"host: weir\r\nconnection: close\r\n" in request[:end]
        if _OWN_PROBE.match(request):
            return self._play_health()
        if self.is_probe:
            return self._play_question(request.startswith(b"GET /metrics"))
        found = _WIRE_ID.search(request, 0, end)
        if found is not None:
            engine.on_request(found[1].decode("latin-1"))
        script = _SCRIPT.search(request, 0, end)
        self._script = int(script[1]) if script else 0
        return engine.scripted(self._script, self)

    def _go_on(self) -> None:
        if self.is_gone or self._answers is None:
            return
        delay_s = next(self._answers, None)
        if delay_s is None:
            self._answers = None
            self._engine.executed[self._script] += self._script in self._engine.answers
        else:
            self._loop.call_later(delay_s, self._go_on)

    def _deliver(self, data: bytes) -> None:
        """Send bytes; they arrive in another turn, so that this one is done when they do."""
        self._loop.call_soon(self.wire.deliver, data)

    def _send(self, rng: random.Random, data: bytes) -> Script:
        """Send in one piece, or in odd ones."""
        if rng.random() < 0.6 or len(data) < 2:
            yield rng.choice((0.0, 0.02))
            self._deliver(data)
            return
        cuts = sorted(rng.randrange(len(data)) for _ in range(rng.choice((1, 2, 8))))
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if start < stop:
                yield rng.choice((0.0, 0.0, 0.05))
                self._deliver(data[start:stop])

    # How a request can be answered; each is told the script, to send it back with the answer.

    def _play_health(self) -> Script:
        yield 0.0
        if self._engine.state == "mute":
            yield 1e6
        status = b"503 no" if self._engine.state == "ill" else b"200 OK"
        self._deliver(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)

    def _play_question(self, is_metrics: bool) -> Script:
        yield 0.01
        page = b"vllm:prompt_tokens_total 1\n" if is_metrics else b'{"count":900}'
        self._deliver(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page))

    def play_plain(self, rng: random.Random, script: int) -> Script:
        """Answer with a whole page."""
        body = rng.choice(_PLAIN)
        self._engine.note(script, body)
        yield rng.choice((0.0, 0.05, 0.5, 4.0))
        yield from self._send(rng, _head(script, 200, b"Content-Length: %d" % len(body)) + body)

    def play_stream(self, rng: random.Random, script: int) -> Script:
        """Answer with a stream of events, in chunks."""
        yield from self._streamed(rng, script, b"", b"0\r\n\r\n")

    def _streamed(
        self, rng: random.Random, script: int, first: bytes, last: bytes, *, whole: bool = True
    ) -> Script:
        begin, token, end = rng.choice(_EVENTS)
        events = [
            each for each in (first, begin, *[token] * rng.choice((0, 1, 5, 40)), end) if each
        ]
        if whole:
            self._engine.note(script, b"".join(events))
        else:
            events = events[: rng.randrange(len(events) + 1)]
        yield rng.choice((0.0, 0.05, 0.5, 3.0))
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + last
        yield from self._send(rng, _head(script, 200, _STREAM) + chunks)

    def play_until_close(self, rng: random.Random, script: int) -> Script:
        """Answer without a length."""
        body = rng.choice(_PLAIN)
        self._engine.note(script, body)
        yield 0.01
        yield from self._send(rng, _head(script, 200, b"x: y") + body)
        yield rng.choice((0.0, 0.1))
        self._loop.call_soon(self.wire.hang_up)

    def play_refusal(self, rng: random.Random, script: int) -> Script:
        """Answer with an error."""
        status = rng.choice(_FAILED if kind_of(script) == "error" else _REFUSED)
        body = b'{"error":{"message":"no \xc3\xa9","code":%d}}' % status
        self._engine.note(script, body)
        lines = b"Content-Length: %d" % len(body)
        if status in (429, 503) and rng.random() < 0.7:  # as a sidecar behind a front says it
            lines += b"\r\nx-llm-d-request-dropped-reason: rejected-saturated"
        yield 0.01
        yield from self._send(rng, _head(script, status, lines) + body)

    def play_garbage(self, rng: random.Random, _: int) -> Script:
        """Answer with something that is not HTTP."""
        yield 0.01
        yield from self._send(rng, rng.choice(_GARBAGE))
        yield 0.5
        self._loop.call_soon(self.wire.reset)

    def play_reset(self, rng: random.Random, _: int) -> Script:
        """Break the connection without an answer."""
        yield rng.choice((0.0, 0.1, 2.0))
        self._loop.call_soon(self.wire.reset)

    def play_break(self, rng: random.Random, script: int) -> Script:
        """Begin an answer, and break off."""
        yield from self._streamed(rng, script, b"", rng.choice((b"", b"5\r\nab")), whole=False)
        yield rng.choice((0.0, 0.1))
        if rng.random() < 0.5:
            self._loop.call_soon(self.wire.reset)
        else:
            self._loop.call_soon(self.wire.hang_up)

    def play_silent(self, rng: random.Random, _: int) -> Script:  # noqa: ARG002
        """Never answer."""
        yield 1e6

    def play_stall(self, rng: random.Random, script: int) -> Script:
        """Begin an answer, and fall silent."""
        yield from self._streamed(rng, script, b"", b"", whole=False)
        yield 1e6

    def play_early(self, rng: random.Random, script: int) -> Script:
        """Send an interim answer first, which the sidecar never asks for."""
        yield 0.0
        self._deliver(rng.choice((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 x\r\n\r\n")))
        yield from self.play_plain(rng, script)

    def play_twice(self, rng: random.Random, script: int) -> Script:
        """Answer twice, at once or one after the other."""
        body = _head(script, 200, b"Content-Length: 2") + b"{}"
        yield 0.01
        self._deliver(body + body if rng.random() < 0.5 else body)
        self._loop.call_later(0.01, self._speak_unasked, body)

    def _speak_unasked(self, body: bytes) -> None:
        if self._answers is None and not self._unread:
            self.wire.deliver(body)  # now: later it might be taken for the next one's answer

    def play_failure(self, rng: random.Random, script: int) -> Script:
        """Stream an answer that says that it failed."""
        yield from self._streamed(rng, script, rng.choice(_FAILURES), b"0\r\n\r\n")

    def play_no_content(self, rng: random.Random, script: int) -> Script:
        """Answer with a head alone."""
        yield 0.01
        yield from self._send(rng, _head(script, rng.choice((204, 304)), b"x: y"))


class _Reader:
    """Counts whole requests."""

    whole = 0

    def on_message_complete(self) -> None:
        """Count one."""
        self.whole += 1


_STREAM: Final = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked"


def _head(script: int, status: int, lines: bytes) -> bytes:
    return b"HTTP/1.1 %d x\r\nx-fuzz: %d\r\n%b\r\n\r\n" % (status, script, lines)
