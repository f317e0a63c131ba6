"""The limits of tenants over all replicas, whatever happens to the messages."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weir_core.route.home import order_of, part_of
from weir_core.route.places import (
    SETTLE_S,
    Answer,
    Holding,
    Left,
    Members,
    Message,
    Places,
    Verdict,
    Wanted,
    Word,
)
from weir_core.sched.limits import TenantLimits
from weir_core.sched.types import TenantPolicy

LIMIT = 4
TENANTS = {
    "few": TenantPolicy("few", max_requests=LIMIT),
    "budget": TenantPolicy("budget", tokens_per_minute=6000),
    "free": TenantPolicy("free"),
}
NAMES = ("a", "b", "c")
MORE_NAMES = ("a", "b", "c", "d")


class Sidecar:
    """One sidecar: its counts, and what it holds."""

    def __init__(self, name: str, session: int = 0) -> None:
        self.name = name
        self.tenants = TenantLimits()
        self.tenants.configure(TENANTS, 0.0)
        self.places = Places(name, self.tenants, session)

    def sees(
        self,
        others: set[str],
        now: float,
        *,
        named: tuple[str, ...] = NAMES,
        gateways: frozenset[str] = frozenset(),
        down: frozenset[str] = frozenset(),
    ) -> None:
        reachable = frozenset(others) - {self.name}
        self.places.learn(Members(frozenset(named), reachable, reachable | gateways, down), now)

    def ask(self, home: Sidecar, now: float, *sequences: int, tenant: str = "few") -> list[Verdict]:
        """Ask a home, over a network that works."""
        if home is self:
            return [self.places.take(tenant, each, now) for each in sequences]
        self.places.due()
        wanted = [Wanted(tenant, each) for each in sequences]
        message = self.places.compose(home.name, wanted, now)
        answer = home.places.on_message(self.name, message, now)
        if not self.places.on_answer(home.name, message, answer, now):
            return []
        for each, verdict in zip(wanted, answer.verdicts, strict=True):
            if verdict.word is Word.GRANTED:
                self.places.hold(tenant, each.sequences)
        return list(answer.verdicts)


def fleet(names: tuple[str, ...] = NAMES) -> dict[str, Sidecar]:
    """Sidecars that have told each other that they hold nothing."""
    found = {name: Sidecar(name) for name in names}
    for each in found.values():
        each.sees(set(names), 0.0, named=names)
    greet(found, 0.0)
    return found


def greet(sidecars: dict[str, Sidecar], now: float) -> None:
    for each in sidecars.values():
        for home in each.places.due():
            if home in sidecars:
                each.ask(sidecars[home], now)


def words(verdicts: list[Verdict]) -> list[Word]:
    return [each.word for each in verdicts]


# ---- who is home


def test_every_sidecar_finds_the_same_home() -> None:
    found = {each.places.home_of("few") for each in fleet().values()}
    assert found == {order_of("few", NAMES)[0]}


def test_a_replica_that_goes_moves_only_the_tenants_whose_home_it_was() -> None:
    before = {f"t{n}": order_of(f"t{n}", NAMES)[0] for n in range(300)}
    after = {name: order_of(name, ("a", "b"))[0] for name in before}
    assert all(after[name] == home for name, home in before.items() if home != "c")
    assert min(Counter(before.values()).values()) > 60


@given(st.integers(0, 50), st.integers(1, 9))
def test_the_parts_of_a_limit_add_up_to_it(limit: int, replicas: int) -> None:
    names = [f"r{n}" for n in range(replicas)]
    assert sum(part_of(limit, names, name) for name in names) == limit


def test_a_tenant_without_limits_has_no_home() -> None:
    assert fleet()["a"].places.home_of("free") == ""


def test_a_single_replica_counts_by_itself() -> None:
    one = Sidecar("a")
    one.sees(set(), 0.0, named=("a",))
    assert one.places.home_of("few") == ""
    assert one.tenants.changed is None


def test_the_only_replica_is_home_for_a_gateway() -> None:
    replica, gateway = Sidecar("a"), Sidecar("gateway")
    replica.sees(set(), 0.0, named=("a",), gateways=frozenset({"gateway"}))
    gateway.sees({"a"}, 0.0, named=("a",))
    assert gateway.ask(replica, 0.0) == []
    assert words(gateway.ask(replica, 0.0, 3, 1, 1)) == [Word.GRANTED, Word.GRANTED, Word.REFUSED]
    assert words(replica.ask(replica, 0.0, 1)) == [Word.REFUSED]


# ---- places


def test_what_was_freed_while_two_saw_different_replicas_is_told_again() -> None:
    sidecars = fleet()
    home_name, name = order_of("few", NAMES)[:2]
    home, holder = sidecars[home_name], sidecars[name]
    assert words(holder.ask(home, 2.0, 1)) == [Word.GRANTED]
    holder.places.give_back("few", 1)
    holder.sees({home_name}, 3.0)  # the third one is gone, and the home does not know it yet
    assert holder.ask(home, 3.0) == []
    home.sees({name}, 4.0)
    holder.places.remind()
    for told in holder.places.due():
        holder.ask(sidecars[told], 4.0)
    assert home.tenants.standing("few", 4.0).requests_left == LIMIT  # type: ignore[union-attr]


def test_a_tenant_has_its_limit_once_however_many_replicas_there_are() -> None:
    found = fleet()
    home = found[order_of("few", NAMES)[0]]
    said = [word for each in found.values() for word in words(each.ask(home, 0.0, 1, 1))]
    assert said.count(Word.GRANTED) == LIMIT
    assert said.count(Word.REFUSED) == 2


def test_what_ends_is_free_again_at_the_home() -> None:
    found = fleet()
    first, second, third = (found[name] for name in order_of("few", NAMES))
    assert words(second.ask(first, 0.0, 4)) == [Word.GRANTED]
    assert words(third.ask(first, 0.0, 1)) == [Word.REFUSED]
    second.places.give_back("few", 4)
    assert second.places.due() == [first.name]
    second.ask(first, 0.0)
    assert words(third.ask(first, 0.0, 4)) == [Word.GRANTED]


def test_a_message_that_is_repeated_gets_the_same_answer_and_counts_once() -> None:
    found = fleet()
    home, other, _ = (found[name] for name in order_of("few", NAMES))
    message = other.places.compose(home.name, [Wanted("few", 2)], 0.0)
    first = home.places.on_message(other.name, message, 0.0)
    assert home.places.on_message(other.name, message, 0.0) == first
    assert home.tenants.standing("few", 0.0).requests_left == 2  # type: ignore[union-attr]


def test_a_grant_whose_answer_is_lost_is_free_again_with_the_next_message() -> None:
    found = fleet()
    home, other, _ = (found[name] for name in order_of("few", NAMES))
    message = other.places.compose(home.name, [Wanted("few", 4)], 0.0)
    home.places.on_message(other.name, message, 0.0)
    other.places.failed(home.name)
    assert words(other.ask(home, 0.0, 4)) == [Word.GRANTED]


def test_a_grant_that_nobody_waits_for_any_more_is_told_back() -> None:
    found = fleet()
    home, other, _ = (found[name] for name in order_of("few", NAMES))
    message = other.places.compose(home.name, [Wanted("few", 4)], 0.0)
    answer = home.places.on_message(other.name, message, 0.0)
    assert other.places.on_answer(home.name, message, answer, 0.0)
    other.places.drop("few")
    assert other.places.due() == [home.name]
    other.ask(home, 0.0)
    assert words(home.ask(home, 0.0, 4)) == [Word.GRANTED]


def test_what_a_lost_sidecar_held_is_forgotten_but_its_part_is_left_to_it() -> None:
    found = fleet()
    home, other, third = (found[name] for name in order_of("few", NAMES))
    other.ask(home, 0.0, 3)
    home.sees({third.name}, 1.0)
    third.sees({home.name}, 1.0)
    greet({home.name: home, third.name: third}, 1.0)
    part = part_of(LIMIT, order_of("few", NAMES), other.name)
    said = words(third.ask(home, 1.0, *[1] * LIMIT))
    assert said.count(Word.GRANTED) == LIMIT - part


def test_one_whose_address_refuses_connections_has_no_part() -> None:
    found = fleet()
    home, other, third = (found[name] for name in order_of("few", NAMES))
    for each in (home, third):
        each.sees({home.name, third.name}, 1.0, down=frozenset({other.name}))
    greet({home.name: home, third.name: third}, 1.0)
    assert words(third.ask(home, 1.0, 4)) == [Word.GRANTED]


@pytest.mark.parametrize("limit", [1, 2, 4, 7])
def test_replicas_that_are_all_alone_let_in_the_limit_together(limit: int) -> None:
    granted = 0
    for name in NAMES:
        one = Sidecar(name)
        one.tenants.configure({"few": TenantPolicy("few", max_requests=limit)}, 0.0)
        one.sees(set(), 0.0)
        assert one.places.home_of("few") == name
        granted += words(one.ask(one, 0.0, *[1] * limit)).count(Word.GRANTED)
    assert granted == limit


def test_more_than_half_of_the_replicas_let_in_one_however_small_the_limit_is() -> None:
    first, second, third = order_of("few", NAMES)
    one = Sidecar(second)
    one.tenants.configure({"few": TenantPolicy("few", max_requests=1)}, 0.0)
    one.sees({third}, 0.0)
    assert part_of(1, order_of("few", NAMES), first) == 1
    assert words(one.ask(one, SETTLE_S, 1, 1)) == [Word.GRANTED, Word.REFUSED]


# ---- another home


def test_a_new_home_waits_until_the_others_have_told_what_they_hold() -> None:
    found = fleet()
    first, second, third = (found[name] for name in order_of("few", NAMES))
    third.ask(first, 0.0, 3)
    second.sees({third.name}, 1.0, down=frozenset({first.name}))
    assert second.places.home_of("few") == second.name
    assert words(second.ask(second, 1.0, 4)) == [Word.LATER]
    third.sees({second.name}, 1.0, down=frozenset({first.name}))
    third.ask(second, 1.0)
    assert words(second.ask(second, 1.0, 2)) == [Word.REFUSED]
    assert words(second.ask(second, 1.0, 1)) == [Word.GRANTED]


def test_a_new_home_waits_no_longer_than_it_has_to() -> None:
    found = fleet()
    first, second, third = (found[name] for name in order_of("few", NAMES))
    second.sees({third.name}, 1.0, down=frozenset({first.name}))
    assert words(second.ask(second, 1.0 + SETTLE_S, 4)) == [Word.GRANTED]


def test_who_is_not_home_as_it_sees_it_says_so() -> None:
    found = fleet()
    first, second, third = (found[name] for name in order_of("few", NAMES))
    third.sees({second.name}, 1.0)
    assert words(third.ask(second, 1.0, 1)) == [Word.LATER]
    assert third.places.take_part("few", 1, 1.0).word is Word.GRANTED
    assert third.places.take_part("few", LIMIT, 1.0).word is Word.REFUSED
    assert first.places.home_of("few") == first.name


def test_a_gateway_has_no_part_and_asks() -> None:
    found = fleet()
    home = found[order_of("few", NAMES)[0]]
    gateway = Sidecar("gateway")
    gateway.sees(set(NAMES), 0.0)
    for each in found.values():
        each.sees(set(NAMES), 0.0, gateways=frozenset({"gateway"}))
    assert words(home.ask(home, 0.0, 1)) == [Word.LATER]
    assert words(gateway.ask(home, 0.0, 4)) == [Word.GRANTED]
    assert gateway.places.take_part("few", 1, 0.0).word is Word.LATER


def test_a_home_that_has_forgotten_a_sidecar_is_told_anew() -> None:
    found = fleet()
    home, other, third = (found[name] for name in order_of("few", NAMES))
    other.ask(home, 0.0, 3)
    home.sees({third.name}, 1.0)
    home.sees(set(NAMES), 1.1)
    other.places.remind()
    assert other.places.due() == [home.name]
    assert other.ask(home, 1.2) == []  # the home knows no such session
    other.ask(home, 1.2)
    assert home.tenants.standing("few", 1.2).requests_left == 1  # type: ignore[union-attr]


# ---- tokens


def test_tokens_spent_at_one_replica_count_at_all() -> None:
    found = fleet()
    home, other, third = (found[name] for name in order_of("budget", NAMES))
    other.tenants.spend("budget", 6500, 0.0)
    assert other.places.due() == [home.name]
    other.ask(home, 0.0)
    assert words(third.ask(home, 0.0, 1, tenant="budget")) == [Word.REFUSED]
    assert third.tenants.standing("budget", 0.0).tokens_left == 0  # type: ignore[union-attr]
    assert words(third.ask(home, 6.0, 1, tenant="budget")) == [Word.GRANTED]


def test_spending_that_is_told_twice_is_spent_once() -> None:
    found = fleet()
    home, other, _ = (found[name] for name in order_of("budget", NAMES))
    other.tenants.spend("budget", 1000, 0.0)
    other.places.due()
    for _ in range(3):
        message = other.places.compose(home.name, [], 0.0)
        home.places.on_message(other.name, message, 0.0)
        other.places.failed(home.name)
    other.tenants.spend("budget", 500, 0.0)
    other.places.due()
    other.ask(home, 0.0)
    assert home.tenants.budget("budget").level(0.0) == 4500  # type: ignore[union-attr]
    assert other.tenants.budget("budget").level(0.0) == 4500  # type: ignore[union-attr]


@pytest.mark.parametrize("said", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_change_no_budget(said: float) -> None:
    found = fleet()
    home, other, _ = (found[name] for name in order_of("budget", NAMES))
    holding = Holding("budget", 1, said, said)
    message = Message(10**9, 1, home.places.view, True, (holding,))
    assert home.places.on_message(other.name, message, 0.0).is_known
    left = Left("budget", None, said)
    asked = other.places.compose(home.name, [], 0.0)
    assert other.places.on_answer(home.name, asked, Answer(True, (), (left,)), 0.0)
    levels = [each.tenants.budget("budget").level(0.0) for each in (home, other)]  # type: ignore[union-attr]
    assert levels == [6000, 6000]


def test_a_new_home_learns_what_is_left() -> None:
    found = fleet()
    first, second, third = (found[name] for name in order_of("budget", NAMES))
    third.tenants.spend("budget", 5000, 0.0)
    third.places.due()
    third.ask(first, 0.0)
    for each, other in ((second, third), (third, second)):
        each.sees({other.name}, 0.0, down=frozenset({first.name}))
    third.ask(second, 0.0)
    assert second.tenants.budget("budget").level(0.0) == 1000  # type: ignore[union-attr]


def test_alone_a_replica_has_its_part_of_a_budget() -> None:
    one = fleet()["a"]
    one.sees(set(), 0.0)
    budget = one.tenants.budget("budget")
    assert budget is not None
    assert budget.level(0.0) == pytest.approx(2000)
    budget.spend(2000, 0.0)
    assert budget.level(60.0) == pytest.approx(2000)


# ---- whatever happens to the messages


@dataclass
class Network:
    """Messages on their way, which come late, in any order, twice, or never."""

    rng: random.Random
    sidecars: dict[str, Sidecar]
    loss: float = 0.2
    asking: dict[tuple[str, str], Message] = field(default_factory=dict)
    """The message of each pair whose answer is waited for."""
    way: list[tuple[str, str, Message]] = field(default_factory=list)
    back: list[tuple[str, str, Message, Answer]] = field(default_factory=list)
    held: list[tuple[str, str, int]] = field(default_factory=list)

    def running(self, tenant: str = "few") -> int:
        return sum(one.tenants.in_flight(tenant) for one in self.sidecars.values())

    def run(self, acts: int, now: float) -> None:
        """Do so many things; the tenant never has more than it may."""
        for _ in range(acts):
            self.act(now)
            assert self.running() <= LIMIT

    def remove(self, name: str) -> None:
        """End a sidecar, with all that was on its way to and from it."""
        del self.sidecars[name]
        self.held = [one for one in self.held if one[0] != name]
        self.way = [one for one in self.way if name not in one[:2]]
        self.back = [one for one in self.back if name not in one[:2]]
        for pair in [one for one in self.asking if name in one]:
            del self.asking[pair]

    def act(self, now: float) -> None:
        """Do one thing."""
        act = self.rng.choice(
            (self.ask, self.tell, self.arrive, self.return_, self.end, self.give_up)
        )
        act(now)

    def ask(self, now: float, sequences: int = 0) -> None:
        name = self.rng.choice(sorted(self.sidecars))
        one = self.sidecars[name]
        sequences = sequences or self.rng.choice((1, 1, 2, 4))
        home = one.places.home_of("few")
        if not home:  # it knows of no other one yet
            return
        if home == name:
            if one.places.take("few", sequences, now).word is Word.GRANTED:
                self.held.append((name, "few", sequences))
        elif (name, home) not in self.asking:
            self.send(name, home, [Wanted("few", sequences)], now)

    def tell(self, now: float) -> None:
        name = self.rng.choice(sorted(self.sidecars))
        for home in self.sidecars[name].places.due():
            if (name, home) not in self.asking:
                self.send(name, home, [], now)

    def send(self, name: str, home: str, wanted: list[Wanted], now: float) -> None:
        self.sidecars[name].places.due()
        message = self.sidecars[name].places.compose(home, wanted, now)
        self.asking[name, home] = message
        is_lost = home not in self.sidecars or self.rng.random() < self.loss
        copies = 0 if is_lost else self.rng.choice((1, 1, 2))
        self.way += [(name, home, message)] * copies

    def arrive(self, now: float) -> None:
        if not self.way:
            return
        name, home, message = self.way.pop(self.rng.randrange(len(self.way)))
        answer = self.sidecars[home].places.on_message(name, message, now)
        if self.rng.random() > self.loss:
            self.back.append((name, home, message, answer))

    def return_(self, now: float) -> None:
        if not self.back:
            return
        name, home, message, answer = self.back.pop(self.rng.randrange(len(self.back)))
        if self.asking.get((name, home)) is not message:
            return  # it was given up
        del self.asking[name, home]
        places = self.sidecars[name].places
        if not places.on_answer(home, message, answer, now):
            return
        for wanted, verdict in zip(message.wanted, answer.verdicts, strict=True):
            if verdict.word is not Word.GRANTED:
                continue
            if self.rng.random() < 0.2:
                places.drop(wanted.tenant)
            else:
                places.hold(wanted.tenant, wanted.sequences)
                self.held.append((name, wanted.tenant, wanted.sequences))

    def end(self, now: float) -> None:  # noqa: ARG002
        if self.held:
            name, tenant, sequences = self.held.pop(self.rng.randrange(len(self.held)))
            self.sidecars[name].places.give_back(tenant, sequences)

    def give_up(self, now: float) -> None:  # noqa: ARG002
        if self.asking:
            name, home = self.rng.choice(sorted(self.asking))
            del self.asking[name, home]
            self.sidecars[name].places.failed(home)

    def calm(self, now: float) -> None:
        """End all requests, and have everything told."""
        while self.held:
            self.end(now)
        while self.asking:
            self.give_up(now)
        self.loss = 0.0
        while self.way:
            self.arrive(now)
        self.back.clear()
        for _ in range(3):
            greet(self.sidecars, now)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400))
def test_no_order_loss_or_repetition_lets_a_tenant_have_more(seed: int, acts: int) -> None:
    network = Network(random.Random(seed), fleet())
    network.run(acts, 0.0)
    network.calm(0.0)
    home = network.sidecars[order_of("few", NAMES)[0]]
    assert words(home.ask(home, 0.0, LIMIT)) == [Word.GRANTED]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_a_home_that_ends_lets_nobody_have_more(seed: int) -> None:
    """Each sidecar notices at another time; clients go on asking meanwhile."""
    network = Network(random.Random(seed), fleet(MORE_NAMES), loss=0.1)
    network.run(60, 0.0)
    gone, *rest = order_of("few", MORE_NAMES)
    network.remove(gone)
    for at, name in enumerate(network.rng.sample(rest, 3)):
        now = 0.1 * at
        network.sidecars[name].sees(set(rest), now, named=MORE_NAMES, down=frozenset({gone}))
        network.run(30, now)
    network.run(60, 0.3)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_a_replica_that_comes_and_is_home_lets_nobody_have_more(seed: int) -> None:
    new, *old = order_of("few", MORE_NAMES)
    network = Network(random.Random(seed), fleet(tuple(sorted(old))), loss=0.1)
    network.run(60, 0.0)
    network.sidecars[new] = Sidecar(new)
    for at, name in enumerate(network.rng.sample(MORE_NAMES, 4)):
        network.sidecars[name].sees(set(MORE_NAMES), 0.1 * at, named=MORE_NAMES)
        network.run(30, 0.1 * at)
    network.run(60, 0.4)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2]))
def test_a_cut_costs_no_more_than_what_was_held_when_it_came(seed: int, others: int) -> None:
    """Each side lets in no more than its part, however much still runs from before."""
    network = Network(random.Random(seed), fleet(), loss=0.1)
    for _ in range(60):
        network.act(0.0)
    names = network.rng.sample(NAMES, 3)
    sides = [set(names[:others]), set(names[others:])]
    network.asking.clear()
    network.way.clear()
    network.back.clear()
    parts = [_part_of_side(side) for side in sides]
    for side in sides:
        for name in side:
            network.sidecars[name].sees(side, 1.0)
    before = [_running_at(network, side) for side in sides]
    for _ in range(200):
        network.act(1.0)
        for side, part, then in zip(sides, parts, before, strict=True):
            assert _running_at(network, side) <= max(part, then)


def _part_of_side(side: set[str]) -> int:
    return sum(part_of(LIMIT, order_of("few", NAMES), name) for name in side)


def _running_at(network: Network, side: set[str]) -> int:
    return sum(network.sidecars[name].tenants.in_flight("few") for name in side)
