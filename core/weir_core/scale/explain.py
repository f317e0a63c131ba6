"""Why a number of replicas is what it is, in words, codes and numbers for metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from weir_core.scale.demand import ClassNeed, Demand
from weir_core.scale.types import Phase, ScalingPolicy, ServiceLoad, Verdict

_ROUNDING: Final = 1e-6


def missing_data(load: ServiceLoad, policy: ScalingPolicy) -> str | None:
    """Return which data is missing, in words; None if all of it is there.

    Gateways do not know the work of replicas, and suffice only where there are to be none.
    """
    asked = [one for one in load.replicas if one.phase is Phase.READY]
    silent = [one.name for one in asked if one.heard_s is None]
    if silent:
        return f"{_names(silent)} could not be asked"
    old = [one.name for one in asked if (one.heard_s or 0.0) > policy.oldest_data_s]
    if old:
        return f"what {_names(old)} said is older than {policy.oldest_data_s:g} s"
    is_asleep = not any(pool.replicas for pool in load.pools)
    if not any(one.pool or is_asleep for one in asked):
        return "no sidecar is ready that could say what work there is"
    return None


def why_held(missing: str, before: int, after: int) -> str:
    """Return what is made of missing data: nothing changes but what is out of bounds."""
    if before == after:
        return f"{missing}, so the number of replicas stays"
    return f"{missing}; from {before} to {after} replicas, by the bounds of the spec"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


@dataclass(frozen=True, slots=True)
class Finding:
    """What led to a decision.

    Attributes:
        ahead: Class -> work that will be offered when a replica asked for now is ready.
        needs: Of each rank with all above it, the highest rank first.
        horizon_s: Time until a replica asked for now is ready.
        wished: Pool -> replicas that do the work, before windows and rates.
        kept: The same for the work and the tolerance: what shrinking leaves.
    """

    demands: Sequence[Demand]
    ahead: Mapping[str, float]
    needs: Sequence[ClassNeed]
    horizon_s: float
    wished: Mapping[str, int]
    kept: Mapping[str, int]

    @property
    def need(self) -> float:
        """Return the replicas of speed 1 that all work takes."""
        return max((each.replicas for each in self.needs), default=0.0)


def inputs_of(finding: Finding) -> dict[str, float]:
    """Return what a metric shows of a decision."""
    inputs = {"need": finding.need, "cold_start_seconds": finding.horizon_s}
    for demand in finding.demands:
        name = demand.target.name
        inputs[f"offered:{name}"] = demand.offered
        inputs[f"ahead:{name}"] = finding.ahead[name]
        inputs[f"backlog_seconds:{name}"] = demand.backlog_s
    for need in finding.needs:
        inputs[f"need:{need.target.name}"] = need.replicas
    return inputs


def verdict(finding: Finding, before: int, after: int, load: ServiceLoad) -> Verdict:
    """Return what becomes of the number of replicas, as a stable code."""
    if after != before:
        return Verdict.SCALED_UP if after > before else Verdict.SCALED_DOWN
    could = sum(pool.speed * finding.wished[pool.name] for pool in load.pools)
    if finding.need > could + _ROUNDING:
        return Verdict.AT_MOST
    return Verdict.WAITING if sum(finding.kept.values()) < before else Verdict.STEADY


def words(finding: Finding, before: int, after: int, policy: ScalingPolicy) -> str:
    """Return a decision's reason in a sentence."""
    binding = max(finding.needs, key=lambda need: need.replicas, default=None)
    if binding is None:
        return f"{before} replicas stay: there is no priority class"
    work = (
        f"the work of class {binding.target.name} and above takes {binding.rate:.2f} replicas, "
        f"{binding.replicas:.2f} at a load of {binding.load:g}"
    )
    limits = f"the limits are {policy.min_replicas} and {policy.max_replicas}"
    if after != before:
        start = f"a start takes {finding.horizon_s:.0f} s"
        return f"from {before} to {after} replicas: {work}; {start}; {limits}"
    if sum(finding.kept.values()) < before:
        return f"{before} replicas until fewer have sufficed for the whole window: {work}"
    return f"{before} replicas: {work}; {limits}"


def why_asleep(before: int, policy: ScalingPolicy, start_s: float) -> str:
    """Return why there is no replica, and what brings one back."""
    wakes = f"the next request starts one, which takes {start_s:.0f} s"
    if before:
        return (
            f"from {before} to 0 replicas: no request came, waited or ran for "
            f"{policy.idle_timeout_s:g} s; {wakes}"
        )
    return f"0 replicas, because no request waits; {wakes}"


def why_given_up(before: int, quiet_s: float) -> str:
    """Return why replicas go that never became ready, and what brings one back."""
    return (
        f"from {before} to 0 replicas: none became ready, and no request has waited for one for "
        f"{quiet_s:.0f} s; the next request starts one, which is given more time"
    )


def why_woken(waiting: int, start_s: float) -> str:
    """Return why the first replica starts."""
    count = "1 request waits" if waiting == 1 else f"{waiting} requests wait"
    return f"from 0 to 1 replicas: {count} at the gateway; a start takes {start_s:.0f} s"
