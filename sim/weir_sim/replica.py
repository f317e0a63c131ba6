"""One simulated replica: a front (Weir's scheduler or a baseline) before one engine model.

Everything between the two takes `link_s` each way, as a socket and two event loops do: the front
knows of a token only when it arrives, and the engine of a request only when it was sent. A
requeue can cross a first token on that way; what the old attempt still sends is then ignored.

An engine may die and come back empty, which a scheduler is told, or fall silent, which it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from weir_core.sched.scheduler import Scheduler
from weir_core.sched.types import (
    Action,
    ClassPolicy,
    Dispatch,
    EngineFacts,
    Reject,
    Request,
    Requeue,
)
from weir_sim.baselines import Front
from weir_sim.engine_model import EngineModel, Job, StepEnd
from weir_sim.events import EventLoop
from weir_sim.workload import BYTES_PER_TOKEN, SimRequest

_TOKEN_REPORT_STEPS = 32
"""Tokens are reported to the front in lots of this many steps, and at the end of each answer."""
_COUNTED_BYTES: Final = 64 << 10
"""A sidecar has bodies from this size on counted by its engine, and guesses the others."""


@dataclass(slots=True, eq=False)
class Trip:
    """One request's way through the simulation.

    Attributes:
        submitted_s: When its client sent it last; later than its arrival after a refusal.
        failed: Its answer had begun when the engine died.
        refusals: How often it was refused; the last one may be its outcome.
    """

    request: SimRequest
    replica: int = -1
    dispatched_s: float = -1.0
    first_token_s: float = -1.0
    finished_s: float = -1.0
    rejected: Reject | None = None
    requeues: int = 0
    outcomes: int = 0
    submitted_s: float = 0.0
    refusals: int = 0
    job: Job | None = None
    reported: int = 0
    failed: bool = False


def as_request(trip: Trip) -> Request:
    """Return a trip's request as a sidecar sees it."""
    request = trip.request
    body_bytes = BYTES_PER_TOKEN * request.prompt_tokens
    return Request(
        request_id=request.request_id,
        tenant=request.tenant,
        class_name=request.class_name,
        arrival_s=trip.submitted_s,
        body_bytes=body_bytes,
        prompt_tokens=request.prompt_tokens if body_bytes >= _COUNTED_BYTES else None,
    )


class Replica:
    """Performs a front's actions on an engine model, and tells it what the engine did."""

    def __init__(
        self,
        front: Front,
        engine: EngineModel,
        loop: EventLoop,
        policies: Mapping[str, ClassPolicy],
        link_s: float,
        after_event: Callable[[Front, float, list[Action]], None] | None = None,
    ) -> None:
        self.front = front
        self.engine = engine
        self.bubble_s = 0.0
        self.on_outcome: Callable[[Trip], None] = lambda _trip: None
        self.on_begun: Callable[[Trip, Job], None] = lambda _trip, _job: None
        self.on_step_formed: Callable[[EngineModel], None] = lambda _engine: None
        self._loop = loop
        self._policies = policies
        self._link_s = link_s
        self._after_event = after_event
        self._trips: dict[str, Trip] = {}
        self._tick_at: float | None = None
        self._noted_s = 0.0
        self._in_bubble = False
        self._facts: EngineFacts | None = None
        """The engine that died and has not come back."""
        self._deaths = 0
        self._silent_until_s = 0.0

    def submit(self, trip: Trip) -> None:
        """Take in a request that its client sends now."""
        trip.submitted_s = self._loop.now
        self.take(trip, as_request(trip))

    def take(self, trip: Trip, request: Request) -> None:
        """Take in a request that came to Weir at its `arrival_s`."""
        self._trips[request.request_id] = trip
        self._perform(self.front.on_arrival(request, self._loop.now))
        self._settle()

    def give_up(self, trip: Trip) -> None:
        """Let a request that waits go, as if it had never come."""
        del self._trips[trip.request.request_id]
        self._take_out(trip)
        self._perform(self._scheduler().on_abort(trip.request.request_id, self._loop.now))
        self._settle()

    def waiting(self) -> Iterator[str]:
        """Yield the class of each request in the pool."""
        return (trip.request.class_name for trip in self._trips.values() if trip.job is None)

    # ---- outages

    def engine_dies(self) -> None:
        """Lose the engine and all that it held."""
        scheduler, now = self._scheduler(), self._loop.now
        self._facts = scheduler.engine
        self._deaths += 1
        self.engine.crash()
        begun = [trip for trip in self._trips.values() if trip.job is not None and trip.reported]
        self._perform(scheduler.on_engine_gone(now))
        for trip in begun:
            trip.failed = True
            self._end(trip)
            self._perform(scheduler.on_abort(trip.request.request_id, now))
        self._settle()

    def engine_returns(self) -> None:
        """Have an engine with the same limits again, which holds nothing."""
        assert self._facts is not None, "no engine died"
        facts, self._facts = self._facts, None
        self._perform(self._scheduler().on_engine_up(facts, self._loop.now))
        self._settle()

    def engine_is_silent(self, until_s: float) -> None:
        """Let the engine do nothing until then, and say nothing of it."""
        self._silent_until_s = until_s

    def _scheduler(self) -> Scheduler:
        if not isinstance(self.front, Scheduler):
            raise TypeError("only Weir's scheduler is told of an engine's death")
        return self.front

    # ---- what the front wants

    def _perform(self, actions: list[Action]) -> None:
        now = self._loop.now
        for action in actions:
            trip = self._trips[action.request_id]
            match action:
                case Dispatch():
                    self._dispatch(trip, action)
                case Requeue():
                    trip.requeues += 1
                    self._take_out(trip)
                case Reject():
                    self._take_out(trip)
                    trip.rejected = action
                    trip.refusals += 1
                    self._end(trip)
                case _:
                    assert_never(action)
        if self._after_event is not None:
            self._after_event(self.front, now, actions)

    def _settle(self) -> None:
        """After one or more events of this instant: note idleness, set the next tick."""
        self._note_bubble()
        self._schedule_tick()

    def _dispatch(self, trip: Trip, action: Dispatch) -> None:
        request = trip.request
        policy = self._policies.get(request.class_name)
        trip.dispatched_s = self._loop.now
        trip.reported = 0
        trip.job = Job(
            request_id=request.request_id,
            rank=action.rank,
            arrival_s=trip.submitted_s,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            due_s=trip.submitted_s + (policy.ttft_target_s or math.inf if policy else math.inf),
            hash_ids=request.hash_ids,
        )
        self._loop.at(self._loop.now + self._link_s, self._enter, trip.job)

    def _take_out(self, trip: Trip) -> None:
        if trip.job is not None:
            self._loop.at(self._loop.now + self._link_s, self._cancel, trip.job)
            trip.job = None

    def _enter(self, job: Job) -> None:
        if self._facts is not None:
            return  # sent to an engine that is gone
        self.engine.add(job)
        self._step_if_idle()

    def _cancel(self, job: Job) -> None:
        self.engine.cancel(job)
        self._step_if_idle()

    def _schedule_tick(self) -> None:
        at = self.front.next_tick(self._loop.now)
        if at is None or (self._tick_at is not None and self._tick_at <= at):
            return
        self._tick_at = at
        self._loop.at(at, self._tick, at)

    def _tick(self, at: float) -> None:
        if self._tick_at == at:
            self._tick_at = None
            self._perform(self.front.on_tick(self._loop.now))
            self._settle()

    # ---- what the engine did

    def _step_if_idle(self) -> None:
        if self.engine.is_stepping or self._facts is not None:
            return
        if self._loop.now < self._silent_until_s:
            self._loop.at(self._silent_until_s, self._step_if_idle)
            return
        duration_s = self.engine.begin()
        self._note_bubble()
        if duration_s is not None:
            self.on_step_formed(self.engine)
            self._loop.at(self._loop.now + duration_s, self._step_ended, self._deaths)

    def _step_ended(self, deaths: int) -> None:
        if deaths != self._deaths:
            return
        if self._loop.now < self._silent_until_s:
            self._loop.at(self._silent_until_s, self._step_ended, deaths)
            return
        result = self.engine.end()
        report = result.first_tokens or result.finished or result.record.prefill_tokens
        if report or self.engine.step % _TOKEN_REPORT_STEPS == 0:
            lot = [(job, job.generated) for job in result.finished]
            if self.engine.step % _TOKEN_REPORT_STEPS == 0:
                lot += [(job, self.engine.generated(job)) for job in self.engine.decodes()]
            self._loop.at(self._loop.now + self._link_s, self._observe, result, lot)
        self._step_if_idle()

    def _observe(self, result: StepEnd, lot: list[tuple[Job, int]]) -> None:
        now = self._loop.now
        # The step log is written before the tokens are: its record comes first.
        self._perform(self.front.on_step(result.record, now))
        for job in result.first_tokens:
            trip = self._trip_of(job)
            if trip is not None:
                trip.first_token_s = now
                trip.reported = 1
                self.on_begun(trip, job)
                self._perform(self.front.on_first_token(job.request_id, now))
        for job, generated in lot:
            trip = self._trip_of(job)
            if trip is not None and generated > trip.reported:
                self.front.on_tokens(job.request_id, generated - trip.reported, now)
                trip.reported = generated
        for job in result.finished:
            trip = self._trip_of(job)
            if trip is not None:
                trip.finished_s = now
                self._end(trip)
                self._perform(self.front.on_finish(job.request_id, now))
        self._settle()

    def _trip_of(self, job: Job) -> Trip | None:
        """Return the request that `job` is the present attempt of, or None."""
        trip = self._trips.get(job.request_id)
        return trip if trip is not None and trip.job is job else None

    def _end(self, trip: Trip) -> None:
        trip.outcomes += 1
        del self._trips[trip.request.request_id]
        self.on_outcome(trip)

    def _note_bubble(self) -> None:
        """Count the time in which the engine does nothing although requests wait."""
        now = self._loop.now
        if self._in_bubble:
            self.bubble_s += now - self._noted_s
        self._noted_s = now
        is_idle = self._facts is None and not self.engine.is_stepping
        self._in_bubble = is_idle and self.front.backlog() > 0
