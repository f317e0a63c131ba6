"""A host of the fuzz: a sidecar with its engine, or a gateway, whose processes come and go."""

from __future__ import annotations

import contextlib
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path

from opentelemetry.sdk.resources import Resource

from bench.fuzz import policies
from bench.fuzz.engine import Engine
from bench.fuzz.network import HOST, Listening, SimulatedLoop
from bench.fuzz.process import Process
from weir_core.wire.policies import PeerEntry
from weir_core.wire.steps import Step, encode_step
from weir_sidecar.app import Sidecar
from weir_sidecar.gateway import Gateway
from weir_sidecar.telemetry.otlp_json import JsonExporter
from weir_sidecar.telemetry.request_trace import Tracing


class Host(ABC):
    """One host, which runs one process after the other.

    Args:
        loop: The simulated loop.
        name: Of the sidecar.
        address: Of the host.
        rng: Draws settings, and what the sidecar would draw.
        folder: For its files.
    """

    def __init__(
        self, loop: SimulatedLoop, name: str, address: str, rng: random.Random, folder: Path
    ) -> None:
        self.loop = loop
        self.name = name
        self.address = address
        self.rng = rng
        self.settings = policies.settings(rng, name, address, folder)
        self.processes: list[Process] = []
        self.runs = False
        self.context = copy_context()
        self.context.run(HOST.set, address)
        self._stack = contextlib.AsyncExitStack()

    @property
    def process(self) -> Process:
        """The present process, or the last one."""
        return self.processes[-1]

    @property
    def entry(self) -> PeerEntry:
        """What a document says of it."""
        return PeerEntry(self.name, f"{self.address}:{policies.PEER_PORT}")

    @property
    def door(self) -> Listening | None:
        """Where clients connect, while it listens."""
        return self.loop.server(self.address, policies.API_PORT) if self.runs else None

    @abstractmethod
    def _app(self) -> Sidecar | Gateway:
        """Return a new process."""

    async def start(self) -> None:
        """Begin another process."""
        await self.loop.create_task(self._start(), context=self.context)

    async def _start(self) -> None:
        self.loop.dead.discard(self.address)
        app = self._app()
        peers, routing = app.parts.peers, app.parts.routing
        peers._heartbeats._rng = random.Random(self.rng.random())
        peers._known._rng = random.Random(self.rng.random())
        routing._rng = random.Random(self.rng.random())
        peers.own.epoch = 1000 + len(self.processes)  # else it is the time outside
        self._stack = contextlib.AsyncExitStack()
        await self._stack.enter_async_context(app.running())
        api = self.loop.servers[self.address, policies.API_PORT]
        self.processes.append(Process(self.loop, app, api))
        self.runs = True

    async def stop(self) -> None:
        """End the process, as its own end does."""
        self.runs = False
        self.process.leaves = True
        await self.loop.create_task(self._stack.aclose(), context=self.context)

    async def kill(self) -> None:
        """End it as a signal does that it cannot handle: its connections are reset."""
        self.loop.dead.add(self.address)
        self.process.leaves = True
        self.context.copy().run(self.process.parts.peers.close)
        for link in list(self.loop.links):
            if self.address in link.hosts:
                link.reset()
        for (address, _), listening in self.loop.servers.items():
            if address == self.address:
                listening.close()
                for wire in listening.wires:
                    wire.reset()
        await self.stop()

    def drain(self) -> None:
        """Begin to drain."""
        self.process.leaves = True
        self.context.copy().run(self.process.app.drain.begin)

    def left(self) -> Iterator[str]:
        """Yield what must not be left at this host when nothing is in flight."""
        for process in self.processes:
            yield from process.wrong()


class GatewayHost(Host):
    """A gateway."""

    def _app(self) -> Gateway:
        return Gateway(self.settings, (self.address, policies.API_PORT), self.loop.time)


class Replica(Host):
    """A sidecar and its engine."""

    def __init__(
        self, loop: SimulatedLoop, name: str, address: str, rng: random.Random, folder: Path
    ) -> None:
        super().__init__(loop, name, address, rng, folder)
        self.engine = Engine(loop, random.Random(rng.random()))
        self.engine.on_request = self._note_request
        loop.engines[str(self.settings.addresses.engine_socket)] = self.engine.connect
        self._steps = 0
        self._traces = rng.random() < 0.2
        policies.write_facts(rng, self.settings)

    def _app(self) -> Sidecar:
        exporter = JsonExporter("http://127.0.0.1:9", {}, 1.0, Resource({}))
        return Sidecar(self.settings, self.loop.time, Tracing(exporter) if self._traces else None)

    async def kill(self) -> None:
        """End it as a signal does that it cannot handle: its connections are reset."""
        self.engine.break_all()
        await super().kill()

    def left(self) -> Iterator[str]:
        """Yield what must not be left at this host when nothing is in flight."""
        yield from super().left()
        yield from self.engine.faults
        app = self.process.app
        if self.runs and isinstance(app, Sidecar):
            lines = sum(not line.is_probe for line in self.engine.lines)
            busy = lines - app.connections.idle_count
            if busy:
                yield f"{self.name}: engine connections: {busy} left"

    # What happens to the engine.

    def trouble(self, rng: random.Random) -> None:
        """Let the engine go, fall ill or fall silent, for a while."""
        engine = self.engine
        if engine.calm:
            return
        engine.state = rng.choice(("gone", "ill", "mute"))
        if engine.state == "gone":
            engine.break_all()
        self.loop.call_later(rng.choice((0.1, 1.0, 3.0)), self._recover, rng)

    def _recover(self, rng: random.Random) -> None:
        policies.write_facts(rng, self.settings)
        self.engine.state = "up"

    def _note_request(self, wire_id: str) -> None:
        self.engine.wire_ids.append(wire_id)
        if self.rng.random() < 0.4:
            delay_s = self.rng.choice((0.0, 0.01, 1.0))
            self.loop.call_later(delay_s, self.step, self.rng, (wire_id,))

    def step(self, rng: random.Random, started: tuple[str, ...] = ()) -> None:
        """Send a record of the step log."""
        if not self.runs:
            return
        started = started or ("unknown", "same", rng.choice(self.engine.wire_ids))
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
