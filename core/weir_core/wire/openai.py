"""The little that Weir writes into bodies and picks out of the last bytes of answers.

Weir relays bodies; it does not own their schema. What decides something in a request is read in
`bodies`; answers are never parsed, token counts are picked out of their last bytes.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from weir_core.wire.fields import TokenCount, Usage

_COUNT_DECODER: Final = msgspec.json.Decoder(TokenCount)
_WHITESPACE: Final = b" \t\r\n"
_CLOSING_BRACE: Final = 0x7D

# A quote inside generated text is escaped in JSON, so no pattern here can match model output.
_USAGE: Final = re.compile(rb'"usage":\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_USUAL: Final = re.compile(
    rb'"usage":\{"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)[,}]'
)
"""As vLLM writes it for chat and completions; the others are looked at in more steps."""
_PROMPT_TOKENS: Final = re.compile(rb'"(?:prompt|input)_tokens":\s*(\d+)')
# Anthropic's input tokens leave out what was read from the prefix cache or written to it.
_CACHED_TOKENS: Final = re.compile(rb'"cache_(?:read|creation)_input_tokens":\s*(\d+)')
_OUTPUT_TOKENS: Final = re.compile(rb'"(?:completion|output)_tokens":\s*(\d+)')


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
    if start < 0:
        return None
    usual = _USUAL.match(tail, start)
    if usual is not None:
        return Usage(int(usual.group(1)), int(usual.group(2)))
    found = _USAGE.match(tail, start)
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


def _count(found: re.Match[bytes] | None) -> int:
    return int(found.group(1)) if found else 0
