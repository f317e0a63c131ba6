"""What the load generator and the engine of this benchmark say to each other.

The request is an ordinary chat completion; `seed` carries the time the engine takes, in
microseconds, because every router passes that field on; with 0 it answers at once. The answer
carries nanosecond stamps of the monotonic clock, which all processes of one machine share, as its
text:

    @IN@OUT   in the first token: when the request was complete, when this token left
    @OUT      in every later token
"""

from __future__ import annotations

import json
from typing import Final

import msgspec

MODEL: Final = "tiny"
API_KEY: Final = "sk-bench-relay"
"""Every request carries it; the sidecars know it by its hash, the others pass it on."""
EVENT: Final = b"data: "
STAMP_MARK: Final = b'"content":"@'
STAMP_DIGITS: Final = 19
DONE: Final = b"data: [DONE]\n\n"

_FILLER: Final = "The quick brown fox jumps over the lazy dog. "


class Ask(msgspec.Struct):
    """The fields of a request that the engine of this benchmark looks at.

    sglang-router renames `max_tokens` to its newer name on the way.
    """

    stream: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int = 0

    @property
    def tokens(self) -> int:
        """How long the answer is to be."""
        return self.max_completion_tokens or self.max_tokens or 1


def request_body(*, size: int, stream: bool, tokens: int, engine_time_us: int) -> bytes:
    """Return a chat request of exactly `size` bytes.

    Raises:
        ValueError: The fields alone are longer than `size`.
    """
    fields = {
        "model": MODEL,
        "messages": [{"role": "user", "content": ""}],
        "stream": stream,
        "max_tokens": tokens,
        "seed": engine_time_us,
    }
    missing = size - len(json.dumps(fields))
    if missing < 0:
        raise ValueError(f"a request cannot be {size} bytes, its fields need {size - missing}")
    text = (_FILLER * (missing // len(_FILLER) + 1))[:missing]
    fields["messages"] = [{"role": "user", "content": text}]
    return json.dumps(fields).encode()


def stamp(*instants_ns: int) -> bytes:
    """Return instants in the form that `read_stamps` finds."""
    return b"".join(b"@%0*d" % (STAMP_DIGITS, instant) for instant in instants_ns)


def read_stamps(answer: bytes, start: int = 0) -> tuple[int, ...]:
    """Return the instants of the first stamped token at or after `start`; empty if none."""
    mark = answer.find(STAMP_MARK, start)
    if mark < 0:
        return ()
    first = mark + len(STAMP_MARK)
    end = answer.find(b'"', first)
    if end < 0:
        return ()
    return tuple(int(part) for part in answer[first:end].split(b"@"))


def token_event(stamped: bytes, finish_reason: str | None = None) -> bytes:
    """Return one server-sent event in vLLM's shape whose text is `stamped`."""
    reason = b"null" if finish_reason is None else b'"%s"' % finish_reason.encode()
    return b'%s"content":"%s"},"logprobs":null,"finish_reason":%s,"token_ids":null}]}\n\n' % (
        _BEFORE_DELTA,
        stamped,
        reason,
    )


def role_event() -> bytes:
    """Return the event that opens a stream."""
    return (
        _BEFORE_DELTA
        + b'"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
    )


def whole_answer(stamped: bytes, prompt_tokens: int) -> bytes:
    """Return the body of an answer that is not streamed."""
    return (
        b'{"id":"chatcmpl-0123456789abcdef","object":"chat.completion","created":1700000000,'
        b'"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"'
        + stamped
        + b'"},"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":%d,'
        b'"total_tokens":%d,"completion_tokens":1}}' % (prompt_tokens, prompt_tokens + 1)
    )


_BEFORE_DELTA: Final = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"tiny","choices":[{"index":0,"delta":{'
)
