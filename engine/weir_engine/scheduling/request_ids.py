"""From the names vLLM gives its requests back to the `x-request-id` the sidecar sent.

vLLM puts the endpoint's kind before that header, numbers the prompts of one call behind it, adds
eight random hexadecimal digits, and for `n > 1` puts each answer's number in front of it all:
`2_cmpl-HEADER-0-1a2b3c4d`. The responses endpoint ignores the header; `carry_response_ids`
makes it name its requests after it too.
"""

from __future__ import annotations

import functools
import re
import sys
from contextvars import ContextVar
from typing import Any, Final

RESPONSES_MODULE: Final = "vllm.entrypoints.openai.responses.serving"

_NAME: Final = re.compile(
    r"(?:(?P<answer>\d+)_)?"  # which of n answers
    r"(?:chatcmpl-(?P<chat>.+)"
    r"|responses-(?P<response>.+)_\d+"  # which turn, where tools are called in between
    r"|embd-(?P<long>.+)-prompt-\d+-chunk-\d+"
    r"|(?:cmpl|embd|pooling|classify|score)-(?P<prompts>.+)-\d+)"  # which prompt of the call
    r"-[0-9a-f]{8}",
    re.DOTALL,
)

_response_id: ContextVar[str | None] = ContextVar("response_id", default=None)


@functools.lru_cache(maxsize=4096)
def sent_id(name: str) -> str:
    """Return the `x-request-id` in vLLM's name of a request, or the name if there is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    return next(text for text in match.group("chat", "response", "long", "prompts") if text)


def is_further_answer(name: str) -> bool:
    """Return whether vLLM's name is that of a second or later answer to one prompt."""
    match = _NAME.fullmatch(name)
    return match is not None and int(match["answer"] or 0) > 0


def carry_response_ids() -> None:
    """Have the responses endpoint, where it is loaded, name its requests after the header."""
    module = sys.modules.get(RESPONSES_MODULE)
    serving = getattr(module, "OpenAIServingResponses", None)
    if serving is None or hasattr(serving, "carries_response_ids"):
        return
    create, generate = serving.create_responses, serving._generate_with_builtin_tools

    @functools.wraps(create)
    async def create_responses(self: Any, request: Any, raw_request: Any = None) -> Any:
        sent = None if raw_request is None else raw_request.headers.get("x-request-id")
        token = _response_id.set(sent)
        try:
            return await create(self, request, raw_request)
        finally:
            _response_id.reset(token)

    @functools.wraps(generate)
    def generate_with_builtin_tools(self: Any, *args: Any, request_id: str, **rest: Any) -> Any:
        sent = _response_id.get()
        name = request_id if sent is None else f"responses-{sent}"
        return generate(self, *args, request_id=name, **rest)

    serving.create_responses = create_responses
    serving._generate_with_builtin_tools = generate_with_builtin_tools
    serving.carries_response_ids = True
