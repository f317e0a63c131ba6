"""One simulation: a workload through replicas, with everything that varies named in a value."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from weir_core.sched.policies import RuleNames
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import (
    BUILT_IN_CLASSES,
    Action,
    ClassPolicy,
    EngineFacts,
    EngineKind,
    TenantPolicy,
)
from weir_core.step.mode import Mode
from weir_sim.baselines import (
    ClassSlots,
    Front,
    LeastRequest,
    PassThrough,
    PowerOfTwo,
    RandomRouter,
    ReplicaView,
    RoundRobin,
    Router,
    WeightedScores,
)
from weir_sim.engine_model import EngineModel
from weir_sim.events import EventLoop
from weir_sim.profiles import EngineProfile
from weir_sim.replica import Replica, Trip
from weir_sim.weir_engine_model import make_engine_model
from weir_sim.workload import SimRequest

ROUTERS: Mapping[str, Callable[[random.Random], Router]] = {
    "least-request": LeastRequest,
    "round-robin": RoundRobin,
    "random": RandomRouter,
    "power-of-two": PowerOfTwo,
    "weighted-scores": WeightedScores,
}


@dataclass(frozen=True, slots=True)
class System:
    """What serves the workload.

    Attributes:
        front: `weir`, `pass-through` or `class-slots`.
        engine: Order inside the engines.
        models: What this stands for, for the reader of a table.
        mode: How Weir's engine divides its steps.
        shares: With mode `custom`: rank to its part of the prefill tokens, 0 to 1.
    """

    name: str
    front: str
    engine: EngineKind
    router: str = "least-request"
    rules: RuleNames = field(default_factory=RuleNames)
    models: str = ""
    mode: Literal["latency", "throughput", "custom"] = "latency"
    shares: Mapping[int, float] = field(default_factory=dict)


SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        System("weir", "weir", EngineKind.WEIR, models="Weir as it ships"),
        System(
            "weir-throughput",
            "weir",
            EngineKind.WEIR,
            models="Weir with scheduling.mode throughput",
            mode="throughput",
        ),
        System(
            "weir-custom",
            "weir",
            EngineKind.WEIR,
            models="Weir with scheduling.mode custom, half of each step for interactive prompts, "
            "0.3 for standard, 0.2 for batch",
            mode="custom",
            shares={100: 0.5, 0: 0.3, -100: 0.2},
        ),
        System(
            "weir-priority",
            "weir",
            EngineKind.PRIORITY,
            models="Weir's sidecar before vLLM --scheduling-policy priority",
        ),
        System("weir-fcfs", "weir", EngineKind.FCFS, models="Weir's sidecar before plain vLLM"),
        System("fcfs", "pass-through", EngineKind.FCFS, models="plain vLLM behind least-request"),
        System(
            "priority",
            "pass-through",
            EngineKind.PRIORITY,
            models="vLLM --scheduling-policy priority behind least-request",
        ),
        System(
            "llm-d",
            "pass-through",
            EngineKind.FCFS,
            "weighted-scores",
            models="llm-d's default scorers, metrics 50 ms old, before plain vLLM",
        ),
        System(
            "class-slots",
            "class-slots",
            EngineKind.PRIORITY,
            models="SMG's fixed slots per class before vLLM with priority",
        ),
        System("round-robin", "pass-through", EngineKind.FCFS, "round-robin", models="nginx"),
        System("random", "pass-through", EngineKind.FCFS, "random", models="a Service alone"),
    )
}


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which the engines of all replicas do nothing.

    Attributes:
        is_silent: They still hold what they held and say nothing; else they are dead, and come
            back empty.
    """

    from_s: float
    until_s: float
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class SimConfig:
    """One run.

    Attributes:
        link_s: One way between a front and its engine.
        scrape_s: Age of what routers scrape.
        drain_s: Simulated time after the last arrival in which answers may still finish.
        slot_shares: Slots per class of `class-slots`, relative.
        retries: How often a client sends a refused request again, each time after the
            Retry-After it was told. Its latency counts from its first attempt.
        outages: When the engines are gone; for Weir's own systems.
        sample_s: How often the queue and the batch are looked at for a timeline; 0 never.
    """

    profile: EngineProfile
    system: System
    replicas: int = 1
    classes: Sequence[ClassPolicy] = BUILT_IN_CLASSES
    tenants: Sequence[TenantPolicy] = ()
    link_s: float = 0.0005
    scrape_s: float = 0.05
    drain_s: float = 1800.0
    seed: int = 0
    slot_shares: Mapping[str, float] = field(
        default_factory=lambda: {"interactive": 0.2, "standard": 0.5, "batch": 0.3}
    )
    retries: int = 0
    outages: Sequence[Outage] = ()
    sample_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """All replicas at one instant: requests by where they are.

    Attributes:
        waiting: In the pools, by class; classes without any are left out.
        output_tokens: Of all engines since the start.
    """

    at_s: float
    waiting: dict[str, int]
    engine_waiting: int
    running: int
    output_tokens: int


@dataclass(slots=True)
class SimResult:
    """What came out.

    Attributes:
        refusals: When a request was refused, and its class; of clients that come back, each.
    """

    config: SimConfig
    trips: list[Trip]
    replicas: list[Replica]
    ended_s: float
    samples: list[Sample] = field(default_factory=list)
    refusals: list[tuple[float, str]] = field(default_factory=list)


class RequestTooLong(ValueError):
    """A request can never fit into the simulated engine, which vLLM would refuse with a 400."""


def check_fits(profile: EngineProfile, workload: Sequence[SimRequest]) -> None:
    """Raise `RequestTooLong` where a request is longer than an engine's whole KV cache."""
    for request in workload:
        tokens = request.prompt_tokens + request.output_tokens
        if tokens > profile.kv_tokens:
            raise RequestTooLong(
                f"request {request.request_id} needs {tokens} tokens; the KV cache of "
                f"{profile.name} holds {profile.kv_tokens}"
            )


Check = Callable[[Front, float, list[Action]], None]
StepCheck = Callable[[EngineModel], None]


def simulate(
    config: SimConfig,
    workload: Sequence[SimRequest],
    check: Check | None = None,
    progress: Callable[[int], None] | None = None,
    step_check: StepCheck | None = None,
) -> SimResult:
    """Run `workload` and return every request's way.

    Raises:
        RequestTooLong: A request is longer than an engine's whole KV cache.

    Args:
        config: What to simulate.
        workload: Requests in order of arrival.
        check: Called after every event of every front, to assert invariants.
        progress: Called with the number of requests that have ended, now and then.
        step_check: Called with an engine after each step it formed, to assert invariants.
    """
    check_fits(config.profile, workload)
    simulation = _Simulation(config, workload, check, progress)
    if step_check is not None:
        simulation.check_steps(step_check)
    return simulation.run()


class _Simulation:
    def __init__(
        self,
        config: SimConfig,
        workload: Sequence[SimRequest],
        check: Check | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._config = config
        self._progress = progress
        self._loop = EventLoop()
        self._rng = random.Random(f"simulation-{config.seed}")
        self._router = ROUTERS[config.system.router](self._rng)
        self._trips = [Trip(request) for request in workload]
        self._ended = 0
        self._samples: list[Sample] = []
        self._refusals: list[tuple[float, str]] = []
        policies = {policy.name: policy for policy in config.classes}
        mode = engine_mode(config)
        self._replicas = [
            Replica(
                make_front(config),
                make_engine_model(engine_profile(config), config.system.engine, mode),
                self._loop,
                policies,
                config.link_s,
                check,
            )
            for _ in range(config.replicas)
        ]
        self._views = [ReplicaView() for _ in self._replicas]

    def check_steps(self, step_check: StepCheck) -> None:
        for replica in self._replicas:
            replica.on_step_formed = step_check

    def run(self) -> SimResult:
        for replica in self._replicas:
            replica.on_outcome = self._outcome
        if self._trips:
            self._loop.at(self._trips[0].request.arrival_s, self._arrive, 0)
            self._loop.at(0.0, self._scrape)
            self._loop.at(0.0, self._sample)
        for replica in self._replicas:
            for outage in self._config.outages:
                self._plan(replica, outage)
        last_s = self._trips[-1].request.arrival_s if self._trips else 0.0
        self._loop.run(lambda: self._ended == len(self._trips), last_s + self._config.drain_s)
        return SimResult(
            self._config,
            self._trips,
            self._replicas,
            self._loop.now,
            self._samples,
            self._refusals,
        )

    def _plan(self, replica: Replica, outage: Outage) -> None:
        if outage.is_silent:
            self._loop.at(outage.from_s, replica.engine_is_silent, outage.until_s)
        else:
            self._loop.at(outage.from_s, replica.engine_dies)
            self._loop.at(outage.until_s, replica.engine_returns)

    def _arrive(self, index: int) -> None:
        if index + 1 < len(self._trips):
            self._loop.at(self._trips[index + 1].request.arrival_s, self._arrive, index + 1)
        self._send(self._trips[index])

    def _send(self, trip: Trip) -> None:
        trip.replica = self._router.choose(trip.request, self._views)
        self._views[trip.replica].outstanding += 1
        self._replicas[trip.replica].submit(trip)

    def _outcome(self, trip: Trip) -> None:
        self._views[trip.replica].outstanding -= 1
        if trip.rejected is not None:
            self._refusals.append((self._loop.now, trip.request.class_name))
        if trip.rejected is not None and trip.refusals <= self._config.retries:
            self._loop.at(self._loop.now + trip.rejected.retry_after_s, self._send, trip)
            trip.rejected = None
            trip.outcomes = 0
            return
        self._ended += 1
        if self._progress is not None and self._ended % 256 == 0:
            self._progress(self._ended)

    def _sample(self) -> None:
        if self._config.sample_s <= 0:
            return
        engines = [replica.engine for replica in self._replicas]
        waiting: Counter[str] = Counter()
        for replica in self._replicas:
            waiting.update(replica.waiting())
        self._samples.append(
            Sample(
                self._loop.now,
                dict(waiting),
                sum(engine.waiting for engine in engines),
                sum(engine.running for engine in engines),
                sum(engine.counts.output_tokens for engine in engines),
            )
        )
        self._loop.at(self._loop.now + self._config.sample_s, self._sample)

    def _scrape(self) -> None:
        if self._config.system.router != "weighted-scores":
            return
        for view, replica in zip(self._views, self._replicas, strict=True):
            view.scraped_queue = replica.engine.waiting + replica.front.backlog()
            view.scraped_kv_ratio = replica.engine.kv.usage_ratio()
        self._loop.at(self._loop.now + self._config.scrape_s, self._scrape)


LATENCY_MODE_BUDGET = 8192
"""Most tokens of a step of Weir's engine scheduler, which lowers it to what decodes allow."""


def engine_profile(config: SimConfig) -> EngineProfile:
    """Return the profile with the token budget that goes with the system's engine."""
    if config.system.engine is EngineKind.WEIR:
        return replace(config.profile, max_num_batched_tokens=LATENCY_MODE_BUDGET)
    return config.profile


def engine_mode(config: SimConfig) -> Mode:
    """Return how the system's engine divides its steps."""
    return Mode(
        config.system.mode,
        tpot_s={
            policy.rank: policy.tpot_target_s
            for policy in config.classes
            if policy.tpot_target_s is not None
        },
        shares=config.system.shares,
    )


def make_front(config: SimConfig) -> Front:
    """Return what stands before each engine of the system."""
    profile = engine_profile(config)
    facts = EngineFacts(
        kind=config.system.engine,
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        kv_capacity_tokens=profile.kv_tokens,
    )
    if config.system.front == "weir":
        settings = SchedulerSettings(facts, rules=config.system.rules)
        return Scheduler(settings, config.classes, config.tenants)
    if config.system.front == "class-slots":
        return ClassSlots(config.classes, facts, config.slot_shares)
    return PassThrough({policy.name: policy.rank for policy in config.classes})
