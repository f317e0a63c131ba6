"""What a request holds, from its head to its outcome: memory, places among others, ids, life."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.sidecar.harness import (
    CHAT,
    CHUNK,
    HEAD,
    LAST,
    PATIENT,
    PLAIN,
    House,
    Running,
    Wire,
    chat,
    eventually,
    request_bytes,
)
from tests.unit.sidecar.fakes import http_request
from weir_core.sched.types import (
    Action,
    ClassPolicy,
    Dispatch,
    Requeue,
    RequeueReason,
    TenantPolicy,
)
from weir_core.wire.policies import PolicyDocument, TenantEntry
from weir_core.wire.steps import NOT_LOOKED_UP, Step
from weir_sidecar.inflight import InFlightRequest
from weir_sidecar.settings import Limits
from weir_sim.mock_engine import Profile


def entry(
    name: str, default: str = "standard", most: str = "interactive", **limits: int
) -> TenantEntry:
    digest = hashlib.sha256(f"sk-{name}".encode()).hexdigest()
    return TenantEntry(TenantPolicy(name, **limits), default, most, key_hashes=(digest,))


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer sk-{name}"}


async def plain(wire: Wire) -> None:
    await wire.send(PLAIN)


async def hang(wire: Wire) -> None:
    await wire.closed_by_peer()


async def begun_stream(wire: Wire) -> None:
    await wire.send(HEAD + CHUNK)
    await wire.closed_by_peer()


async def upload(running: Running, name: str, announced: int, sent: bytes) -> None:
    """Begin an upload, and send no more of it."""
    _, writer = await running.raw()
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-{name}\r\n"
        f"Content-Length: {announced}\r\n\r\n".encode()
        + sent
    )


# Memory for bodies.


async def test_announced_bodies_take_no_memory_and_uploads_count_against_their_payer(
    house: House,
) -> None:
    house.facts()
    house.policies(
        PolicyDocument(
            tenants=(entry("idle", "batch", "batch", max_requests=1), entry("vip", "interactive"))
        )
    )
    await house.raw_engine(plain)
    running = await house.sidecar()
    for _ in range(16):
        await upload(running, "idle", 64 << 20, b"{")
    assert await running.ended(15) == {"rejected_tenant_limit": 15}
    assert running.sidecar.registry.memory.held_bytes <= 1
    assert (await running.post(json=chat(), headers=key("vip"))).status == 200


async def test_bodies_of_low_classes_leave_memory_for_a_high_one(house: House) -> None:
    house.facts(slots=1)
    house.policies(PolicyDocument(tenants=(entry("night", "batch"), entry("chat", "interactive"))))
    await house.raw_engine(hang)
    running = await house.sidecar(replace(PATIENT, limits=Limits(max_held_bytes=100_000)))
    for _ in range(20):
        await upload(running, "night", 20_000, b"x" * 10_000)
    await eventually(lambda: running.outcomes.get("rejected_memory_full", 0) > 0)
    assert running.sidecar.registry.memory.held_bytes < 70_000
    await upload(running, "chat", 20_000, b"x" * 10_000)
    before = running.outcomes["rejected_memory_full"]
    await eventually(lambda: len(running.sidecar.registry) > 20 - before)
    assert running.outcomes["rejected_memory_full"] == before


async def test_a_body_is_forgotten_when_its_answer_begins(house: House) -> None:
    house.facts()
    await house.raw_engine(begun_stream)
    running = await house.sidecar()
    body = chat(stream=True, messages=[{"role": "user", "content": "x" * 50_000}])
    async with running.session.post(running.url + CHAT, json=body) as response:
        await response.content.readany()
        assert running.sidecar.registry.memory.held_bytes == 0


# Places among the requests that compute nothing.


async def test_requests_that_compute_nothing_are_bounded_by_tenant(house: House) -> None:
    house.facts()
    house.policies(PolicyDocument(tenants=(entry("a"), entry("b"))))
    engine = await house.raw_engine(hang)
    limits = Limits(unscheduled=3, unscheduled_per_tenant=2)
    running = await house.sidecar(replace(PATIENT, limits=limits))
    body = {"model": "m", "prompt": "x"}

    def ask(name: str) -> asyncio.Task[object]:
        return asyncio.create_task(running.post("/tokenize", json=body, headers=key(name)))

    held = [ask("a"), ask("a"), ask("b")]
    await eventually(lambda: len(engine.requests) == 3)
    for name in ("a", "b"):
        answer = await running.post("/tokenize", json=body, headers=key(name))
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) >= 1
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def test_counting_tokens_is_asked_after_the_tenants_limits(house: House) -> None:
    house.facts()
    house.policies(PolicyDocument(tenants=(entry("t", max_requests=1),)))
    engine = await house.raw_engine(hang)
    running = await house.sidecar()
    held = asyncio.create_task(running.post("/tokenize", json={"model": "m"}, headers=key("t")))
    await eventually(lambda: len(engine.requests) == 1)
    assert (await running.post("/tokenize", json={"model": "m"}, headers=key("t"))).status == 429
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)


# Limits told to clients.


async def test_a_tenant_with_limits_is_told_how_much_is_left(house: House) -> None:
    house.facts()
    house.policies(PolicyDocument(tenants=(entry("t", max_requests=4, tokens_per_minute=6000),)))
    await house.mock_engine(Profile(output_tokens=3))
    running = await house.sidecar()
    headers = (await running.post(json=chat(), headers=key("t"))).headers
    assert headers["x-ratelimit-limit-requests"] == "4"
    assert headers["x-ratelimit-remaining-requests"] == "3"
    assert headers["x-ratelimit-limit-tokens"] == "6000"
    assert 0 < int(headers["x-ratelimit-remaining-tokens"]) < 6000
    assert headers["x-ratelimit-reset-tokens"].endswith("s")


# Ids.


async def test_two_requests_with_one_id_are_told_apart(house: House) -> None:
    house.facts()
    engine = await house.raw_engine(hang)
    running = await house.sidecar()
    same = {"x-request-id": "same"}
    long = chat(messages=[{"role": "user", "content": "y" * 5000}])
    tasks = [asyncio.create_task(running.post(json=body, headers=same)) for body in (chat(), long)]
    await eventually(lambda: len(engine.requests) == 2)
    ids = {line for r in engine.requests for line in r.split(b"\r\n") if b"x-request-id" in line}
    assert len(ids) == 2
    assert b"x-request-id: same" in ids
    driver = running.sidecar.driver
    driver.on_step(Step(seq=1, duration_s=0.01, prefill_tokens=10, started=("same",)))
    assert driver.scheduler is not None
    assert sorted(t.started for t in driver.scheduler.tickets.values()) == [False, True]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# What of its prompt was cached.


FOLLOWING = replace(PATIENT, follow_prefixes=True)


@pytest.mark.parametrize(
    ("body", "prompts", "counted"),
    [
        pytest.param({}, ((2000, 512),), (2000, 512), id="told"),
        pytest.param({}, ((2000, NOT_LOOKED_UP),), (0, 0), id="not looked up"),
        pytest.param({"n": 2}, ((2000, 512),), (0, 0), id="several answers"),
        pytest.param({}, (), (0, 0), id="an engine of an earlier version"),
    ],
)
async def test_what_a_step_tells_of_a_prompt_teaches_what_is_cached(
    house: House,
    body: dict[str, Any],
    prompts: tuple[tuple[int, int], ...],
    counted: tuple[int, int],
) -> None:
    house.facts()
    engine = await house.raw_engine(hang)
    running = await house.sidecar(FOLLOWING)
    sidecar = running.sidecar
    asked = chat(messages=[{"role": "user", "content": "y" * 8000}], stream=True) | body
    task = asyncio.create_task(running.post(json=asked, headers={"x-request-id": "mine"}))
    await eventually(lambda: len(engine.requests) == 1)
    [request] = sidecar.registry._requests
    assert request.chain is not None
    own = sidecar.peers.own.name
    assert sidecar.parts.prefixes.cached(request.chain, 2000) == {own: 0}
    for seq in (1, 2):  # once more, as after a preemption inside the engine
        step = Step(seq, 0.01, prefill_tokens=10, started=("mine",), prompts=prompts)
        sidecar.driver.on_step(step)
    assert sidecar.parts.prefixes.cached(request.chain, 2000)[own] > 1900
    value = running.sidecar.metrics.registry.get_sample_value
    names = ("weir_prefix_prompt_tokens_total", "weir_prefix_cached_tokens_total")
    assert tuple(value(name) for name in names) == counted
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await running.ended(1) == {"client_gone": 1}
    assert sidecar.parts.prefixes.cached(request.chain, 2000)[own] > 1900
    sidecar.driver.engine_gone()
    assert sidecar.parts.prefixes.cached(request.chain, 2000) == {}


async def test_the_scheduler_is_told_what_of_a_prompt_is_cached(house: House) -> None:
    house.facts()
    engine = await house.raw_engine(hang)
    running = await house.sidecar(FOLLOWING)
    driver = running.sidecar.driver
    asked = chat(messages=[{"role": "user", "content": "y" * 8000}], stream=True)
    tasks = []
    for number in range(2):
        headers = {"x-request-id": f"r{number}"}
        tasks.append(asyncio.create_task(running.post(json=asked, headers=headers)))
        await eventually(lambda: len(engine.requests) == len(tasks))
        started, told = (headers["x-request-id"],), ((2000, 0),)
        driver.on_step(Step(number + 1, 0.01, prefill_tokens=10, started=started, prompts=told))
    first, second = (request.asked for request in running.sidecar.registry._requests)
    assert first is not None
    assert second is not None
    assert (first.cached_tokens, second.cached_tokens > 1900) == (0, True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_without_peers_no_prompt_is_hashed(house: House) -> None:
    house.facts()
    engine = await house.raw_engine(hang)
    running = await house.sidecar()
    long = chat(messages=[{"role": "user", "content": "y" * 8000}])
    task = asyncio.create_task(running.post(json=long))
    await eventually(lambda: len(engine.requests) == 1)
    assert [request.chain for request in running.sidecar.registry._requests] == [None]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# Life of a waiting stream.


async def test_a_waiting_stream_shows_life_and_then_its_answer(house: House) -> None:
    house.facts(slots=1)
    house.policies(PolicyDocument(keep_alive_s=0.02))
    go = asyncio.Event()

    async def one_at_a_time(wire: Wire) -> None:
        if wire.number == 0:
            await go.wait()
        await wire.send(HEAD + CHUNK + LAST)

    engine = await house.raw_engine(one_at_a_time)
    running = await house.sidecar()
    headers = {"x-weir-class": "interactive"}
    first = asyncio.create_task(running.post(json=chat(stream=True), headers=headers))
    await eventually(lambda: len(engine.requests) == 1)
    async with running.session.post(running.url + CHAT, json=chat(stream=True)) as response:
        assert response.status == 200
        assert (await response.content.readany()).startswith(b": waiting\n\n")
        go.set()
        rest = await response.content.read()
    assert rest.endswith(CHUNK.split(b"\r\n", 1)[1][:-2])
    assert (await first).status == 200
    assert running.outcomes == {"ok": 2}


async def test_a_refusal_after_a_sign_of_life_is_an_event_of_the_stream(house: House) -> None:
    house.facts()
    house.policies(PolicyDocument(keep_alive_s=0.02))
    seen = asyncio.Event()

    async def refuses_late(wire: Wire) -> None:
        await seen.wait()
        body = b'{"error": {"message": "no such model"}}'
        await wire.send(b"HTTP/1.1 404 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    await house.raw_engine(refuses_late)
    running = await house.sidecar()
    reader, writer = await running.raw()
    body = json.dumps(chat(stream=True)).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    await reader.readuntil(b": waiting\n\n")
    seen.set()
    assert b"no such model" in await reader.read()
    assert running.outcomes == {"client_error": 1}


# Sequences.


async def test_one_call_of_many_sequences_takes_as_many_places(house: House) -> None:
    house.facts(slots=4)
    engine = await house.raw_engine(hang)
    running = await house.sidecar()
    wide = chat(n=64, max_tokens=10)
    listed = {"model": "m", "prompt": ["fox"] * 90, "max_tokens": 10}
    tasks = [asyncio.create_task(running.post(json=wide)) for _ in range(4)]
    tasks += [asyncio.create_task(running.post("/v1/completions", json=listed)) for _ in range(4)]
    driver = running.sidecar.driver
    await eventually(lambda: len(driver.waiting()) == 7)
    assert len(engine.requests) == 1
    assert driver.scheduler.engine_load.slots == 3  # the last quarter is for its neighbours
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_more_sequences_than_a_tenant_may_ever_have_are_400(house: House) -> None:
    house.facts()
    house.policies(PolicyDocument(tenants=(entry("t", max_requests=4),)))
    await house.raw_engine(hang)
    running = await house.sidecar()
    answer = await running.post(json=chat(n=5), headers=key("t"))
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["code"] == "request-too-large"
    assert await running.ended(1) == {"client_error": 1}


async def test_a_request_that_loses_its_place_and_gets_another_at_once_is_sent_again(
    house: House,
) -> None:
    """The scheduler may decide both in one event, before the request's own code runs."""

    async def second_time(wire: Wire) -> None:
        if wire.number:
            await wire.send(PLAIN)
        else:
            await wire.closed_by_peer()

    engine = await house.raw_engine(second_time)
    running = await house.sidecar()
    asked = asyncio.create_task(running.post(json=chat()))
    await eventually(lambda: len(engine.requests) == 1)
    driver = running.sidecar.driver
    (ticket,) = driver.scheduler.tickets.values()
    request_id = ticket.request.request_id
    again: list[Action] = [
        Requeue(request_id, RequeueReason.PREEMPTED),
        Dispatch(request_id, ticket.engine_rank, 0.0),
    ]
    driver._perform(again, driver.now())
    answer = await asyncio.wait_for(asked, timeout=10)
    assert (answer.status, len(engine.requests)) == (200, 2)
    assert await running.ended(1) == {"ok": 1}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/v1/models", b"", id="which computes nothing"),
        pytest.param("/v1/chat/completions", b'{"model":"tiny","messages":[]}', id="a generation"),
    ],
)
async def test_a_client_that_leaves_at_once_is_counted(
    house: House, path: str, body: bytes
) -> None:
    await house.raw_engine(plain)
    running = await house.sidecar()
    http = http_request("POST" if body else "GET", path)
    http.connection.remote = "127.0.0.1"
    http.add(body)
    http.end()
    request = InFlightRequest(http, running.sidecar.handler)
    request.begin()
    request.client_gone()  # the task that goes on with the request has not begun
    await eventually(lambda: len(running.sidecar.registry) == 0)
    assert running.outcomes == {"client_gone": 1}


async def test_the_class_follows_policies_that_change_while_a_body_comes(house: House) -> None:
    gold = ClassPolicy("gold", rank=7, ttft_target_s=1.0)
    house.policies(PolicyDocument(classes=(gold,), default_class="gold", anonymous_class="gold"))
    await house.raw_engine(plain)
    running = await house.sidecar()
    before = running.sidecar.driver.directory
    reader, writer = await running.raw()
    sent = request_bytes(b'{"model":"m"}', extra="x-slo-ttft-ms: 2000\r\nx-weir-explain: 1\r\n")
    writer.write(sent)
    first = await reader.readuntil(b"\r\n\r\n{}")
    writer.write(sent[:-1])  # the same head: what is known of it is kept
    await eventually(lambda: len(running.sidecar.registry) == 1)
    house.policies(PolicyDocument(anonymous_class="batch"))
    await eventually(lambda: running.sidecar.driver.directory is not before)
    writer.write(sent[-1:])
    second = await reader.readuntil(b"\r\n\r\n{}")
    assert (b'"class":"gold"' in first, b'"class":"standard"' in second) == (True, True)
