"""Weir's way to route in a fleet: a router in each replica, and messages between them."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import msgspec

from weir_core.route.load import ask_of, load_of
from weir_core.route.rebalance import moves_to
from weir_core.route.router import HOP_LIMIT, Router
from weir_core.route.types import Ask, DigestUpdate, Forward, Keep, LoadVector, Nowhere
from weir_core.sched.served import ServedThere
from weir_core.sched.tickets import State
from weir_core.sched.types import Request, ServedLately
from weir_sim.replica import as_request

if TYPE_CHECKING:
    from weir_sim.fleet import Fleet, FleetTrip


@dataclass(frozen=True, slots=True)
class Messages:
    """How load vectors travel between replicas.

    A replica sends one vector to all in the same instant, while sidecars spread their exchanges
    over the period: more replicas act on the same knowledge here.

    Attributes:
        heartbeat_s: Time between two vectors that a replica sends to all.
        age_s: How old a vector is when it is sent; the receiver is told.
        loss: Part of the vectors that get lost.
        jitter_s: Most that a vector takes beyond a hop; what takes longer is overtaken. The
            receiver is not told.
        hop_s: One way between two replicas, for requests and answers too.
        shares: They say what tenants were served, as sidecars do.
    """

    heartbeat_s: float = 1.0
    age_s: float = 0.0
    loss: float = 0.0
    jitter_s: float = 0.0
    hop_s: float = 0.0005
    shares: bool = True


def usual_heartbeat_s(replicas: int) -> float:
    """Return the time between two heartbeats of sidecars in a fleet of this size."""
    return min(1.0, max(0.2, replicas / 256))


class _Link:
    """What one replica has forwarded to another, as the two count it."""

    __slots__ = ("sent", "taken", "unacknowledged")

    def __init__(self) -> None:
        self.sent = 0
        self.taken = 0
        # In order of their numbers: number, request id.
        self.unacknowledged: deque[tuple[int, str]] = deque()


class Peers:
    """Weir's way: a router in each replica, and heartbeats between them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._loop = fleet.loop
        self._messages = fleet.config.messages
        self._rng = random.Random(f"messages-{fleet.config.seed}")
        self._draws = random.Random(f"candidates-{fleet.config.seed}")
        self._names = [f"r{index}" for index in range(len(fleet.replicas))]
        self._index = {name: index for index, name in enumerate(self._names)}
        self.routers = [Router(name, 2 * self._messages.hop_s) for name in self._names]
        # Receiver -> sender -> what it forwarded there.
        self._links: list[dict[int, _Link]] = [{} for _ in self._names]
        # Receiver -> sender -> what it was heard to have served.
        self._served: list[dict[int, ServedThere]] = [{} for _ in self._names]
        self._shares = self._messages.shares and _has_shares(fleet.trips)
        self._moves = fleet.config.routing == "weir"
        self._has_prefixes = any(trip.chain is not None for trip in fleet.trips)
        self._trips = {trip.request.request_id: trip for trip in fleet.trips}
        everyone = range(len(self._names))
        for index in everyone:
            load = load_of(fleet.schedulers[index], 0.0)
            for to in everyone:
                self.routers[to].on_load(self._names[index], load, 0.0, 0.0)
            # The first heartbeats are spread over one interval, as those of pods are.
            self._loop.at(self._rng.random() * self._messages.heartbeat_s, self._beat, index)

    def arrived(self, trip: FleetTrip) -> None:
        """Route at the ingress."""
        self._route(trip)

    def begun(self, trip: FleetTrip) -> None:
        """Nothing follows from it."""

    def ended(self, trip: FleetTrip) -> bool:
        """Pass an outcome on; what was rejected at once may go elsewhere."""
        if trip.replica == trip.ingress:
            return True
        hop_s = self._messages.hop_s
        at_once = trip.rejected is not None and self._loop.now == trip.arrived_s
        if at_once and trip.hops < HOP_LIMIT:
            trip.outcomes, trip.rejected = 0, None
            self._loop.at(self._loop.now + hop_s, self._returned, trip, "")
            return False
        if trip.first_token_s >= 0:
            trip.first_token_s += hop_s
            trip.finished_s += hop_s
        self._loop.at(self._loop.now + hop_s, self._answered, trip)
        return True

    def _route(self, trip: FleetTrip) -> None:
        ingress, now = trip.ingress, self._loop.now
        scheduler, router = self._fleet.schedulers[ingress], self.routers[ingress]
        request = as_request(trip)
        ask = self._ask(ingress, trip, request)
        cached = self._cached(trip, ())
        found = router.candidates(ask, cached, now, self._draws)
        cached = self._cached(trip, found)
        route = router.choose(ask, found, load_of(scheduler, now), cached, now)
        match route:
            case Keep():
                self._fleet.send(trip, ingress, request)
            case Forward():
                self._forward(trip, ask, route.replica, cached.get(route.replica, 0))
            case Nowhere():
                raise AssertionError("a replica always knows itself")
            case _:
                assert_never(route)

    def _cached(self, trip: FleetTrip, names: Sequence[str]) -> dict[str, int]:
        if trip.chain is None:
            return {}
        prefixes, start = self._fleet.prefixes[trip.ingress], trip.chain.whole & 0xFFFF
        peers = [name for name in names if name != self._names[trip.ingress]]
        return prefixes.cached(trip.chain, trip.request.prompt_tokens, peers, start)

    def _ask(self, replica: int, trip: FleetTrip, request: Request) -> Ask:
        estimator = self._fleet.schedulers[replica].estimator
        policy, now = self._fleet.policy_of(request), self._loop.now
        is_lowest = self.routers[replica].is_lowest(policy.rank, now)
        ask = ask_of(request, policy, estimator, now, is_lowest)
        return msgspec.structs.replace(
            ask, session_replica=trip.hint, hops=trip.hops, tried=trip.tried
        )

    def _forward(self, trip: FleetTrip, ask: Ask, replica: str, cached: int) -> None:
        ingress, target = trip.ingress, self._index[replica]
        self.routers[ingress].on_sent(replica, ask, cached)
        trip.hops += 1
        link = self._links[target].setdefault(ingress, _Link())
        link.sent += 1
        link.unacknowledged.append((link.sent, trip.request.request_id))
        trip.number = link.sent
        self._loop.at(self._loop.now + self._messages.hop_s, self._reach, trip, target)

    def _reach(self, trip: FleetTrip, target: int) -> None:
        trip.arrived_s = self._loop.now
        self._links[target][trip.ingress].taken = trip.number
        self._fleet.send(trip, target, as_request(trip))

    def _answered(self, trip: FleetTrip) -> None:
        self.routers[trip.ingress].on_ended(trip.request.request_id)

    def _returned(self, trip: FleetTrip, hint: str) -> None:
        self._answered(trip)
        trip.tried = (*trip.tried, self._names[trip.replica])
        trip.hint = hint
        self._route(trip)

    # ---- heartbeats

    def _beat(self, index: int) -> None:
        if self._fleet.is_quiet():
            return
        now, loss = self._loop.now, self._messages.loss
        load = load_of(self._fleet.schedulers[index], now)
        taken = {sender: link.taken for sender, link in self._links[index].items()}
        everyone = range(len(self._names))
        reached = [to for to in everyone if to != index and self._rng.random() >= loss]
        delay_s = self._messages.age_s + self._messages.hop_s
        delay_s += self._messages.jitter_s * self._rng.random()
        self._loop.at(now + delay_s, self._hear, index, load, taken, reached)
        if self._shares:
            served = self._fleet.schedulers[index].served_lately(now)
            self._loop.at(now + delay_s, self._hear_served, index, served, reached)
        if self._has_prefixes:
            updates = self._fleet.prefixes[index].updates()
            self._loop.at(now + delay_s, self._hear_digest, index, updates, reached)
        self._loop.at(now + self._messages.heartbeat_s, self._beat, index)

    def _hear(
        self, index: int, load: LoadVector, taken: Mapping[int, int], listeners: Sequence[int]
    ) -> None:
        now, name = self._loop.now, self._names[index]
        measured_s = now - self._messages.age_s
        for to in listeners:
            link = self._links[index].get(to)
            if link is not None:
                self._acknowledge(link, self.routers[to], taken.get(to, 0), measured_s)
            self.routers[to].on_load(name, load, self._messages.age_s, now)
            if self._moves and self._fleet.schedulers[to].pool.requests:
                self._rebalance(to, name)

    def _hear_served(self, index: int, served: ServedLately, listeners: Sequence[int]) -> None:
        for to in listeners:
            heard = self._served[to].setdefault(index, ServedThere())
            for each in heard.news(served):
                self._fleet.schedulers[to].on_served_elsewhere(
                    each.class_name, each.tenant, each.tokens
                )

    def _hear_digest(
        self,
        index: int,
        updates: tuple[DigestUpdate, DigestUpdate, frozenset[int]],
        listeners: Sequence[int],
    ) -> None:
        """Listeners that missed an update get all with the next; they surely say so."""
        name, (update, snapshot, behind) = self._names[index], updates
        for to in listeners:
            told = snapshot if to in behind else update
            if self._fleet.prefixes[to].hear(name, told):
                self._fleet.prefixes[index].is_behind(to)

    def _acknowledge(self, link: _Link, router: Router, received: int, measured_s: float) -> None:
        waiting = link.unacknowledged
        while waiting and waiting[0][0] <= received:
            router.on_acknowledged(waiting.popleft()[1], measured_s)

    def _rebalance(self, at: int, peer: str) -> None:
        """Move what waits at one replica and would begin sooner at another."""
        scheduler, now = self._fleet.schedulers[at], self._loop.now

        def ask_for(request: Request) -> Ask:
            return self._ask(at, self._trips[request.request_id], request)

        own = load_of(scheduler, now)
        for move in moves_to(peer, self.routers[at], scheduler, own, ask_for, now):
            trip = self._trips[move.request_id]
            # Giving one up lets the scheduler dispatch others.
            if scheduler.tickets[move.request_id].state is State.WAITING:
                self._give_up(trip, move.replica)

    def _give_up(self, trip: FleetTrip, replica: str) -> None:
        at = trip.replica
        trip.moves += 1
        self._fleet.replicas[at].give_up(trip)
        if at == trip.ingress:
            ask = self._ask(at, trip, as_request(trip))
            self._forward(trip, ask, replica, self._cached(trip, (replica,)).get(replica, 0))
        else:
            self._loop.at(self._loop.now + self._messages.hop_s, self._returned, trip, replica)


def _has_shares(trips: Sequence[FleetTrip]) -> bool:
    """Return whether a class has several tenants; otherwise there is nothing to share."""
    pairs = {(trip.request.class_name, trip.request.tenant) for trip in trips}
    return len(pairs) > len({class_name for class_name, _ in pairs})
