"""The replicas behind a `weir up` front, as upstreams; which one gets a request, the core decides.

A replica that fails a connection is out until its next good probe. A request that no replica has
begun to answer goes to another one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from weir_core.api import labels
from weir_core.errors import EngineUnavailable, InvalidSpec
from weir_core.route.least_outstanding import LeastOutstanding
from weir_sidecar.descriptors import is_own_shortage
from weir_sidecar.frontend import errors
from weir_sidecar.frontend.errors import DROPPED_REASON
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.connections import tcp_connections
from weir_sidecar.upstreams.splice import Exchange
from weir_sidecar.upstreams.upstream import Upstream

if TYPE_CHECKING:
    from weir_sidecar.inflight import InFlightRequest

log = logging.getLogger(__name__)

PROBE_PERIOD_S: Final = 1.0
PROBE_TIMEOUT_S: Final = 2.0
PROBE_FAILURES: Final = 3
"""Probes in a row without an answer after which a replica is out, as the kubelet has it: on a busy
machine a loaded one may be late. One that says it is not ready is out at once."""
_DROPPED: Final = DROPPED_REASON.encode()


class Address(NamedTuple):
    """Where a replica's sidecar listens, written `HOST[:API_PORT[:ADMIN_PORT]]`."""

    host: str
    api_port: int = labels.API_PORT
    admin_port: int = labels.ADMIN_PORT

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address; raise `InvalidSpec` where it is none."""
        host, *ports = text.split(":")
        if not host or len(ports) > 2 or not all(port.isdigit() for port in ports):
            raise InvalidSpec("address", f"{text!r} is not HOST[:API_PORT[:ADMIN_PORT]]")
        return cls(host, *(int(port) for port in ports))


class Replica(Upstream):
    """One replica's sidecar, as an upstream.

    Args:
        address: Where it listens.
        settings: Bounds on connections and waiting.
        metrics: The instruments.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        address: Address,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        idle = settings.limits.idle_connections
        idle_s = settings.timeouts.engine_idle_s
        connections = tcp_connections(
            address.host, address.api_port, clock, idle_limit=idle, idle_s=idle_s
        )
        super().__init__(connections, metrics, settings.timeouts, clock)
        self._admin = tcp_connections(
            address.host, address.admin_port, clock, idle_limit=0, idle_s=idle_s
        )
        self.ready = False
        self._unanswered = 0

    async def probe(self) -> bool:
        """Ask whether it is ready; return what it is taken for."""
        try:
            reply = await self._admin.get("/readyz", timeout_s=PROBE_TIMEOUT_S)
            ready, self._unanswered = reply.status == 200, 0
        except EngineUnavailable as error:
            if is_own_shortage(error.__cause__):
                return self.ready  # what was known of the replica stays
            self._unanswered += 1
            ready = self.ready and self._unanswered < PROBE_FAILURES
        if ready != self.ready:
            log.info("replica is %s", "ready" if ready else "not ready", extra=self.words)
        self.ready = ready
        return ready

    @property
    def words(self) -> dict[str, str]:
        """The replica, for a log line."""
        return {"replica": self.name}

    def suspects(self, request: InFlightRequest, answer: Exchange, piece: bytes) -> bool:  # noqa: ARG002
        """Hold back a refusal: another replica may take the request."""
        return answer.status in (429, 503) and answer.header(_DROPPED) is not None

    async def accepts(self, request: InFlightRequest, answer: Exchange) -> bool:  # noqa: ARG002
        """Pass a refusal on where no other replica is left to be asked."""
        return not request.may_fail_over

    def close(self) -> None:
        """Close the idle connections."""
        self._connections.close()


class Replicas:
    """The replicas of a front.

    Args:
        replicas: All of them.
        retry_after_s: What clients are told while none is ready, in seconds.
        clock: Seconds that only move forward.
    """

    def __init__(
        self, replicas: Sequence[Replica], retry_after_s: int, clock: Callable[[], float]
    ) -> None:
        self._replicas = {replica.name: replica for replica in replicas}
        self._router = LeastOutstanding(list(self._replicas))
        self._retry_after_s = retry_after_s
        self._clock = clock

    @property
    def ready(self) -> list[str]:
        """The names of the replicas that requests may go to."""
        return self._router.ready

    def named(self, name: str) -> Replica:
        """Return a replica by its name."""
        return self._replicas[name]

    async def probe_forever(self) -> None:
        """Probe every replica each period, until cancelled."""
        while True:
            await asyncio.gather(*(self._probe(each) for each in self._replicas.values()))
            await asyncio.sleep(PROBE_PERIOD_S)

    async def _probe(self, replica: Replica) -> None:
        self._router.on_probe(replica.name, await replica.probe())

    def choose(self, tried: Collection[str]) -> tuple[Replica, int]:
        """Return the replica for the next attempt and the attempt's number; raise the refusal."""
        chosen = self._router.choose(tried, self._clock())
        if chosen is None:
            raise errors.no_engine("no replica is ready", self._retry_after_s)
        name, attempt = chosen
        return self._replicas[name], attempt

    def has_others(self, tried: Collection[str]) -> bool:
        """Tell whether a ready replica was not tried yet."""
        return self._router.has_others(tried)

    def began(self, replica: Replica, attempt: int) -> None:
        """Hear that a replica has begun to answer."""
        self._router.on_begun(replica.name, attempt, self._clock())

    def ended(self, replica: Replica, attempt: int) -> None:
        """Hear that an attempt has ended."""
        self._router.on_end(replica.name, attempt)

    def lost(self, replica: Replica) -> None:
        """Take a replica that could not be reached out, until its next good probe."""
        if replica.ready:
            log.warning("replica lost", extra=replica.words)
        replica.ready = False
        self._router.on_lost(replica.name)

    def close(self) -> None:
        """Close the idle connections."""
        for replica in self._replicas.values():
            replica.close()
