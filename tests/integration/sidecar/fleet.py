"""Three sidecars on mock engines, and a gateway before them, which know each other."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import msgspec

from tests.integration.sidecar.harness import Answer, House, Running, chat, eventually
from weir_core.sched.types import ClassPolicy
from weir_core.wire.policies import PeerEntry, PolicyDocument
from weir_sidecar.gateway import Gateway
from weir_sidecar.settings import Identity, Settings
from weir_sim.mock_engine import MockEngine, Profile

KEY = "5e" * 32
SLOW = Profile(output_tokens=50, token_gap_s=0.01)  # type: ignore[arg-type]
SILENT = Profile(ttft_s=30.0)  # type: ignore[arg-type]
CLASSES = (
    ClassPolicy("high", rank=2, max_queue_wait_s=20.0),
    ClassPolicy("standard", rank=1, max_queue_wait_s=20.0),
    ClassPolicy("low", rank=0, max_queue_wait_s=20.0),
)
DOCUMENT = PolicyDocument(classes=CLASSES, peer_keys=(KEY,))


def named(settings: Settings, name: str) -> Settings:
    """Settings of a sidecar of that name whose ports the kernel chooses."""
    addresses = replace(settings.addresses, peer_port=0)
    return replace(settings, identity=Identity(pod=name), addresses=addresses)


@dataclass
class Fleet:
    """Replicas that know each other, and perhaps a gateway before them."""

    houses: list[House]
    engines: list[MockEngine]
    replicas: list[Running]
    gateway: Gateway
    session: aiohttp.ClientSession
    stacks: list[contextlib.AsyncExitStack]

    async def post(self, port: int, headers: dict[str, str] | None = None, **body: Any) -> Answer:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        async with self.session.post(url, json=chat(**body), headers=headers or {}) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def ask(self, at: int = 0, headers: dict[str, str] | None = None, **body: Any) -> Answer:
        """Send a chat to one replica's API port."""
        return await self.post(self.replicas[at].sidecar.api_port, headers, **body)

    async def ask_gateway(self, headers: dict[str, str] | None = None, **body: Any) -> Answer:
        return await self.post(self.gateway.port, headers, **body)

    async def page(self, path: str) -> tuple[int, str]:
        """Get a page of the gateway."""
        async with self.session.get(f"http://127.0.0.1:{self.gateway.port}{path}") as response:
            return response.status, await response.text()

    @property
    def served(self) -> list[int]:
        return [engine.finished for engine in self.engines]

    @property
    def running(self) -> list[int]:
        return [engine.running for engine in self.engines]

    def document(self, document: PolicyDocument) -> PolicyDocument:
        """Return a document with the replicas in it."""
        peers = tuple(
            PeerEntry(r.sidecar.peers.own.name, r.sidecar.peers.own.address) for r in self.replicas
        )
        return msgspec.structs.replace(document, peers=peers)

    def tell(self, document: PolicyDocument = DOCUMENT) -> None:
        """Tell every sidecar of a document, with the replicas in it."""
        for house in self.houses:
            house.policies(self.document(document))

    async def until_known(self, others: int | None = None) -> None:
        """Wait until every sidecar may forward to all others."""
        wanted = len(self.replicas) - 1 if others is None else others
        await eventually(lambda: all(r.sidecar.peers.usable == wanted for r in self.replicas))
        await eventually(lambda: self.gateway.peers.usable == wanted + 1)

    async def end(self, at: int) -> None:
        """Stop a replica's sidecar at once, as a killed process does."""
        await self.stacks[at].aclose()
