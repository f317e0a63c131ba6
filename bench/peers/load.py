"""The load generator: sends each request at its instant, whatever became of the others.

It runs in a process of its own and answers one `Order` on stdin with one `Answers` on stdout.
What an answer is worth is decided afterwards (`report`); here every fact is kept: the status, the
instants of the first and the last token, how many tokens came, and whether the end was a real one.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Final

import aiohttp
import msgspec
import uvloop

from weir_sim.workload import BYTES_PER_TOKEN

_EVENT: Final = b"data: "
_DONE: Final = b"data: [DONE]"
_MOST_TOKENS: Final = 8192
_FILLER: Final = "the quick brown fox jumps over the lazy dog "
_EXTRA_EVENTS: Final = 2
"""A stream has an event that names the role and `[DONE]` besides its tokens."""
_PRIORITY: Final = {"interactive": 0, "standard": 1, "batch": 2}
_SMG_CLASS: Final = {"interactive": "interactive", "standard": "default", "batch": "bulk"}


class Ask(msgspec.Struct, frozen=True):
    """One request to send."""

    at_s: float
    class_name: str
    prompt_tokens: int
    output_tokens: int


class Order(msgspec.Struct, frozen=True):
    """One measurement of one target.

    Attributes:
        drain_s: After the last arrival; what is open then is closed.
    """

    port: int
    drain_s: float
    asks: list[Ask]


class Answer(msgspec.Struct, frozen=True):
    """What became of one request.

    Attributes:
        status: Of HTTP; 0 without one.
        first_s: From sending to the first token; None without one.
        last_s: From sending to the end.
        tokens: Events that carried one.
        complete: The stream ended with `[DONE]`.
        closed: The load generator gave up on it.
        retry_after: A refusal said when to come back.
        error: What broke, if something did.
    """

    class_name: str
    status: int = 0
    first_s: float | None = None
    last_s: float = 0.0
    tokens: int = 0
    complete: bool = False
    closed: bool = False
    retry_after: bool = False
    error: str = ""


class Answers(msgspec.Struct, frozen=True):
    """All answers of one order, in the order of the requests.

    Attributes:
        late_s: How far behind its plan the load generator was at worst.
    """

    answers: list[Answer]
    late_s: float


def body_of(ask: Ask) -> bytes:
    """Return the chat request; its answer's length is known to the engine alone."""
    size = BYTES_PER_TOKEN * ask.prompt_tokens
    text = f"[[{ask.output_tokens}]] " + _FILLER * (size // len(_FILLER) + 1)
    return chat_body(ask.class_name, [{"role": "user", "content": text[:size]}])


def chat_body(class_name: str, messages: list[dict[str, str]]) -> bytes:
    """Return a chat request that streams."""
    fields = {
        "model": "tiny",
        "messages": messages,
        "stream": True,
        "max_tokens": _MOST_TOKENS,
        # Stock vLLM's own field, for those who pass it on; Weir sets it itself.
        "priority": _PRIORITY[class_name],
    }
    return json.dumps(fields).encode()


class Exchange:
    """One request, as it goes.

    Args:
        class_name: Of the request.
        body: As `chat_body` makes it.
        explain: Weir's sidecar is asked to explain what it does.

    Attributes:
        explained: What it said; empty where it said nothing.
    """

    def __init__(self, class_name: str, body: bytes, *, explain: bool = False) -> None:
        self._class_name = class_name
        self._body = body
        self._explain = explain
        self.explained = ""
        self._sent_s = time.monotonic()
        self._status = 0
        self._retry_after = False
        self._events = 0
        self._first_s: float | None = None
        self._complete = False
        self._error = ""

    async def run(self, session: aiohttp.ClientSession, url: str) -> None:
        """Send it and read its answer; `answer` says what came."""
        headers = {
            "Content-Type": "application/json",
            "x-weir-class": self._class_name,
            "x-smg-priority": _SMG_CLASS[self._class_name],
        }
        if self._explain:
            headers["x-weir-explain"] = "1"
        try:
            async with session.post(url, data=self._body, headers=headers) as response:
                self._status = response.status
                self._retry_after = "Retry-After" in response.headers
                self.explained = response.headers.get("x-weir-explain", "")
                if response.status == 200:
                    await self._read(response)
        except (aiohttp.ClientError, OSError) as error:
            self._error = type(error).__name__

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        tail = b""
        async for data in response.content.iter_any():
            joined = tail + data
            self._events += joined.count(_EVENT) - tail.count(_EVENT)
            if self._first_s is None and self._events:
                self._first_s = time.monotonic() - self._sent_s
            self._complete = self._complete or _DONE in joined
            tail = joined[-len(_DONE) :]

    def answer(self, *, closed: bool) -> Answer:
        """Return what came of it; `closed` where the load generator gave up on it."""
        return Answer(
            class_name=self._class_name,
            status=self._status,
            first_s=self._first_s,
            last_s=time.monotonic() - self._sent_s,
            tokens=max(0, self._events - _EXTRA_EVENTS * self._complete),
            complete=self._complete,
            closed=closed,
            retry_after=self._retry_after,
            error=self._error,
        )


async def _one(session: aiohttp.ClientSession, url: str, ask: Ask) -> Answer:
    exchange = Exchange(ask.class_name, body_of(ask))
    try:
        await exchange.run(session, url)
    except asyncio.CancelledError:
        return exchange.answer(closed=True)
    return exchange.answer(closed=False)


async def measure(order: Order) -> Answers:
    """Send everything, wait for the drain, and return what came."""
    loop = asyncio.get_running_loop()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    url = f"http://127.0.0.1:{order.port}/v1/chat/completions"
    late_s = 0.0
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        start = loop.time()
        tasks: list[asyncio.Task[Answer]] = []
        for ask in order.asks:
            await asyncio.sleep(max(0.0, start + ask.at_s - loop.time()))
            late_s = max(late_s, loop.time() - start - ask.at_s)
            tasks.append(asyncio.create_task(_one(session, url, ask)))
        if tasks:
            _, open_tasks = await asyncio.wait(tasks, timeout=order.drain_s)
            for task in open_tasks:
                task.cancel()
        return Answers([await task for task in tasks], late_s)


def main() -> None:
    """Serve orders until stdin closes."""
    for line in sys.stdin.buffer:
        answers = uvloop.run(measure(msgspec.json.decode(line, type=Order)))
        sys.stdout.buffer.write(msgspec.json.encode(answers) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
