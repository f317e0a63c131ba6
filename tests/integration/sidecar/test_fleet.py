"""Replicas that act as one: sidecars that forward, take back and hand over, and a gateway.

The engines are mocks: what is tested is what sidecars do when an engine is slow, full or gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import replace

import msgspec
import pytest

from tests.integration.sidecar.fleet import CLASSES, DOCUMENT, KEY, SILENT, SLOW, Fleet
from tests.integration.sidecar.harness import Answer, eventually
from weir_core.sched.types import ClassPolicy, TenantPolicy
from weir_core.wire.policies import AdapterEntry, PolicyDocument, TenantEntry
from weir_core.wire.sidecar_state import ADAPTER_READY
from weir_sidecar.drain import Phase
from weir_sim.mock_engine import Profile

# ---- where requests go


async def test_whoever_gets_the_requests_all_replicas_serve_them(fleet: Fleet) -> None:
    for engine in fleet.engines:
        engine.profile = SLOW
    answers = await asyncio.gather(*(fleet.ask(stream=True) for _ in range(60)))
    assert {answer.status for answer in answers} == {200}
    assert all(answer.body.endswith(b"data: [DONE]\n\n") for answer in answers)
    assert min(fleet.served) > 0
    assert sum(fleet.served) == 60


async def until_the_second_alone_has_it(fleet: Fleet) -> None:
    """Declare the adapter, and wait until each replica goes by whether its engine has it.

    One that has not read the document lacks nothing yet.
    """
    fleet.tell(msgspec.structs.replace(DOCUMENT, adapters=(AdapterEntry("sql", "hf://o/sql"),)))
    names = [each.sidecar.names for each in fleet.replicas]
    await eventually(lambda: [bool(each.shown.lacking) for each in names] == [True, False, True])
    await eventually(lambda: names[1].states() == {"sql": ADAPTER_READY})
    await eventually(lambda: not names[1].shown.lacking)


async def test_an_adapter_is_asked_of_the_replica_that_has_loaded_it(fleet: Fleet) -> None:
    fleet.engines[1].adapters["sql"] = "/models/sql"
    await until_the_second_alone_has_it(fleet)
    answers = [await fleet.ask(at, model="sql") for at in (0, 1, 2) for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 15
    assert fleet.served == [0, 15, 0]
    fleet.engines[1].healthy = False
    await eventually(lambda: fleet.replicas[0].sidecar.peers.usable == 1)
    early = await fleet.ask(0, model="sql")
    assert (early.status, "Retry-After" in early.headers) == (503, True)
    assert (await fleet.ask(0)).status == 200


async def test_a_busy_replica_alone_has_an_adapter_and_serves_all_of_its_requests(
    fleet: Fleet,
) -> None:
    fleet.engines[1].adapters["sql"] = "/models/sql"
    fleet.engines[1].profile = SLOW
    await until_the_second_alone_has_it(fleet)
    answers = await asyncio.gather(*(fleet.ask(1, model="sql") for _ in range(60)))
    assert [answer.status for answer in answers] == [200] * 60


async def test_a_request_counts_once_in_the_fleet(fleet: Fleet) -> None:
    fleet.engines[0].profile = SILENT
    fleet.replicas[0].sidecar.handler.leaving = True  # it takes nothing itself
    await eventually(lambda: True)
    assert (await fleet.ask()).status == 200
    assert fleet.served[0] == 0
    assert fleet.replicas[0].outcomes == {"ok": 1}
    assert [fleet.replicas[at].outcomes for at in (1, 2)] == [{}, {}]
    pages = [(await fleet.replicas[at].probe("/metrics")).body.decode() for at in (0, 1, 2)]
    assert 'weir_forwards_total{result="answered"} 1.0' in pages[0]
    assert sum('weir_forwarded_requests_total{outcome="ok"} 1.0' in page for page in pages) == 1


async def test_what_a_replica_served_a_tenant_is_told_to_the_others(fleet: Fleet) -> None:
    heard: list[tuple[str, str, float]] = []
    fleet.gateway.peers.on_served = lambda *said: heard.append(said)
    answer = await fleet.ask_gateway()
    usage = json.loads(answer.body)["usage"]
    wanted = usage["prompt_tokens"] + 2 * usage["completion_tokens"]
    await eventually(lambda: sum(tokens for *_, tokens in heard) == wanted)
    assert {said[:2] for said in heard} == {("standard", "anonymous")}


async def test_an_explanation_names_candidates_and_who_executed(fleet: Fleet) -> None:
    answer = await fleet.ask_gateway({"x-weir-explain": "1"})
    told = json.loads(answer.headers["x-weir-explain"])
    assert told["replica"] in {"r0", "r1", "r2"}
    assert told["hops"] == 1
    assert told["routed"] == "no-engine-here"
    assert {each["replica"] for each in told["candidates"]} <= {"r0", "r1", "r2"}
    assert all(each["age_ms"] >= 0 and "score_ms" in each for each in told["candidates"])
    assert "x-weir-forwarded" not in answer.headers


async def test_a_single_replica_explains_itself_as_before(fleet: Fleet) -> None:
    fleet.houses[0].policies(PolicyDocument(classes=CLASSES))  # without peers
    await eventually(lambda: fleet.replicas[0].sidecar.peers.usable == 0)
    answer = await fleet.ask(headers={"x-weir-explain": "1"})
    told = json.loads(answer.headers["x-weir-explain"])
    assert (told["routed"], told["hops"]) == ("alone", 0)
    assert told["candidates"] == [{"replica": "r0"}]


async def test_the_class_of_the_first_sidecar_holds_at_the_second(fleet: Fleet) -> None:
    answer = await fleet.ask_gateway({"x-weir-explain": "1", "x-weir-class": "low"})
    assert json.loads(answer.headers["x-weir-explain"])["class"] == "low"


async def test_what_computes_nothing_is_answered_by_any_replica(fleet: Fleet) -> None:
    status, page = await fleet.page("/v1/models")
    assert status == 200
    assert "tiny" in page
    assert (await fleet.page("/sleep"))[0] == 404


# ---- what comes back


async def test_a_draining_replica_gets_nothing_more(fleet: Fleet) -> None:
    await fleet.replicas[0].sidecar.drain.run()
    answers = [await fleet.ask_gateway() for _ in range(6)]
    assert {answer.status for answer in answers} == {200}
    assert fleet.served[0] == 0


async def test_a_draining_replica_routes_what_still_reaches_it(fleet: Fleet) -> None:
    fleet.replicas[0].sidecar.handler.leaving = True
    fleet.replicas[0].sidecar.handler.refusing = True
    assert {(await fleet.ask(0)).status for _ in range(4)} == {200}
    assert fleet.served[0] == 0


async def test_what_waits_at_a_draining_replica_moves(fleet: Fleet) -> None:
    holders = await busy(fleet)
    waiting = [asyncio.create_task(fleet.ask_gateway()) for _ in range(9)]
    await eventually(lambda: waits(fleet) == 9)
    drain = asyncio.create_task(fleet.replicas[0].sidecar.drain.run())
    await leave(holders[1:])
    assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}
    assert fleet.served[0] == 0
    await leave(holders)
    await drain


async def test_the_work_of_what_moves_is_counted_once(fleet: Fleet) -> None:
    holders = await busy(fleet)
    waiting = [asyncio.create_task(fleet.ask(0)) for _ in range(9)]
    await eventually(lambda: waits(fleet) == 9)
    first, *others = (replica.sidecar.driver for replica in fleet.replicas)
    moves = len(first.waiting())
    assert moves
    drain = asyncio.create_task(fleet.replicas[0].sidecar.drain.run())
    await eventually(lambda: sum(len(driver.waiting()) for driver in others) == 9)
    there = [ticket.request for driver in others for ticket in driver.waiting()]
    assert sum(request.is_counted for request in there) >= moves
    await leave(holders)
    assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}
    await drain


async def test_what_waits_is_served_where_all_replicas_leave_at_once(fleet: Fleet) -> None:
    holders = await busy(fleet)
    waiting = [asyncio.create_task(fleet.ask(0)) for _ in range(9)]
    await eventually(lambda: waits(fleet) == 9)
    assert fleet.replicas[0].sidecar.driver.scheduler.pool.requests < 9
    drains = [asyncio.create_task(each.sidecar.drain.run()) for each in fleet.replicas]
    await eventually(lambda: all(each.sidecar.handler.refusing for each in fleet.replicas))
    await leave(holders)
    assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}
    await asyncio.gather(*drains)


async def test_newcomers_are_refused_at_once_where_all_replicas_have_left(fleet: Fleet) -> None:
    """As at a scale to 0: each of them is still sent new connections until it is gone."""
    await asyncio.gather(*(each.sidecar.drain.run() for each in fleet.replicas))
    for at in range(len(fleet.replicas)):
        answer = await fleet.ask(at)
        assert (answer.status, answer.headers["Connection"]) == (503, "close")
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-shutting-down"
    assert fleet.served == [0, 0, 0]


async def test_without_an_engine_a_replica_forwards(fleet: Fleet) -> None:
    fleet.engines[0].healthy = False
    await eventually(lambda: not fleet.replicas[0].sidecar.monitor.up)
    answers = [await fleet.ask(0) for _ in range(4)] + [await fleet.ask_gateway() for _ in range(4)]
    assert {answer.status for answer in answers} == {200}
    assert fleet.served[0] == 0


async def test_a_replica_that_dies_under_requests_costs_one_hop(fleet: Fleet) -> None:
    for engine in fleet.engines:
        engine.profile = SILENT
    tasks = [asyncio.create_task(fleet.ask_gateway()) for _ in range(12)]
    await eventually(lambda: sum(fleet.running) == 12 and fleet.running[0] > 0)
    fleet.engines[1].profile = fleet.engines[2].profile = Profile()
    lost = fleet.running[0]
    await fleet.end(0)
    await eventually(lambda: sum(task.done() for task in tasks) >= lost)
    answers = [task.result() for task in tasks if task.done()]
    assert {answer.status for answer in answers} == {200}
    await leave(tasks)


async def test_an_engine_that_hangs_gets_nothing_new_though_it_looks_emptier(fleet: Fleet) -> None:
    fleet.engines[0].profile = SILENT
    fleet.engines[1].profile = fleet.engines[2].profile = replace(SLOW, output_tokens=10_000)
    tasks: list[asyncio.Task[Answer]] = []

    async def run(count: int) -> None:
        tasks.extend(asyncio.create_task(fleet.ask_gateway(stream=True)) for _ in range(count))
        await eventually(lambda: sum(fleet.running) == len(tasks))

    while not fleet.running[0]:
        await run(1)
    router = fleet.gateway.peers.router

    def is_known() -> bool:
        view = router.view_of("r0", "standard", 1, time.monotonic())
        return view is not None and view.load.overdue_s > 0.5

    await eventually(is_known)
    await run(8)
    assert fleet.running[0] == 1
    await leave(tasks)


async def test_a_stream_that_had_begun_ends_with_an_error_event(fleet: Fleet) -> None:
    for engine in fleet.engines:
        engine.profile = replace(SLOW, output_tokens=2000)
    task = asyncio.create_task(fleet.ask_gateway(stream=True))
    await eventually(lambda: sum(fleet.running) == 1)
    await asyncio.sleep(0.1)  # a few tokens
    await fleet.end(fleet.running.index(1))
    with pytest.raises(Exception, match=r"(?i)payload|incomplete|closed"):
        await task
    assert fleet.gateway.parts.metrics.outcomes()["engine_error"] == 1


async def test_a_client_that_leaves_frees_the_place_at_the_other_replica(fleet: Fleet) -> None:
    for engine in fleet.engines:
        engine.profile = SILENT
    task = asyncio.create_task(fleet.ask_gateway())
    await eventually(lambda: sum(fleet.running) == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: sum(fleet.running) == 0)
    await eventually(lambda: fleet.gateway.parts.metrics.outcomes()["client_gone"] == 1)


# ---- what waits


async def test_a_gateway_holds_requests_while_nobody_takes_them(fleet: Fleet) -> None:
    for at, engine in enumerate(fleet.engines):
        engine.healthy = False
        await eventually(lambda at=at: not fleet.replicas[at].sidecar.monitor.up)  # type: ignore[misc]
    await eventually(lambda: fleet.gateway.peers.usable == 0)
    assert (await fleet.page("/readyz"))[0] == 503
    assert (await fleet.page("/healthz"))[0] == 200
    driver = fleet.gateway.parts.driver
    soon = tuple(replace(each, ttft_target_s=0.05) for each in CLASSES)
    fleet.tell(PolicyDocument(classes=soon, peer_keys=(KEY,)))
    await eventually(lambda: driver.directory.classes == soon)
    tasks = [asyncio.create_task(fleet.ask_gateway()) for _ in range(5)]
    await eventually(lambda: sum(each.late for each in driver.waiting()) == 5)
    fleet.engines[1].healthy = True
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
    assert fleet.served == [0, 5, 0]


async def test_work_that_goes_on_to_another_replica_is_offered_once(fleet: Fleet) -> None:
    fleet.engines[1].profile = SILENT
    for at in (1, 2):
        fleet.replicas[at].sidecar.handler.leaving = True
    fleet.engines[0].healthy = False
    first, second = (fleet.replicas[at].sidecar for at in (0, 1))
    await eventually(lambda: not first.monitor.up and first.peers.usable == 0)
    task = asyncio.create_task(fleet.ask(0))
    await eventually(lambda: len(first.driver.waiting()) == 1)
    second.handler.leaving = False
    tickets = second.driver.scheduler.tickets
    await eventually(lambda: len(tickets) == 1)
    assert [ticket.request.is_counted for ticket in tickets.values()] == [True]
    await leave([task])


async def test_what_a_gateway_cannot_place_in_time_is_503_with_retry_after(fleet: Fleet) -> None:
    brief = tuple(replace_class(each, 0.2) for each in CLASSES)
    fleet.tell(PolicyDocument(classes=brief, peer_keys=(KEY,)))
    for running in fleet.replicas:
        await running.sidecar.drain.run()
    await eventually(lambda: fleet.gateway.peers.usable == 0)
    await eventually(lambda: fleet.gateway.parts.driver.directory.classes == brief)
    answer = await fleet.ask_gateway()
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    _, page = await fleet.page("/metrics")
    assert 'outcome="rejected_no_endpoints"} 1.0' in page


async def test_a_refusal_after_the_head_of_a_stream_is_told_in_it_once(fleet: Fleet) -> None:
    holders = await busy(fleet)
    brief = tuple(replace_class(each, 0.5) for each in CLASSES)
    fleet.tell(PolicyDocument(classes=brief, peer_keys=(KEY,), keep_alive_s=0.05))
    drivers = [fleet.gateway.parts.driver, *(r.sidecar.driver for r in fleet.replicas)]
    await eventually(lambda: all(each.directory.classes == brief for each in drivers))
    with pytest.raises(Exception, match=r"(?i)payload|incomplete|closed"):
        await fleet.ask_gateway(stream=True)
    _, page = await fleet.page("/metrics")
    assert 'weir_forwards_total{result="answered"} 1.0' in page
    assert 'result="lost"' not in page
    await leave(holders)


async def test_an_engine_that_dies_leaves_its_waiting_requests_to_others(fleet: Fleet) -> None:
    holders = await busy(fleet)
    waiting = [asyncio.create_task(fleet.ask(0)) for _ in range(9)]
    await eventually(lambda: waits(fleet) == 9)
    fleet.engines[0].healthy = False
    await leave(holders[1:])
    assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}
    assert fleet.served[0] == 0
    await leave(holders)


async def test_streams_finish_when_the_gateway_drains(fleet: Fleet) -> None:
    for engine in fleet.engines:
        engine.profile = replace(SLOW, output_tokens=100)
    streams = [asyncio.create_task(fleet.ask_gateway(stream=True)) for _ in range(4)]
    await eventually(lambda: sum(fleet.running) == 4)
    await fleet.gateway.drain.run()
    assert fleet.gateway.drain.phase is Phase.DRAINED
    answers = await asyncio.gather(*streams)
    assert all(answer.body.endswith(b"data: [DONE]\n\n") for answer in answers)


# ---- who may


async def test_a_tenants_key_is_checked_once_and_goes_no_further(fleet: Fleet) -> None:
    digest = hashlib.sha256(b"sesame").hexdigest()
    tenant = TenantEntry(TenantPolicy("team"), "standard", "standard", key_hashes=(digest,))
    fleet.tell(PolicyDocument(classes=CLASSES, tenants=(tenant,), peer_keys=(KEY,)))
    await eventually(lambda: bool(fleet.gateway.parts.driver.directory.tenants))
    assert (await fleet.ask_gateway()).status == 401
    answer = await fleet.ask_gateway(
        {"authorization": "Bearer sesame", "x-weir-explain": "1", "x-weir-class": "low"}
    )
    assert answer.status == 200
    assert json.loads(answer.headers["x-weir-explain"])["tenant"] == "team"
    refused = await fleet.ask_gateway({"authorization": "Bearer sesame", "x-weir-class": "high"})
    assert refused.status == 403


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{}", id="too little"),
        pytest.param(b'{"class_name":"\xc6"}', id="no UTF-8"),
        pytest.param(b"[" * 3000, id="too deep"),
    ],
)
async def test_what_a_sidecar_says_badly_of_a_request_is_refused(fleet: Fleet, said: bytes) -> None:
    peer = fleet.gateway.peers.find("r0")
    assert peer is not None
    connection = await peer._connections.open()
    asked = b"POST /v1/completions HTTP/1.1\r\nhost: weir\r\nx-weir-forwarded: %b\r\n\r\n" % said
    reply = await connection.ask("it", [asked], timeout_s=5.0, limit_bytes=1 << 16)
    connection.finish()
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["message"].startswith("x-weir-forwarded")


def replace_class(policy: ClassPolicy, max_queue_wait_s: float) -> ClassPolicy:
    return ClassPolicy(policy.name, policy.rank, max_queue_wait_s=max_queue_wait_s)


async def busy(fleet: Fleet) -> list[asyncio.Task[Answer]]:
    """Have each engine's only slot taken by a request that does not end."""
    for at, engine in enumerate(fleet.engines):
        fleet.houses[at].facts(slots=1)
        await restart(fleet, at)
        engine.profile = SILENT
    fleet.tell(PolicyDocument(classes=CLASSES))  # no keys: each is alone
    await eventually(lambda: all(not r.sidecar.peers.usable for r in fleet.replicas))
    holders = [asyncio.create_task(fleet.ask(at)) for at in range(3)]
    await eventually(lambda: fleet.running == [1, 1, 1])
    fleet.tell()
    await fleet.until_known()
    for engine in fleet.engines:
        engine.profile = Profile()
    return holders


async def restart(fleet: Fleet, at: int) -> None:
    """Have a sidecar read its engine's facts anew."""
    monitor = fleet.replicas[at].sidecar.monitor
    fleet.engines[at].healthy = False
    await eventually(lambda: not monitor.up)
    fleet.engines[at].healthy = True
    await eventually(lambda: monitor.up)


async def leave(tasks: list[asyncio.Task[Answer]]) -> None:
    """Have clients hang up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def waits(fleet: Fleet) -> int:
    """Requests in the pools of all sidecars."""
    drivers = [running.sidecar.driver for running in fleet.replicas]
    return sum(len(d.waiting()) for d in [*drivers, fleet.gateway.parts.driver])
