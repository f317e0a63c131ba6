"""How many replicas there are, where the spec leaves it to the work.

The autoscaler decides between passes (`weir_operator.autoscaling`); the number is written with the
Deployment (`workloads`). Here it is told of the service, and what it decided is said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from weir_core.api import scaling as api
from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import ClusterUnavailable
from weir_core.scale.types import (
    ClassTarget,
    Decision,
    Direction,
    PoolFacts,
    RatePolicy,
    ScalingPolicy,
)
from weir_core.scale.types import Verdict as Reason
from weir_core.sched.types import BUILT_IN_CLASSES
from weir_core.wire.policies import PolicyDocument
from weir_operator.autoscaling import Autoscaling, Scaled, Service
from weir_operator.cluster import Cluster
from weir_operator.conditions import LONGEST_MESSAGE, SCALING, Verdict
from weir_operator.events import event
from weir_operator.observed import Observed
from weir_operator.parse import replicas_in, scaling_in
from weir_operator.parts.part import Part

log = logging.getLogger(__name__)


class Scaling(Part):
    """Owns nothing.

    Args:
        autoscaling: Decides.
        clock: The time of day, with its zone.
    """

    condition = SCALING

    def __init__(self, autoscaling: Autoscaling, clock: Callable[[], datetime]) -> None:
        self._autoscaling = autoscaling
        self._clock = clock

    async def follow_up(self, seen: Observed, cluster: Cluster) -> Observed:
        """Tell the autoscaler of what is there now, and the cluster of a number that changed."""
        service = _name(seen)
        if seen.service is None or (seen.service.spec.scaling and not _is_whole(seen)):
            replicas = {pool: each.wanted for pool, each in seen.deployments.items()}
            self._autoscaling.refresh(service, seen.pods, replicas)
            asleep = _asleep(seen)
            if asleep is not None and not self._autoscaling.follows(service):
                self._autoscaling.follow(service, asleep)
        elif seen.service.spec.scaling is None:
            self._autoscaling.forget(service)
        else:
            self._autoscaling.follow(service, _scaled(seen, seen.service))
        news = self._autoscaling.news(service)
        if news is not None:
            condition = {"type": SCALING, **_verdict(news)._asdict()}
            try:
                await cluster.record(event(seen.body, condition, self._clock()))
            except ClusterUnavailable as error:  # the condition says the same
                log.warning("%s/%s: no Event: %s", *service, error)
        return seen

    def verdicts(self, seen: Observed) -> Mapping[str, Verdict]:
        """Say what was decided last, and why."""
        if seen.service is None:
            return {}
        if seen.service.spec.scaling is None:
            return {SCALING: Verdict("True", "Fixed", "the spec gives the number of replicas")}
        said = self._autoscaling.said(_name(seen))
        if said is None:
            return {SCALING: Verdict("Unknown", "Waiting", "no sidecar was asked yet")}
        if seen.service.spec.advises:
            said = replace(said, message=f"another autoscaler is told: {said.message}")
        return {SCALING: _verdict(said)}

    def forget(self, service: Service) -> None:
        """Forget a service that is gone."""
        self._autoscaling.forget(service)


def _is_whole(seen: Observed) -> bool:
    """Tell whether the pass could read all that a decision is made from.

    Without its Deployments a service would seem to have as few replicas as it may.
    """
    assert seen.service is not None
    pools = {pool.name for pool in seen.service.spec.hardware_pools}
    return pools <= seen.deployments.keys() and bool(seen.told.keys.valid)


def _name(seen: Observed) -> Service:
    return seen.owner.metadata.namespace, seen.owner.metadata.name


def _verdict(decision: Decision) -> Verdict:
    """Return a decision as a condition; data that is missing may be there in a moment."""
    status = "Unknown" if decision.reason is Reason.DATA_MISSING else "True"
    return Verdict(status, decision.reason.value, decision.message[:LONGEST_MESSAGE])


def _scaled(seen: Observed, service: InferenceService) -> Scaled:
    pools = []
    for pool in service.spec.hardware_pools:
        least = service.spec.fewest_of(pool) if pool.replicas is None else pool.replicas
        pools.append(
            PoolFacts(
                pool.name,
                seen.deployments[pool.name].wanted,
                cost=pool.hourly_cost,
                spot=pool.spot,
                min_replicas=least,
                max_replicas=pool.replicas,
            )
        )
    fixed = sum(pool.replicas or 0 for pool in service.spec.pools)
    assert service.spec.scaling is not None
    return Scaled(
        policy=policy_of(service.spec.scaling, fixed),
        classes=classes_of(seen.told.document),
        pools=tuple(pools),
        open_pools=frozenset(pool.name for pool in service.spec.open_pools),
        pods=seen.pods,
        keys=seen.told.keys.valid,
        advises=service.spec.advises,
    )


def _asleep(seen: Observed) -> Scaled | None:
    """Return a service that sleeps though its spec is wrong; None for any other.

    A new operator never saw its spec before, and a request must wake it all the same: with the
    bounds that are written now, and the pools that are there.
    """
    scaling = scaling_in(seen.body)
    is_served = any(each.wanted for each in seen.deployments.values())
    if seen.service is not None or seen.gateway is None or scaling is None or is_served:
        return None
    advises, spec = scaling.mode == "Advise", seen.body["spec"]
    if advises:  # spec.replicas is what the other autoscaler sets
        spec = {**spec, "replicas": None}
    scale = frozenset(seen.deployments) - replicas_in({"spec": spec}).keys()
    if scaling.min_replicas or not scale or not seen.told.keys.valid:
        return None
    return Scaled(
        policy=policy_of(scaling, 0),
        classes=classes_of(seen.told.document),
        pools=tuple(PoolFacts(pool, 0) for pool in sorted(scale)),
        open_pools=scale,
        pods=seen.pods,
        keys=seen.told.keys.valid,
        advises=advises,
    )


def policy_of(scaling: api.Scaling, fixed: int) -> ScalingPolicy:
    """Return what a spec asks of its scaling.

    Args:
        scaling: What is written; what is not is as in `weir_core.scale`.
        fixed: Replicas of pools that do not scale: the bounds are those of the others.
    """
    policy = ScalingPolicy(
        min_replicas=scaling.min_replicas + fixed,
        max_replicas=scaling.max_replicas + fixed,
        target_load=scaling.target_load,
        batch_target_load=scaling.batch_target_load,
        idle_timeout_s=scaling.idle_s,
    )
    behavior = scaling.behavior
    return replace(
        policy,
        scale_up=_direction(behavior.scale_up, policy.scale_up),
        scale_down=_direction(behavior.scale_down, policy.scale_down),
    )


def _direction(written: api.ScalingRules, usual: Direction) -> Direction:
    window_s = written.stabilization_window_seconds
    rates = tuple(RatePolicy(one.type, one.value, one.period_seconds) for one in written.policies)
    return Direction(
        usual.window_s if window_s is None else float(window_s),
        rates or usual.policies,
        written.select_policy,
    )


def classes_of(document: PolicyDocument) -> tuple[ClassTarget, ...]:
    """Return what the classes that a service accepts are promised."""
    accepted = document.accepted_classes
    return tuple(
        ClassTarget(
            one.name,
            one.rank,
            one.max_queue_wait_s if one.ttft_target_s is None else one.ttft_target_s,
        )
        for one in document.classes or BUILT_IN_CLASSES
        if not accepted or one.name in accepted
    )
