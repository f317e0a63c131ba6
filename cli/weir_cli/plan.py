"""From the user's files to the replicas this machine will run.

Everything that can be refused is refused here, before the first process starts: a pod that only a
cluster can run, GPUs that are not there, addresses that are taken.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from weir_cli import machine, policies, room
from weir_cli.documents import Documents, Object, load
from weir_cli.pods import Place, ReplicaPlan, Template, plan_replica
from weir_cli.records import gateway_of
from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService, Pool
from weir_core.errors import InvalidSpec, MachineUnfit
from weir_core.wire.policies import PolicyDocument
from weir_operator.render import deployment_name, pod_templates, policies_name

PORT_STEP = 10
"""The first service gets the port asked for, the next this much more, and so on."""

LOCAL_ACCELERATOR = "nvidia.com/gpu"


@dataclass(frozen=True)
class Ground:
    """Where on this machine an instance stands."""

    host: str
    port: int
    scratch: Path
    cache: Path
    gpus: tuple[str, ...]

    @property
    def models(self) -> Path:
        """Weights, kept for later runs."""
        return self.cache / "models"


@dataclass(frozen=True)
class GatewayPlan:
    """What a service's public address has in common with a replica.

    Attributes:
        name: By which the replicas know it.
        address: Where its peer port is.
        policies_file: Where it reads what the sidecars are told.
    """

    name: str
    address: str
    policies_file: Path


@dataclass(frozen=True)
class ServicePlan:
    """One InferenceService on this machine: its public address and its replicas."""

    name: str
    model: str
    host: str
    port: int
    gateway: GatewayPlan
    replicas: tuple[ReplicaPlan, ...]
    """Every one that there may be: a service that scales has places up to `maxReplicas`."""
    first: tuple[str, ...]
    """Names of those that are started at the beginning."""
    asked: tuple[room.Room, ...]
    """What as many replicas as there may be at a time ask for."""
    sleeps: bool
    """It has no replica while no request comes."""
    namespace: str
    policies: PolicyDocument
    """What its sidecars are told at the start."""
    models: Path
    """Where the weights are."""

    @property
    def url(self) -> str:
        """Where clients reach it from this machine."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://{host}:{self.port}"

    @property
    def object(self) -> Object:
        """The InferenceService it is of."""
        return self.namespace, self.name


@dataclass(frozen=True)
class _Seat:
    """One replica to be: its pod template and what it needs."""

    service: InferenceService
    pool: Pool
    template: Template
    name: str
    is_first: bool
    """It is started at the beginning."""


class _Spot(NamedTuple):
    """What a seat gets of the machine."""

    seat: _Seat
    address: str
    devices: Sequence[str]
    number: int


def plan_services(
    documents: Documents, ground: Ground, claims: ExitStack, new_key: Callable[[], str]
) -> list[ServicePlan]:
    """Return the plan of every InferenceService in the files.

    Args:
        documents: What the files say.
        ground: Where on this machine it is to stand.
        claims: The addresses and GPUs of replicas and gateways are theirs until it closes.
        new_key: Makes a key for the sidecars of a service: 64 random hex digits.

    Raises:
        InvalidSpec: There is none, or the renderer refuses one.
        MachineUnfit: This machine cannot run it.
    """
    documents.check_serves()
    told = [policies.compiled_whole(documents, service) for service in documents.services]
    for service, document in zip(documents.services, told, strict=True):
        policies.check_reachable(service.metadata.name, document, ground.host)
    seats = [seat for service in documents.services for seat in _seats(service)]
    wanted = [_gpus_wanted(seat.pool) for seat in seats]
    gpus = machine.assign_gpus(wanted, machine.claim_gpus(sum(wanted), ground.gpus, claims))
    addresses = machine.claim_addresses(len(seats) + len(documents.services), claims)
    given = zip(seats, addresses, gpus, itertools.count(1), strict=False)
    spots = [_Spot(*each) for each in given]
    plans = []
    for index, service in enumerate(documents.services):
        own = [spot for spot in spots if spot.seat.service is service]
        gateway = _gateway(service, addresses[len(seats) + index], ground, index)
        peers = {gateway.name: gateway.address, **{spot.seat.name: spot.address for spot in own}}
        document = policies.with_peers(told[index], peers, new_key(), gateway.name)
        secrets = {**documents.secrets, **_policies_secret(service, document)}
        plans.append(
            ServicePlan(
                name=service.metadata.name,
                model=service.spec.model.name,
                host=ground.host,
                port=ground.port + PORT_STEP * index,
                gateway=gateway,
                replicas=tuple(_replica(spot, secrets, ground) for spot in own),
                first=tuple(spot.seat.name for spot in own if spot.seat.is_first),
                asked=_asked(service, [spot.seat for spot in own]),
                sleeps=service.spec.may_sleep,
                namespace=service.metadata.namespace,
                policies=document,
                models=ground.models,
            )
        )
    return plans


def _gateway(service: InferenceService, address: str, ground: Ground, index: int) -> GatewayPlan:
    return GatewayPlan(
        name=gateway_of(service.metadata.name),
        address=address,
        policies_file=ground.scratch / f"gateway-{index + 1}" / labels.POLICIES_FILE,
    )


def _policies_secret(
    service: InferenceService, document: PolicyDocument
) -> dict[Object, Mapping[str, str]]:
    """Return the Secret the operator would write, which the pods mount."""
    held = {labels.POLICIES_FILE: document.encode().decode()}
    return {(service.metadata.namespace, policies_name(service)): held}


def _replica(
    spot: _Spot, secrets: Mapping[Object, Mapping[str, str]], ground: Ground
) -> ReplicaPlan:
    seat = spot.seat
    place = Place(
        name=seat.name,
        namespace=seat.service.metadata.namespace,
        address=spot.address,
        scratch=ground.scratch / str(spot.number),
        models=ground.models,
        secrets=secrets,
        extra_env=_machine_env(ground, spot.devices),
    )
    return plan_replica(seat.template, place, seat.service.metadata.name, seat.pool.name)


def _seats(service: InferenceService) -> list[_Seat]:
    """Return the replicas that there may be of a service, in the order of its pools.

    Raises:
        InvalidSpec: A replica spreads over several nodes.
    """
    for pool in filter(service.spec.spreads, service.spec.hardware_pools):
        raise InvalidSpec(
            f"{service.spec.place_of(pool)}.engine.parallelism.nodes",
            f"pool {pool.name!r} spreads each replica over several nodes, and `weir up` has one; "
            "write nodes: 1 here, or apply the file to a cluster with LeaderWorkerSet",
        )
    # Here all models are in one place, which outlives every run.
    model = service.spec.model.model_copy(update={"cache": None})
    spec = service.spec.model_copy(update={"model": model})
    templates = pod_templates(service.model_copy(update={"spec": spec}))
    return [
        _Seat(
            service=service,
            pool=pool,
            template=templates[pool.name],
            name=f"{deployment_name(service, pool)}-{number}",
            is_first=number <= service.spec.replicas_of(pool),
        )
        for pool in service.spec.hardware_pools
        for number in range(1, _most(service, pool) + 1)
    ]


def _most(service: InferenceService, pool: Pool) -> int:
    """Return how many replicas a pool may have."""
    scaling = service.spec.scaling
    scales = scaling is not None and pool.replicas is None
    return scaling.max_replicas if scaling and scales else service.spec.replicas_of(pool)


def _asked(service: InferenceService, seats: Sequence[_Seat]) -> tuple[room.Room, ...]:
    """Return what replicas ask for when there are as many as there may be, the largest ones."""
    fixed = [room.asked_by(seat.template) for seat in seats if seat.pool.replicas is not None]
    others = [room.asked_by(seat.template) for seat in seats if seat.pool.replicas is None]
    scaling = service.spec.scaling
    most = len(others) if scaling is None else scaling.max_replicas
    return (*fixed, *sorted(others, reverse=True)[:most])


def _gpus_wanted(pool: Pool) -> int:
    accelerator = pool.accelerator
    if accelerator.count and accelerator.resource != LOCAL_ACCELERATOR:
        raise MachineUnfit(
            f"pool {pool.name!r} asks for {accelerator.resource}; `weir up` can give out only "
            f"{LOCAL_ACCELERATOR}"
        )
    return accelerator.count


def _machine_env(ground: Ground, devices: Sequence[str]) -> Mapping[str, str]:
    """Return what a process must know of this machine, beyond what its pod says."""
    env = {
        # Nobody keeps a list of endpoints that would have to forget a replica first.
        labels.ENV_LAME_DUCK_S: "0",
        # What vLLM compiles for this machine outlives the run, like the weights.
        "XDG_CACHE_HOME": str(ground.cache / "xdg"),
        "PYTHONUNBUFFERED": "1",
    }
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return env


def with_replicas(documents: Documents, replicas: int) -> Documents:
    """Return the documents with every service's open pool set to `replicas`.

    Raises:
        InvalidSpec: A service's pools all set their own number.
    """
    services = []
    for service in documents.services:
        spec = service.spec
        if all(pool.replicas is not None for pool in spec.pools) and spec.pools:
            raise InvalidSpec(
                "--replicas", f"every pool of {service.metadata.name} sets its own number"
            )
        spec = spec.model_copy(update={"replicas": replicas, "scaling": None})
        services.append(service.model_copy(update={"spec": spec}))
    return dataclasses.replace(documents, services=tuple(services))


def read(files: Sequence[Path], replicas: int | None) -> Documents:
    """Read the files, with another number of replicas where one is given.

    Raises:
        InvalidSpec: A file is not what Weir can take.
    """
    found = load(files)
    return found if replicas is None else with_replicas(found, replicas)
