"""Typed views of the objects that the operator reads: of each, only what it looks at."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from weir_core.api import labels
from weir_operator.render import Manifest
from weir_operator.render.naming import GROUP_SET


class _View(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Fields are named as Kubernetes names them; the others are left out."""


class Meta(_View, frozen=True):
    """Any object's metadata."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None


class _OfAPool(_View, frozen=True):
    """An object of a service's pool."""

    metadata: Meta

    @property
    def pool(self) -> str:
        """The pool it belongs to; empty for none."""
        return self.metadata.labels.get(labels.POOL, "")

    @property
    def is_gateway(self) -> bool:
        """Whether it stands in for replicas, and has no engine."""
        return self.metadata.labels.get(labels.COMPONENT) == labels.GATEWAY

    @property
    def leaves(self) -> bool:
        """Whether it is on its way out."""
        return self.metadata.deletion_timestamp is not None


class ObjectCondition(_View, frozen=True):
    """A condition of a pod or a Deployment."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class Waiting(_View, frozen=True):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class Running(_View, frozen=True):
    """Since when a container runs."""

    started_at: datetime | None = None


class Terminated(_View, frozen=True):
    """How a container ended."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""
    finished_at: datetime | None = None


class ContainerState(_View, frozen=True):
    """One of three."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class Container(_View, frozen=True):
    """A container's status."""

    name: str
    started: bool | None = None
    restart_count: int = 0
    container_id: str = msgspec.field(name="containerID", default="")
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return self.state.running is not None

    @property
    def running_since(self) -> datetime | None:
        """When its process was started; None where it does not run."""
        return None if self.state.running is None else self.state.running.started_at

    @property
    def ended(self) -> Terminated | None:
        """How it ended last, if it ever did."""
        return self.state.terminated or self.last_state.terminated

    @property
    def has_failed(self) -> bool:
        """Whether its last run, still to be repeated, ended badly."""
        return not self.is_running and self.ended is not None and self.ended.exit_code != 0

    @property
    def last_words(self) -> str:
        """What it wrote before it ended, or why it waits."""
        waiting = self.state.waiting or Waiting()
        if self.ended is None:
            return waiting.message or waiting.reason
        code = f"{self.ended.reason or 'Error'}, exit code {self.ended.exit_code}"
        return self.ended.message or code


class Volume(_View, frozen=True):
    """A pod's volume."""

    name: str


class Resources(_View, frozen=True):
    """What a container asks for."""

    requests: dict[str, str] = {}


class ContainerSpec(_View, frozen=True):
    """A container of a pod's spec."""

    name: str
    resources: Resources = Resources()


class PodSpec(_View, frozen=True):
    """A pod's spec."""

    volumes: tuple[Volume, ...] = ()
    node_name: str = ""
    scheduler_name: str = "default-scheduler"
    resource_claims: tuple[dict[str, Any], ...] = ()
    node_selector: dict[str, str] = {}
    affinity: dict[str, Any] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    topology_spread_constraints: tuple[dict[str, Any], ...] = ()
    init_containers: tuple[ContainerSpec, ...] = ()
    containers: tuple[ContainerSpec, ...] = ()

    @property
    def placement(self) -> tuple[Any, ...]:
        """Which nodes it may run on, resources aside."""
        return (
            self.node_selector,
            self.affinity,
            self.tolerations,
            self.topology_spread_constraints,
        )

    @property
    def resources(self) -> set[str]:
        """Everything that a container asks for some amount of."""
        every = (*self.init_containers, *self.containers)
        return {resource for each in every for resource in each.resources.requests}

    def requests(self, resource: str) -> dict[str, str]:
        """Return how much of a resource each container asks for, of those that do."""
        return {
            each.name: each.resources.requests[resource]
            for each in (*self.init_containers, *self.containers)
            if resource in each.resources.requests
        }


class PodStatus(_View, frozen=True):
    """A pod's status."""

    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    conditions: tuple[ObjectCondition, ...] = ()
    init_container_statuses: tuple[Container, ...] = ()
    container_statuses: tuple[Container, ...] = ()


class Pod(_OfAPool, frozen=True):
    """A pod."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def name(self) -> str:
        """Its name."""
        return self.metadata.name

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self._ready is not None

    @property
    def ready_since(self) -> datetime | None:
        """When it last began to take requests; None where it takes none."""
        return None if self._ready is None else self._ready.last_transition_time

    @property
    def _ready(self) -> ObjectCondition | None:
        conditions = self.status.conditions
        return next((c for c in conditions if (c.type, c.status) == ("Ready", "True")), None)

    @property
    def has_ended(self) -> bool:
        """Whether none of its containers will ever run again; its object stays for a while."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def template_hash(self) -> str:
        """Which template of its Deployment it was made from."""
        return self.metadata.labels.get("pod-template-hash", "")

    @property
    def group_set(self) -> str:
        """The LeaderWorkerSet it belongs to; empty for none."""
        return self.metadata.labels.get(labels.GROUP_SET, "")

    @property
    def ordinal(self) -> int:
        """The number of its group, of which the highest goes first; 0 for one without a group."""
        number = self.name.removeprefix(f"{self.group_set}-") if self.group_set else ""
        return int(number) if number.isdecimal() else 0

    @property
    def unschedulable(self) -> str:
        """Why no node takes it, in the Kubernetes scheduler's words; empty where one does."""
        found = self._unschedulable
        return "" if found is None else found.message or found.reason

    @property
    def unschedulable_since(self) -> datetime | None:
        """When it was first found so."""
        found = self._unschedulable
        return None if found is None else found.last_transition_time

    @property
    def _unschedulable(self) -> ObjectCondition | None:
        what = ("PodScheduled", "False", "Unschedulable")
        conditions = self.status.conditions
        return next((c for c in conditions if (c.type, c.status, c.reason) == what), None)

    @property
    def started_in_s(self) -> float | None:
        """Time from its creation to ready; None before that, and where a container ran twice.

        A pod that was not ready for a while since then seems to have taken longer.
        """
        since, created = self.ready_since, self.metadata.creation_timestamp
        ran_twice = any(each.restart_count for each in self.containers)
        if since is None or created is None or ran_twice:
            return None
        return (since - created).total_seconds()

    @property
    def engine_start(self) -> tuple[str, str]:
        """Which start of which engine this is: the pod's uid and the container's id."""
        return self.metadata.uid, "" if self.engine is None else self.engine.container_id

    @property
    def engine(self) -> Container | None:
        """What is known of its engine's container."""
        engines = (each for each in self.containers if each.name == labels.ENGINE_CONTAINER)
        return next(engines, None)

    @property
    def is_told(self) -> bool:
        """Whether it mounts the document of classes and tenants."""
        return any(each.name == labels.POLICIES_VOLUME for each in self.spec.volumes)

    @property
    def containers(self) -> tuple[Container, ...]:
        """What is known of its containers, those that run first before the others."""
        return (*self.status.init_container_statuses, *self.status.container_statuses)


class DeploymentSpec(_View, frozen=True):
    """A workload's spec."""

    replicas: int = 1


class DeploymentStatus(_View, frozen=True):
    """A workload's status, in replicas."""

    observed_generation: int = 0
    replicas: int = 0
    updated_replicas: int = 0
    ready_replicas: int = 0
    available_replicas: int = 0
    conditions: tuple[ObjectCondition, ...] = ()


class Deployment(_OfAPool, frozen=True):
    """A pool's workload: a Deployment, or a LeaderWorkerSet whose groups are the replicas."""

    kind: str = "Deployment"
    spec: DeploymentSpec = DeploymentSpec()
    status: DeploymentStatus = DeploymentStatus()

    @property
    def is_of_groups(self) -> bool:
        """Whether each replica is a group of pods."""
        return self.kind == GROUP_SET

    def counted(self, pods: Iterable[Pod]) -> Deployment:
        """Return it with what its pods say, where its own status says too little.

        LeaderWorkerSet's does not tell which of its generations it is of, and counts a group whose
        workers are on their way out. A leader is ready when its whole group works.
        """
        if not self.is_of_groups:
            return self
        mine = [each for each in pods if each.group_set == self.metadata.name]
        stay = [each for each in mine if not (each.leaves or each.has_ended)]
        newest = self.metadata.annotations.get(labels.SPEC_HASH)
        ready = sum(each.is_ready for each in stay)
        status = DeploymentStatus(
            observed_generation=self.metadata.generation,
            replicas=len(mine),
            updated_replicas=sum(
                each.metadata.annotations.get(labels.SPEC_HASH) == newest for each in stay
            ),
            ready_replicas=ready,
            available_replicas=ready,
        )
        return msgspec.structs.replace(self, status=status)

    @property
    def wanted(self) -> int:
        """Its replicas once it has taken over from the pools that left the spec."""
        noted = self.metadata.annotations.get(labels.REPLICAS_TO_COME, "")
        return int(noted) if noted.isdigit() else self.spec.replicas


V = TypeVar("V", bound=_View)


def view(type_: type[V], manifest: Manifest) -> V:
    """Return the view of an object.

    Raises:
        msgspec.ValidationError: It is no object of that kind.
    """
    return msgspec.convert(manifest, type_)
