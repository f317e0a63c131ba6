"""What a fleet's run showed: times to first token of all, and each class's attainment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from weir_sim.fleet import FleetConfig, FleetResult, FleetTrip, simulate_fleet
from weir_sim.report import Report, quantile, report, ttft, warm_up_s
from weir_sim.run import SimResult
from weir_sim.workload import SimRequest


@dataclass(frozen=True, slots=True)
class FleetReport:
    """One run of a fleet.

    Attributes:
        ttft_p50_s: Of all answered requests.
        forwarded_ratio: Part of all requests that another replica than their ingress served.
        returned: Requests that a replica returned to their ingress.
        moved: Times that a request which waited was given up for another replica.
        hit_ratio: Cached prompt tokens over all of those that were answered.
        served: Speed of a replica -> part of all requests that replicas of this speed served.
        by_class: The classes, as for a single replica.
    """

    routing: str
    seed: int
    replicas: int
    heartbeat_s: float
    loss: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    attainment_ratio: float
    forwarded_ratio: float
    returned: int
    moved: int
    hit_ratio: float
    served: Mapping[str, float]
    by_class: Report

    def to_json(self) -> str:
        """Return the report as one JSON object; equal runs give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True)


def fleet_report(result: FleetResult) -> FleetReport:
    """Return what a run showed, its first tenth left out."""
    config, trips = result.config, result.trips
    start_s = warm_up_s(trips)
    counted = [trip for trip in trips if trip.request.arrival_s >= start_s]
    answered = sorted(ttft(trip) for trip in counted if trip.finished_s >= 0)
    by_class = report(SimResult(result.sim, list(trips), result.replicas, result.ended_s))
    served: dict[str, int] = {}
    for trip in counted:
        speed = f"{config.speeds[trip.replica]:g}"
        served[speed] = served.get(speed, 0) + 1
    total = max(1, len(counted))
    return FleetReport(
        routing=config.routing,
        seed=config.seed,
        replicas=len(config.speeds),
        heartbeat_s=config.messages.heartbeat_s,
        loss=config.messages.loss,
        ttft_p50_s=quantile(answered, 0.5),
        ttft_p99_s=quantile(answered, 0.99),
        attainment_ratio=by_class.attainment_ratio,
        forwarded_ratio=round(sum(t.hops > 0 for t in counted) / total, 4),
        returned=sum(len(trip.tried) for trip in counted),
        moved=sum(trip.moves for trip in counted),
        hit_ratio=_hit_ratio(counted),
        served={speed: round(count / total, 4) for speed, count in sorted(served.items())},
        by_class=by_class,
    )


def _hit_ratio(trips: Sequence[FleetTrip]) -> float:
    answered = [trip for trip in trips if trip.finished_s >= 0]
    tokens = sum(trip.request.prompt_tokens for trip in answered)
    return round(sum(trip.cached_tokens for trip in answered) / max(1, tokens), 4)


def compare_routings(
    config: FleetConfig, routings: Sequence[str], workload: Sequence[SimRequest]
) -> Iterator[FleetReport]:
    """Yield a report for each way to route the same requests."""
    for routing in routings:
        yield fleet_report(simulate_fleet(replace(config, routing=routing), workload))
