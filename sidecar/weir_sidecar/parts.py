"""What a sidecar and a gateway are both made of, from the API port to the way to other replicas."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final

from prometheus_client import CollectorRegistry

from weir_core.route.types import LoadVector
from weir_core.wire.policies import PolicyDocument
from weir_sidecar.driver import Driver
from weir_sidecar.frontend.server import Server
from weir_sidecar.inflight import Handler
from weir_sidecar.limits import FleetLimits
from weir_sidecar.peers.peers import Peers
from weir_sidecar.peers.port import PeerPort
from weir_sidecar.policy_file import PolicyFile
from weir_sidecar.prefixes import Prefixes
from weir_sidecar.registry import Registry
from weir_sidecar.routing import Routing
from weir_sidecar.settings import Settings
from weir_sidecar.supervise import Supervisor
from weir_sidecar.telemetry.access_log import AccessLog
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.telemetry.request_trace import Tracing
from weir_sidecar.telemetry.usage import UsageMeter
from weir_sidecar.upstreams.connections import Connections
from weir_sidecar.upstreams.prompt_counter import PromptCounter

_REPLICAS_OF_GATEWAY: Final = 16
"""A gateway holds at most so many times what a replica's sidecar does."""


class Parts:
    """Puts them together.

    Args:
        settings: What the environment says.
        clock: Seconds that only move forward.
        tracing: Where spans go, or None.
        connections: To the engine; None in a gateway.
        on_applied: Told of each policy document that is in force.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        tracing: Tracing | None,
        connections: Connections | None,
        on_applied: Callable[[PolicyDocument], None] | None = None,
    ) -> None:
        self.settings = settings
        self.tracing = tracing
        self._on_applied = on_applied
        self.metrics = Metrics(CollectorRegistry())
        self.metrics.describe(settings.identity)
        # What a gateway relays is bounded by its replicas, each by itself.
        self._replicas = 1 if connections else _REPLICAS_OF_GATEWAY
        held = settings.limits.max_held * self._replicas
        self.registry = Registry(self.metrics, clock, settings.limits, max_held=held)
        self.driver = Driver(
            settings,
            self.metrics,
            self.registry.memory,
            PromptCounter(connections, settings.tokenizing),
            clock,
        )
        self.driver.is_gateway = connections is None
        self.policies = PolicyFile(settings.policies.file, self._apply, self.metrics)
        self.handler = Handler(self.registry, settings, self.driver, clock, tracing=tracing)
        lines = AccessLog(self.metrics.access_lines_lost) if settings.access_log else None
        self.usage = self.handler.usage = UsageMeter(self.metrics, settings.identity, lines)
        self.driver.ends.on_told = self.usage.told
        self.peers = Peers(
            settings.identity.pod,
            settings,
            self.metrics,
            clock,
            self._load,
            gateway=connections is None,
        )
        self.prefixes = Prefixes(
            self.peers.own.name,
            self.peers.own.epoch,
            self.metrics,
            clock,
            is_used=settings.follow_prefixes,
        )
        self.peers.digests = self.handler.prefixes = self.driver.prefixes = self.prefixes
        self.routing = Routing(self.handler, self.peers, self.prefixes, clock)
        self.handler.routing = self.routing
        self.supervisor = Supervisor(self.metrics, clock)
        self.server = Server(self.handler, settings, clock, self.supervisor)
        self.peer_port = PeerPort(
            self.peers, self.handler.handle_forwarded, settings, self.metrics, clock
        )
        self.peer_port.share_limit(self.server.http)
        self.limits = self.handler.fleet_limits = FleetLimits(
            self.peers, self.driver.scheduler.tenants, self.metrics, clock
        )
        self.peer_port.count_by(self.limits.answer)

    def _load(self) -> LoadVector | None:
        return self.routing.load()

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Follow the policies, and know the peers; the API port is not open yet."""
        addresses = self.settings.addresses
        async with contextlib.AsyncExitStack() as stack:
            if self.tracing is not None:
                stack.push_async_callback(self.tracing.close)
            stack.push_async_callback(self.usage.close)
            stack.callback(self.driver.close)
            stack.callback(self.peers.close)
            stack.callback(self.limits.close)
            self.policies.look()
            await stack.enter_async_context(
                self.peer_port.listen(addresses.host, addresses.peer_port)
            )
            await stack.enter_async_context(self.supervisor.running("peers", self.peers.run))
            yield

    def look(self) -> None:
        """Look after what nobody tells us of: changed policies, tokens of running streams."""
        self.policies.look()
        self.driver.count_tokens()
        self.limits.keep()

    def show_load(self) -> None:
        """Set the gauges of what is here; for each scrape."""
        self.metrics.running.set(len(self.registry))
        now = self.driver.now()
        waits = (
            (each.policy.name, each.request.tenant, now - each.request.arrival_s)
            for each in self.driver.waiting()
        )
        self.metrics.show_queue(waits, self.driver.scheduler.pool.body_bytes)

    def _apply(self, document: PolicyDocument) -> None:
        self.driver.apply(document)
        self.peers.apply(document)
        self.limits.apply(document)
        self.usage.declare(document.aliases, [each.name for each in document.adapters])
        self._bound(document)
        if self._on_applied is not None:
            self._on_applied(document)

    def _bound(self, document: PolicyDocument) -> None:
        """Take the document's limits; where it has none, the environment's hold."""
        given = self.settings.limits
        limits = replace(
            given,
            max_requests=document.max_queued or given.max_requests,
            max_body_bytes=document.max_body_bytes or given.max_body_bytes,
        )
        self.handler.limits = limits
        self.registry.max_held = limits.max_held * self._replicas
        if self.driver.is_gateway:
            # All that waits at gateways goes to the first replica, which takes so many together.
            gateways = max(1, sum(not peer.serves for peer in document.peers))
            limits = replace(limits, max_requests=math.ceil(limits.max_requests / gateways))
        self.driver.bound(limits)
