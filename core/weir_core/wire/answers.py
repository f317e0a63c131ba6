"""What pieces of an answer say, by API: that a token came, that the engine failed, that it gave up.

Answers are never parsed. vLLM writes each event with its own classes, so a few bytes tell events
apart; a quote inside generated text is escaped in JSON, and a line break is, so no model output
can look like them. An integration test holds this against those classes.
"""

from __future__ import annotations

import re
from typing import Final

from weir_core.wire.paths import Api

# A chat's first chunk has the role and no text; a plain chat has no `delta`.
_CHAT_TOKEN: Final = re.compile(
    rb'"delta":\{(?!"role":"(?:[^"\\]|\\.)*"(?:,"content":(?:""|null))?\})'
)
_COHERE_TOKEN: Final = re.compile(rb'"type":\s*"(?:content-|tool-|citation-|message-end)')
_OPENAI_ERROR: Final = re.compile(rb'data:\s*\{"error":')
# A stream says null where a plain answer, which leaves out what is null, says nothing.
_MESSAGES_ABORT: Final = re.compile(
    rb'"type":"message_delta","delta":\{"stop_reason":null'
    rb'|"model":"(?:[^"\\]|\\.)*","usage":\{'
)
_RESPONSES_ABORT: Final = re.compile(rb'"service_tier":"[a-z]*","status":"cancelled"')
_COHERE_FAILURE: Final = re.compile(rb'"finish_reason":\s*"ERROR"')
_OPENAI_SIGNS: Final = (b'{"error":', b'"finish_reason":"abort"')
_SIGNS: Final[dict[Api, tuple[bytes, ...]]] = {
    Api.CHAT: _OPENAI_SIGNS,
    Api.COMPLETIONS: _OPENAI_SIGNS,
    Api.OTHER: _OPENAI_SIGNS,
    Api.RESPONSES: (b"event: error\n", b"event: response.failed\n", b'"status":"cancelled"'),
    Api.MESSAGES: (b"event: error\n", b'"stop_reason":null', b'","usage":{'),
    Api.COHERE: (b'"ERROR"',),
}
"""A piece without any of these bytes needs no closer look; looking for them costs little."""


def carries_token(api: Api, piece: bytes) -> bool:
    """Tell whether a piece of an event stream shows that the engine has made a token.

    Heads (`response.created`, `message_start`, a chat's role), pings and keep-alive comments do
    not; the end of an empty answer does, because the engine's first token may be its last.
    """
    match api:
        case Api.CHAT:
            return b'"delta":{' in piece and _CHAT_TOKEN.search(piece) is not None
        case Api.RESPONSES:
            return b".delta\ndata:" in piece or b"event: response.completed\n" in piece
        case Api.MESSAGES:
            return b"event: content_block_" in piece or b"event: message_delta\n" in piece
        case Api.COHERE:
            return _COHERE_TOKEN.search(piece) is not None
        case Api.COMPLETIONS | Api.OTHER:
            return b'"choices":[{' in piece


def tokens_in(api: Api, piece: bytes) -> int:
    """Return how many events of a piece of an event stream show a token.

    Several tokens may share an event, so this counts no more than there are. It is for streams
    whose usage the client did not ask for.
    """
    match api:
        case Api.CHAT:
            found = piece.count(b'"delta":{')
            has_role = found and piece.find(b'"role":') >= 0
            return len(_CHAT_TOKEN.findall(piece)) if has_role else found
        case Api.MESSAGES:
            found = piece.count(b"event: content_block_delta\n")
        case Api.RESPONSES:
            found = piece.count(b".delta\ndata:")
        case Api.COHERE:
            found = piece.count(b'"content-delta"')
        case Api.COMPLETIONS | Api.OTHER:
            found = piece.count(b'"choices":[{')
    return found or int(carries_token(api, piece))


def reports_failure(api: Api, piece: bytes) -> bool:
    """Tell whether a piece of an answer with a good status says that the engine failed."""
    for sign in _SIGNS[api]:
        # `in` first takes its left side for a number, and makes an error of it, each time.
        if piece.find(sign) >= 0:
            return _has_error(api, piece) or was_aborted(api, piece)
    return False


def _has_error(api: Api, piece: bytes) -> bool:
    match api:
        case Api.RESPONSES:
            return b"event: error\n" in piece or b"event: response.failed\n" in piece
        case Api.MESSAGES:
            return b"event: error\n" in piece
        case Api.COHERE:
            return b'"ERROR"' in piece and _COHERE_FAILURE.search(piece) is not None
        case Api.CHAT | Api.COMPLETIONS | Api.OTHER:
            return b'{"error":' in piece and _OPENAI_ERROR.search(piece) is not None


def was_aborted(api: Api, piece: bytes) -> bool:
    """Tell whether a piece of an answer says that the engine gave it up.

    vLLM ends what it drops while it shuts down or sleeps with status 200 and what there is of the
    text, perhaps none. A client's own abort is never answered. Two of the APIs of vLLM 0.32 hide
    it: Cohere's always, the Responses API unless the model is one of gpt-oss.
    """
    match api:
        case Api.MESSAGES:
            return _MESSAGES_ABORT.search(piece) is not None
        case Api.COHERE:
            return False
        case Api.RESPONSES:
            return _RESPONSES_ABORT.search(piece) is not None
        case Api.CHAT | Api.COMPLETIONS | Api.OTHER:
            return b'"finish_reason":"abort"' in piece
