"""What a decision costs: the scheduler's own time per event, with many requests waiting and none.

A decision is an event that ends in a dispatch: account for what the engine reported, gate, pick,
dispatch; an event that dispatches several counts as so many. Between decisions new requests
arrive, so that the pool stays full; arrivals (forecast and limits included) and reports of tokens
are measured too.

The usual request finds nothing waiting. "lone" is all that the scheduler does for such a one beside
eight that run: arrival and dispatch, first token, finish, and the next tick asked for after each,
as the sidecar does. In a paced load most of its code and data have left the caches between the
events: "lone, cold" is the same where more memory than they hold was copied before each.

"routed" is admission with routing, among 1,000 known replicas: the own load measured, candidates
drawn beside two prefix holders, all five judged, and the scheduler's
arrival as though the request stayed.

The step-time model is trained, so that the rules which ask it do. The same history is run several
times and the least time of each event counts: the history is deterministic, so what differs
between runs is the machine and not the work.

    python -m weir_sim.decision_cost --waiting 10000 --tenants 200
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from weir_core.route.load import ask_of, load_of
from weir_core.route.router import Router
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import (
    BUILT_IN_CLASSES,
    Action,
    Dispatch,
    EngineFacts,
    EngineKind,
    Request,
    StepRecord,
)

_ENGINE = EngineFacts(EngineKind.WEIR, 256, 8192, 10_000_000)
_STEP = StepRecord(1e-3, 100, 8)
_BESIDE = 8
"""Requests that run while a lone one arrives."""
_RARELY = 20
"""One of so many lone requests is measured cold as well: emptying the caches takes long."""
_KNOWN = 1_000
"""Replicas that a router knows."""
_BALLAST = bytearray(6 << 20)
"""More than a core's own caches hold."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Times of one kind of event, in microseconds."""

    event: str
    p50_us: float
    p99_us: float
    mean_us: float


def measure(waiting: int, tenants: int, decisions: int, repeats: int = 3) -> list[Cost]:
    """Return the cost of a decision, an arrival, a report of tokens, a step and a lone request."""
    runs = [
        _run(waiting, tenants, decisions)
        | _lone_run(tenants, decisions)
        | _routed_run(tenants, decisions)
        for _ in range(repeats)
    ]
    return [
        _cost(event, [min(times) for times in zip(*(run[event] for run in runs), strict=True)])
        for event in runs[0]
    ]


def _run(waiting: int, tenants: int, decisions: int) -> dict[str, list[int]]:
    """Return the nanoseconds of each event of one run."""
    scheduler = _trained_scheduler()
    drive = _Drive(scheduler, tenants)
    while len(scheduler.pool) < waiting:
        drive.arrive()
    times: dict[str, list[int]] = {"decision": [], "arrival": [], "tokens": []}
    while len(times["decision"]) < decisions:
        started = drive.oldest_running()
        for event, args in (
            (scheduler.on_first_token, (started, drive.now)),
            (scheduler.on_tokens, (started, 4, drive.now)),
            (scheduler.on_finish, (started, drive.now)),
        ):
            took, dispatched = drive.timed(event, *args)
            if dispatched:
                times["decision"].append(took // dispatched)
            elif event == scheduler.on_tokens:
                times["tokens"].append(took)
        while len(scheduler.pool) < waiting:
            times["arrival"].append(drive.timed_arrival())
    return times


def _lone_run(tenants: int, requests: int) -> dict[str, list[int]]:
    """Return the nanoseconds of each request of a run in which none has to wait, and of steps."""
    times: dict[str, list[int]] = {"step": [], "lone": [], "lone, cold": []}
    drive = _Drive(_trained_scheduler(), tenants)
    for _ in range(_BESIDE):
        drive.begin()
    for serial in range(requests):
        times["lone"].append(drive.timed_lone_request(times["step"]))
        if serial % _RARELY == 0:
            times["lone, cold"].append(drive.timed_lone_request(times["step"], cold=True))
    return times


def _routed_run(tenants: int, requests: int) -> dict[str, list[int]]:
    """Return the nanoseconds of each request that is routed among many replicas and admitted."""
    scheduler = _trained_scheduler()
    drive = _Drive(scheduler, tenants)
    for _ in range(_BESIDE):
        drive.begin()
    router = Router("r0")
    load = load_of(scheduler, drive.now)
    for number in range(1, _KNOWN):
        router.on_load(f"r{number}", load, 0.0, drive.now)
    rng = random.Random(0)
    return {"routed": [drive.timed_routed_request(router, rng) for _ in range(requests)]}


def _trained_scheduler() -> Scheduler:
    scheduler = Scheduler(SchedulerSettings(_ENGINE))
    for decodes in range(64):
        scheduler.on_step(StepRecord(1e-3 + 1e-6 * decodes, 64 * (decodes % 7), decodes), 0.0)
    return scheduler


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
        self.timed_arrival()

    def timed_arrival(self) -> int:
        """Add one request and return the nanoseconds it took."""
        return self.timed(self._scheduler.on_arrival, self._request(), self.now)[0]

    def begin(self) -> None:
        """Let a request that finds nothing waiting arrive and begin."""
        self.arrive()
        self._scheduler.on_first_token(next(reversed(self._running)), self.now)

    def timed_lone_request(self, steps: list[int], *, cold: bool = False) -> int:
        """Let one request arrive, begin and another one end; return the nanoseconds it took.

        The time of the engine's step between is added to `steps`.
        """
        arrived = self._event(cold, self._scheduler.on_arrival, self._request(), self.now)
        begun = next(reversed(self._running))
        steps.append(self._event(cold, self._scheduler.on_step, _STEP, self.now))
        first = self._event(cold, self._scheduler.on_first_token, begun, self.now)
        ended = self.oldest_running()
        return (
            arrived + first + self._event(cold, self._scheduler.on_finish, ended, self.now, 100, 60)
        )

    def timed_routed_request(self, router: Router, rng: random.Random) -> int:
        """Route one request and admit it; return the nanoseconds it took."""
        request, scheduler = self._request(), self._scheduler
        policy = BUILT_IN_CLASSES[self._serial % len(BUILT_IN_CLASSES)]
        holders = {f"r{self._serial * step % _KNOWN}": 100 * step for step in (3, 5)}
        start = time.thread_time_ns()
        ask = ask_of(request, policy, scheduler.estimator, self.now)
        own = load_of(scheduler, self.now)
        found = router.candidates(ask, holders, self.now, rng)
        router.choose(ask, found, own, holders, self.now)
        actions = scheduler.on_arrival(request, self.now)
        took = time.thread_time_ns() - start
        self._follow(actions)
        scheduler.on_first_token(request.request_id, self.now)
        scheduler.on_finish(self.oldest_running(), self.now, 100, 60)
        return took

    def _event(self, cold: bool, event: Callable[..., list[Action]], *args: object) -> int:
        """Send one event and ask for the next tick; return the nanoseconds that took."""
        if cold:
            bytes(_BALLAST)
        start = time.thread_time_ns()
        actions = event(*args)
        self._scheduler.next_tick(self.now)
        took = time.thread_time_ns() - start
        self._follow(actions)
        return took

    def timed(self, event: Callable[..., list[Action]], *args: object) -> tuple[int, int]:
        """Send one event; return the nanoseconds it took and how many requests it dispatched."""
        start = time.thread_time_ns()
        actions = event(*args)
        return time.thread_time_ns() - start, self._follow(actions)

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
    parser.add_argument("--decisions", type=int, default=10_000, help="decisions to measure")
    parser.add_argument("--repeats", type=int, default=5, help="identical runs")
    options = parser.parse_args()
    lines = [f"{'event':12} {'p50 us':>8} {'p99 us':>8} {'mean us':>8}"]
    lines += [
        f"{cost.event:12} {cost.p50_us:8.1f} {cost.p99_us:8.1f} {cost.mean_us:8.1f}"
        for cost in measure(options.waiting, options.tenants, options.decisions, options.repeats)
    ]
    lines.append(f"100 integer additions took {_yardstick_us():.1f} us on this machine, just now")
    sys.stdout.write("\n".join(lines) + "\n")


def _yardstick_us() -> float:
    """Return the time of a known piece of Python: a busy machine stretches it like all else."""
    least = float("inf")
    for _ in range(2000):
        start = time.thread_time_ns()
        total = 0
        for number in range(100):
            total += number
        least = min(least, (time.thread_time_ns() - start) / 1e3)
    return least


if __name__ == "__main__":
    main()
