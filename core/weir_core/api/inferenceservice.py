"""InferenceService: one model, served by one or more pools of engine pods.

Descriptions end up in the CRD, so `kubectl explain infs.spec` prints them; each gives the unit
and what happens when the field is left out. The schema carries no defaults of its own: what a
user did not write stays unwritten in the cluster, so that a new default in a later Weir never
changes an old object, nor the hash of its pods.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from weir_core.api.base import (
    DnsLabel,
    Duration,
    FreeForm,
    Model,
    ObjectMeta,
    Quantity,
    keyed_by,
    rules,
)
from weir_core.api.engine import EngineSpec
from weir_core.api.engine_flags import forbidden_flag
from weir_core.api.model import ModelSpec
from weir_core.api.pool_engine import PoolEngine
from weir_core.api.status import InferenceServiceStatus

DEFAULT_POOL = "default"


class Accelerator(Model):
    """The accelerators of one replica."""

    resource: str = Field(
        default="nvidia.com/gpu",
        description="Extended resource to ask for. Default: nvidia.com/gpu.",
        max_length=253,
    )
    count: int = Field(
        default=1, ge=0, le=64, description="How many per replica; 0 is CPU. Default: 1."
    )


class Resources(Model):
    """Requests and limits of the engine container."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict,
        description="Default: of what limits does not name, 1 cpu and 4Gi memory for each "
        "accelerator (500m and 2Gi without one), and 1Gi ephemeral-storage.",
    )
    limits: dict[str, Quantity] = Field(default_factory=dict, description="Default: none.")


class Pool(Model):
    """Replicas on one kind of hardware; each pool is a Deployment."""

    name: DnsLabel = Field(description="Name of the pool, unique in the service.")
    replicas: Annotated[int, Field(ge=0, le=10000)] | None = Field(
        default=None,
        description="Replicas of this pool. Default: spec.replicas, or what spec.scaling decides, "
        "and `kubectl scale` changes it; at most one pool may leave it out.",
    )
    accelerator: Accelerator = Field(
        default=Accelerator(), description="Accelerators of one replica. Default: one NVIDIA GPU."
    )
    resources: Resources = Field(
        default=Resources(),
        description="Engine container's other resources. Default: a few requests.",
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels a node must have. Default: any node."
    )
    tolerations: tuple[FreeForm, ...] = Field(
        default=(), description="Taints to tolerate, as in a pod. Default: none.", max_length=32
    )
    cost: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="Cost of one replica for an hour, in any one currency; cheaper pools are "
        "preferred. Default: all pools cost the same.",
    )
    engine: PoolEngine = Field(
        default=PoolEngine(),
        description="What differs from spec.engine on this hardware. Default: nothing.",
    )
    pod_template: FreeForm | None = Field(
        default=None,
        description="Strategic-merge patch over the pool's pod template, after that of "
        "spec.podTemplate. Default: none.",
    )


class Scaling(Model):
    """Bounds for the number of replicas; exclusive with spec.replicas."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
                "minReplicas must not exceed maxReplicas",
            ),
        )
    )

    min_replicas: int = Field(default=1, ge=0, le=10000, description="Lower bound. Default: 1.")
    max_replicas: int = Field(ge=1, le=10000, description="Upper bound.")
    idle_timeout: Duration | None = Field(
        default=None,
        description="With minReplicas 0: how long without a request until the last replica goes, "
        "like 10m. Default: never.",
    )

    @model_validator(mode="after")
    def _bounds_agree(self) -> Scaling:
        if self.min_replicas > self.max_replicas:
            raise ValueError("minReplicas must not exceed maxReplicas")
        return self


class Admission(Model):
    """Who may enter, and how much a replica holds."""

    default_class: DnsLabel | None = Field(
        default=None,
        description="Priority class of requests that name none. Default: standard.",
    )
    classes: tuple[DnsLabel, ...] = Field(
        default=(),
        description="Priority classes this service accepts. Default: all.",
        max_length=32,
    )
    anonymous_class: DnsLabel | None = Field(
        default=None,
        description="Priority class of requests without an API key, and the highest they may ask "
        "for. Default: none, which refuses them (except `weir up` on the loopback, while there "
        "are no tenants).",
    )
    keep_alive: Duration | None = Field(
        default=None,
        description="A stream that waits so long gets its head, status 200, and a comment each "
        "such time, so that clients and proxies do not give it up; a refusal after that comes as "
        "an event of the stream. Default: none, which keeps the status honest.",
    )
    max_queued: int = Field(
        default=1024,
        ge=1,
        le=1000000,
        description="Requests that wait for the engine in one replica at most; above it the newest "
        "of the lowest class gets 429. Default: 1024.",
    )
    max_body_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=1024,
        le=1024 * 1024 * 1024,
        description="Largest request body, in bytes; above it clients get 413. "
        "Default: 16777216 (16 MiB).",
    )


class Routing(Model):
    """How sidecars choose among replicas. No fields yet."""


class Tracing(Model):
    """OpenTelemetry export of sidecar and engine."""

    endpoint: str = Field(
        description="OTLP/HTTP endpoint, for example http://collector:4318.",
        pattern=r"^https?://[^\s]+$",
        max_length=512,
    )
    sampling_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of requests traced when the client did not decide, 0 to 1. Default: 1.",
    )


class Rollout(Model):
    """How pods are replaced when the spec changes."""

    max_surge: Quantity = Field(
        default=1,
        description="Pods above the wanted number during a rollout, a count or a percentage. 0 "
        "where there is no spare accelerator. Default: 1.",
    )
    max_unavailable: Quantity = Field(
        default=0,
        description="Pods that may be missing during a rollout, a count or a percentage. "
        "Default: 0.",
    )


class InferenceServiceSpec(Model):
    """What the user wants served."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!(has(self.replicas) && has(self.scaling))",
                "replicas and scaling exclude each other",
            ),
            (
                "!has(self.pools) || self.pools.filter(p, !has(p.replicas)).size() <= 1",
                "at most one pool may leave replicas out",
            ),
            (
                "!(has(self.replicas) || has(self.scaling)) || !has(self.pools) || "
                "self.pools.size() == 0 || self.pools.exists(p, !has(p.replicas))",
                "every pool sets its own replicas, so spec.replicas and spec.scaling would have "
                "no effect: leave them out, or leave one pool's replicas out",
            ),
        )
    )

    model: ModelSpec = Field(description="The model to serve.")
    engine: EngineSpec = Field(
        default=EngineSpec(), description="The vLLM process. Default: vLLM's own settings."
    )
    replicas: Annotated[int, Field(ge=0, le=10000)] | None = Field(
        default=None,
        description="Replicas of the pool that sets none of its own. Default: 1, or what scaling "
        "decides.",
    )
    pools: tuple[Pool, ...] = Field(
        default=(),
        description="Hardware pools, one Deployment each. Default: one pool named `default` with "
        "one NVIDIA GPU a replica.",
        max_length=16,
        json_schema_extra=keyed_by("name"),
    )
    scaling: Scaling | None = Field(default=None, description="Autoscaling. Default: none.")
    admission: Admission = Field(
        default=Admission(), description="Who may enter. Default: every class."
    )
    routing: Routing = Field(
        default=Routing(), description="How replicas are chosen. Default: least loaded."
    )
    tracing: Tracing | None = Field(default=None, description="Tracing. Default: none.")
    rollout: Rollout = Field(
        default=Rollout(), description="How pods are replaced. Default: one more, then one less."
    )
    pod_template: FreeForm | None = Field(
        default=None,
        description="Strategic-merge patch over the rendered pod template: an object with "
        "`metadata` and `spec`. Default: none.",
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> InferenceServiceSpec:
        """Repeat what CEL checks, for `weir up` and for clusters with an older CRD."""
        if self.replicas is not None and self.scaling is not None:
            raise ValueError("replicas and scaling exclude each other")
        names = [pool.name for pool in self.pools]
        if len(set(names)) < len(names):
            raise ValueError("pool names must be unique")
        open_pools = [pool for pool in self.pools if pool.replicas is None]
        if len(open_pools) > 1:
            raise ValueError("at most one pool may leave replicas out")
        if self.pools and not open_pools and (self.replicas is not None or self.scaling):
            raise ValueError("every pool sets its own replicas; leave replicas and scaling out")
        refused = forbidden_flag(self.engine.args)
        if refused is not None:
            index, flag, why = refused
            raise ValueError(f"engine.args[{index}]: {flag} is reserved for Weir: {why}")
        return self

    @property
    def hardware_pools(self) -> tuple[Pool, ...]:
        """The pools, or the one a spec without pools means."""
        return self.pools or (Pool(name=DEFAULT_POOL),)

    def engine_of(self, pool: Pool) -> EngineSpec:
        """Return the engine of the replicas of `pool`."""
        return pool.engine.over(self.engine)

    def place_of(self, pool: Pool) -> str:
        """Return the path of `pool`, as the user writes it."""
        names = [each.name for each in self.hardware_pools]
        return f"spec.pools[{names.index(pool.name)}]"

    def replicas_of(self, pool: Pool) -> int:
        """Return how many replicas `pool` should have."""
        if pool.replicas is not None:
            return pool.replicas
        if self.scaling is not None:
            return max(self.scaling.min_replicas, 1)
        return 1 if self.replicas is None else self.replicas


class InferenceService(Model):
    """A model served by pools of engine pods."""

    api_version: Literal["serving.weir.dev/v1alpha1"] = "serving.weir.dev/v1alpha1"
    kind: Literal["InferenceService"] = "InferenceService"
    metadata: ObjectMeta
    spec: InferenceServiceSpec
    status: InferenceServiceStatus | None = None
