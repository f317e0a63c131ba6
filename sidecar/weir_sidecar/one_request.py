"""Where the requests of one id are, or how they ended, for `weir explain NAME --request ID`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from weir_core.sched.tickets import State, Ticket
from weir_core.wire.request_state import EndedState, RequestReport, RequestState, Runs, Waits
from weir_sidecar.driver import Driver
from weir_sidecar.registry import Ended, Registry
from weir_sidecar.requests_page import first_token_in, running_first_token_in

if TYPE_CHECKING:
    from weir_sidecar.inflight import InFlightRequest

MOST_TOLD: Final = 50
"""Requests of one id: clients may give it to each of thousands, and telling of one takes a look at
all that waits."""


def report(pod: str, registry: Registry, driver: Driver, request_id: str) -> RequestReport:
    """Return what is known here of the requests that are called so, the first `MOST_TOLD`.

    Args:
        pod: Whose sidecar this is.
        registry: The requests in flight, and the last that ended.
        driver: Knows the scheduler.
        request_id: The `x-request-id` of their answers.
    """
    order = driver.waiting()
    found = (_told(each, driver, order) for each in registry.named(request_id)[:MOST_TOLD])
    over = [each for each in registry.ended_last() if each.request_id == request_id]
    return RequestReport(pod, tuple(found), tuple(_ended(each, driver.now()) for each in over))


def _ended(each: Ended, now: float) -> EndedState:
    return EndedState(
        class_name=each.class_name,
        tenant=each.tenant,
        outcome=each.outcome,
        ago_s=round(now - each.at_s, 3),
        age_s=round(each.at_s - each.arrival_s, 3),
        ttft_s=None if each.ttft_s is None else round(each.ttft_s, 3),
        forwarded_to=each.replica,
        was_forwarded=each.was_forwarded,
        routed=each.routed,
        candidates=each.candidates,
    )


def _told(request: InFlightRequest, driver: Driver, order: list[Ticket]) -> RequestState:
    ticket = driver.scheduler.tickets.get(request.id)
    waits = runs = None
    if ticket is not None and ticket.state is State.WAITING:
        waits = _waits(ticket, driver, order)
    elif ticket is not None and request.dispatch is not None:
        runs = _runs(request, ticket, driver.now())
    routed, candidates = request.routed
    return RequestState(
        class_name=request.class_name,
        tenant=request.tenant,
        age_s=round(driver.now() - request.arrival, 3),
        forwarded_to="" if request.away is None else request.away.name,
        was_forwarded=request.forwarded is not None,
        tried=request.tried,
        requeues=request.requeues,
        waits=waits,
        runs=runs,
        routed=routed,
        candidates=candidates,
    )


def _waits(ticket: Ticket, driver: Driver, order: list[Ticket]) -> Waits:
    now, scheduler = driver.now(), driver.scheduler
    ahead = order[: order.index(ticket)]
    block = scheduler.block_of(ticket, now)
    own = sum(each.cost for each in ahead if each.policy.name == ticket.policy.name)
    forever = ticket.expires_s == float("inf")
    return Waits(
        waited_s=round(now - ticket.request.arrival_s, 3),
        position=len(ahead) + 1,
        ahead=dict(Counter(each.policy.name for each in ahead)),
        blocked_by="" if block is None else block.value,
        first_token_in_s=first_token_in(ticket, own, driver),
        given_up_in_s=None if forever else round(ticket.expires_s - now, 3),
    )


def _runs(request: InFlightRequest, ticket: Ticket, now: float) -> Runs:
    dispatch = request.dispatch
    assert dispatch is not None
    return Runs(
        waited_s=round(dispatch.waited_s, 3),
        rank=dispatch.rank,
        by_min_share=dispatch.by_min_share,
        began=ticket.started,
        first_token_in_s=running_first_token_in(ticket, now),
        output_tokens=request.told_tokens,
    )
