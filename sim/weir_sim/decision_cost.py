"""What a decision costs: the scheduler's own time per event, with many requests waiting.

One decision is a finished request whose place is given to the next one: account, gate, pick,
dispatch. Between decisions a new request arrives, so that the pool stays full; arrivals are
measured too, forecast and limits included. Garbage collection stays on, as it is in a sidecar.

    python -m weir_sim.decision_cost --waiting 10000 --tenants 200
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import (
    BUILT_IN_CLASSES,
    Action,
    Dispatch,
    EngineFacts,
    EngineKind,
    Request,
)

_ENGINE = EngineFacts(EngineKind.WEIR, 256, 8192, 10_000_000)


@dataclass(frozen=True, slots=True)
class Cost:
    """Times of one kind of event, in microseconds."""

    event: str
    p50_us: float
    p99_us: float
    mean_us: float


def measure(waiting: int, tenants: int, decisions: int) -> list[Cost]:
    """Return the cost of a decision, an arrival and a report of tokens."""
    scheduler = Scheduler(SchedulerSettings(_ENGINE))
    drive = _Drive(scheduler, tenants)
    while len(scheduler.pool) < waiting:
        drive.arrive()
    decided: list[int] = []
    arrived: list[int] = []
    reported: list[int] = []
    for _ in range(decisions):
        started = drive.oldest_running()
        drive.timed(scheduler.on_first_token, started, drive.now)
        reported.append(drive.timed(scheduler.on_tokens, started, 4, drive.now))
        decided.append(drive.timed(scheduler.on_finish, started, drive.now))
        arrived.append(drive.timed_arrival())
    return [
        _cost("decision", decided),
        _cost("arrival", arrived),
        _cost("tokens", reported),
    ]


class _Drive:
    """Keeps a scheduler busy and follows who runs."""

    def __init__(self, scheduler: Scheduler, tenants: int) -> None:
        self.now = 0.0
        self._scheduler = scheduler
        self._tenants = tenants
        self._serial = 0
        self._running: dict[str, None] = {}

    def arrive(self) -> None:
        """Add one request."""
        self._follow(self._scheduler.on_arrival(self._request(), self.now))

    def timed_arrival(self) -> int:
        """Add one request and return the nanoseconds it took."""
        return self.timed(self._scheduler.on_arrival, self._request(), self.now)

    def timed(self, event: Callable[..., list[Action]], *args: object) -> int:
        """Send one event and return the nanoseconds it took."""
        start = time.thread_time_ns()
        actions = event(*args)
        took = time.thread_time_ns() - start
        # A finish may make room for several: each of them is one decision.
        return took // max(1, self._follow(actions))

    def oldest_running(self) -> str:
        """Return the request that runs longest, and take it off the list."""
        request_id = next(iter(self._running))
        del self._running[request_id]
        return request_id

    def _request(self) -> Request:
        self._serial += 1
        self.now += 1e-5
        policy = BUILT_IN_CLASSES[self._serial % len(BUILT_IN_CLASSES)]
        return Request(
            request_id=f"r{self._serial}",
            tenant=f"t{self._serial * 7919 % self._tenants}",
            class_name=policy.name,
            arrival_s=self.now,
            body_bytes=400 + self._serial * 31 % 8000,
        )

    def _follow(self, actions: list[Action]) -> int:
        """Note who runs now, and return how many there are more."""
        dispatched = [action for action in actions if isinstance(action, Dispatch)]
        for action in dispatched:
            self._running[action.request_id] = None
        return len(dispatched)


def _cost(event: str, nanoseconds: list[int]) -> Cost:
    ordered = sorted(nanoseconds)
    count = len(ordered)
    return Cost(
        event=event,
        p50_us=ordered[count // 2] / 1e3,
        p99_us=ordered[int(count * 0.99)] / 1e3,
        mean_us=sum(ordered) / count / 1e3,
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Cost of one scheduling decision")
    parser.add_argument("--waiting", type=int, default=10_000, help="requests in the pool")
    parser.add_argument("--tenants", type=int, default=200, help="tenants they belong to")
    parser.add_argument("--decisions", type=int, default=20_000, help="decisions to measure")
    options = parser.parse_args()
    lines = [f"{'event':10} {'p50 us':>8} {'p99 us':>8} {'mean us':>8}"]
    lines += [
        f"{cost.event:10} {cost.p50_us:8.1f} {cost.p99_us:8.1f} {cost.mean_us:8.1f}"
        for cost in measure(options.waiting, options.tenants, options.decisions)
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
