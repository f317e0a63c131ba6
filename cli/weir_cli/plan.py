"""From the user's files to the replicas this machine will run.

Everything that can be refused is refused here, before the first process starts: a pod that only a
cluster can run, GPUs that are not there, addresses that are taken.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weir_cli import machine, policies
from weir_cli.documents import Documents, Object, load
from weir_cli.pods import Place, ReplicaPlan, Template, plan_replica
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


_NOTHING_TOLD: Final = PolicyDocument()


@dataclass(frozen=True)
class ServicePlan:
    """One InferenceService on this machine: its public address and its replicas."""

    name: str
    model: str
    host: str
    port: int
    replicas: tuple[ReplicaPlan, ...]
    namespace: str = "default"
    policies: PolicyDocument = _NOTHING_TOLD
    """What its sidecars are told of classes and tenants at the start."""

    @property
    def url(self) -> str:
        """Where clients reach it from this machine."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True)
class _Seat:
    """One replica to be: its pod template and what it needs."""

    service: InferenceService
    pool: Pool
    template: Template
    name: str


def plan_services(documents: Documents, ground: Ground, claims: ExitStack) -> list[ServicePlan]:
    """Return the plan of every InferenceService in the files.

    Args:
        documents: What the files say.
        ground: Where on this machine it is to stand.
        claims: The replicas' addresses and GPUs are theirs until it closes.

    Raises:
        InvalidSpec: There is none, or the renderer refuses one.
        MachineUnfit: This machine cannot run it.
    """
    if not documents.services:
        raise InvalidSpec(
            documents.origin, "no InferenceService in it, so there is nothing to serve"
        )
    told = [policies.compiled_whole(documents, service) for service in documents.services]
    for service, document in zip(documents.services, told, strict=True):
        policies.check_reachable(service.metadata.name, document, ground.host)
    secrets = {**documents.secrets, **_policy_secrets(documents.services, told)}
    seats = [_seats(service) for service in documents.services]
    every_seat = [seat for row in seats for seat in row]
    wanted = [_gpus_wanted(seat.pool) for seat in every_seat]
    gpus = machine.assign_gpus(wanted, machine.claim_gpus(sum(wanted), ground.gpus, claims))
    addresses = machine.claim_addresses(len(every_seat), claims)
    given = zip(addresses, gpus, itertools.count(1), strict=False)
    return [
        ServicePlan(
            name=service.metadata.name,
            model=service.spec.model.name,
            host=ground.host,
            port=ground.port + PORT_STEP * index,
            replicas=tuple(_replica(seat, secrets, ground, *next(given)) for seat in seats[index]),
            namespace=service.metadata.namespace,
            policies=told[index],
        )
        for index, service in enumerate(documents.services)
    ]


def _policy_secrets(
    services: Sequence[InferenceService], told: Sequence[PolicyDocument]
) -> dict[Object, Mapping[str, str]]:
    """Return the Secrets the operator would write, which the pods mount."""
    return {
        (service.metadata.namespace, policies_name(service)): {
            labels.POLICIES_FILE: document.encode().decode()
        }
        for service, document in zip(services, told, strict=True)
    }


def _replica(
    seat: _Seat,
    secrets: Mapping[Object, Mapping[str, str]],
    ground: Ground,
    address: str,
    devices: Sequence[str],
    number: int,
) -> ReplicaPlan:
    place = Place(
        name=seat.name,
        namespace=seat.service.metadata.namespace,
        address=address,
        scratch=ground.scratch / str(number),
        models=ground.models,
        secrets=secrets,
        extra_env=_machine_env(ground, devices),
    )
    return plan_replica(seat.template, place, seat.service.metadata.name, seat.pool.name)


def _seats(service: InferenceService) -> list[_Seat]:
    """Return the replicas of a service, in the order of its pools."""
    templates = pod_templates(service)
    return [
        _Seat(
            service=service,
            pool=pool,
            template=templates[pool.name],
            name=f"{deployment_name(service, pool)}-{number}",
        )
        for pool in service.spec.hardware_pools
        for number in range(1, service.spec.replicas_of(pool) + 1)
    ]


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
