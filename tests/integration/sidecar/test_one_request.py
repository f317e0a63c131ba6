"""What a sidecar tells of one request, at its admin socket."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from urllib.parse import urlencode

import aiohttp
import pytest

from tests.integration.sidecar.fleet import KEY, named
from tests.integration.sidecar.harness import PATIENT, House, Running, chat, eventually
from weir_cli import explain_local
from weir_cli.records import ServiceRecord
from weir_core.api import labels
from weir_core.wire.policies import PeerEntry, PolicyDocument
from weir_core.wire.request_state import REQUESTS_PATH, RequestReport, RequestState
from weir_sidecar.gateway import Gateway
from weir_sidecar.one_request import MOST_TOLD
from weir_sidecar.settings import Policies
from weir_sim.mock_engine import Profile

SILENT = Profile(ttft_s=60.0)  # type: ignore[arg-type]


async def report(running: Running, request_id: str) -> RequestReport:
    path = running.sidecar.settings.addresses.admin_socket
    page = f"http://weir{REQUESTS_PATH}?{urlencode({'id': request_id})}"
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as pod,
        pod.get(page) as answer,
    ):
        answer.raise_for_status()
        return RequestReport.decode(await answer.read())


async def told(running: Running, request_id: str) -> tuple[RequestState, ...]:
    return (await report(running, request_id)).requests


async def ask(running: Running, request_id: str, class_name: str) -> None:
    headers = {"x-request-id": request_id, "x-llm-d-inference-objective": class_name}
    await running.post(json=chat(stream=True), headers=headers)


async def test_tells_where_it_waits_and_who_is_ahead(house: House) -> None:
    house.facts(slots=1)
    engine = await house.mock_engine(SILENT)
    running = await house.sidecar()
    asked = [asyncio.create_task(ask(running, "first", "batch"))]
    await eventually(lambda: engine.running == 1)
    for request_id, class_name in (("low", "batch"), ("high", "batch")):
        asked.append(asyncio.create_task(ask(running, request_id, class_name)))
        await eventually(lambda: len(running.sidecar.driver.waiting()) == len(asked) - 1)

    (first,) = await told(running, "first")
    (high,) = await told(running, "high")

    assert (first.class_name, first.waits) == ("batch", None)
    assert first.runs is not None
    assert not first.runs.began
    assert (high.runs, high.tenant) == (None, "anonymous")
    assert high.waits is not None
    assert (high.waits.position, high.waits.ahead) == (2, {"batch": 1})
    assert high.waits.blocked_by == "slot"
    assert await told(running, "low & lost") == ()
    with pytest.raises(aiohttp.ClientResponseError, match="400"):
        await told(running, "")
    assert (await running.probe(f"{REQUESTS_PATH}?id=first")).status == 401
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_tells_how_a_request_ended(house: House) -> None:
    await house.mock_engine(Profile())
    running = await house.sidecar()
    await ask(running, "done", "batch")
    await eventually(lambda: not len(running.sidecar.registry))

    found = await report(running, "done")

    assert found.requests == ()
    (ended,) = found.ended
    assert (ended.class_name, ended.tenant, ended.outcome) == ("batch", "anonymous", "ok")
    assert ended.ttft_s is not None
    assert (ended.forwarded_to, ended.was_forwarded) == ("", False)


async def test_what_ended_under_one_id_has_keys_of_its_own(house: House) -> None:
    await house.mock_engine(Profile())
    running = await house.sidecar()
    for _ in range(2):
        await ask(running, "same", "batch")
    await eventually(lambda: not len(running.sidecar.registry))

    keys = {each.key for each in running.sidecar.registry.ended_last()}

    assert len(keys) == 2
    assert "" not in keys


async def test_many_of_one_id_are_told_up_to_a_bound(house: House) -> None:
    house.facts(slots=1)
    engine = await house.mock_engine(SILENT)
    running = await house.sidecar()
    asked = [asyncio.create_task(ask(running, "same", "batch"))]
    await eventually(lambda: engine.running == 1)
    asked += [asyncio.create_task(ask(running, "same", "batch")) for _ in range(MOST_TOLD)]
    await eventually(lambda: len(running.sidecar.driver.waiting()) == MOST_TOLD)

    found = await told(running, "same")

    places = [each.waits.position for each in found if each.waits is not None]
    assert places == list(range(1, MOST_TOLD))
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_a_gateway_tells_it_to_what_holds_a_key(house: House) -> None:
    address = f"127.{random.randrange(100, 250)}.{random.randrange(1, 250)}.9"
    gate = PeerEntry("chat-gateway", f"{address}:{labels.PEER_PORT}", serves=False)
    house.policies(PolicyDocument(peers=(gate,), peer_keys=(KEY,)))
    settings = replace(named(PATIENT, gate.name), policies=Policies(house.policies_dir))
    gateway = Gateway(settings, ("127.0.0.1", 0), admin=(address, labels.ADMIN_PORT))
    await house.stack.enter_async_context(gateway.running())
    record = ServiceRecord(
        name="chat",
        model="tiny",
        url="http://127.0.0.1",
        policies_file=str(house.policies_dir / "policies.json"),
        replicas=(),
    )
    url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
    async with aiohttp.ClientSession() as http:
        held = asyncio.create_task(http.post(url, json=chat(), headers={"x-request-id": "early"}))
        await eventually(lambda: gateway.parts.routing.waiting == 1)
        (report,), unseen = await asyncio.to_thread(explain_local.requests, "early", record)
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
    assert unseen == ()
    assert report.requests[0].waits is not None
    assert report.requests[0].waits.position == 1
