"""The engine of the benchmark: vLLM's wire shape for almost no CPU.

`weir_sim.mock_engine` is the mock to develop against; at thousands of chunks a second it would
be the bottleneck on a small machine, so this one speaks HTTP straight from an asyncio protocol.
Like vLLM it sends a stream's head at once and each event as one HTTP chunk.

Streams take turns, one chunk each. A paced stream names the gap between its tokens: with n of
them and a gap of g one chunk leaves every g/n, spread evenly as vLLM's API server, which
serialises its chunks one after the other, spreads them. Streams without a gap go as fast as they
are read: no more chunks are under way than there are streams, and the load generator tells over
a socket of its own what it has read. Without that bound a slow relay would find many chunks in
one read and look cheaper than it is.

Each sidecar has a folder that it shares with this engine as with vLLM: the engine's socket, the
facts, and the step log, written by the code of Weir's plug-in for vLLM.

    python -m bench.relay.engine --port 9000 --credits /tmp/credits.sock --run-dirs /tmp/pod
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import httptools
import msgspec
import uvloop

from bench.relay.wire import DONE, MODEL, Ask, role_event, stamp, token_event, whole_answer
from weir_core.api import labels
from weir_core.wire.steps import Facts, Step
from weir_engine.scheduling.telling import StepSender, write_facts

_TICK_S: Final = 0.001
_MAX_CATCH_UP_S: Final = 0.02
"""Chunks that a late timer owes are sent at once, but never more than this much."""
_LOST_AFTER_S: Final = 0.05
"""What is under way and not read for so long was cut with its stream."""
_STEP_S: Final = 0.01
"""The shortest step of which the log tells; a step is as long as the gap between tokens."""
_BYTES_PER_TOKEN: Final = 4

_FACTS: Final = Facts(
    kind="weir", max_num_seqs=4096, max_num_batched_tokens=8192, kv_capacity_tokens=1 << 30
)
"""Room for everything: what is measured is the way of a request through the scheduler, not the
wait in it."""

_HEAD: Final = b"HTTP/1.1 200 OK\r\nserver: bench\r\ncontent-type: "
_STREAM_HEAD: Final = _HEAD + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_JSON_HEAD: Final = _HEAD + b"application/json\r\ncontent-length: %d\r\n\r\n"
_MISSING: Final = b"HTTP/1.1 404 Not Found\r\nserver: bench\r\ncontent-length: 0\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _json(body: bytes) -> bytes:
    return _JSON_HEAD % len(body) + body


_ROLE: Final = _chunk(role_event())
_END: Final = _chunk(DONE) + b"0\r\n\r\n"

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


class StepLog:
    """Tells one sidecar of the engine's steps, a datagram for each.

    A prompt is computed in the step in which it came, and from then on its request is a decode.
    Requests that come from no sidecar have a log, too: nobody is bound to its socket, and the
    engine's work is the same for every relay.
    """

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._sender = StepSender(path)
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._duration_s = 0.0
        self._seq = 0
        self._started: list[str] = []
        self._prefill = 0
        self._running = 0
        self._context = 0

    def joined(self, request_id: str, prompt_tokens: int, gap_s: float) -> None:
        """Note a new request, whose tokens come `gap_s` apart."""
        self._started.append(request_id)
        self._prefill += prompt_tokens
        self._running += 1
        self._context += prompt_tokens
        if self._timer is None:
            self._duration_s = max(_STEP_S, gap_s)
            self._timer = self._loop.call_later(self._duration_s, self._step)

    def left(self, prompt_tokens: int) -> None:
        """Note that a request has ended."""
        self._running -= 1
        self._context -= prompt_tokens

    def close(self) -> None:
        """Tell nothing further."""
        if self._timer is not None:
            self._timer.cancel()
        self._sender.close()

    def _step(self) -> None:
        self._seq += 1
        self._sender.send(
            Step(
                seq=self._seq,
                duration_s=self._duration_s,
                prefill_tokens=self._prefill,
                decodes=max(0, self._running - len(self._started)),
                decode_context=self._context,
                running=self._running,
                kv_free_tokens=_FACTS.kv_capacity_tokens - self._context,
                started=tuple(self._started),
                mode="latency",
            )
        )
        self._started.clear()
        self._prefill = 0
        if self._running:
            self._timer = self._loop.call_later(self._duration_s, self._step)
        else:
            self._timer = None


@dataclass(slots=True)
class Stream:
    """One stream in the batch; it has two tokens or more.

    Attributes:
        left: Tokens still to send; 0 when it has ended.
    """

    transport: asyncio.Transport
    log: StepLog
    prompt_tokens: int
    arrived_ns: int
    left: int
    gap_s: float
    first: bool = True

    def send(self) -> int:
        """Send the next token; return how many events that were."""
        if self.transport.is_closing():
            self.left = 0
            self.log.left(self.prompt_tokens)
            return 0
        self.left -= 1
        now_ns = time.monotonic_ns()
        if self.first:
            self.first = False
            event = token_event(stamp(self.arrived_ns, now_ns))
            # Two HTTP chunks, as vLLM sends them: the role, then the token.
            self.transport.write(_ROLE + _chunk(event))
            return 2
        if self.left:
            self.transport.write(_chunk(token_event(stamp(now_ns))))
            return 1
        self.transport.write(_chunk(token_event(stamp(now_ns), "length")) + _END)
        self.log.left(self.prompt_tokens)
        return 2


class Paced:
    """Sends the streams' tokens in turn, at the rate their gaps add up to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: deque[Stream] = deque()
        self._owed = 0.0
        self._last_tick = loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Stream) -> None:
        """Send the first token when it is this stream's turn."""
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
            stream = self._streams.popleft()
            stream.send()
            if stream.left:
                self._streams.append(stream)
        self._timer = self._loop.call_later(_TICK_S, self._tick) if self._streams else None


class AsRead:
    """Sends the streams' tokens in turn, the next when one has been read."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: deque[Stream] = deque()
        self._under_way = 0
        self._quiet = False
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Stream) -> None:
        """Send the first token as soon as another stream's was read."""
        self._streams.append(stream)
        self._fill()
        if self._timer is None:
            self._timer = self._loop.call_later(_LOST_AFTER_S, self._watch)

    def read(self, events: int) -> None:
        """Hear that the load generator has read so many events."""
        self._quiet = False
        self._under_way = max(0, self._under_way - events)
        self._fill()

    def _fill(self) -> None:
        while self._streams and self._under_way < len(self._streams):
            stream = self._streams.popleft()
            self._under_way += stream.send()
            if stream.left:
                self._streams.append(stream)

    def _watch(self) -> None:
        if self._quiet:
            self._under_way = 0
            self._fill()
        self._quiet = True
        self._timer = self._loop.call_later(_LOST_AFTER_S, self._watch) if self._streams else None


class Credits(asyncio.Protocol):
    """The load generator's connection: each byte is a number of events read."""

    def __init__(self, batch: AsRead) -> None:
        self._batch = batch

    def data_received(self, data: bytes) -> None:
        """Let as many events follow."""
        self._batch.read(sum(data))


@dataclass(frozen=True, slots=True)
class Batches:
    """The running streams, by what decides when their next token leaves."""

    paced: Paced
    as_read: AsRead

    def add(self, stream: Stream) -> None:
        """Send the head now."""
        stream.transport.write(_STREAM_HEAD)
        if stream.gap_s:
            self.paced.add(stream)
        else:
            self.as_read.add(stream)


class Connection(asyncio.Protocol):
    """One connection of a relay; requests on it come one after the other."""

    def __init__(self, batches: Batches, log: StepLog, loop: asyncio.AbstractEventLoop) -> None:
        self._batches = batches
        self._log = log
        self._loop = loop
        self._decode = msgspec.json.Decoder(Ask).decode
        self._path = b""
        self._request_id = ""
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
        self._request_id = ""
        self._body.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note the name that the step log will give the request."""
        if len(name) == len(b"x-request-id") and name.lower() == b"x-request-id":
            self._request_id = value.decode("latin-1")

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
        body = b"".join(self._body)
        ask = self._decode(body)
        engine_time_s = ask.seed / 1e6
        prompt_tokens = len(body) // _BYTES_PER_TOKEN
        self._log.joined(self._request_id, prompt_tokens, engine_time_s if ask.stream else 0.0)
        if ask.stream:
            left = max(ask.tokens, 2)
            self._batches.add(
                Stream(self._transport, self._log, prompt_tokens, arrived_ns, left, engine_time_s)
            )
        elif engine_time_s:
            self._loop.call_later(engine_time_s, self._answer, arrived_ns, prompt_tokens)
        else:
            self._answer(arrived_ns, prompt_tokens)

    def _answer(self, arrived_ns: int, prompt_tokens: int) -> None:
        self._log.left(prompt_tokens)
        if not self._transport.is_closing():
            stamped = stamp(arrived_ns, time.monotonic_ns())
            self._transport.write(_json(whole_answer(stamped, prompt_tokens)))


async def serve(port: int, credits: Path, run_dirs: Sequence[Path]) -> None:
    """Listen everywhere until the process is stopped."""
    loop = asyncio.get_running_loop()
    batches = Batches(Paced(loop), AsRead(loop))
    await loop.create_unix_server(partial(Credits, batches.as_read), credits)
    no_log = StepLog(credits.with_name("no-sidecar"), loop)
    await loop.create_server(
        partial(Connection, batches, no_log, loop), "127.0.0.1", port, backlog=1024
    )
    for run_dir in run_dirs:
        write_facts(_FACTS, run_dir / labels.FACTS_FILE)
        log = StepLog(run_dir / labels.STEPS_SOCKET, loop)
        await loop.create_unix_server(
            partial(Connection, batches, log, loop),
            str(run_dir / labels.ENGINE_SOCKET),
            backlog=1024,
        )
    gc.freeze()
    await asyncio.Event().wait()


def main() -> None:
    """Serve; `MODEL` is the only model."""
    parser = argparse.ArgumentParser(description=f"serves the model {MODEL!r}")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--credits", type=Path, required=True)
    parser.add_argument("--run-dirs", type=Path, nargs="*", default=[])
    chosen = parser.parse_args()
    uvloop.run(serve(chosen.port, chosen.credits, chosen.run_dirs))


if __name__ == "__main__":
    main()
