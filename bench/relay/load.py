"""The load generator: keeps a fixed number of requests in flight and measures what comes back.

It is a process of its own, so that what it costs is not counted, and a bare asyncio protocol,
so that it costs little. It reads one `Order` per line from stdin and answers each with one
`Outcome` line; between orders it does nothing. Every answer is checked: status, completeness,
and for streams the number of events. An answer that fails the check is reported, never dropped.

Streams without a pace go as fast as they are read: the load generator tells the engine how many
events it has read, and as many may follow (`engine.AsRead`).
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from array import array
from collections import Counter
from functools import partial
from typing import Final, cast

import msgspec
import uvloop

from bench.relay.processes import cpu_seconds
from bench.relay.stats import percentile
from bench.relay.wire import API_KEY, EVENT, read_stamps, request_body

_RECONNECT_S: Final = 0.05
_CONNECT_TIMEOUT_S: Final = 5.0
_PARALLEL_CONNECTS: Final = 32
_RAMP_SHARE: Final = 0.75
"""Of the warm-up, in which connections are opened one after the other."""
_LAST_CHUNK: Final = b"0\r\n\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_EXTRA_EVENTS: Final = 2
"""A stream has an event that names the role and `[DONE]` besides its tokens."""


class Order(msgspec.Struct, frozen=True):
    """One measurement of one target.

    Attributes:
        credits: The engine's socket for the events that were read; None where it keeps a pace.
    """

    port: int
    pids: list[int]
    stream: bool
    body_bytes: int
    concurrency: int
    tokens: int
    engine_time_us: int
    warmup_s: float
    window_s: float
    credits: str | None


class Latency(msgspec.Struct, frozen=True):
    """Percentiles in seconds."""

    samples: int
    p50_s: float | None
    p99_s: float | None


class Outcome(msgspec.Struct, frozen=True):
    """What came of an order, counted in its window.

    Attributes:
        reads: Pieces in which the events came: fewer than events where a relay merged chunks.
    """

    wall_s: float
    cpu_s: float
    load_cpu_s: float
    requests: int
    events: int
    reads: int
    answer: Latency
    event: Latency
    failures: dict[str, int]


class Tally:
    """What all connections of one order count into, while its window is open."""

    def __init__(self) -> None:
        self.open = False
        self.requests = self.events = self.reads = 0
        self.answer_ns = array("q")
        self.event_ns = array("q")
        self.failures: Counter[str] = Counter()

    def reset(self) -> None:
        """Open the window; failures of the warm-up stay counted."""
        self.requests = self.events = self.reads = 0
        self.answer_ns = array("q")
        self.event_ns = array("q")
        self.open = True


class Credits:
    """Tells the engine what was read: once a turn of the event loop, in bytes that add up to it."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._events = 0

    def read(self, events: int) -> None:
        """Note events that were read."""
        if not self._events:
            self._loop.call_soon(self._tell)
        self._events += events

    def _tell(self) -> None:
        full, rest = divmod(self._events, 255)
        self._transport.write(b"\xff" * full + bytes([rest]))
        self._events = 0

    def close(self) -> None:
        """Tell nothing further."""
        self._transport.abort()


class Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(
        self, tally: Tally, credits: Credits | None, order: Order, first_tokens: int
    ) -> None:
        self._tally = tally
        self._credits = credits
        self._stream = order.stream
        self._first_request = _request(order, first_tokens)
        self._request = _request(order, order.tokens)
        self._tokens = order.tokens
        self._first_tokens = first_tokens
        self._expected = 0
        self._sent_ns = 0
        self._head = b""
        self._in_body = False
        self._left: int | None = None
        self._events = 0
        self._tail = b""
        self._first_seen = False
        self._transport: asyncio.Transport
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request, shorter than the rest so that streams end at different times."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own
        self._send(self._first_request, self._first_tokens)

    def _send(self, request: bytes, tokens: int) -> None:
        self._expected = tokens + _EXTRA_EVENTS
        self._head, self._in_body, self._left = b"", False, None
        self._events, self._tail, self._first_seen = 0, b"", False
        self._sent_ns = time.monotonic_ns()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Count, sample and look for the end."""
        now_ns = time.monotonic_ns()
        if not self._in_body:
            self._head += data
            end = self._head.find(_HEAD_END)
            if end < 0 or not self._begin(self._head[:end].lower()):
                return
            data = self._head[end + len(_HEAD_END) :]
        if self._left is not None:
            self._left -= len(data)
        self._sample(data, now_ns)
        joined = self._tail + data
        if self._stream:
            new = joined.count(EVENT) - self._tail.count(EVENT)
            self._events += new
            self._tally.events += new
            self._tally.reads += 1
            if self._credits is not None and new:
                self._credits.read(new)
        self._tail = joined[1 - len(EVENT) :]
        if self._left == 0 or (self._left is None and joined.endswith(_LAST_CHUNK)):
            self._finish()

    def _begin(self, head: bytes) -> bool:
        self._in_body = True
        status = head[9:12].decode(errors="replace")
        if status != "200":
            self._fail(f"status {status}")
            return False
        length = head.find(b"content-length:")
        if length >= 0:
            self._left = int(head[length + 15 :].split(b"\r\n")[0])
        return True

    def _sample(self, data: bytes, now_ns: int) -> None:
        stamps = read_stamps(data)
        if not stamps or not self._tally.open:
            return
        if not self._first_seen and len(stamps) == 2:
            self._first_seen = True
            arrived_ns, left_ns = stamps
            self._tally.answer_ns.append(arrived_ns - self._sent_ns + now_ns - left_ns)
        else:
            self._tally.event_ns.append(now_ns - stamps[-1])

    def _finish(self) -> None:
        if self._stream and self._events != self._expected:
            self._fail("incomplete stream")
            return
        self._tally.requests += 1
        self._send(self._request, self._tokens)

    def _fail(self, reason: str) -> None:
        self._tally.failures[reason] += 1
        self._sent_ns = 0
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell the owner; count it if an answer was under way."""
        if self._sent_ns and not self.closed.cancelled():
            self._tally.failures["connection closed"] += 1
        if not self.closed.done():
            self.closed.set_result(None)

    def stop(self) -> None:
        """End without counting it as a failure."""
        self._sent_ns = 0
        self._transport.abort()


async def keep_busy(
    order: Order,
    tally: Tally,
    credits: Credits | None,
    index: int,
    connecting: asyncio.Semaphore,
) -> None:
    """Hold one request in flight until cancelled, on a new connection when one fails."""
    loop = asyncio.get_running_loop()
    share = index / order.concurrency
    await asyncio.sleep(share * order.warmup_s * _RAMP_SHARE)
    # Streams begin with different lengths and plain requests at different times.
    first_tokens = max(2, round(order.tokens * share)) if order.stream else order.tokens
    while True:
        try:
            async with connecting, asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    partial(Connection, tally, credits, order, first_tokens),
                    "127.0.0.1",
                    order.port,
                )
        except OSError as error:
            tally.failures[type(error).__name__] += 1
        else:
            try:
                await connection.closed
            finally:
                connection.stop()
        first_tokens = order.tokens
        await asyncio.sleep(_RECONNECT_S)


async def carry_out(order: Order) -> Outcome:
    """Warm up, open the window, close it, end every connection."""
    tally = Tally()
    credits = await _credits(order.credits) if order.credits is not None else None
    connecting = asyncio.Semaphore(_PARALLEL_CONNECTS)
    tasks = [
        asyncio.create_task(keep_busy(order, tally, credits, index, connecting))
        for index in range(order.concurrency)
    ]
    try:
        await asyncio.sleep(order.warmup_s)
        tally.reset()
        begin = (time.monotonic(), cpu_seconds(order.pids), time.process_time())
        await asyncio.sleep(order.window_s)
        tally.open = False
        end = (time.monotonic(), cpu_seconds(order.pids), time.process_time())
        requests, events, reads = tally.requests, tally.events, tally.reads
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if credits is not None:
            credits.close()
    return Outcome(
        wall_s=end[0] - begin[0],
        cpu_s=end[1] - begin[1],
        load_cpu_s=end[2] - begin[2],
        requests=requests,
        events=events,
        reads=reads,
        answer=_latency(tally.answer_ns),
        event=_latency(tally.event_ns),
        failures=dict(tally.failures),
    )


async def _credits(path: str) -> Credits:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_unix_connection(asyncio.Protocol, path)
    return Credits(transport, loop)


def _latency(samples_ns: array[int]) -> Latency:
    if not samples_ns:
        return Latency(0, None, None)
    ordered = sorted(samples_ns)
    return Latency(len(ordered), percentile(ordered, 0.5) / 1e9, percentile(ordered, 0.99) / 1e9)


def _request(order: Order, tokens: int) -> bytes:
    body = request_body(
        size=order.body_bytes,
        stream=order.stream,
        tokens=tokens,
        engine_time_us=order.engine_time_us,
    )
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        b"authorization: Bearer %s\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
        % (API_KEY.encode(), len(body), body)
    )


async def main() -> None:
    """Carry out orders until stdin ends."""
    decoder = msgspec.json.Decoder(Order)
    gc.freeze()
    gc.disable()
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        outcome = await carry_out(decoder.decode(line))
        gc.collect()
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(main())
