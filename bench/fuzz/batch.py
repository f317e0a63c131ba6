"""One batch: clients, engine and operator around a sidecar, and the judgement."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from bench.fuzz.clients import Client
from bench.fuzz.engine import Engine
from bench.fuzz.network import SimulatedLoop
from bench.fuzz.subject import API_PORT, SidecarSubject, Subject
from weir_core.sched import audit

CLIENTS: Final = 110
"""Of one batch; they send about 200 requests."""
DISTURBANCES: Final = 20
_SPAN_S: Final = 6.0
"""All clients and disturbances begin in this time."""
_CALM_S: Final = 9.0
"""After this the engine is well."""
_PATIENCE_S: Final = 120.0
"""After this everything has to be over: it is more than all timeouts together."""
_AUDIT_S: Final = 0.25
_COLLECT_EVERY: Final = 16
"""Batches between two runs of the garbage collector, which finds tasks whose end nobody saw."""


@dataclass
class Batch:
    """What one batch was, and what was found.

    Attributes:
        seed: Of the run.
        number: Of the batch; seed and number say everything about it.
        only: The numbers of the clients and disturbances that take part; None is all.
        inputs: Requests of which a client sent something.
    """

    seed: int
    number: int
    only: Collection[int] | None = None
    inputs: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def run(self, scratch: Path) -> None:
        """Play the batch to its end, and judge it."""
        log = _Log(self.faults)
        root = logging.getLogger()
        root.addHandler(log)
        try:
            with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
                loop = runner.get_loop()
                assert isinstance(loop, SimulatedLoop)
                loop.set_exception_handler(log.take_failure)
                runner.run(self._play(loop, scratch))
            if self.number % _COLLECT_EVERY == 0:
                gc.collect()
        finally:
            root.removeHandler(log)

    async def _play(self, loop: SimulatedLoop, scratch: Path) -> None:
        rng = self._rng("settings")
        engine = Engine(loop, self._rng("engine"))
        loop.connect = engine.connect
        subject = SidecarSubject(loop, engine, rng, scratch)
        async with subject.running():
            await asyncio.sleep(0.1)
            subject.begin()
            clients = self._begin(loop, subject)
            await self._until_over(subject, clients)
            self.faults += [f"a task is left: {task}" for task in await subject.lasting_tasks()]
            self._judge(subject, clients)
        await asyncio.sleep(_AUDIT_S)
        if engine.lines:
            self.faults.append(f"{len(engine.lines)} engine connections are left open")

    def _rng(self, of: object) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}/{of}")

    def _begin(self, loop: SimulatedLoop, subject: Subject) -> list[Client]:
        """Let clients and disturbances begin, half of them in a few bursts."""
        clients: list[Client] = []
        server = loop.servers[API_PORT]

        def connect(rng: random.Random) -> None:
            clients.append(Client(rng, loop, server))

        for number in range(CLIENTS + DISTURBANCES):
            if self.only is None or number in self.only:
                rng = self._rng(number)
                begin = connect if number < CLIENTS else subject.disturb
                at_s = rng.random() * _SPAN_S
                loop.call_later(at_s if number % 2 else int(at_s), begin, rng)
        return clients

    async def _until_over(self, subject: Subject, clients: list[Client]) -> None:
        loop, engine = subject.loop, subject.engine
        began = loop.time()
        while (passed_s := loop.time() - began) < _PATIENCE_S:
            await asyncio.sleep(_AUDIT_S)
            if passed_s > _CALM_S:
                engine.calm, engine.state = True, "up"
                if subject.is_quiet and all(client.is_gone for client in clients):
                    return
            if subject.scheduler is not None:
                self.faults += audit.violations(subject.scheduler, [], loop.time())

    def _judge(self, subject: Subject, clients: list[Client]) -> None:
        faults = self.faults
        faults += subject.engine.faults
        faults += subject.left_behind()
        for client in clients:
            self.inputs += client.begun
            faults += client.faults(subject.engine.answers, may_close=subject.is_drained)
            if not client.is_gone:
                faults.append("a connection has not ended")
        self.outcomes = subject.outcomes()
        counted = sum(self.outcomes.values())
        if counted != subject.handled:
            faults.append(f"{subject.handled} requests, {counted} outcomes: {self.outcomes}")
        if subject.wrongly_gone:
            faults.append(f"{subject.wrongly_gone} clients that had not left are client_gone")
        if "internal_error" in self.outcomes:
            faults.append(f"{self.outcomes['internal_error']} outcomes are internal_error")


class _Log(logging.Handler):
    """Turns exceptions in logs and in the loop into faults."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record."""
        error = record.exc_info[1] if record.exc_info else None
        # aiohttp's line for a body that breaks after its answer; the sidecar has it off.
        if error is not None and not isinstance(error, web.RequestPayloadError):
            self._faults.append(f"{record.getMessage()}: {self.formatted(record)}")

    def formatted(self, record: logging.LogRecord) -> str:
        """Return the traceback of a record."""
        return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""

    def take_failure(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what failed in a callback or in a task whose end nobody saw."""
        error = context.get("exception")
        self._faults.append(f"{context['message']}: {error!r}")
        if error is not None:
            lines = logging.Formatter().formatException((type(error), error, error.__traceback__))
            self._faults.append(lines)
