"""Every request that is in flight, and what all of them hold together.

A request is added when its head was read and removed with its outcome. The registry bounds how
many there are and how much memory their bodies take, watches that answers make progress, and cuts
what still runs when a drain's time is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from weir_core.route.types import Candidate
from weir_core.sched.memory import BodyMemory
from weir_sidecar.outcomes import Outcome
from weir_sidecar.settings import Limits, Timeouts
from weir_sidecar.telemetry.metrics import NO_CLASS, Metrics

if TYPE_CHECKING:
    from weir_sidecar.inflight import InFlightRequest

_SERVED_KEPT: Final = 20
_OTHERS_KEPT: Final = 60
"""Requests of which is known how they ended, for people to look at; others than served ones are
kept apart, so that a flood of answers does not hide why one was refused."""


class Ended(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of a request that ended.

    Attributes:
        key: The sidecar's own name for it; the client's where it got none.
        at_s: When.
        ttft_s: None where no answer began.
        replica: To which it was forwarded; empty where it stayed.
        was_forwarded: Another sidecar sent it here.
        routed: Why it was served where it was; empty where that was not decided here.
        candidates: The replicas that were compared then.
    """

    key: str
    request_id: str
    class_name: str
    tenant: str
    outcome: str
    arrival_s: float
    at_s: float
    ttft_s: float | None
    replica: str
    was_forwarded: bool
    routed: str
    candidates: tuple[Candidate, ...]


class Registry:
    """The requests in flight.

    Args:
        metrics: The instruments.
        clock: Seconds that only move forward.
        limits: Bounds on their number and on the memory that their bodies take.
        max_held: Requests in flight at once.
    """

    def __init__(
        self,
        metrics: Metrics,
        clock: Callable[[], float],
        limits: Limits,
        *,
        max_held: int | None = None,
    ) -> None:
        self.metrics = metrics
        self.memory = BodyMemory(limits.max_held_bytes)
        self._clock = clock
        self.max_held = limits.max_held if max_held is None else max_held
        # In the order in which they came: a set's order follows from where objects lie in memory.
        self._requests: dict[InFlightRequest, None] = {}
        self._finished_bytes = 0
        self._quiet_since = clock()
        self._when_idle: list[Callable[[], None]] = []
        self._served: deque[Ended] = deque(maxlen=_SERVED_KEPT)
        self._others: deque[Ended] = deque(maxlen=_OTHERS_KEPT)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def full(self) -> bool:
        """Whether one more is too many; the one that asks has been added already."""
        return len(self._requests) > self.max_held

    @property
    def idle_s(self) -> float:
        """Time since the last request that asks for an engine's work ended; 0 while any runs.

        What computes nothing, such as a list of models that a probe reads, is none of them.
        """
        return 0.0 if self._requests else self._clock() - self._quiet_since

    @property
    def received_bytes(self) -> int:
        """Bytes ever received from the engine: while this grows, the engine makes progress."""
        running = sum(_received_bytes(request) for request in self._requests)
        return self._finished_bytes + running

    @property
    def at_engine(self) -> int:
        """Requests that the engine has, or is about to get."""
        return sum(1 for request in self._requests if _at_engine(request))

    def asking_for(self, model: str) -> bool:
        """Tell whether a request names this model."""
        return any(request.asks.model == model for request in self._requests)

    def named(self, request_id: str) -> list[InFlightRequest]:
        """Return the requests that their clients, or their engine, call so."""
        return [each for each in self._requests if request_id in (each.request_id, each.wire_id)]

    def away_at(self, replica: str) -> list[InFlightRequest]:
        """Return the requests that were forwarded to a replica."""
        return [each for each in self._requests if each.is_away_at(replica)]

    def add(self, request: InFlightRequest) -> None:
        """Add a request that has arrived."""
        self._requests[request] = None

    def remove(self, request: InFlightRequest) -> None:
        """Remove a request that has its outcome."""
        self._requests.pop(request, None)
        self._finished_bytes += _received_bytes(request)
        if request.asked is not None:
            self._quiet_since = self._clock()
        if request.class_name != NO_CLASS:
            self._remember(request)
        if not self._requests:
            calls, self._when_idle = self._when_idle, []
            for call in calls:
                call()

    def _remember(self, request: InFlightRequest) -> None:
        outcome, exchange = request.outcome or Outcome.INTERNAL_ERROR, request.exchange
        began_at = None if exchange is None else exchange.first_byte_at
        kept = self._served if outcome is Outcome.OK else self._others
        kept.append(
            Ended(
                # The scheduler has forgotten it by now, and with that its id there.
                request.request_id if request.asked is None else request.asked.request_id,
                request.request_id,
                request.class_name,
                request.tenant,
                outcome.value,
                request.arrival,
                self._clock(),
                None if began_at is None else began_at - request.arrival,
                "" if request.away is None else request.away.name,
                request.forwarded is not None,
                *request.routed,
            )
        )

    def ended_last(self) -> list[Ended]:
        """Return the requests that ended last, the newest first."""
        return sorted([*self._served, *self._others], key=lambda each: -each.at_s)

    def when_idle(self, call: Callable[[], None]) -> None:
        """Call once, as soon as no request is in flight."""
        if self._requests:
            self._when_idle.append(call)
        else:
            call()

    def watch(self, now: float, timeouts: Timeouts) -> None:
        """End the exchanges that wait too long; called about once a second."""
        for request in list(self._requests):
            request.check_progress(now, timeouts)

    def cut(self) -> int:
        """End everything, because the time is over; return how many there were."""
        return sum(request.cut() for request in list(self._requests))


def _at_engine(request: InFlightRequest) -> bool:
    return request.exchange is not None and request.away is None


def _received_bytes(request: InFlightRequest) -> int:
    """Return what came from the engine beside this sidecar."""
    if request.exchange is None or request.away is not None:
        return 0
    return request.exchange.received_bytes
