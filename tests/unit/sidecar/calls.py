"""Client libraries asking for a stream, by API; each call returns the text of a whole answer."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any, Final

import anthropic
import openai

ASKED: Final = [{"role": "user", "content": "How are you?"}]
Call = Callable[[int, int], Awaitable[str]]
"""Asks the port, trying again so many times, and returns the text of a whole answer."""


def of_openai(port: int, retries: int) -> openai.AsyncOpenAI:
    base = f"http://127.0.0.1:{port}/v1"
    return openai.AsyncOpenAI(base_url=base, api_key="k", max_retries=retries, timeout=10)


def of_anthropic(port: int, retries: int) -> anthropic.AsyncAnthropic:
    base = f"http://127.0.0.1:{port}"
    return anthropic.AsyncAnthropic(base_url=base, api_key="k", max_retries=retries, timeout=10)


async def joined(events: AsyncIterable[Any], text: Callable[[Any], str | None]) -> str:
    return "".join([text(event) or "" async for event in events])


async def chat(port: int, retries: int) -> str:
    async with of_openai(port, retries) as client:
        create: Any = client.chat.completions.create
        events = await create(model="m", messages=ASKED, stream=True)
        return await joined(events, lambda event: event.choices[0].delta.content)


async def chat_helper(port: int, retries: int) -> str:
    async with of_openai(port, retries) as client:
        stream: Any = client.chat.completions.stream
        async with stream(model="m", messages=ASKED) as events:
            return str((await events.get_final_completion()).choices[0].message.content)


async def completions(port: int, retries: int) -> str:
    async with of_openai(port, retries) as client:
        events = await client.completions.create(model="m", prompt="How", stream=True)
        return await joined(events, lambda event: event.choices[0].text)


async def responses(port: int, retries: int) -> str:
    async with of_openai(port, retries) as client:
        events = await client.responses.create(model="m", input="How", stream=True)
        return await joined(events, lambda event: getattr(event, "delta", ""))


async def responses_helper(port: int, retries: int) -> str:
    async with (
        of_openai(port, retries) as client,
        client.responses.stream(model="m", input="How") as events,
    ):
        return (await events.get_final_response()).output_text


async def messages(port: int, retries: int) -> str:
    async with of_anthropic(port, retries) as client:
        create: Any = client.messages.create
        events = await create(model="m", max_tokens=9, messages=ASKED, stream=True)
        return await joined(events, lambda each: getattr(getattr(each, "delta", None), "text", ""))


async def messages_helper(port: int, retries: int) -> str:
    async with of_anthropic(port, retries) as client:
        stream: Any = client.messages.stream
        async with stream(model="m", max_tokens=9, messages=ASKED) as events:
            return str((await events.get_final_message()).content[0].text)
