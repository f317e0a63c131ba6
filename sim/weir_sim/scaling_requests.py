"""The same scenes request by request: real schedulers and engine models, real load vectors.

What a replica offers and holds is what its scheduler tells (`weir_core.route.load`), so this shows
whether the fluid model and the meter of offered work are right. A request goes to the replica that
`weir_core.route.score` finds best of all that are ready. One that is to go gets no more requests,
and is gone when it has answered all that it has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weir_core.route.load import ask_of, load_of
from weir_core.route.score import View as LoadView
from weir_core.route.score import is_better, judge
from weir_core.route.types import Candidate, ClassLoad
from weir_core.scale.types import ClassWork, Phase, ReplicaLoad
from weir_core.sched.scheduler import Scheduler
from weir_core.sched.types import Request
from weir_sim.events import EventLoop
from weir_sim.replica import Replica, Trip, as_request
from weir_sim.report import met_targets
from weir_sim.run import SYSTEMS, SimConfig, check_fits, engine_mode, engine_profile, make_front
from weir_sim.scalers import FLAPPING_S, PERIOD_S, POOL, View, make_scaler, reversals
from weir_sim.scaling import (
    Point,
    ScalingReport,
    ScalingScene,
    knob_at_cost,
    simulate_scaling,
)
from weir_sim.scaling_load import Engine
from weir_sim.weir_engine_model import make_engine_model
from weir_sim.workload import LengthModel, SimRequest


def requests_of(
    scene: ScalingScene, seed: int, trace: Sequence[SimRequest] = ()
) -> list[SimRequest]:
    """Return the requests of a scene: Poisson arrivals at the rates of its curve.

    Args:
        scene: What is offered.
        seed: The same seed gives the same requests.
        trace: Requests whose lengths are drawn; without any the usual model's.
    """
    rng = random.Random(f"scaling-requests-{seed}")
    names, shares = zip(*scene.shares.items(), strict=True)
    lengths = LengthModel()
    rates = scene.curve.work / Engine(scene.profile, scene.lengths).request_s
    found: list[SimRequest] = []
    for at in _instants(rates.tolist(), scene.curve.bin_s, rng):
        name = rng.choices(names, shares)[0]
        prompt, output = lengths.draw(rng)
        if trace:
            drawn = rng.choice(trace)
            prompt, output = drawn.prompt_tokens, drawn.output_tokens
        found.append(SimRequest(f"r{len(found)}", at, f"of-{name}", name, prompt, output))
    return found


def _instants(rates: Sequence[float], bin_s: float, rng: random.Random) -> Iterator[float]:
    for index, rate in enumerate(rates):
        at = index * bin_s
        while rate > 0.0:
            at += rng.expovariate(rate)
            if at >= (index + 1) * bin_s:
                break
            yield at


def compare_by_requests(
    scene: ScalingScene,
    names: Sequence[str],
    seeds: Sequence[int],
    trace: Sequence[SimRequest],
    progress: Callable[[str], None],
) -> list[ScalingReport]:
    """Return the runs of scalers, the knobs of others chosen for equal cost with the fluid."""
    cost = simulate_scaling(scene, "weir", seeds[0]).cost_ratio
    found: list[ScalingReport] = []
    for name in names:
        knob = None if name == "weir" else knob_at_cost(scene, name, seeds[0], cost)
        for seed in seeds:
            progress(f"{name}, seed {seed}")
            requests = requests_of(scene, seed, trace)
            check_fits(scene.profile, requests)
            found.append(RequestService(scene, name, requests, seed, knob).run())
    return found


@dataclass(slots=True, eq=False)
class _Member:
    """A replica of the service, from its creation to its end."""

    name: str
    created_s: float
    ready_s: float
    replica: Replica
    scheduler: Scheduler
    held: int = 0
    drains_since_s: float | None = None

    def phase(self, now: float) -> Phase:
        if self.drains_since_s is not None:
            return Phase.DRAINING
        return Phase.READY if now >= self.ready_s else Phase.STARTING


class RequestService:
    """One run of a scene."""

    def __init__(
        self,
        scene: ScalingScene,
        name: str,
        workload: Sequence[SimRequest],
        seed: int,
        knob: float | None = None,
    ) -> None:
        self._scene, self._name, self._seed, self._knob = scene, name, seed, knob
        self._sim = SimConfig(scene.profile, SYSTEMS["weir"])
        self._policies = {policy.name: policy for policy in self._sim.classes}
        self._scaler = make_scaler(name, scene.policy, scene.curve.static_peak, knob)
        self._engine = Engine(scene.profile, scene.lengths)
        self._loop = EventLoop()
        self._rng = random.Random(f"scaling-{seed}")
        self._trips = [Trip(request) for request in workload]
        self._members: list[_Member] = []
        self._at: dict[str, _Member] = {}
        self._ended = self._answered = self._answered_before = self._made = 0
        self._replica_s = 0.0
        self._changes: list[tuple[float, int]] = []
        self._timeline: list[Point] = []
        self._wanted = scene.begins_with(name, knob)
        for _ in range(self._wanted):
            self._add(-1e5)

    def run(self) -> ScalingReport:
        """Serve all requests and return what it took."""
        if self._trips:
            self._loop.at(self._trips[0].request.arrival_s, self._arrive, 0)
        self._loop.at(float(PERIOD_S), self._decide)
        end_s = self._scene.curve.duration_s
        self._loop.run(lambda: self._ended == len(self._trips), end_s + 1800.0)
        attainment: dict[str, float] = {}
        for name in self._scene.shares:
            mine = [trip for trip in self._trips if trip.request.class_name == name]
            met = sum(met_targets(trip, self._policies[name]) for trip in mine)
            attainment[name] = round(met / max(1, len(mine)), 5)
        return ScalingReport(
            scaler=self._name,
            scene=f"{self._scene.curve.name}, requests",
            seed=self._seed,
            cold_start_s=self._scene.cold_start_s,
            knob=self._knob,
            replica_hours=round(self._replica_s / 3600, 1),
            cost_ratio=round(self._replica_s / (self._scene.curve.static_peak * end_s), 4),
            attainment=attainment,
            changes=len(self._changes),
            most_reversals=reversals(self._changes, FLAPPING_S),
            timeline=tuple(self._timeline),
        )

    # ---- requests

    def _arrive(self, index: int) -> None:
        if index + 1 < len(self._trips):
            self._loop.at(self._trips[index + 1].request.arrival_s, self._arrive, index + 1)
        trip, now = self._trips[index], self._loop.now
        trip.submitted_s = now
        request = as_request(trip)
        member = self._best(request, now)
        member.held += 1
        self._at[request.request_id] = member
        member.replica.take(trip, request)

    def _best(self, request: Request, now: float) -> _Member:
        ready = [one for one in self._members if one.phase(now) is Phase.READY]
        policy = self._policies[request.class_name]
        ask = ask_of(request, policy, ready[0].scheduler.estimator, now)
        best: Candidate | None = None
        chosen = ready[0]
        for one in ready:
            found = judge(ask, "", LoadView(load_of(one.scheduler, now), ask.class_name), 0, 0)
            if best is None or is_better(found, best):
                best, chosen = found, one
        return chosen

    def _outcome(self, trip: Trip) -> None:
        self._ended += 1
        self._answered += trip.rejected is None
        member = self._at.pop(trip.request.request_id)
        member.held -= 1
        if member.drains_since_s is not None and not member.held:
            self._leave(member)

    # ---- replicas

    def _add(self, now: float) -> None:
        scheduler = make_front(self._sim)
        assert isinstance(scheduler, Scheduler)
        mode = engine_mode(self._sim)
        engine = make_engine_model(engine_profile(self._sim), self._sim.system.engine, mode)
        replica = Replica(scheduler, engine, self._loop, self._policies, self._sim.link_s)
        replica.on_outcome = self._outcome
        took_s = self._scene.cold_start_s * self._rng.uniform(0.9, 1.1)
        self._made += 1
        self._members.append(
            _Member(f"replica-{self._made}", now, now + took_s, replica, scheduler)
        )

    def _leave(self, member: _Member) -> None:
        self._members.remove(member)
        self._count_cost(member)

    def _count_cost(self, member: _Member) -> None:
        """Count a replica's time; after the end of the curve it costs nothing more."""
        until_s = min(self._loop.now, self._scene.curve.duration_s)
        self._replica_s += until_s - max(0.0, member.created_s)
        member.created_s = until_s

    def _decide(self) -> None:
        now = self._loop.now
        if now >= self._scene.curve.duration_s:
            for member in self._members:
                self._count_cost(member)
            return
        view = self._view(now)
        wanted = self._scaler.wanted(view)
        if wanted != self._wanted:
            self._changes.append((now, wanted - self._wanted))
        for _ in range(wanted - self._wanted):
            self._add(now)
        if wanted < self._wanted:
            self._shrink(set(self._scaler.victims(view)[: self._wanted - wanted]), now)
        self._wanted = wanted
        self._loop.at(now + PERIOD_S, self._decide)

    def _shrink(self, names: set[str], now: float) -> None:
        for member in tuple(self._members):
            if member.name in names:
                member.drains_since_s = now
                if not member.held:
                    self._leave(member)

    # ---- what a scaler sees

    def _view(self, now: float) -> View:
        loads = [self._load(one, now) for one in self._members]
        phases = [one.phase for one in loads]
        ready = phases.count(Phase.READY)
        offered = sum(work.offered for one in loads for work in one.work)
        engines = [one.replica.engine for one in self._members]
        served = (self._answered - self._answered_before) * self._engine.request_s / PERIOD_S
        self._answered_before = self._answered
        if now % 60 == 0:
            self._timeline.append(Point(now, offered, ready, self._wanted))
        return View(
            now,
            self._wanted,
            ready,
            phases.count(Phase.STARTING),
            served,
            sum(one.scheduler.backlog() for one in self._members),
            sum(one.running for one in loads),
            float(np.mean([engine.kv.usage_ratio() for engine in engines])),
            replicas=lambda: loads,
        )

    def _load(self, member: _Member, now: float) -> ReplicaLoad:
        phase = member.phase(now)
        if phase is Phase.STARTING:
            return ReplicaLoad(member.name, POOL, phase, now - member.created_s)
        load = load_of(member.scheduler, now)
        return ReplicaLoad(
            member.name,
            POOL,
            phase,
            now - member.ready_s,
            member.ready_s - member.created_s,
            heard_s=1.0,
            work=tuple(_work(each) for each in load.classes),
            running=load.sequences,
            drain_s=self._engine.drain_s,
        )


def _work(load: ClassLoad) -> ClassWork:
    return ClassWork(load.name, load.offered, load.backlog_s, load.slack_s)
