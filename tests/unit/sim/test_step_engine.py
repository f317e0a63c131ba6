"""The engine model behind vLLM's API: real time, real sockets, modelled steps."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from weir_core.api import labels
from weir_core.sched.types import EngineKind
from weir_core.wire.policies import EngineMode
from weir_core.wire.priority import engine_priority
from weir_core.wire.steps import Facts, decode_step
from weir_sim.profiles import PROFILES
from weir_sim.step_clock import StepClock
from weir_sim.step_engine import build_app
from weir_sim.weir_engine_model import WeirEngineModel

CHAT = "/v1/chat/completions"
FAST = replace(PROFILES["h100-8b"], base_s=1e-3, weights_s=0.0, token_s=1e-6, max_num_seqs=1)

Client = TestClient[Any, Any]
Connect = Callable[..., Awaitable[tuple[Client, StepClock]]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients: list[Client] = []

    async def start(
        kind: EngineKind, run_dir: Path | None = None, block_tokens: int = 0
    ) -> tuple[Client, StepClock]:
        clock = StepClock(FAST, kind, run_dir, prefix_caching=block_tokens > 0)
        client: Client = TestClient(TestServer(build_app(clock, "tiny", block_tokens)))
        clients.append(client)
        await client.start_server()
        return client, clock

    yield start
    for client in clients:
        await client.close()


def ask(text: str = "hello", **fields: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **fields}


async def test_the_length_in_the_prompt_is_what_comes_and_usage_says_so(connect: Connect) -> None:
    client, _ = await connect(EngineKind.FCFS)
    body = ask("[[7]]", max_tokens=500, stream=True, stream_options={"include_usage": True})
    async with client.post(CHAT, json=body) as response:
        text = await response.text()
    events = [json.loads(line[6:]) for line in text.split("\n\n")[:-2]]
    assert text.endswith("data: [DONE]\n\n")
    assert sum(bool(e["choices"] and e["choices"][0]["delta"].get("content")) for e in events) == 7
    assert events[-1]["usage"]["completion_tokens"] == 7
    assert events[-1]["usage"]["prompt_tokens"] == len("<user>[[7]]") // 4


async def test_the_lower_number_goes_first_with_vllms_priority(connect: Connect) -> None:
    client, clock = await connect(EngineKind.PRIORITY)
    ended: list[str] = []

    async def send(name: str, priority: int, tokens: int) -> None:
        async with client.post(CHAT, json=ask(max_tokens=tokens, priority=priority)) as response:
            await response.read()
        ended.append(name)

    first = asyncio.create_task(send("first", 5, 60))
    async with asyncio.timeout(5):
        while not clock.model.running:  # noqa: ASYNC110 (the state lives in the server)
            await asyncio.sleep(0.001)
        await asyncio.gather(first, send("later", 2, 30), send("urgent", 1, 30))
    assert ended.index("urgent") < ended.index("later")


async def test_a_client_that_leaves_frees_its_slot(connect: Connect) -> None:
    client, clock = await connect(EngineKind.FCFS)
    async with client.post(CHAT, json=ask(max_tokens=50_000, stream=True)) as response:
        await response.content.readany()
        response.close()
    async with asyncio.timeout(5), client.post(CHAT, json=ask(max_tokens=2)) as response:
        assert response.status == 200
        await response.read()
    assert clock.model.running == 0


async def test_tells_a_sidecar_what_it_is_and_what_each_step_did(
    connect: Connect, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as steps:
        steps.bind(str(tmp_path / labels.STEPS_SOCKET))
        steps.settimeout(5)
        client, _ = await connect(EngineKind.WEIR, tmp_path)
        facts = Facts.decode((tmp_path / labels.FACTS_FILE).read_bytes())
        body = ask(max_tokens=3, priority=engine_priority(100))
        async with client.post(CHAT, json=body, headers={"x-request-id": "r1"}) as response:
            await response.read()
        records = [decode_step(steps.recv(65536)) for _ in range(3)]
    assert (facts.kind, facts.max_num_seqs) == ("weir", 1)
    assert [record.seq for record in records] == [1, 2, 3]
    assert records[0].started == ("r1",)
    assert [record.decodes for record in records] == [0, 1, 1]


@pytest.mark.parametrize(
    ("kind", "block_tokens", "cached"),
    [
        pytest.param(EngineKind.WEIR, 16, [0, 256], id="Weir's scheduler"),
        pytest.param(EngineKind.PRIORITY, 16, [0, 256], id="vLLM's priority order"),
        pytest.param(EngineKind.PRIORITY, 0, [0, 0], id="without a prefix cache"),
    ],
)
async def test_whole_blocks_of_an_equal_beginning_are_cached_and_told(
    connect: Connect, tmp_path: Path, kind: EngineKind, block_tokens: int, cached: list[int]
) -> None:
    said = [{"role": "user", "content": "[[2]]" + "x" * (4 * 260)}]
    told: list[tuple[int, int]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as steps:
        steps.bind(str(tmp_path / labels.STEPS_SOCKET))
        steps.settimeout(5)
        client, clock = await connect(kind, tmp_path, block_tokens)
        for _ in range(2):
            async with client.post(CHAT, json={"messages": said, "max_tokens": 9}) as response:
                await response.read()
            while not (prompts := decode_step(steps.recv(65536)).prompts):
                pass
            told += prompts
            said += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": "[[3]]"}]
    assert Facts.decode((tmp_path / labels.FACTS_FILE).read_bytes()).prefix_caching is bool(
        block_tokens
    )
    assert [found for _, found in told] == cached
    assert clock.model.counts.looked_up_tokens == sum(tokens for tokens, _ in told)


async def test_what_is_not_json_is_a_400(connect: Connect) -> None:
    client, _ = await connect(EngineKind.FCFS)
    async with client.post(CHAT, data=b"{") as response:
        assert response.status == 400


async def test_a_mode_that_the_sidecar_sends_holds_from_the_next_step_on(
    connect: Connect, tmp_path: Path
) -> None:
    _, clock = await connect(EngineKind.WEIR, tmp_path)
    assert isinstance(clock.model, WeirEngineModel)
    message = EngineMode("custom", {"interactive": 0.6, "batch": 0.4})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sidecar:
        sidecar.sendto(b"no mode", str(tmp_path / labels.MODE_SOCKET))
        sidecar.sendto(msgspec.json.encode(message), str(tmp_path / labels.MODE_SOCKET))
    stream = clock.submit(100, 2, 0, "")
    async with asyncio.timeout(5):
        await stream.take()
    assert clock.model.mode == message.for_steps()
