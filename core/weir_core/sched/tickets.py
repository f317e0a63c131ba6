"""The scheduler's record of a request, made from what the request is and what its class promises.

Classes may change while requests wait and run: then every ticket is renewed. One whose class is
gone keeps the promises it came with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from weir_core.sched.estimate import Estimator
from weir_core.sched.types import ClassPolicy, Request

OUTPUT_WEIGHT: Final = 2.0
"""An output token counts as two prompt tokens, as in the VTC paper (arXiv 2401.00588)."""


_NEVER_S: Final = float("inf")


class State(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


class Ticket:
    """The scheduler's own record of one request, from arrival to outcome.

    No dataclass: one is made for each request, and mypyc leaves a dataclass' `__init__` in Python.

    Attributes:
        seq: Order of arrival at this scheduler; breaks every tie, so that replays agree.
        prompt_tokens: Exact or estimated.
        new_tokens: Prompt tokens the engine has to compute: those not in its prefix cache.
        sequences: What it becomes in the engine.
        output_estimate: Expected output tokens of all its sequences.
        epoch: How often it left the pool; an entry of a heap made in an earlier epoch is dead.
        engine_rank: The rank it has, or will have, in the engine's own order.
        load_rank: The rank it counts under while it runs: its class's at its dispatch.
        late: It can no longer be on time and lets those that can go first.
        due_s: When its first token is due; infinity without a target.
        slots: Slots that it claims, and that are set aside for it while it runs.
        kv_tokens: The same of KV room, in tokens.
        charged: Tokens its tenant was charged at dispatch; returned when it is requeued.
        prefill_ahead: Prompt tokens up to its first one, its own included, at its dispatch.
        requeues: How often it was preempted.
        was_requeued: It was in an engine and waits, or runs, again; for whatever reason.
        payer: The tenant whose limits it counts against.
        account: The name under which it queues in its class; its tenant's, while that rule holds.
        cost: Expected work in VTC tokens: prompt to compute, plus twice the expected output.
    """

    def __init__(self, request: Request, policy: ClassPolicy, seq: int) -> None:
        self.request = request
        self.policy = policy
        self.seq = seq
        self.sequences = max(1, request.sequences)
        self.prompt_tokens = self.new_tokens = self.output_estimate = 1
        self.cost = 0.0
        self.payer = request.payer or request.tenant
        self.account = ""
        self.engine_rank = self.load_rank = policy.rank
        self.state = State.WAITING
        self.epoch = 0
        self.late = self.started = self.by_min_share = False
        self.dispatched_s = self.first_token_expected_s = 0.0
        self.prefill_ahead = 0
        self.slots = self.kv_tokens = self.output_tokens = 0
        self.charged = 0.0
        self.requeues = 0
        self.was_requeued = False
        self.due_s = self.expires_s = 0.0
        set_instants(self)

    @property
    def comes_in_waves(self) -> bool:
        """Whether the engine computes some of its sequences only when others are done."""
        return self.slots < self.sequences

    @property
    def served_by_s(self) -> float:
        """When its first token is due, or its wait over where no target says it."""
        return self.due_s if self.due_s < _NEVER_S else self.expires_s

    @property
    def engine_due_s(self) -> float:
        """The deadline that the engine orders by; what comes in waves is the last of its rank."""
        return float("inf") if self.comes_in_waves else self.due_s


class TicketFactory:
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
        self._issued += 1
        policy = self._policies.get(request.class_name)
        ticket = Ticket(request, self._default_policy() if policy is None else policy, self._issued)
        self.estimate(ticket)
        return ticket

    def estimate(self, ticket: Ticket) -> None:
        """Set what a ticket that does not run will probably cost."""
        request = ticket.request
        prompt_tokens = self._estimator.prompt_tokens(request)
        cached_tokens = min(max(0, request.cached_tokens), prompt_tokens - 1)
        ticket.prompt_tokens = prompt_tokens
        ticket.new_tokens = prompt_tokens - cached_tokens
        ticket.output_estimate = self._estimator.output_tokens(request) * ticket.sequences
        ticket.cost = ticket.new_tokens + OUTPUT_WEIGHT * ticket.output_estimate

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

    def _default_policy(self) -> ClassPolicy:
        policies = self._policies
        lowest = min(policies.values(), key=lambda policy: (policy.rank, policy.name))
        return policies.get(self._default_class, lowest)


def set_instants(ticket: Ticket) -> None:
    """Set when `ticket` is due and when its wait ends, from its request and its class."""
    request, policy = ticket.request, ticket.policy
    arrival_s = request.arrival_s
    target_s = request.ttft_target_s
    if target_s is None:
        target_s = policy.ttft_target_s
    ticket.due_s = _NEVER_S if target_s is None else arrival_s + target_s
    ticket.expires_s = arrival_s + policy.max_queue_wait_s
    # A requeued one lost its place through no fault of its own, and one that woke the service meets
    # no overload: only the longest wait ends it.
    if policy.shed == "predictive" and not (ticket.was_requeued or request.may_be_late):
        ticket.expires_s = min(ticket.expires_s, ticket.due_s)
