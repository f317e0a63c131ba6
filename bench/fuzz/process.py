"""One process of a sidecar or a gateway: what comes in, what comes out, what stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from bench.fuzz.network import Listening, SimulatedLoop, Wire
from weir_core.wire.paths import Kind
from weir_core.wire.peers import Forwarded
from weir_sidecar.app import Sidecar
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.protocol import HttpRequest, HttpServer
from weir_sidecar.gateway import Gateway
from weir_sidecar.inflight import InFlightRequest
from weir_sidecar.outcomes import Outcome

_DIRECT: Final = frozenset({"/health"})
_DIRECT_OF_GATEWAY: Final = frozenset({"/health", "/healthz", "/readyz", "/metrics"})
"""Paths that are answered without an outcome; `/metrics` only where the client is near."""


class Process:
    """Counts what one process is asked, and judges what it did.

    Args:
        loop: The simulated loop.
        app: What runs in it.
        api: Its API port.
    """

    def __init__(self, loop: SimulatedLoop, app: Sidecar | Gateway, api: Listening) -> None:
        self.loop = loop
        self.app = app
        self.api = api
        self.parts = app.parts
        self.name = self.parts.peers.own.name
        self.handled = 0
        """Requests that must have an outcome."""
        self.executed = 0
        """Requests of other sidecars that compute something."""
        self.forwarded = 0
        """Requests of other sidecars that must have an outcome."""
        self.faults: list[str] = []
        self.leaves = False
        """A drain has begun, or the process is being ended."""
        self._running: list[tuple[InFlightRequest, Wire]] = []
        self._is_gateway = isinstance(app, Gateway)
        server = api.factory
        assert isinstance(server, HttpServer)
        self.server = server
        self._count_clients()
        self._count_peers()

    def _count_clients(self) -> None:
        server = self.server
        handle, refuse_unread = server.handle, server.refuse_unread
        direct = _DIRECT_OF_GATEWAY if self._is_gateway else _DIRECT

        def counted(request: HttpRequest) -> None:
            head = request.head
            is_preflight = (
                head.method == "OPTIONS"
                and head.origin is not None
                and head.header(b"access-control-request-method") is not None
            )
            self.handled += not is_preflight and head.raw_path not in direct
            self._begin(handle, request)

        def counted_unread(error: Any) -> Answer:
            self.handled += 1
            return refuse_unread(error)

        server.handle = counted
        server.refuse_unread = counted_unread

    def _count_peers(self) -> None:
        requests = self.parts.peer_port._requests
        handle = requests._forwarded

        def counted(request: HttpRequest, sender: str) -> None:
            try:
                msgspec.json.decode(request.forwarded, type=Forwarded)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                handle(request, sender)  # it is refused, and has no outcome
                return
            self.forwarded += 1
            endpoint = request.head.endpoint
            computes = endpoint is not None and endpoint.kind is not Kind.NO_GENERATION
            self.executed += computes and not sender.startswith("ghost")
            self._begin(lambda each: handle(each, sender), request)

        requests._forwarded = counted

    def _begin(self, handle: Any, request: HttpRequest) -> None:
        wire = request.connection.transport
        handle(request)
        if isinstance(request.owner, InFlightRequest) and isinstance(wire, Wire):
            self._running.append((request.owner, wire))

    def check_gone(self) -> None:
        """Note requests that have just ended as `client_gone` although their clients are there."""
        for request, wire in self._running:
            is_gone = request.outcome is Outcome.CLIENT_GONE
            if is_gone and not wire.peer_failed and not self.leaves:
                self.faults.append(f"{self.name}: a client that had not left is client_gone")
        self._running = [each for each in self._running if each[0].outcome is None]

    # What must hold when all is over.

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight."""
        return not len(self.parts.registry) and not self.server.connections

    def outcomes(self) -> dict[str, int]:
        """How many requests of clients ended in each way."""
        return {name: count for name, count in self.parts.metrics.outcomes().items() if count}

    def forwards(self) -> dict[str, int]:
        """How many requests that went to other sidecars came to what."""
        return _counts(self.parts.metrics.forwards, "result")

    def of_peers(self) -> dict[str, int]:
        """How many requests of other sidecars ended in each way."""
        return _counts(self.parts.metrics._forwarded, "outcome")

    def wrong(self) -> Iterator[str]:
        """Yield what is wrong with the counts, and what is held although nothing is in flight."""
        yield from dict.fromkeys(self.faults)
        outcomes, of_peers = self.outcomes(), self.of_peers()
        for asked, counts in ((self.handled, outcomes), (self.forwarded, of_peers)):
            if sum(counts.values()) != asked:
                yield f"{self.name}: {asked} requests, {sum(counts.values())} outcomes: {counts}"
            if "internal_error" in counts:
                yield f"{self.name}: {counts['internal_error']} outcomes are internal_error"
        for name, count in self._books().items():
            if count:
                yield f"{self.name}: {name}: {count} left"

    def _books(self) -> dict[str, int]:
        """Return what has to be 0 when nothing is in flight, by name."""
        parts = self.parts
        memory, driver, scheduler = parts.registry.memory, parts.driver, parts.driver.scheduler
        load, unscheduled, router = scheduler.engine_load, driver._unscheduled, parts.peers.router
        of_peers = parts.peer_port._server
        being_read = sum(each._head_bytes for each in of_peers.connections)
        return {
            "requests": len(parts.registry),
            "connections": len(self.server.connections),
            "bytes of heads": self.server.unread_bytes,
            "bytes of heads of peers": of_peers.unread_bytes - being_read,
            "bytes of bodies": memory.held_bytes,
            "bytes of ranks": sum(map(abs, memory._by_rank.values())),
            "bytes of payers": len(memory._by_payer),
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
            "uploads of tenants": len(scheduler.tenants._uploading),
            # A process that has ended hears no more of what others give back.
            "places elsewhere": 0 if parts.limits._closed else len(scheduler.tenants._elsewhere),
            "unscheduled": unscheduled._running,
            "unscheduled of tenants": len(unscheduled._by_payer),
            "credit for what was sent": len(router._sent),
            "credit at peers": sum(peer.credit for peer in router._order),
        }


def _counts(family: Any, label: str) -> dict[str, int]:
    """Return the values of a counter with one label."""
    found: dict[str, int] = {}
    for metric in family.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total") and sample.value:
                found[sample.labels[label]] = int(sample.value)
    return found
