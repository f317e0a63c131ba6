"""The scheduler's invariants as a function: what of docs/invariants.md does not hold right now.

It counts everything anew, so it is for tests and for the simulator's debug mode; a running
sidecar never calls it. Each sentence begins with the number of the invariant it found broken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weir_core.sched.gate import Block, ClassAwareGate, ClassBlindGate
from weir_core.sched.scheduler import Scheduler
from weir_core.sched.tickets import State, Ticket
from weir_core.sched.types import Action, Dispatch, Requeue


def violations(scheduler: Scheduler, actions: Sequence[Action], now: float) -> list[str]:
    """Return what is broken after an event at `now` that was answered with `actions`."""
    waiting = [t for t in scheduler.tickets.values() if t.state is State.WAITING]
    running = [t for t in scheduler.tickets.values() if t.state is State.RUNNING]
    return [
        *_conservation(scheduler, waiting, running),
        *_inversions(scheduler, actions, waiting),
        *_overdue(waiting, now),
        *_unbegun(scheduler, running, now),
        *_idleness(scheduler, actions, now),
        *_miscounts(scheduler, waiting, running),
        *_preemptions(scheduler, actions),
        *_kept_out(scheduler, running, now),
    ]


def _conservation(
    scheduler: Scheduler, waiting: Sequence[Ticket], running: Sequence[Ticket]
) -> Iterator[str]:
    counts = scheduler.counts
    accounted = counts.outcomes + len(waiting) + len(running)
    if counts.arrived != accounted:
        yield f"INV-1: {counts.arrived} arrived, {accounted} accounted for"
    if len(waiting) + len(running) != len(scheduler.tickets):
        yield "INV-1: a request neither waits nor runs"


def _inversions(
    scheduler: Scheduler, actions: Sequence[Action], waiting: Sequence[Ticket]
) -> Iterator[str]:
    highest = max((ticket.policy.rank for ticket in waiting), default=None)
    for action in actions:
        if isinstance(action, Dispatch) and not action.by_min_share:
            ticket = scheduler.tickets.get(action.request_id)
            if ticket is not None and highest is not None and ticket.policy.rank < highest:
                yield f"INV-3: {action.request_id} went before a waiting rank {highest}"


def _overdue(waiting: Sequence[Ticket], now: float) -> Iterator[str]:
    for ticket in waiting:
        waited_s = now - ticket.request.arrival_s
        if waited_s >= ticket.policy.max_queue_wait_s and now >= ticket.expires_s:
            yield f"INV-4: {ticket.request.request_id} has waited {waited_s} s"


def _unbegun(scheduler: Scheduler, running: Sequence[Ticket], now: float) -> Iterator[str]:
    for ticket in running:
        if not ticket.started and now >= scheduler.begin_by_s(ticket):
            ran_s = now - ticket.dispatched_s
            yield f"INV-4: {ticket.request.request_id} was dispatched {ran_s} s ago and never begun"


def _idleness(scheduler: Scheduler, actions: Sequence[Action], now: float) -> Iterator[str]:
    if scheduler.engine is None:
        yield from _sent_nowhere(scheduler, actions)
        return
    if not len(scheduler.pool):
        return
    if not scheduler.engine_load.running:
        yield "INV-5: the engine is empty and the pool is not"
    *_, ticket = scheduler.rules.pick.candidates(scheduler.pool, now)
    rank = ticket.policy.rank
    if scheduler.rules.gate.block(ticket, rank, scheduler.engine_load, now) is None:
        yield f"INV-5: {ticket.request.request_id} could be dispatched and waits"


def _sent_nowhere(scheduler: Scheduler, actions: Sequence[Action]) -> Iterator[str]:
    for action in actions:
        if isinstance(action, Dispatch):
            yield f"INV-5: {action.request_id} was dispatched and there is no engine"
    if scheduler.engine_load.prefilling:
        yield "INV-5: requests are to begin in an engine that is gone"


def _miscounts(
    scheduler: Scheduler, waiting: Sequence[Ticket], running: Sequence[Ticket]
) -> Iterator[str]:
    pool, engine_load = scheduler.pool, scheduler.engine_load
    pairs = {
        "waiting requests": (pool.requests, len(waiting)),
        "waiting bytes": (pool.body_bytes, sum(t.request.body_bytes for t in waiting)),
        "running requests": (engine_load.running, len(running)),
        "slots": (engine_load.slots, sum(t.slots for t in running)),
        "KV tokens": (engine_load.kv_tokens, sum(t.kv_tokens for t in running)),
        "unstarted": (
            sum(len(load.unstarted) for load in engine_load.loads),
            sum(not t.started for t in running),
        ),
        "prefilling": (engine_load.prefilling, sum(not t.started for t in running)),
        "waiting by class": (sum(queue.waiting for queue in pool.classes), len(waiting)),
    }
    for name, (kept, counted) in pairs.items():
        if kept != counted:
            yield f"INV-7: {name}: kept {kept}, counted {counted}"
    prompts = sum(t.new_tokens for t in running if not t.started)
    if not 0 <= engine_load.prefill_of_all() <= prompts:
        yield f"INV-7: prefill left: kept {engine_load.prefill_of_all()}, prompts are {prompts}"


def _preemptions(scheduler: Scheduler, actions: Sequence[Action]) -> Iterator[str]:
    for action in actions:
        if not isinstance(action, Requeue):
            continue
        victim = scheduler.tickets.get(action.request_id)
        winner = scheduler.tickets.get(action.in_favour_of)
        if victim and winner and victim.policy.rank >= winner.policy.rank:
            yield f"INV-8: {action.request_id} gave way to an equal"


def _kept_out(scheduler: Scheduler, running: Sequence[Ticket], now: float) -> Iterator[str]:
    """Find a request of the highest rank that waits for prompts which are not of its rank."""
    levels, gate, engine_load = scheduler.pool.levels, scheduler.rules.gate, scheduler.engine_load
    if not isinstance(gate, ClassAwareGate) or isinstance(gate, ClassBlindGate):
        return  # the others are there to be compared with
    if not levels or not levels[0].waiting:
        return
    rank = levels[0].rank
    block = gate.shut(rank, engine_load, now)
    own = sum(
        ticket.new_tokens
        for ticket in running
        if ticket.load_rank >= rank and not ticket.started and not ticket.by_min_share
    )
    if block is Block.PREFILL and own < gate.depth_tokens:
        yield f"INV-10: rank {rank} is kept out though only {own} prompt tokens of it are left"
    if block is Block.DECODES:
        yield f"INV-10: decodes keep out rank {rank}, the highest"
