"""The bytes of vLLM's OpenAI server that a mock has to send, serialised once.

A stream is one role chunk, one chunk per output token, the last of which carries the finish
reason, a usage chunk when the client asked for it, and `[DONE]`. All of it depends only on the
endpoint, the model and a few numbers, so the mock builds each piece once and sends the same
object again and again: what a benchmark measures is then the relay, not JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal

Endpoint = Literal["chat", "completion"]

DONE: Final = b"data: [DONE]\n\n"
TOKEN_TEXT: Final = " token"
_CREATED: Final = 1_700_000_000
_PROMPT_TOKENS: Final = 10


@dataclass(frozen=True, slots=True)
class StreamPieces:
    """Everything one stream can consist of, as server-sent events ready to write."""

    head: bytes
    token: bytes
    last_by_length: bytes
    last_by_stop: bytes


@lru_cache(maxsize=64)
def stream_pieces(endpoint: Endpoint, model: str) -> StreamPieces:
    """Return the events of a stream; a completion's stream has no role chunk (empty `head`)."""
    event = _chat_event if endpoint == "chat" else _completion_event
    head = event(model, {"role": "assistant", "content": ""}, None) if endpoint == "chat" else b""
    token = {"content": TOKEN_TEXT}
    return StreamPieces(
        head=head,
        token=event(model, token, None),
        last_by_length=event(model, token, "length"),
        last_by_stop=event(model, token, "stop"),
    )


@lru_cache(maxsize=256)
def usage_event(
    endpoint: Endpoint, model: str, output_tokens: int, prompt_tokens: int = _PROMPT_TOKENS
) -> bytes:
    """Return the chunk without choices that `stream_options.include_usage` asks for."""
    kind = "chat.completion.chunk" if endpoint == "chat" else "text_completion"
    counts = usage(output_tokens, prompt_tokens)
    return _sse({**_envelope(endpoint, kind, model), "choices": [], "usage": counts})


@lru_cache(maxsize=256)
def whole_answer(
    endpoint: Endpoint,
    model: str,
    output_tokens: int,
    finish_reason: str,
    prompt_tokens: int = _PROMPT_TOKENS,
) -> bytes:
    """Return the body of an answer that is not streamed."""
    text = TOKEN_TEXT * output_tokens
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
    if endpoint == "chat":
        choice["message"] = {"role": "assistant", "content": text, "tool_calls": []}
    else:
        choice["text"] = text
    kind = "chat.completion" if endpoint == "chat" else "text_completion"
    answer = {
        **_envelope(endpoint, kind, model),
        "choices": [choice],
        "usage": usage(output_tokens, prompt_tokens),
    }
    return json.dumps(answer).encode()


def models_answer(
    names: Sequence[str], max_model_len: int, adapters: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """Return the body of `/v1/models`.

    Args:
        names: The model's, its own first.
        max_model_len: The longest prompt and answer together.
        adapters: The directories of adapters, by name.
    """
    common = {"object": "model", "created": _CREATED, "owned_by": "vllm"}
    own: dict[str, Any] = {"root": names[0], "parent": None, "max_model_len": max_model_len}
    entries = [{"id": name, **common, **own} for name in names]
    entries += [
        {"id": name, **common, "root": path, "parent": names[0], "max_model_len": None}
        for name, path in adapters.items()
    ]
    return json.dumps({"object": "list", "data": entries}).encode()


def error_answer(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    """Return an error body as vLLM writes it: the code is the status."""
    error = {"message": message, "type": kind, "param": param, "code": status}
    return json.dumps({"error": error}).encode()


def usage(output_tokens: int, prompt_tokens: int = _PROMPT_TOKENS) -> dict[str, Any]:
    """Return the usage object of an answer with `output_tokens`."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "completion_tokens": output_tokens,
        "prompt_tokens_details": None,
    }


def _chat_event(model: str, delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None}
    return _sse(_chunk("chat", "chat.completion.chunk", model, choice, finish_reason))


def _completion_event(model: str, delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice: dict[str, Any] = {"index": 0, "text": delta["content"], "logprobs": None}
    return _sse(_chunk("completion", "text_completion", model, choice, finish_reason))


def _chunk(
    endpoint: Endpoint, kind: str, model: str, choice: dict[str, Any], finish_reason: str | None
) -> dict[str, Any]:
    choice = {**choice, "finish_reason": finish_reason}
    if finish_reason is not None:
        choice["stop_reason"] = None
    return {**_envelope(endpoint, kind, model), "choices": [{**choice, "token_ids": None}]}


def _envelope(endpoint: Endpoint, kind: str, model: str) -> dict[str, Any]:
    prefix = "chatcmpl" if endpoint == "chat" else "cmpl"
    identity = f"{prefix}-0123456789abcdef0123456789abcdef"
    return {"id": identity, "object": kind, "created": _CREATED, "model": model}


def _sse(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
