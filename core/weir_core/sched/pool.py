"""The requests that wait: per class, and in it per tenant.

`classes` run from the highest rank down. A class knows its tenants' turn (`fairness`), each
tenant its order, and the class its oldest and newest request. Adding, removing and finding the
next one are O(log n) in waiting requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from weir_core.sched.fairness import Fairness, VirtualTokenCounter
from weir_core.sched.lazyheap import LazyHeap
from weir_core.sched.order import Order
from weir_core.sched.served import ServedHere
from weir_core.sched.tickets import State, Ticket
from weir_core.sched.types import ClassPolicy

_LOOKED_AT: Final = 32
"""Tenants, and then requests, that `first_within` looks at, at most."""


class TenantQueue:
    """One tenant's waiting requests of one class: those that can be on time, then the rest."""

    __slots__ = ("cost", "late", "on_time", "waiting")

    def __init__(self) -> None:
        self.on_time = LazyHeap()
        self.late = LazyHeap()
        self.waiting = 0
        self.cost = 0.0

    def first(self) -> Ticket | None:
        """Return the request to serve next."""
        return self.on_time.first() or self.late.first()


class ClassQueue:
    """One class's waiting requests."""

    def __init__(self, policy: ClassPolicy, fairness: Fairness, order: Order) -> None:
        self.policy = policy
        self.fairness = fairness
        self.waiting = 0
        self.body_bytes = 0
        self.cost = 0.0
        self.due_cost = 0.0
        """Sum of cost x the instant until which it should be served."""
        self.credit = 0.0
        """Tokens of its minimum share that the class is owed; `pick` keeps it."""
        self.served_s = float("-inf")
        """When one of its requests was dispatched last; `pick` keeps it."""
        self.busy_since_s = 0.0
        """Arrival of the request with which the present time of waiting began."""
        self.shares_rank = False
        """Whether another class has the same rank; `Level` keeps it."""
        self._order = order
        self._tenants: dict[str, TenantQueue] = {}
        # seq -> ticket, whoever has been here longest first.
        self._by_age: OrderedDict[int, Ticket] = OrderedDict()

    def add(self, ticket: Ticket) -> None:
        """Queue `ticket`, which has a fresh epoch."""
        name = ticket.account = self.fairness.key(ticket.request.tenant)
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = TenantQueue()
            self.fairness.enter(name)
        lane = tenant.late if ticket.late else tenant.on_time
        lane.push(self._order.key(ticket), ticket)
        self._by_age[ticket.seq] = ticket
        if ticket.epoch:  # it was here before, so it is older than those who have just come
            self._by_age.move_to_end(ticket.seq, last=False)
        tenant.waiting += 1
        tenant.cost += ticket.cost
        self.cost += ticket.cost
        self.due_cost += ticket.cost * ticket.served_by_s
        self.body_bytes += ticket.request.body_bytes
        if not self.waiting:
            self.busy_since_s = ticket.request.arrival_s
        self.waiting += 1

    def remove(self, ticket: Ticket) -> None:
        """Take out `ticket`, whose epoch the caller has just raised."""
        name = ticket.account
        tenant = self._tenants[name]
        (tenant.late if ticket.late else tenant.on_time).forget()
        del self._by_age[ticket.seq]
        tenant.waiting -= 1
        tenant.cost -= ticket.cost
        self.cost -= ticket.cost
        self.due_cost -= ticket.cost * ticket.served_by_s
        self.body_bytes -= ticket.request.body_bytes
        if not tenant.waiting:
            del self._tenants[name]
            self.fairness.leave(name)
        self.waiting -= 1
        if not self.waiting:
            self.cost = self.due_cost = 0.0  # what floating point left over

    def slack_s(self, now: float) -> float:
        """Return the time until what waits is due, the mean over its cost."""
        return self.due_cost / self.cost - now if self.cost > 0.0 else 0.0

    def first(self) -> Ticket | None:
        """Return the next request of the tenant whose turn it is."""
        name = self.fairness.next()
        return None if name is None else self._tenants[name].first()

    def oldest_arrival_s(self) -> float | None:
        """Return when the request that has been here longest arrived."""
        for ticket in self._by_age.values():
            return ticket.request.arrival_s
        return None

    def oldest_first(self) -> Iterator[Ticket]:
        """Yield the requests, the one that has been here longest first."""
        return iter(self._by_age.values())

    def newest_first(self) -> Iterator[Ticket]:
        """Yield the requests, the one that came last first."""
        return reversed(self._by_age.values())

    def first_within(self, tokens: int) -> Ticket | None:
        """Return the first request whose prompt is no longer than `tokens`, of those looked at.

        These are the next one, then the next one of each tenant in turn, then the oldest.
        """
        ticket = self.first()
        if ticket is None or ticket.new_tokens <= tokens:
            return ticket
        heads = [(name, self._tenants[name].first()) for name in islice(self._tenants, _LOOKED_AT)]
        fitting = [
            (self.fairness.counter(name), name, head)
            for name, head in heads
            if head is not None and head.new_tokens <= tokens
        ]
        if fitting:
            return min(fitting)[2]
        oldest = islice(self._by_age.values(), _LOOKED_AT)
        return next((ticket for ticket in oldest if ticket.new_tokens <= tokens), None)

    def tenant_cost(self, tenant: str) -> float:
        """Return the expected work that `tenant` has waiting here, in VTC tokens."""
        queue = self._tenants.get(self.fairness.key(tenant))
        return queue.cost if queue else 0.0


class Level:
    """The classes of one rank, which take turns by weight."""

    def __init__(self, queues: Sequence[ClassQueue]) -> None:
        self.rank = queues[0].policy.rank
        self.queues = {queue.policy.name: queue for queue in queues}
        self.waiting = sum(queue.waiting for queue in queues)
        self._only = queues[0] if len(queues) == 1 else None
        self._turns = VirtualTokenCounter()
        self._turns.reweigh({queue.policy.name: queue.policy.weight for queue in queues})
        for queue in queues:
            queue.shares_rank = self._only is None
            if queue.waiting:
                self._turns.enter(queue.policy.name)

    def next(self) -> ClassQueue | None:
        """Return the class whose turn it is among those that wait, or None."""
        if self._only is not None:
            return self._only if self.waiting else None
        name = self._turns.next()
        return None if name is None else self.queues[name]

    def add(self, queue: ClassQueue) -> None:
        """Note that `queue` has one more request."""
        self.waiting += 1
        if queue.waiting == 1 and self._only is None:
            self._turns.enter(queue.policy.name)

    def remove(self, queue: ClassQueue) -> None:
        """Note that `queue` has one request less."""
        self.waiting -= 1
        if not queue.waiting and self._only is None:
            self._turns.leave(queue.policy.name)

    def pass_by(self, name: str) -> None:
        """Note that a request of one of several classes came and left where nobody waits."""
        self._turns.pass_by(name)

    def charge(self, name: str, tokens: float) -> None:
        """Count tokens served to one of several classes."""
        self._turns.charge(name, tokens)


class Pool:
    """All classes, from the highest rank down, and the sums that limits look at."""

    def __init__(self, make_fairness: Callable[[], Fairness], order: Order) -> None:
        self._make_fairness = make_fairness
        self._order = order
        self._by_name: dict[str, ClassQueue] = {}
        self._weights: Mapping[str, float] = {}
        self.levels: list[Level] = []
        """The highest rank first."""
        self.classes: list[ClassQueue] = []
        """All classes, the highest rank first."""
        self._level_of: dict[str, Level] = {}
        self.served = ServedHere()
        self.requests = 0
        self.body_bytes = 0

    def __len__(self) -> int:
        return self.requests

    def of(self, ticket: Ticket) -> ClassQueue:
        """Return the queue of `ticket`'s class."""
        return self._by_name[ticket.policy.name]

    def named(self, class_name: str) -> ClassQueue | None:
        """Return the queue of a class, or None when there is no such class."""
        return self._by_name.get(class_name)

    def configure(self, policies: Sequence[ClassPolicy], weights: Mapping[str, float]) -> None:
        """Make these the classes and tenant weights; what waits stays, and its service counts."""
        self._weights = dict(weights)
        for policy in policies:
            queue = self._by_name.get(policy.name)
            if queue is None:
                queue = ClassQueue(policy, self._make_fairness(), self._order)
                self._by_name[policy.name] = queue
            queue.policy = policy
            queue.fairness.reweigh(self._weights)
        wanted = {policy.name for policy in policies}
        for name in [name for name, queue in self._by_name.items() if name not in wanted]:
            if not self._by_name[name].waiting:
                del self._by_name[name]
        self._arrange()

    def top(self) -> Level | None:
        """Return the highest level at which anybody waits."""
        for level in self.levels:
            if level.waiting:
                return level
        return None

    def add(self, ticket: Ticket) -> None:
        """Let `ticket` wait."""
        ticket.state = State.WAITING
        name = ticket.policy.name
        queue = self._by_name[name]
        queue.add(ticket)
        self._level_of[name].add(queue)
        self.requests += 1
        self.body_bytes += ticket.request.body_bytes

    def remove(self, ticket: Ticket) -> None:
        """Take `ticket` out; every heap entry of it is dead from here on."""
        ticket.epoch += 1
        name = ticket.policy.name
        queue = self._by_name[name]
        queue.remove(ticket)
        self._level_of[name].remove(queue)
        self.requests -= 1
        self.body_bytes -= ticket.request.body_bytes

    def pass_by(self, ticket: Ticket) -> None:
        """Do what `add` and `remove` do where nobody waits."""
        ticket.epoch += 1
        name = ticket.policy.name
        queue = self._by_name[name]
        ticket.account = queue.fairness.key(ticket.request.tenant)
        queue.fairness.pass_by(ticket.account)
        if queue.shares_rank:
            self._level_of[name].pass_by(name)

    def charge(self, ticket: Ticket, tokens: float) -> None:
        """Count `tokens` served (or, negative, returned) for its tenant and class."""
        name = ticket.policy.name
        queue = self._by_name.get(name)
        if queue is not None:
            queue.fairness.charge(ticket.account, tokens)
            self.served.note(name, ticket.account, tokens)
            if queue.shares_rank:
                self._level_of[name].charge(name, tokens)

    def charge_elsewhere(self, class_name: str, tenant: str, tokens: float, most: float) -> None:
        """Count tokens that another replica served to a tenant; classes keep their turns.

        Args:
            class_name: One that is not known here is ignored.
            tenant: Whose they are.
            tokens: At least 0.
            most: Tokens by which the tenant may come to be ahead by them.
        """
        queue = self._by_name.get(class_name)
        if queue is not None and queue.waiting:
            queue.fairness.charge_elsewhere(queue.fairness.key(tenant), tokens, most)

    def _arrange(self) -> None:
        by_rank: dict[int, list[ClassQueue]] = {}
        for queue in self._by_name.values():
            by_rank.setdefault(queue.policy.rank, []).append(queue)
        self.levels = [
            Level(sorted(by_rank[rank], key=lambda queue: queue.policy.name))
            for rank in sorted(by_rank, reverse=True)
        ]
        self.classes = [queue for level in self.levels for queue in level.queues.values()]
        self._level_of = {name: level for level in self.levels for name in level.queues}
