"""A dead or silent engine loses nothing that has not begun."""

from __future__ import annotations

import asyncio
import hashlib

from tests.integration.sidecar.harness import (
    CHUNK,
    HEAD,
    LAST,
    PLAIN,
    Answer,
    House,
    RawEngine,
    Running,
    Wire,
    chat,
    eventually,
)
from weir_core.sched.types import ClassPolicy, TenantPolicy
from weir_core.wire.policies import PolicyDocument, TenantEntry
from weir_sidecar.upstreams.monitor import EngineState


class Mortal:
    """A script whose engine dies under its first requests, and answers all later ones."""

    def __init__(self, deaths: int, said: bytes = b"") -> None:
        self.deaths = deaths
        self.said = said
        self.engine: RawEngine | None = None
        self.die = asyncio.Event()

    async def __call__(self, wire: Wire) -> None:
        if wire.number >= self.deaths:
            await wire.send(HEAD + CHUNK + LAST)
            return
        await wire.send(self.said)
        await self.die.wait()
        assert self.engine is not None
        self.engine.healthy = False
        wire.writer.close()


async def mortal(
    house: House, deaths: int = 1, said: bytes = b"", slots: int = 1
) -> tuple[Running, Mortal]:
    house.facts(slots=slots)
    script = Mortal(deaths, said)
    script.engine = await house.raw_engine(script)
    return await house.sidecar(), script


def send(
    running: Running, *, stream: bool = True, class_name: str = "batch"
) -> asyncio.Task[Answer]:
    headers = {"x-weir-class": class_name}
    return asyncio.create_task(running.post(json=chat(stream=stream), headers=headers))


async def comes_back(running: Running, script: Mortal) -> None:
    """Let the engine die, be seen dead, and come back."""
    script.die.set()
    await eventually(lambda: running.sidecar.monitor.state is EngineState.DOWN)
    script.die.clear()
    assert script.engine is not None
    script.engine.healthy = True
    await eventually(lambda: running.sidecar.monitor.state is EngineState.READY)


async def test_what_waits_and_what_has_not_begun_waits_for_the_engines_return(
    house: House,
) -> None:
    running, script = await mortal(house)
    tasks = [send(running) for _ in range(30)]
    await eventually(lambda: len(running.sidecar.driver.waiting()) == 29)
    await comes_back(running, script)
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
    assert running.outcomes == {"ok": 30}


async def test_a_plain_answer_that_was_cut_in_the_engine_is_computed_again(house: House) -> None:
    running, script = await mortal(house)
    task = send(running, stream=False)
    await eventually(lambda: running.sidecar.registry.at_engine == 1)
    driver = running.sidecar.driver
    driver.scheduler.on_prefilled("1", driver.now())
    await comes_back(running, script)
    assert (await task).status == 200


async def test_newcomers_wait_for_an_engine_that_was_there(house: House) -> None:
    running, script = await mortal(house, deaths=0)
    assert script.engine is not None
    script.engine.healthy = False
    await eventually(lambda: running.sidecar.monitor.state is EngineState.DOWN)
    task = send(running)
    await eventually(lambda: len(running.sidecar.driver.waiting()) == 1)
    await comes_back(running, script)
    assert (await task).status == 200


async def test_a_request_under_which_engines_die_ends_at_last(house: House) -> None:
    running, script = await mortal(house, deaths=3)
    task = send(running)
    assert script.engine is not None
    requests = script.engine.requests
    for death in range(1, 4):
        await eventually(lambda deaths=death: len(requests) == deaths)  # type: ignore[misc]
        await comes_back(running, script)
    answer = await task
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1


async def test_a_wait_for_an_engine_that_does_not_return_ends_with_503(house: House) -> None:
    house.policies(PolicyDocument(classes=(ClassPolicy("standard", 0, max_queue_wait_s=0.1),)))
    running, script = await mortal(house, deaths=0)
    assert script.engine is not None
    script.engine.healthy = False
    await eventually(lambda: running.sidecar.monitor.state is EngineState.DOWN)
    answer = await send(running, class_name="standard")
    assert answer.status == 503
    assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"


async def test_what_never_ran_costs_its_tenant_nothing(house: House) -> None:
    key = hashlib.sha256(b"sk").hexdigest()
    limited = TenantEntry(
        TenantPolicy("t", tokens_per_minute=1000), "standard", "standard", key_hashes=(key,)
    )
    brief = ClassPolicy("standard", 0, max_queue_wait_s=0.3)
    house.policies(PolicyDocument(classes=(brief,), tenants=(limited,)))
    running, script = await mortal(house, deaths=1)
    limits = running.sidecar.driver.scheduler.tenants

    def left() -> int | None:
        standing = limits.standing("t", running.sidecar.driver.now())
        return None if standing is None else standing.tokens_left

    headers = {"Authorization": "Bearer sk"}
    body = chat(stream=True, messages=[{"role": "user", "content": "x" * 800}])
    task = asyncio.create_task(running.post(json=body, headers=headers))
    await eventually(lambda: running.sidecar.registry.at_engine == 1)
    assert left() != 1000
    script.die.set()
    assert (await task).status == 503
    assert left() == 1000


async def test_what_a_silent_engine_has_not_begun_is_taken_back_and_refused(house: House) -> None:
    house.facts()
    house.policies(PolicyDocument(classes=(ClassPolicy("standard", 0, max_queue_wait_s=0.1),)))
    left = asyncio.Event()

    async def silent(wire: Wire) -> None:
        await wire.closed_by_peer()
        left.set()

    await house.raw_engine(silent)
    running = await house.sidecar()
    answer = await send(running, class_name="standard")
    assert answer.status == 429
    assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-ttl-expired"
    await left.wait()


async def test_a_head_and_an_event_without_content_promise_nothing_yet(house: House) -> None:
    created = b'event: response.created\ndata: {"type":"response.created"}\n\n'
    said = HEAD + b"%x\r\n%b\r\n" % (len(created), created)
    running, script = await mortal(house, said=said)
    task = asyncio.create_task(
        running.post("/v1/responses", json={"model": "m", "input": "x", "stream": True})
    )
    await eventually(lambda: running.sidecar.registry.received_bytes > 0)
    assert not any(t.started for t in running.sidecar.driver.scheduler.tickets.values())
    await comes_back(running, script)
    answer = await task
    assert answer.status == 200
    assert created not in answer.body


async def test_an_answer_without_an_engine_is_not_asked_for(house: House) -> None:
    async def plain(wire: Wire) -> None:
        await wire.send(PLAIN)

    engine = await house.raw_engine(plain)
    running = await house.sidecar()
    engine.healthy = False
    await eventually(lambda: running.sidecar.monitor.state is EngineState.DOWN)
    assert (await running.get("/v1/models")).status == 503
