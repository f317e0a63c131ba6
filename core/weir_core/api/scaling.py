"""How replicas follow the work; windows and rates in the words of Kubernetes' HPA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from weir_core.api.base import (
    Contradiction,
    Duration,
    FreeForm,
    Integer,
    Model,
    Number,
    Rule,
    none_of,
    rules,
)
from weir_core.units import Seconds, parse_duration

IDLE = (
    "has no effect, because replicas go to zero with minReplicas: 0 alone; write that, or leave "
    "idleTimeout out"
)
NO_GATEWAYS = (
    "have no effect, because only a service with minReplicas: 0 has gateways; write that, or leave "
    "gateways out"
)
NO_TIME = "must be longer than no time at all; write it like 10m"
BOUNDS = "must not exceed maxReplicas; write that number or less"
LOADS = (
    "targetLoad exceeds batchTargetLoad, which counts the work of all classes; write it lower, or "
    "batchTargetLoad higher"
)
SCALES = "(has(self.scaling) && (!has(self.scaling.mode) || self.scaling.mode == 'Apply'))"
"""In CEL, of a service's spec: no other autoscaler sets the number."""
TARGET_LOAD = 0.78
BATCH_TARGET_LOAD = 0.85
IDLE_TIMEOUT = "10m"


class ScalingPolicy(Model):
    """Most of a change within a period."""

    type: Literal["Pods", "Percent"] = Field(
        description="What `value` counts: replicas, or percent of those at the period's beginning."
    )
    value: Integer = Field(ge=1, le=10000, description="Most of the change.")
    period_seconds: Integer = Field(
        default=60, ge=1, le=1800, description="Length of the period, in seconds. Default: 60."
    )


class ScalingRules(Model):
    """How fast the number of replicas may change in one direction."""

    stabilization_window_seconds: Integer | None = Field(
        default=None,
        ge=0,
        le=3600,
        description="The mildest number of so many seconds counts. Default: 0 up, 900 down.",
    )
    select_policy: Literal["Max", "Min", "Disabled"] = Field(
        default="Max",
        description="Which of several policies counts: the one that allows most, or least; "
        "`Disabled` allows no change in this direction. Default: Max.",
    )
    policies: tuple[ScalingPolicy, ...] = Field(
        default=(),
        description="Bounds on the change. Default: none up, one replica in 60 s down.",
        max_length=8,
    )


class ScalingBehavior(Model):
    """Windows and rates of both directions, as in a HorizontalPodAutoscaler."""

    scale_up: ScalingRules = Field(
        default=ScalingRules(), description="Growing. Default: at once, without a bound."
    )
    scale_down: ScalingRules = Field(
        default=ScalingRules(),
        description="Shrinking; never more than one replica at a time. Default: after 900 s, one "
        "replica in 60 s.",
    )


class Gateways(Model):
    """Where the pods run that stand in for replicas; they need no accelerator."""

    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels a node must have. Default: any node."
    )
    tolerations: tuple[FreeForm, ...] = Field(
        default=(), description="Taints to tolerate, as in a pod. Default: none.", max_length=32
    )


class Scaling(Model):
    """Replicas follow the work; exclusive with spec.replicas, except with `mode: Advise`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
                BOUNDS,
                field=".minReplicas",
            ),
            Rule(
                "!has(self.idleTimeout) || (has(self.minReplicas) && self.minReplicas == 0)",
                IDLE,
                field=".idleTimeout",
            ),
            Rule(
                "!has(self.gateways) || (has(self.minReplicas) && self.minReplicas == 0)",
                NO_GATEWAYS,
                field=".gateways",
            ),
            Rule(
                f"(has(self.targetLoad) ? self.targetLoad : {TARGET_LOAD}) <= "
                f"(has(self.batchTargetLoad) ? self.batchTargetLoad : {BATCH_TARGET_LOAD})",
                LOADS,
            ),
        )
    )

    mode: Literal["Apply", "Advise"] = Field(
        default="Apply",
        description="`Apply` sets the number of replicas. `Advise` leaves spec.replicas to another "
        "autoscaler, such as an HPA or KEDA, and tells the number to it alone. Default: Apply.",
    )
    min_replicas: Integer = Field(
        default=1,
        ge=0,
        le=10000,
        description="Lower bound. With 0 a service that is idle has no replicas, and the next "
        "request starts one. Default: 1.",
    )
    max_replicas: Integer = Field(ge=1, le=10000, description="Upper bound.")
    target_load: Number = Field(
        default=TARGET_LOAD,
        ge=0.1,
        le=1,
        description="Share of the replicas' time that the work of classes with a target under 30 s "
        f"may take, 0.1 to 1; the rest absorbs bursts. Default: {TARGET_LOAD}.",
    )
    batch_target_load: Number = Field(
        default=BATCH_TARGET_LOAD,
        ge=0.1,
        le=1,
        description="The same with the work of all classes, 0.1 to 1. "
        f"Default: {BATCH_TARGET_LOAD}.",
    )
    behavior: ScalingBehavior = Field(
        default=ScalingBehavior(),
        description="Windows and rates, as in a HorizontalPodAutoscaler. Default: up at once, down "
        "one by one after 15 minutes.",
    )
    idle_timeout: Duration | None = Field(
        default=None,
        description="With `minReplicas: 0`: the last replica goes when no request came, waited or "
        f"ran for so long. Default: {IDLE_TIMEOUT}.",
    )

    gateways: Gateways = Field(
        default=Gateways(),
        description="With `minReplicas: 0`: the nodes of the gateways, which stand in for "
        "replicas. Those of the pools do not count for them. Default: any without a taint.",
    )

    @property
    def idle_s(self) -> Seconds:
        """Time without a request after which the last replica goes, where it may."""
        return parse_duration(self.idle_timeout or IDLE_TIMEOUT)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Scaling:
        return none_of(self, self._wrong())

    def _wrong(self) -> Iterator[Contradiction]:
        if self.min_replicas > self.max_replicas:
            yield Contradiction(("minReplicas",), f"{self.min_replicas} {BOUNDS}")
        if self.idle_timeout is not None and self.min_replicas > 0:
            yield Contradiction(("idleTimeout",), f"{self.idle_timeout} {IDLE}")
        elif self.idle_s <= 0:
            yield Contradiction(("idleTimeout",), f"{self.idle_timeout} {NO_TIME}")
        if "gateways" in self.model_fields_set and self.min_replicas > 0:
            yield Contradiction(("gateways",), NO_GATEWAYS)
        if self.target_load > self.batch_target_load:
            yield Contradiction((), LOADS)
