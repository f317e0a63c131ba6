"""One batch: clients, engines and operator around a sidecar or a fleet, and the judgement."""

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

from bench.fuzz.fleet import FleetSubject
from bench.fuzz.network import SimulatedLoop
from bench.fuzz.subject import SidecarSubject, Subject

SUBJECTS: Final[dict[str, type[Subject]]] = {"sidecar": SidecarSubject, "fleet": FleetSubject}
_FLEETS: Final = 0.3
"""Batches that fuzz a fleet."""
_SPAN_S: Final = 6.0
"""All clients and disturbances begin in this time."""
_CALM_S: Final = 9.0
"""After this the engines are well."""
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
        kind: What is fuzzed, of `SUBJECTS`; empty draws it.
        inputs: Requests of which a client sent something.
    """

    seed: int
    number: int
    only: Collection[int] | None = None
    kind: str = ""
    inputs: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Draw what was left open."""
        self.kind = self.kind or ("fleet" if self._rng("kind").random() < _FLEETS else "sidecar")

    @property
    def parts(self) -> int:
        """Number of clients and disturbances together."""
        kind = SUBJECTS[self.kind]
        return kind.CLIENTS + kind.DISTURBANCES

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
        loop.rng = self._rng("network")
        subject = SUBJECTS[self.kind](loop, self._rng("settings"), scratch)
        async with subject.running():
            await asyncio.sleep(0.1)
            self._begin(loop, subject)
            await self._until_over(subject)
            await subject.settle()
            self._judge(subject)
        await asyncio.sleep(_AUDIT_S)
        lines = sum(len(replica.engine.lines) for replica in subject.replicas)
        if lines or loop.links:
            self.faults.append(f"{lines + len(loop.links)} connections are left open")
        left = asyncio.all_tasks() - {asyncio.current_task()}
        self.faults += [f"a task is left at the end: {task}" for task in left]

    def _rng(self, of: object) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}/{of}")

    def _begin(self, loop: SimulatedLoop, subject: Subject) -> None:
        """Let clients and disturbances begin, half of them in a few bursts."""
        for number in range(self.parts):
            if self.only is None or number in self.only:
                begin = subject.connect if number < subject.CLIENTS else subject.disturb
                rng = self._rng(number)
                at_s = rng.random() * _SPAN_S
                loop.call_later(at_s if number % 2 else int(at_s), begin, rng)

    async def _until_over(self, subject: Subject) -> None:
        loop, is_calm = subject.loop, False
        began = loop.time()
        while (passed_s := loop.time() - began) < _PATIENCE_S:
            await asyncio.sleep(_AUDIT_S)
            if passed_s > _CALM_S:
                if not is_calm:
                    is_calm = True
                    subject.calm()
                if subject.is_quiet and all(client.is_gone for client, _ in subject.clients):
                    return
            subject.audit()

    def _judge(self, subject: Subject) -> None:
        self.inputs = sum(client.begun for client, _ in subject.clients)
        self.faults += subject.wrong()
        self.outcomes = subject.outcomes()


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
