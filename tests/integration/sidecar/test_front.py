"""One address in front of several replicas."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.integration.sidecar.harness import PATIENT, Answer, House, Running, chat, eventually
from weir_sidecar.drain import Phase
from weir_sidecar.front import Front
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams import replicas as replicas_module
from weir_sidecar.upstreams.replicas import Address, Replica
from weir_sim.mock_engine import MockEngine, Profile

SLOW = Profile(output_tokens=50, token_gap_s=0.01)  # type: ignore[arg-type]


@dataclass
class Street:
    """A front, and the replicas behind it."""

    front: Front
    replicas: list[Running]
    engines: list[MockEngine]

    async def post(self, **fields: object) -> Answer:
        session = self.replicas[0].session
        url = f"http://127.0.0.1:{self.front.port}/v1/chat/completions"
        async with session.post(url, json=chat(**fields)) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def status(self, path: str) -> int:
        session = self.replicas[0].session
        async with session.get(f"http://127.0.0.1:{self.front.port}{path}") as response:
            return response.status

    def lose_all(self) -> None:
        """Let the front take every replica for lost."""
        for name in self.front.replicas.ready:
            self.front.replicas.lost(self.front.replicas.named(name))

    def served(self) -> list[int]:
        return [engine.finished for engine in self.engines]


@pytest.fixture
async def street(house: House) -> AsyncIterator[Street]:
    second = House(Path(tempfile.mkdtemp(prefix="weir-")), house.stack)
    house.stack.callback(shutil.rmtree, second.run_dir)  # first in, last out: after its engine
    houses = [house, second]
    engines = [await each.mock_engine(Profile()) for each in houses]
    replicas = [await each.sidecar() for each in houses]
    addresses = [
        Address("127.0.0.1", each.sidecar.api_port, each.sidecar.admin_port) for each in replicas
    ]
    async with Front(PATIENT, ("127.0.0.1", 0), addresses).running() as front:
        await eventually(lambda: len(front.replicas.ready) == 2)
        yield Street(front, replicas, engines)


async def test_equal_replicas_take_turns(street: Street) -> None:
    for _ in range(10):
        assert (await street.post()).status == 200
    assert street.served() == [5, 5]


async def test_health_of_the_front_is_whether_a_replica_is_ready(street: Street) -> None:
    assert await street.status("/health") == 200
    street.lose_all()
    assert await street.status("/health") == 503


async def test_what_the_front_refuses_is_in_its_own_metrics(street: Street) -> None:
    street.lose_all()
    assert (await street.post()).status == 503
    url = f"http://127.0.0.1:{street.front.port}/metrics"
    async with street.replicas[0].session.get(url) as response:
        page = await response.text()
    assert 'weir_requests_total{class="none",outcome="rejected_no_endpoints"} 1.0' in page


async def test_the_replica_with_fewer_outstanding_gets_the_next(street: Street) -> None:
    street.engines[0].profile = street.engines[1].profile = SLOW
    streams = [asyncio.create_task(street.post(stream=True)) for _ in range(10)]
    await eventually(lambda: [engine.running for engine in street.engines] == [5, 5])
    assert [(await stream).status for stream in streams] == [200] * 10


async def test_a_draining_replica_hands_its_request_on(street: Street) -> None:
    await street.replicas[0].sidecar.drain.run()
    assert [(await street.post()).status for _ in range(6)] == [200] * 6
    assert street.served() == [0, 6]


async def test_a_replica_that_refuses_one_request_stays_in_for_the_next(street: Street) -> None:
    street.replicas[0].sidecar.handler.refusing = True
    assert [(await street.post()).status for _ in range(2)] == [200] * 2
    assert len(street.front.replicas.ready) == 2
    assert street.served() == [0, 2]


async def test_a_replica_without_an_engine_hands_its_request_on(street: Street) -> None:
    street.engines[0].healthy = False
    await eventually(lambda: not street.replicas[0].sidecar.monitor.up)
    assert [(await street.post()).status for _ in range(6)] == [200] * 6


async def test_none_ready_is_503_with_retry_after(street: Street) -> None:
    assert await street.status("/readyz") == 200
    for replica in street.replicas:
        await replica.sidecar.drain.run()
    answers = [await street.post() for _ in range(3)]
    assert {answer.status for answer in answers} == {503}
    assert all(answer.headers["Retry-After"] for answer in answers)
    await eventually(lambda: not street.front.replicas.ready)
    assert [await street.status(path) for path in ("/readyz", "/healthz")] == [503, 200]


async def test_a_replica_that_is_late_to_answer_stays_in_until_the_third_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas_module, "PROBE_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        port = silent.getsockname()[1]
        late = Replica(
            Address("127.0.0.1", port, port), PATIENT, Metrics(CollectorRegistry()), time.monotonic
        )
        late.ready = True
        seen = []
        for _ in range(3):
            await late.probe()
            seen.append(late.ready)
    assert seen == [True, True, False]


async def test_streams_finish_when_the_front_drains(street: Street) -> None:
    slower = replace(SLOW, output_tokens=300)  # so that the first still runs when the last begins
    street.engines[0].profile = street.engines[1].profile = slower
    streams = [asyncio.create_task(street.post(stream=True)) for _ in range(4)]
    await eventually(lambda: sum(engine.running for engine in street.engines) == 4)
    await street.front.drain.run()
    assert street.front.drain.phase is Phase.DRAINED
    answers = await asyncio.gather(*streams)
    assert all(answer.body.endswith(b"data: [DONE]\n\n") for answer in answers)


async def test_paths_are_the_sidecars_to_close(street: Street) -> None:
    assert await street.status("/sleep") == 404
    assert await street.status("/v1/models") == 200
