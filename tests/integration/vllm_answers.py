"""Prints pieces of answers made by vLLM's own classes, as a JSON object: name to piece.

A program of its own, because importing vLLM warns of things that are not ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from openai.types.responses import (
    ResponseContentPartAddedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseOutputText,
    ResponseReasoningTextDeltaEvent,
    ResponseTextDeltaEvent,
)
from vllm.entrypoints.anthropic.protocol import (
    AnthropicContentBlock,
    AnthropicDelta,
    AnthropicError,
    AnthropicMessagesResponse,
    AnthropicStreamEvent,
)
from vllm.entrypoints.anthropic.serving import (
    _build_anthropic_usage,
    _to_anthropic_stop_reason,
    wrap_data_with_event,
)
from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
)
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
)
from vllm.entrypoints.openai.completion.protocol import (
    CompletionResponseStreamChoice,
    CompletionStreamResponse,
)
from vllm.entrypoints.openai.responses.api_router import _convert_stream_to_sse_events
from vllm.entrypoints.openai.responses.protocol import (
    ResponseCompletedEvent,
    ResponseCreatedEvent,
    ResponseInProgressEvent,
    ResponsesRequest,
    ResponsesResponse,
)
from vllm.entrypoints.serve.engine.protocol import PromptTokenUsageInfo, UsageInfo
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.utils.sse_keep_alive import SSE_KEEP_ALIVE_COMMENT
from vllm.sampling_params import SamplingParams

HOSTILE = (
    'data: {"error": "delta":{"content":"x"} "finish_reason":"abort" event: error\n'
    'event: content_block_delta\n.delta\ndata: "choices":[{ "stop_reason":null\n'
    'event: response.failed\n"type":"message-end" "finish_reason":"ERROR" '
    '"usage":{"prompt_tokens":9,"completion_tokens":9}'
)
"""Model output that spells every pattern."""
CACHED = UsageInfo(
    prompt_tokens=300,
    completion_tokens=7,
    total_tokens=307,
    prompt_tokens_details=PromptTokenUsageInfo(cached_tokens=288),
)


def chat(delta: DeltaMessage | None, finish: str | None = None, **more: Any) -> str:
    choices = []
    if delta is not None:
        choices = [
            ChatCompletionResponseStreamChoice(
                index=0, delta=delta, logprobs=None, finish_reason=finish
            )
        ]
    chunk = ChatCompletionStreamResponse(id="c", created=1, choices=choices, model="m", **more)
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"


def completion(text: str, finish: str | None = None) -> str:
    choice = CompletionResponseStreamChoice(
        index=0, text=text, logprobs=None, finish_reason=finish, stop_reason=None
    )
    chunk = CompletionStreamResponse(id="c", created=1, choices=[choice], model="m")
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"


def message(kind: Any, **more: Any) -> str:
    event = AnthropicStreamEvent(type=kind, **more)
    return str(wrap_data_with_event(event.model_dump_json(exclude_unset=True), kind))


def message_start() -> str:
    return message(
        "message_start",
        message=AnthropicMessagesResponse(
            id="a", type="message", role="assistant", content=[], model="m",
            stop_reason=None, stop_sequence=None, usage=_build_anthropic_usage(CACHED),
        ),
    )  # fmt: skip


def message_end(finish: str) -> str:
    reason, sequence = _to_anthropic_stop_reason(finish, None, tool_used=False, tool_complete=False)
    delta = AnthropicDelta(stop_reason=reason, stop_sequence=sequence)
    return message("message_delta", delta=delta, usage=_build_anthropic_usage(CACHED))


def plain_message(finish: str) -> str:
    reason, sequence = _to_anthropic_stop_reason(finish, None, tool_used=False, tool_complete=False)
    answer = AnthropicMessagesResponse(
        id="a", content=[AnthropicContentBlock(type="text", text=HOSTILE)], model="m",
        stop_reason=reason, stop_sequence=sequence, usage=_build_anthropic_usage(CACHED),
    )  # fmt: skip
    return json.dumps(answer.model_dump(exclude_none=True), separators=(",", ":"))


def text_delta(text: str) -> str:
    return message(
        "content_block_delta", index=0, delta=AnthropicDelta(type="text_delta", text=text)
    )


def response(status: Any) -> ResponsesResponse:
    return ResponsesResponse.from_request(
        ResponsesRequest(input="a", model="m"),
        SamplingParams(),
        model_name="m",
        created_time=1,
        output=[],
        status=status,
        usage=None,
    )


async def responses(*events: Any) -> str:
    async def each() -> Any:
        for event in events:
            yield event

    pieces = [piece async for piece in _convert_stream_to_sse_events(each())]
    return "".join(pieces)


def text_of_a_response(text: str) -> ResponseTextDeltaEvent:
    return ResponseTextDeltaEvent(
        type="response.output_text.delta", sequence_number=3, content_index=0,
        output_index=0, item_id="i", delta=text, logprobs=[],
    )  # fmt: skip


async def pieces_of_responses() -> dict[str, str]:
    begun = response("in_progress").model_dump(mode="json", by_alias=True)
    head = [
        ResponseCreatedEvent(type="response.created", sequence_number=0, response=begun),
        ResponseInProgressEvent(type="response.in_progress", sequence_number=1, response=begun),
        ResponseContentPartAddedEvent(
            type="response.content_part.added", sequence_number=2, content_index=0,
            output_index=0, item_id="i",
            part=ResponseOutputText(type="output_text", text="", annotations=[]),
        ),
    ]  # fmt: skip
    reasoning = ResponseReasoningTextDeltaEvent(
        type="response.reasoning_text.delta", sequence_number=3, content_index=0,
        output_index=0, item_id="i", delta="a",
    )  # fmt: skip
    arguments = ResponseFunctionCallArgumentsDeltaEvent(
        type="response.function_call_arguments.delta", sequence_number=3, output_index=0,
        item_id="i", delta="{",
    )  # fmt: skip
    whole = response("completed")
    end = ResponseCompletedEvent(type="response.completed", sequence_number=4, response=whole)
    return {
        "head": await responses(*head),
        "text": await responses(text_of_a_response(HOSTILE)),
        "reasoning": await responses(reasoning),
        "arguments": await responses(arguments),
        "end": await responses(end),
        "plain": plain(whole),
        "plain, aborted": plain(response("cancelled")),
    }


def plain(whole: ResponsesResponse) -> str:
    return json.dumps(whole.model_dump(mode="json", by_alias=True), separators=(",", ":"))


def pieces_of_chat() -> dict[str, str]:
    call = DeltaToolCall(index=0, function=DeltaFunctionCall(name="f", arguments=""))
    head = chat(DeltaMessage(role="assistant", content=""))
    return {
        "head": head,
        "two heads": head + head + SSE_KEEP_ALIVE_COMMENT,
        "keep-alive": SSE_KEEP_ALIVE_COMMENT,
        "text": chat(DeltaMessage(content=HOSTILE)),
        "head and text": head + chat(DeltaMessage(content="a")),
        "reasoning": chat(DeltaMessage(reasoning="a")),
        "tool": chat(DeltaMessage(tool_calls=[call])),
        "end": chat(DeltaMessage(), "stop"),
        "last text": chat(DeltaMessage(content=HOSTILE), "stop"),
        "aborted": chat(DeltaMessage(), "abort"),
        "usage": chat(None, usage=CACHED) + "data: [DONE]\n\n",
        "error": error_in_stream(),
    }


def error_in_stream() -> str:
    error = create_error_response("no", "InternalServerError")
    return f"data: {json.dumps(error.model_dump())}\n\n"


def pieces_of_messages() -> dict[str, str]:
    broken = AnthropicError(type="internal_error", message="no")
    return {
        "head": message_start(),
        "ping": message("ping"),
        "text": text_delta(HOSTILE),
        "end": message_end("stop"),
        "whole": message_start() + text_delta("a") + message_end("stop"),
        "aborted": message_end("abort"),
        "error": message("error", error=broken),
        "plain": plain_message("stop"),
        "plain, aborted": plain_message("abort"),
    }


def main() -> None:
    made = {
        "chat": pieces_of_chat(),
        "responses": asyncio.run(pieces_of_responses()),
        "messages": pieces_of_messages(),
        "completions": {
            "keep-alive": SSE_KEEP_ALIVE_COMMENT,
            "text": completion(HOSTILE),
            "end": completion("", "stop"),
            "aborted": completion("", "abort"),
            "error": error_in_stream(),
        },
    }
    flat = {f"{api}: {name}": piece for api, of in made.items() for name, piece in of.items()}
    sys.stdout.write("\n" + json.dumps(flat))


if __name__ == "__main__":
    main()
