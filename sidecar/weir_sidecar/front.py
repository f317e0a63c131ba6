"""The one public address of `weir up`: a relay over replicas on this machine.

On Kubernetes a Service does this. Here it is the same relay as the sidecar's, with a choice: the
ready replica with the fewest requests outstanding. A replica that fails a connection is out until
its next good probe, and a request that nobody has answered yet goes to another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from weir_core.api import labels
from weir_core.errors import EngineUnavailable, InvalidSpec
from weir_sidecar import outcomes
from weir_sidecar.descriptors import is_own_shortage
from weir_sidecar.drain import Drain, Phase
from weir_sidecar.frontend import routes
from weir_sidecar.frontend.auth import is_here
from weir_sidecar.frontend.server import Server
from weir_sidecar.ledger import Ledger
from weir_sidecar.outcomes import DROPPED_REASON
from weir_sidecar.proxy import Proxy
from weir_sidecar.settings import Settings
from weir_sidecar.supervise import Supervisor
from weir_sidecar.telemetry.metrics import METRICS_HEADERS, Metrics
from weir_sidecar.upstreams.connections import Pool, tcp_pool
from weir_sidecar.upstreams.splice import Exchange

log = logging.getLogger(__name__)

PROBE_PERIOD_S: Final = 1.0
PROBE_TIMEOUT_S: Final = 2.0
PROBE_FAILURES: Final = 3
"""Probes in a row without an answer after which a replica is out, as the kubelet has it: on a busy
machine a loaded one may be late. One that says it is not ready is out at once."""
_DROPPED: Final = DROPPED_REASON.encode()


@dataclass(frozen=True, slots=True)
class Address:
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


class Replica:
    """One replica as the front knows it."""

    def __init__(self, address: Address, settings: Settings, clock: Callable[[], float]) -> None:
        idle = settings.limits.idle_connections
        idle_s = settings.timeouts.engine_idle_s
        self.address = address
        self.pool = tcp_pool(address.host, address.api_port, clock, idle_limit=idle, idle_s=idle_s)
        self._admin = tcp_pool(address.host, address.admin_port, clock, idle_limit=0, idle_s=idle_s)
        self.ready = False
        self.outstanding = 0
        self._unanswered = 0

    async def probe(self) -> None:
        """Ask whether it is ready."""
        try:
            reply = await self._admin.get("/readyz", timeout_s=PROBE_TIMEOUT_S)
            ready, self._unanswered = reply.status == 200, 0
        except EngineUnavailable as error:
            if is_own_shortage(error.__cause__):
                return  # what was known of the replica stays
            self._unanswered += 1
            ready = self.ready and self._unanswered < PROBE_FAILURES
        if ready != self.ready:
            log.info("replica is %s", "ready" if ready else "not ready", extra=self.words)
        self.ready = ready

    @property
    def words(self) -> dict[str, str]:
        """The replica, for a log line."""
        return {"replica": f"{self.address.host}:{self.address.api_port}"}


class Replicas:
    """The replicas as the proxy sees them: an `Upstream` with a choice."""

    def __init__(self, replicas: Sequence[Replica], retry_after_s: int) -> None:
        self._replicas = {replica.pool: replica for replica in replicas}
        self._retry_after_s = retry_after_s
        self._turns = itertools.count()

    @property
    def ready(self) -> list[Replica]:
        """The replicas that requests may go to."""
        return [replica for replica in self._replicas.values() if replica.ready]

    async def probe_forever(self) -> None:
        """Probe every replica each period, until cancelled."""
        while True:
            await asyncio.gather(*(replica.probe() for replica in self._replicas.values()))
            await asyncio.sleep(PROBE_PERIOD_S)

    def close(self) -> None:
        """Close the idle connections."""
        for pool in self._replicas:
            pool.close()

    # The upstream.

    def target(self, request: web.BaseRequest) -> str:
        """Pass every path on: the sidecar knows which are open."""
        raw = request.raw_path
        return raw if raw.startswith("/") else request.rel_url.raw_path_qs

    def pick(self, tried: Collection[Pool]) -> Pool:
        """Return the ready replica with the fewest outstanding requests, in turns among equals."""
        left = [replica for replica in self.ready if replica.pool not in tried]
        if not left:
            raise outcomes.no_engine("no replica is ready", self._retry_after_s)
        turn = next(self._turns) % len(left)
        chosen = min(left[turn:] + left[:turn], key=lambda replica: replica.outstanding)
        chosen.outstanding += 1
        return chosen.pool

    def done(self, pool: Pool) -> None:
        """Count one request less."""
        self._replicas[pool].outstanding -= 1

    def lost(self, pool: Pool) -> None:
        """Take a replica out until its next good probe."""
        replica = self._replicas[pool]
        if replica.ready:
            log.warning("replica lost", extra=replica.words)
        replica.ready = False

    def suspects(self, answer: Exchange, piece: bytes) -> bool:  # noqa: ARG002
        """Hold back a refusal: another replica may take the request."""
        return answer.status in (429, 503) and answer.header(_DROPPED) is not None

    async def accepts(self, tried: Collection[Pool], answer: Exchange) -> bool:  # noqa: ARG002
        """Pass a refusal on when nobody else is left to ask."""
        return all(replica.pool in tried for replica in self.ready)


class Front:
    """The public address.

    Args:
        settings: Bounds; the addresses in it are not used.
        listen: Host and port of the public address.
        replicas: Where the replicas are.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        settings: Settings,
        listen: tuple[str, int],
        replicas: Sequence[Address],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listen = listen
        self._metrics = Metrics(CollectorRegistry())
        # The replicas bound what they hold; the front only bounds itself.
        limit = settings.limits.max_requests * max(len(replicas), 1)
        self.ledger = Ledger(self._metrics, clock, limit=limit)
        self.replicas = Replicas(
            [Replica(address, settings, clock) for address in replicas],
            settings.health.retry_after_s,
        )
        self._proxy = Proxy(self.replicas, self.ledger, settings, clock)
        self._supervisor = Supervisor(self._metrics, clock)
        self._server = Server(
            self.handle, self._proxy, self.ledger, settings, clock, self._supervisor
        )
        # Nobody keeps a list of fronts, so there is nobody to wait for.
        self.drain = Drain(
            self._server, self.ledger, settings.draining, clock, is_expected=lambda: False
        )
        self.port = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer probes, this machine's questions for metrics, and relay everything else."""
        trouble = self._supervisor.trouble
        if request.raw_path == "/healthz":
            return _probe(not self._supervisor.hopeless, trouble or "ok")
        if request.raw_path in ("/readyz", routes.HEALTH):
            ready = len(self.replicas.ready)
            serving = self.drain.phase is Phase.SERVING and ready > 0 and not trouble
            return _probe(serving, trouble or f"{ready} replicas ready")
        if request.raw_path == "/metrics" and is_here(request.remote):
            self._metrics.running.set(len(self.ledger))
            return web.Response(body=self._metrics.render(), headers=METRICS_HEADERS)
        return await self._proxy.handle(request)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Front]:
        """Listen and probe; leaving the context stops at once, so drain before."""
        try:
            async with (
                self._supervisor.running("probes", self.replicas.probe_forever),
                self._server.listen(*self._listen) as self.port,
            ):
                log.info("listening", extra={"host": self._listen[0], "port": self.port})
                yield self
        finally:
            await self.drain.stop()
            self.replicas.close()


def _probe(well: bool, words: str) -> web.Response:
    return web.Response(status=200 if well else 503, text=words + "\n")
