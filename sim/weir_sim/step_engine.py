"""vLLM's HTTP API before the engine model in real time: what a benchmark of admission needs.

Answers come with the timing of a modelled GPU: batches form step by step, prompts wait for each
other, priorities order the queue. Nothing is generated but the word "token".

How long an answer becomes is part of the prompt, `[[137]]` anywhere in the body, because a real
model knows it no earlier either: nothing in front of this engine reads it there. Without it
`max_tokens` counts; of several in a conversation, the last. A prompt has one token for each four
bytes of its text.

With `--prefix-caching` the KV blocks of prompts are kept for those that begin alike, by their
text. What was generated is not kept: as a part of the next prompt it is computed again.

    python -m weir_sim.step_engine --profile h100-8b --kind priority --port 9000
    python -m weir_sim.step_engine --profile h100-8b --kind weir --run-dir /tmp/pod
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import uvloop
from aiohttp import web

from weir_core.api import labels
from weir_core.sched.types import EngineKind
from weir_sim.mock_wire import (
    DONE,
    Endpoint,
    models_answer,
    stream_pieces,
    usage_event,
    whole_answer,
)
from weir_sim.profiles import PROFILES, slowed
from weir_sim.run import LATENCY_MODE_BUDGET
from weir_sim.step_clock import StepClock, Stream
from weir_sim.workload import BYTES_PER_TOKEN

_LENGTH: Final = re.compile(r"\[\[(\d{1,6})\]\]")
_MAX_BODY_BYTES: Final = 64 << 20
_MAX_MODEL_LEN: Final = 131_072
_SSE_HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8"}
_CLOCK: Final = web.AppKey("_CLOCK", StepClock)
_MODEL: Final = web.AppKey("_MODEL", str)
_BLOCK_TOKENS: Final = web.AppKey("_BLOCK_TOKENS", int)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for.

    Attributes:
        text: Of the prompt, as it is rendered.
    """

    endpoint: Endpoint
    text: bytes
    output_tokens: int
    priority: int
    stream: bool
    include_usage: bool

    @property
    def prompt_tokens(self) -> int:
        """Return the length of the prompt."""
        return max(1, len(self.text) // BYTES_PER_TOKEN)

    def blocks(self, block_tokens: int) -> list[int]:
        """Return what stands for each whole block of the prompt: equal for equal beginnings.

        The last token is in none of them, because an engine always computes it.
        """
        size = block_tokens * BYTES_PER_TOKEN
        known, found = 0, []
        for start in range(0, (self.prompt_tokens - 1) // block_tokens * size, size):
            known = hash((known, self.text[start : start + size]))
            found.append(known)
        return found


def parse(endpoint: Endpoint, body: bytes) -> Wanted:
    """Read a body.

    Raises:
        ValueError: It is not a JSON object.
    """
    fields = json.loads(body)
    if not isinstance(fields, dict):
        raise ValueError("the body is not an object")
    limit = fields.get("max_completion_tokens") or fields.get("max_tokens") or 16
    text = _rendered(fields)
    lengths = _LENGTH.findall(text)
    return Wanted(
        endpoint=endpoint,
        text=text.encode(),
        output_tokens=min(int(limit), int(lengths[-1])) if lengths else int(limit),
        priority=int(fields.get("priority") or 0),
        stream=bool(fields.get("stream")),
        include_usage=bool((fields.get("stream_options") or {}).get("include_usage")),
    )


def _rendered(fields: dict[str, Any]) -> str:
    """Return the text of a prompt; of a conversation, message by message."""
    messages = fields.get("messages")
    if messages is None:
        return str(fields.get("prompt") or "")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise ValueError("messages are not a list of objects")
    return "".join(f"<{one.get('role')}>{one.get('content')}" for one in messages)


def build_app(clock: StepClock, model: str, block_tokens: int = 0) -> web.Application:
    """Return the API server before `clock`, which runs while the server does.

    Args:
        clock: The engine.
        model: Its name.
        block_tokens: Of the blocks that prompts share; 0 has them share none.
    """
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app[_CLOCK] = clock
    app[_MODEL] = model
    app[_BLOCK_TOKENS] = block_tokens
    app.cleanup_ctx.append(_stepping)
    app.router.add_get("/health", _health)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/metrics", _metrics)
    app.router.add_post("/tokenize", _tokenize)
    app.router.add_post("/v1/chat/completions", _chat)
    app.router.add_post("/v1/completions", _completion)
    return app


async def _stepping(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(app[_CLOCK].run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _health(_: web.Request) -> web.Response:
    return web.Response()


async def _models(request: web.Request) -> web.Response:
    return _json(models_answer((request.app[_MODEL],), _MAX_MODEL_LEN))


async def _metrics(request: web.Request) -> web.Response:
    clock = request.app[_CLOCK]
    labelled = f'{{engine="0",model_name="{request.app[_MODEL]}"}}'
    lines = [
        f"vllm:num_requests_running{labelled} {clock.model.running}",
        f"vllm:num_requests_waiting{labelled} {clock.model.waiting}",
        f"vllm:generation_tokens_total{labelled} {clock.model.counts.computed_tokens}",
        f"vllm:kv_cache_usage_perc{labelled} {clock.model.kv.usage_ratio()}",
        f"vllm:prefix_cache_queries_total{labelled} {clock.model.counts.looked_up_tokens}",
        f"vllm:prefix_cache_hits_total{labelled} {clock.model.counts.cached_tokens}",
        f"mock:busy_seconds_total{labelled} {clock.model.counts.busy_s}",
        f"mock:behind_seconds{labelled} {clock.behind_s}",
    ]
    return web.Response(text="\n".join(lines) + "\n")


async def _tokenize(request: web.Request) -> web.Response:
    try:
        count = parse("completion", await request.read()).prompt_tokens
    except ValueError as error:
        return _bad_request(error)
    return _json(json.dumps({"count": count, "max_model_len": _MAX_MODEL_LEN}).encode())


async def _chat(request: web.Request) -> web.StreamResponse:
    return await _generate(request, "chat")


async def _completion(request: web.Request) -> web.StreamResponse:
    return await _generate(request, "completion")


async def _generate(request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
    try:
        wanted = parse(endpoint, await request.read())
    except ValueError as error:
        return _bad_request(error)
    clock = request.app[_CLOCK]
    block_tokens = request.app[_BLOCK_TOKENS]
    stream = clock.submit(
        wanted.prompt_tokens,
        wanted.output_tokens,
        int(request.headers.get("x-vllm-priority", wanted.priority)),  # the body's is overridden
        request.headers.get("x-request-id", ""),
        wanted.blocks(block_tokens) if block_tokens else (),
    )
    try:
        if wanted.stream:
            return await _stream(request, wanted, stream)
        while not stream.done:
            await stream.take()
        return _json(
            whole_answer(
                endpoint, request.app[_MODEL], wanted.output_tokens, "stop", wanted.prompt_tokens
            )
        )
    finally:
        clock.cancel(stream)


async def _stream(request: web.Request, wanted: Wanted, stream: Stream) -> web.StreamResponse:
    model = request.app[_MODEL]
    pieces = stream_pieces(wanted.endpoint, model)
    response = web.StreamResponse(headers=_SSE_HEADERS)
    await response.prepare(request)  # vLLM, too, sends its head before the first token
    head = pieces.head
    while not stream.done:
        tokens = await stream.take()
        last = pieces.last_by_stop if stream.done else b""
        await response.write(head + pieces.token * (tokens - bool(last)) + last)
        head = b""
    if wanted.include_usage:
        await response.write(
            usage_event(wanted.endpoint, model, wanted.output_tokens, wanted.prompt_tokens)
        )
    await response.write(DONE)
    await response.write_eof()
    return response


def _bad_request(error: ValueError) -> web.Response:
    return web.json_response({"error": {"message": str(error), "code": 400}}, status=400)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


async def _serve(chosen: argparse.Namespace) -> None:
    kind = EngineKind(chosen.kind)
    profile = slowed(PROFILES[chosen.profile], chosen.speed)
    if kind is EngineKind.WEIR:
        profile = replace(profile, max_num_batched_tokens=LATENCY_MODE_BUDGET)
    run_dir: Path | None = chosen.run_dir
    clock = StepClock(profile, kind, run_dir, prefix_caching=chosen.prefix_caching)
    block_tokens = profile.block_tokens if chosen.prefix_caching else 0
    app = build_app(clock, chosen.model, block_tokens)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        if run_dir is not None:
            await web.UnixSite(runner, str(run_dir / labels.ENGINE_SOCKET)).start()
        else:
            await web.TCPSite(runner, "127.0.0.1", chosen.port).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m weir_sim.step_engine")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--run-dir", type=Path, help="a pod's run directory: socket, facts, steps")
    where.add_argument("--port", type=int, help="TCP port on 127.0.0.1")
    parser.add_argument("--profile", default="h100-8b", choices=PROFILES)
    parser.add_argument("--kind", default="priority", choices=[kind.value for kind in EngineKind])
    parser.add_argument("--speed", type=float, default=1.0, help="relative to the profile")
    parser.add_argument("--prefix-caching", action="store_true")
    parser.add_argument("--model", default="tiny")
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
