"""The sidecar before real vLLM: what clients, the engine's gauge and a collector see."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import openai
import pytest

from tests.integration.conftest import metric_in
from tests.integration.sidecar.harness import PATIENT, House, Running, chat, eventually
from weir_core.wire.priority import engine_priority

LONG = {"max_tokens": 4000, "ignore_eos": True, "min_tokens": 4000}
SHORT = {
    "/v1/chat/completions": chat(max_tokens=2),
    "/v1/completions": {"model": "tiny", "prompt": "fox", "max_tokens": 2},
    "/v1/responses": {"model": "tiny", "input": "fox", "max_output_tokens": 2},
    "/v1/messages": chat(max_tokens=2),
}
"""A request of each API whose priority goes in a header."""


@pytest.fixture
async def running(engine_socket: Path) -> AsyncIterator[Running]:
    async with contextlib.AsyncExitStack() as stack:
        yield await House(engine_socket.parent, stack).sidecar()


@pytest.fixture
async def client(running: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=running.url + "/v1", api_key="none", max_retries=0
    ) as made:
        yield made


async def running_at_engine(running: Running) -> int:
    """Requests in vLLM's batch and queue, by its own gauges."""
    page = (await running.probe("/metrics")).body.decode()
    return int(metric_in(page, "vllm:num_requests_(?:running|waiting)"))


async def until_engine_runs(running: Running, count: int) -> None:
    async with asyncio.timeout(30):
        while await running_at_engine(running) != count:  # noqa: ASYNC110 - a gauge has no event
            await asyncio.sleep(0.05)


async def until_engine_told(running: Running) -> None:
    """Wait until all requests that ended are accounted."""
    await eventually(lambda: not running.sidecar.driver.ends)


async def test_the_official_client_chats(client: openai.AsyncOpenAI, running: Running) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=8
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert await running.ended(1) == {"ok": 1}
    page = (await running.probe("/metrics")).body.decode()
    assert f"weir_output_tokens_total {float(answer.usage.completion_tokens)}" in page


async def test_the_official_client_streams(client: openai.AsyncOpenAI, running: Running) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert await running.ended(1) == {"ok": 1}
    page = (await running.probe("/metrics")).body.decode()
    assert f"weir_output_tokens_total {float(chunks[-1].usage.completion_tokens)}" in page


async def test_errors_of_the_engine_reach_the_client_as_they_are(
    client: openai.AsyncOpenAI, running: Running
) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(
            model="no-such-model", messages=[{"role": "user", "content": "Hello"}]
        )
    with pytest.raises(openai.APIStatusError):
        await client.embeddings.create(model="tiny", input="x")
    answer = await running.post(data=b"{not json", headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert await running.ended(3) == {"client_error": 3}


@pytest.mark.parametrize("stream", [True, False], ids=["a stream", "a plain answer"])
async def test_vllm_stops_when_the_client_leaves(running: Running, stream: bool) -> None:
    task = asyncio.create_task(running.post(json=chat(stream=stream, **LONG)))
    await until_engine_runs(running, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until_engine_runs(running, 0)
    assert await running.ended(1) == {"client_gone": 1}


async def test_request_ids_reach_vllm(running: Running) -> None:
    answer = await running.post(json=chat(max_tokens=1), headers={"x-request-id": "mine-1"})
    assert b"mine-1" in answer.body


async def test_many_streams_at_once_all_end_well(running: Running) -> None:
    answers = await asyncio.gather(
        *(running.post(json=chat(stream=True, max_tokens=20)) for _ in range(64))
    )
    assert all(answer.body.endswith(b"data: [DONE]\n\n") for answer in answers)
    assert await running.ended(64) == {"ok": 64}


@contextlib.asynccontextmanager
async def full_engine(running: Running, engine_socket: Path, rank: int) -> AsyncIterator[None]:
    """Let more sequences of a rank than the engine has slots run and wait in it, unseen by us."""
    connector = aiohttp.UnixConnector(str(engine_socket))
    body = {"model": "tiny", "prompt": ["fox"] * 400, **LONG}
    headers = {"x-vllm-priority": str(engine_priority(rank))}
    async with aiohttp.ClientSession(connector=connector) as session:
        load = asyncio.ensure_future(
            session.post("http://engine/v1/completions", json=body, headers=headers)
        )
        await until_engine_runs(running, 400)
        yield
        assert not load.done()
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
    await until_engine_runs(running, 0)


async def test_the_class_decides_in_the_engine_on_the_path_of_each_api(
    running: Running, engine_socket: Path
) -> None:
    async def ask(path: str, **headers: str) -> int:
        return (await running.post(path, json=SHORT[path], headers=headers)).status

    # What has no priority at the engine would go after rank 50, and before it with a client's own.
    async with full_engine(running, engine_socket, rank=50):
        jump = {"x-weir-class": "batch", "X-Vllm-Priority": "-9000000000000000"}
        lower = [asyncio.ensure_future(ask(path, **jump)) for path in SHORT]
        await until_engine_runs(running, 400 + len(SHORT))
        higher = [ask(path, **{"x-weir-class": "interactive"}) for path in SHORT]
        async with asyncio.timeout(60):
            assert await asyncio.gather(*higher) == [200] * len(SHORT)
        assert not any(request.done() for request in lower)
    assert await asyncio.gather(*lower) == [200] * len(SHORT)


BLOCK_TOKENS = 128
"""Of vLLM's CPU build."""
INSTRUCTIONS = " ".join(f"Rule {number}: the fox obeys the pilot." for number in range(110))


async def test_what_is_believed_to_be_cached_of_a_conversation_is_what_vllm_finds(
    engine_socket: Path,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        house = House(engine_socket.parent, stack)
        running = await house.sidecar(replace(PATIENT, follow_prefixes=True))

        async def counted(name: str) -> float:
            page = (await running.probe("/metrics")).body.decode()
            return metric_in(page, f"weir_prefix_{name}_tokens_total")

        messages = [{"role": "system", "content": INSTRUCTIONS}]
        turns = []
        for number in range(3):
            messages.append({"role": "user", "content": f"Question {number}? " * 30})
            before = [await counted(name) for name in ("predicted", "cached", "prompt")]
            answer = await running.post(json=chat(max_tokens=150) | {"messages": messages})
            assert answer.status == 200
            messages.append(json.loads(answer.body)["choices"][0]["message"])
            after = [await counted(name) for name in ("predicted", "cached", "prompt")]
            turns.append([int(new - old) for new, old in zip(after, before, strict=True)])
        assert turns[0][:2] == [0, 0]
        for predicted, cached, prompt_tokens in turns[1:]:
            assert cached > prompt_tokens // 2
            assert abs(predicted - cached) <= BLOCK_TOKENS


async def test_the_engines_levers_stay_out_of_reach(running: Running) -> None:
    async def status(path: str) -> int:
        async with aiohttp.ClientSession() as session, session.post(running.url + path) as got:
            return got.status

    levers = ["/sleep", "/reset_prefix_cache", "/start_profile", "/v1/load_lora_adapter"]
    assert {await status(path) for path in levers} == {404}


async def test_usage_is_what_vllm_counted_also_of_requests_whose_clients_left(
    running: Running,
) -> None:
    async def counted(name: str) -> int:
        return int(metric_in((await running.probe("/metrics")).body.decode(), name))

    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    prompts, outputs = [await counted(name) for name in names]
    received = running.sidecar.registry.received_bytes
    words = {"stream": True, "ignore_eos": True, "temperature": 0}
    leaving = asyncio.create_task(
        running.post(json=chat(stream=True, **LONG), headers={"x-weir-class": "batch"})
    )
    await eventually(lambda: running.sidecar.registry.received_bytes > received)
    usage = {"stream_options": {"include_usage": True}}
    asked = [chat(max_tokens=n, ignore_eos=True) for n in (1, 9)]
    asked += [chat(max_tokens=n, **words, **usage) for n in (1, 9, 30)]
    asked += [chat(max_tokens=n, **words) for n in (20, 9)]
    await asyncio.gather(*(running.post(json=body) for body in asked))
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await until_engine_runs(running, 0)
    await running.ended(len(asked) + 1)
    await until_engine_told(running)
    page = (await running.probe("/metrics")).body.decode()
    prompt, output = (
        rf'weir_usage_tokens_total\{{class="{name}",kind="{kind}",.*\}}'
        for name, kind in ((r"\w+", "prompt"), ("standard", "output"))
    )
    assert metric_in(page, prompt) == await counted(names[0]) - prompts
    assert metric_in(page, output) == 1 + 9 + 1 + 9 + 30 + 20 + 9
    # vLLM does not count what its engine put out after its front end heard that a client left.
    assert metric_in(page, output.replace("standard", r"\w+")) >= await counted(names[1]) - outputs
    assert metric_in(page, "weir_usage_engine_seconds_total") > 0
