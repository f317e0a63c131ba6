"""A tenant's limits hold over all replicas, whichever of them its requests reach."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from tests.integration.sidecar.fleet import CLASSES, KEY, SLOW, Fleet
from tests.integration.sidecar.harness import Answer, eventually
from weir_core.route.home import order_of, part_of
from weir_core.sched.types import TenantPolicy
from weir_core.wire.policies import PeerEntry, PolicyDocument, TenantEntry
from weir_sim.mock_engine import Profile

LIMIT = 4
REPLICAS = ("r0", "r1", "r2")
HOME, *OTHERS = (REPLICAS.index(name) for name in order_of("team", REPLICAS))
"""The replica that counts the tenant's requests, and those that stand in for it, in their order."""
SESAME = {"authorization": "Bearer sesame"}
LONG = replace(SLOW, output_tokens=20_000)


MAX_REQUESTS = TenantPolicy("team", max_requests=LIMIT)


def document(policy: TenantPolicy = MAX_REQUESTS, key: str = KEY) -> PolicyDocument:
    digest = hashlib.sha256(b"sesame").hexdigest()
    tenant = TenantEntry(policy, "standard", "standard", key_hashes=(digest,))
    return PolicyDocument(classes=CLASSES, tenants=(tenant,), peer_keys=(key,))


def replace_peers(document: PolicyDocument, peers: tuple[PeerEntry, ...]) -> PolicyDocument:
    return msgspec.structs.replace(document, peers=peers)


async def limited(
    fleet: Fleet, profile: Profile = SLOW, policy: TenantPolicy = MAX_REQUESTS
) -> None:
    """Have the tenant's limits in force everywhere, and known to all."""
    for engine in fleet.engines:
        engine.profile = profile
    fleet.tell(document(policy))
    await eventually(lambda: all("team" in each.policies for each in all_tenants(fleet)))


def all_tenants(fleet: Fleet) -> list[Any]:
    drivers = [each.sidecar.driver for each in fleet.replicas] + [fleet.gateway.parts.driver]
    return [driver.scheduler.tenants for driver in drivers]


def left(fleet: Fleet, at: int = HOME) -> int:
    """Requests that the tenant may still send, as a home counts."""
    driver = fleet.replicas[at].sidecar.driver
    standing = driver.scheduler.tenants.standing("team", driver.now())
    assert standing is not None
    assert standing.requests_left is not None
    return standing.requests_left


def usable(fleet: Fleet, *replicas: int) -> list[int]:
    """How many others each replica may forward to."""
    return [fleet.replicas[at].sidecar.peers.usable for at in replicas]


async def flood(fleet: Fleet, count: int, ports: Sequence[int]) -> list[Answer]:
    """Send requests through several doors at once."""
    return await asyncio.gather(
        *(fleet.post(ports[number % len(ports)], SESAME, stream=True) for number in range(count))
    )


def doors(fleet: Fleet, *replicas: int) -> list[int]:
    return [fleet.replicas[at].sidecar.api_port for at in replicas]


@dataclass
class Peak:
    """The most requests that ran at a time."""

    most: int = 0


@contextlib.asynccontextmanager
async def watched(fleet: Fleet, *engines: int) -> AsyncIterator[Peak]:
    """Watch how many requests run in these engines together."""
    peak = Peak()

    async def watch() -> None:
        while True:
            peak.most = max(peak.most, sum(fleet.engines[at].running for at in engines))
            await asyncio.sleep(0.002)

    task = asyncio.create_task(watch())
    yield peak
    task.cancel()


async def held(fleet: Fleet, ports: Sequence[int], **body: Any) -> list[asyncio.Task[Answer]]:
    """Have requests run that do not end."""
    before = sum(fleet.running)
    tasks = [asyncio.create_task(fleet.post(port, SESAME, stream=True, **body)) for port in ports]
    await eventually(lambda: sum(fleet.running) == before + len(ports))
    return tasks


async def leave(tasks: Sequence[asyncio.Task[Answer]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_tenant_has_its_limit_once_in_the_fleet(fleet: Fleet) -> None:
    await limited(fleet)
    ports = [*doors(fleet, 0, 1, 2), fleet.gateway.port]
    async with watched(fleet, 0, 1, 2) as peak:
        answers = await flood(fleet, 30, ports)
    assert Counter(answer.status for answer in answers) == {200: LIMIT, 429: 30 - LIMIT}
    assert peak.most == LIMIT
    refused = [answer for answer in answers if answer.status == 429]
    assert {one.headers["x-llm-d-request-dropped-reason"] for one in refused} == {
        "rejected-tenant-limit"
    }
    assert all(int(one.headers["Retry-After"]) >= 1 for one in refused)
    await eventually(lambda: left(fleet) == LIMIT)
    again = await flood(fleet, LIMIT, ports)
    assert {answer.status for answer in again} == {200}


@pytest.mark.parametrize("door", [*range(3), "gateway"])
async def test_what_is_forwarded_counts_once(fleet: Fleet, door: int | str) -> None:
    await limited(fleet, Profile(), TenantPolicy("team", max_requests=1))
    port = fleet.gateway.port if door == "gateway" else doors(fleet, int(door))[0]
    for _ in range(6):
        assert (await fleet.post(port, SESAME)).status == 200
        await eventually(lambda: left(fleet) == 1)


async def test_a_request_counts_as_the_sequences_it_becomes(fleet: Fleet) -> None:
    await limited(fleet, LONG)
    holders = await held(fleet, doors(fleet, OTHERS[0]), n=4)
    assert {answer.status for answer in await flood(fleet, 4, doors(fleet, 0, 1, 2))} == {429}
    await leave(holders)
    await eventually(lambda: left(fleet) == LIMIT)
    too_large = await fleet.post(doors(fleet, OTHERS[1])[0], SESAME, n=5)
    assert too_large.status == 400
    assert b"request-too-large" in too_large.body


async def test_a_client_that_leaves_frees_its_place_in_the_fleet(fleet: Fleet) -> None:
    await limited(fleet, LONG)
    holders = await held(fleet, [*doors(fleet, 0, 1, 2), fleet.gateway.port])
    assert {answer.status for answer in await flood(fleet, 4, doors(fleet, 0, 1, 2))} == {429}
    await leave(holders)
    await eventually(lambda: left(fleet) == LIMIT)


async def test_tokens_spent_at_one_replica_are_spent_at_all(fleet: Fleet) -> None:
    await limited(
        fleet, replace(Profile(), output_tokens=200), TenantPolicy("team", tokens_per_minute=100)
    )
    assert (await fleet.post(doors(fleet, OTHERS[0])[0], SESAME)).status == 200
    budget = all_tenants(fleet)[HOME].budget("team")
    await eventually(lambda: budget.left(fleet.replicas[HOME].sidecar.driver.now()) == 0)
    answers = await flood(fleet, 8, [*doors(fleet, 0, 1, 2), fleet.gateway.port])
    assert {answer.status for answer in answers} == {429}


async def test_headers_tell_what_is_left_in_the_fleet(fleet: Fleet) -> None:
    await limited(fleet, LONG)
    holders = await held(fleet, doors(fleet, HOME, HOME))
    fleet.engines[0].profile = fleet.engines[1].profile = fleet.engines[2].profile = Profile()
    for port in (fleet.gateway.port, *doors(fleet, OTHERS[0])):
        answer = await fleet.post(port, SESAME)
        assert answer.headers.getall("x-ratelimit-limit-requests") == [str(LIMIT)]
        assert answer.headers.getall("x-ratelimit-remaining-requests") == ["1"]
        await eventually(lambda: left(fleet) == LIMIT - 2)
    await leave(holders)


async def test_what_a_gateway_let_wait_uncounted_is_counted_where_it_goes(fleet: Fleet) -> None:
    await limited(fleet, LONG)
    for at, engine in enumerate(fleet.engines):
        engine.healthy = False
        await eventually(lambda at=at: not fleet.replicas[at].sidecar.monitor.up)  # type: ignore[misc]
    for house in fleet.houses[:3]:  # no replica is in reach of the gateway
        house.policies(fleet.document(document(key="ab" * 32)))
    await eventually(lambda: fleet.gateway.peers.seen()[0] == frozenset())
    tasks = [asyncio.create_task(fleet.post(fleet.gateway.port, SESAME)) for _ in range(LIMIT + 1)]
    driver = fleet.gateway.parts.driver
    await eventually(lambda: len(driver.waiting()) == LIMIT)
    fleet.tell(document())
    for engine in fleet.engines:
        engine.healthy = True
    await eventually(lambda: sum(fleet.running) == LIMIT)
    await eventually(lambda: left(fleet) == 0)
    await leave(tasks)
    await eventually(lambda: left(fleet) == LIMIT)


async def test_the_first_of_several_replicas_tells_what_it_had_before_them(fleet: Fleet) -> None:
    alone = OTHERS[0]
    only = fleet.document(document())
    peers = tuple(one for one in only.peers if one.name == f"r{alone}")
    for engine in fleet.engines:
        engine.profile = LONG
    fleet.houses[alone].policies(replace_peers(only, peers))
    tenants = all_tenants(fleet)[alone]
    await eventually(lambda: "team" in tenants.policies)
    holders = [
        asyncio.create_task(fleet.post(port, SESAME, stream=True))
        for port in doors(fleet, *[alone] * LIMIT)
    ]
    await eventually(lambda: sum(fleet.running) == LIMIT)
    await limited(fleet, LONG)
    await eventually(lambda: left(fleet) == 0)
    assert {answer.status for answer in await flood(fleet, 4, doors(fleet, 0, 1, 2))} == {429}
    await leave(holders)
    await eventually(lambda: left(fleet) == LIMIT)


# ---- when the home is not there


async def test_a_home_that_dies_is_replaced(fleet: Fleet) -> None:
    await limited(fleet)
    ports = [*doors(fleet, *OTHERS), fleet.gateway.port]
    async with watched(fleet, *OTHERS) as peak:
        running = asyncio.create_task(flood(fleet, 12, ports))
        await eventually(lambda: sum(fleet.running) == LIMIT)
        await fleet.end(HOME)
        answers = [await flood(fleet, 12, ports)]
        answers.append(await running)
    assert {answer.status for each in answers for answer in each} <= {200, 429}
    assert peak.most <= LIMIT
    await eventually(lambda: left(fleet, OTHERS[0]) == LIMIT)
    again = await flood(fleet, LIMIT, ports)
    assert {answer.status for answer in again} == {200}


async def test_a_home_that_drains_lets_nobody_have_more(fleet: Fleet) -> None:
    await limited(fleet)
    ports = [*doors(fleet, *OTHERS), fleet.gateway.port]
    async with watched(fleet, 0, 1, 2) as peak:
        running = asyncio.create_task(flood(fleet, 12, ports))
        await eventually(lambda: sum(fleet.running) == LIMIT)
        drain = asyncio.create_task(fleet.replicas[HOME].sidecar.drain.run())
        answers = [await flood(fleet, 12, ports), await running]
        await drain
        await fleet.end(HOME)
        await eventually(lambda: left(fleet, OTHERS[0]) == LIMIT)
        answers.append(await flood(fleet, 12, ports))
    assert {answer.status for each in answers for answer in each} == {200, 429}
    assert peak.most == LIMIT


async def test_cut_off_from_the_others_a_replica_lets_in_its_part(fleet: Fleet) -> None:
    await limited(fleet, LONG)
    known = fleet.houses[HOME]
    told = fleet.document(document())
    # As a partition looks to both sides: neither says anything to the other.
    known.policies(fleet.document(document(key="ab" * 32)))
    await eventually(lambda: usable(fleet, HOME) == [0] and usable(fleet, *OTHERS) == [1, 1])
    part = part_of(LIMIT, [f"r{at}" for at in (HOME, *OTHERS)], f"r{HOME}")
    alone = [
        asyncio.create_task(fleet.post(port, SESAME, stream=True))
        for port in doors(fleet, *[HOME] * LIMIT)
    ]
    rest = [
        asyncio.create_task(fleet.post(port, SESAME, stream=True))
        for port in [*doors(fleet, *OTHERS), fleet.gateway.port] * 2
    ]
    await eventually(lambda: fleet.running[HOME] == part)
    await eventually(lambda: sum(fleet.running) == LIMIT)
    await eventually(lambda: sum(task.done() for task in alone) == LIMIT - part)
    await eventually(lambda: sum(task.done() for task in rest) == len(rest) - (LIMIT - part))
    assert sum(fleet.running) == LIMIT
    known.policies(told)
    await fleet.until_known()
    await eventually(lambda: left(fleet) == 0)
    await leave([*alone, *rest])
    await eventually(lambda: left(fleet) == LIMIT)
