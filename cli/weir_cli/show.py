"""`weir status` and `weir down`: what other `weir up`s on this machine do, and how to end them."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from weir_cli import records
from weir_cli.records import (
    Instance,
    InstanceRecord,
    ReplicaRecord,
    ScalingRecord,
    ServiceRecord,
)
from weir_core.api import labels
from weir_core.errors import MachineUnfit
from weir_core.wire import state_access
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.sidecar_state import SidecarState, shortfall
from weir_core.wire.steps import Facts

WIDEST = 500
"""Columns of a table: it is cut neither where the output is no terminal nor on a narrow one."""

STATE_TIMEOUT_S = 1.0
HURRY_S = 10.0
"""How long an asked-to-hurry `weir up` gets before it is killed."""
GOODBYE_S = 20.0
"""What ending may take beyond the grace period of the pods."""

COLUMNS = (
    *("SERVICE", "REPLICA", "PHASE", "ADDRESS", "PID", "RESTARTS"),
    *("SCHEDULER", "AT ENGINE", "WAITING", "URL"),
)
EXIT_NOTHING_RUNS = 3
"""As systemctl and pg_ctl say it."""
NOTHING_RUNS = "nothing runs; start something with: weir up FILE"


def status(cache: Path, console: Console) -> int:
    """Print what runs; return 0, or 3 when nothing does."""
    running = alive(cache)
    if not running:
        console.print(NOTHING_RUNS, highlight=False)
        return EXIT_NOTHING_RUNS
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    notes: list[str] = []
    for service in (service for record in running for service in record.services):
        notes += _add_rows(table, service)
    console.print(table)
    for note in filter(None, notes):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    return 0


def _add_rows(table: Table, service: ServiceRecord) -> Iterator[str]:
    """Add a service's rows; yield what there is to say below the table."""
    if not service.replicas:
        empty = ["-"] * (len(COLUMNS) - 4)
        table.add_row(service.name, "-", "asleep" if service.asleep else "-", *empty, service.url)
    for replica in service.replicas:
        state = state_of(replica.admin_socket)
        table.add_row(*_cells(service, replica, state))
        yield scheduler_note(replica.name, facts_of(state))
    if service.scaling is not None:
        yield scaling_note(service.name, service.scaling)


def _cells(service: ServiceRecord, replica: ReplicaRecord, state: Any) -> tuple[str, ...]:
    at_engine, waiting = load_of(state)
    facts = facts_of(state)
    return (
        service.name,
        replica.name,
        replica.phase,
        replica.address,
        str(replica.engine_pid or "-"),
        str(replica.restarts),
        facts.kind if facts else "-",
        at_engine,
        waiting,
        service.url,
    )


def state_of(admin_socket: str) -> Any:
    """Return what a replica's sidecar says of itself, or None if it does not."""
    return read_state(page_of(admin_socket, "/state"))


def read_state(page: bytes | None) -> Any:
    """Return what a page of state says, or None where it says nothing."""
    try:
        return json.loads(page or b"null")
    except (ValueError, RecursionError):  # of JSON that is nested deeply
        return None


def page_of(admin_socket: str, path: str) -> bytes | None:
    """Return a page of a sidecar's admin socket, or None where there is no answer."""
    return _answer_of(_SidecarConnection(admin_socket), path, {})


def page_of_gateway(name: str, policies_file: Path, path: str) -> bytes | None:
    """Return a page of a gateway's admin port, or None where there is no answer.

    Args:
        name: The gateway's.
        policies_file: What it is told: its address, and the keys of the service.
        path: Of the page.
    """
    try:
        told = PolicyDocument.decode(policies_file.read_bytes())
    except (OSError, ValueError):
        return None
    address = next((each.address for each in told.peers if each.name == name), "")
    if not address:
        return None
    shown = {state_access.HEADER: state_access.authorization(told.peer_keys, name, time.time())}
    host = address.rpartition(":")[0]
    return _answer_of(HTTPConnection(host, labels.ADMIN_PORT, timeout=STATE_TIMEOUT_S), path, shown)


def _answer_of(asked: HTTPConnection, path: str, headers: dict[str, str]) -> bytes | None:
    with closing(asked):
        try:
            asked.request("GET", path, headers=headers)
            answer = asked.getresponse()
            return answer.read() if answer.status == HTTPStatus.OK else None
        except (HTTPException, OSError):
            return None


class _SidecarConnection(HTTPConnection):
    """HTTP over a sidecar's admin socket."""

    def __init__(self, path: str) -> None:
        super().__init__("weir", timeout=STATE_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket in place of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def facts_of(state: Any) -> Facts | None:
    """Return what a replica's engine is, or None where its sidecar does not know."""
    try:
        scheduling = msgspec.convert(state, SidecarState).scheduling
    except ValueError:
        return None
    return scheduling.engine if scheduling else None


def scheduler_note(replica: str, facts: Facts | None) -> str:
    """Return what to say of an engine whose steps Weir's scheduler does not order, if so."""
    why = shortfall(facts) if facts else ""
    return f"{replica}: runs vLLM's own {facts.kind} scheduler: {why}" if facts and why else ""


def scaling_note(service: str, scaling: ScalingRecord) -> str:
    """Return what was decided of a service's replicas, and why."""
    return f"{service}: {scaling.reason}: {scaling.message}"


def load_of(state: Any) -> tuple[str, str]:
    """Return what the engine has and what waits, by class; a dash where nobody knows."""
    scheduling = state.get("scheduling") if isinstance(state, dict) else None
    if not scheduling:
        return "-", "-"
    waiting = [f"{c['name']} {c['waiting']}" for c in scheduling["classes"] if c["waiting"]]
    return str(scheduling["at_engine"]), ", ".join(waiting) or "0"


def down(cache: Path, console: Console, port: int | None) -> int:
    """End every `weir up`, or the one of `port`; return the exit code. Twice does no harm."""
    chosen = [i for i in records.instances(cache) if port is None or i.port == port]
    ended = [_end(instance, console) for instance in chosen]
    if not any(ended):
        console.print("nothing runs", highlight=False)
    return 0


def alive(cache: Path) -> list[InstanceRecord]:
    """Return the record of every `weir up` that runs."""
    found = (instance.read() for instance in records.instances(cache))
    return [record for record in found if record is not None and records.is_alive(record.up)]


def _end(instance: Instance, console: Console) -> bool:
    """End one instance and what it left; tell whether there was anything."""
    record = instance.read()
    alive = record is not None and records.is_alive(record.up)
    if record is not None and alive:
        console.print(f"draining what `weir up` serves at port {record.port}", highlight=False)
        _end_up(record)
    try:
        with instance.held():  # or another has begun, and what is written down is that one's
            left = records.end_leftovers(record) if record is not None else 0
            instance.forget()
    except MachineUnfit:
        if record is None:
            raise MachineUnfit(
                f"the `weir up` of port {instance.port} wrote down nothing that this version of "
                "Weir can read; stop it where it was started"
            ) from None
        return alive
    if record is not None:
        console.print(f"stopped port {record.port}", highlight=False)
    return alive or left > 0


def _end_up(record: InstanceRecord) -> None:
    """Ask to drain, then to hurry, then kill; each step has its time."""
    steps = (
        (signal.SIGTERM, record.grace_period_s + GOODBYE_S),
        (signal.SIGTERM, HURRY_S),
        (signal.SIGKILL, HURRY_S),
    )
    for number, limit_s in steps:
        with suppress(ProcessLookupError):
            os.kill(record.up.pid, number)
        if records.wait_gone([record.up], limit_s):
            return


def wait_ready(instance: Instance, pid: int, show: Path, console: Console) -> bool:
    """Follow the output of a `weir up` in the background until it is ready or gone."""
    position = 0
    while True:
        record = instance.read()
        ready = record is not None and record.ready and record.up.pid == pid
        gone = records.started_ticks(pid) is None
        with show.open("rb") as output:
            output.seek(position)
            fresh = output.read()
        position += len(fresh)
        console.out(fresh.decode(errors="replace"), end="", highlight=False)
        if ready or gone:
            return ready
        time.sleep(records.POLL_S)
