"""The readers of `weir top`: each asks one process, once a period, and waits for nothing else.

A process that hangs holds up its own reader only. Readers are daemon threads, so leaving does not
wait for one either.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final
from urllib.parse import urlsplit

from weir_cli.records import InstanceRecord, ReplicaRecord, ServiceRecord, gateway_of
from weir_cli.show import page_of_gateway, read_state, scaling_note, state_of
from weir_cli.top_figures import READ, Page, Process, Reading, Service, read_page
from weir_core.api import labels
from weir_core.sched.types import BUILT_IN_CLASSES, ClassPolicy
from weir_core.wire.policies import PolicyDocument

WINDOW_S: Final = 60.0
METRICS_TIMEOUT_S: Final = 3.0
"""A sidecar waits 2 s for the page of its engine."""


@dataclass(frozen=True)
class Address:
    """Where a process is asked: its page of metrics, and its page of state if it has one.

    Attributes:
        admin_socket: Has the state of a replica.
        gateway: Its name, where it is one.
        policies_file: Says where a gateway tells its state, and the keys to ask for it.
    """

    host: str
    port: int
    admin_socket: str = ""
    gateway: str = ""
    policies_file: str = ""

    @classmethod
    def of_replica(cls, record: ReplicaRecord) -> Address:
        """Return that of a replica's sidecar."""
        return cls(record.address, labels.ADMIN_PORT, record.admin_socket)

    @classmethod
    def of_gateway(cls, record: ServiceRecord) -> Address:
        """Return that of a service's gateway."""
        url = urlsplit(record.url)
        return cls(
            url.hostname or "",
            url.port or labels.API_PORT,
            gateway=gateway_of(record.name),
            policies_file=record.policies_file,
        )

    def read(self) -> Reading:
        """Ask once."""
        state = self._state()
        page = page_of(self.host, self.port)
        return Reading(time.monotonic(), state, page)

    def _state(self) -> Any:
        if self.gateway:
            return read_state(page_of_gateway(self.gateway, Path(self.policies_file), "/state"))
        return state_of(self.admin_socket) if self.admin_socket else None


def page_of(
    host: str,
    port: int,
    timeout_s: float = METRICS_TIMEOUT_S,
    names: tuple[str, ...] = READ,
) -> Page | None:
    """Return a process's page of metrics; None where it does not answer, empty if it shows none.

    Args:
        host: Of its admin port.
        port: Of its admin port.
        timeout_s: A bound on its answer.
        names: How the names of the series begin that are read.
    """
    asked = HTTPConnection(host, port, timeout=timeout_s)
    with closing(asked):
        try:
            asked.request("GET", "/metrics")
            answer = asked.getresponse()
            return read_page(answer.read().decode(), names) if answer.status == 200 else {}
        except (HTTPException, OSError, ValueError):
            return None


class Reader:
    """Asks one process each period until it is told to stop."""

    def __init__(self, address: Address, period_s: float) -> None:
        self._address = address
        self._period_s = period_s
        self.readings: tuple[Reading, ...] = ()
        """What it read in the last minute, oldest first."""
        self._stopped = Event()
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            reading = self._address.read()
            since_s = reading.at_s - WINDOW_S
            kept = (each for each in self.readings if each.at_s >= since_s)
            self.readings = (*kept, reading)
            self._stopped.wait(self._period_s)

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()


class Readers:
    """A reader for each process of the services that run now."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._readers: dict[Address, Reader] = {}

    def services(self, running: Iterable[InstanceRecord]) -> list[Service]:
        """Return the services that run, as far as they are read; stop the readers of all others."""
        found = [each for record in running for each in record.services]
        wanted = {address for each in found for address in _addresses(each)}
        for address in self._readers.keys() - wanted:
            self._readers.pop(address).stop()
        for address in wanted - self._readers.keys():
            self._readers[address] = Reader(address, self._period_s)
        return [_service(each, self._readers) for each in found]

    def have_read(self, times: int) -> bool:
        """Tell whether every process was asked that often."""
        return all(len(each.readings) >= times for each in self._readers.values())

    def stop(self) -> None:
        """Ask no more."""
        for reader in self._readers.values():
            reader.stop()


def _addresses(record: ServiceRecord) -> list[Address]:
    replicas = [Address.of_replica(each) for each in record.replicas]
    return [Address.of_gateway(record), *replicas]


def _service(record: ServiceRecord, readers: Mapping[Address, Reader]) -> Service:
    gateway = readers[Address.of_gateway(record)].readings
    return Service(
        record.name,
        classes_in(Path(record.policies_file)),
        (Process(gateway_of(record.name), "ready", gateway),),
        tuple(
            Process(each.name, each.phase, readers[Address.of_replica(each)].readings)
            for each in record.replicas
        ),
        scaling_note(record.name, record.scaling) if record.scaling else "",
    )


def classes_in(policies_file: Path) -> tuple[ClassPolicy, ...]:
    """Return the classes that a service's sidecars are told of; none where that is not known."""
    try:
        return PolicyDocument.decode(policies_file.read_bytes()).classes or BUILT_IN_CLASSES
    except (OSError, ValueError):
        return ()
