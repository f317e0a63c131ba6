"""The engine of the benchmark: vLLM's wire shape for almost no CPU.

`weir_sim.mock_engine` is the mock to develop against; at thousands of chunks a second it would
be the bottleneck on a small machine, so this one speaks HTTP straight from an asyncio protocol.
Like vLLM it sends a stream's head at once and each event as one HTTP chunk. Streams take turns:
with n of them and a gap of g between tokens, one chunk leaves every g/n, spread evenly as vLLM's
API server, which serialises its chunks one after the other, spreads them.

    python -m bench.relay.engine --uds /tmp/engine.sock --port 9000
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, cast

import httptools
import msgspec
import uvloop

from bench.relay.wire import DONE, MODEL, Ask, role_event, stamp, token_event, whole_answer

_TICK_S: Final = 0.001
_MAX_CATCH_UP_S: Final = 0.02
"""Chunks that a late timer owes are sent at once, but never more than this much."""

_HEAD: Final = b"HTTP/1.1 200 OK\r\nserver: bench\r\ncontent-type: "
_STREAM_HEAD: Final = _HEAD + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_JSON_HEAD: Final = _HEAD + b"application/json\r\ncontent-length: %d\r\n\r\n"
_MISSING: Final = b"HTTP/1.1 404 Not Found\r\nserver: bench\r\ncontent-length: 0\r\n\r\n"

# What routers ask for before they send traffic, and what the sidecar polls.
_ANSWERS: Final[dict[bytes, bytes]] = {
    b"/health": b"",
    b"/metrics": b"vllm:num_requests_running 0.0\nvllm:num_requests_waiting 0.0\n",
    b"/v1/models": b'{"object":"list","data":[{"id":"tiny","object":"model","created":1,'
    b'"owned_by":"vllm","max_model_len":131072}]}',
    b"/get_server_info": b'{"model_path":"tiny","served_model_name":"tiny"}',
    b"/server_info": b'{"model_path":"tiny","served_model_name":"tiny"}',
    b"/get_model_info": b'{"model_path":"tiny","is_generation":true}',
    b"/model_info": b'{"model_path":"tiny","is_generation":true}',
}


@dataclass(slots=True)
class Stream:
    """One stream in the batch."""

    transport: asyncio.Transport
    arrived_ns: int
    left: int
    gap_s: float
    first: bool = True


class Batch:
    """Sends the streams' tokens in turn, at the rate their gaps add up to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: deque[Stream] = deque()
        self._owed = 0.0
        self._last_tick = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._role = _chunk(role_event())
        self._end = _chunk(DONE) + b"0\r\n\r\n"

    def add(self, stream: Stream) -> None:
        """Send the head now and the first token when it is this stream's turn."""
        stream.transport.write(_STREAM_HEAD)
        self._streams.append(stream)
        if self._timer is None:
            self._last_tick, self._owed = self._loop.time(), 0.0
            self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        elapsed = min(now - self._last_tick, _MAX_CATCH_UP_S)
        self._last_tick = now
        if self._streams:
            self._owed += elapsed * len(self._streams) / self._streams[0].gap_s
        while self._owed >= 1 and self._streams:
            self._owed -= 1
            self._send_next()
        self._timer = self._loop.call_later(_TICK_S, self._tick) if self._streams else None

    def _send_next(self) -> None:
        stream = self._streams.popleft()
        if stream.transport.is_closing():
            return
        stream.left -= 1
        now_ns = time.monotonic_ns()
        if stream.first:
            stream.first = False
            event = token_event(stamp(stream.arrived_ns, now_ns))
            # Two HTTP chunks, as vLLM sends them: the role, then the token.
            stream.transport.write(self._role + _chunk(event))
        elif stream.left:
            stream.transport.write(_chunk(token_event(stamp(now_ns))))
        else:
            stream.transport.write(_chunk(token_event(stamp(now_ns), "length")) + self._end)
        if stream.left:
            self._streams.append(stream)


class Connection(asyncio.Protocol):
    """One connection of a relay; requests on it come one after the other."""

    def __init__(self, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        self._batch = batch
        self._loop = loop
        self._decode = msgspec.json.Decoder(Ask).decode
        self._path = b""
        self._body: list[bytes] = []
        self._parser: Any = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start parsing."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which calls the `on_` methods."""
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """Note where the request goes."""
        self._path = url.partition(b"?")[0]
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        """Collect the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer."""
        if self._path.endswith(b"/chat/completions"):
            self._generate(time.monotonic_ns())
            return
        answer = _ANSWERS.get(self._path)
        self._transport.write(_MISSING if answer is None else _json(answer))

    def _generate(self, arrived_ns: int) -> None:
        ask = self._decode(b"".join(self._body))
        engine_time_s = ask.seed / 1e6
        if ask.stream:
            left = max(ask.tokens, 2)
            self._batch.add(Stream(self._transport, arrived_ns, left, engine_time_s))
        elif engine_time_s:
            self._loop.call_later(engine_time_s, self._answer, arrived_ns)
        else:
            self._answer(arrived_ns)

    def _answer(self, arrived_ns: int) -> None:
        if not self._transport.is_closing():
            stamped = stamp(arrived_ns, time.monotonic_ns())
            self._transport.write(_json(whole_answer(stamped)))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _json(body: bytes) -> bytes:
    return _JSON_HEAD % len(body) + body


async def serve(uds: str, port: int) -> None:
    """Listen on both doors until the process is stopped."""
    loop = asyncio.get_running_loop()
    batch = Batch(loop)

    def connection() -> Connection:
        return Connection(batch, loop)

    await loop.create_unix_server(connection, uds, backlog=1024)
    await loop.create_server(connection, "127.0.0.1", port, backlog=1024)
    gc.freeze()
    await asyncio.Event().wait()


def main() -> None:
    """Serve; `MODEL` is the only model."""
    parser = argparse.ArgumentParser(description=f"serves the model {MODEL!r}")
    parser.add_argument("--uds", required=True)
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    uvloop.run(serve(chosen.uds, chosen.port))


if __name__ == "__main__":
    main()
