"""The little of OpenAI's wire format that Weir reads, and the errors it says itself.

Weir relays bodies; it does not own their schema. So the request is read for the handful of fields
that decide something, unknown fields are skipped without building objects for them, and a body
that cannot be read is still passed on: the engine is the one to refuse it. Answers are never
parsed at all: token counts are picked out of their last bytes.
"""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec


class RequestFields(msgspec.Struct, frozen=True, gc=False):
    """What Weir reads of a request; None where the client did not say."""

    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    """The spelling of /v1/responses."""
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    priority: int | None = None
    service_tier: str | None = None

    @property
    def output_limit_tokens(self) -> int | None:
        """The most output tokens the client asked for, by whichever name it used."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens if self.max_tokens is not None else self.max_output_tokens


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts of one answer, as the engine reported them."""

    prompt_tokens: int
    output_tokens: int


UNREADABLE: Final = RequestFields()


class _Count(msgspec.Struct, frozen=True, gc=False):
    count: int


_COUNT_DECODER: Final = msgspec.json.Decoder(_Count)
_WHITESPACE: Final = b" \t\r\n"
_CLOSING_BRACE: Final = 0x7D
_DECODER: Final = msgspec.json.Decoder(RequestFields, strict=False)

# A quote inside generated text is escaped in JSON, so no pattern here can match model output.
_USAGE: Final = re.compile(rb'"usage":\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_PROMPT_TOKENS: Final = re.compile(rb'"(?:prompt|input)_tokens":\s*(\d+)')
# Anthropic's input tokens leave out what was read from the prefix cache or written to it.
_CACHED_TOKENS: Final = re.compile(rb'"cache_(?:read|creation)_input_tokens":\s*(\d+)')
_OUTPUT_TOKENS: Final = re.compile(rb'"(?:completion|output)_tokens":\s*(\d+)')
_STREAM_ERROR: Final = re.compile(rb'data:\s*\{"error":')


def read_request(body: bytes) -> RequestFields:
    """Return the fields of a JSON body, or `UNREADABLE` where it is not what we expect."""
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return UNREADABLE


def is_utf8(body: bytes) -> bool:
    """Tell whether a JSON reader takes a body for UTF-8, as every body is that could be read here.

    Python's own, which the engine uses, also reads UTF-16 and UTF-32, where nothing here can look.
    """
    return json.detect_encoding(body).startswith("utf-8")


def with_priority(body: bytes, priority: int) -> tuple[bytes | memoryview, ...]:
    """Return a JSON object's bytes with `priority` set, in pieces and without copying it.

    The field is added at the end, where it wins over one that the client wrote. A body that is
    no object is returned as it is: the engine is the one to refuse it.
    """
    end = len(body)
    while end and body[end - 1] in _WHITESPACE:
        end -= 1
    if not end or body[end - 1] != _CLOSING_BRACE:
        return (body,)
    before = end - 1
    while before and body[before - 1] in _WHITESPACE:
        before -= 1
    comma = b"" if body[before - 1 : before] in (b"{", b"") else b","
    return (memoryview(body)[:before], b'%b"priority":%d}' % (comma, priority))


def usage_in(tail: bytes) -> Usage | None:
    """Return the last `usage` object in the last bytes of an answer, if there is one."""
    start = tail.rfind(b'"usage":')
    found = _USAGE.match(tail, start) if start >= 0 else None
    if found is None:
        return None
    prompt = _PROMPT_TOKENS.search(found.group(1))
    output = _OUTPUT_TOKENS.search(found.group(1))
    cached = sum(map(int, _CACHED_TOKENS.findall(found.group(1))))
    return Usage(_count(prompt) + cached, _count(output)) if prompt else None


def token_count_in(page: bytes) -> int | None:
    """Return the `count` of an answer of vLLM's /tokenize, or None where it holds none."""
    try:
        return _COUNT_DECODER.decode(page).count
    except msgspec.MsgspecError:
        return None


def has_stream_error(piece: bytes) -> bool:
    """Tell whether a piece of an event stream carries an error event of the engine."""
    return b'{"error":' in piece and _STREAM_ERROR.search(piece) is not None


def was_aborted(piece: bytes) -> bool:
    """Tell whether a piece of an answer says that the engine gave it up.

    vLLM ends what it drops while it shuts down or sleeps with status 200, this finish reason and
    what there is of the text, perhaps none. A client's own abort is never answered.
    """
    return b'"finish_reason":"abort"' in piece


def reports_failure(piece: bytes) -> bool:
    """Tell whether a piece of an answer with a good status says that the engine failed."""
    return has_stream_error(piece) or was_aborted(piece)


def _count(found: re.Match[bytes] | None) -> int:
    return int(found.group(1)) if found else 0


def error_body(message: str, *, kind: str, code: str, param: str | None = None) -> bytes:
    """Return an error in OpenAI's shape; `kind` becomes its `type`."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def error_event(message: str, *, kind: str, code: str) -> bytes:
    """Return the server-sent event that ends a stream which cannot go on."""
    return b"data: " + error_body(message, kind=kind, code=code) + b"\n\n"
