"""The bytes of one connection: requests, many of them damaged, cut anywhere."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from typing import Final

from bench.fuzz.requests import mutated

MAX_HEADERS: Final = 24
MAX_HEADER_BYTES: Final = 2048
"""Small bounds, so that inputs reach them."""

_LINE_END: Final = ord("\n")

_INNER: Final = b"POST /inner HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
"""Looks like a smuggled request."""
_METHODS: Final = (
    b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"PRI",
    b"M-SEARCH", b"PROPFIND", b"QUERY", b"SOURCE", b"DESCRIBE", b"FOO", b"get", b"Post", b"GE",
    b"", b"G\xc3\x89T", b"\x00", b"HTTP/1.1",
)  # fmt: skip
_TARGETS: Final = (
    b"/v1/models?a=b", b"/%41%2f%00%zz", b"//a/b", b"/a;b=c", b"/a#b", b"/a?b#c", b"/\xc3\xa9",
    b"/\xff", b"/a\tb", b"/a b", b"/a\x00b", b"/a\x7fb", b"/\x01", b"/a\\..", b"/" + b"x" * 900,
    b"/" + b"y" * 3000, b"*", b"http://a/b", b"HTTP://a:80/b?c", b"http://", b"http:///b",
    b"http://[::1/b", b"http://u:p@a/", b"https://a", b"a:443", b"a", b":", b"[::1]:443", b"a:b",
    b"?", b"#", b"", b"/{a}|^`\"<>", b"ws://a/b", b"urn:a:b", b"http://a b/", b"mailto:a@b",
)  # fmt: skip
_VERSIONS: Final = (
    b"HTTP/1.0", b"HTTP/1.0", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/3.0",
    b"HTTP/1.10", b"HTTP/01.1", b"HTTP/1", b"http/1.1", b"HTTP/1.1 ", b" HTTP/1.1", b"HTTP/1,1",
    b"ICE/1.0", b"RTSP/1.0", b"",
)  # fmt: skip
_HOSTS: Final = (
    (), (), (b"Host: a", b"Host: a"), (b"Host: a", b"host: b"), (b"Host:",), (b"Host : a",),
    (b"Host: a, b",), (b"HOST:\ta\t",), (b" Host: a",), (b"Host\x00: a",), (b"Host: \xff",),
)  # fmt: skip
_HEADERS: Final = (
    b"Accept: */*", b"User-Agent: x/1", b"Authorization: Bearer sk", b"authorization:Bearer sk  ",
    b"X-Request-Id: id-1", b"x-request-id:  id-2 \t", b"traceparent: 00-1-2-01", b"tracestate: a=b",
    b"Content-Type: application/json", b"Content-Type: text/plain", b"Content-Encoding: gzip",
    b"X-Empty:", b"X-Spaces:   \t ", b"X-\xe9: a", b"X: \xe9\xff", b"X Y: a", b"X\t: a", b": a",
    b"NoColon", b"X: a\x00b", b"X: a\x01b", b"X: a\x7fb", b"X: a\rb", b"X: a\nY: b", b"X: a\n",
    b"X: a\r\n b", b"X: a\r\n\tb", b"X: a\r\n \r\n", b"X@Y: a", b"X(Y): a", b"\"X\": a", b"X:: a",
    b"Cookie: a=b; c=d", b"Cookie: e=f", b"User-Agent: y", b"Sec-WebSocket-Key1: a", b"ETag: a",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZQ==", b"Trailer: x-t", b"TE: trailers", b"Max-Forwards: 1",
    b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"Forwarded: for=a", b"Server: a",
    b"X-Long: " + b"z" * 1000, b"X-Longer: " + b"z" * 3000, b"Max-Forwards: 2", b"X-Http: \x80",
    b"Content-Length2: 4", b"X-Content-Length: 4", b"Transfer-Encodings: chunked",
)  # fmt: skip
_CONNECTIONS: Final = (
    b"Connection: close", b"Connection: keep-alive", b"connection: Close", b"Connection:",
    b"Connection: keep-alive, close", b"Connection: close, keep-alive", b"Connection: x, y",
    b"Connection: content-length", b"Connection: transfer-encoding", b"Connection: closed",
    b"Connection: close\r\nConnection: keep-alive", b"Connection: upgrade", b"Connection: ,,close",
)  # fmt: skip
_UPGRADES: Final = (
    (b"Connection: upgrade", b"Upgrade: websocket"),
    (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQ"),
    (b"Connection: keep-alive, Upgrade", b"Upgrade: WebSocket"),
    (b"Connection: upgrade, close", b"Upgrade: h2c"),
    (b"Connection: upgrade", b"Upgrade: websocket, h2c"),
    (b"Connection: upgrade", b"Upgrade: h2c\r\nUpgrade: websocket"),
    (b"Connection: upgrade", b"Upgrade:"),
    (b"Upgrade: websocket",),
    (b"Connection: upgrade", b"Upgrade: TLS/1.0"),
)  # fmt: skip
_EXPECTS: Final = (b"Expect: 100-continue", b"expect: 100-Continue", b"Expect: x", b"Expect:")
_LENGTHS: Final = (
    b"-1", b"+5", b"0x5", b"5 5", b"5,5", b"5, 5", b"05", b"00", b"", b" ", b"5\t", b"1e1", b"5;a",
    b"99999999999999999999", b"18446744073709551616", b"9999", b"\xb2",
    b"5\r\n 5", b"5\r\n\t", b"5\x00", b"5.0", b"abc", b"4294967301", b"9223372036854775808", b"_5",
)  # fmt: skip
_CODINGS: Final = (
    b"chunked", b"Chunked", b"CHUNKED", b" chunked ", b"chunked\t", b"gzip, chunked", b"chunked, x",
    b"identity", b"chunked, chunked", b"chunked;q=1", b"", b"xchunked", b"chunkedx", b"\x0bchunked",
    b"chunked\r\n ", b"identity, chunked", b"gzip", b"\"chunked\"", b"chunked,", b",chunked",
    b"chunked\x00", b"ch\r\n unked",
)  # fmt: skip
_NOISE: Final = (
    b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"\r\n\r\n", b"\n\n", b"\r\r\n", b"\xff",
    b"0\r\n\r\n", b"0", b"Content-Length: 5\r\n", b"\r\nContent-Length: 0\r\n", b"\x0b", b"\x0c",
    b"\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n", b"HTTP/1.1", b"Host: a\r\n",
    b";", b",", b"\x7f", b"\x1f", b"Connection: close\r\n", b"\r\n ", b"\r\n\t", _INNER,
)  # fmt: skip
_JUNK: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(range(64)),
    b"\x00" * 40, b"\r\n\r\n\r\n", b"\n", b"hello\r\n\r\n", b"SSH-2.0-x\r\n", b"\x05\x01\x00",
    b"GET /\r\n\r\n", b"GET\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b" ", b"\r",
)  # fmt: skip
_BODIES: Final = (b"", b"a", b"hello", b"{}", _INNER, _INNER * 2, b"0\r\n\r\n", b"\r\n", b"b" * 300)
_EXTENSIONS: Final = (
    b"", b"", b"", b";a=b", b";a", b";", b" ", b"\t", b" ;a", b";a=\"b\"", b";a=\"b\r\n\"",
    b";\x00", b";" + b"e" * 300, b";a=b;c=d", b";a=\n", b"\r", b";=", b";a = b",
)  # fmt: skip
_TRAILER: Final = re.compile(rb"\n0+[ \t]*(;[^\r\n]*)?\r?\n[^\r\n]")
"""Trailers are left to tests/unit/sidecar/test_protocol.py, and so is CONNECT."""


@dataclass(frozen=True)
class Input:
    """The bytes of one connection, and how the server's handler behaves.

    Attributes:
        name: Seed and number, which say everything about it.
        requests: How many were made, damaged ones included.
        pieces: The bytes, each piece with the seconds to wait after it.
        reads_after_s: When the handler begins to read a body.
        answers_after_s: When it answers a request that it has read; None is at once.
        leaves: The client hangs up right after the last piece.
    """

    name: str
    requests: int
    pieces: tuple[tuple[float, bytes], ...]
    reads_after_s: float
    answers_after_s: float | None
    leaves: bool

    @property
    def data(self) -> bytes:
        """All that is sent."""
        return b"".join(piece for _, piece in self.pieces)

    def slowed(self) -> Input:
        """Return the same bytes one by one, with time to answer after each line."""
        pieces = ((0.05 * (byte == _LINE_END), bytes([byte])) for byte in self.data)
        return replace(self, pieces=tuple(pieces))


def make(seed: int, number: int) -> Input:
    """Return the input of a number."""
    rng = random.Random(f"{seed}/{number}")
    count = rng.choice((1, 1, 1, 2, 2, 3, 4)) if rng.random() < 0.97 else rng.randrange(5, 60)
    damage = rng.choice((0.0, 0.0, 0.3, 0.6))
    stream = b"".join(_request(rng, damage) for _ in range(count))
    while _TRAILER.search(stream) or b"CONNECT" in stream:  # damage can make them, too
        stream = b"".join(_request(rng, damage) for _ in range(count))
    return Input(
        f"{seed}/{number}",
        count,
        tuple(_cut(rng, stream)),
        rng.choice((0.0, 0.0, 0.0, 0.02)),
        rng.choice((None, None, 0.0, 0.01)),
        rng.random() < 0.05,
    )


def _request(rng: random.Random, damage: float) -> bytes:
    if damage and rng.random() < 0.03:
        return rng.choice(_JUNK)
    small = count = 0
    if rng.random() < 0.02:  # small headers, near the bounds
        count = rng.choice((MAX_HEADERS - 3, MAX_HEADERS - 1, MAX_HEADERS, MAX_HEADERS + 4))
        small = rng.choice((1, 60, 90))
    lines = [*_head(rng, damage), *(b"x-%d: %b" % (n, b"s" * small) for n in range(count))]
    framing, body = _framed(rng, damage)
    lines[1:1] = framing if rng.random() < 0.5 else ()
    if framing and framing[0] not in lines:
        lines += framing
    data = b"\r\n".join([*lines, b"", body])
    if rng.random() >= damage / 3:
        return data
    return mutated(rng, data, _NOISE, within=1000, inserts=0.4)


def _head(rng: random.Random, damage: float) -> list[bytes]:
    """Return the request line and the headers, those of the framing left out."""

    def usually(usual: bytes, others: tuple[bytes, ...], chance: float) -> bytes:
        return rng.choice(others) if rng.random() < chance else usual

    method = usually(rng.choice((b"GET", b"POST", b"POST")), _METHODS[: None if damage else 7], 0.1)
    target = usually(b"/v1/chat/completions", _TARGETS[: None if damage else 6], 0.15)
    version = usually(b"HTTP/1.1", _VERSIONS[: None if damage else 3], 0.05 + 0.1 * damage)
    lines = [b"%b %b %b" % (method, target, version)]
    lines += rng.choice(_HOSTS) if rng.random() < 0.15 * damage else (b"Host: a",)
    few = _HEADERS[: None if damage else 13]
    lines += [rng.choice(few) for _ in range(rng.choice((0, 0, 1, 1, 2, 5)))]
    if rng.random() < 0.1:
        lines.append(rng.choice(_CONNECTIONS))
    if rng.random() < 0.07:
        lines += rng.choice(_UPGRADES)
    if rng.random() < 0.05:
        lines.append(rng.choice(_EXPECTS))
    return lines


def _framed(rng: random.Random, damage: float) -> tuple[list[bytes], bytes]:
    """Return the headers that say the body's length, and the body."""
    body = rng.choice(_BODIES)
    if rng.random() < 0.005:
        body = _INNER * rng.choice((300,) * 20 + (6000,))
    kind = rng.random()
    if kind < 0.3:
        return [], b""
    if rng.random() < damage / 2:
        return _misframed(rng, body)
    if kind < 0.65:
        return [b"Content-Length: %d" % len(body)], body
    return [b"Transfer-Encoding: chunked"], _chunked(rng, body, damage)


def _misframed(rng: random.Random, body: bytes) -> tuple[list[bytes], bytes]:
    """Return a framing that may be wrong, doubled, or say two things."""
    length = b"Content-Length: %d" % len(body)
    odd_length = b"Content-Length: " + rng.choice(_LENGTHS)
    odd_coding = b"Transfer-Encoding: " + rng.choice(_CODINGS)
    off = rng.choice((-20, -3, -1, 1, 3, 20))
    framing = rng.choice(
        (
            [odd_length],
            [odd_coding],
            [odd_coding],
            [length, odd_coding],
            [odd_coding, odd_length],
            [length, length],
            [b"Transfer-Encoding: chunked", odd_coding],
            [odd_coding, b"Transfer-Encoding: chunked"],
            [b"Content-Length: %d" % max(0, len(body) + off)],
            [b"content-length : %d" % len(body)],
            [b"Transfer-Encoding : chunked"],
            [b"Content-Length:%d\r\n" % len(body)],
            [],
        )
    )
    is_chunked = any(b"chunked" in line.lower() for line in framing)
    return list(framing), _chunked(rng, body, 0.5) if is_chunked else body


def _chunked(rng: random.Random, body: bytes, damage: float) -> bytes:
    """Return a body in chunks, damaged ones among them."""

    def odd(usual: bytes, *others: bytes) -> bytes:
        return rng.choice(others) if rng.random() < damage / 12 else usual

    pieces: list[bytes] = []
    at = 0
    while at < len(body):
        size = min(len(body) - at, rng.choice((1, 2, 3, 10, 16, 50, 1000, 40_000)))
        digits = (b"%X" if rng.random() < 0.3 else b"%x") % size
        pieces += (
            odd(digits, b"0" + digits, b"+" + digits, b"0x" + digits, b" " + digits, b"", b"-1",
                b"ffffffffffffffff", b"fffffffffffffffff", b"10000000000000000", b"g", b"_1",
                digits + b"\x00", b"%d" % size, b"%x" % (size + 1), b"%x" % max(0, size - 1)),
            rng.choice(_EXTENSIONS) if rng.random() < damage / 4 else b"",
            odd(b"\r\n", b"\n", b"\r", b"", b"\r\r\n", b"\r\n\r\n"),
            body[at : at + size],
            odd(b"\r\n", b"\n", b"\r", b"", b"x\r\n", b"\r\nx"),
        )  # fmt: skip
        at += size
    end = odd(b"0", b"00", b"0;a=b", b"", b"-0", b"0x0", b"0 ", b"0000000000000000000")
    return b"".join([*pieces, end, odd(b"\r\n", b"\n", b""), odd(b"\r\n", b"\n", b"\r")])


def _cut(rng: random.Random, stream: bytes) -> list[tuple[float, bytes]]:
    """Cut what is sent, as a network might, and say how long to wait after each piece."""
    way = rng.random()
    if way < 0.35:
        ends = [len(stream)]
    elif way < 0.45 and len(stream) < 1500:
        ends = list(range(1, len(stream) + 1))
    else:
        most = rng.choice((2, 5, 20))
        ends = sorted({rng.randrange(len(stream) + 1) for _ in range(most)} | {len(stream)})
        ends = [end + (stream[end : end + 1] == b"\n") for end in ends]  # often between CR and LF
    waits = rng.choice(((0.0,), (0.0, 0.0, 0.001), (0.0, 0.001, 0.1, 0.5)))
    pieces: list[tuple[float, bytes]] = []
    begin = 0
    for end in ends:
        if end > begin:
            pieces.append((rng.choice(waits), stream[begin:end]))
            begin = end
    return pieces
