"""A scheduler's load as other replicas need it, and a request as a router sees it.

Both only look: nothing of the scheduler changes.
"""

from __future__ import annotations

from typing import Final

from weir_core.route.types import Ask, ClassLoad, LoadVector
from weir_core.sched.estimate import Estimator
from weir_core.sched.scheduler import Scheduler
from weir_core.sched.tickets import State
from weir_core.sched.types import ClassPolicy, Request

_LONGEST_S: Final = 1e6
"""No replica tells of a longer time."""
_USUAL_STEP_S: Final = 0.01
"""A light step of an engine that tells of none: times to first tokens say nothing of decodes."""
_BEYOND: Final = 4
"""A request beyond its expected output is taken to go on for this part of what it has already."""


def load_of(scheduler: Scheduler, now: float, draining: bool = False) -> LoadVector:
    """Return the load of a scheduler's replica, now."""
    engine = scheduler.engine
    estimator = scheduler.estimator
    token_s = estimator.token_s
    pool, engine_load = scheduler.pool, scheduler.engine_load
    classes: list[ClassLoad] = []
    waiting, waiting_tokens = 0, 0.0
    for queue in pool.classes:
        wait_s = 0.0
        waiting += queue.waiting
        waiting_tokens += queue.cost
        if pool.requests:
            rate = scheduler.forecast.drain_rate or 1.0 / token_s
            wait_s = scheduler.forecast.wait_behind_s(queue.policy, queue.cost, pool, rate, now)
        ahead_tokens = engine_load.prefill_ahead(queue.policy.rank)
        name, ahead = queue.policy.name, max(0, ahead_tokens)
        work = scheduler.work_of(queue, now)
        slack_s = max(-_LONGEST_S, min(_LONGEST_S, queue.slack_s(now)))
        classes.append(
            ClassLoad(
                name,
                _told_s(wait_s),
                ahead,
                waiting,
                int(waiting_tokens),
                _told_s(work.offered),
                _told_s(queue.cost * work.cost_s),
                slack_s,
            )
        )
    token_s, step_s = _told_s(token_s), _told_s(estimator.step_s)
    light_step_s = _told_s(estimator.light_step_s or 0.0) or min(step_s, _USUAL_STEP_S)
    if engine is None:
        return LoadVector(tuple(classes), token_s, step_s, light_step_s, 1, 0, 0, draining=True)
    return LoadVector(
        classes=tuple(classes),
        token_s=token_s,
        step_s=step_s,
        light_step_s=light_step_s,
        step_tokens=engine.max_num_batched_tokens,
        sequences_left=max(0, engine.max_num_seqs - engine_load.slots),
        kv_tokens_left=max(0, engine.kv_capacity_tokens - engine_load.kv_tokens),
        draining=draining,
        sequences=engine_load.slots,
        overdue_s=_told_s(scheduler.overdue_s(now)),
    )


def drain_s_of(scheduler: Scheduler, now: float) -> float:
    """Return the predicted time until the requests that run here end; those that wait move.

    They go on at the pace that they had so far, or at that of the engine's steps if it is slower.
    """
    most = paced = took_s = 0.0
    for ticket in scheduler.tickets.values():
        if ticket.state is State.RUNNING:
            slots = max(1, ticket.slots)
            left = max(ticket.output_estimate - ticket.output_tokens, 1)
            most = max(most, max(left, ticket.output_tokens // _BEYOND) / slots)
            if ticket.output_tokens > 0:
                paced += ticket.output_tokens / slots
                took_s += now - ticket.dispatched_s
    if most <= 0.0:
        return 0.0
    estimator = scheduler.estimator
    step_s = max(estimator.step_s, took_s / paced if paced > 0.0 else 0.0)
    return _told_s(scheduler.engine_load.prefill_of_all() * estimator.token_s + most * step_s)


def _told_s(seconds: float) -> float:
    """Return a time as others take it: what is learned of little may be anything."""
    return min(_LONGEST_S, seconds) if seconds > 0.0 else 0.0


def ask_of(
    request: Request,
    policy: ClassPolicy,
    estimator: Estimator,
    now: float,
    is_lowest: bool = False,
) -> Ask:
    """Return what a request that arrived here asks of any replica.

    Args:
        request: The request.
        policy: Of its class.
        estimator: Says how many tokens to expect.
        now: The present.
        is_lowest: Whether no request of a lower rank came by of late (`Router.is_lowest`).
    """
    target_s = request.ttft_target_s
    if target_s is None:
        target_s = policy.ttft_target_s
    sequences = max(1, request.sequences)
    return Ask(
        request_id=request.request_id,
        class_name=policy.name,
        rank=policy.rank,
        prompt_tokens=estimator.prompt_tokens(request),
        output_tokens=estimator.output_tokens(request) * sequences,
        sequences=sequences,
        left_s=None if target_s is None else request.arrival_s + target_s - now,
        ttft_target_s=target_s,
        tpot_target_s=policy.tpot_target_s,
        is_lowest=is_lowest,
    )
