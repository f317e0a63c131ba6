"""What would autoscaling have cost? A curve of work, a scaler, and what became of the work."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from weir_core.scale.types import ClassWork, Phase, ReplicaLoad, ScalingPolicy
from weir_core.sched.types import BUILT_IN_CLASSES
from weir_sim.profiles import PROFILES, EngineProfile
from weir_sim.scalers import FLAPPING_S, OTHERS, PERIOD_S, POOL, View, make_scaler, reversals
from weir_sim.scaling_fluid import Flow, Fluid, flows
from weir_sim.scaling_load import Curve, Engine, Lengths
from weir_sim.workload import LengthModel

_HALF_LIFE_S: Final = 30.0
"""Of the offered rate that a sidecar tells (`weir_core.sched.work`)."""
_TRIES: Final = 8
_CLOSE: Final = 0.02
"""Part by which two costs may differ that are called equal."""


@dataclass(frozen=True, slots=True)
class ScalingScene:
    """What is served, by what.

    Attributes:
        shares: Class -> its part of the work.
        burstiness: Variation of the time between arrivals; 1 is Poisson.
        cold_start_s: From a replica's creation to ready; each takes up to a tenth more or less.
        policy: Of Weir's autoscaler.
    """

    curve: Curve
    profile: EngineProfile = PROFILES["h100-8b"]
    lengths: Lengths = field(default_factory=lambda: Lengths.of_model(LengthModel()))
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"interactive": 0.2, "standard": 0.5, "batch": 0.3}
    )
    burstiness: float = 1.0
    cold_start_s: float = 300.0
    policy: ScalingPolicy = field(default_factory=lambda: ScalingPolicy(1, 1))

    def begins_with(self, name: str, knob: float | None) -> int:
        """Return the replicas that there are at the beginning."""
        if name == "static":
            return round(knob or self.curve.static_peak)
        return int(self.curve.work[0] / self.policy.target_load) + 1


@dataclass(frozen=True, slots=True)
class Point:
    """One instant of a run, for a picture."""

    at_s: float
    offered: float
    ready: int
    wanted: int


@dataclass(frozen=True, slots=True)
class ScalingReport:
    """What a scaler did with a scene.

    Attributes:
        knob: Of one of the others; what it means, `weir_sim.scalers.OTHERS` says.
        replica_hours: All the time that replicas started, served and drained.
        cost_ratio: Over the static peak's.
        attainment: Class -> part of its work that was served on time.
        changes: How often the number changed.
        most_reversals: Changes of direction within ten minutes, at most.
        timeline: Each minute of a short scene, each ten of a long one.
    """

    scaler: str
    scene: str
    seed: int
    cold_start_s: float
    knob: float | None
    replica_hours: float
    cost_ratio: float
    attainment: Mapping[str, float]
    changes: int
    most_reversals: int
    timeline: Sequence[Point] = ()

    @property
    def worst(self) -> float:
        """Return the lowest attainment of a class."""
        return min(self.attainment.values())


class _Offered:
    """The offered rate by class as sidecars tell it: older work counts less."""

    def __init__(self, begins: Sequence[float]) -> None:
        self._fade = 2.0 ** (-PERIOD_S / _HALF_LIFE_S)
        self._memory_s = _HALF_LIFE_S / math.log(2.0)
        self._amounts = [rate * self._memory_s for rate in begins]

    def add(self, flow: Flow) -> None:
        pairs = zip(self._amounts, flow.told, strict=True)
        self._amounts = [amount * self._fade + told for amount, told in pairs]

    def rates(self) -> list[float]:
        return [amount / self._memory_s for amount in self._amounts]


@dataclass(slots=True)
class _Replica:
    name: str
    created_s: float
    ready_s: float
    gone_s: float = float("inf")
    drains_since_s: float = float("inf")


class _Service:
    """The replicas of a run, and what they cost."""

    def __init__(self, scene: ScalingScene, replicas: int, seed: int) -> None:
        self._scene = scene
        self._rng = random.Random(f"scaling-{seed}")
        self.engine = Engine(scene.profile, scene.lengths)
        self.wanted = replicas
        self.replica_s = 0.0
        self.changes: list[tuple[float, int]] = []
        self._made = 0
        # Those of the beginning have been there for long.
        self._replicas = [self._make(-1e5) for _ in range(replicas)]

    def ready(self, now: float) -> int:
        """Return how many serve."""
        return sum(one.ready_s <= now < one.drains_since_s for one in self._replicas)

    def starting(self, now: float) -> int:
        """Return how many do not serve yet."""
        return sum(now < min(one.ready_s, one.drains_since_s) for one in self._replicas)

    def loads(self, now: float, running: int, work: Sequence[ClassWork]) -> list[ReplicaLoad]:
        """Return all replicas; one that is ready tells of all work, which is only summed."""
        found: list[ReplicaLoad] = []
        left = tuple(work)
        for one in self._replicas:
            phase, since_s = _phase(one, now)
            if phase is not Phase.READY:
                found.append(ReplicaLoad(one.name, POOL, phase, since_s))
                continue
            started_in_s, drain_s = one.ready_s - one.created_s, self.engine.drain_s
            found.append(
                ReplicaLoad(
                    one.name, POOL, phase, since_s, started_in_s, 1.0, left, running, drain_s
                )
            )
            left = ()
        return found

    def scale(self, wanted: int, victims: Callable[[], Sequence[str]], now: float) -> None:
        """Follow a scaler's word."""
        if wanted != self.wanted:
            self.changes.append((now, wanted - self.wanted))
        for _ in range(wanted - self.wanted):
            self._replicas.append(self._make(now))
        leaving = set(victims()[: self.wanted - wanted]) if wanted < self.wanted else set()
        for one in self._replicas:
            if one.name in leaving:
                serves = one.ready_s <= now
                one.drains_since_s = now
                one.gone_s = now + (self.engine.drain_s if serves else 0.0)
        self.wanted = wanted

    def pass_time(self, now: float) -> None:
        """Count a period's cost, and forget what has gone."""
        self._replicas = [one for one in self._replicas if one.gone_s > now]
        self.replica_s += float(sum(min(PERIOD_S, one.gone_s - now) for one in self._replicas))

    def _make(self, now: float) -> _Replica:
        self._made += 1
        took_s = self._scene.cold_start_s * self._rng.uniform(0.9, 1.1)
        return _Replica(f"replica-{self._made}", now, now + took_s)


def _phase(one: _Replica, now: float) -> tuple[Phase, float]:
    if now >= one.drains_since_s:
        return Phase.DRAINING, now - one.drains_since_s
    if now < one.ready_s:
        return Phase.STARTING, now - one.created_s
    return Phase.READY, now - one.ready_s


def simulate_scaling(
    scene: ScalingScene, name: str, seed: int, knob: float | None = None
) -> ScalingReport:
    """Run a scene with one scaler.

    Raises:
        KeyError: There is no such scaler.
    """
    scaler = make_scaler(name, scene.policy, scene.curve.static_peak, knob)
    policies = [policy for policy in BUILT_IN_CLASSES if scene.shares.get(policy.name)]
    total = sum(scene.shares[policy.name] for policy in policies)
    shares = [scene.shares[policy.name] / total for policy in policies]
    service = _Service(scene, scene.begins_with(name, knob), seed)
    fluid = Fluid(policies)
    offered = _Offered([scene.curve.work[0] * share for share in shares])
    spread = (1.0 + scene.lengths.spread) * scene.burstiness**2
    arrivals = scene.curve.arrivals(shares, service.engine, spread, seed)
    every_s = PERIOD_S * max(1, round(scene.curve.duration_s / 2000 / PERIOD_S))
    timeline: list[Point] = []
    for number, flow in enumerate(flows(arrivals, PERIOD_S, _HALF_LIFE_S)):
        second = number * PERIOD_S
        ready = service.ready(second)
        before = fluid.served
        fluid.run(second, flow, float(ready))
        offered.add(flow)
        service.pass_time(second)
        now = second + PERIOD_S
        view = _view(service, fluid, offered, (fluid.served - before) / PERIOD_S, now)
        service.scale(scaler.wanted(view), partial(scaler.victims, view), now)
        if now % every_s == 0:
            timeline.append(Point(now, sum(offered.rates()), ready, service.wanted))
    static_s = scene.curve.static_peak * scene.curve.duration_s
    return ScalingReport(
        scaler=name,
        scene=scene.curve.name,
        seed=seed,
        cold_start_s=scene.cold_start_s,
        knob=knob,
        replica_hours=round(service.replica_s / 3600, 1),
        cost_ratio=round(service.replica_s / static_s, 4),
        attainment={each.policy.name: each.attainment for each in fluid.classes},
        changes=len(service.changes),
        most_reversals=reversals(service.changes, FLAPPING_S),
        timeline=tuple(timeline),
    )


def _view(service: _Service, fluid: Fluid, offered: _Offered, served: float, now: int) -> View:
    ready = service.ready(now)
    load = served / max(1, ready)
    running = service.engine.running(load)

    def replicas() -> Sequence[ReplicaLoad]:
        work = [
            ClassWork(each.policy.name, rate, each.backlog_s, each.slack_s(now))
            for each, rate in zip(fluid.classes, offered.rates(), strict=True)
        ]
        return service.loads(now, round(running), work)

    return View(
        now,
        service.wanted,
        ready,
        service.starting(now),
        served,
        fluid.backlog_s / service.engine.request_s,
        running * ready,
        service.engine.kv_ratio(load),
        replicas,
    )


def knob_at_cost(scene: ScalingScene, name: str, seed: int, cost_ratio: float) -> float:
    """Return the knob with which a scaler costs as much, or as near to it as one gets."""
    if name == "static":
        return max(1.0, round(cost_ratio * scene.curve.static_peak))
    kind = OTHERS[name]
    low, high = kind.least, kind.most
    tried: dict[float, float] = {}
    for _ in range(_TRIES):
        knob = math.sqrt(low * high)
        found = simulate_scaling(scene, name, seed, knob).cost_ratio
        tried[knob] = abs(found - cost_ratio)
        if tried[knob] < _CLOSE * cost_ratio:
            break
        low, high = (knob, high) if found > cost_ratio else (low, knob)
    return min(tried, key=lambda knob: tried[knob])


def compare_scalers(
    scene: ScalingScene,
    names: Sequence[str],
    seeds: Sequence[int],
    progress: Callable[[str], None],
    knob: float | None = None,
) -> list[ScalingReport]:
    """Return the runs of Weir, and of others with a knob, or as costly as Weir on one seed.

    `static` runs twice: as the peak's number, and as the number that costs as much.
    """
    found: list[ScalingReport] = []
    if knob is None or "weir" in names:
        progress("weir")
        found = [simulate_scaling(scene, "weir", seed) for seed in seeds]
    for name in names:
        if name == "weir":
            continue
        progress(name)
        if name == "static":
            found += [simulate_scaling(scene, name, seed) for seed in seeds]
        its = knob
        if its is None:
            its = knob_at_cost(scene, name, seeds[0], found[0].cost_ratio)
        found += [simulate_scaling(scene, name, seed, its) for seed in seeds]
    return found
