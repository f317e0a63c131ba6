"""The questions that are asked of the simulator, each as one function.

Load is given as a multiple of capacity: the rate at which one plain FCFS engine completes requests
while its queue never empties. Nobody's targets are met there; it is what the hardware does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from weir_core.sched.policies import POLICIES, RuleNames
from weir_core.sched.tickets import OUTPUT_WEIGHT
from weir_core.sched.types import TenantPolicy
from weir_sim.profiles import EngineProfile
from weir_sim.report import Report, jain, met_targets, report
from weir_sim.run import SYSTEMS, SimConfig, SimResult, System, simulate
from weir_sim.workload import SimRequest, Stream, WorkloadSpec, generate

_CAPACITY_REQUESTS = 2000


def capacity_per_s(profile: EngineProfile, spec: WorkloadSpec, seed: int = 0) -> float:
    """Return the requests per second that one saturated FCFS engine completes.

    Measured between the 20th and the 80th percentile of completions, so that neither filling up
    nor running empty counts.
    """
    burst = replace(spec, rate=_CAPACITY_REQUESTS, duration_s=1.0, burstiness=1.0, turns=1)
    requests = generate(burst, seed)
    result = simulate(SimConfig(profile, SYSTEMS["fcfs"], drain_s=1e6), requests)
    ends = sorted(trip.finished_s for trip in result.trips)
    first, last = len(ends) // 5, len(ends) * 4 // 5
    return (last - first) / (ends[last] - ends[first])


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload at a load, before some replicas of one profile.

    Attributes:
        load: Offered rate over the capacity of all replicas.
    """

    profile: EngineProfile
    load: float
    replicas: int = 1
    duration_s: float = 600.0
    spec: WorkloadSpec = field(default_factory=lambda: WorkloadSpec(rate=1.0, duration_s=1.0))

    def requests(self, seed: int) -> list[SimRequest]:
        """Return the workload of one seed."""
        rate = self.load * self.replicas * capacity_per_s(self.profile, self.spec)
        return generate(replace(self.spec, rate=rate, duration_s=self.duration_s), seed)

    def run(self, system: System, seed: int) -> SimResult:
        """Serve the workload by `system`."""
        config = SimConfig(self.profile, system, self.replicas, seed=seed)
        return simulate(config, self.requests(seed))


def compare(
    scenario: Scenario, systems: Sequence[System], seeds: Sequence[int]
) -> Iterator[Report]:
    """Yield a report for each system and seed."""
    for system in systems:
        for seed in seeds:
            yield report(scenario.run(system, seed))


def ablations(base: str = "weir") -> Mapping[str, System]:
    """Return a Weir system with one rule at a time replaced by each of its other variants."""
    weir = SYSTEMS[base]
    systems = {base: weir}
    for rule, names in POLICIES.items():
        for name in names[1:]:
            rules = replace(RuleNames(), **{rule: name})
            systems[f"{rule}={name}"] = replace(weir, name=f"{rule}={name}", rules=rules)
    return systems


@dataclass(frozen=True, slots=True)
class FairnessReport:
    """How equal tenants were served while all of them had requests waiting.

    Attributes:
        jain_index: Of the tokens served to each (prompt + 2 x output): 1 is equal.
        shares: Part of the served tokens, by tenant.
        offered: Part of the offered tokens, by tenant.
    """

    system: str
    seed: int
    jain_index: float
    shares: Mapping[str, float]
    offered: Mapping[str, float]


def fairness(profile: EngineProfile, system: System, seed: int, tenants: int = 5) -> FairnessReport:
    """Let equal tenants overload a replica, one of them with ten times the others' requests.

    Each of the small ones offers 1.5 times an equal share of the capacity, so all are backlogged
    throughout. What each is served in the middle three fifths of the run is compared.
    """
    shares = [10.0] + [1.0] * (tenants - 1)
    # A class that refuses nobody early, so that the backlog stays.
    streams = tuple(Stream("batch", f"t{i}", share) for i, share in enumerate(shares))
    spec = WorkloadSpec(rate=1.0, duration_s=1.0, streams=streams)
    load = 1.5 / tenants * sum(shares)
    scenario = Scenario(profile, load, spec=spec, duration_s=300.0)
    requests = scenario.requests(seed)
    names = [stream.tenant for stream in streams]
    config = SimConfig(
        profile, system, seed=seed, tenants=[TenantPolicy(name) for name in names], drain_s=0.0
    )
    result = simulate(config, requests)
    start, end = 0.2 * scenario.duration_s, 0.8 * scenario.duration_s
    served = dict.fromkeys(names, 0.0)
    offered = dict.fromkeys(names, 0.0)
    for trip in result.trips:
        tokens = trip.request.prompt_tokens + OUTPUT_WEIGHT * trip.request.output_tokens
        offered[trip.request.tenant] += tokens
        if start <= trip.finished_s < end:
            served[trip.request.tenant] += tokens
    return FairnessReport(
        system=system.name,
        seed=seed,
        jain_index=round(jain(list(served.values())), 4),
        shares=_parts(served),
        offered=_parts(offered),
    )


@dataclass(frozen=True, slots=True)
class CapacityAnswer:
    """How many replicas a workload needs.

    Attributes:
        replicas: The least that reach the attainment, or None when even the most do not.
        tried: Attainment by number of replicas.
    """

    replicas: int | None
    tried: Mapping[int, float]


def replicas_needed(
    config: SimConfig, workload: Sequence[SimRequest], attainment_ratio: float, most: int = 64
) -> CapacityAnswer:
    """Return the fewest replicas at which `attainment_ratio` of all requests meet their targets.

    Doubles until it suffices, then bisects: more replicas never serve less.
    """
    tried: dict[int, float] = {}

    def suffices(replicas: int) -> bool:
        if replicas not in tried:
            result = simulate(replace(config, replicas=replicas), workload)
            tried[replicas] = attainment(result)
        return tried[replicas] >= attainment_ratio

    high = 1
    while not suffices(high):
        if high >= most:
            return CapacityAnswer(None, tried)
        high = min(most, 2 * high)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return CapacityAnswer(high, dict(sorted(tried.items())))


def attainment(result: SimResult) -> float:
    """Return the part of all requests, the refused included, that met their targets."""
    policies = {policy.name: policy for policy in result.config.classes}
    met = sum(met_targets(trip, policies[trip.request.class_name]) for trip in result.trips)
    return met / max(1, len(result.trips))


def _parts(amounts: Mapping[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {name: round(amount / total, 4) if total else 0.0 for name, amount in amounts.items()}
