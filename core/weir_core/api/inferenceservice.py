"""InferenceService: one model, served by one or more pools of engine pods.

Descriptions end up in the CRD, so `kubectl explain infs.spec` prints them; each gives the unit
and what happens when the field is left out. The schema carries no defaults of its own: what a
user did not write stays unwritten in the cluster, so that a new default in a later Weir never
changes an old object, nor the hash of its pods.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from weir_core.api import hardware, service_name
from weir_core.api.base import (
    NAMES_DIFFER,
    Contradiction,
    CountOrShare,
    DnsLabel,
    Duration,
    FreeForm,
    Integer,
    Location,
    Model,
    Number,
    ObjectMeta,
    Quantity,
    Rule,
    Switch,
    check,
    keyed_by,
    none_of,
    rules,
    text,
)
from weir_core.api.engine import EngineSpec
from weir_core.api.model import ModelSpec
from weir_core.api.network import NetworkSpec
from weir_core.api.pod_patch import asked_for, wrong_pod_template
from weir_core.api.pool_engine import PoolEngine
from weir_core.api.scaling import SCALES, Scaling
from weir_core.api.status import InferenceServiceStatus

DEFAULT_POOL = "default"

STUCK = (
    "maxSurge and maxUnavailable are both 0, so that no pod could ever be replaced; write "
    "maxUnavailable: 1 where there is no spare accelerator, or leave maxSurge out"
)
EXCLUSIVE = (
    "replicas and scaling exclude each other; leave one of them out, or write scaling.mode: Advise "
    "if another autoscaler sets replicas"
)
UNREADABLE = (
    "scaling.mode: Advise leaves replicas to another autoscaler, which can read the number only "
    "where it is written; write replicas, the number to begin with"
)
OPEN_POOLS = (
    "at most one pool may leave replicas out, unless spec.scaling sets the number; write replicas "
    "in all others"
)
NO_OPEN_POOL = (
    "every pool sets its own replicas, so spec.replicas and spec.scaling would have no effect: "
    "leave them out, or leave one pool's replicas out"
)


ADAPTERS_OVER_NODES = (
    "an engine that spreads over nodes takes no adapters, because they are fetched on one of its "
    "nodes only; merge the adapter into the model, or write nodes: 1"
)


class Accelerator(Model):
    """The accelerators of one replica."""

    resource: Annotated[str, text(hardware.RESOURCE_PATTERN, hardware.RESOURCE_SAYS, 253)] = Field(
        default=hardware.DEFAULT_RESOURCE,
        description="Extended resource to ask for. Default: nvidia.com/gpu.",
    )
    count: Integer = Field(
        default=1,
        ge=0,
        le=64,
        description="How many per replica, and per node of a replica that spreads over several; 0 "
        "is CPU. Default: 1.",
    )


class Resources(Model):
    """Requests and limits of the engine container."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict,
        description="Default: of what limits does not name, 1 cpu and 4Gi memory for each "
        "accelerator (500m and 2Gi without one), and 1Gi ephemeral-storage.",
        max_length=32,
    )
    limits: dict[str, Quantity] = Field(
        default_factory=dict, description="Default: none.", max_length=32
    )


class Pool(Model):
    """Replicas on one kind of hardware; each pool is a Deployment.

    A pool whose replicas spread over nodes is a LeaderWorkerSet.
    """

    model_config = ConfigDict(json_schema_extra=rules(*hardware.pool_rules()))

    name: DnsLabel = Field(description="Name of the pool, unique in the service.")
    replicas: Annotated[Integer, Field(ge=0, le=10000)] | None = Field(
        default=None,
        description="Replicas of this pool. Default: what spec.scaling decides, or spec.replicas, "
        "which `kubectl scale` changes; at most one pool may leave it out, unless spec.scaling "
        "sets the number.",
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
    cost: Annotated[Number, Field(ge=0)] | None = Field(
        default=None,
        description="Cost of one replica for an hour, in any one currency: spec.scaling uses the "
        "pool first that does the most work for it. Default: 1.",
    )
    spot: Switch = Field(
        default=False,
        description="Its nodes may be taken away at any time: of pools of one cost spec.scaling "
        "uses it first. Default: false.",
    )
    engine: PoolEngine = Field(
        default=PoolEngine(),
        description="What differs from spec.engine on this hardware. Default: nothing.",
    )
    pod_template: Annotated[FreeForm | None, check(wrong_pod_template)] = Field(
        default=None,
        description="Strategic-merge patch over the pool's pod template, after that of "
        "spec.podTemplate. Default: none.",
    )

    @property
    def hourly_cost(self) -> float:
        """Cost of one replica, beside those of the other pools."""
        return 1.0 if self.cost is None else self.cost

    @model_validator(mode="after")
    def _resources_agree_with_accelerator(self) -> Pool:
        return none_of(self, self._wrong())

    def _wrong(self) -> Iterator[Contradiction]:
        for section in ("limits", "requests"):
            asked: dict[str, Any] = getattr(self.resources, section)
            for resource, amount in asked.items():
                wrong = hardware.wrong_amount(
                    self.accelerator.resource, self.accelerator.count, resource, amount
                )
                if wrong is not None:
                    yield Contradiction(("resources", section, resource), wrong)


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
    max_queued: Integer = Field(
        default=1024,
        ge=1,
        le=1000000,
        description="Requests that wait for the engine in one replica at most; above it the newest "
        "of the lowest class gets 429. Default: 1024.",
    )
    max_body_bytes: Integer = Field(
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

    endpoint: Annotated[
        str,
        text(
            r"^https?://[^\s]+$",
            "is not the address of a collector; write it like http://collector:4318",
            512,
        ),
    ] = Field(description="OTLP/HTTP endpoint, for example http://collector:4318.")
    sampling_ratio: Number = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of requests traced when the client did not decide, 0 to 1. Default: 1.",
    )


def _is_none(field: str) -> str:
    return f"(type({field}) == int ? {field} == 0 : {field}.matches('^0+%$'))"


class Rollout(Model):
    """How pods are replaced when the spec changes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                f"!(has(self.maxSurge) && {_is_none('self.maxSurge')} && "
                f"(!has(self.maxUnavailable) || {_is_none('self.maxUnavailable')}))",
                STUCK,
            ),
        )
    )

    max_surge: CountOrShare = Field(
        default=1,
        description="Pods above the wanted number during a rollout, a count or a percentage. 0 "
        "where there is no spare accelerator. Default: 1.",
    )
    max_unavailable: CountOrShare = Field(
        default=0,
        description="Pods that may be missing during a rollout, a count or a percentage. "
        "Default: 0.",
    )
    surge_timeout: Duration = Field(
        default="5m",
        description="How long a pod above the wanted number may find no node with room, where "
        "maxUnavailable is 0. Then replicas are replaced one by one for the rest of the rollout, "
        "each leaving before its successor has its place; the only one that serves never leaves "
        "so. 0s waits for ever. Default: 5m.",
    )

    @model_validator(mode="after")
    def _replaces_pods(self) -> Rollout:
        none = [
            str(each).strip("0") in ("", "%") for each in (self.max_surge, self.max_unavailable)
        ]
        return none_of(self, [Contradiction((), STUCK)] if all(none) else [])


class InferenceServiceSpec(Model):
    """What the user wants served."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(f"!(has(self.replicas) && {SCALES})", EXCLUSIVE),
            Rule(f"has(self.replicas) || !has(self.scaling) || {SCALES}", UNREADABLE),
            Rule(
                f"{SCALES} || !has(self.pools) || "
                "self.pools.filter(p, !has(p.replicas)).size() <= 1",
                OPEN_POOLS,
                field=".pools",
            ),
            Rule(
                "!(has(self.replicas) || has(self.scaling)) || !has(self.pools) || "
                "self.pools.size() == 0 || self.pools.exists(p, !has(p.replicas))",
                NO_OPEN_POOL,
            ),
            *hardware.parallelism_rules(),
        )
    )

    model: ModelSpec = Field(description="The model to serve.")
    engine: EngineSpec = Field(
        default=EngineSpec(), description="The vLLM process. Default: vLLM's own settings."
    )
    replicas: Annotated[Integer, Field(ge=0, le=10000)] | None = Field(
        default=None,
        description="Replicas of the pool that sets none of its own, which an autoscaler may set. "
        "Default: 1, or what scaling decides.",
    )
    pools: Annotated[tuple[Pool, ...], NAMES_DIFFER] = Field(
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
    network: NetworkSpec = Field(
        default=NetworkSpec(),
        description="Sources that its NetworkPolicy admits, on a cluster. Default: the chart's.",
    )
    tracing: Tracing | None = Field(default=None, description="Tracing. Default: none.")
    rollout: Rollout = Field(
        default=Rollout(), description="How pods are replaced. Default: one more, then one less."
    )
    pod_template: Annotated[FreeForm | None, check(wrong_pod_template)] = Field(
        default=None,
        description="Strategic-merge patch over the rendered pod template: an object with "
        "`metadata` and `spec`. Default: none.",
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> InferenceServiceSpec:
        return none_of(
            self, [*self._wrong_replicas(), *self._wrong_hardware(), *self._wrong_patch()]
        )

    def _wrong_replicas(self) -> Iterator[Contradiction]:
        if self.replicas is not None and self.scales:
            yield Contradiction((), EXCLUSIVE)
        if self.replicas is None and self.advises:
            yield Contradiction((), UNREADABLE)
        open_pools = [pool for pool in self.pools if pool.replicas is None]
        if len(open_pools) > 1 and not self.scales:
            yield Contradiction(("pools",), OPEN_POOLS)
        if self.pools and not open_pools and (self.replicas is not None or self.scaling):
            yield Contradiction((), NO_OPEN_POOL)

    def _wrong_hardware(self) -> Iterator[Contradiction]:
        for index, pool in enumerate(self.hardware_pools):
            engine = self.engine_of(pool)
            if any(each.startswith(hardware.PREFILL_CONTEXT_FLAGS) for each in engine.args):
                continue
            wrong = hardware.wrong_count(pool.accelerator.count, engine.parallelism)
            if wrong is not None:
                count = ("pools", index, "accelerator", "count")
                yield Contradiction(count if self.pools else ("engine", "parallelism"), wrong)
        if self.model.slots and any(map(self.spreads, self.hardware_pools)):
            yield Contradiction(("model", "adapters"), ADAPTERS_OVER_NODES)

    def _wrong_patch(self) -> Iterator[Contradiction]:
        for index, pool in enumerate(self.hardware_pools):
            resource, count = pool.accelerator.resource, pool.accelerator.count
            patches: tuple[tuple[Location, FreeForm | None], ...] = (
                (("podTemplate",), self.pod_template),
                (("pools", index, "podTemplate"), pool.pod_template),
            )
            for root, patch in patches:
                for where, amount in asked_for(patch, resource):
                    wrong = hardware.wrong_amount(resource, count, resource, amount)
                    if wrong is not None:
                        yield Contradiction((*root, *where), f"pool {pool.name}: {wrong}")

    @property
    def hardware_pools(self) -> tuple[Pool, ...]:
        """The pools, or the one a spec without pools means."""
        return self.pools or (Pool(name=DEFAULT_POOL),)

    def engine_of(self, pool: Pool) -> EngineSpec:
        """Return the engine of the replicas of `pool`."""
        return pool.engine.over(self.engine)

    def spreads(self, pool: Pool) -> bool:
        """Tell whether each replica of `pool` spreads over several nodes."""
        return self.engine_of(pool).parallelism.nodes > 1

    def place_of(self, pool: Pool) -> str:
        """Return the path of `pool`, as the user writes it."""
        names = [each.name for each in self.hardware_pools]
        return f"spec.pools[{names.index(pool.name)}]"

    def replicas_of(self, pool: Pool) -> int:
        """Return how many replicas `pool` should have."""
        if pool.replicas is not None:
            return pool.replicas
        if self.scales:
            return self.fewest_of(pool)
        return 1 if self.replicas is None else self.replicas

    @property
    def scales(self) -> bool:
        """Whether the number of replicas follows the work, and nothing else sets it."""
        return self.scaling is not None and self.scaling.mode == "Apply"

    @property
    def advises(self) -> bool:
        """Whether another autoscaler sets `replicas`, and is told what the work takes."""
        return self.scaling is not None and self.scaling.mode == "Advise"

    @property
    def open_pools(self) -> tuple[Pool, ...]:
        """Those that set no replicas of their own."""
        return tuple(pool for pool in self.hardware_pools if pool.replicas is None)

    def fewest_of(self, pool: Pool) -> int:
        """Return how many replicas a pool that scales has at least.

        The bound is that of all such pools together, and the cheapest keeps to it.
        """
        assert self.scaling is not None
        cheapest = min(self.open_pools, key=lambda each: (each.hourly_cost, not each.spot))
        return self.scaling.min_replicas if pool.name == cheapest.name else 0

    @property
    def may_sleep(self) -> bool:
        """Whether no replica runs while no request comes, and a gateway stands in for them."""
        fixed = sum(pool.replicas or 0 for pool in self.pools)
        return self.scaling is not None and self.scaling.min_replicas == 0 and not fixed


def _wrong_name(metadata: ObjectMeta) -> Iterator[Contradiction]:
    for wrong in service_name.wrong(metadata.name):
        yield Contradiction(("name",), wrong)


class InferenceService(Model):
    """A model served by pools of engine pods."""

    api_version: Literal["serving.weir.dev/v1alpha1"] = "serving.weir.dev/v1alpha1"
    kind: Literal["InferenceService"] = "InferenceService"
    metadata: Annotated[ObjectMeta, check(_wrong_name)]
    spec: InferenceServiceSpec
    status: InferenceServiceStatus | None = None
