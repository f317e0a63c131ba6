"""The mock engine speaks vLLM's dialect and tells the truth about what it runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientPayloadError
from aiohttp.test_utils import TestClient, TestServer

from weir_core.units import Seconds
from weir_sim.mock_engine import ENGINE, MockEngine, Profile, build_app

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]

Client = TestClient[Any, Any]
Connect = Callable[[Profile], Awaitable[tuple[Client, MockEngine]]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients: list[Client] = []

    async def start(profile: Profile) -> tuple[Client, MockEngine]:
        app = build_app(profile)
        client: Client = TestClient(TestServer(app))
        clients.append(client)
        await client.start_server()
        return client, app[ENGINE]

    yield start
    for client in clients:
        await client.close()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (the state lives in the server, not in an event)
            await asyncio.sleep(0.005)


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_chat_stream_has_vllms_shape(connect: Connect) -> None:
    client, _ = await connect(Profile(output_tokens=3))
    body = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    response = await client.post(CHAT, json=body)
    assert response.content_type == "text/event-stream"
    *chunks, usage = events(await response.text())
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": ""}, *[{"content": " token"}] * 3]
    assert reasons == [None, None, None, "length"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3


async def test_a_completion_stream_has_text_and_no_role(connect: Connect) -> None:
    client, _ = await connect(Profile())
    body = {"prompt": "hello", "stream": True, "max_tokens": 2}
    chunks = events(await (await client.post(COMPLETION, json=body)).text())
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [" token", " token"]
    assert all(chunk["object"] == "text_completion" for chunk in chunks)


@pytest.mark.parametrize(
    ("fields", "want_tokens", "want_reason"),
    [
        pytest.param({}, 16, "length", id="the profile's length by default"),
        pytest.param({"max_tokens": 4}, 4, "length", id="max_tokens bounds the answer"),
        pytest.param({"max_completion_tokens": 5}, 5, "length", id="so does its newer name"),
        pytest.param({"max_tokens": 40}, 20, "stop", id="an answer ends by itself"),
        pytest.param({"max_tokens": 40, "ignore_eos": True}, 40, "length", id="unless forbidden"),
    ],
)
async def test_answers_with_the_right_length(
    connect: Connect, fields: dict[str, Any], want_tokens: int, want_reason: str
) -> None:
    client, engine = await connect(Profile(natural_tokens=20))
    answer = await (await client.post(CHAT, json={"messages": MESSAGES, **fields})).json()
    assert answer["usage"]["completion_tokens"] == want_tokens
    assert answer["choices"][0]["finish_reason"] == want_reason
    assert answer["choices"][0]["message"]["content"] == " token" * want_tokens
    assert engine.finished == 1


@pytest.mark.parametrize(
    ("body", "want_status", "want_param"),
    [
        pytest.param(b"{", 400, None, id="broken JSON"),
        pytest.param(b"{}", 400, "messages", id="no messages"),
        pytest.param(b'{"model": "other", "messages": []}', 404, "model", id="unknown model"),
    ],
)
async def test_refuses_in_openais_shape(
    connect: Connect, body: bytes, want_status: int, want_param: str | None
) -> None:
    client, _ = await connect(Profile())
    response = await client.post(CHAT, data=body)
    assert response.status == want_status
    error = (await response.json())["error"]
    assert error["code"] == want_status
    assert error["param"] == want_param


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "plain"])
async def test_the_running_gauge_falls_when_the_client_leaves(
    connect: Connect, stream: bool
) -> None:
    client, engine = await connect(Profile(token_gap_s=Seconds(0.01), output_tokens=100_000))
    post = asyncio.ensure_future(client.post(CHAT, json={"messages": MESSAGES, "stream": stream}))
    await eventually(lambda: engine.running == 1)
    assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 1.0' in engine.metrics_text()
    if stream:
        (await post).close()
    else:
        post.cancel()
    await eventually(lambda: engine.running == 0)
    assert (engine.aborted, engine.finished) == (1, 0)


async def test_requests_beyond_the_batch_wait_and_may_leave(connect: Connect) -> None:
    client, engine = await connect(
        Profile(token_gap_s=Seconds(0.01), output_tokens=100_000, max_running=1)
    )
    body = {"messages": MESSAGES}
    posts = [asyncio.ensure_future(client.post(CHAT, json=body)) for _ in range(2)]
    await eventually(lambda: (engine.running, engine.waiting) == (1, 1))
    for post in posts:
        post.cancel()
    await eventually(lambda: (engine.running, engine.waiting) == (0, 0))
    assert engine.aborted == 2


async def test_dies_in_the_middle_of_a_stream_when_told_to(connect: Connect) -> None:
    client, engine = await connect(Profile(cut_after_tokens=2))
    response = await client.post(CHAT, json={"messages": MESSAGES, "stream": True})
    with pytest.raises(ClientPayloadError):
        await response.read()
    assert (engine.finished, engine.aborted) == (0, 0)


async def test_stalls_when_told_to(connect: Connect) -> None:
    client, engine = await connect(Profile(stall_after_tokens=1))
    response = await client.post(CHAT, json={"messages": MESSAGES, "stream": True})
    await eventually(lambda: engine.sent_tokens == 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await response.read()
    assert engine.running == 1


async def test_fails_when_told_to(connect: Connect) -> None:
    client, engine = await connect(Profile(error_status=500))
    assert (await client.post(CHAT, json={"messages": MESSAGES})).status == 500
    assert (await client.get("/health")).status == 200
    engine.healthy = False
    assert (await client.get("/health")).status == 503


async def test_lists_its_model_and_serves_metrics(connect: Connect) -> None:
    client, _ = await connect(Profile(model="m", max_model_len=123))
    models = await (await client.get("/v1/models")).json()
    assert [(entry["id"], entry["max_model_len"]) for entry in models["data"]] == [("m", 123)]
    assert "vllm:num_requests_waiting" in await (await client.get("/metrics")).text()
