"""The engine beside this sidecar, as an upstream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from weir_core.wire.answers import reports_failure, was_aborted
from weir_sidecar.settings import Timeouts
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.connections import Connections
from weir_sidecar.upstreams.monitor import Monitor
from weir_sidecar.upstreams.splice import Ending, Exchange
from weir_sidecar.upstreams.upstream import Attempt, Call, Upstream

if TYPE_CHECKING:
    from weir_sidecar.inflight import InFlightRequest


class OwnEngine(Upstream):
    """The one engine of a sidecar.

    Args:
        monitor: Knows whether it is up.
    """

    def __init__(
        self,
        connections: Connections,
        metrics: Metrics,
        timeouts: Timeouts,
        clock: Callable[[], float],
        *,
        monitor: Monitor,
    ) -> None:
        super().__init__(connections, metrics, timeouts, clock)
        self._monitor = monitor

    async def attempt(
        self, request: InFlightRequest, call: Call, begun: Attempt | None = None
    ) -> Exchange | None:
        """Make the attempt; after one that was lost, the monitor learns whether the engine is gone.

        The monitor tells the scheduler of a gone engine, and the scheduler takes back whatever has
        not begun, this request included, before this returns. Of a stream that broke the monitor
        is only told: its client does not wait for what the monitor finds.
        """
        exchange = await super().attempt(request, call, begun)
        if exchange is None or (exchange.ending is Ending.LOST and not exchange.begun):
            await self._monitor.check()
        elif exchange.ending is Ending.LOST:
            self._monitor.doubt()
        return exchange

    def suspects(self, request: InFlightRequest, answer: Exchange, piece: bytes) -> bool:
        """Hold back a 5xx, and an answer that begins with a failure: the engine may be dying."""
        return answer.status >= 500 or reports_failure(request.api, piece)

    async def accepts(self, request: InFlightRequest, answer: Exchange) -> bool:
        """Pass an error on when the engine is well.

        An answer that the engine gave up is none, however well the engine seems.
        """
        await self._monitor.check()
        return self._monitor.up and not was_aborted(request.api, answer.tail)
