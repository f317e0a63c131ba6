"""What the page `/state` shows of single requests: those that wait, that run, and the last to end.

`weir console` draws them. Only ids, tenants, sizes and times are shown, never a prompt or an API
key. A request's `key` here is its own, where two clients have chosen one id.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from weir_core.sched.tickets import State, Ticket
from weir_sidecar.driver import Driver
from weir_sidecar.registry import Ended, Registry

MAX_SHOWN: Final = 100
"""Waiting requests, and running ones, that are shown one by one."""


def pool(waiting: list[Ticket], driver: Driver) -> dict[str, Any]:
    """Return what a replica and a gateway both have: requests that wait, and how many came."""
    counts = driver.scheduler.counts
    return {
        "waiting": len(waiting),
        "classes": [
            {"name": queue.policy.name, "rank": queue.policy.rank, "waiting": queue.waiting}
            for queue in driver.scheduler.pool.classes
        ],
        "counts": {
            "arrived": counts.arrived,
            "dispatched": counts.dispatched,
            "dispatched_by_min_share": counts.dispatched_by_min_share,
            "finished": counts.finished,
            "aborted": counts.aborted,
            "preempted": counts.requeued,
            "rejected": {reason.value: n for reason, n in counts.rejected.items()},
        },
        "queue": queue(waiting, driver),
    }


def queue(waiting: list[Ticket], driver: Driver) -> list[dict[str, Any]]:
    """Return the first requests that wait, in order of rank and arrival."""
    scheduler, now = driver.scheduler, driver.now()
    ahead: defaultdict[str, float] = defaultdict(float)
    shown = []
    for position, ticket in enumerate(waiting[:MAX_SHOWN], start=1):
        policy = ticket.policy
        first_token_in_s = first_token_in(ticket, ahead[policy.name], driver)
        ahead[policy.name] += ticket.cost
        block = scheduler.block_of(ticket, now)
        shown.append(
            {
                "key": ticket.request.request_id,
                "id": _id_of(ticket, driver),
                "position": position,
                "class": policy.name,
                "tenant": ticket.request.tenant,
                "waited_s": round(now - ticket.request.arrival_s, 3),
                "prompt_tokens": ticket.prompt_tokens,
                "preempted": ticket.requeues,
                "blocked_by": "" if block is None else block.value,
                "first_token_in_s": first_token_in_s,
                "due_in_s": _left(ticket.due_s, now),
                "given_up_in_s": _left(ticket.expires_s, now),
            }
        )
    return shown


def first_token_in(ticket: Ticket, ahead: float, driver: Driver) -> float | None:
    """Return after how many seconds a waiting request gets its first token, as it is predicted.

    Args:
        ticket: It waits.
        ahead: The cost of what waits before it in its own class.
        driver: Knows the scheduler.

    Returns:
        None while the rate at which work is done is not known.
    """
    scheduler = driver.scheduler
    rate = scheduler.forecast.drain_rate
    if not rate or not driver.has_engine:
        return None
    wait_s = scheduler.forecast.wait_behind_s(
        ticket.policy, ahead, scheduler.pool, rate, driver.now()
    )
    return round(wait_s + scheduler.estimator.first_token_s(ticket.new_tokens), 3)


def batch(driver: Driver) -> list[dict[str, Any]]:
    """Return the first requests that the engine was given and that have not ended."""
    running = [t for t in driver.scheduler.tickets.values() if t.state is State.RUNNING]
    return [_running(ticket, driver) for ticket in running[:MAX_SHOWN]]


def _running(ticket: Ticket, driver: Driver) -> dict[str, Any]:
    now = driver.now()
    arrival_s = ticket.request.arrival_s
    return {
        "key": ticket.request.request_id,
        "id": _id_of(ticket, driver),
        "class": ticket.policy.name,
        "tenant": ticket.request.tenant,
        "age_s": round(now - arrival_s, 3),
        "waited_s": round(ticket.dispatched_s - arrival_s, 3),
        "prompt_tokens": ticket.prompt_tokens,
        "output_tokens": ticket.output_tokens,
        "began": ticket.started,
        "by_min_share": ticket.by_min_share,
        "preempted": ticket.requeues,
        "first_token_in_s": running_first_token_in(ticket, now),
        "due_in_s": None if ticket.started else _left(ticket.due_s, now),
    }


def running_first_token_in(ticket: Ticket, now: float) -> float | None:
    """Return the time until the first token of a request that runs; negative is late.

    None once it began, or where it is unknown.
    """
    expected_s = ticket.first_token_expected_s
    if ticket.started or expected_s <= 0:
        return None
    return _left(ticket.dispatched_s + expected_s, now)


def ended(registry: Registry, driver: Driver) -> list[dict[str, Any]]:
    """Return the requests that ended last, the newest first."""
    now = driver.now()
    return [_ended(each, now) for each in registry.ended_last()]


def _ended(each: Ended, now: float) -> dict[str, Any]:
    return {
        "key": each.key,
        "id": each.request_id,
        "class": each.class_name,
        "tenant": each.tenant,
        "outcome": each.outcome,
        "ago_s": round(now - each.at_s, 3),
        "age_s": round(each.at_s - each.arrival_s, 3),
        "ttft_s": _rounded(each.ttft_s),
        "sent_to": each.replica,
    }


def _id_of(ticket: Ticket, driver: Driver) -> str:
    """Return the id that the client knows."""
    request = driver.request_of(ticket.request.request_id)
    return ticket.request.request_id if request is None else request.request_id


def _left(instant_s: float, now: float) -> float | None:
    """Return the time until an instant, which is negative when it is past; None for never."""
    return None if instant_s == float("inf") else round(instant_s - now, 3)


def _rounded(value_s: float | None) -> float | None:
    return None if value_s is None else round(value_s, 3)
