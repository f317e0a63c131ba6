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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import msgspec

from weir_core.route.load import ask_of, load_of
from weir_core.route.prefix import Chain
from weir_core.route.score import View, is_better, judge
from weir_core.route.types import Candidate
from weir_core.sched.scheduler import Scheduler
from weir_core.sched.types import Action, ClassPolicy, Request
from weir_sim.baselines import Front, ReplicaView, Router, WeightedScores
from weir_sim.engine_model import Job
from weir_sim.events import EventLoop
from weir_sim.fleet_peers import Messages, Peers
from weir_sim.fleet_prefixes import SidecarPrefixes, chain_of
from weir_sim.kv import SHARED_TOKENS
from weir_sim.prefix_routers import PREFIX_ROUTERS
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

ROUTINGS: Sequence[str] = ("weir", "weir-early", "central", *ROUTERS, *PREFIX_ROUTERS)
"""What may send requests to replicas; `weir-early` is `weir`, but what waits is never moved."""


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
        chain: Of its prompt, where that can have something cached.
        cached_tokens: Prompt tokens that its engine had cached.
    """

    ingress: int = 0
    hops: int = 0
    arrived_s: float = -1.0
    tried: tuple[str, ...] = ()
    hint: str = ""
    moves: int = 0
    number: int = 0
    chain: Chain | None = None
    cached_tokens: int = 0


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
    return Fleet(config, workload).run()


class Routing(Protocol):
    """Takes each request to a replica."""

    def arrived(self, trip: FleetTrip) -> None:
        """Route a request that has just arrived."""
        ...

    def begun(self, trip: FleetTrip) -> None:
        """Hear of a request's first token."""
        ...

    def ended(self, trip: FleetTrip) -> bool:
        """Hear the outcome a replica gave; return whether it is the request's outcome."""
        ...


class Fleet:
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
        self.prefixes = [
            SidecarPrefixes(f"r{index}", config.profile) for index in range(len(config.speeds))
        ]
        for serial, trip in enumerate(self.trips):
            if trip.request.hash_ids:
                trip.chain = chain_of(trip.request, serial)
        self._left = len(self.trips)
        self._arrivals = 0
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
        if trip.chain is not None:
            cached = self.prefixes[index].own_cached(trip.chain, trip.request.prompt_tokens)
            request = msgspec.structs.replace(request, cached_tokens=cached)
        self.replicas[index].take(trip, request)

    def cached_tokens(self, trip: FleetTrip, index: int) -> int:
        """Return how much of a prompt an engine has cached now."""
        request = trip.request
        return self.replicas[index].engine.kv.cached_tokens(request.hash_ids, request.prompt_tokens)

    def _add(self, index: int, sim: SimConfig) -> None:
        scheduler = make_front(sim)
        assert isinstance(scheduler, Scheduler), "a fleet's replicas have Weir's scheduler"

        def note(_front: Front, _now: float, _actions: list[Action]) -> None:
            self.changed.add(index)

        engine = make_engine_model(engine_profile(sim), sim.system.engine, engine_mode(sim))
        made = Replica(scheduler, engine, self.loop, self.policies, sim.link_s, note)
        made.on_outcome = self._outcome
        made.on_begun = self._begun
        self.schedulers.append(scheduler)
        self.replicas.append(made)

    def _set_speed(self, slowdown: Slowdown, speed: float) -> None:
        engine = self.replicas[slowdown.replica].engine
        fast = engine_profile(self.sim)
        engine.profile = slowed(fast, speed)

    def _make_routing(self) -> Routing:
        if self.config.routing in ("weir", "weir-early"):
            return Peers(self)
        if self.config.routing == "central":
            return _PerfectKnowledge(self)
        return _OneRouter(self)

    def is_quiet(self) -> bool:
        """Return whether all requests have arrived and none waits in a request pool."""
        if self._arrivals < len(self.trips):
            return False
        return not any(scheduler.pool.requests for scheduler in self.schedulers)

    def _arrive(self, index: int) -> None:
        self._arrivals += 1
        if index + 1 < len(self.trips):
            self.loop.at(self.trips[index + 1].request.arrival_s, self._arrive, index + 1)
        trip = self.trips[index]
        trip.submitted_s = self.loop.now
        if self.config.ingress == "random":
            trip.ingress = self.rng.randrange(len(self.replicas))
        self._routing.arrived(trip)

    def _begun(self, trip: Trip, job: Job) -> None:
        assert isinstance(trip, FleetTrip)
        self._routing.begun(trip)
        if trip.chain is not None:
            trip.cached_tokens = job.cached
            prefixes, request = self.prefixes[trip.replica], trip.request
            prefixes.started(trip.chain, request.prompt_tokens, job.cached)

    def _outcome(self, trip: Trip) -> None:
        assert isinstance(trip, FleetTrip)
        if trip.chain is not None and trip.finished_s >= 0:
            self.prefixes[trip.replica].ended(trip.chain, trip.request.prompt_tokens)
        if self._routing.ended(trip):
            self._left -= 1


class _PerfectKnowledge:
    """Compares all replicas by Weir's score and their exact loads. No such router can be built."""

    def __init__(self, fleet: Fleet) -> None:
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
        cached = [self._cached(trip, index) for index in range(len(self._loads))]
        longest = max(cached)
        best: Candidate | None = None
        chosen = 0
        for index, load in enumerate(self._loads):
            here = cached[index]
            found = judge(ask, "", View(load, ask.class_name), here, longest - here)
            if best is None or is_better(found, best):
                best, chosen = found, index
        fleet.send(trip, chosen, request)

    def _cached(self, trip: FleetTrip, index: int) -> int:
        if trip.chain is None:
            return 0
        return self._fleet.cached_tokens(trip, index)

    def begun(self, trip: FleetTrip) -> None:
        """Nothing follows from it."""

    def ended(self, trip: FleetTrip) -> bool:  # noqa: ARG002
        """Nothing is tried twice."""
        return True


class _OneRouter:
    """One of the routers that others ship, for the whole fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._router = _make_router(fleet.config)
        # Request id -> prompt tokens that its replica has to compute.
        self._prompts: dict[str, int] = {}
        self._views = [ReplicaView() for _ in fleet.replicas]
        if fleet.config.routing == "weighted-scores":
            self._scrape()

    def arrived(self, trip: FleetTrip) -> None:
        """Send it where the router says."""
        index = self._router.choose(trip.request, self._views)
        view = self._views[index]
        view.outstanding += 1
        missed = trip.request.prompt_tokens - self._fleet.cached_tokens(trip, index)
        self._prompts[trip.request.request_id] = missed
        view.prompt_tokens += missed
        self._fleet.send(trip, index, as_request(trip))

    def begun(self, trip: FleetTrip) -> None:
        """Count its prompt off."""
        missed = self._prompts.pop(trip.request.request_id, 0)
        self._views[trip.replica].prompt_tokens -= missed

    def ended(self, trip: FleetTrip) -> bool:
        """Count it off."""
        self.begun(trip)
        self._views[trip.replica].outstanding -= 1
        return True

    def _scrape(self) -> None:
        for view, replica in zip(self._views, self._fleet.replicas, strict=True):
            view.scraped_queue = replica.engine.waiting + replica.front.backlog()
            view.scraped_kv_ratio = replica.engine.kv.usage_ratio()
        loop = self._fleet.loop
        loop.at(loop.now + self._fleet.config.scrape_s, self._scrape)


def _make_router(config: FleetConfig) -> Router:
    rng = random.Random(f"router-{config.seed}")
    name, blocks = config.routing, config.profile.kv_tokens // SHARED_TOKENS
    if name in PREFIX_ROUTERS:
        return PREFIX_ROUTERS[name](rng, blocks)
    if name == "weighted-scores":
        return WeightedScores(rng, blocks)
    return ROUTERS[name](rng)
