"""A fleet: replicas of any speeds, and what sends each request to one of them.

`weir` is the product's own way: every replica has a scheduler and a `weir_core.route` router, a
request arrives at any of them (its ingress), and they know each other by heartbeats alone: each
has the load vector, and says which of the listener's requests are counted in it. Heartbeats may be
old when they are sent, get lost and overtake each other; requests and answers do not get lost. With
each that it hears, a replica gives up waiting requests that would begin sooner there.

Everything else is for comparison and stands before the same schedulers and engines: `central`
knows all replicas exactly, compares all of them by the same score and is never late; the others
are the routers of `weir_sim.run`, each one instance for the whole fleet, so that their counts are
exact too. A central router is charged no hop.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, assert_never

import msgspec

from weir_core.route.load import ask_of, load_of
from weir_core.route.rebalance import moves_to
from weir_core.route.router import HOP_LIMIT, Router
from weir_core.route.score import View, is_better, judge
from weir_core.route.types import Ask, Candidate, Forward, Keep, LoadVector, Nowhere
from weir_core.sched.scheduler import Scheduler
from weir_core.sched.tickets import State
from weir_core.sched.types import Action, ClassPolicy, Request
from weir_sim.baselines import Front, ReplicaView
from weir_sim.events import EventLoop
from weir_sim.profiles import EngineProfile, slowed
from weir_sim.replica import Replica, Trip, as_request
from weir_sim.run import (
    ROUTERS,
    SYSTEMS,
    SimConfig,
    check_fits,
    engine_mode,
    engine_profile,
    make_front,
)
from weir_sim.weir_engine_model import make_engine_model
from weir_sim.workload import SimRequest

ROUTINGS: Sequence[str] = ("weir", "weir-early", "central", *ROUTERS)
"""What may send requests to replicas; `weir-early` is `weir`, but what waits is never moved."""


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
    """

    heartbeat_s: float = 1.0
    age_s: float = 0.0
    loss: float = 0.0
    jitter_s: float = 0.0
    hop_s: float = 0.0005


def usual_heartbeat_s(replicas: int) -> float:
    """Return the time between two heartbeats of sidecars in a fleet of this size."""
    return min(1.0, max(0.2, replicas / 256))


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A time in which one replica is slower than its profile says.

    Attributes:
        factor: Of its speed, meanwhile.
    """

    replica: int
    from_s: float
    until_s: float
    factor: float


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """One run of a fleet.

    Attributes:
        profile: Of the fastest engines.
        speeds: Of each replica, relative to the profile.
        routing: One of `ROUTINGS`.
        ingress: Where requests arrive: at a replica drawn for each, or all at the first.
        drain_s: Simulated time after the last arrival in which answers may still finish.
        scrape_s: Age of what routers scrape that do.
    """

    profile: EngineProfile
    speeds: Sequence[float]
    routing: str = "weir"
    ingress: Literal["random", "one"] = "random"
    messages: Messages = field(default_factory=Messages)
    drain_s: float = 1800.0
    scrape_s: float = 0.05
    slowdowns: Sequence[Slowdown] = ()
    seed: int = 0


@dataclass(slots=True, eq=False)
class FleetTrip(Trip):
    """One request's way through a fleet.

    Attributes:
        ingress: The replica that its client reached.
        hops: How often it was forwarded.
        tried: Replicas that returned it.
        hint: The replica that the last of them named.
        moves: How often it was given up while it waited.
        number: Of all that its ingress has forwarded to where it is.
        arrived_s: When it reached the replica that it was forwarded to.
    """

    ingress: int = 0
    hops: int = 0
    arrived_s: float = -1.0
    tried: tuple[str, ...] = ()
    hint: str = ""
    moves: int = 0
    number: int = 0


@dataclass(slots=True)
class FleetResult:
    """What came out.

    Attributes:
        sim: The run as `report` takes it, each replica's engine included.
        trips: Every request's way.
    """

    config: FleetConfig
    sim: SimConfig
    trips: list[FleetTrip]
    replicas: list[Replica]
    schedulers: list[Scheduler]
    ended_s: float


def simulate_fleet(config: FleetConfig, workload: Sequence[SimRequest]) -> FleetResult:
    """Run `workload` through a fleet and return every request's way.

    Raises:
        RequestTooLong: A request is longer than an engine's whole KV cache.
        KeyError: There is no such routing.
    """
    check_fits(config.profile, workload)
    return _Fleet(config, workload).run()


class Routing(Protocol):
    """Takes each request to a replica."""

    def arrived(self, trip: FleetTrip) -> None:
        """Route a request that has just arrived."""
        ...

    def ended(self, trip: FleetTrip) -> bool:
        """Hear the outcome a replica gave; return whether it is the request's outcome."""
        ...


class _Fleet:
    """The replicas, the loop, and the requests on their way."""

    def __init__(self, config: FleetConfig, workload: Sequence[SimRequest]) -> None:
        self.config = config
        self.loop = EventLoop()
        self.rng = random.Random(f"fleet-{config.seed}")
        self.trips = [FleetTrip(request) for request in workload]
        self.sim = SimConfig(
            config.profile,
            replace(SYSTEMS["weir"], name=config.routing),
            len(config.speeds),
            drain_s=config.drain_s,
            seed=config.seed,
        )
        self.policies = {policy.name: policy for policy in self.sim.classes}
        self.schedulers: list[Scheduler] = []
        self.replicas: list[Replica] = []
        # Replicas whose load may have changed since `central` looked.
        self.changed: set[int] = set()
        self._left = len(self.trips)
        for index, speed in enumerate(config.speeds):
            self._add(index, replace(self.sim, profile=slowed(config.profile, speed)))
        for slowdown in config.slowdowns:
            speed = config.speeds[slowdown.replica]
            self.loop.at(slowdown.from_s, self._set_speed, slowdown, speed * slowdown.factor)
            self.loop.at(slowdown.until_s, self._set_speed, slowdown, speed)
        self._routing = self._make_routing()

    def run(self) -> FleetResult:
        """Serve all requests."""
        last_s = 0.0
        if self.trips:
            self.loop.at(self.trips[0].request.arrival_s, self._arrive, 0)
            last_s = self.trips[-1].request.arrival_s
        self.loop.run(lambda: not self._left, last_s + self.config.drain_s)
        return FleetResult(
            self.config, self.sim, self.trips, self.replicas, self.schedulers, self.loop.now
        )

    def policy_of(self, request: Request) -> ClassPolicy:
        """Return the class of a request."""
        return self.policies[request.class_name]

    def send(self, trip: FleetTrip, index: int, request: Request) -> None:
        """Hand a request to the scheduler of a replica now."""
        trip.replica = index
        self.replicas[index].take(trip, request)

    def _add(self, index: int, sim: SimConfig) -> None:
        scheduler = make_front(sim)
        assert isinstance(scheduler, Scheduler), "a fleet's replicas have Weir's scheduler"

        def note(_front: Front, _now: float, _actions: list[Action]) -> None:
            self.changed.add(index)

        engine = make_engine_model(engine_profile(sim), sim.system.engine, engine_mode(sim))
        made = Replica(scheduler, engine, self.loop, self.policies, sim.link_s, note)
        made.on_outcome = self._outcome
        self.schedulers.append(scheduler)
        self.replicas.append(made)

    def _set_speed(self, slowdown: Slowdown, speed: float) -> None:
        engine = self.replicas[slowdown.replica].engine
        fast = engine_profile(self.sim)
        engine.profile = slowed(fast, speed)

    def _make_routing(self) -> Routing:
        if self.config.routing in ("weir", "weir-early"):
            return _Peers(self)
        if self.config.routing == "central":
            return _PerfectKnowledge(self)
        return _OneRouter(self)

    def _arrive(self, index: int) -> None:
        if index + 1 < len(self.trips):
            self.loop.at(self.trips[index + 1].request.arrival_s, self._arrive, index + 1)
        trip = self.trips[index]
        trip.submitted_s = self.loop.now
        if self.config.ingress == "random":
            trip.ingress = self.rng.randrange(len(self.replicas))
        self._routing.arrived(trip)

    def _outcome(self, trip: Trip) -> None:
        assert isinstance(trip, FleetTrip)
        if self._routing.ended(trip):
            self._left -= 1


class _Link:
    """What one replica has forwarded to another, as the two count it."""

    __slots__ = ("sent", "taken", "unacknowledged")

    def __init__(self) -> None:
        self.sent = 0
        self.taken = 0
        # In order of their numbers: number, request id.
        self.unacknowledged: deque[tuple[int, str]] = deque()


class _Peers:
    """Weir's way: a router in each replica, and heartbeats between them."""

    def __init__(self, fleet: _Fleet) -> None:
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
        self._moves = fleet.config.routing == "weir"
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
        found = router.candidates(ask, {}, now, self._draws)
        route = router.choose(ask, found, load_of(scheduler, now), {}, now)
        match route:
            case Keep():
                self._fleet.send(trip, ingress, request)
            case Forward():
                self._forward(trip, ask, route.replica)
            case Nowhere():
                raise AssertionError("a replica always knows itself")
            case _:
                assert_never(route)

    def _ask(self, replica: int, trip: FleetTrip, request: Request) -> Ask:
        estimator = self._fleet.schedulers[replica].estimator
        ask = ask_of(request, self._fleet.policy_of(request), estimator, self._loop.now)
        return msgspec.structs.replace(
            ask, session_replica=trip.hint, hops=trip.hops, tried=trip.tried
        )

    def _forward(self, trip: FleetTrip, ask: Ask, replica: str) -> None:
        ingress, target = trip.ingress, self._index[replica]
        self.routers[ingress].on_sent(replica, ask, 0)
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
        now, loss = self._loop.now, self._messages.loss
        load = load_of(self._fleet.schedulers[index], now)
        taken = {sender: link.taken for sender, link in self._links[index].items()}
        everyone = range(len(self._names))
        reached = [to for to in everyone if to != index and self._rng.random() >= loss]
        delay_s = self._messages.age_s + self._messages.hop_s
        delay_s += self._messages.jitter_s * self._rng.random()
        self._loop.at(now + delay_s, self._hear, index, load, taken, reached)
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
            self._forward(trip, self._ask(at, trip, as_request(trip)), replica)
        else:
            self._loop.at(self._loop.now + self._messages.hop_s, self._returned, trip, replica)


class _PerfectKnowledge:
    """Compares all replicas by Weir's score and their exact loads. No such router can be built."""

    def __init__(self, fleet: _Fleet) -> None:
        self._fleet = fleet
        self._loads = [load_of(scheduler, 0.0) for scheduler in fleet.schedulers]

    def arrived(self, trip: FleetTrip) -> None:
        """Send it to the best of all."""
        fleet, now = self._fleet, self._fleet.loop.now
        for index in fleet.changed:
            self._loads[index] = load_of(fleet.schedulers[index], now)
        fleet.changed.clear()
        request = as_request(trip)
        ask = ask_of(request, fleet.policy_of(request), fleet.schedulers[0].estimator, now)
        best: Candidate | None = None
        chosen = 0
        for index, load in enumerate(self._loads):
            found = judge(ask, "", View(load, ask.class_name), 0, 0)
            if best is None or is_better(found, best):
                best, chosen = found, index
        fleet.send(trip, chosen, request)

    def ended(self, trip: FleetTrip) -> bool:  # noqa: ARG002
        """Nothing is tried twice."""
        return True


class _OneRouter:
    """One of the routers that others ship, for the whole fleet."""

    def __init__(self, fleet: _Fleet) -> None:
        self._fleet = fleet
        self._router = ROUTERS[fleet.config.routing](random.Random(f"router-{fleet.config.seed}"))
        self._views = [ReplicaView() for _ in fleet.replicas]
        if fleet.config.routing == "weighted-scores":
            self._scrape()

    def arrived(self, trip: FleetTrip) -> None:
        """Send it where the router says."""
        index = self._router.choose(trip.request, self._views)
        self._views[index].outstanding += 1
        self._fleet.send(trip, index, as_request(trip))

    def ended(self, trip: FleetTrip) -> bool:
        """Count it off."""
        self._views[trip.replica].outstanding -= 1
        return True

    def _scrape(self) -> None:
        for view, replica in zip(self._views, self._fleet.replicas, strict=True):
            view.scraped_queue = replica.engine.waiting + replica.front.backlog()
            view.scraped_kv_ratio = replica.engine.kv.usage_ratio()
        loop = self._fleet.loop
        loop.at(loop.now + self._fleet.config.scrape_s, self._scrape)
