"""The scheduler of one engine: a state machine that is told events and answers with actions.

It does no I/O and has no clock: every event carries `now`, and equal events give equal actions.
The sidecar performs the actions with sockets, the simulator with a heap.

How a request goes: `admit` lets it in or rejects it; it waits in the `pool`; after each event that
may change something the pool is pumped. What waited too long is rejected, then requests are
dispatched in the order of `pick` while the `gate` lets them through, room being made by `preempt`
where a higher rank lacks it. The usual request finds nothing waiting and the gate open, and skips
the pool. `engine_load` holds what runs, `counts` what became of all requests.

A deadline does not end at the dispatch: what the engine has not begun for far longer than its
class may wait, while nothing shows that the engine works (steps, tokens, ends of answers), is
aborted there and rejected.

An engine comes and goes by events, too. While there is none, nothing is dispatched and the pool
waits; what had been sent to it and had not begun waits again, as if it had never been sent.

Events about a request that is gone are ignored: when a requeue and a first token cross on the
wire, whoever performs the actions has already decided which one came first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from weir_core.sched.admit import AdmissionControl, Rejection
from weir_core.sched.counts import Counts
from weir_core.sched.engine_load import EngineLoad
from weir_core.sched.estimate import LONGEST_GUESS_TOKENS, Estimator
from weir_core.sched.forecast import Forecast
from weir_core.sched.gate import Block
from weir_core.sched.lazyheap import LazyHeap
from weir_core.sched.policies import RuleNames, Rules
from weir_core.sched.pool import ClassQueue, Pool
from weir_core.sched.tickets import OUTPUT_WEIGHT, State, Ticket, TicketFactory, set_instants
from weir_core.sched.types import (
    BUILT_IN_CLASSES,
    Action,
    ClassPolicy,
    Dispatch,
    EngineFacts,
    EngineKind,
    PoolLimits,
    Reason,
    Request,
    Requeue,
    RequeueReason,
    StepRecord,
    TenantPolicy,
)
from weir_core.sched.work import WorkMeter, WorkRate

_BUSY_PATIENCE: Final = 4.0
"""Times the longest wait for a first token, where the engine works on and only this one is late."""
_NO_ENGINE_YET: Final = EngineFacts(EngineKind.FCFS, 1, 2048, 2 * LONGEST_GUESS_TOKENS)
"""What rules and estimates reckon with before any engine was there to dispatch to."""


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """What a scheduler is made with; classes, tenants and engine can change later.

    Attributes:
        engine: None where no engine has come up yet.
        default_class: Class of requests whose own class does not exist.
    """

    engine: EngineFacts | None = None
    rules: RuleNames = field(default_factory=RuleNames)
    limits: PoolLimits = field(default_factory=PoolLimits)
    default_class: str = "standard"


class Scheduler:
    """Owns every request from its arrival to its outcome."""

    def __init__(
        self,
        settings: SchedulerSettings,
        classes: Sequence[ClassPolicy] = BUILT_IN_CLASSES,
        tenants: Sequence[TenantPolicy] = (),
        estimator: Estimator | None = None,
    ) -> None:
        self._facts = settings.engine or _NO_ENGINE_YET
        self.estimator = estimator or Estimator(
            self._facts.max_num_batched_tokens, longest_guess_tokens=_longest_guess(self._facts)
        )
        self.forecast = Forecast()
        self.rules = Rules(settings.rules, self._facts, self.estimator, self.forecast)
        self._use_rules()
        self.pool = Pool(self.rules.make_fairness, self.rules.order)
        self.engine_load = EngineLoad()
        self.engine_load.set_engine(settings.engine)
        self.counts = Counts()
        self._work = WorkMeter()
        self._ticket_factory = TicketFactory(self.estimator, settings.default_class)
        self._admission = AdmissionControl(
            self.rules, self.pool, self.engine_load, self.forecast, settings.limits
        )
        self.tenants = self._admission.tenants
        self._drain = self.forecast.drain
        self._tickets: dict[str, Ticket] = {}
        self._expiry = LazyHeap()
        # Before this instant nothing that runs and has not begun need be looked at.
        self._look_at_unbegun_s = float("inf")
        self._progress_s = float("-inf")
        self.configure(classes, tenants, now=0.0)

    @property
    def tickets(self) -> Mapping[str, Ticket]:
        """Every request that waits or runs, by id; for looking, not for changing."""
        return self._tickets

    def backlog(self) -> int:
        """Return how many requests wait."""
        return self.pool.requests

    def begin_by_s(self, ticket: Ticket) -> float:
        """Return when a request without a first token is given up, if no progress is heard."""
        longest_s = self.estimator.longest_first_token_s(ticket.prefill_ahead)
        patience_s = max(ticket.policy.max_queue_wait_s, longest_s)
        silent_s = max(ticket.dispatched_s, self._progress_s) + patience_s
        return min(silent_s, ticket.dispatched_s + _BUSY_PATIENCE * patience_s)

    def block_of(self, ticket: Ticket, now: float) -> Block | None:
        """Return what the engine lacks for a request that waits, were it the next; for people."""
        return self._gate.block(ticket, ticket.policy.rank, self.engine_load, now)

    def overdue_s(self, now: float) -> float:
        """Return for how long the engine has made no progress beyond what its prompts explain.

        An engine that hangs shows nothing else: its counts stay as they are.
        """
        oldest_s = self.engine_load.oldest_unstarted_s()
        if oldest_s is None:
            return 0.0
        silent_s = now - max(oldest_s, self._progress_s)
        return max(0.0, silent_s - self.estimator.first_token_s(self.engine_load.prefill_of_all()))

    # ---- configuration

    def configure(
        self, classes: Sequence[ClassPolicy], tenants: Sequence[TenantPolicy], now: float
    ) -> list[Action]:
        """Replace classes and tenants; requests stay, under their class's new promises.

        A request whose class is gone keeps the promises it came with.

        Raises:
            ValueError: There is no class at all; the last ones stay in force.
        """
        self._ticket_factory.configure(classes)
        waiting = self._empty_pool()
        for ticket in self._tickets.values():
            self._ticket_factory.renew(ticket)
        weights = {tenant.name: tenant.weight for tenant in tenants}
        self.pool.configure(self._ticket_factory.policies_in_use(self._tickets.values()), weights)
        self._gate.forget_above(self.pool.levels[0].rank)
        self._refill_pool(waiting)
        self._plan_look_at_unbegun(now)
        self.tenants.configure({tenant.name: tenant for tenant in tenants}, now)
        return self._pump(now)

    def work_of(self, queue: ClassQueue, now: float) -> WorkRate:
        """Return the work that a class offers, in seconds of this engine."""
        return self._work.of(queue.policy.name, now)

    def bound(self, limits: PoolLimits) -> None:
        """Replace the bounds on what waits; what waits already stays."""
        self._admission.limits = limits

    # ---- the engine

    @property
    def engine(self) -> EngineFacts | None:
        """Return the engine that is there, or None."""
        return self.engine_load.engine

    def on_engine_up(self, engine: EngineFacts, now: float) -> list[Action]:
        """Note that an engine is there, or that it is another one than was known.

        Requests stay; limits, rules and estimates follow the engine.
        """
        if engine != self._facts:
            self._facts = engine
            self.estimator.fit(engine.max_num_batched_tokens, _longest_guess(engine))
            self.rules.fit(engine)
            self._use_rules()
            waiting = self._empty_pool()
            for ticket in waiting:
                self._ticket_factory.estimate(ticket)
                self._gate.set_claim(ticket)
            self._refill_pool(waiting)
        self.engine_load.set_engine(engine)
        return self._pump(now)

    def on_engine_gone(self, now: float) -> list[Action]:
        """Note that the engine is gone, with all that it held.

        What it had not begun waits again, with its age and without a charge. What it had begun
        is lost: whoever performs the actions reports each with `on_abort`.
        """
        self.engine_load.set_engine(None)
        self._drain.interrupted()
        actions: list[Action] = []
        for ticket in self.engine_load.unstarted():
            self._requeue(ticket, now)
            actions.append(Requeue(ticket.request.request_id, RequeueReason.ENGINE_GONE))
        return actions + self._pump(now)

    def _use_rules(self) -> None:
        """Keep at hand those rules that were made for the present engine."""
        rules = self.rules
        self._gate, self._pick, self._shed = rules.gate, rules.pick, rules.shed
        self._preempting = rules.preempt

    # ---- events

    def on_arrival(self, request: Request, now: float) -> list[Action]:
        """Take in a request: dispatch it, let it wait, or reject it.

        Raises:
            ValueError: A request of this id is already here.
        """
        request_id = request.request_id
        if request_id in self._tickets:
            raise ValueError(f"request {request_id!r} is already here")
        self.counts.arrived += 1
        ticket = self._ticket_factory.issue(request)
        self._gate.set_claim(ticket)
        actions: list[Action] = []
        if not request.holds_place and self.tenants.has_limits(ticket.payer):
            over_limit = self._admission.over_limit(ticket, now)
            if over_limit is not None:
                self._reject(over_limit, actions)
                return actions
        self._count_work(ticket, now)
        at_once = self._goes_at_once(ticket, now)
        for rejection in () if at_once else self._admission.rejections(ticket, now):
            if rejection.ticket is ticket:
                self._reject(rejection, actions)
                return actions
            self._evict(rejection, actions)
        self._tickets[request_id] = ticket
        if not request.holds_place:
            self.tenants.enter(ticket.payer, ticket.sequences)
        if at_once:
            self.pool.pass_by(ticket)
            self._dispatch(ticket, actions, now)
            return actions
        self._queue(ticket)
        return actions + self._pump(now)

    def on_first_token(
        self, request_id: str, now: float, prompt_tokens: int | None = None
    ) -> list[Action]:
        """Note that a prompt is done and one token is out; give its exact length if known."""
        self._progress_s = now
        ticket = self._tickets.get(request_id)
        if ticket is None or ticket.started or ticket.state is not State.RUNNING:
            return []
        if prompt_tokens is not None:
            self._true_up_prompt(ticket, prompt_tokens, now)
        self._start(ticket)
        self.estimator.learn_first_token(ticket.first_token_expected_s, now - ticket.dispatched_s)
        self._count_output(ticket, 1, now)
        return self._pump(now)

    def on_prefilled(self, request_id: str, now: float) -> list[Action]:
        """Note that a prompt is done, or taken to be, though nobody saw a token.

        For plain answers, which are silent until they are whole; nothing is learned.
        """
        ticket = self._tickets.get(request_id)
        if ticket is None or ticket.started or ticket.state is not State.RUNNING:
            return []
        self._start(ticket)
        return self._pump(now)

    def on_tokens(self, request_id: str, count: int, now: float) -> list[Action]:
        """Note `count` more output tokens. Nothing becomes free by it, so nothing is pumped."""
        ticket = self._tickets.get(request_id)
        if ticket is not None and ticket.started and count > 0:
            self._progress_s = now
            self._count_output(ticket, count, now)
        return []

    def on_finish(
        self,
        request_id: str,
        now: float,
        prompt_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> list[Action]:
        """Note that an answer is complete; give the engine's usage counts if known."""
        self._progress_s = now
        ticket = self._tickets.get(request_id)
        if ticket is None or ticket.state is not State.RUNNING:
            return []
        if not ticket.started:  # an answer without tokens, such as an embedding
            self._start(ticket)
        if prompt_tokens is not None:
            self._true_up_prompt(ticket, prompt_tokens, now)
        if output_tokens is not None and output_tokens > ticket.output_tokens:
            self._count_output(ticket, output_tokens - ticket.output_tokens, now)
        self.estimator.learn_output(ticket.request, ticket.output_tokens // ticket.sequences)
        self.counts.finished += 1
        self.engine_load.remove(ticket)
        self._forget(ticket)
        return self._pump(now)

    def on_abort(self, request_id: str, now: float, *, ran: bool = True) -> list[Action]:
        """Note that a client left, or that a running request failed for good.

        Its tenant stays charged for what the engine may have computed, unless it never `ran`.
        """
        ticket = self._tickets.get(request_id)
        if ticket is None:
            return []
        self.counts.aborted += 1
        if ticket.state is State.WAITING:
            self._unqueue(ticket)
        else:
            self.engine_load.remove(ticket)
            if not ran and not ticket.started:
                self._charge(ticket, -ticket.charged, now)
        self._forget(ticket)
        return self._pump(now)

    def on_step(self, record: StepRecord, now: float) -> list[Action]:
        """Learn from one engine step, and use the room it made."""
        self._progress_s = now
        self.estimator.learn_step(record)
        if record.prefill_tokens > 0:
            self.engine_load.prefilled(record.prefill_tokens)
            self._drain.prefilled(record.prefill_tokens)
        return self._pump(now)

    def on_tick(self, now: float) -> list[Action]:
        """Let time pass; call it at `next_tick`."""
        return self._pump(now)

    def next_tick(self, now: float) -> float | None:
        """Return when `on_tick` is due if nothing else happens, or None."""
        unbegun_s = self._look_at_unbegun_s if self.engine_load.prefilling else None
        if not self.pool.requests:
            return unbegun_s
        instants = [self._expiry.first_key(), unbegun_s]
        top = self.pool.top()
        if top is not None and self.engine is not None:
            instants.append(self._pick.next_change(self.pool, now))
            instants.append(self._gate.next_change(top.rank, now))
        return min((at for at in instants if at is not None), default=None)

    # ---- the pump

    def _pump(self, now: float) -> list[Action]:
        actions: list[Action] = []
        if now >= self._look_at_unbegun_s:
            self._abort_unbegun(actions, now)
        if self.pool.requests or self._drain.since_s is not None:
            self._expire(actions, now)
            while self._advance(actions, now):
                pass
            self._drain.observe(now, self.pool.requests > 0 and self.engine is not None)
        return actions

    def _goes_at_once(self, ticket: Ticket, now: float) -> bool:
        """Return whether a newcomer is dispatched without a pass through the pool.

        That is the usual case: nothing waits, nothing else is due, and the engine takes it. The
        pump would decide the same by the same rules, only in more steps.
        """
        engine_load = self.engine_load
        if self.pool.requests or (engine_load.prefilling and now >= self._look_at_unbegun_s):
            return False
        if now >= ticket.due_s or now >= ticket.expires_s:
            return False
        if self._gate.block(ticket, ticket.engine_rank, engine_load, now) is not None:
            return False
        if self._is_hopeless(ticket, now):
            return False
        return not self._preempting.for_passage(ticket, engine_load)

    def _advance(self, actions: list[Action], now: float) -> bool:
        """Dispatch or reject one request; return whether there was one."""
        top = self.pool.top()
        if top is None:
            return False
        rank = top.rank
        shut = self._gate.shut(rank, self.engine_load, now)
        if shut is not None and shut is not Block.SLOT:
            return False  # nobody can make room for this by leaving
        for ticket in self._pick.candidates(self.pool, now):
            ticket.by_min_share = ticket.policy.rank < rank
            if ticket.by_min_share and not self._gate.has_room_for_share(ticket, self.engine_load):
                continue
            block = shut or self._gate.lack(ticket, rank, self.engine_load, now)
            may_go = block is None or self._victims(ticket, rank, block, now)
            if may_go and self._serve(ticket, rank, block, actions, now):
                return True
        return False

    def _serve(
        self, ticket: Ticket, rank: int, block: Block | None, actions: list[Action], now: float
    ) -> bool:
        """Dispatch `ticket`, whose turn it is, or reject it because it is too late."""
        if self._is_hopeless(ticket, now):
            self._evict_late(ticket, actions, now)
            return True
        if not self._make_room(ticket, rank, block, actions, now):
            return False
        self._unqueue(ticket)
        self._dispatch(ticket, actions, now)
        return True

    def _is_hopeless(self, ticket: Ticket, now: float) -> bool:
        """Set when the first token is to be expected; return whether that is too late."""
        engine_load = self.engine_load
        ticket.prefill_ahead = engine_load.prefill_ahead(ticket.engine_rank) + ticket.new_tokens
        lead_s = self.estimator.first_token_s(ticket.prefill_ahead)
        ticket.first_token_expected_s = lead_s
        return engine_load.running > 0 and self._shed.is_hopeless(ticket, lead_s, now)

    def _victims(self, ticket: Ticket, rank: int, block: Block, now: float) -> list[Ticket]:
        shortfall = self._gate.shortfall(ticket, rank, block, self.engine_load, now)
        return self._preempting.for_place(ticket, block, shortfall, self.engine_load)

    def _make_room(
        self, ticket: Ticket, rank: int, block: Block | None, actions: list[Action], now: float
    ) -> bool:
        while block is not None:
            victims = self._victims(ticket, rank, block, now)
            if not victims:
                return False
            self._preempt(victims, ticket, actions, now)
            block = self._gate.block(ticket, rank, self.engine_load, now)
        if passed := self._preempting.for_passage(ticket, self.engine_load):
            self._preempt(passed, ticket, actions, now)
        return True

    def _dispatch(self, ticket: Ticket, actions: list[Action], now: float) -> None:
        ticket.dispatched_s = now
        self.engine_load.add(ticket)
        look_s = now + ticket.policy.max_queue_wait_s
        if look_s < self._look_at_unbegun_s or self.engine_load.prefilling == 1:
            self._look_at_unbegun_s = look_s
        self._gate.dispatched(ticket, self.engine_load, now)
        self._pick.dispatched(self.pool, ticket)
        self.forecast.dispatched(ticket, now)
        self._charge(ticket, ticket.new_tokens, now)
        ticket.charged = float(ticket.new_tokens)
        self.counts.dispatched += 1
        self.counts.dispatched_by_min_share += ticket.by_min_share
        request = ticket.request
        waited_s = now - request.arrival_s
        actions.append(
            Dispatch(request.request_id, ticket.engine_rank, waited_s, ticket.by_min_share)
        )

    def _preempt(
        self, victims: Sequence[Ticket], winner: Ticket, actions: list[Action], now: float
    ) -> None:
        for victim in victims:
            victim.requeues += 1
            self._requeue(victim, now)
            actions.append(
                Requeue(
                    victim.request.request_id, RequeueReason.PREEMPTED, winner.request.request_id
                )
            )
        self._expire(actions, now)  # who ran when its longest wait ended has no time left

    def _expire(self, actions: list[Action], now: float) -> None:
        """Reject what waited too long; move behind the others what is late but may wait on."""
        while (ticket := self._expiry.first_until(now)) is not None:
            if now < ticket.expires_s:
                self._unqueue(ticket)
                ticket.late = True
                self._queue(ticket)
            else:
                self._evict_late(ticket, actions, now)

    def _abort_unbegun(self, actions: list[Action], now: float) -> None:
        """Reject what the engine should have begun long ago."""
        for ticket in reversed(self.engine_load.unstarted()):
            if now >= self.begin_by_s(ticket):
                self.engine_load.remove(ticket)
                self._charge(ticket, -ticket.charged, now)
                self._forget(ticket)
                wait_s = self.forecast.wait_s(ticket, self.pool, now)
                self._reject(Rejection(ticket, Reason.TTL_EXPIRED, wait_s), actions)
        self._plan_look_at_unbegun(now)

    def _plan_look_at_unbegun(self, now: float) -> None:
        """Set when the first one has to be looked at; progress until then only moves it."""
        self._look_at_unbegun_s = float("inf")
        for ticket in self.engine_load.unstarted():
            look_s = ticket.dispatched_s + ticket.policy.max_queue_wait_s
            if look_s <= now:
                look_s = self.begin_by_s(ticket)
            self._look_at_unbegun_s = min(self._look_at_unbegun_s, look_s)

    def _evict_late(self, ticket: Ticket, actions: list[Action], now: float) -> None:
        wait_s = self.forecast.wait_s(ticket, self.pool, now)
        self._evict(Rejection(ticket, Reason.TTL_EXPIRED, wait_s), actions)

    def _evict(self, rejection: Rejection, actions: list[Action]) -> None:
        self._unqueue(rejection.ticket)
        self._forget(rejection.ticket)
        self._reject(rejection, actions)

    def _reject(self, rejection: Rejection, actions: list[Action]) -> None:
        self.counts.reject(rejection.reason)
        actions.append(rejection.action())

    # ---- where a ticket is

    def _queue(self, ticket: Ticket) -> None:
        self.pool.add(ticket)
        self._expiry.push(_ends_at(ticket), ticket)

    def _unqueue(self, ticket: Ticket) -> None:
        self.pool.remove(ticket)
        self._expiry.forget()

    def _empty_pool(self) -> list[Ticket]:
        """Take all that wait out, to be put back by `_refill_pool`."""
        waiting = [t for t in self._tickets.values() if t.state is State.WAITING]
        for ticket in waiting:
            self._unqueue(ticket)
        return waiting

    def _refill_pool(self, waiting: Sequence[Ticket]) -> None:
        for ticket in reversed(waiting):  # each goes before those who are back already
            self._queue(ticket)

    def _requeue(self, ticket: Ticket, now: float) -> None:
        self.engine_load.remove(ticket)
        self.counts.requeued += 1
        ticket.was_requeued = True
        set_instants(ticket)
        ticket.engine_rank = ticket.policy.rank
        self._charge(ticket, -ticket.charged, now)
        ticket.charged = 0.0
        self._pick.requeued(self.pool, ticket)
        self._queue(ticket)

    def _start(self, ticket: Ticket) -> None:
        """Note that a prompt is done."""
        self.engine_load.first_token(ticket)
        self._drain.prompt_done(ticket.new_tokens, is_last=not self.engine_load.prefilling)

    def _forget(self, ticket: Ticket) -> None:
        ticket.state = State.GONE
        del self._tickets[ticket.request.request_id]
        if not ticket.request.holds_place:
            self.tenants.leave(ticket.payer, ticket.sequences)

    # ---- accounts

    def _count_work(self, ticket: Ticket, now: float) -> None:
        if self._work.arrived(ticket, now):
            self._work.rate(self.estimator, self._facts, self.forecast.drain_rate, now)

    def _charge(self, ticket: Ticket, tokens: float, now: float) -> None:
        self.pool.charge(ticket, tokens)
        if self.tenants.has_budgets:
            self.tenants.spend(ticket.payer, tokens, now)

    def _count_output(self, ticket: Ticket, count: int, now: float) -> None:
        work = OUTPUT_WEIGHT * count
        self.engine_load.tokens(ticket, count)
        self.pool.charge(ticket, work)
        if self.tenants.has_budgets:
            self.tenants.spend(ticket.payer, count, now)
        if self._drain.since_s is not None:
            self._drain.served(work)

    def _true_up_prompt(self, ticket: Ticket, prompt_tokens: int, now: float) -> None:
        """Correct the charge by the engine's own count, and learn from the difference."""
        if prompt_tokens <= 0:
            return
        if ticket.request.prompt_tokens is None:
            self.estimator.learn_prompt(ticket.request, prompt_tokens)
        exact = max(1, prompt_tokens - max(0, ticket.request.cached_tokens))
        self._charge(ticket, exact - ticket.charged, now)
        ticket.charged = float(exact)


def _longest_guess(engine: EngineFacts) -> int:
    """Return the most that is guessed of a prompt, never more than half of a small engine."""
    return min(LONGEST_GUESS_TOKENS, max(1, engine.kv_capacity_tokens // 2))


def _ends_at(ticket: Ticket) -> float:
    """Return when a waiting ticket is rejected or, where its class never sheds, late."""
    return ticket.expires_s if ticket.late else min(ticket.due_s, ticket.expires_s)
