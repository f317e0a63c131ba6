"""What a running `weir up` writes down, so that other commands find it and can clean up after it.

    $WEIR_CACHE/up/PORT/state.json   who runs, where, in which state (this module)
    $WEIR_CACHE/up/PORT/lock         held while `weir up` lives; two cannot share a port
    $WEIR_CACHE/up/PORT/logs/        one file per process
    $WEIR_CACHE/models/              weights, kept for the next run

A pid alone names nobody: the kernel reuses them. Every process is written down with the time it
started, and only a process that still has both is ever signalled.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from weir_core.api.base import Model
from weir_core.errors import MachineUnfit
from weir_core.scale.types import Verdict

POLL_S = 0.1
LEFTOVER_GRACE_S = 10.0
"""How long a process that lost its `weir up` may take to end by itself."""
KILL_WAIT_S = 5.0
"""How long the kernel may take to end what was killed."""


class _Record(Model):
    """What is written down; another version of Weir may have written more."""

    model_config = ConfigDict(extra="ignore")


class ProcessRecord(_Record):
    """A process, named so that it can be recognised later."""

    name: str
    pid: int
    started_ticks: int
    """Start time since boot, in clock ticks, as /proc tells it."""


class ReplicaRecord(_Record):
    """One replica as it was last seen."""

    name: str
    pool: str
    address: str
    phase: str
    admin_socket: str = ""
    """Where its sidecar tells its state to this user."""
    restarts: int = 0
    processes: tuple[ProcessRecord, ...] = ()

    @property
    def engine_pid(self) -> int | None:
        """The engine's process, if it runs."""
        return next((p.pid for p in self.processes if p.name.endswith("/engine")), None)


class ScalingRecord(_Record):
    """What was decided last of the number of a service's replicas."""

    replicas: int
    reason: str
    message: str


class ServiceRecord(_Record):
    """One InferenceService and its public address."""

    name: str
    model: str
    url: str
    policies_file: str = ""
    """What its gateway is told (`wire.policies.PolicyDocument`), edits included."""
    gateway: ProcessRecord | None = None
    replicas: tuple[ReplicaRecord, ...] = ()
    scaling: ScalingRecord | None = None
    """None where the number is fixed, and before the first decision."""

    @property
    def asleep(self) -> str:
        """Why it has no replica on purpose; empty where it has one, or should."""
        scaling = self.scaling
        if self.replicas or scaling is None or scaling.reason != Verdict.ASLEEP.value:
            return ""
        return scaling.message


def gateway_of(service: str) -> str:
    """Return the name by which sidecars know the gateway of a service of `weir up`."""
    return f"{service}-gateway"


class InstanceRecord(_Record):
    """One running `weir up`."""

    up: ProcessRecord
    port: int
    scratch: str
    grace_period_s: float
    ready: bool = False
    services: tuple[ServiceRecord, ...] = ()

    @property
    def children(self) -> tuple[ProcessRecord, ...]:
        """Every process it started, engines first: they hold the memory."""
        gateways = [service.gateway for service in self.services if service.gateway]
        replicas = [replica for service in self.services for replica in service.replicas]
        return (*(p for replica in replicas for p in reversed(replica.processes)), *gateways)


class Instance:
    """The folder of one `weir up`."""

    def __init__(self, cache: Path, port: int) -> None:
        self.port = port
        self.directory = cache / "up" / str(port)
        self.logs = self.directory / "logs"
        self._state = self.directory / "state.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the port for the length of the block.

        Raises:
            MachineUnfit: Another `weir up` holds it.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise MachineUnfit(
                    f"`weir up` already runs for port {self.port}; see `weir status`, stop it with "
                    f"`weir down`, or choose another port: --port {self.port + 100}"
                ) from error
            yield

    def read(self) -> InstanceRecord | None:
        """Return what was last written, or None."""
        try:
            return InstanceRecord.model_validate_json(self._state.read_bytes())
        except (FileNotFoundError, ValidationError):  # ValidationError: of another version of Weir
            return None

    def write(self, record: InstanceRecord) -> None:
        """Replace what was written, in one step."""
        fresh = self._state.with_suffix(".new")
        fresh.write_text(record.model_dump_json(by_alias=True))
        fresh.replace(self._state)

    def fresh_logs(self) -> Path:
        """Return an empty folder for logs; those of the previous run go."""
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True, mode=0o700)
        return self.logs

    def forget(self) -> None:
        """Remove the record and the scratch folder it names; logs stay for reading."""
        record = self.read()
        if record is not None:
            shutil.rmtree(record.scratch, ignore_errors=True)
        self._state.unlink(missing_ok=True)


def instances(cache: Path) -> list[Instance]:
    """Return every instance that left a record, running or not."""
    found = sorted((cache / "up").glob("*/state.json"))
    return [Instance(cache, int(p.parent.name)) for p in found if p.parent.name.isdecimal()]


def started_ticks(pid: int) -> int | None:
    """Return when a process started, or None if it does not run."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none if the process does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # The second field is the name in brackets and may hold anything; count from behind it.
    fields = stat.rpartition(")")[2].split()
    return [] if fields[0] == "Z" else fields


def record_of(name: str, pid: int) -> ProcessRecord | None:
    """Return the record of a process, or None if it has ended."""
    ticks = started_ticks(pid)
    return None if ticks is None else ProcessRecord(name=name, pid=pid, started_ticks=ticks)


def is_alive(process: ProcessRecord) -> bool:
    """Tell whether that very process still runs."""
    return started_ticks(process.pid) == process.started_ticks


def group_lives(leader: ProcessRecord) -> bool:
    """Tell whether that very process, or one of the group that it led, still runs.

    An engine's workers outlive it for a moment, and write to the scratch folder meanwhile.
    """
    ticks = started_ticks(leader.pid)
    if ticks is not None:
        return ticks == leader.started_ticks  # a leader with another start leads another group
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return any(fields[2] == str(leader.pid) for fields in map(_stat, pids) if fields)


def end_leftovers(record: InstanceRecord, grace_s: float = LEFTOVER_GRACE_S) -> int:
    """End the children of a `weir up` that is gone, and what they started; return how many groups.

    They get SIGTERM from the kernel when `weir up` dies, so this usually finds none.
    """
    left = [process for process in record.children if group_lives(process)]
    for process in filter(is_alive, left):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
    if not wait_gone(left, grace_s, group_lives):
        for process in filter(group_lives, left):
            kill_group(process.pid)
        wait_gone(left, KILL_WAIT_S, group_lives)
    return len(left)


def wait_gone(
    processes: list[ProcessRecord],
    limit_s: float,
    lives: Callable[[ProcessRecord], bool] = is_alive,
) -> bool:
    """Wait until none of them lives, at most `limit_s`; tell whether that came."""
    deadline = time.monotonic() + limit_s
    while any(map(lives, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def kill_group(pid: int) -> None:
    """Kill a child and everything it started; each child leads a process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
