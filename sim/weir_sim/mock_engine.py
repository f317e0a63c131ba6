"""vLLM's HTTP API with a trivially timed engine behind it: a mock, not a model.

It exists for load shapes and failures that the real engine cannot be made to show on demand:
a thousand streams on a laptop, an engine that dies in the middle of a token, one that stops
making progress, one that answers 500. Whatever claims that Weir works with vLLM is tested with
vLLM; this only says what the sidecar does when the engine behaves like *that*.

A request waits for one of `Profile.max_running` slots (counted as waiting), then for the time to
first token, then sends a token every `Profile.token_gap_s`. When its client goes away it stops
within `_POLL_S` and counts as aborted, and the gauges of `/metrics` fall with it, as vLLM's do.

    python -m weir_sim.mock_engine --uds /tmp/engine.sock --ttft-ms 50 --token-gap-ms 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import uvloop
from aiohttp import web

from weir_core.api.labels import ALIASES_PATH
from weir_core.units import Seconds
from weir_core.wire.adapters import Aliases, LoadAdapter, UnloadAdapter
from weir_sim.mock_wire import (
    DONE,
    Endpoint,
    error_answer,
    models_answer,
    stream_pieces,
    usage_event,
    whole_answer,
)

_POLL_S: Final = 0.01
"""How often a request that has nothing to send looks whether its client is still there."""

_MAX_BODY_BYTES: Final = 64 << 20
_AT_ONCE: Final = Seconds(0.0)
_SSE_HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8"}


@dataclass(frozen=True, slots=True)
class Profile:
    """How the mock behaves.

    Attributes:
        model: Served model name; requests for another get a 404.
        ttft_s: From a slot to the first token, in seconds.
        token_gap_s: Between tokens, in seconds; 0 sends them as fast as the client reads.
        output_tokens: Answer length when the request sets no max_tokens.
        natural_tokens: Length at which an answer ends by itself (`finish_reason` stop),
            whatever max_tokens allows; None ends by length only.
        max_running: Slots of the batch; further requests wait.
        max_model_len: As `/v1/models` reports it.
        error_status: Answer every generation with this status instead; None does not.
        cut_after_tokens: Close the connection after so many tokens, as a crash does.
        stall_after_tokens: Send so many tokens and then nothing more, ever.
    """

    model: str = "tiny"
    ttft_s: Seconds = _AT_ONCE
    token_gap_s: Seconds = _AT_ONCE
    output_tokens: int = 16
    natural_tokens: int | None = None
    max_running: int = 1024
    max_model_len: int = 8192
    error_status: int | None = None
    cut_after_tokens: int | None = None
    stall_after_tokens: int | None = None


class ClientLeft(Exception):
    """The client closed its connection before the answer was complete."""


class EngineDied(Exception):
    """The profile wanted the connection cut here."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What one request asked for."""

    endpoint: Endpoint
    stream: bool
    output_tokens: int
    finish_reason: str
    include_usage: bool


class MockEngine:
    """The engine's state; tests read its counters and switch its health.

    Attributes:
        profile: Replace it to change the behaviour of requests that arrive from now on.
        healthy: What `/health` answers: 200 or 503.
        running: Requests that hold a slot.
        waiting: Requests that want one.
        finished: Requests answered to the end.
        aborted: Requests whose client left before the end.
        seen_headers: Headers of the latest generation request.
        aliases: Further names of the model.
        adapters: The directories of its adapters, by name.
        broken: Adapters that cannot be loaded.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.healthy = True
        self.running = 0
        self.waiting = 0
        self.finished = 0
        self.aborted = 0
        self.sent_tokens = 0
        self.seen_headers: dict[str, str] = {}
        self.aliases: tuple[str, ...] = ()
        self.adapters: dict[str, str] = {}
        self.broken: set[str] = set()
        self._slots = asyncio.Semaphore(profile.max_running)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that it serves."""
        return (self.profile.model, *self.aliases, *self.adapters)

    @asynccontextmanager
    async def slot(self, request: web.Request) -> AsyncIterator[None]:
        """Hold a place in the batch, counting what becomes of the request."""
        try:
            await self._acquire(request)
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1
                self._slots.release()
        except (ClientLeft, ConnectionResetError, asyncio.CancelledError):
            self.aborted += 1
            raise
        self.finished += 1

    async def _acquire(self, request: web.Request) -> None:
        self.waiting += 1
        try:
            while self._slots.locked():
                await sleep_while_connected(request, Seconds(_POLL_S))
            await self._slots.acquire()
        finally:
            self.waiting -= 1

    def metrics_text(self) -> str:
        """Return the exposition of the few metrics of vLLM's that anyone here reads."""
        labels = f'{{engine="0",model_name="{self.profile.model}"}}'
        return "".join(
            f"# HELP {name} {text}\n# TYPE {name} {kind}\n{sample}{labels} {float(value)}\n"
            for name, kind, sample, text, value in self._samples()
        )

    def _samples(self) -> list[tuple[str, str, str, str, int]]:
        running, waiting = "vllm:num_requests_running", "vllm:num_requests_waiting"
        tokens, aborted = "vllm:generation_tokens", "mock:aborted_requests"
        return [
            (
                running,
                "gauge",
                running,
                "Number of requests in model execution batches.",
                self.running,
            ),
            (
                waiting,
                "gauge",
                waiting,
                "Number of requests waiting to be processed.",
                self.waiting,
            ),
            (tokens, "counter", f"{tokens}_total", "Number of tokens generated.", self.sent_tokens),
            (aborted, "counter", f"{aborted}_total", "Requests whose client left.", self.aborted),
        ]


ENGINE: Final = web.AppKey("ENGINE", MockEngine)


def build_app(profile: Profile) -> web.Application:
    """Return the API server; `app[ENGINE]` is the engine behind it."""
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app[ENGINE] = MockEngine(profile)
    app.router.add_get("/health", _health)
    app.router.add_get("/v1/models", _models)
    app.router.add_put(ALIASES_PATH, _put_aliases)
    app.router.add_post("/v1/load_lora_adapter", _load_adapter)
    app.router.add_post("/v1/unload_lora_adapter", _unload_adapter)
    app.router.add_get("/metrics", _metrics)
    app.router.add_post("/v1/chat/completions", _generate("chat"))
    app.router.add_post("/v1/completions", _generate("completion"))
    return app


async def sleep_while_connected(request: web.Request, duration: Seconds) -> None:
    """Wait for `duration`, but raise as soon as nobody would read the answer.

    aiohttp tells a handler that its client left only when it writes, or when the whole server
    opted into handler cancellation; looking at the transport works under any runner.

    Raises:
        ClientLeft: The connection is closed or closing.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + duration
    while True:
        if request.transport is None or request.transport.is_closing():
            raise ClientLeft
        left = until - loop.time()
        if left <= 0:
            return
        await asyncio.sleep(min(left, _POLL_S))


async def _health(request: web.Request) -> web.Response:
    return web.Response(status=200 if request.app[ENGINE].healthy else 503)


async def _models(request: web.Request) -> web.Response:
    engine = request.app[ENGINE]
    names = (engine.profile.model, *engine.aliases)
    return _json(models_answer(names, engine.profile.max_model_len, engine.adapters))


async def _put_aliases(request: web.Request) -> web.Response:
    told = msgspec.json.decode(await request.read(), type=Aliases)
    request.app[ENGINE].aliases = told.aliases
    return web.Response(status=204)


async def _load_adapter(request: web.Request) -> web.Response:
    engine = request.app[ENGINE]
    told = msgspec.json.decode(await request.read(), type=LoadAdapter)
    name = told.lora_name
    if name in engine.adapters:
        message = f"The lora adapter '{name}' has already been loaded."
        return _error(400, message, "InvalidUserInput")
    if name in engine.broken:
        return _error(500, f"No adapter found for {told.lora_path}", "InternalServerError")
    engine.adapters[name] = told.lora_path
    return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")


async def _unload_adapter(request: web.Request) -> web.Response:
    engine = request.app[ENGINE]
    name = msgspec.json.decode(await request.read(), type=UnloadAdapter).lora_name
    if engine.adapters.pop(name, None) is None:
        message = f"The lora adapter '{name}' cannot be found."
        return _error(404, message, "NotFoundError")
    return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(text=request.app[ENGINE].metrics_text())


def _generate(endpoint: Endpoint) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.StreamResponse:
        engine = request.app[ENGINE]
        profile = engine.profile
        engine.seen_headers = dict(request.headers)
        if profile.error_status is not None:
            return _error(profile.error_status, "the mock was told to fail", "InternalServerError")
        wanted = parse(endpoint, await request.read(), profile, engine.names)
        if isinstance(wanted, web.Response):
            return wanted
        try:
            async with engine.slot(request):
                return await _answer(request, engine, wanted)
        except (ClientLeft, EngineDied):
            return web.Response(status=499)  # read by nobody

    return handle


def parse(
    endpoint: Endpoint, body: bytes, profile: Profile, names: Sequence[str]
) -> Generation | web.Response:
    """Return what the body asks of one of `names`, or the refusal vLLM would answer with."""
    try:
        fields = json.loads(body)
    except ValueError:
        return _error(400, "the body is not valid JSON", "BadRequestError")
    needed = "messages" if endpoint == "chat" else "prompt"
    if not isinstance(fields, dict) or needed not in fields:
        return _error(400, f"field required: {needed}", "BadRequestError", needed)
    model = fields.get("model") or profile.model
    if model not in names:
        return _error(404, f"The model `{model}` does not exist.", "NotFoundError", "model")
    return _generation(endpoint, fields, profile)


def _generation(endpoint: Endpoint, fields: dict[str, Any], profile: Profile) -> Generation:
    limit = fields.get("max_completion_tokens") or fields.get("max_tokens") or profile.output_tokens
    natural = profile.natural_tokens
    stops = natural is not None and natural < limit and not fields.get("ignore_eos")
    options = fields.get("stream_options") or {}
    return Generation(
        endpoint=endpoint,
        stream=bool(fields.get("stream")),
        output_tokens=natural if stops and natural is not None else int(limit),
        finish_reason="stop" if stops else "length",
        include_usage=bool(options.get("include_usage")),
    )


async def _answer(
    request: web.Request, engine: MockEngine, wanted: Generation
) -> web.StreamResponse:
    if wanted.stream:
        return await _stream(request, engine, wanted)
    profile = engine.profile
    await sleep_while_connected(request, profile.ttft_s)
    for token in range(wanted.output_tokens):
        await _misbehave(request, profile, token)
        if token and profile.token_gap_s:
            await sleep_while_connected(request, profile.token_gap_s)
    engine.sent_tokens += wanted.output_tokens
    body = whole_answer(wanted.endpoint, profile.model, wanted.output_tokens, wanted.finish_reason)
    return _json(body)


async def _stream(
    request: web.Request, engine: MockEngine, wanted: Generation
) -> web.StreamResponse:
    profile = engine.profile
    pieces = stream_pieces(wanted.endpoint, profile.model)
    response = web.StreamResponse(headers=_SSE_HEADERS)
    await response.prepare(request)  # vLLM, too, sends its head before the first token
    await sleep_while_connected(request, profile.ttft_s)
    if pieces.head:
        await response.write(pieces.head)
    last = pieces.last_by_stop if wanted.finish_reason == "stop" else pieces.last_by_length
    for token in range(wanted.output_tokens):
        await _misbehave(request, profile, token)
        if token:
            await sleep_while_connected(request, profile.token_gap_s)
        await response.write(last if token == wanted.output_tokens - 1 else pieces.token)
        engine.sent_tokens += 1
    if wanted.include_usage:
        await response.write(usage_event(wanted.endpoint, profile.model, wanted.output_tokens))
    await response.write(DONE)
    await response.write_eof()
    return response


async def _misbehave(request: web.Request, profile: Profile, token: int) -> None:
    """Crash or hang before this token, if the profile says so."""
    if token == profile.cut_after_tokens and request.transport is not None:
        request.transport.abort()
        raise EngineDied
    while token == profile.stall_after_tokens:
        await sleep_while_connected(request, Seconds(_POLL_S))


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _error(status: int, message: str, kind: str, param: str | None = None) -> web.Response:
    body = error_answer(status, message, kind, param)
    return web.Response(status=status, body=body, content_type="application/json")


async def _serve(app: web.Application, uds: str | None, port: int) -> None:
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.UnixSite(runner, uds) if uds else web.TCPSite(runner, "127.0.0.1", port)
    told_to_end = asyncio.Event()
    # A container's first process gets no signal that it does not handle.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_end.set)
    try:
        await site.start()
        await told_to_end.wait()
    finally:
        await runner.cleanup()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted or terminated."""
    parser = argparse.ArgumentParser(prog="python -m weir_sim.mock_engine", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--uds", help="Unix socket to listen on")
    where.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--ttft-ms", type=float, default=0.0)
    parser.add_argument("--token-gap-ms", type=float, default=0.0)
    parser.add_argument("--output-tokens", type=int, default=16)
    parser.add_argument("--max-running", type=int, default=1024)
    chosen = parser.parse_args(arguments)
    profile = Profile(
        model=chosen.model,
        ttft_s=Seconds(chosen.ttft_ms / 1000),
        token_gap_s=Seconds(chosen.token_gap_ms / 1000),
        output_tokens=chosen.output_tokens,
        max_running=chosen.max_running,
    )
    try:
        uvloop.run(_serve(build_app(profile), chosen.uds, chosen.port))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
