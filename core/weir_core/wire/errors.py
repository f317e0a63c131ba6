"""The errors that Weir says itself, in the language of the API that was asked.

A refusal before the first byte has an honest status and a body as the asked API writes its errors
(`error_body`), so that each client library raises the exception that its user expects.

A stream that breaks after its first byte has no second status. It ends with one event
(`ending_event`) and without the end that HTTP asks for: the caller writes the event, waits
`ENDING_PAUSE_S`, and closes the connection inside the unfinished chunked encoding. Neither alone is
noticed by all clients; both together are, by all that were tried (docs/clients.md):

- Anthropic's SDKs and aiperf act upon the SSE field `event: error`;
- OpenAI's SDKs act upon a top-level `error` object in the data, whatever the event's name;
- genai-bench reads `error.code` as a number;
- aiperf shows the comment line as the error's text;
- `vllm bench serve` and `ai`'s textStream notice the unfinished encoding only.
"""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Any, Final

import msgspec

DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"
"""The header that tells why a request was refused which may be tried again."""

MIN_RETRY_AFTER_S: Final = 1.0
"""JavaScript clients take 0 for "at once"."""
MAX_RETRY_AFTER_S: Final = 59.0
"""JavaScript clients ignore 60 and more, and come back at once; OpenAI's for Python gives up above
120."""
_FOLD_S: Final = MAX_RETRY_AFTER_S - 30.0

ENDING_PAUSE_S: Final = 0.1
"""Between the last event and the close. curl over HTTP/2 and two routers lose an event that reaches
them together with the close: without a pause up to 20 of 20 were lost, with it none."""

_SEQUENCE_NUMBER: Final = re.compile(rb'"sequence_number":\s*(\d{1,18})')
_SENT_AGAIN: Final = frozenset({501, 504})
"""Errors that SDKs send again although it cannot help: what is not implemented stays so, and an
engine too slow to begin would get three times the load."""


class ErrorShape(StrEnum):
    """The APIs that vLLM serves, as far as their errors differ in shape."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    """Anthropic's."""
    COHERE = "cohere"
    OPENAI = "openai"
    """OpenAI's other paths: embeddings, audio, models."""
    VLLM = "vllm"
    """vLLM's own paths, whose errors have OpenAI's shape with the status as their code."""


_EXACT: Final = {
    "/v1/chat/completions": ErrorShape.CHAT,
    "/v1/completions": ErrorShape.COMPLETIONS,
    "/v1/responses": ErrorShape.RESPONSES,
    "/v1/messages": ErrorShape.MESSAGES,
    "/v1/messages/render": ErrorShape.VLLM,
}
_UNDER: Final = (
    ("/v1/responses/", ErrorShape.RESPONSES),
    ("/v1/messages/", ErrorShape.MESSAGES),
    ("/cohere/", ErrorShape.COHERE),
    ("/v1/", ErrorShape.OPENAI),
)

_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_shape_of(path: str) -> ErrorShape:
    """Return the API of a decoded path; vLLM's own where the path is not known."""
    path = path.rstrip("/")
    exact = _EXACT.get(path)
    if exact is not None:
        return exact
    return next((shape for prefix, shape in _UNDER if path.startswith(prefix)), ErrorShape.VLLM)


def error_body(shape: ErrorShape, status: int, message: str, kind: str, code: str) -> bytes:
    """Return the body of a refusal as the asked API writes errors.

    Args:
        shape: That of the API that was asked.
        status: The HTTP status that goes with the body.
        message: What is wrong and what to do, one or two sentences.
        kind: OpenAI's `type`; Anthropic's follows from the status.
        code: Our stable word for what happened; every shape carries it.
    """
    message = _one_line(message)
    body: dict[str, Any]
    if shape is ErrorShape.MESSAGES:
        details = {"error_code": code}
        error = {"type": anthropic_type(status), "message": message, "details": details}
        body = {"type": "error", "error": error}
    elif shape is ErrorShape.COHERE:
        body = {"message": message, "code": code}
    elif shape is ErrorShape.VLLM:
        body = {"error": _error(message, kind, status), "code": code}
    else:
        body = {"error": _error(message, kind, code)}
    return msgspec.json.encode(body)


def anthropic_type(status: int) -> str:
    """Return the word that Anthropic's API has for a status."""
    found = _ANTHROPIC_TYPES.get(status)
    if found is not None:
        return found
    return "api_error" if status >= 500 else "invalid_request_error"


def ending_event(
    shape: ErrorShape, message: str, status: int, code: str, sequence_number: int = 0
) -> bytes:
    """Return the server-sent event that ends a stream which cannot go on.

    The event has to start on a line of its own: where the last event may be unfinished, the caller
    writes an empty line before it.

    Args:
        shape: That of the API that was asked.
        message: What happened, one or two sentences; line breaks become spaces.
        status: What the status would have been, had the answer not begun.
        code: Our stable word for what happened.
        sequence_number: The next one of a /v1/responses stream.
    """
    message = _one_line(message)
    event: dict[str, Any]
    if shape is ErrorShape.COHERE:
        delta = {"finish_reason": "ERROR", "error": message}
        event = {"type": "message-end", "delta": delta, "code": code}
    else:
        event = {
            "type": "error",
            "error": _error(message, "api_error", status),
            "code": code,
            "message": message,
            "param": None,
            "sequence_number": sequence_number,
        }
    comment = message.encode()
    return b"event: error\n: %b\ndata: %b\n\n" % (comment, msgspec.json.encode(event))


def next_sequence_number(tail: bytes) -> int:
    """Return the number that follows the last one in the last bytes of a /v1/responses stream."""
    found = _SEQUENCE_NUMBER.findall(tail)
    return int(found[-1]) + 1 if found else 0


def retry_headers(reason: str, seconds: float) -> dict[str, str]:
    """Return the headers that tell when another attempt may help, and why this one did not.

    OpenAI's, Anthropic's and Vercel's clients obey `retry-after-ms` to the millisecond and add no
    jitter of their own, so the spread that is in `seconds` stays in it. What is over the longest
    wait is folded back below it, because a bound alone would let all clients come back as one.
    """
    excess_s = seconds - MAX_RETRY_AFTER_S
    if excess_s > 0:
        seconds = MAX_RETRY_AFTER_S - excess_s % _FOLD_S
    milliseconds = round(max(seconds, MIN_RETRY_AFTER_S) * 1000)
    return {
        "Retry-After": str(math.ceil(milliseconds / 1000)),
        "retry-after-ms": str(milliseconds),
        DROPPED_REASON: reason,
    }


def status_headers(status: int) -> dict[str, str]:
    """Return the headers that keep SDKs from sending again what cannot succeed."""
    return {"x-should-retry": "false"} if status in _SENT_AGAIN else {}


def _error(message: str, kind: str, code: str | int) -> dict[str, Any]:
    """Return OpenAI's error object, of which vLLM writes the status as the code."""
    return {"message": message, "type": kind, "param": None, "code": code}


def _one_line(message: str) -> str:
    """Return a message without line breaks and other characters that end a line somewhere.

    Some clients split event streams wherever Unicode knows a line end, U+2028 for one.
    """
    if message.isprintable():
        return message
    return " ".join("".join(each if each.isprintable() else " " for each in message).split())
