"""What a simulation showed, as plain values: per class, and in all. `to_json` is byte-stable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from weir_core.sched.types import ClassPolicy
from weir_sim.replica import Trip
from weir_sim.run import SimResult

WARM_UP_SHARE = 0.1
"""First part of the arrivals' time that no figure counts: the system fills up."""


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One class's requests. Times in seconds; None where there was nothing to measure.

    Attributes:
        attainment_ratio: Part of all its requests, the refused included, that met its targets.
        rejected: Requests whose outcome was a refusal.
        refusals: Refusals in all; more than `rejected` where clients come back.
        longest_wait_s: Longest time in the pool of a request that was dispatched in the end.
    """

    name: str
    requests: int
    finished: int
    rejected: int
    refusals: int
    requeues: int
    attainment_ratio: float
    goodput_per_s: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    longest_wait_s: float | None


@dataclass(frozen=True, slots=True)
class TenantReport:
    """One tenant's requests of one class."""

    name: str
    class_name: str
    requests: int
    attainment_ratio: float


@dataclass(frozen=True, slots=True)
class Report:
    """One run.

    Attributes:
        bubble_ratio: Time in which an engine idled while its pool held requests, over all time.
        recomputed_ratio: Tokens computed again after a preemption, over all computed.
        busy_ratio: Time in steps, over all time until the last arrival.
        unfinished: Requests without an outcome when the simulation ended.
        warm_up_requests: Requests that arrived while the system filled up: no figure counts them.
    """

    system: str
    seed: int
    replicas: int
    offered_per_s: float
    goodput_per_s: float
    attainment_ratio: float
    bubble_ratio: float
    recomputed_ratio: float
    busy_ratio: float
    unfinished: int
    warm_up_requests: int
    steps: int
    classes: tuple[ClassReport, ...]
    tenants: tuple[TenantReport, ...]

    def of(self, class_name: str) -> ClassReport:
        """Return one class's report.

        Raises:
            KeyError: No request was of that class.
        """
        for report in self.classes:
            if report.name == class_name:
                return report
        raise KeyError(class_name)

    def to_json(self) -> str:
        """Return the report as one JSON object; equal runs give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True)


def report(result: SimResult) -> Report:
    """Return what `result` shows."""
    config = result.config
    start_s = warm_up_s(result.trips)
    last_s = result.trips[-1].request.arrival_s if result.trips else 1.0
    span_s = max(1e-9, last_s - start_s)
    counted = [trip for trip in result.trips if trip.request.arrival_s >= start_s]
    policies = {policy.name: policy for policy in config.classes}
    names = sorted(
        {trip.request.class_name for trip in counted},
        key=lambda name: (-policies[name].rank, name),
    )
    classes = tuple(
        _class_report([t for t in counted if t.request.class_name == name], policies[name], span_s)
        for name in names
    )
    met = sum(report.attainment_ratio * report.requests for report in classes)
    engines = [replica.engine.counts for replica in result.replicas]
    computed = sum(counts.computed_tokens for counts in engines)
    time_s = max(1e-9, result.ended_s) * len(result.replicas)
    return Report(
        system=config.system.name,
        seed=config.seed,
        replicas=config.replicas,
        offered_per_s=round(len(counted) / span_s, 3),
        goodput_per_s=round(met / span_s, 3),
        attainment_ratio=round(met / max(1, len(counted)), 4),
        bubble_ratio=round(sum(r.bubble_s for r in result.replicas) / time_s, 5),
        recomputed_ratio=round(
            sum(counts.recomputed_tokens for counts in engines) / max(1, computed), 5
        ),
        busy_ratio=round(sum(counts.busy_s for counts in engines) / time_s, 4),
        unfinished=sum(1 for trip in result.trips if not trip.outcomes),
        warm_up_requests=len(result.trips) - len(counted),
        steps=sum(counts.steps for counts in engines),
        classes=classes,
        tenants=_tenant_reports(counted, policies),
    )


def legend(reports: Sequence[Report]) -> str:
    """Return what the figures of reports are of, at least one, and what they leave out."""
    warm_ups = sorted({found.warm_up_requests for found in reports})
    most = f" to {warm_ups[-1]}" if len(warm_ups) > 1 else ""
    return (
        "on target: of all requests, refused ones included; not counted: those of the first "
        f"{WARM_UP_SHARE:.0%} of the time, while the system fills up ({warm_ups[0]}{most})"
    )


def warm_up_s(trips: Sequence[Trip]) -> float:
    """Return until when arrivals are not counted."""
    return WARM_UP_SHARE * trips[-1].request.arrival_s if trips else 0.0


def met_targets(trip: Trip, policy: ClassPolicy) -> bool:
    """Return whether a request was answered within its class's targets."""
    if trip.finished_s < 0:
        return False
    ttft_s, tpot_s = ttft(trip), tpot(trip)
    if policy.ttft_target_s is not None and ttft_s > policy.ttft_target_s:
        return False
    return tpot_s is None or policy.tpot_target_s is None or tpot_s <= policy.tpot_target_s


def ttft(trip: Trip) -> float:
    """Return the time from arrival to first token, in seconds."""
    return trip.first_token_s - trip.request.arrival_s


def tpot(trip: Trip) -> float | None:
    """Return the mean time per output token after the first, in seconds, if there were any."""
    tokens = trip.request.output_tokens - 1
    return (trip.finished_s - trip.first_token_s) / tokens if tokens > 0 else None


def jain(served: Sequence[float]) -> float:
    """Return Jain's fairness index of what equals were served: 1 is equal, 1/n is all for one."""
    squares = sum(amount * amount for amount in served)
    return sum(served) ** 2 / (len(served) * squares) if squares else 1.0


def _class_report(trips: list[Trip], policy: ClassPolicy, span_s: float) -> ClassReport:
    finished = [trip for trip in trips if trip.finished_s >= 0]
    ttfts = sorted(ttft(trip) for trip in finished)
    tpots = sorted(value for trip in finished if (value := tpot(trip)) is not None)
    met = sum(met_targets(trip, policy) for trip in finished)
    waits = [trip.dispatched_s - trip.submitted_s for trip in finished]
    return ClassReport(
        name=policy.name,
        requests=len(trips),
        finished=len(finished),
        rejected=sum(1 for trip in trips if trip.rejected is not None),
        refusals=sum(trip.refusals for trip in trips),
        requeues=sum(trip.requeues for trip in trips),
        attainment_ratio=round(met / len(trips), 4),
        goodput_per_s=round(met / span_s, 3),
        ttft_p50_s=quantile(ttfts, 0.5),
        ttft_p99_s=quantile(ttfts, 0.99),
        tpot_p50_s=quantile(tpots, 0.5),
        tpot_p99_s=quantile(tpots, 0.99),
        longest_wait_s=round(max(waits), 4) if waits else None,
    )


def _tenant_reports(
    trips: Sequence[Trip], policies: Mapping[str, ClassPolicy]
) -> tuple[TenantReport, ...]:
    groups: dict[tuple[str, str], list[bool]] = {}
    for trip in trips:
        request = trip.request
        met = met_targets(trip, policies[request.class_name])
        groups.setdefault((request.class_name, request.tenant), []).append(met)
    return tuple(
        TenantReport(tenant, class_name, len(met), round(sum(met) / len(met), 4))
        for (class_name, tenant), met in sorted(groups.items())
    )


def quantile(ordered: Sequence[float], part: float) -> float | None:
    """Return the value that `part` of ascending values do not exceed; None of none."""
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 5)
