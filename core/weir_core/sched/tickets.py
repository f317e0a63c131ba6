"""The scheduler's record of a request, made from what the request is and what its class promises.

Classes may change while requests wait and run: then every ticket is renewed. One whose class is
gone keeps the promises it came with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weir_core.sched.estimate import Estimator
from weir_core.sched.types import ClassPolicy, Request, State, Ticket


class TicketOffice:
    """Knows the classes, and what a request will probably cost.

    Args:
        default_class: Class of requests whose own class does not exist.
    """

    def __init__(self, estimator: Estimator, default_class: str) -> None:
        self._estimator = estimator
        self._default_class = default_class
        self._policies: dict[str, ClassPolicy] = {}
        self._issued = 0

    def configure(self, classes: Sequence[ClassPolicy]) -> None:
        """Replace the classes.

        Raises:
            ValueError: There is none; the last ones stay in force.
        """
        if not classes:
            raise ValueError("at least one priority class is needed")
        self._policies = {policy.name: policy for policy in classes}

    def issue(self, request: Request) -> Ticket:
        """Return a ticket for a request that has just arrived."""
        policy = self._policy_of(request)
        prompt_tokens = self._estimator.prompt_tokens(request)
        cached = min(max(0, request.cached_tokens), prompt_tokens - 1)
        self._issued += 1
        ticket = Ticket(
            request=request,
            policy=policy,
            seq=self._issued,
            prompt_tokens=prompt_tokens,
            new_tokens=prompt_tokens - cached,
            output_estimate=self._estimator.output_tokens(request),
            due_s=0.0,
            expires_s=0.0,
            engine_rank=policy.rank,
        )
        set_instants(ticket)
        return ticket

    def renew(self, ticket: Ticket) -> None:
        """Put a ticket under the present policy of its class; in the engine its rank stays."""
        ticket.policy = self._policies.get(ticket.policy.name, ticket.policy)
        if ticket.state is State.WAITING:
            ticket.engine_rank = ticket.policy.rank
        set_instants(ticket)

    def policies_in_use(self, tickets: Iterable[Ticket]) -> list[ClassPolicy]:
        """Return the classes, and those that are gone but still have requests here."""
        in_use = {ticket.policy.name: ticket.policy for ticket in tickets}
        return list((in_use | self._policies).values())

    def _policy_of(self, request: Request) -> ClassPolicy:
        policies = self._policies
        policy = policies.get(request.class_name) or policies.get(self._default_class)
        return policy or min(policies.values(), key=lambda p: (p.rank, p.name))


def set_instants(ticket: Ticket) -> None:
    """Set when `ticket` is due and when its wait ends, from its request and its class."""
    request, policy = ticket.request, ticket.policy
    target_s = request.ttft_target_s if request.ttft_target_s is not None else policy.ttft_target_s
    ticket.due_s = float("inf") if target_s is None else request.arrival_s + target_s
    ticket.expires_s = request.arrival_s + policy.max_queue_wait_s
    # A requeued one lost its place through no fault of its own: only the longest wait ends it.
    if policy.shed == "predictive" and not ticket.requeues:
        ticket.expires_s = min(ticket.expires_s, ticket.due_s)
