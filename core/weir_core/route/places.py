"""The limits of tenants over all replicas: who counts, who holds what, what one may alone.

Each tenant with limits has a home: of the replicas that the policy document names, the first one in
the tenant's own order that can be reached. A request of the tenant is counted there before it is
routed; the sidecar that its client reached holds its places until it ends. Tokens are counted where
they are computed. Both are told to the home in messages.

A sidecar has one message at a time on its way to a home. Each one says *all* that the sender holds
there, and its number says which one is newer: one that is repeated, late or lost does no harm, and
nothing is held for longer than until the next one.

Who is home follows from the replicas that can be reached (the `view`). A new home grants nothing
until every sidecar that it hears has the same view, and with that has told what it holds, or until
`SETTLE_S` is over. A replica that is named and out of reach may serve on by itself: its part of a
limit is left to it, and it lets in no more than its part. One whose address refuses connections
serves nothing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec

from weir_core.route.home import order_of, part_of
from weir_core.sched.limits import TenantLimits

SETTLE_S: Final = 1.0
"""After a change, a home waits so long for the others to tell what they hold."""


class Holding(msgspec.Struct, frozen=True, array_like=True):
    """What a sidecar holds of one tenant's limits.

    Attributes:
        places: Sequences of its own clients that wait or run.
        spent: Tokens computed there since the session began.
        level: In a session's first message, what is left of the budget as far as is known there.
    """

    tenant: str
    places: int = 0
    spent: float = 0.0
    level: float | None = None


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """Places that are asked for, for one request."""

    tenant: str
    sequences: int


class Message(msgspec.Struct, frozen=True, array_like=True):
    """What a sidecar tells, and asks of, a home.

    Attributes:
        session: Higher than in any session before; what is counted begins with it.
        number: Counts the messages of the session.
        view: The sender's.
        is_first: Nothing of the session is known to have reached the home.
        holdings: All that the sender holds there; a tenant that is not in it has no places.
        wanted: Not in the holdings yet.
    """

    session: int
    number: int
    view: int
    is_first: bool
    holdings: tuple[Holding, ...] = ()
    wanted: tuple[Wanted, ...] = ()


class Word(IntEnum):
    """What a home says to a request for places."""

    GRANTED = 0
    REFUSED = 1
    LATER = 2
    """It cannot say yet, or is not the home as it sees it: ask again."""


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """What is said to one request, and when another attempt makes sense."""

    word: Word
    wait_s: float = 0.0


class Left(msgspec.Struct, frozen=True, array_like=True):
    """What is left of one tenant's limits, as its home counts.

    Attributes:
        requests: None where it has no such limit; so is `tokens`.
    """

    tenant: str
    requests: int | None = None
    tokens: float | None = None


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a home answers.

    Attributes:
        is_known: The session goes on; else the message was not looked at, and a new session begins.
        verdicts: In the order of what was wanted.
        left: What is left to the tenants that the message named.
        is_same_view: Both see the same replicas; else what the message left out was not heeded.
    """

    is_known: bool
    verdicts: tuple[Verdict, ...] = ()
    left: tuple[Left, ...] = ()
    is_same_view: bool = True


class Members(NamedTuple):
    """The sidecars of the service, as one of them sees them.

    Attributes:
        named: The replicas that the policy document names.
        reachable: Sidecars that can be asked, besides this one.
        heard: Sidecars that tell what they hold, besides this one.
        down: Sidecars whose address refuses connections.
    """

    named: frozenset[str] = frozenset()
    reachable: frozenset[str] = frozenset()
    heard: frozenset[str] = frozenset()
    down: frozenset[str] = frozenset()


class _Holder:
    """A sidecar that tells what it holds here."""

    def __init__(self, session: int, places: dict[str, int]) -> None:
        self.session = session
        self.number = self.view = -1
        self.places = places
        self.spent: dict[str, float] = {}
        self.answer = Answer(is_known=False)


class _Link:
    """What was told to a home.

    Attributes:
        is_due: There is something to tell.
        holds: It was told of places, which it must not forget.
        changed: Tenants to tell of, besides those with places.
        base: What each tenant had spent when the session began.
    """

    def __init__(self, session: int) -> None:
        self.session = session
        self.number = 0
        self.is_first = self.is_due = True
        self.holds = False
        self.changed: set[str] = set()
        self.base: Mapping[str, float] = {}
        # Of the message that is on its way: what it told of, and what had been spent by then.
        self.told: set[str] = set()
        self.spent: dict[str, float] = {}


class Places:
    """One sidecar's side of it: a home of some tenants, and a holder at the homes of the others.

    Args:
        own: The name of this sidecar.
        tenants: What is counted here.
        session: Higher than that of any earlier process of this name, by much.

    Attributes:
        view: A number for who can be reached and what the limits are: equal ones, equal homes.
        changed_s: When it last changed.
    """

    def __init__(self, own: str, tenants: TenantLimits, session: int) -> None:
        self.own = own
        self.view = 0
        self.changed_s = float("-inf")
        self._tenants = tenants
        self._session = session
        self._members = Members()
        self._candidates: frozenset[str] = frozenset()
        self._settled_by_s = float("-inf")
        self._orders: dict[str, tuple[str, ...]] = {}
        self._homes: dict[str, str] = {}
        self._holders: dict[str, _Holder] = {}
        self._links: dict[str, _Link] = {}

    # ---- who is home

    def learn(self, members: Members, now: float) -> None:
        """Note who is there; to be called after the limits have changed, too."""
        before, self._members = self._members, members
        if members.named != before.named:
            self._orders.clear()
        self._homes.clear()
        self._candidates = members.named & (members.reachable | {self.own})
        policies = sorted(self._tenants.policies.items())
        # A gateway asks the only replica of its service, too.
        gateways = members.heard - members.reachable
        others = (members.named | gateways) - {self.own}
        self._keep_changes(bool(policies) and bool(others), now)
        limits = [(name, one.max_requests, one.tokens_per_minute) for name, one in policies]
        view = zlib.crc32(repr((sorted(self._candidates), limits)).encode())
        is_other = view != self.view
        if is_other:
            self.view, self.changed_s = view, now
            self._renew_links()
        if is_other or members.heard - before.heard:
            self._settled_by_s = now + SETTLE_S
        for name in list(self._holders):
            self._revise(name)

    def home_of(self, tenant: str) -> str:
        """Return who counts for a tenant; empty where this sidecar's scheduler does, by itself."""
        home = self._homes.get(tenant)
        if home is None:
            if self._tenants.changed is None or not self._tenants.has_limits(tenant):
                return ""
            home = self._homes[tenant] = self._find_home(tenant)
        return home

    def is_settled(self, now: float) -> bool:
        """Tell whether all who are heard have told what they hold here."""
        if now >= self._settled_by_s:
            return True
        for name in self._members.heard:
            holder = self._holders.get(name)
            if holder is None or holder.view != self.view:
                return False
        return True

    def _find_home(self, tenant: str) -> str:
        order = self._order_of(tenant)
        return next((name for name in order if name in self._candidates), "")

    def _order_of(self, tenant: str) -> tuple[str, ...]:
        order = self._orders.get(tenant)
        if order is None:
            order = self._orders[tenant] = order_of(tenant, self._members.named)
        return order

    def _out_of_reach(self) -> list[str]:
        """Return the replicas that may serve by themselves, unseen from here."""
        members = self._members
        gone = members.named - self._candidates - members.down
        return sorted(gone - {self.own})

    def _most(self, tenant: str) -> int | None:
        """Return how many sequences of a tenant may be in flight, at its home's word."""
        most = self._tenants.policies[tenant].max_requests
        if most is None:
            return None
        order = self._order_of(tenant)
        left = most - sum(part_of(most, order, name) for name in self._out_of_reach())
        # Of two sides of a cut, at most one has more than half of the replicas.
        return max(1, left) if 2 * len(self._candidates) > len(order) else left

    def _renew_links(self) -> None:
        """Begin anew with everyone who may be a home: the tenants may be divided otherwise."""
        self._links.clear()
        self._tenants.forget_homes()
        if self._tenants.changed is not None:
            for name in self._candidates - {self.own}:
                self._link_to(name)

    def _link_to(self, home: str) -> _Link:
        link = self._links.get(home)
        if link is None:
            self._session += 1
            link = self._links[home] = _Link(self._session)
        return link

    def _keep_changes(self, keep: bool, now: float) -> None:
        tenants = self._tenants
        for tenant in tenants.policies:
            budget = tenants.budget(tenant)
            if budget is not None:
                budget.scale(self._budget_part() if keep else 1.0, now)
        if keep and tenants.changed is None:
            tenants.changed = set()
        elif not keep:
            tenants.changed = None
            tenants.spent.clear()
            self._links.clear()

    def _budget_part(self) -> float:
        """Return the part of a budget that this sidecar, where it is the home, may give out."""
        named = self._members.named
        if self.own not in named:
            return 1.0
        return 1.0 - len(self._out_of_reach()) / len(named)

    # ---- what is counted here

    def take(self, tenant: str, sequences: int, now: float) -> Verdict:
        """Take places for a request of an own client, at this sidecar as the tenant's home."""
        if not self.is_settled(now):
            return Verdict(Word.LATER)
        return self._take_below(tenant, sequences, self._most(tenant), now)

    def take_part(self, tenant: str, sequences: int, now: float) -> Verdict:
        """Take places where the home cannot be asked: no more than this sidecar's part."""
        if self.own not in self._members.named:
            return Verdict(Word.LATER)
        most = self._tenants.policies[tenant].max_requests
        if most is not None:
            most = part_of(most, self._order_of(tenant), self.own)
        return self._take_below(tenant, sequences, most, now)

    def _take_below(self, tenant: str, sequences: int, most: int | None, now: float) -> Verdict:
        wait_s = self._tenants.wait_below_s(tenant, sequences, most, now)
        if wait_s > 0:
            return Verdict(Word.REFUSED, wait_s)
        self._tenants.enter(tenant, sequences)
        return Verdict(Word.GRANTED)

    # ---- the holder's side

    def due(self) -> list[str]:
        """Return the homes that are to be told something."""
        changed = self._tenants.changed
        if changed:
            for tenant in changed:
                home = self.home_of(tenant)
                if home and home != self.own:
                    link = self._link_to(home)
                    link.changed.add(tenant)
                    link.is_due = True
            changed.clear()
        return [name for name, link in self._links.items() if link.is_due]

    def tells(self, home: str) -> bool:
        """Tell whether a sidecar may be a home."""
        return home in self._links

    def remind(self) -> None:
        """Have every home told again of what is held there; a home may have forgotten it."""
        for link in self._links.values():
            link.is_due = link.is_due or link.holds

    def compose(self, home: str, wanted: Sequence[Wanted], now: float) -> Message:
        """Return the next message to a home; the one before has its answer, or is given up."""
        link, spent = self._link_to(home), self._tenants.spent
        link.number += 1
        link.is_due = False
        link.told |= link.changed
        link.changed = set()
        if link.is_first:
            link.base = dict(spent)
        counts = self._tenants.all_in_flight()
        about = {one for one in counts if self.home_of(one) == home}
        about |= {one for one in link.told if self.home_of(one) == home}
        if link.is_first:
            about |= {one for one in self._tenants.policies if self.home_of(one) == home}
        link.spent = {one: spent.get(one, 0.0) for one in about}
        holdings = (self._holding(one, link, now) for one in sorted(about))
        link.holds = any(counts.get(one) for one in about)
        return Message(
            link.session,
            link.number,
            self.view,
            link.is_first,
            tuple(each for each in holdings if each is not None),
            tuple(wanted),
        )

    def _holding(self, tenant: str, link: _Link, now: float) -> Holding | None:
        tenants, level = self._tenants, None
        budget = tenants.budget(tenant)
        if link.is_first and budget is not None and budget.full_in_s(now) > 0:
            level = budget.level(now)
        spent = link.spent[tenant] - link.base.get(tenant, 0.0)
        places = tenants.in_flight(tenant)
        if link.is_first and not places and level is None:
            return None
        return Holding(tenant, places, spent, level)

    def failed(self, home: str) -> None:
        """Note that a message has no answer."""
        link = self._links.get(home)
        if link is not None:
            link.is_due = True

    def on_answer(self, home: str, message: Message, answer: Answer, now: float) -> bool:
        """Take over what a home says; false where it did not look at the message.

        The places that it grants are held from then on: `hold` them at once, or `drop` them.
        """
        link = self._links.get(home)
        if link is None or (link.session, link.number) != (message.session, message.number):
            return False
        if not answer.is_known:
            link.is_first = link.is_due = True
            return False
        link.is_first = False
        # A home of another view does not heed what a message leaves out: it has to be told again.
        link.holds = link.holds or not answer.is_same_view
        link.told.clear()
        for left in answer.left:
            self._note_left(left, link, now)
        return True

    def _note_left(self, left: Left, link: _Link, now: float) -> None:
        tenants = self._tenants
        tenants.note_home(left.tenant, left.requests)
        budget = tenants.budget(left.tenant)
        if budget is not None and left.tokens is not None and math.isfinite(left.tokens):
            then = link.spent.get(left.tenant)
            now_spent = tenants.spent.get(left.tenant, 0.0)
            budget.set_level(left.tokens - (0.0 if then is None else now_spent - then), now)

    def hold(self, tenant: str, sequences: int) -> None:
        """Count places that a home has granted."""
        self._tenants.enter(tenant, sequences)

    def give_back(self, tenant: str, sequences: int) -> None:
        """Count places of a request that has ended as free."""
        self._tenants.leave(tenant, sequences)

    def drop(self, tenant: str) -> None:
        """Have a home told again what is held: what it granted is not needed any more."""
        if self._tenants.changed is not None:
            self._tenants.changed.add(tenant)

    # ---- the home's side

    def on_message(self, name: str, message: Message, now: float) -> Answer:
        """Take over what a sidecar tells, and answer what it asks."""
        holder = self._holders.get(name)
        if name not in self._members.heard or (holder is None and not message.is_first):
            return Answer(is_known=False)
        if holder is None or message.session > holder.session:
            if not message.is_first:
                return Answer(is_known=False)
            places = {} if holder is None else holder.places
            holder = self._holders[name] = _Holder(message.session, places)
        if message.session < holder.session:
            return Answer(is_known=False)
        if message.number > holder.number:
            holder.answer = self._answer(holder, message, now)
        return holder.answer  # of an older message nobody waits for it

    def _answer(self, holder: _Holder, message: Message, now: float) -> Answer:
        holder.number, holder.view = message.number, message.view
        if message.is_first:
            holder.spent.clear()
        for holding in message.holdings:
            if self.home_of(holding.tenant) == self.own:
                self._note_holding(holder, holding, now)
        if message.view == self.view:  # else it may only think that another one is home
            told = {one.tenant for one in message.holdings}
            for tenant in [one for one in holder.places if one not in told]:
                self._note_places(holder, tenant, 0)
        verdicts = tuple(self._judge(holder, one, now) for one in message.wanted)
        named = {one.tenant for one in message.holdings} | {one.tenant for one in message.wanted}
        left = (self._left(one, now) for one in sorted(named) if self.home_of(one) == self.own)
        return Answer(True, verdicts, tuple(left), message.view == self.view)

    def _note_holding(self, holder: _Holder, holding: Holding, now: float) -> None:
        tenant, level = holding.tenant, holding.level
        self._note_places(holder, tenant, max(0, holding.places))
        more = holding.spent - holder.spent.get(tenant, 0.0)
        if not math.isfinite(more):
            return
        holder.spent[tenant] = holding.spent
        budget = self._tenants.budget(tenant)
        if budget is None:
            return
        if more:
            budget.spend(more, now)
        if level is not None and math.isfinite(level) and level < budget.level(now):
            budget.set_level(level, now)

    def _note_places(self, holder: _Holder, tenant: str, places: int) -> None:
        before = holder.places.pop(tenant, 0)
        if places:
            holder.places[tenant] = places
        self._tenants.note_elsewhere(tenant, places - before)

    def _judge(self, holder: _Holder, wanted: Wanted, now: float) -> Verdict:
        tenant = wanted.tenant
        if not self._tenants.has_limits(tenant):
            return Verdict(Word.GRANTED)
        if self.home_of(tenant) != self.own or not self.is_settled(now):
            return Verdict(Word.LATER)
        sequences = max(1, wanted.sequences)
        most = self._most(tenant)
        wait_s = self._tenants.wait_below_s(tenant, sequences, most, now)
        if wait_s > 0:
            return Verdict(Word.REFUSED, wait_s)
        self._note_places(holder, tenant, holder.places.get(tenant, 0) + sequences)
        return Verdict(Word.GRANTED)

    def _left(self, tenant: str, now: float) -> Left:
        standing, budget = self._tenants.standing(tenant, now), self._tenants.budget(tenant)
        requests = None if standing is None else standing.requests_left
        return Left(tenant, requests, None if budget is None else budget.level(now))

    def _revise(self, name: str) -> None:
        """Forget what a sidecar that is gone held, or what is counted by another home now."""
        if name not in self._members.heard:
            self._forget(name)
            return
        holder = self._holders[name]
        for tenant in [one for one in holder.places if self.home_of(one) != self.own]:
            self._note_places(holder, tenant, 0)

    def _forget(self, name: str) -> None:
        holder = self._holders.pop(name, None)
        if holder is not None:
            for tenant in list(holder.places):
                self._note_places(holder, tenant, 0)
