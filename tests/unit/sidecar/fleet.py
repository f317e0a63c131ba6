"""Sidecars without engines that know each other, in one process over the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry

from weir_core.route.types import ClassLoad, LoadVector
from weir_core.wire.peer_auth import Keys
from weir_core.wire.policies import PeerEntry, PolicyDocument
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.protocol import HttpRequest
from weir_sidecar.peers.peers import Peers
from weir_sidecar.peers.port import PeerPort
from weir_sidecar.settings import Addresses, Peering, Settings
from weir_sidecar.telemetry.metrics import Metrics

KEY, OTHER_KEY, THIRD_KEY = "ab" * 32, "cd" * 32, "ef" * 32
SETTINGS = Settings(
    addresses=Addresses(host="127.0.0.1", peer_port=0),
    peering=Peering(min_period_s=0.02, max_period_s=0.02),
)


@dataclass
class Side:
    """A sidecar, as a handshake knows it."""

    name: str
    keys: Keys
    epoch: int = 1


def vector(*, draining: bool = False, left: int = 8) -> LoadVector:
    """The load of an idle replica."""
    classes = (ClassLoad("standard", 0.0, 0),)
    return LoadVector(classes, 1e-5, 0.01, 0.01, 2048, left, 100_000, draining)


async def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until something becomes true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what a test observes has no event
            await asyncio.sleep(0.005)


class Member:
    """One sidecar: its knowledge of the others, and its peer port.

    Attributes:
        heard: Requests that reached it, each with the sidecar that it came from.
        loads: Names whose load was heard.
        lost: Names that were lost.
        load: Its own load.
    """

    def __init__(self, name: str, settings: Settings = SETTINGS, *, gateway: bool = False) -> None:
        self.name = name
        self.skipped_s = 0.0
        """By so much its clock has moved on while nothing of it ran."""
        self.metrics = Metrics(CollectorRegistry())
        self.load: LoadVector | None = None if gateway else vector()
        self.peers = Peers(
            name, settings, self.metrics, self._clock, lambda: self.load, gateway=gateway
        )
        self.port = PeerPort(self.peers, self._handle, settings, self.metrics, self._clock)
        self.respond: Callable[[HttpRequest], Answer] = lambda _: Answer(200, b"done")
        self.requests: list[tuple[HttpRequest, str]] = []
        self.loads: list[str] = []
        self.lost: list[str] = []
        self.number = 0
        self.peers.on_load, self.peers.on_lost = self.loads.append, self.lost.append
        self._stack = contextlib.AsyncExitStack()
        self._task: asyncio.Task[None] | None = None

    def _clock(self) -> float:
        return time.monotonic() + self.skipped_s

    def _handle(self, http: HttpRequest, sender: str) -> None:
        self.requests.append((http, sender))
        http.answer(self.respond(http))

    @property
    def entry(self) -> PeerEntry:
        """What a document says of it."""
        return PeerEntry(self.name, f"127.0.0.1:{self.number}")

    async def start(self, port: int = 0) -> None:
        """Listen and send heartbeats."""
        self.number = await self._stack.enter_async_context(self.port.listen("127.0.0.1", port))
        self._task = asyncio.create_task(self.peers.run())

    async def stop(self) -> None:
        """End as a process does: every connection closes."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.peers.close()
        await self._stack.aclose()

    def told(self, *others: Member, keys: tuple[str, ...] = (KEY,)) -> None:
        """Read a document that names other sidecars."""
        entries = tuple(other.entry for other in others)
        self.peers.apply(PolicyDocument(peers=entries, peer_keys=keys))

    def state_of(self, other: Member) -> str:
        """What another sidecar is to this one; empty where it is not known."""
        found = {one["name"]: one["state"] for one in self.peers.states()}
        return str(found.get(other.name, ""))

    def value(self, metric: str, **labels: str) -> float:
        """A sample of its metrics."""
        return self.metrics.registry.get_sample_value(metric, labels) or 0.0


class Fleet:
    """Makes sidecars; all of them end with the test."""

    def __init__(self) -> None:
        self.members: list[Member] = []

    async def add(
        self,
        name: str,
        *,
        gateway: bool = False,
        port: int = 0,
        address: str = "",
        head_s: float = 10.0,
        **peering: float,
    ) -> Member:
        """Start one that knows nothing yet.

        Args:
            name: Of the sidecar.
            gateway: It has no engine.
            port: Where it listens; 0 lets the kernel choose.
            address: What it tells the others of that; else the truth.
            head_s: How long a connection may take over its handshake.
            peering: Bounds of `Peering`.
        """
        settings = replace(
            SETTINGS,
            addresses=replace(SETTINGS.addresses, peer_address=address),
            timeouts=replace(SETTINGS.timeouts, head_s=head_s),
            peering=replace(SETTINGS.peering, **peering),  # type: ignore[arg-type]
        )
        member = Member(name, settings, gateway=gateway)
        self.members.append(member)
        await member.start(port)
        return member

    async def of(self, *names: str) -> list[Member]:
        """Start several, whose documents name all of them, and wait until they may be used."""
        made = [await self.add(name) for name in names]
        for one in made:
            one.told(*made)
        await eventually(lambda: all(one.peers.usable == len(made) - 1 for one in made))
        return made


@contextlib.asynccontextmanager
async def fleet() -> AsyncIterator[Fleet]:
    """A fleet that ends with the context."""
    made = Fleet()
    try:
        yield made
    finally:
        for member in made.members:
            await member.stop()
