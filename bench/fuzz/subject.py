"""What is fuzzed: a whole sidecar, or a fleet of them, as they run in production."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar, Final

from bench.fuzz import policies
from bench.fuzz.clients import Client
from bench.fuzz.network import SimulatedLoop
from bench.fuzz.process import Process
from bench.fuzz.replica import Host, Replica
from weir_core.sched import audit
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.state_access import authorization

_LONGEST_PROBE_S: Final = 8.0
"""5 s to connect and 2 s to answer, and a little more."""
_ROUNDING_S: Final = 1e-6
_LASTING: Final = frozenset({"monitor", "housekeeping", "names", "peers", "watch", "spans"})
"""Tasks that last as long as their process."""


class Subject(ABC):
    """What is fuzzed, with its engines, and what disturbs it.

    Args:
        loop: The simulated loop.
        rng: Draws the settings.
        scratch: A folder for files and sockets.
    """

    CLIENTS: ClassVar[int] = 110
    """Of one batch; they send about 170 requests."""
    DISTURBANCES: ClassVar[int] = 20

    def __init__(self, loop: SimulatedLoop, rng: random.Random, scratch: Path) -> None:
        self.loop = loop
        self.rng = rng
        self.scratch = scratch
        self.clients: list[tuple[Client, Process]] = []
        self._known: set[asyncio.Task[object]] = set()
        self.faults: list[str] = []

    @property
    @abstractmethod
    def hosts(self) -> list[Host]:
        """All hosts."""

    @property
    def replicas(self) -> list[Replica]:
        """Those with an engine."""
        return [host for host in self.hosts if isinstance(host, Replica)]

    @property
    def processes(self) -> list[Process]:
        """All that ever ran."""
        return [process for host in self.hosts for process in host.processes]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it while the context is open."""
        for host in self.hosts:
            await host.start()
        self._known = asyncio.all_tasks()
        self.loop.after_turn = self._look
        yield
        for host in self.hosts:
            if host.runs:
                await host.stop()
        self.loop.after_turn = None

    def _look(self) -> None:
        for host in self.hosts:
            host.process.check_gone()

    @abstractmethod
    def connect(self, rng: random.Random) -> None:
        """Let a client connect."""

    @abstractmethod
    def disturb(self, rng: random.Random) -> None:
        """Let something happen that no client does."""

    def calm(self) -> None:
        """Let all be well from now on, so that everything ends."""
        for replica in self.replicas:
            replica.engine.calm, replica.engine.state = True, "up"

    def audit(self) -> None:
        """Note what the schedulers break.

        Their timers may be a rounding later than what is due: in simulated time the audit can come
        at that very instant, and before them.
        """
        now = self.loop.time() - _ROUNDING_S
        for replica in self.replicas:
            scheduler = replica.process.parts.driver.scheduler
            self.faults += audit.violations(scheduler, [], now)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight."""
        return all(process.is_quiet for process in self.processes)

    async def settle(self) -> None:
        """Wait for what only time brings once nothing is in flight."""
        tasks = asyncio.all_tasks() - self._known
        if tasks:
            await asyncio.sleep(_LONGEST_PROBE_S)
        for task in tasks:
            if not task.done() and task.get_name() not in _LASTING:
                self.faults.append(f"a task is left: {task!r}")

    def outcomes(self) -> dict[str, int]:
        """How many requests ended in each way."""
        total = Counter[str]()
        for process in self.processes:
            total.update(process.outcomes())
        return total

    def answers(self) -> dict[int, set[bytes]]:
        """Return what engines answered to each script."""
        found: dict[int, set[bytes]] = {}
        for replica in self.replicas:
            for script, bodies in replica.engine.answers.items():
                found.setdefault(script, set()).update(bodies)
        return found

    def wrong(self) -> Iterator[str]:
        """Yield what is wrong once all is over."""
        yield from self.faults
        for host in self.hosts:
            yield from host.left()
        answers = self.answers()
        for client, process in self.clients:
            yield from client.faults(answers, may_close=process.leaves)
            if not client.is_gone:
                yield "a connection has not ended"


class SidecarSubject(Subject):
    """A replica's sidecar, alone."""

    def __init__(self, loop: SimulatedLoop, rng: random.Random, scratch: Path) -> None:
        super().__init__(loop, rng, scratch)
        address = rng.choice(("127.0.0.1", "0.0.0.0"))
        self.replica = Replica(loop, "alone", address, rng, scratch / "alone")
        policies.write(self.replica.settings, policies.document(rng).encode())
        self._may_drain = rng.random() < 0.15

    @property
    def hosts(self) -> list[Host]:
        """All hosts."""
        return [self.replica]

    def connect(self, rng: random.Random) -> None:
        """Let a client connect."""
        process = self.replica.process
        self.clients.append((Client(rng, self.loop, process.api), process))

    def disturb(self, rng: random.Random) -> None:
        """Let something happen that no client does."""
        chance = rng.random()
        replica = self.replica
        if chance < 0.35:
            broken = rng.random() < 0.2
            written = policies.broken_document(rng) if broken else policies.document(rng).encode()
            policies.write(replica.settings, written)
        elif chance < 0.5:
            replica.trouble(rng)
        elif chance < 0.8:
            replica.step(rng)
        elif chance < 0.97:
            look(self.loop, rng, replica)
        elif self._may_drain:
            replica.drain()


def look(loop: SimulatedLoop, rng: random.Random, host: Host) -> None:
    """Look at a page of the admin port, where there is one."""
    page = rng.choice((b"/metrics", b"/state", b"/readyz", b"/healthz", b"/enginez"))
    admin = loop.server(host.address, policies.ADMIN_PORT)
    if admin is not None:
        wire = admin.connect(_Look())
        wire.begin()
        wire.deliver(
            b"GET %b HTTP/1.1\r\nHost: weir\r\nAuthorization: %b\r\nConnection: close\r\n\r\n"
            % (page, _shown_to(host).encode())
        )


def _shown_to(host: Host) -> str:
    """Return what the operator would show; a broken document has no key."""
    keys: tuple[str, ...] = ()
    with contextlib.suppress(OSError, ValueError):
        keys = PolicyDocument.decode(host.settings.policies.file.read_bytes()).peer_keys
    return authorization(keys, host.settings.identity.pod, time.time())


class _Look:
    """Who looks."""

    def took(self, piece: bytes) -> None:
        """Take bytes of the page."""
        assert not piece.startswith(b"HTTP/1.1 500"), piece

    def closed(self) -> None:
        """Hear that the connection is gone."""
