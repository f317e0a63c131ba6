"""Streams of every API, byte by byte, as vLLM writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final


def plain(events: Iterable[dict[str, Any]]) -> tuple[bytes, ...]:
    return tuple(b"data: %b\n\n" % json.dumps(event).encode() for event in events)


def named(events: Iterable[dict[str, Any]]) -> tuple[bytes, ...]:
    return tuple(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode())
        for event in events
    )


def numbered(events: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    return (event | {"sequence_number": number} for number, event in enumerate(events))


def chat_event(text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"} | {
        "choices": [choice]
    }


def text_event(text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return {"id": "c", "object": "text_completion", "created": 1, "model": "m"} | {
        "choices": [choice]
    }


def response(status: str, *output: dict[str, Any]) -> dict[str, Any]:
    fields = {"id": "r", "object": "response", "created_at": 1, "model": "m", "status": status}
    return fields | {
        "output": output,
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
    }


PART: Final[dict[str, Any]] = {"type": "output_text", "text": "", "annotations": []}
ITEM: Final[dict[str, Any]] = {
    "id": "i",
    "type": "message",
    "role": "assistant",
    "status": "in_progress",
}
PLACE: Final[dict[str, Any]] = {
    "item_id": "i",
    "output_index": 0,
    "content_index": 0,
    "logprobs": [],
}
SPOKEN: Final[dict[str, Any]] = ITEM | {
    "status": "completed",
    "content": [PART | {"text": "Fine."}],
}
MESSAGE: Final[dict[str, Any]] = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
}
USED: Final[dict[str, Any]] = {"usage": {"input_tokens": 3, "output_tokens": 1}}

ANSWERING: Final[list[dict[str, Any]]] = [
    {"type": "response.created", "response": response("in_progress")},
    {"type": "response.output_item.added", "output_index": 0, "item": ITEM | {"content": []}},
    {"type": "response.content_part.added", "part": PART} | PLACE,
    {"type": "response.output_text.delta", "delta": "Fine."} | PLACE,
]

BEGUN: Final[dict[str, tuple[bytes, ...]]] = {
    "/v1/chat/completions": plain([chat_event("Fi"), chat_event("ne.")]),
    "/v1/completions": plain([text_event("Fi"), text_event("ne.")]),
    "/v1/responses": named(numbered(ANSWERING)),
    "/v1/messages": named(
        [
            {"type": "message_start", "message": MESSAGE | USED},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            },
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": "Fine."},
            },
        ]
    ),
}
"""The events of a stream after which its text is all there, and nothing says so yet."""

DONE: Final = b"data: [DONE]\n\n"
ENDED: Final[dict[str, bytes]] = {
    "/v1/chat/completions": plain([chat_event("", "stop")])[0] + DONE,
    "/v1/completions": plain([text_event("", "stop")])[0] + DONE,
    "/v1/responses": named(
        [
            {
                "type": "response.completed",
                "sequence_number": 4,
                "response": response("completed", SPOKEN),
            }
        ]
    )[0],
    "/v1/messages": b"".join(
        named(
            [
                {"type": "content_block_stop", "index": 0},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}} | USED,
                {"type": "message_stop"},
            ]
        )
    ),
}
