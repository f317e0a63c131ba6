"""From the resources users write to what the scheduler works with, and nothing else.

The scheduler knows no resource types and the resource types no scheduler; this is the one place
that knows both.
"""

from __future__ import annotations

from weir_core.api.priorityclass import InferencePriorityClass
from weir_core.api.tenant import InferenceTenant
from weir_core.sched.types import ClassPolicy, TenantPolicy
from weir_core.units import parse_duration


def class_policy(resource: InferencePriorityClass) -> ClassPolicy:
    """Return the scheduling policy of a priority class, under the resource's name."""
    spec = resource.spec
    return ClassPolicy(
        name=resource.metadata.name,
        rank=spec.rank,
        weight=spec.weight,
        min_share=spec.min_share,
        preemptible=spec.preemptible,
        ttft_target_s=_seconds(spec.ttft_target_ms),
        tpot_target_s=_seconds(spec.tpot_target_ms),
        max_queue_wait_s=parse_duration(spec.max_queue_wait),
        shed=spec.shed,
    )


def tenant_policy(resource: InferenceTenant) -> TenantPolicy:
    """Return the scheduling policy of a tenant, under the resource's name."""
    limits = resource.spec.limits
    return TenantPolicy(
        name=resource.metadata.name,
        weight=resource.spec.weight,
        max_requests=limits.max_requests,
        tokens_per_minute=limits.tokens_per_minute,
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000.0
