"""The sidecar's driver of the scheduling core: its events from sockets, its actions on sockets.

`weir_core.sched` decides; here its decisions happen. A request that may go wakes its handler, one
that is refused wakes it with the refusal, and one whose place was taken back loses its engine
connection and waits on. The simulator drives the same core with a heap.

Everything happens in callbacks of one event loop, so an action is performed before the next event
is told: a first byte and a recall of the same request cannot cross.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable, Sequence

from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.tickets import State, Ticket
from weir_core.sched.types import (
    Action,
    Dispatch,
    EngineFacts,
    EngineKind,
    PoolLimits,
    Reject,
    Request,
    Requeue,
    StepRecord,
)
from weir_core.wire.openai import Usage
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.priority import engine_priority
from weir_core.wire.steps import Facts, Step
from weir_sidecar import outcomes
from weir_sidecar.callers import Directory
from weir_sidecar.ledger import Entry
from weir_sidecar.metrics import Metrics
from weir_sidecar.settings import Limits
from weir_sidecar.turn import Turn

log = logging.getLogger(__name__)

UNKNOWN_ENGINE = Facts("fcfs", max_num_seqs=128, max_num_batched_tokens=2048, kv_capacity_tokens=0)
"""What is taken of an engine that says nothing of itself: plain vLLM with modest bounds."""
_NO_KV_BOUND = 1 << 40
_PATIENCE = 1.5
"""Times the expected time to first token after which a silent prompt counts as done."""
_PATIENCE_GRID_S = 0.01
"""Prompts that are done within so much of each other are taken together: a timer is not free."""


class Admission:
    """Owns the scheduler of this sidecar's engine.

    Args:
        limits: Bounds on what waits.
        metrics: The instruments.
        clock: Seconds that only move forward.
    """

    def __init__(self, limits: Limits, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._document = PolicyDocument()
        self.directory = Directory(self._document)
        self.facts: Facts | None = None
        self.scheduler: Scheduler | None = None
        self._turns: dict[str, Turn] = {}
        # The step log names requests by their id on the wire, which clients may repeat.
        self._by_wire_id: dict[str, Turn] = {}
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        # When a plain answer's prompt counts as done, by _expect_prefilled: (instant, number, ...).
        self._silent: list[tuple[float, int, Turn, Dispatch]] = []
        self._starved_since: float | None = None
        self._steps_heard = False

    # ---- what the engine and the operator say

    def meet(self, facts: Facts | None) -> None:
        """Hear what an engine that has just become ready is."""
        known = facts or UNKNOWN_ENGINE
        if facts is None:
            log.warning("the engine says nothing of itself; taking it for plain vLLM")
        elif facts.fallback:
            log.warning("the engine runs without Weir's scheduler: %s", facts.fallback)
        if known == self.facts or (self.scheduler is not None and self._turns):
            return
        self.facts = known
        self._metrics.describe_engine(known)
        engine = EngineFacts(
            kind=EngineKind(known.kind),
            max_num_seqs=known.max_num_seqs,
            max_num_batched_tokens=known.max_num_batched_tokens,
            kv_capacity_tokens=known.kv_capacity_tokens or _NO_KV_BOUND,
        )
        bounds = PoolLimits(self._limits.max_requests, self._limits.max_held_bytes // 2)
        settings = SchedulerSettings(engine, limits=bounds)
        self.scheduler = Scheduler(settings, self.directory.classes, self.directory.tenants)

    def apply(self, document: PolicyDocument) -> None:
        """Make these the classes and tenants; what waits and runs stays."""
        if document == self._document:
            return
        self._document = document
        self.directory = Directory(document)
        log.info("policies are in force", extra={"open_to": self.directory.openness})
        if self.scheduler is not None:
            now = self._clock()
            self._perform(
                self.scheduler.configure(self.directory.classes, self.directory.tenants, now), now
            )

    # ---- a request's way

    def next_id(self) -> str:
        """Return a new id for the scheduler; clients may repeat theirs."""
        return str(next(self._numbers))

    def now(self) -> float:
        """Return the instant from which, and to which, waits are measured."""
        return self._clock()

    def arrive(self, request: Request, entry: Entry, *, wire_id: str, streams: bool) -> Turn:
        """Take in a request that has arrived now; what becomes of it, its turn says.

        Raises:
            Refusal: No engine was ever here.
        """
        if self.scheduler is None:
            raise outcomes.no_engine("the engine is starting", 1)
        now = request.arrival_s
        turn = Turn(request, wire_id, entry, streams=streams)
        entry.refuse = turn.refuse
        self._turns[request.request_id] = turn
        self._by_wire_id[wire_id] = turn
        try:
            actions = self._note_silent(now)
            self._perform(actions + self.scheduler.on_arrival(request, now), now)
        except BaseException:
            # A bug must cost this request and no other: a ghost in the engine's books would.
            self.leave(turn)
            raise
        return turn

    def priority(self, turn: Turn) -> int | None:
        """Return the engine's `priority` for a request on its way there; None takes none."""
        if self.facts is None or self.facts.kind == "fcfs" or turn.dispatch is None:
            return None
        ticket = self._ticket(turn)
        return engine_priority(turn.dispatch.rank, float("inf") if ticket is None else ticket.due_s)

    def begun(self, turn: Turn, *, learn: bool = True) -> None:
        """Hear that an answer's first byte is about to go to its client.

        It is a first token, from which there is something to `learn`, or a whole answer.
        """
        if self.scheduler is None:
            return
        now, request_id = self._clock(), turn.request.request_id
        if learn:
            self._note_first_token(turn, now)
            self._perform(self.scheduler.on_first_token(request_id, now), now)
            turn.counted_tokens = max(turn.counted_tokens, 1)
        else:
            self._perform(self.scheduler.on_prefilled(request_id, now), now)

    def finish(self, turn: Turn, usage: Usage | None) -> None:
        """Hear that an answer is complete."""
        if self.scheduler is None:
            return
        now = self._clock()
        exchange = turn.entry.exchange
        prompt_tokens = output_tokens = None
        if usage is not None:
            prompt_tokens, output_tokens = usage.prompt_tokens, usage.output_tokens
            self._note_lengths(turn, usage)
        elif exchange is not None and exchange.chunks:
            output_tokens = exchange.chunks
        self._forget(turn)
        self._perform(
            self.scheduler.on_finish(turn.request.request_id, now, prompt_tokens, output_tokens),
            now,
        )

    def leave(self, turn: Turn, *, ran: bool = True) -> None:
        """Hear that a request is over in any other way; one that was refused is gone already.

        Where no engine was there to take it, it never `ran`.
        """
        self._forget(turn)
        if self.scheduler is not None:
            now = self._clock()
            request_id = turn.request.request_id
            self._perform(self.scheduler.on_abort(request_id, now, ran=ran), now)

    # ---- the engine's steps

    def on_step(self, step: Step) -> None:
        """Hear of one step of the engine."""
        if self.scheduler is None:
            return
        self._steps_heard = True
        now = self._clock()
        record = StepRecord(
            duration_s=step.duration_s,
            prefill_tokens=step.prefill_tokens,
            decodes=step.decodes,
            prefill_context=step.prefill_context,
            decode_context=step.decode_context,
        )
        actions = self.scheduler.on_step(record, now)
        for wire_id in step.started:
            turn = self._by_wire_id.get(wire_id)
            # A stream's own first byte is the better witness of it.
            if turn is not None and turn.dispatch is not None and not turn.counted_tokens:
                self._note_first_token(turn, now)
                turn.counted_tokens = 1
                actions += self.scheduler.on_first_token(turn.request.request_id, now)
        self._metrics.engine_step(step)
        self._perform(actions, now)

    def count_tokens(self) -> None:
        """Tell what streams have brought since the last call; called about once a second."""
        if self.scheduler is None:
            return
        now = self._clock()
        for turn in self._turns.values():
            exchange = turn.entry.exchange
            if exchange is not None and exchange.begun and exchange.chunks > turn.counted_tokens:
                new_tokens = exchange.chunks - turn.counted_tokens
                turn.counted_tokens = exchange.chunks
                self.scheduler.on_tokens(turn.request.request_id, new_tokens, now)

    # ---- for people

    def waiting(self) -> list[Ticket]:
        """Return the tickets that wait, in order of rank and arrival."""
        if self.scheduler is None:
            return []
        tickets = [t for t in self.scheduler.tickets.values() if t.state is State.WAITING]
        return sorted(tickets, key=lambda ticket: (-ticket.policy.rank, ticket.seq))

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    # ---- inside

    def _perform(self, actions: Sequence[Action], now: float) -> None:
        for action in actions:
            turn = self._turns.get(action.request_id)
            if turn is None:  # it left while the core decided about it
                continue
            match action:
                case Dispatch():
                    self._note_dispatch(turn, action)
                    turn.give(action)
                    if not turn.streams and not self._steps_heard:
                        self._expect_prefilled(turn, action, now)
                case Reject():
                    self._forget(turn)
                    self._metrics.of_class(turn.request.class_name).rejections(action.reason).inc()
                    turn.refuse(outcomes.rejected(action.reason, action.retry_after_s))
                    if turn.dispatch is not None:
                        turn.take_back()
                case Requeue():
                    self._metrics.of_class(turn.request.class_name).preemptions.inc()
                    turn.counted_tokens = 0
                    turn.take_back()
        self._note_starvation(now)
        self._arm(now)

    def _arm(self, now: float) -> None:
        """Set the timer to the next instant at which time alone changes something for who waits."""
        assert self.scheduler is not None
        due = self.scheduler.next_tick(now)
        if self.scheduler.pool.requests:
            silent = self._silent
            while silent and not self._is_silent(silent[0][2], silent[0][3]):
                heapq.heappop(silent)
            if silent and (due is None or silent[0][0] < due):
                due = silent[0][0]
        timer = self._timer
        if timer is not None:
            # One that fires too early costs less than a new one at each event.
            if due is not None and self._timer_due <= due:
                return
            timer.cancel()
            self._timer = None
        if due is not None:
            self._timer_due = due
            self._timer = asyncio.get_running_loop().call_later(max(due - now, 0.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.scheduler is None:
            return
        now = self._clock()
        self._perform(self.scheduler.on_tick(now) + self._note_silent(now), now)

    def _note_silent(self, now: float) -> list[Action]:
        """Tell the scheduler of the prompts that are taken to be done by now."""
        assert self.scheduler is not None
        actions: list[Action] = []
        while self._silent and self._silent[0][0] <= now + _PATIENCE_GRID_S:
            *_, turn, dispatch = heapq.heappop(self._silent)
            if self._is_silent(turn, dispatch):
                actions += self.scheduler.on_prefilled(turn.request.request_id, now)
        return actions

    def _expect_prefilled(self, turn: Turn, dispatch: Dispatch, now: float) -> None:
        """Take a silent answer's prompt to be done once that was to be expected.

        Without this, a few long plain answers of an engine without a step log would count as
        prefill until they end, and keep everybody else out.
        """
        ticket = self._ticket(turn)
        if ticket is not None:
            due = now + _PATIENCE * ticket.first_token_expected_s + _PATIENCE_GRID_S
            heapq.heappush(self._silent, (due, next(self._numbers), turn, dispatch))

    def _is_silent(self, turn: Turn, dispatch: Dispatch) -> bool:
        """Tell whether a request is still where that dispatch put it, without an answer."""
        return turn.dispatch is dispatch and turn.request.request_id in self._turns

    def _forget(self, turn: Turn) -> None:
        self._turns.pop(turn.request.request_id, None)
        if self._by_wire_id.get(turn.wire_id) is turn:
            del self._by_wire_id[turn.wire_id]

    def _ticket(self, turn: Turn) -> Ticket | None:
        scheduler = self.scheduler
        return None if scheduler is None else scheduler.tickets.get(turn.request.request_id)

    # ---- what is measured

    def _note_dispatch(self, turn: Turn, dispatch: Dispatch) -> None:
        of_class = self._metrics.of_class(turn.request.class_name)
        of_class.queue_wait.observe(dispatch.waited_s)
        if dispatch.by_min_share:
            of_class.min_share_dispatches.inc()
        elif self._inverted(dispatch):
            self._metrics.inversions.inc()

    def _inverted(self, dispatch: Dispatch) -> bool:
        """Tell whether a higher rank still waits (INV-3)."""
        assert self.scheduler is not None
        for queue in self.scheduler.pool.classes:
            if queue.policy.rank <= dispatch.rank:
                return False
            if queue.waiting:
                return True
        return False

    def _note_first_token(self, turn: Turn, now: float) -> None:
        ticket = self._ticket(turn)
        if ticket is not None and not ticket.started and ticket.first_token_expected_s > 0:
            took_s = max(now - ticket.dispatched_s, 1e-6)
            self._metrics.estimates["first_token"].observe(ticket.first_token_expected_s / took_s)

    def _note_lengths(self, turn: Turn, usage: Usage) -> None:
        ticket = self._ticket(turn)
        if ticket is None:
            return
        if turn.request.prompt_tokens is None and usage.prompt_tokens:
            ratio = ticket.prompt_tokens / usage.prompt_tokens
            self._metrics.estimates["prompt_tokens"].observe(ratio)
        if usage.output_tokens:
            ratio = ticket.output_estimate / usage.output_tokens
            self._metrics.estimates["output_tokens"].observe(ratio)

    def _note_starvation(self, now: float) -> None:
        """Count the time in which requests wait and the engine has none."""
        assert self.scheduler is not None
        starved = self.scheduler.pool.requests > 0 and self.scheduler.engine_load.running == 0
        if self._starved_since is not None:
            self._metrics.bubble.inc(now - self._starved_since)
        self._starved_since = now if starved else None
