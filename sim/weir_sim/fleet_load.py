"""What a fleet is offered, at any load, and the most that it can take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from weir_sim.experiments import capacity_per_s
from weir_sim.fleet import ROUTINGS, FleetConfig, simulate_fleet
from weir_sim.fleet_report import fleet_report
from weir_sim.profiles import EngineProfile
from weir_sim.report import Report, report
from weir_sim.run import SYSTEMS, SimConfig, simulate
from weir_sim.workload import SimRequest, WorkloadSpec, generate, replay

_SAMPLED: Final = 600
"""Requests of a workload by which the capacity of an engine is measured, at least."""
_PARTS: Final = 4
"""Seeds begin at so many parts of a trace."""
_LOWEST: Final = 0.05
_HIGHEST: Final = 3.0
_PRECISION: Final = 0.02


class FleetLoad:
    """Requests for a fleet: synthetic, or those of a trace with classes and tenants of the spec.

    Load 1 is what all engines complete when each is plain, saturated and has nothing cached.

    Args:
        speeds: Of each replica, relative to the profile.
        spec: Its rate and duration are not used.
        trace: Requests in order of arrival; empty for synthetic ones.
    """

    def __init__(
        self,
        profile: EngineProfile,
        speeds: Sequence[float],
        duration_s: float,
        spec: WorkloadSpec,
        trace: Sequence[SimRequest] = (),
    ) -> None:
        self._duration_s = duration_s
        self._spec = spec
        self._trace = trace
        sample = list(trace)
        if spec.turns > 1 and not trace:
            sample = generate(replace(spec, rate=20.0, duration_s=20.0 * spec.turns), 0)
        per_s = _saturated_per_s(profile, sample) if sample else capacity_per_s(profile, spec)
        self._per_s = sum(speeds) * per_s

    def requests(self, load: float, seed: int) -> list[SimRequest]:
        """Return the requests of one run."""
        rate = load * self._per_s
        if not self._trace:
            return generate(replace(self._spec, rate=rate, duration_s=self._duration_s), seed)
        part = self._trace[len(self._trace) * (seed % _PARTS) // _PARTS :]
        start_s = part[0].arrival_s
        pace = rate * (part[-1].arrival_s - start_s) / len(part)
        moved = [replace(request, arrival_s=request.arrival_s - start_s) for request in part]
        return replay(moved, self._spec.streams, seed, pace, self._duration_s)


def _saturated_per_s(profile: EngineProfile, requests: Sequence[SimRequest]) -> float:
    """Return how many such requests a second one saturated FCFS engine completes, uncached."""
    every = max(1, len(requests) // _SAMPLED)
    burst = [replace(request, arrival_s=0.0, hash_ids=()) for request in requests[::every]]
    result = simulate(SimConfig(profile, SYSTEMS["fcfs"], drain_s=1e6), burst)
    ends = sorted(trip.finished_s for trip in result.trips)
    first, last = len(ends) // 5, len(ends) * 4 // 5
    return (last - first) / (ends[last] - ends[first])


@dataclass(frozen=True, slots=True)
class FleetCapacity:
    """The highest load at which every class has the wanted attainment; 0 if there is none.

    Attributes:
        name: A way to route before Weir's replicas, or a whole system.
        goodput_per_s: At that load.
    """

    name: str
    seed: int
    load: float
    goodput_per_s: float


def fleet_capacity(
    config: FleetConfig, offered: FleetLoad, name: str, attainment: float
) -> FleetCapacity:
    """Search the highest load by bisection; a higher load is taken to be never easier.

    Args:
        config: The fleet; `name` replaces its routing.
        offered: What is offered to it.
        name: One of `ROUTINGS`, or of `SYSTEMS` where all replicas are of one speed.
        attainment: Of each class, 0 to 1.
    """
    low, high = 0.0, _HIGHEST
    goodput_per_s = 0.0
    load = 0.8
    while high - low > _PRECISION and load >= _LOWEST:
        found = _report(config, offered.requests(load, config.seed), name)
        if min(each.attainment_ratio for each in found.classes) >= attainment:
            low, goodput_per_s = load, found.goodput_per_s
        else:
            high = load
        load = (low + high) / 2
    return FleetCapacity(name, config.seed, round(low, 3), round(goodput_per_s, 2))


def _report(config: FleetConfig, requests: Sequence[SimRequest], name: str) -> Report:
    if name in ROUTINGS:
        return fleet_report(simulate_fleet(replace(config, routing=name), requests)).by_class
    system = SimConfig(
        config.profile,
        SYSTEMS[name],
        len(config.speeds),
        drain_s=config.drain_s,
        scrape_s=config.scrape_s,
        seed=config.seed,
    )
    return report(simulate(system, requests))
