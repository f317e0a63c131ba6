"""Bounds: what a replica holds for waiting requests, and what a tenant may have and send.

A full pool rejects newcomers, unless requests of lower ranks wait whose places suffice: then these
are evicted instead, the newest of the lowest rank first, so that a flood of batch work cannot lock
the others out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from weir_core.sched.pool import ClassQueue, Pool
from weir_core.sched.tickets import Ticket
from weir_core.sched.types import PoolLimits, Reason, TenantPolicy


class TokenBudget:
    """Tokens per minute of one tenant, with one minute's worth of burst.

    What was used is known only afterwards, so the level may fall below zero; requests are
    admitted while it is above.
    """

    def __init__(self, tokens_per_minute: int, now: float) -> None:
        self._per_second = tokens_per_minute / 60.0
        self._capacity = float(tokens_per_minute)
        self._part = 1.0
        self._level = self._capacity
        self._at = now

    def scale(self, part: float, now: float) -> None:
        """Have only so much of the whole budget from now on, above 0 and at most 1."""
        if part == self._part:
            return
        self._refill(now)
        ratio, self._part = part / self._part, part
        self._per_second *= ratio
        self._capacity *= ratio
        if self._level > 0:
            self._level *= ratio

    def level(self, now: float) -> float:
        """Return the tokens that are left; below 0 where too many were used."""
        self._refill(now)
        return self._level

    def set_level(self, level: float, now: float) -> None:
        """Take over what is left by another count."""
        self._at = now
        self._level = min(self._capacity, level)

    def spend(self, tokens: float, now: float) -> None:
        """Take `tokens` used (or, negative, give them back)."""
        self._refill(now)
        self._level = min(self._capacity, self._level - tokens)

    def wait_s(self, now: float) -> float:
        """Return the time until the next request is admitted; 0 admits one now."""
        self._refill(now)
        if self._level > 0:
            return 0.0
        return (1.0 - self._level) / self._per_second

    def left(self, now: float) -> int:
        """Return the tokens that may be used now, in whole ones."""
        self._refill(now)
        return max(0, int(self._level))

    def full_in_s(self, now: float) -> float:
        """Return the time until the whole budget is there again."""
        self._refill(now)
        return (self._capacity - self._level) / self._per_second

    def _refill(self, now: float) -> None:
        elapsed = max(0.0, now - self._at)
        self._level = min(self._capacity, self._level + elapsed * self._per_second)
        self._at = now


class Standing(NamedTuple):
    """How much of its limits a tenant has left; None where it has no such limit.

    Attributes:
        tokens_full_in_s: Time until the whole budget of tokens is there again.
    """

    requests: int | None
    requests_left: int | None
    tokens: int | None
    tokens_left: int | None
    tokens_full_in_s: float


class TenantLimits:
    """What each tenant has in flight and has used.

    In flight are the requests of this sidecar's own clients, wherever they run. What other sidecars
    have in flight counts, too, where this one is the tenant's home (`weir_core.route.places`).

    Attributes:
        has_budgets: Whether any tenant has one.
        changed: Tenants with limits whose counts have changed, for the other sidecars; None while
            there are none.
        spent: Tokens that tenants with a budget have used here, while `changed` is kept.
    """

    def __init__(self) -> None:
        # Of the tenants that have limits.
        self._policies: Mapping[str, TenantPolicy] = {}
        self._in_flight: dict[str, int] = {}
        self._uploading: dict[str, int] = {}
        self._elsewhere: dict[str, int] = {}
        # What the home of a tenant said last.
        self._left_at_home: dict[str, int] = {}
        self._budgets: dict[str, TokenBudget] = {}
        self.has_budgets = False
        self.changed: set[str] | None = None
        self.spent: dict[str, float] = {}

    def configure(self, tenants: Mapping[str, TenantPolicy], now: float) -> None:
        """Replace all limits; a budget whose limit did not change keeps its level."""
        unchanged = {
            name: budget
            for name, budget in self._budgets.items()
            if name in tenants
            and tenants[name].tokens_per_minute == self._policies[name].tokens_per_minute
        }
        self._policies = {
            name: policy
            for name, policy in tenants.items()
            if policy.max_requests is not None or policy.tokens_per_minute is not None
        }
        self._budgets = {
            name: unchanged.get(name) or TokenBudget(policy.tokens_per_minute, now)
            for name, policy in tenants.items()
            if policy.tokens_per_minute is not None
        }
        self.has_budgets = bool(self._budgets)

    @property
    def policies(self) -> Mapping[str, TenantPolicy]:
        """The policies of the tenants that have limits."""
        return self._policies

    def in_flight(self, tenant: str) -> int:
        """Return how many sequences of `tenant` wait or run."""
        return self._in_flight.get(tenant, 0)

    def all_in_flight(self) -> Mapping[str, int]:
        """Return how many sequences wait or run, of each tenant that has any."""
        return self._in_flight

    def has_limits(self, tenant: str) -> bool:
        """Return whether `tenant` has any limit."""
        return tenant in self._policies

    def budget(self, tenant: str) -> TokenBudget | None:
        """Return the budget of tokens of `tenant`, if it has one."""
        return self._budgets.get(tenant)

    def allows(self, tenant: str, sequences: int) -> bool:
        """Return whether `tenant` may ever have so many sequences in flight."""
        policy = self._policies.get(tenant)
        return policy is None or policy.max_requests is None or sequences <= policy.max_requests

    def wait_s(self, tenant: str, sequences: int, now: float) -> float:
        """Return when `tenant` may send so many more, in seconds from now; 0 is at once."""
        policy = self._policies.get(tenant)
        if policy is None:
            return 0.0
        more = sequences + self._uploading.get(tenant, 0)
        return self.wait_below_s(tenant, more, policy.max_requests, now)

    def wait_below_s(self, tenant: str, sequences: int, most: int | None, now: float) -> float:
        """Return the same where `most` may be in flight, uploads aside."""
        if most is not None and self._in_all(tenant) + sequences > most:
            return 1.0
        budget = self._budgets.get(tenant)
        return budget.wait_s(now) if budget else 0.0

    def standing(self, tenant: str, now: float) -> Standing | None:
        """Return how much `tenant` has left, or None where it has no limits."""
        policy, budget = self._policies.get(tenant), self._budgets.get(tenant)
        if policy is None:
            return None
        most = policy.max_requests
        left: int | None = None
        if most is not None:
            left = max(0, most - self._in_all(tenant) - self._uploading.get(tenant, 0))
            left = min(left, self._left_at_home.get(tenant, left))
        return Standing(
            requests=most,
            requests_left=left,
            tokens=policy.tokens_per_minute,
            tokens_left=None if budget is None else budget.left(now),
            tokens_full_in_s=0.0 if budget is None else budget.full_in_s(now),
        )

    def reserve(self, tenant: str) -> None:
        """Count a request whose body has not come."""
        self._uploading[tenant] = self._uploading.get(tenant, 0) + 1

    def release(self, tenant: str) -> None:
        """Give back what `reserve` counted."""
        _subtract(self._uploading, tenant, 1)

    def enter(self, tenant: str, sequences: int) -> None:
        """Count so many more sequences in flight."""
        self._in_flight[tenant] = self._in_flight.get(tenant, 0) + sequences
        self._note_change(tenant)

    def leave(self, tenant: str, sequences: int) -> None:
        """Count so many less."""
        _subtract(self._in_flight, tenant, sequences)
        self._note_change(tenant)

    def spend(self, tenant: str, tokens: float, now: float) -> None:
        """Count tokens used; only what has a budget need be told."""
        budget = self._budgets.get(tenant)
        if budget is None:
            return
        budget.spend(tokens, now)
        if self.changed is not None:
            self.changed.add(tenant)
            self.spent[tenant] = self.spent.get(tenant, 0.0) + tokens

    def note_elsewhere(self, tenant: str, more: int) -> None:
        """Count so many more in flight at other sidecars, or, negative, less."""
        if more > 0:
            self._elsewhere[tenant] = self._elsewhere.get(tenant, 0) + more
        elif more < 0:
            _subtract(self._elsewhere, tenant, -more)

    def note_home(self, tenant: str, left: int | None) -> None:
        """Note how many more requests the tenant's home would let in; None is not known."""
        if left is None:
            self._left_at_home.pop(tenant, None)
        else:
            self._left_at_home[tenant] = left

    def forget_homes(self) -> None:
        """Forget what homes said: they may be other ones now."""
        self._left_at_home.clear()

    def _in_all(self, tenant: str) -> int:
        return self._in_flight.get(tenant, 0) + self._elsewhere.get(tenant, 0)

    def _note_change(self, tenant: str) -> None:
        if self.changed is not None and tenant in self._policies:
            self.changed.add(tenant)


def _subtract(counts: dict[str, int], tenant: str, less: int) -> None:
    left = counts[tenant] - less
    if left:
        counts[tenant] = left
    else:
        del counts[tenant]


def evictions(ticket: Ticket, pool: Pool, limits: PoolLimits) -> list[Ticket] | Reason:
    """Return the requests to evict so that `ticket` fits, or why it cannot fit.

    Lower ranks make room, the lowest and newest first, and only if all of it suffices; those
    whose place the others make anyway stay.
    """
    too_many = len(pool) + 1 - limits.max_requests
    too_large = pool.body_bytes + ticket.request.body_bytes - limits.max_bytes
    if too_many <= 0 and too_large <= 0:
        return []
    lower = [queue for queue in pool.classes if queue.policy.rank < ticket.policy.rank]
    if too_large > sum(queue.body_bytes for queue in lower):
        return Reason.MEMORY_FULL
    if too_many > sum(queue.waiting for queue in lower):
        return Reason.QUEUE_FULL
    chosen: list[Ticket] = []
    freed = 0
    for candidate in _newest_first(lower):
        if len(chosen) >= too_many and freed >= too_large:
            break
        chosen.append(candidate)
        freed += candidate.request.body_bytes
    return _without_spare(chosen, too_many, freed - too_large)


def _newest_first(queues: Sequence[ClassQueue]) -> Iterator[Ticket]:
    for queue in reversed(queues):
        yield from queue.newest_first()


def _without_spare(chosen: list[Ticket], count: int, spare_bytes: int) -> list[Ticket]:
    """Leave out what is not needed: at least `count` go, with all bytes but `spare_bytes`."""
    kept: list[Ticket] = []
    spare = len(chosen) - count
    for ticket in chosen:
        if spare > 0 and ticket.request.body_bytes <= spare_bytes:
            spare -= 1
            spare_bytes -= ticket.request.body_bytes
        else:
            kept.append(ticket)
    return kept
