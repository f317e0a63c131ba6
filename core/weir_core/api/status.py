"""What the operator observed of an InferenceService: conditions and replicas."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from weir_core.api.base import Model, keyed_by

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Condition(Model):
    """One aspect of the service's state, as Kubernetes writes conditions."""

    type: str = Field(description="Which aspect.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(description="Why, as one CamelCase word.")
    message: str = Field(default="", description="Why, for a person.")
    observed_generation: int = Field(default=0, description="Generation this speaks of.")
    last_transition_time: Time = Field(description="When the status last changed.")


class PoolStatus(Model):
    """Replicas of one pool."""

    name: str = Field(description="Name of the pool.")
    replicas: int = Field(default=0, description="Pods that exist.")
    ready_replicas: int = Field(default=0, description="Pods that take requests.")
    updated_replicas: int = Field(default=0, description="Pods of the newest template.")
    start_seconds: int | None = Field(
        default=None,
        description="Seconds from the start of an engine until its replica took requests, of the "
        "newest start that was measured.",
    )
    started_at: Time | None = Field(default=None, description="When that engine started.")


class InferenceServiceStatus(Model):
    """What was observed."""

    observed_generation: int = Field(default=0, description="Generation last acted upon.")
    conditions: tuple[Condition, ...] = Field(
        default=(),
        description="Ready, SpecValid, NetworkReady, WorkloadsReady, RouterReady, ScalingReady, "
        "ModelReady, PrefetchReady, PoliciesReady, SchedulingReady, AdaptersReady; Reconciling and "
        "Stalled while they are true.",
        json_schema_extra=keyed_by("type"),
    )
    replicas: int = Field(
        default=0,
        description="Pods of the pool that scales; of all pools where none leaves replicas out.",
    )
    ready_replicas: int = Field(default=0, description="Pods that take requests, over all pools.")
    pools: tuple[PoolStatus, ...] = Field(default=(), description="Replicas by pool.")
    selector: str = Field(default="", description="Label selector of the pods, for autoscalers.")
    url: str = Field(default="", description="Where clients inside the cluster reach the model.")
