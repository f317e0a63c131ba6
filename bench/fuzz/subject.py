"""What is fuzzed: a whole sidecar, as it runs in production."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from opentelemetry.sdk.resources import Resource

from bench.fuzz import requests
from bench.fuzz.engine import Engine
from bench.fuzz.network import SimulatedLoop, Wire
from weir_core.sched.scheduler import Scheduler
from weir_core.sched.types import BUILT_IN_CLASSES, ClassPolicy, TenantPolicy
from weir_core.wire.cors import Cors
from weir_core.wire.policies import PolicyDocument, TenantEntry
from weir_core.wire.steps import Facts, Step, encode_step
from weir_sidecar.app import Sidecar
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.protocol import HttpRequest, HttpServer
from weir_sidecar.inflight import InFlightRequest
from weir_sidecar.outcomes import Outcome
from weir_sidecar.registry import Registry
from weir_sidecar.settings import (
    Addresses,
    Draining,
    Health,
    Limits,
    Policies,
    Settings,
    Timeouts,
    Tokenizing,
)
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.telemetry.otlp_json import JsonExporter
from weir_sidecar.telemetry.request_trace import Tracing

API_PORT: Final = 8000
_ADMIN_PORT: Final = 8001
_LIMITS: Final = Limits(
    max_body_bytes=256 << 10,
    max_headers=200,
    max_header_bytes=16 << 10,
    max_requests=12,
    idle_connections=8,
    unscheduled=6,
    unscheduled_per_tenant=3,
)
_TIMEOUTS: Final = Timeouts(
    first_byte_s=8.0, progress_s=5.0, upload_s=4.0, slow_client_s=4.0, client_idle_s=6.0, head_s=3.0
)
_DRAINING: Final = Draining(grace_period_s=6.0, lame_duck_s=1.0, margin_s=1.0)
_GOLD: Final = ClassPolicy(
    "gold", rank=7, preemptible=True, min_share=0.3, ttft_target_s=0.5, max_queue_wait_s=3.0
)
_CLASSES: Final = ((), (), (*BUILT_IN_CLASSES, _GOLD), (BUILT_IN_CLASSES[1], _GOLD))
_BROKEN_DOCUMENTS: Final = (
    b"", b"{", b'{"classes":[{"name":"a"}]}', b'{"default_class":"none"}', b"\xff", b"[]",
)  # fmt: skip
_DIRECT: Final = frozenset({"/health"})
"""Paths that are answered without an outcome."""
_LONGEST_PROBE_S: Final = 8.0
"""5 s to connect and 2 s to answer, and a little more."""


class Subject(ABC):
    """What is fuzzed, with its engine, and what disturbs it.

    Args:
        loop: The simulated loop.
        engine: What answers.
        rng: Draws the settings.
        scratch: A folder for files and sockets.
    """

    registry: Registry
    metrics: Metrics

    def __init__(
        self, loop: SimulatedLoop, engine: Engine, rng: random.Random, scratch: Path
    ) -> None:
        self.loop = loop
        self.engine = engine
        self.scratch = scratch
        self.handled = 0
        """Requests that must have an outcome."""
        self.wrongly_gone = 0
        """Requests that ended as `client_gone` although their clients were there."""
        self._running: list[tuple[InFlightRequest, Wire]] = []
        self.is_drained = False
        """A drain has begun."""
        self._known: set[asyncio.Task[Any]] = set()
        self.settings = Settings(
            addresses=Addresses(
                rng.choice(("127.0.0.1", "0.0.0.0")), API_PORT, _ADMIN_PORT, scratch
            ),
            limits=replace(_LIMITS, max_held_bytes=rng.choice((64 << 10, 1 << 20))),
            timeouts=_TIMEOUTS,
            health=Health(poll_s=1.0, timeout_s=1.0, stall_s=rng.choice((4.0, 60.0))),
            draining=_DRAINING,
            tokenizing=Tokenizing(min_bytes=2048, timeout_s=0.5, at_once=2),
            policies=Policies(scratch / "policies", poll_s=0.5),
            cors=Cors(origins=rng.choice(((), ("*",), ("https://page",)))),
        )

    @abstractmethod
    def running(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """Run it while the context is open."""

    @abstractmethod
    def disturb(self, rng: random.Random) -> None:
        """Let something happen that no client does."""

    @property
    def scheduler(self) -> Scheduler | None:
        """The scheduling core."""
        return None

    @property
    def server(self) -> HttpServer:
        """The server of the API port."""
        server = self.loop.servers[API_PORT].factory
        assert isinstance(server, HttpServer)
        return server

    def begin(self, direct: frozenset[str] = _DIRECT) -> None:
        """Begin to count, once everything runs."""
        self._known = asyncio.all_tasks()
        server = self.server
        handle, refuse_unread = server.handle, server.refuse_unread

        def counted(request: HttpRequest) -> None:
            head = request.head
            is_preflight = (
                head.method == "OPTIONS"
                and head.origin is not None
                and head.header(b"access-control-request-method") is not None
            )
            self.handled += not is_preflight and head.raw_path not in direct
            wire = request.connection.transport
            handle(request)
            if isinstance(request.owner, InFlightRequest) and isinstance(wire, Wire):
                self._running.append((request.owner, wire))

        def counted_unread(error: Any) -> Answer:
            self.handled += 1
            return refuse_unread(error)

        server.handle = counted
        server.refuse_unread = counted_unread
        self.loop.after_turn = self._check_gone

    def _check_gone(self) -> None:
        """Note requests that have just ended as `client_gone` although their clients are there."""
        for request, wire in self._running:
            if request.outcome is Outcome.CLIENT_GONE and not wire.peer_failed:
                self.wrongly_gone += 1
        self._running = [each for each in self._running if each[0].outcome is None]

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight."""
        return not len(self.registry) and not self.server.connections

    def outcomes(self) -> dict[str, int]:
        """How many requests ended in each way."""
        return {name: count for name, count in self.metrics.outcomes().items() if count}

    def left_behind(self) -> Iterator[str]:
        """Yield what is still held although nothing is in flight."""
        memory = self.registry.memory
        books = {
            "requests": len(self.registry),
            "connections": len(self.server.connections),
            "bytes of heads": self.server.unread_bytes,
            "bytes of bodies": memory.held_bytes,
            "bytes of ranks": sum(map(abs, memory._by_rank.values())),
            "bytes of payers": len(memory._by_payer),
            **self.books(),
        }
        yield from (f"{name}: {count} left" for name, count in books.items() if count)

    async def lasting_tasks(self) -> list[str]:
        """Return the tasks that last longer than any probe may, in words."""
        tasks = asyncio.all_tasks() - self._known
        if tasks:
            await asyncio.sleep(_LONGEST_PROBE_S)
        # That of the exporter of spans begins with the first request.
        return [repr(task) for task in tasks if not task.done() and task.get_name() != "spans"]

    @abstractmethod
    def books(self) -> dict[str, int]:
        """Return what has to be 0 in the end, by name."""


class SidecarSubject(Subject):
    """A replica's sidecar."""

    def __init__(
        self, loop: SimulatedLoop, engine: Engine, rng: random.Random, scratch: Path
    ) -> None:
        super().__init__(loop, engine, rng, scratch)
        self._rng = rng
        self._policies(rng, first=True)
        self._facts(rng)
        engine.on_request = self._note_request
        exporter = JsonExporter("http://127.0.0.1:9", {}, 1.0, Resource({}))
        tracing = Tracing(exporter) if rng.random() < 0.2 else None
        self.sidecar = Sidecar(self.settings, loop.time, tracing)
        self.registry, self.metrics = self.sidecar.registry, self.sidecar.metrics
        self._steps = 0
        self._may_drain = rng.random() < 0.15

    def running(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """Run it while the context is open."""
        return self.sidecar.running()

    @property
    def scheduler(self) -> Scheduler | None:
        """The scheduling core."""
        return self.sidecar.driver.scheduler

    def books(self) -> dict[str, int]:
        """Return what has to be 0 in the end, by name."""
        driver, scheduler = self.sidecar.driver, self.sidecar.driver.scheduler
        load, unscheduled = scheduler.engine_load, driver._unscheduled
        return {
            "requests of the driver": len(driver._requests),
            "ids at the engine": len(driver._by_wire_id),
            "tickets": len(scheduler.tickets),
            "running": load.running,
            "slots": load.slots,
            "KV tokens": load.kv_tokens,
            "prompt tokens": load.prefill_of_all(),
            "waiting": scheduler.pool.requests,
            "waiting bytes": scheduler.pool.body_bytes,
            "in flight of tenants": len(scheduler.tenants._in_flight),
            "unscheduled": unscheduled._running,
            "unscheduled of tenants": len(unscheduled._by_payer),
            "engine connections": len(self.engine.lines) - self.sidecar.connections.idle_count,
        }

    # What happens meanwhile.

    def disturb(self, rng: random.Random) -> None:
        """Let something happen that no client does."""
        chance = rng.random()
        if chance < 0.35:
            self._policies(rng)
        elif chance < 0.5:
            self._trouble(rng)
        elif chance < 0.8:
            self._step(rng, ("unknown", "same", rng.choice(self.engine.wire_ids)))
        elif chance < 0.97:
            _Look(self.loop, rng)
        elif self._may_drain:
            self.is_drained = True
            self.sidecar.drain.begin()

    def _trouble(self, rng: random.Random) -> None:
        engine = self.engine
        if engine.calm:
            return
        engine.state = rng.choice(("gone", "ill", "mute"))
        if engine.state == "gone":
            engine.break_all()
        self.loop.call_later(rng.choice((0.1, 1.0, 3.0)), self._recover, rng)

    def _recover(self, rng: random.Random) -> None:
        self._facts(rng)
        self.engine.state = "up"

    def _facts(self, rng: random.Random) -> None:
        path = self.scratch / "engine.json"
        chance = rng.random()
        if chance < 0.1:
            path.unlink(missing_ok=True)
            return
        facts = Facts(
            rng.choice(("weir", "priority", "fcfs")),
            rng.choice((1, 2, 4, 16)),
            rng.choice((64, 2048)),
            rng.choice((0, 300, 5000, 100_000)),
        )
        path.write_bytes(b"{broken" if chance < 0.15 else facts.encode())

    def _policies(self, rng: random.Random, *, first: bool = False) -> None:
        folder = self.settings.policies.directory
        folder.mkdir(exist_ok=True)
        if not first and rng.random() < 0.2:
            written = rng.choice(_BROKEN_DOCUMENTS)
        else:
            written = _document(rng).encode()
        new = folder / "new"
        new.write_bytes(written)
        new.rename(self.settings.policies.file)

    def _note_request(self, wire_id: str) -> None:
        self.engine.wire_ids.append(wire_id)
        if self._rng.random() < 0.4:
            delay_s = self._rng.choice((0.0, 0.01, 1.0))
            self.loop.call_later(delay_s, self._step, self._rng, (wire_id,))

    def _step(self, rng: random.Random, started: tuple[str, ...]) -> None:
        """Send a record of the step log."""
        if not self.loop.readers:  # the sidecar has ended
            return
        self._steps += rng.choice((1, 1, 1, 5))
        step = Step(
            self._steps,
            rng.choice((0.0, 0.005, 0.05, 3.0)),
            prefill_tokens=rng.choice((0, 10, 2048, 10**9)),
            decodes=rng.choice((0, 1, 64)),
            started=started,
            engine=rng.choice((0, 0, 1)),
            mode=rng.choice(("", "latency")),
        )
        record = encode_step(step) if rng.random() < 0.97 else b"\xff\x00garbage"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as writer:
            writer.sendto(record, str(self.settings.addresses.steps_socket))
        for read in list(self.loop.readers.values()):
            read()


class _Look:
    """A look at a page of the admin port."""

    def __init__(self, loop: SimulatedLoop, rng: random.Random) -> None:
        page = rng.choice((b"/metrics", b"/state", b"/readyz", b"/healthz", b"/enginez"))
        protocol = loop.servers[_ADMIN_PORT].factory()
        wire = Wire(loop, protocol, self)
        protocol.connection_made(wire)
        wire.deliver(b"GET %b HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n" % page)

    def took(self, piece: bytes) -> None:
        """Take bytes of the page."""
        assert not piece.startswith(b"HTTP/1.1 500"), piece

    def closed(self) -> None:
        """Hear that the connection is gone."""


def _document(rng: random.Random) -> PolicyDocument:
    """Return classes, tenants and switches that a sidecar can work with."""
    classes = rng.choice(_CLASSES)
    names = [each.name for each in classes or BUILT_IN_CLASSES]
    tenants = []
    for name in requests.KEYS:
        if rng.random() < 0.95:
            policy = TenantPolicy(
                name,
                weight=rng.choice((1.0, 5.0)),
                max_requests=rng.choice((None, None, None, None, 1, 4)),
                tokens_per_minute=rng.choice((None, None, None, None, None, 2000)),
            )
            default, most = rng.choice(names), rng.choice(names)
            digest = requests.HASHES[name]
            tenants.append(TenantEntry(policy, default, most, name == "gate", (digest,)))
    return PolicyDocument(
        classes=classes,
        tenants=() if rng.random() < 0.1 else tuple(tenants),
        default_class=rng.choice(names),
        accepted_classes=() if rng.random() < 0.85 else (rng.choice(names),),
        anonymous_class=rng.choice((None, rng.choice(names))),
        keep_alive_s=rng.choice((None, None, 0.3)),
    )
