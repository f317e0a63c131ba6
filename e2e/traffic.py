"""Clients that never stop: chats against the service while a scenario happens to it.

Streams and plain answers, on kept-alive and on fresh connections. Every request must be answered
whole: a refusal, a broken stream or an answer without its last word is a failure.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp

PAUSE_S = 0.05
REQUEST_WITHIN_S = 60.0
MAX_TOKENS = 48


@dataclass
class Traffic:
    """What the clients have seen so far; read it from any thread."""

    url: str
    model: str
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)

    async def run(self) -> None:
        """Be all clients until told to stop."""
        async with asyncio.TaskGroup() as clients:
            for stream in (True, False):
                for keep_alive in (True, False):
                    clients.create_task(self._client(stream=stream, keep_alive=keep_alive))

    async def _client(self, *, stream: bool, keep_alive: bool) -> None:
        connector = aiohttp.TCPConnector(force_close=not keep_alive)
        timeout = aiohttp.ClientTimeout(total=REQUEST_WITHIN_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while not self._stop.is_set():
                try:
                    wrong = await self._chat(session, stream=stream)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    wrong = f"{type(error).__name__}: {error}"
                if wrong is None:
                    self.answered += 1
                else:
                    at = time.monotonic() - self._started
                    kind = f"stream={stream} keep_alive={keep_alive}"
                    self.failures.append(f"at {at:.1f} s, {kind}: {wrong}")
                await asyncio.sleep(PAUSE_S)

    async def _chat(self, session: aiohttp.ClientSession, *, stream: bool) -> str | None:
        """Do one chat and return what was wrong with its answer."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Count."}],
            "max_tokens": MAX_TOKENS,
            "ignore_eos": True,
            "stream": stream,
        }
        async with session.post(f"{self.url}/v1/chat/completions", json=body) as response:
            text = (await response.read()).decode(errors="replace")
            if response.status != 200:
                return f"status {response.status}: {text[:300]}"
        if stream:
            return None if text.endswith("data: [DONE]\n\n") else f"cut stream: ...{text[-200:]!r}"
        tokens = json.loads(text)["usage"]["completion_tokens"]
        return None if tokens == MAX_TOKENS else f"{tokens} of {MAX_TOKENS} tokens"


@contextmanager
def chatting(url: str, model: str) -> Iterator[Traffic]:
    """Keep clients busy for the length of the context."""
    traffic = Traffic(url, model)
    thread = threading.Thread(target=lambda: asyncio.run(traffic.run()), name="traffic")
    thread.start()
    try:
        yield traffic
    finally:
        traffic._stop.set()
        thread.join(timeout=REQUEST_WITHIN_S + 10)
