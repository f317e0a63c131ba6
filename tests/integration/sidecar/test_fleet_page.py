"""What a sidecar tells the operator's autoscaler: the work that comes in, here and elsewhere."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from tests.integration.sidecar.fleet import DOCUMENT, KEY, SILENT, Fleet, named
from tests.integration.sidecar.harness import PATIENT, House, Running, chat, eventually
from weir_core.wire.fleet import FLEET_PATH, WAIT, FleetReport, ReplicaReport
from weir_core.wire.policies import AdapterEntry, PeerEntry, PolicyDocument
from weir_core.wire.state_access import authorization
from weir_sidecar.gateway import Gateway, StartTime
from weir_sidecar.settings import Draining, Limits, Policies
from weir_sim.mock_engine import Profile


async def report(running: Running) -> FleetReport:
    """Return what a sidecar says on its admin socket."""
    path = running.sidecar.settings.addresses.admin_socket
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as pod,
        pod.get(f"http://weir{FLEET_PATH}") as response,
    ):
        assert response.status == 200
        return FleetReport.decode(await response.read())


def of_class(replica: ReplicaReport, name: str) -> tuple[float, float]:
    """Return the work of a class that is offered and that waits."""
    return next((one.offered, one.backlog_s) for one in replica.load.classes if one.name == name)


async def test_requests_that_are_rejected_count_as_offered(house: House) -> None:
    house.facts(slots=1)
    engine = await house.mock_engine(SILENT)
    running = await house.sidecar(replace(PATIENT, limits=Limits(max_requests=1)))
    held = [asyncio.create_task(running.post(json=chat(stream=True))) for _ in range(2)]
    await eventually(lambda: engine.running == 1 and len(running.sidecar.registry) == 2)
    (own,) = (await report(running)).replicas
    before, backlog_s = of_class(own, "standard")
    assert before > 0.0
    assert backlog_s > 0.0
    offered = before
    async with asyncio.timeout(60):
        while offered < 2 * before:
            assert (await running.post(json=chat())).status == 429
            (own,) = (await report(running)).replicas
            offered, _ = of_class(own, "standard")
    assert of_class(own, "standard")[1] > 0.0
    assert of_class(own, "batch") == (0.0, 0.0)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def test_one_replica_tells_of_all(fleet: Fleet) -> None:
    fleet.tell(DOCUMENT)
    await fleet.until_known()
    found = await report(fleet.replicas[1])
    assert found.pod == "r1"
    assert found.replicas[0].name == "r1"
    assert {one.name for one in found.replicas} == {"r0", "r1", "r2"}
    assert [one.drain_s for one in found.replicas] == [0.0, None, None]


async def test_the_time_until_the_running_requests_end_is_told(house: House) -> None:
    engine = await house.mock_engine(Profile(output_tokens=1000, token_gap_s=0.01))  # type: ignore[arg-type]
    running = await house.sidecar()
    (idle,) = (await report(running)).replicas
    assert idle.drain_s == 0.0
    held = asyncio.create_task(running.post(json=chat(stream=True)))
    await eventually(lambda: engine.running == 1)
    (busy,) = (await report(running)).replicas
    assert busy.drain_s is not None
    assert busy.drain_s > 0.0
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)


async def test_the_admin_port_tells_it_to_what_holds_a_key_only(house: House) -> None:
    house.policies(PolicyDocument(peer_keys=(KEY,)))
    running = await house.sidecar(named(PATIENT, "chat-1"), ready=False)
    assert (await running.probe(FLEET_PATH)).status == 401
    shown = authorization([KEY], "chat-1", time.time())
    answer = await running.probe(FLEET_PATH, headers={"Authorization": shown})
    assert answer.status == 200
    (own,) = FleetReport.decode(answer.body).replicas
    assert (own.name, own.load.draining) == ("chat-1", True)


async def test_a_gateway_of_a_cluster_tells_at_once_that_a_request_waits(house: House) -> None:
    house.policies(PolicyDocument(peer_keys=(KEY,)))
    here = ("127.0.0.1", 0)
    settings = replace(named(PATIENT, "gate-1"), policies=Policies(house.policies_dir))
    gateway = Gateway(settings, here, admin=here)
    await house.stack.enter_async_context(gateway.running())
    admin = f"http://127.0.0.1:{gateway.admin_port}"
    shown = {"Authorization": authorization([KEY], "gate-1", time.time())}
    page = f"{admin}{FLEET_PATH}"
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{admin}/readyz") as ready:
            assert (ready.status, await ready.text()) == (200, "0 replicas take requests\n")
        async with http.get(page) as refused:
            assert refused.status == 401
        async with http.get(page, headers=shown) as at_once:
            idle = FleetReport.decode(await at_once.read())
        assert (idle.pod, idle.replicas, idle.waiting) == ("gate-1", (), 0)
        assert idle.idle_s is not None
        url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
        held = asyncio.create_task(http.post(url, json=chat()))
        async with http.get(page, headers=shown, params={WAIT: "60"}) as told:
            waits = FleetReport.decode(await told.read())
        assert (waits.waiting, waits.idle_s) == (1, 0.0)
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)


def test_refused_clients_come_back_when_the_first_replica_is_likely_there() -> None:
    start = StartTime(5)
    assert start.left_s(0.0) == 5
    start.look(False, 1, 10.0)
    start.look(False, 0, 20.0)
    assert start.left_s(20.0) == 5  # none was seen yet
    start.look(True, 0, 50.0)
    start.look(False, 3, 100.0)
    assert [start.left_s(each) for each in (100.0, 110.0, 139.0)] == [40, 30, 5]
    start.look(True, 0, 130.0)
    assert start.left_s(130.0) == 5
    start.look(False, 1, 200.0)
    start.look(True, 0, 8000.0)  # a trouble, and no start
    start.look(False, 1, 9000.0)
    assert start.left_s(9000.0) == 30


def standing_in(house: House, **settings: Any) -> Gateway:
    """Return the gateway of a service without replicas; it reads its policies once."""
    here, alone = ("127.0.0.1", 0), named(PATIENT, "gate-1")
    identity = replace(alone.identity, model="tiny")
    told = Policies(house.policies_dir, poll_s=600.0)
    return Gateway(replace(alone, identity=identity, policies=told, **settings), here, admin=here)


async def test_the_models_of_a_service_without_replicas_are_listed_and_wake_nothing(
    house: House,
) -> None:
    adapter = AdapterEntry("sql", "hf://o/sql")
    house.policies(PolicyDocument(aliases=("small",), adapters=(adapter,), peer_keys=(KEY,)))
    gateway = standing_in(house)
    await house.stack.enter_async_context(gateway.running())
    url = f"http://127.0.0.1:{gateway.port}"
    quiet_since = gateway.registry.idle_s
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{url}/v1/models", headers={"Origin": "https://a.example"}) as listed:
            assert listed.status == 200
            assert listed.headers["Vary"] == "Origin"
            cards = (await listed.json())["data"]
        async with http.head(f"{url}/v1/models") as head:
            assert (head.status, await head.read()) == (200, b"")
        async with http.get(f"{url}/version") as other:
            assert other.status == 503
        async with http.get(f"{url}/health") as health:
            assert health.status == 200
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("tiny", "tiny", None),
        ("small", "tiny", None),
        ("sql", "sql", "tiny"),
    ]
    assert gateway.parts.routing.waiting == 0
    assert gateway.registry.idle_s > quiet_since


async def test_a_gateway_refuses_more_than_it_may_hold_until_a_replica_may_be_there(
    house: House,
) -> None:
    two = tuple(PeerEntry(name, "127.0.0.1:9", serves=False) for name in ("gate-1", "gate-2"))
    house.policies(PolicyDocument(peer_keys=(KEY,), peers=two))
    gateway = standing_in(house, limits=Limits(max_requests=4, max_held_bytes=40_000))
    await house.stack.enter_async_context(gateway.running())
    gateway.parts.driver.retry_after_s = 30  # of a start that was seen
    url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
    long = chat(messages=[{"role": "user", "content": "x" * 50_000}])
    async with aiohttp.ClientSession() as http:
        async with http.post(url, json=long) as too_large:
            assert too_large.status == 503
            assert 30 <= int(too_large.headers["Retry-After"]) <= 45
        held = [asyncio.create_task(http.post(url, json=chat())) for _ in range(2)]
        await eventually(lambda: gateway.parts.routing.waiting == 2)
        async with http.post(url, json=chat()) as too_many:
            assert too_many.status == 429
            assert 30 <= int(too_many.headers["Retry-After"]) <= 45
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await eventually(lambda: gateway.parts.routing.waiting == 0)


async def read_to_the_break(stream: aiohttp.ClientResponse) -> bytes:
    """Return what came of an answer that has no end."""
    told = b""
    try:
        while piece := await stream.content.readany():
            told += piece
    except aiohttp.ClientPayloadError:
        return told
    pytest.fail(f"it ended as if it were whole: {told!r}")


async def test_what_waits_at_a_gateway_that_leaves_is_told_to_come_back(house: House) -> None:
    house.policies(PolicyDocument(peer_keys=(KEY,), keep_alive_s=0.01))
    leaving = Draining(grace_period_s=2.0, lame_duck_s=0.1)
    gateway = standing_in(house, draining=leaving)
    await house.stack.enter_async_context(gateway.running())
    url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
    async with aiohttp.ClientSession() as http:
        plain = asyncio.create_task(http.post(url, json=chat()))
        async with http.post(url, json=chat(stream=True)) as stream:
            await eventually(lambda: gateway.parts.routing.waiting == 2)
            reading = asyncio.create_task(read_to_the_break(stream))
            farewell = await gateway.drain.run()
            assert farewell.cut == 2
            assert stream.status == 200
            assert b"rejected-shutting-down" in await reading
        async with await plain as refused:
            assert refused.status == 503
            assert refused.headers["x-llm-d-request-dropped-reason"] == "rejected-shutting-down"
            assert int(refused.headers["Retry-After"]) >= 1
