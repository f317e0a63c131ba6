"""A request that finds nothing waiting skips the pool: every decision stays what it was with it.

Two schedulers hear the same random events. One is the scheduler as it is; in the other every
request goes through the pool. Actions and all that later decisions depend on are equal after each
event, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest

from weir_core.sched.policies import RuleNames
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.tickets import State, Ticket
from weir_core.sched.types import (
    BUILT_IN_CLASSES,
    Action,
    ClassPolicy,
    EngineFacts,
    EngineKind,
    PoolLimits,
    Request,
    StepRecord,
    TenantPolicy,
)

TENANTS = ("a", "b", "c", "unlimited")
LIMITS = (
    TenantPolicy("a", weight=3.0, max_requests=5),
    TenantPolicy("b", tokens_per_minute=20_000),
    TenantPolicy("c", weight=0.5),
)
TWIN = ClassPolicy("twin", rank=0, weight=2.0, min_share=0.2, tpot_target_s=0.03)
"""Shares its rank with `standard`."""
CLASSES = (*BUILT_IN_CLASSES, TWIN)


class Watched(Scheduler):
    """Counts how many requests skipped the pool."""

    skipped = 0

    def _goes_at_once(self, ticket: Ticket, now: float) -> bool:
        at_once = super()._goes_at_once(ticket, now)
        self.skipped += at_once
        return at_once


class Pooled(Scheduler):
    """Lets every request go through the pool."""

    def _goes_at_once(self, ticket: Ticket, now: float) -> bool:  # noqa: ARG002
        return False


class Pair:
    """Tells two schedulers the same events."""

    def __init__(self, seed: int, kind: EngineKind, rules: RuleNames) -> None:
        self.random = Random(seed)
        self.engine = EngineFacts(kind, 6, 1500, 12_000)
        settings = SchedulerSettings(self.engine, rules, PoolLimits(max_requests=8))
        self.one = Watched(settings, CLASSES, LIMITS)
        self.other = Pooled(settings, CLASSES, LIMITS)
        self.now = 0.0
        self.serial = 0

    def tell(self, event: str, *args: object, **named: object) -> None:
        """Send one event to both, and compare them after it."""
        actions: list[Action] = getattr(self.one, event)(*args, **named)
        assert getattr(self.other, event)(*args, **named) == actions
        assert state(self.one, self.now) == state(self.other, self.now)

    def ids(self, state: State) -> list[str]:
        return [name for name, ticket in self.one.tickets.items() if ticket.state is state]

    def arrive(self) -> None:
        draw = self.random
        self.serial += 1
        request = Request(
            request_id=f"r{self.serial}",
            tenant=draw.choice(TENANTS),
            class_name=draw.choice(CLASSES).name,
            arrival_s=self.now - draw.choice((0.0, 0.0, 0.0, 0.3, 4.0, 40.0)),
            body_bytes=draw.randrange(1, 8000),
            prompt_tokens=draw.choice((None, None, draw.randrange(1, 3000))),
            cached_tokens=draw.choice((0, 0, draw.randrange(3000))),
            max_output_tokens=draw.choice((None, draw.randrange(1, 500))),
            ttft_target_s=draw.choice((None, None, draw.uniform(0.01, 5.0))),
            payer=draw.choice(("", draw.choice(TENANTS))),
            sequences=draw.choice((1, 1, 1, draw.randrange(1, 12))),
        )
        self.tell("on_arrival", request, self.now)

    def proceed(self) -> None:
        """Let something happen to a request that runs."""
        draw = self.random
        if not (running := self.ids(State.RUNNING)):
            return
        name = draw.choice(running)
        exact = draw.choice((None, draw.randrange(1, 3000)))
        match draw.choice(("first_token", "prefilled", "tokens", "finish", "finish", "abort")):
            case "first_token":
                self.tell("on_first_token", name, self.now, exact)
            case "prefilled":
                self.tell("on_prefilled", name, self.now)
            case "tokens":
                self.tell("on_tokens", name, draw.randrange(1, 50), self.now)
            case "finish":
                output = draw.choice((None, draw.randrange(1, 400)))
                self.tell("on_finish", name, self.now, exact, output)
            case _:
                self.tell("on_abort", name, self.now, ran=draw.random() < 0.5)

    def step(self) -> None:
        draw = self.random
        decodes = draw.randrange(6)
        duration_s = draw.uniform(0.001, 0.05)
        prefill = draw.choice((0, draw.randrange(1500)))
        self.tell("on_step", StepRecord(duration_s, prefill, decodes, 0, 100 * decodes), self.now)

    def disturb(self) -> None:
        """Let a client leave, classes or tenants change, or the engine go and come back."""
        draw = self.random
        what = draw.randrange(4)
        if what == 0 and (waiting := self.ids(State.WAITING)):
            self.tell("on_abort", draw.choice(waiting), self.now)
        elif what == 1:
            self.tell("configure", CLASSES[draw.randrange(2) :], LIMITS, self.now)
        elif what == 2:
            self.tell("on_engine_gone", self.now)
            for name in self.ids(State.RUNNING):
                self.tell("on_abort", name, self.now)
        else:
            slots = draw.randrange(3, 8)
            engine = EngineFacts(self.engine.kind, slots, 1500, 12_000)
            self.tell("on_engine_up", engine, self.now)

    def pass_time(self) -> None:
        """Let some time pass, until the next tick at most; a tick may be late."""
        due_s = self.one.next_tick(self.now)
        self.now += self.random.choice((0.0, 0.01, 0.1, 1.0, 12.0))
        if due_s is not None and due_s <= self.now and self.random.random() < 0.8:
            self.now = max(due_s, 0.0)
            self.tell("on_tick", self.now)


def state(scheduler: Scheduler, now: float) -> list[Any]:
    """Return all that the next decisions depend on."""
    load = scheduler.engine_load
    estimator = scheduler.estimator
    probe = Request("probe", "a", "standard", now, 1000)
    return [
        scheduler.next_tick(now),
        vars(scheduler.counts),
        [vars(ticket) for ticket in scheduler.tickets.values()],
        (load.running, load.prefilling, load.slots, load.kv_tokens),
        [(each.rank, each.prefill_left, each.raised_tokens, each.slots) for each in load.loads],
        [list(each.unstarted) for each in load.loads],
        estimator.first_token_s(1000),
        estimator.prompt_tokens(probe),
        estimator.output_tokens(probe),
        scheduler.forecast.drain_rate,
        [scheduler.tenants.standing(name, now) for name in TENANTS],
        [scheduler.rules.gate.next_change(rank, now) for rank in (100, 0, -100)],
        *of_classes(scheduler, now),
        [level._turns.counter(name) for level in scheduler.pool.levels for name in level.queues],
    ]


def of_classes(scheduler: Scheduler, now: float) -> Iterator[tuple[object, ...]]:
    for queue in scheduler.pool.classes:
        ticket = Ticket(Request("probe", "b", queue.policy.name, now), queue.policy, 0)
        yield (
            queue.policy.name,
            (queue.waiting, queue.body_bytes, queue.cost, queue.credit, queue.served_s),
            queue.busy_since_s if queue.waiting else None,
            [(queue.fairness.counter(name), queue.fairness.share_of(name)) for name in TENANTS],
            queue.fairness.next(),
            scheduler.forecast.wait_s(ticket, scheduler.pool, now),
        )


def play(pair: Pair, events: int) -> None:
    kinds: Sequence[Any] = (pair.arrive, pair.proceed, pair.step, pair.disturb)
    for _ in range(events):
        pair.random.choices(kinds, (20, 60, 10, 1))[0]()
        pair.pass_time()


@pytest.mark.parametrize("kind", EngineKind, ids=lambda kind: kind.value)
@pytest.mark.parametrize("seed", range(4))
def test_a_request_that_skips_the_pool_is_decided_about_as_in_it(
    seed: int, kind: EngineKind
) -> None:
    pair = Pair(seed, kind, RuleNames())
    play(pair, 1500)
    dispatched = pair.one.counts.dispatched
    assert 0 < pair.one.skipped < dispatched


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(RuleNames(pick="rank", fairness="none"), id="strict ranks, one queue"),
        pytest.param(RuleNames(gate="open", order="lifo"), id="an open gate"),
        pytest.param(RuleNames(gate="class-blind", shed="expire-only"), id="class-blind"),
        pytest.param(RuleNames(preempt="never", order="fifo"), id="no preemption"),
    ],
)
def test_so_it_is_with_every_other_rule(rules: RuleNames) -> None:
    pair = Pair(5, EngineKind.FCFS, rules)
    play(pair, 1500)
    assert pair.one.skipped > 0
