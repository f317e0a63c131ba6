"""What `weir explain` reads of a service that `weir up` runs on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import msgspec

from weir_cli import top_pages
from weir_cli.child import tail
from weir_cli.explain_facts import Facts, Replica, Unseen
from weir_cli.explain_load import READ
from weir_cli.records import Instance, InstanceRecord, ReplicaRecord, ServiceRecord, gateway_of
from weir_cli.replica import Phase
from weir_cli.show import alive, page_of, page_of_gateway, state_of
from weir_cli.top_pages import Address
from weir_core.api import labels
from weir_core.wire.request_state import REQUESTS_PATH, RequestReport

_LINES: Final = 60
_PROCESSES: Final = (labels.MODEL_CONTAINER, labels.ENGINE_CONTAINER, labels.SIDECAR_CONTAINER)


def find(name: str, cache: Path) -> tuple[InstanceRecord, ServiceRecord] | None:
    """Return a service that runs on this machine."""
    for record in alive(cache):
        for service in record.services:
            if service.name == name:
                return record, service
    return None


def names(cache: Path) -> tuple[str, ...]:
    """Return the services that run on this machine."""
    return tuple(service.name for record in alive(cache) for service in record.services)


def read(record: InstanceRecord, service: ServiceRecord, cache: Path, between_s: float) -> Facts:
    """Return what can be read of a service.

    Args:
        record: The `weir up` that runs it.
        service: The service.
        cache: Where the logs are.
        between_s: Seconds between two readings of metrics.
    """
    logs = Instance(cache, record.port).logs
    gateway, address = Replica(gateway_of(service.name)), Address.of_gateway(service)
    places = [address, *map(Address.of_replica, service.replicas)]
    replicas = [gateway, *(_replica(each, logs) for each in service.replicas)]
    replicas = _with_pages(replicas, places, later=False)
    serves = any(each.phase == Phase.READY.value for each in replicas)
    if serves and between_s:
        time.sleep(between_s)
        replicas = _with_pages(replicas, places, later=True)
    return Facts(
        service.name,
        f"`weir up` at port {record.port}",
        replicas=tuple(replicas),
        asleep=service.asleep,
        between_s=between_s if serves else 0.0,
        unseen=tuple(_unseen(replicas)),
    )


def requests(
    request_id: str, service: ServiceRecord
) -> tuple[list[RequestReport], tuple[Unseen, ...]]:
    """Return what the sidecars of a service say of a request, and which did not."""
    page = f"{REQUESTS_PATH}?{urlencode({'id': request_id})}"
    reports, unseen = [], []
    gateway = gateway_of(service.name)
    told = {each.name: page_of(each.admin_socket, page) for each in service.replicas}
    told[gateway] = page_of_gateway(gateway, Path(service.policies_file), page)
    for name, found in told.items():
        try:
            reports.append(RequestReport.decode(found or b""))
        except msgspec.MsgspecError:
            why = "it does not answer"
            if name == gateway:
                why = "it has no admin port, which that of a service that may sleep has"
            unseen.append(Unseen(f"the requests of {name}", why))
    return reports, tuple(unseen)


def _replica(record: ReplicaRecord, logs: Path) -> Replica:
    files = {each: logs / f"{record.name}.{each}.log" for each in _PROCESSES}
    lines = {}
    if record.phase != Phase.READY.value:
        lines = {name: tuple(tail(path, _LINES, 0)) for name, path in files.items()}
    return Replica(
        record.name,
        record.phase,
        record.restarts,
        last_lines={name: each for name, each in lines.items() if each},
        logs={name: str(path) for name, path in files.items()},
        state=state_of(record.admin_socket),
    )


def _with_pages(
    replicas: Sequence[Replica], places: Sequence[Address], *, later: bool
) -> list[Replica]:
    pages = [top_pages.page_of(each.host, each.port, names=READ) for each in places]
    return [
        replace(replica, later=page) if later else replace(replica, first=page)
        for replica, page in zip(replicas, pages, strict=True)
    ]


def _unseen(replicas: Sequence[Replica]) -> list[Unseen]:
    silent = [each for each in replicas if each.first is None]
    return [Unseen(f"the metrics of {each.name}", "it does not answer") for each in silent]
