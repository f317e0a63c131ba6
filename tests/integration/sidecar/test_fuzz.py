"""A short run of the fuzz (`python -m bench.fuzz`): nothing fails, nothing is left behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.fuzz.batch import Batch
from bench.fuzz.engine import kind_of
from bench.fuzz.fleet import FleetSubject
from bench.fuzz.network import Recorder, SimulatedLoop
from weir_core.route.router import HOP_LIMIT
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.protocol import HttpRequest
from weir_sidecar.outcomes import Outcome

RARE = {Outcome.INTERNAL_ERROR, Outcome.CUT}
"""Outcomes that so few batches need not bring."""


@pytest.mark.parametrize(
    ("kind", "batches", "least_inputs"),
    [pytest.param("sidecar", 24, 3000, id="sidecar"), pytest.param("fleet", 5, 1500, id="fleet")],
)
def test_nothing_that_clients_and_engines_do_fails_or_is_left_behind(
    kind: str, batches: int, least_inputs: int, run_dir: Path
) -> None:
    outcomes = Counter[str]()
    inputs = 0
    for number in range(batches):
        batch = Batch(seed=12, number=number, kind=kind)
        batch.run(run_dir)
        assert batch.faults == [], f"python -m bench.fuzz --seed 12 --batch {number} --kind {kind}"
        inputs += batch.inputs
        outcomes.update(batch.outcomes)
    assert inputs > least_inputs
    assert {outcome.value for outcome in set(Outcome) - RARE} <= set(outcomes)


@pytest.mark.parametrize("kind", ["sidecar", "fleet"])
def test_a_batch_repeats_itself(kind: str, run_dir: Path) -> None:
    batches = [Batch(seed=3, number=1, only=range(0, 290, 3), kind=kind) for _ in range(2)]
    for batch in batches:
        batch.run(run_dir)
    assert batches[0].inputs == batches[1].inputs
    assert batches[0].outcomes == batches[1].outcomes


def test_a_look_up_at_a_replica_that_is_cut_off_is_made_at_another(run_dir: Path) -> None:
    silent = next(script for script in range(1000) if kind_of(script) == "silent")

    async def look_up(loop: SimulatedLoop) -> bytes:
        subject = FleetSubject(loop, random.Random(1), run_dir)
        loop.calm = True
        client = Recorder()
        async with subject.running():
            await asyncio.sleep(1.0)
            door = subject.gateway.door
            assert door is not None
            wire = door.connect(client)
            wire.begin()
            asked = b"GET /v1/models HTTP/1.1\r\nHost: weir\r\nx-fuzz: %d\r\n" % silent
            wire.deliver(asked + b"Authorization: Bearer sk-ada\r\n\r\n")
            await asyncio.sleep(0.5)
            for replica in subject.replicas:
                if any(line.carries(silent) for line in replica.engine.lines):
                    loop.cut_off.add(replica.address)
                replica.engine.calm = True
            assert len(loop.cut_off) == 1
            await asyncio.sleep(6.0)  # less than an answer's first byte may take
            loop.cut_off.clear()
        return client.received

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, SimulatedLoop)
        assert runner.run(look_up(loop)).startswith(b"HTTP/1.1 200 ")


class Refusals:
    """Replicas that refuse the first requests they get, and one that is lost with the last."""

    def __init__(self, subject: FleetSubject) -> None:
        self.by: list[str] = []
        """Which replicas have refused."""
        self._gateway = subject.gateway.process
        for replica in subject.replicas:
            replica.engine.calm = True
            requests = replica.process.parts.peer_port._requests
            requests._forwarded = self._refusing(replica.name, requests._forwarded)
        subject.loop.after_turn = self._lose_the_last

    def _refusing(
        self, replica: str, handle: Callable[[HttpRequest, str], None]
    ) -> Callable[[HttpRequest, str], None]:
        def answer(http: HttpRequest, sender: str) -> None:
            if len(self.by) == HOP_LIMIT:
                handle(http, sender)
                return
            self.by.append(replica)
            headers = {"x-weir-returned": "refused", "retry-after": "1"}
            http.answer(Answer(429, b"no", headers=headers))

        return answer

    def _lose_the_last(self) -> None:
        """Lose the replica after its refusal has come, and before anything was made of it."""
        if len(self.by) == HOP_LIMIT:
            for request in self._gateway.parts.registry.away_at(self.by[-1]):
                if request.exchange is not None and request.exchange.held:
                    request.reroute()


def test_a_refusal_whose_replica_is_lost_before_it_is_judged_is_no_answer(run_dir: Path) -> None:
    async def ask(loop: SimulatedLoop) -> bytes:
        subject = FleetSubject(loop, random.Random(1), run_dir)
        loop.calm = True
        client, body = Recorder(), b'{"model": "m", "prompt": "x"}'
        async with subject.running():
            await asyncio.sleep(1.0)
            refusals = Refusals(subject)
            assert subject.gateway.door is not None
            wire = subject.gateway.door.connect(client)
            wire.begin()
            wire.deliver(
                b"POST /v1/completions HTTP/1.1\r\nHost: weir\r\n"
                b"Authorization: Bearer sk-ada\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            await asyncio.sleep(5.0)
        assert len(refusals.by) == HOP_LIMIT
        return client.received

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, SimulatedLoop)
        assert runner.run(ask(loop)).startswith(b"HTTP/1.1 200 ")
