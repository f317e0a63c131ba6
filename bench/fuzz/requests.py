"""Requests as bytes: well formed ones for every path of the API, and mutations of them."""

from __future__ import annotations

import gzip
import hashlib
import random
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from weir_core.wire.paths import CLOSED, POSTS, READS

KEYS: Final = {"ada": "sk-ada", "bob": "sk-bob", "gate": "sk-gate"}
"""Tenants of the policies, and their keys."""
HASHES: Final = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
SCRIPT: Final = b"x-fuzz"
"""The header that tells the engine how to answer; the sidecar passes it on."""

Body = dict[bytes, bytes]
"""The fields of a JSON object, as they are written."""

_TALK: Final = b'[{"role":"user","content":"How are you?"}]'
_TEMPLATES: Final[dict[str, Body]] = {
    "/v1/completions": {b"model": b'"tiny"', b"prompt": b'"once upon"', b"max_tokens": b"9"},
    "/v1/responses": {b"model": b'"tiny"', b"input": b'"hello"', b"max_output_tokens": b"40"},
    "/v1/embeddings": {b"model": b'"tiny"', b"input": b'["a","b","c"]'},
    "/v2/embed": {b"model": b'"tiny"', b"texts": b'["a","b"]'},
    "/pooling": {b"model": b'"tiny"', b"input": b'"a"'},
    "/classify": {b"model": b'"tiny"', b"input": b'["a"]'},
    "/rerank": {b"model": b'"tiny"', b"query": b'"q"', b"documents": b'["a","b"]'},
    "/score": {b"model": b'"tiny"', b"text_1": b'"q"', b"text_2": b'["a","b"]'},
    "/generative_scoring": {b"model": b'"tiny"', b"query": b'"q"', b"items": b'["a","b"]'},
    "/v1/systemone": {b"model": b'"tiny"', b"questions": b'{"a":"b"}'},
    "/inference/v1/generate": {b"prompt": b"[1,2,3]", b"sampling_params": b'{"n":2}'},
    "/v1/chat/completions/batch": {b"model": b'"tiny"', b"messages": b"[%b,%b]" % (_TALK, _TALK)},
    "/tokenize": {b"model": b'"tiny"', b"prompt": b'"hello"'},
}
_CHAT: Final[Body] = {b"model": b'"tiny"', b"messages": _TALK, b"max_tokens": b"64"}
_FIELDS: Final = (
    b"model", b"messages", b"prompt", b"input", b"stream", b"max_tokens", b"max_output_tokens",
    b"max_completion_tokens", b"n", b"temperature", b"top_p", b"priority", b"service_tier",
    b"use_beam_search", b"background", b"vllm_xargs", b"kv_transfer_params", b"documents", b"query",
    b"ec_transfer_params", b"sampling_params", b"prompt_embeds", b"items", b"questions", b"best_of",
    b"stream_options", b"x", b"", b"\xff", b"texts", b"queries",
)  # fmt: skip
_VALUES: Final = (
    b"null", b"true", b"false", b"0", b"1", b"2", b"-1", b"7", b"300", b"16385", b"1e400", b"NaN",
    b"-Infinity", b"9" * 25, b"-" + b"9" * 400, b"1.5", b'"1"', b'"tiny"', b'""', b'"\\ud800"',
    b'"\xff"', b'"priority"', b'"flex"', b'"batch"', b"[]", b"{}", b"[1,2,3]", b'["a","b"]',
    b'{"n":3}', b'{"n":3,"max_tokens":5,"extra_args":{"kv_transfer_params":1}}',
    b'{"kv_cache_report_mode":"x"}', b"[" * 200 + b"]" * 200, b"[" * 3000, b'{"a":' * 1500,
    b"[%b]" % b",".join([b'"p"'] * 300), b'[["a","b"],["c"]]', b'[{"a":1},{"b":2}]', b"\x00",
    b'"' + b"x" * 3000 + b'"', b'[[{"role":"user"}],[{"role":"user"}]]', b"1 ", b"[1,", b"01",
)  # fmt: skip
_PATHS: Final = tuple(path.replace("{id}", "resp_1").encode() for path in POSTS)
_USUAL: Final = tuple(
    path.encode()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
)
_OTHERS: Final = (
    *(path.replace("{id}", "resp_1").encode() for path in READS),
    *(path.encode() for path in CLOSED),
    b"/health", b"/metrics", b"/", b"*", b"//v1/models", b"/v1/../metrics", b"/v1/%2e%2e/metrics",
    b"/v1/models?key=sk-ada", b"http://weir/v1/models", b"/v1/%00", b"/v1/%ff%fe", b"/v1/\xe2\x82",
    b"/v1/" + b"x" * 300, b"/v1/new", b"/v1/chat/completions/", b"/v1/chat/completions/new",
    b"/v1/a%0d%0aHost:%20b", b"/v1/models#part", b"weir:443", b"http://", b"/v1/\\..", b"?",
    b"/sleep", b"/v1/" + b"y" * 20_000, b"/v1/responses/%7bid%7d", b"http://[::1/v1/models",
    b"/v1/models;a=b",
)  # fmt: skip
_METHODS: Final = (
    b"GET", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"OPTIONS", b"TRACE",
    b"CONNECT", b"FOO", b"post",
    b"QUERY", b"G\xc3\x89T", b"",
)  # fmt: skip
_CLASSES: Final = (
    b"interactive",
    b"standard",
    b"batch",
    b"gold",
    b"",
    b" batch ",
    b"\xff",
    b"x" * 400,
)
_HEADERS: Final[tuple[tuple[bytes, tuple[bytes, ...]], ...]] = (
    (b"x-llm-d-inference-objective", _CLASSES),
    (b"X-Weir-Class", _CLASSES),
    (b"x-gateway-inference-objective", _CLASSES),
    (b"x-llm-d-inference-fairness-id", (b"eve", b"ada", b"", b"\xe9" * 300)),
    (b"x-slo-ttft-ms", (b"1", b"200", b"90000", b"nan", b"inf", b"-1", b"1e999", b"", b"x")),
    (b"x-llm-d-slo-ttft-ms", (b"1e-320", b"0", b"5000", b"\xb2")),
    (b"x-request-id", (b"same", b"same", b"a b", b"x" * 128, b"x" * 129, b"", b"\xff", b"a/b@c")),
    (b"traceparent", (b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"00-0-0-00", b"\xff", b"")),
    (b"tracestate", (b"a=1", b",,=,", b"\xe9")),
    (b"x-vllm-priority", (b"-5", b"x")),
    (b"x-data-parallel-rank", (b"3",)),
    (b"x-weir-explain", (b"1", b"true", b"2")),
    (b"x-weir-forwarded", (
        b'{"class_name":"gold","tenant":"","payer":"","age_s":0,"number":1}', b"{}", b"",
    )),
    (b"x-weir-returned", (b"draining", b"")),
    (b"expect", (b"100-continue", b"100-Continue", b"something")),
    (b"upgrade", (b"websocket", b"h2c", b"")),
    (b"connection", (b"close", b"keep-alive", b"upgrade", b"x-fuzz", b"")),
    (b"origin", (b"https://page", b"null", b"", b"\xff")),
    (b"access-control-request-method", (b"POST", b"", b"\xff")),
    (b"access-control-request-headers", (b"authorization", b",,", b"\xff")),
    (b"content-type", (b"application/json", b"text/plain", b"multipart/form-data; boundary=xx",
                       b"multipart/form-data", b"\xff", b"Multipart/Form-Data; boundary=\"\xe9\"")),
    (b"te", (b"trailers",)),
    (b"cookie", (b"a=b", b"x" * 5000)),
    (b"x-many", (b"1",)),
    (b"accept-encoding", (b"gzip",)),
    (b"x-session-id", (b"s1",)),
)  # fmt: skip
_AUTHORIZATIONS: Final = (
    b"", b"Bearer", b"Bearer ", b"Bearer sk-unknown", b"Basic sk-ada", b"bearer  sk-ada ",
    b"sk-ada", b"Bearer \xff\xfe", b"Bearer " + b"k" * 4000,
)  # fmt: skip
_NOISE: Final = (
    b"\r\n", b"\n", b"\x00", b" ", b"\t", b":", b"\r\n\r\n", b"\r", b"\xff", b"0\r\n\r\n",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1", b"GET / HTTP/1.1\r\n",
    b"\r\n folded\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"x" * 9000, b"content-length: +3\r\n",
)  # fmt: skip
_GARBAGE: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /\r\n\r\n", b"\r\n\r\n\r\n", b"SSH-2.0-x\r\n", b"\x00" * 40, b"POST", b" ", b"\n\nGET",
)  # fmt: skip
_FORM: Final = (
    b'--xx\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--xx--',
    b'--xx\r\nContent-Disposition: form-data; name="vllm_xargs"\r\n\r\n{}\r\n--xx--',
    b"--xx\r\nContent-Disposition: form-data; name*=utf-8''a\r\n\r\n1\r\n--xx--\r\n",
)


@dataclass(frozen=True, slots=True)
class Sent:
    """One request as it goes on the wire.

    Attributes:
        data: Its bytes.
        cut: Where its body begins, about.
        script: What the engine is told to do.
        is_whole: It was not mutated, so it is one request with one answer.
        bodiless: Its answer has no body.
    """

    data: bytes
    cut: int
    script: int
    is_whole: bool
    bodiless: bool


def request(rng: random.Random) -> Sent:
    """Return one request."""
    script = rng.getrandbits(40)
    if rng.random() < 0.01:
        return Sent(rng.choice(_GARBAGE), 0, script, False, False)
    method, path = _target(rng)
    version = (
        b"HTTP/1.1" if rng.random() < 0.95 else rng.choice((b"HTTP/1.0", b"HTTP/1.0", b"HTTP/2.0"))
    )
    lines = [b"%b %b %b" % (method, path, version), b"Host: weir", b"%b: %d" % (SCRIPT, script)]
    lines += _headers(rng)
    if method == b"OPTIONS":
        lines += [b"Origin: https://page", b"Access-Control-Request-Method: POST"]
    body, encoding = b"", b""
    if method in (b"POST", b"PUT", b"PATCH") or rng.random() < 0.05:
        body, encoding = _encoded(rng, _body(rng, path))
    if encoding:
        lines.append(b"Content-Encoding: " + encoding)
    data, cut, is_whole = _framed(rng, lines, body)
    if rng.random() < 0.06:
        data, is_whole = mutated(rng, data), False
    is_whole &= version != b"HTTP/2.0" and method not in (b"", b"CONNECT", b"G\xc3\x89T")
    return Sent(data, cut, script, is_whole, data.lstrip().startswith(b"HEAD "))


def _target(rng: random.Random) -> tuple[bytes, bytes]:
    chance = rng.random()
    if chance < 0.6:
        return b"POST", rng.choice(_USUAL)
    if chance < 0.85:
        return b"POST", rng.choice(_PATHS)
    if chance < 0.93:
        return rng.choice((b"GET", b"GET", b"POST")), rng.choice(_OTHERS)
    return rng.choice(_METHODS), rng.choice(_USUAL + _OTHERS)


def _headers(rng: random.Random) -> list[bytes]:
    lines = []
    chance = rng.random()
    if chance < 0.85:
        key = rng.choice(tuple(KEYS.values())).encode()
        lines.append(b"x-api-key: " + key if chance < 0.1 else b"Authorization: Bearer " + key)
    elif chance < 0.95:
        lines.append(b"Authorization: " + rng.choice(_AUTHORIZATIONS))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 5))):
        name, values = rng.choice(_HEADERS)
        lines.append(b"%b: %b" % (name, rng.choice(values)))
    if rng.random() < 0.004:
        lines += [b"x-many-%d: 1" % number for number in range(rng.choice((60, 300)))]
    return lines


def _body(rng: random.Random, path: bytes) -> bytes:
    if b"audio" in path or rng.random() < 0.01:
        return rng.choice(_FORM)
    fields = dict(_TEMPLATES.get(path.decode("latin-1"), _CHAT))
    if rng.random() < 0.4:
        fields[b"stream"] = b"true"
    if rng.random() < 0.2:
        for _ in range(rng.choice((1, 1, 2, 4))):
            fields[rng.choice(_FIELDS)] = rng.choice(_VALUES)
    if rng.random() < 0.05:
        fields[b"user"] = b'"%b"' % (b"word " * rng.choice((500, 3000, 20_000, 60_000)))
    return _misspelt(rng, b"{%b}" % b",".join(b'"%b":%b' % each for each in fields.items()))


def _misspelt(rng: random.Random, body: bytes) -> bytes:
    """Return a body as it is, mostly; else in another encoding, in part, changed, or another."""
    chance = rng.random()
    if chance < 0.03:
        encoding = rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-be"))
        return body.decode("latin-1").encode(encoding)
    if chance < 0.05:
        return body[: rng.randrange(len(body))]
    if chance < 0.07:
        return mutated(rng, body)
    if chance < 0.08:
        return rng.choice((b"", b"[]", b"null", b'"x"', b" ", b"{} {}", b"1"))
    return body


def _encoded(rng: random.Random, body: bytes) -> tuple[bytes, bytes]:
    if rng.random() < 0.9:
        return body, b""
    if rng.random() < 0.1:
        body = b" " * rng.choice((70_000, 200_000, 600_000)) + body
    kind = rng.choice(
        (b"gzip", b"x-gzip", b"deflate", b"DEFLATE", b"identity", b"br", b"gzip, gzip")
    )
    packed = body
    if b"gzip" in kind:
        packed = gzip.compress(body, 1, mtime=0)
    elif kind.lower() == b"deflate":
        packed = zlib.compress(body, 1, wbits=rng.choice((15, -15)))
    chance = rng.random()
    if chance < 0.1:
        packed = packed[: rng.randrange(len(packed) + 1)]
    elif chance < 0.2:
        packed = mutated(rng, packed)
    elif chance < 0.25:
        packed += b"more"
    return packed, kind


def _framed(rng: random.Random, lines: list[bytes], body: bytes) -> tuple[bytes, int, bool]:
    """Return the bytes, where the body begins, and whether they are one whole request."""
    chance = rng.random()
    if chance < 0.8:
        lines.append(b"Content-Length: %d" % len(body))
    elif chance < 0.93:
        lines.append(b"Transfer-Encoding: chunked")
        body = _chunked(rng, body)
    else:
        return _misframed(rng, lines, body)
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    return head + body, len(head), True


def _chunked(rng: random.Random, body: bytes) -> bytes:
    pieces, at = [], 0
    while at < len(body):
        size = rng.choice((1, 7, 100, 4000, 70_000))
        piece = body[at : at + size]
        at += size
        pieces.append(b"%x%b\r\n%b\r\n" % (len(piece), rng.choice((b"", b"", b";a=b")), piece))
    return b"".join(pieces) + rng.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nx-trailer: 1\r\n\r\n"))


def _misframed(rng: random.Random, lines: list[bytes], body: bytes) -> tuple[bytes, int, bool]:
    """Return a request whose lengths are wrong, doubled or missing."""
    length = len(body)
    wrong = rng.choice(
        (
            [],
            [b"Content-Length: %d" % (length + rng.choice((1, 50)))],
            [b"Content-Length: %d" % max(0, length - rng.choice((1, 5)))],
            [b"Content-Length: %d" % length, b"Content-Length: %d" % (length + 1)],
            [b"Content-Length: %d" % length, b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: gzip, chunked"],
            [b"Transfer-Encoding: chunked, identity"],
            [
                b"Content-Length: "
                + rng.choice((b"-1", b"x", b"1e3", b"9" * 30, b"", b" 5 ", b"0x5"))
            ],
        )
    )
    if any(b"Transfer" in line for line in wrong):
        body = _chunked(rng, body)
    head = b"\r\n".join([*lines, *wrong]) + b"\r\n\r\n"
    return head + body, len(head), False


def mutated(
    rng: random.Random,
    data: bytes,
    noise: Sequence[bytes] = _NOISE,
    *,
    within: int = sys.maxsize,
    inserts: float = 0.3,
) -> bytes:
    """Return bytes with a few of them changed, removed or repeated, or with noise among them.

    Args:
        rng: Draws the changes.
        data: What is changed.
        noise: What may be inserted.
        within: Changes begin in so many of the first bytes.
        inserts: Part of the changes that insert noise, below 0.6.
    """
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(min(len(changed), within) + 1)
        chance = rng.random()
        if chance < inserts:
            changed[at:at] = rng.choice(noise)
        elif chance < 0.6:
            changed[at : at + 1] = bytes([rng.getrandbits(8)])
        elif chance < 0.8:
            del changed[at : at + rng.choice((1, 2, 10))]
        else:
            end = at + rng.choice((1, 8, 60))
            changed[at:at] = changed[at:end]
    return bytes(changed)
