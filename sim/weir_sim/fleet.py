"""A fleet: replicas of any speeds, and what sends each request to one of them.

`weir` is the product's own way: every replica has a scheduler and a `weir_core.route` router, a
request arrives at any of them (its ingress), and they know each other by messages alone: a load
vector to all with each heartbeat, and one to the ingress with each acknowledgement and answer.
Vectors may be old when they are sent, get lost and overtake each other; requests and answers do
not get lost.

Everything else is for comparison and stands before the same schedulers and engines: `central`
knows all replicas exactly, compares all of them by the same score and is never late; the others
are the routers of `weir_sim.run`, each one instance for the whole fleet, so that their counts are
exact too. A central router is charged no hop.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, assert_never

import msgspec

from weir_core.route.load import ask_of, load_of
from weir_core.route.router import HOP_LIMIT, Router
from weir_core.route.score import View, is_better, judge
from weir_core.route.types import Ask, Candidate, Forward, Keep, LoadVector, Nowhere
from weir_core.sched.scheduler import Scheduler
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

ROUTINGS: Sequence[str] = ("weir", "central", *ROUTERS)
"""What may send requests to replicas."""


@dataclass(frozen=True, slots=True)
class Messages:
    """How load vectors travel between replicas.

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
    seed: int = 0


@dataclass(slots=True, eq=False)
class FleetTrip(Trip):
    """One request's way through a fleet.

    Attributes:
        ingress: The replica that its client reached.
        hops: How often it was forwarded.
        tried: Replicas that returned it.
        arrived_s: When it reached the replica that it was forwarded to.
    """

    ingress: int = 0
    hops: int = 0
    arrived_s: float = -1.0
    tried: tuple[str, ...] = ()


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
        self._routing = self._make_routing()

    def run(self) -> FleetResult:
        """Serve all requests."""
        last_s = 0.0
        if self.trips:
            self.loop.at(self.trips[0].request.arrival_s, self._arrive, 0)
            last_s = self.trips[-1].request.arrival_s
        self.loop.run(lambda: not self._left, last_s + self.config.drain_s)
        return FleetResult(self.config, self.sim, self.trips, self.replicas, self.loop.now)

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

    def _make_routing(self) -> Routing:
        if self.config.routing == "weir":
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


class _Peers:
    """Weir's way: a router in each replica, and messages between them."""

    def __init__(self, fleet: _Fleet) -> None:
        self._fleet = fleet
        self._loop = fleet.loop
        self._messages = fleet.config.messages
        self._rng = random.Random(f"messages-{fleet.config.seed}")
        self._draws = random.Random(f"candidates-{fleet.config.seed}")
        self._names = [f"r{index}" for index in range(len(fleet.replicas))]
        self._index = {name: index for index, name in enumerate(self._names)}
        self.routers = [Router(name, 2 * self._messages.hop_s) for name in self._names]
        # The first heartbeats are spread over one interval, as those of pods are.
        for index in range(len(self._names)):
            self._measure(index, range(len(self._names)), surely=True)
            self._loop.at(self._rng.random() * self._messages.heartbeat_s, self._beat, index)

    def arrived(self, trip: FleetTrip) -> None:
        """Route at the ingress."""
        self._route(trip)

    def ended(self, trip: FleetTrip) -> bool:
        """Tell the ingress, with the load; what was rejected at once may go elsewhere."""
        if trip.replica == trip.ingress:
            return True
        hop_s = self._messages.hop_s
        self._measure(trip.replica, (trip.ingress,))
        at_once = trip.rejected is not None and self._loop.now == trip.arrived_s
        if at_once and trip.hops < HOP_LIMIT:
            trip.outcomes, trip.rejected = 0, None
            self._loop.at(self._loop.now + hop_s, self._returned, trip)
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
        ask = self._ask(trip, request)
        found = router.candidates(ask, {}, now, self._draws)
        route = router.choose(ask, found, load_of(scheduler, now), {}, now)
        match route:
            case Keep():
                self._fleet.send(trip, ingress, request)
            case Forward():
                router.on_sent(route.replica, ask, 0)
                trip.hops = route.hops
                target = self._index[route.replica]
                self._loop.at(now + self._messages.hop_s, self._reach, trip, target, request)
            case Nowhere():
                raise AssertionError("a replica always knows itself")
            case _:
                assert_never(route)

    def _ask(self, trip: FleetTrip, request: Request) -> Ask:
        estimator = self._fleet.schedulers[trip.ingress].estimator
        ask = ask_of(request, self._fleet.policy_of(request), estimator, self._loop.now)
        return msgspec.structs.replace(ask, hops=trip.hops, tried=trip.tried)

    def _reach(self, trip: FleetTrip, target: int, request: Request) -> None:
        trip.arrived_s = self._loop.now
        self._fleet.send(trip, target, request)
        if request.request_id in self._fleet.schedulers[target].tickets:
            self._measure(target, (trip.ingress,))
            self._loop.at(self._loop.now + self._messages.hop_s, self._acknowledged, trip)

    def _acknowledged(self, trip: FleetTrip) -> None:
        self.routers[trip.ingress].on_acknowledged(trip.request.request_id, self._loop.now)

    def _answered(self, trip: FleetTrip) -> None:
        self.routers[trip.ingress].on_ended(trip.request.request_id)

    def _returned(self, trip: FleetTrip) -> None:
        self._answered(trip)
        trip.tried = (*trip.tried, self._names[trip.replica])
        self._route(trip)

    # ---- load vectors

    def _beat(self, index: int) -> None:
        self._measure(index, range(len(self._names)))
        self._loop.at(self._loop.now + self._messages.heartbeat_s, self._beat, index)

    def _measure(self, index: int, listeners: Sequence[int], *, surely: bool = False) -> None:
        """Measure a replica's load, to be sent when it is as old as the configuration says."""
        load = load_of(self._fleet.schedulers[index], self._loop.now)
        loss = 0.0 if surely else self._messages.loss
        reached = [to for to in listeners if not loss or self._rng.random() >= loss]
        delay_s = self._messages.age_s + self._messages.hop_s
        delay_s += self._messages.jitter_s * self._rng.random()
        self._loop.at(self._loop.now + delay_s, self._hear, self._names[index], load, reached)

    def _hear(self, name: str, load: LoadVector, listeners: Sequence[int]) -> None:
        now, age_s = self._loop.now, self._messages.age_s
        for to in listeners:
            self.routers[to].on_load(name, load, age_s, now)


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
