"""The driver of the scheduling core: the only one that feeds it events and performs its actions.

`weir_core.sched` decides; here its decisions happen. A request that is dispatched goes to the
engine, one that is rejected is refused, and one that is requeued loses its engine connection and
waits on. The simulator drives the same core with a heap.

Everything happens in callbacks of one event loop, so an action is performed before the next event
is told: a first byte and a requeue of the same request cannot cross.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, assert_never

import msgspec

from weir_core.route.rebalance import leaving
from weir_core.sched.concurrency import ConcurrencyLimit
from weir_core.sched.memory import BodyMemory
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.shares import Rank, Share, StepShares
from weir_core.sched.tickets import State, Ticket
from weir_core.sched.types import (
    Action,
    Dispatch,
    End,
    EngineFacts,
    EngineKind,
    PoolLimits,
    Reason,
    Reject,
    Request,
    Requeue,
    RequeueReason,
    StepRecord,
)
from weir_core.wire.fields import Usage
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.priority import engine_priority
from weir_core.wire.steps import NOT_LOOKED_UP, Facts, Step
from weir_sidecar.ends import Ends
from weir_sidecar.frontend import errors
from weir_sidecar.frontend.auth import Directory
from weir_sidecar.outcomes import Outcome
from weir_sidecar.settings import Limits, Settings
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.prompt_counter import PromptCounter
from weir_sidecar.upstreams.splice import Exchange

if TYPE_CHECKING:
    from weir_core.route.prefix import Chain
    from weir_sidecar.inflight import InFlightRequest
    from weir_sidecar.prefixes import Prefixes

log = logging.getLogger(__name__)

UNKNOWN_ENGINE = Facts("fcfs", max_num_seqs=128, max_num_batched_tokens=2048, kv_capacity_tokens=0)
"""What is taken of an engine that says nothing of itself: plain vLLM with modest bounds."""
_NO_KV_BOUND = 1 << 40
_DONE = b"data: [DONE]\n\n\r\n0\r\n\r\n"
"""How a stream of chat or completions ends, in its last chunk and HTTP's."""
_PATIENCE = 1.5
"""Times the expected time to first token after which a silent prompt counts as done."""
_PATIENCE_GRID_S = 0.01
"""Prompts that are done within so much of each other are taken together: a timer is not free."""


class Driver:
    """Owns the scheduler of this sidecar's engine.

    Args:
        settings: Bounds on what waits.
        metrics: The instruments.
        memory: The memory for bodies, whose ranks follow the policies.
        prompts: Has the engine count large prompts.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        memory: BodyMemory,
        prompts: PromptCounter,
        clock: Callable[[], float],
    ) -> None:
        self.retry_after_s = settings.health.retry_after_s
        """What refused clients are told while the engine is away, in seconds."""
        self._metrics = metrics
        self._memory = memory
        self._clock = clock
        self.prompts = prompts
        self._document = PolicyDocument()
        self.directory = Directory(self._document)
        self._configure_memory()
        self._unscheduled = ConcurrencyLimit(
            settings.limits.unscheduled_per_tenant, settings.limits.unscheduled
        )
        self.facts: Facts | None = None
        self.prefixes: Prefixes | None = None
        """What is cached where; None leaves it unknown."""
        self.scheduler = Scheduler(
            SchedulerSettings(limits=_pool_limits(settings.limits)),
            self.directory.classes,
            self.directory.tenants,
        )
        self.engine_state = "starting"
        """What is known of the engine, in a word for messages."""
        self.engines_gone = 0
        """How often an engine has gone since the start."""
        self._requests: dict[str, InFlightRequest] = {}
        self._by_wire_id: dict[str, InFlightRequest] = {}
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        # When a plain answer's prompt counts as done, by _expect_prefilled: (instant, number, ...).
        self._silent: list[tuple[float, int, InFlightRequest, Dispatch]] = []
        self._starved_since: float | None = None
        self._steps_heard = False
        self._shares = StepShares()
        self.ends = Ends()
        self.is_gateway = False
        """There is no engine here: what finds no replica waits for one."""

    # ---- what the engine and the operator say

    def engine_up(self, facts: Facts | None) -> None:
        """Hear what an engine that has just become ready is."""
        known = facts or UNKNOWN_ENGINE
        if facts is None:
            log.warning("the engine says nothing of itself; taking it for plain vLLM")
        elif facts.fallback:
            log.warning("the engine runs without Weir's scheduler: %s", facts.fallback)
        if known != self.facts:
            self.facts = known
            self._metrics.describe_engine(known)
        engine = EngineFacts(
            kind=EngineKind(known.kind),
            max_num_seqs=known.max_num_seqs,
            max_num_batched_tokens=known.max_num_batched_tokens,
            kv_capacity_tokens=known.kv_capacity_tokens or _NO_KV_BOUND,
        )
        if self.prefixes is not None:
            self.prefixes.engine_up(facts)
        now = self._clock()
        self._perform(self.scheduler.on_engine_up(engine, now), now)

    def engine_gone(self) -> None:
        """Hear that the engine is gone; what has not begun waits."""
        self.engines_gone += 1
        if self.prefixes is not None:
            self.prefixes.engine_gone()
        now = self._clock()
        self._perform(self.scheduler.on_engine_gone(now), now)
        self.ends.expire(float("inf"))

    def no_engine(self) -> errors.ApiError:
        """Return the refusal where no engine can be asked now."""
        return errors.no_engine(f"the engine is {self.engine_state}", self.retry_after_s)

    @property
    def by_priority(self) -> bool:
        """Whether the engine orders requests by priority."""
        return self.facts is not None and self.facts.kind != "fcfs"

    @property
    def has_engine(self) -> bool:
        """Whether an engine is there to be asked."""
        return self.scheduler.engine is not None

    def apply(self, document: PolicyDocument) -> None:
        """Make these the classes and tenants; what waits and runs stays."""
        if document == self._document:
            return
        directory = Directory(document)  # raises where the document cannot be used
        self._document, self.directory = document, directory
        self._configure_memory()
        log.info("policies are in force", extra={"open_to": self.directory.openness})
        now = self._clock()
        self._perform(
            self.scheduler.configure(self.directory.classes, self.directory.tenants, now), now
        )

    def bound(self, limits: Limits) -> None:
        """Let so much wait from now on."""
        self.scheduler.bound(_pool_limits(limits))

    def _configure_memory(self) -> None:
        ranks = [policy.rank for policy in self.directory.classes]
        self._memory.configure(ranks, several_payers=bool(self.directory.tenants))

    # ---- a request's way

    def next_id(self) -> str:
        """Return a new id for the scheduler; clients may repeat theirs."""
        return str(next(self._numbers))

    def now(self) -> float:
        """Return the instant from which, and to which, waits are measured."""
        return self._clock()

    def reserve(self, payer: str) -> None:
        """Count a request whose head has come among its payer's; raise the refusal at a limit.

        Its body may take long to come: counting it from here bounds uploads, too.
        """
        wait_s = self.scheduler.tenants.wait_s(payer, 1, self._clock())
        if wait_s > 0:
            raise errors.rejected(Reason.TENANT_LIMIT, wait_s)
        self.scheduler.tenants.reserve(payer)

    def release(self, payer: str) -> None:
        """Give back what `reserve` counted."""
        self.scheduler.tenants.release(payer)

    def enter_unscheduled(self, payer: str) -> None:
        """Count a request that computes nothing; raise the refusal where there are too many."""
        if not self._unscheduled.enter(payer):
            raise errors.rejected(Reason.QUEUE_FULL, 1)

    def leave_unscheduled(self, payer: str) -> None:
        """Count one less."""
        self._unscheduled.leave(payer)

    def rate_limits(self, payer: str) -> dict[str, str]:
        """Return headers that tell how much of its limits a tenant has left.

        The names are OpenAI's. In place of a rate of requests there is a number at once, of which
        one is free again as soon as a request ends.
        """
        standing = self.scheduler.tenants.standing(payer, self._clock())
        if standing is None:
            return {}
        headers = {}
        if standing.requests is not None:
            headers["x-ratelimit-limit-requests"] = str(standing.requests)
            headers["x-ratelimit-remaining-requests"] = str(standing.requests_left)
            headers["x-ratelimit-reset-requests"] = "0s"
        if standing.tokens is not None:
            headers["x-ratelimit-limit-tokens"] = str(standing.tokens)
            headers["x-ratelimit-remaining-tokens"] = str(standing.tokens_left)
            headers["x-ratelimit-reset-tokens"] = f"{standing.tokens_full_in_s:.3f}s"
        return headers

    @property
    def keep_alive_s(self) -> float | None:
        """Wait after which a stream gets its head; None sends nothing before the answer."""
        return self._document.keep_alive_s

    def arrive(self, request: InFlightRequest, asked: Request) -> None:
        """Tell the scheduler of a request that has arrived.

        Where the engine is gone for a while the request waits for its return.

        Raises:
            ApiError: No engine was ever here, or the request can go to a replica that has one.
        """
        never_was = self.facts is None and not self.is_gateway
        if not self.has_engine and (never_was or request.may_return):
            raise self.no_engine()
        now = self._clock()
        if request.is_counted and not asked.is_counted:
            asked = msgspec.structs.replace(asked, is_counted=True)
        request.is_counted = request.is_counted or not self.is_gateway
        asked = self._with_cached(request, asked)
        request.asked, request.id = asked, asked.request_id
        self._requests[request.id] = request
        self._name_for_engine(request)
        actions = self._note_silent(now)
        self._perform(actions + self.scheduler.on_arrival(asked, now), now)

    def _name_for_engine(self, request: InFlightRequest) -> None:
        """Give a request an id at the engine that no other one has there."""
        while request.wire_id in self._by_wire_id or request.wire_id in self.ends:
            # Two requests may carry one x-request-id; the step log has to tell them apart.
            request.wire_id = f"{request.request_id}-{next(self._numbers)}"
        self._by_wire_id[request.wire_id] = request

    def _with_cached(self, request: InFlightRequest, asked: Request) -> Request:
        """Return a request with what the own engine is believed to have cached of its prompt."""
        if self.prefixes is None or request.chain is None:
            return asked
        prompt_tokens = self.scheduler.estimator.prompt_tokens(asked)
        cached_tokens = self.prefixes.own_cached(request.chain, prompt_tokens)
        return msgspec.structs.replace(asked, cached_tokens=cached_tokens)

    def arrive_again(self, request: InFlightRequest) -> None:
        """Let a request wait whose engine died with a part of its answer that nobody was sent."""
        asked = request.asked
        assert asked is not None
        now = self._clock()
        self._perform(self.scheduler.on_abort(self._forget(request), now), now)
        request.requeued()
        self.arrive(request, msgspec.structs.replace(asked, request_id=self.next_id()))

    def priority(self, request: InFlightRequest) -> int | None:
        """Return the engine's `priority` for a request on its way there; None takes none."""
        if not self.by_priority or request.dispatch is None:
            return None
        ticket = self._ticket(request)
        due_s = float("inf") if ticket is None else ticket.engine_due_s
        return engine_priority(request.dispatch.rank, due_s)

    def began(self, request: InFlightRequest, answer: Exchange) -> None:
        """Hear that an answer's first byte is about to go to its client.

        A stream's is its first token, from which there is something to learn. A plain answer's is
        its last, and after an error the engine has nothing left to do.
        """
        if not request.id:
            return
        now = self._clock()
        if answer.status >= 400:
            self._perform(self.scheduler.on_abort(self._forget(request), now), now)
        elif request.streams:
            self._note_first_token(request, now)
            self._perform(self.scheduler.on_first_token(request.id, now), now)
            request.told_tokens = max(request.told_tokens, 1)
        else:
            self._perform(self.scheduler.on_prefilled(request.id, now), now)

    def ended(self, request: InFlightRequest, outcome: Outcome) -> None:
        """Hear that a request is over; one that was refused is gone already."""
        if not request.id:
            return
        if outcome is Outcome.OK:
            self._read_end(request)
        now, usage = self._clock(), request.usage
        self._note_end(request, outcome)
        if usage is None and self._may_tell(request):
            request.awaits_end = self.ends.wait(request, now, is_over=True)
        if outcome is not Outcome.OK:
            # What the engine never had costs its tenant nothing.
            ran = outcome is not Outcome.REJECTED_NO_ENDPOINTS
            self._perform(self.scheduler.on_abort(self._forget(request), now, ran=ran), now)
            return
        prompt_tokens = output_tokens = None
        if usage is not None:
            prompt_tokens, output_tokens = usage.prompt_tokens, usage.output_tokens
            self._note_lengths(request, usage)
        elif request.share is not None and request.share.has_ended:
            output_tokens = request.share.output_tokens
        elif request.exchange is not None and request.exchange.tokens:
            output_tokens = streamed_tokens(request.exchange)
        request_id = self._forget(request)
        self._perform(self.scheduler.on_finish(request_id, now, prompt_tokens, output_tokens), now)

    def give_up(self, request: InFlightRequest) -> None:
        """Take a request that waits out of the pool: it goes to another replica."""
        now = self._clock()
        self._perform(self.scheduler.on_abort(self._forget(request), now, ran=False), now)

    def learn(self, asked: Request, usage: Usage) -> None:
        """Learn from an answer of another replica how long such requests are."""
        estimator = self.scheduler.estimator
        if usage.prompt_tokens:
            estimator.learn_prompt(asked, usage.prompt_tokens)
        estimator.learn_output(asked, usage.output_tokens // max(1, asked.sequences))

    # ---- the engine's steps

    def on_step(self, step: Step) -> None:
        """Hear of one step of the engine."""
        self._steps_heard = True
        now, actions = self._clock(), list[Action]()
        if step.duration_s > 0:
            actions = self._note_step(step, now)
        rank = self._shares.rank(step.engine)
        for end in step.ended:
            self._note_engine_end(rank, end)
        self._metrics.engine_step(step)
        self._perform(actions, now)

    def _note_step(self, step: Step, now: float) -> list[Action]:
        """Learn from a step; return what the scheduler has to be done now."""
        record = StepRecord(
            duration_s=step.duration_s,
            prefill_tokens=step.prefill_tokens,
            decodes=step.decodes,
            prefill_context=step.prefill_context,
            decode_context=step.decode_context,
        )
        actions = self.scheduler.on_step(record, now)
        rank = self._shares.on_step(step.engine, step.duration_s, step.prefill_tokens, step.decodes)
        for place, wire_id in enumerate(step.started):
            request = self._by_wire_id.get(wire_id)
            if request is not None and request.dispatch is not None and place < len(step.prompts):
                _charge_prompt(request, rank, step.prompts[place])
            if request is not None and request.chain is not None:
                self._note_prompt(request, request.chain, step, place)
            # A stream's own first token is the better witness of it.
            if request is None or request.dispatch is None or request.told_tokens:
                continue
            self._note_first_token(request, now)
            request.told_tokens = 1
            request.first_token_at = now
            actions += self.scheduler.on_first_token(request.id, now)
        return actions

    def note_silent(self) -> None:
        """Take the prompts of silent answers to be done that should be by now."""
        if self._silent:
            now = self._clock()
            self._perform(self._note_silent(now), now)

    def count_tokens(self) -> None:
        """Tell what streams have brought since the last call; called about once a second."""
        now = self._clock()
        for request_id, request in self._requests.items():
            exchange = request.exchange
            if exchange is not None and exchange.begun and exchange.tokens > request.told_tokens:
                new_tokens = exchange.tokens - request.told_tokens
                request.told_tokens = exchange.tokens
                self.scheduler.on_tokens(request_id, new_tokens, now)
        self.ends.expire(now)

    # ---- for people

    def waiting_requests(self) -> list[InFlightRequest]:
        """Return what waits, in order of rank and arrival."""
        found = (self._requests.get(request_id) for request_id in leaving(self.scheduler))
        return [request for request in found if request is not None]

    def request_of(self, request_id: str) -> InFlightRequest | None:
        """Return a request by its id in the scheduler."""
        return self._requests.get(request_id)

    def waiting(self) -> list[Ticket]:
        """Return the tickets that wait, in order of rank and arrival."""
        tickets = [t for t in self.scheduler.tickets.values() if t.state is State.WAITING]
        return sorted(tickets, key=lambda ticket: (-ticket.policy.rank, ticket.seq))

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    # ---- inside

    def _perform(self, actions: Sequence[Action], now: float) -> None:
        for action in actions:
            request = self._requests.get(action.request_id)
            if request is None:  # it left while the core decided about it
                continue
            match action:
                case Dispatch():
                    self._note_dispatch(request, action)
                    request.dispatched(action)
                    if not request.streams and not self._steps_heard:
                        self._expect_prefilled(request, action, now)
                case Reject():
                    self._forget(request)
                    self._metrics.of_class(request.class_name).rejections(action.reason).inc()
                    request.rejected(self._error_of(action))
                case Requeue():
                    if action.reason is not RequeueReason.ENGINE_GONE:
                        self._metrics.of_class(request.class_name).preemptions.inc()
                        self._leave_attempt(request, now)
                    request.requeued()
                case _:
                    assert_never(action)
        self._note_starvation(now)
        self._arm(now)

    def _error_of(self, action: Reject) -> errors.ApiError:
        if action.reason is Reason.TTL_EXPIRED and not self.has_engine:
            return self.no_engine()  # that is what it waited for
        error = errors.rejected(action.reason, action.retry_after_s)
        if self.is_gateway and action.reason is Reason.QUEUE_FULL:
            # So many wait for a replica to start, of which the scheduler knows nothing.
            error.retry_after_s = self.retry_after_s
        else:
            error.is_spread = True
        return error

    def _arm(self, now: float) -> None:
        """Set the timer to the next instant at which time alone changes something."""
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
        now = self._clock()
        self._perform(self.scheduler.on_tick(now) + self._note_silent(now), now)

    def _note_silent(self, now: float) -> list[Action]:
        """Tell the scheduler of the prompts that are taken to be done by now."""
        actions: list[Action] = []
        while self._silent and self._silent[0][0] <= now + _PATIENCE_GRID_S:
            *_, request, dispatch = heapq.heappop(self._silent)
            if self._is_silent(request, dispatch):
                actions += self.scheduler.on_prefilled(request.id, now)
        return actions

    def _expect_prefilled(self, request: InFlightRequest, dispatch: Dispatch, now: float) -> None:
        """Take a silent answer's prompt to be done once that was to be expected.

        Without this, a few long plain answers of an engine without a step log would count as
        prefill until they end, and keep everybody else out.
        """
        ticket = self._ticket(request)
        if ticket is not None:
            due = now + _PATIENCE * ticket.first_token_expected_s + _PATIENCE_GRID_S
            heapq.heappush(self._silent, (due, next(self._numbers), request, dispatch))

    def _is_silent(self, request: InFlightRequest, dispatch: Dispatch) -> bool:
        """Tell whether a request is still where that dispatch put it, without an answer."""
        return request.dispatch is dispatch and request.id in self._requests

    def _forget(self, request: InFlightRequest) -> str:
        """Forget a request that leaves the scheduler; return the id it had there."""
        request_id, request.id = request.id, ""
        self._requests.pop(request_id, None)
        if self._by_wire_id.get(request.wire_id) is request:
            del self._by_wire_id[request.wire_id]
        return request_id

    # ---- how requests ended inside the engine

    def _may_tell(self, request: InFlightRequest) -> bool:
        """Return whether the engine has, or had, this attempt and tells how it ended."""
        tells = self.has_engine and self.facts is not None and self.facts.tells_ends
        return tells and request.dispatch is not None and request.exchange is not None

    def _read_end(self, request: InFlightRequest) -> None:
        """Read what the step log tells of a request that ends: it was told before its answer."""
        is_told = request.share is not None and request.share.has_ended
        if not is_told and self._may_tell(request) and self.ends.read is not None:
            self.ends.read()

    def _leave_attempt(self, request: InFlightRequest, now: float) -> None:
        """Have the step log tell an attempt that is given up from the next one."""
        if self._may_tell(request) and self.ends.wait(request, now, is_over=False):
            del self._by_wire_id[request.wire_id]
            self._name_for_engine(request)

    def _note_engine_end(self, rank: Rank, end: End) -> None:
        request = self._by_wire_id.get(end.request)
        if self.ends.tell(rank, end) or request is None or request.dispatch is None:
            return
        if request.share is None:
            request.share = Share(request.asks.sequences)
        request.share.end(rank, end)

    def _ticket(self, request: InFlightRequest) -> Ticket | None:
        return self.scheduler.tickets.get(request.id)

    # ---- what is measured

    def _note_dispatch(self, request: InFlightRequest, dispatch: Dispatch) -> None:
        of_class = self._metrics.of_class(request.class_name)
        of_class.queue_wait.observe(dispatch.waited_s)
        if dispatch.by_min_share:
            of_class.min_share_dispatches.inc()
        elif self._inverted(dispatch):
            self._metrics.inversions.inc()

    def _inverted(self, dispatch: Dispatch) -> bool:
        """Tell whether a higher rank still waits (INV-3)."""
        for queue in self.scheduler.pool.classes:
            if queue.policy.rank <= dispatch.rank:
                return False
            if queue.waiting:
                return True
        return False

    def _note_first_token(self, request: InFlightRequest, now: float) -> None:
        ticket = self._ticket(request)
        if ticket is not None and not ticket.started and ticket.first_token_expected_s > 0:
            took_s = max(now - ticket.dispatched_s, 1e-6)
            self._metrics.estimates["first_token"].observe(ticket.first_token_expected_s / took_s)

    def _note_lengths(self, request: InFlightRequest, usage: Usage) -> None:
        ticket = self._ticket(request)
        if ticket is None or request.asked is None:
            return
        if request.asked.prompt_tokens is None and usage.prompt_tokens:
            ratio = ticket.prompt_tokens / usage.prompt_tokens
            self._metrics.estimates["prompt_tokens"].observe(ratio)
        if usage.output_tokens:
            ratio = ticket.output_estimate / usage.output_tokens
            self._metrics.estimates["output_tokens"].observe(ratio)

    def _note_prompt(self, request: InFlightRequest, chain: Chain, step: Step, place: int) -> None:
        """Note what the prefix cache held of a prompt that the engine has computed.

        Args:
            request: Whose prompt it is.
            chain: Of the prompt.
            step: Completed the prompt.
            place: Where the step tells of it.
        """
        ticket = self._ticket(request)
        if self.prefixes is None or ticket is None or request.prompt_tokens:
            return
        cached: int | None = None
        if place < len(step.prompts):
            request.prompt_tokens, cached = step.prompts[place]
        else:  # an engine of an earlier version
            request.prompt_tokens = ticket.prompt_tokens
        # Of several answers to one prompt the later ones find what the first one computes.
        if cached == NOT_LOOKED_UP or request.asks.sequences > 1:
            cached = None
        self.prefixes.started(chain, request.prompt_tokens, cached)

    def _note_end(self, request: InFlightRequest, outcome: Outcome) -> None:
        """Note what a request leaves in the prefix cache."""
        if self.prefixes is None or request.chain is None or not request.prompt_tokens:
            return
        if outcome in (Outcome.OK, Outcome.CLIENT_GONE):  # the engine that had it is there
            exchange, usage = request.exchange, request.usage
            output_tokens = 0 if exchange is None else exchange.tokens
            if usage is not None:
                output_tokens = usage.output_tokens
            self.prefixes.ended(request.chain, request.prompt_tokens, output_tokens)

    def _note_starvation(self, now: float) -> None:
        """Count the time in which requests wait and the engine has none."""
        starved = (
            self.has_engine
            and self.scheduler.pool.requests > 0
            and self.scheduler.engine_load.running == 0
        )
        if self._starved_since is not None:
            self._metrics.bubble.inc(now - self._starved_since)
        self._starved_since = now if starved else None


def streamed_tokens(exchange: Exchange) -> int:
    """Return how many tokens a stream of which some came has brought; some may share a chunk."""
    # Neither the last words of OpenAI's streams nor the chunk that ends the answer is a token.
    ends = 2 if exchange.tail.endswith(_DONE) else int(exchange.complete)
    return max(1, exchange.tokens - ends)


def _charge_prompt(request: InFlightRequest, rank: Rank, prompt: tuple[int, int]) -> None:
    """Charge a request for a prompt that the engine has computed.

    Args:
        request: Whose prompt it is.
        rank: Computed it.
        prompt: Its tokens, and how many of them were cached (`Step.prompts`).
    """
    if request.share is None:
        request.share = Share(request.asks.sequences)
    request.share.start(rank, prompt[0], max(0, prompt[1]))


def _pool_limits(limits: Limits) -> PoolLimits:
    return PoolLimits(limits.max_requests, limits.max_held_bytes // 2)
